"""A full disk is a normal state: nothing acknowledged is lost, and ingest goes on by itself once there is room."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from tests.support.gateway_process import GatewayProcess, environment
from tests.support.native import wait_until
from tests.support.publisher import QosOnePublisher
from tests.support.small_disk import SmallDisk, small_disk

CLIENTS = 4
DISK_BYTES = 32 << 20
LEFT_BYTES = 2 << 20
REFUSES = "refuses records since"


@pytest.fixture(params=["tmpfs-pwrite", "ext4-pwrite", "ext4-mapped"])
def disk_and_process(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[SmallDisk, GatewayProcess]]:
    """A gateway whose data directory is a small disk."""
    kind, append = request.param.split("-")
    with small_disk(tmp_path / "data", kind, DISK_BYTES) as disk:
        extra = f'[disk]\nappend = "{append}"\nreserve = "0B"\n'
        extra += '[streams.telemetry]\nsegment_size = "1MiB"\nwhen_full = "refuse"\n'
        with GatewayProcess(tmp_path, extra_toml=extra) as process:
            process.start()
            yield disk, process


def publish_until_full(disk: SmallDisk, process: GatewayProcess) -> list[QosOnePublisher]:
    """Four clients at speed, until the gateway says that the disk is full."""
    disk.leave(LEFT_BYTES)
    publishers = [QosOnePublisher(process.port, f"c{client}", f"load/{client}") for client in range(CLIENTS)]
    for publisher in publishers:
        publisher.start()
    wait_until(lambda: REFUSES in process.log, "the gateway to meet the full disk")
    return publishers


def check(data: Path, publishers: list[QosOnePublisher]) -> None:
    """Every client's messages, in order, all that were acknowledged to it among them, none twice."""
    stored: list[list[int]] = [[] for _ in publishers]
    for number, (offset, _, key, value, _) in enumerate(gateway.open(data)["telemetry"].read().rows()):
        assert offset == number
        if key is None:  # a record of the gateway's own: what was refused
            continue
        assert value is not None
        if not key.startswith(b"load/"):
            continue
        stored[int(key.rpartition(b"/")[2])].append(int(value))
    for publisher, numbers in zip(publishers, stored, strict=True):
        assert publisher.fault is None, publisher.fault
        assert publisher.acknowledged > 0
        assert numbers[: publisher.acknowledged - publisher.first] == list(
            range(publisher.first, publisher.acknowledged)
        )
        assert numbers == sorted(set(numbers))


def verify(data: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", "verify", "--deep", "--data", str(data)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


def test_a_disk_that_stays_full_refuses_and_goes_on_by_itself(
    disk_and_process: tuple[SmallDisk, GatewayProcess],
) -> None:
    """Filled under load: clients are told, nothing is acknowledged; freed: the next ones are served, nothing lost."""
    disk, process = disk_and_process
    publishers = publish_until_full(disk, process)
    for publisher in publishers:  # MQTT 3.1.1 knows no other answer than to disconnect
        publisher.join(30)
        assert not publisher.is_alive(), "a client was left hanging on a full disk"
    refused = QosOnePublisher(process.port, "refused", "refused/0")
    refused.start()
    refused.join(30)
    assert not refused.is_alive()
    assert refused.acknowledged == 0, "acknowledged on a full disk"
    disk.relieve()
    wait_until(lambda: "well again" in process.log, "the gateway to find room by itself")
    later = [QosOnePublisher(process.port, f"c{n}", f"load/{n}", first=publishers[n].sent) for n in range(CLIENTS)]
    for publisher in later:
        publisher.start()
    wait_until(lambda: all(p.acknowledged > p.first or not p.is_alive() for p in later), "every client to be served")
    for publisher in later:
        publisher.finish()
        assert publisher.acknowledged == publisher.sent
    assert process.end() == 0
    check(process.data, publishers)
    verified = verify(process.data)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_killed_on_a_full_disk_it_comes_up_with_everything_acknowledged(
    disk_and_process: tuple[SmallDisk, GatewayProcess],
) -> None:
    """kill -9 on a full disk: it starts again while there is still no room, serves what is there, and goes on later."""
    disk, process = disk_and_process
    publishers = publish_until_full(disk, process)
    process.kill()
    for publisher in publishers:
        publisher.join(20)
    disk.leave(0)
    process.start()
    check(process.data, publishers)
    disk.relieve()
    later = QosOnePublisher(process.port, "later", "later/0")
    later.start()
    wait_until(lambda: later.acknowledged > 0, "the gateway to take something again")
    later.finish()
    assert process.end() == 0
    verified = verify(process.data)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_told_to_end_on_a_full_disk_it_ends_and_keeps_what_it_acknowledged(
    disk_and_process: tuple[SmallDisk, GatewayProcess],
) -> None:
    """SIGTERM on a full disk: exit code 0 without waiting for room, everything acknowledged is in the log."""
    disk, process = disk_and_process
    publishers = publish_until_full(disk, process)
    assert process.end() == 0
    for publisher in publishers:
        publisher.join(20)
    check(process.data, publishers)
