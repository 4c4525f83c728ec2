"""Retention on real file systems: it runs before the disk is full, and says who keeps it from freeing anything."""

from __future__ import annotations

import json
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

DISK_BYTES = 48 << 20
RESERVE_BYTES = 4 << 20

HOLD = """
import mmap, sys, pathlib
held = []
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.log"))[:-1]:
    with path.open("rb") as file:
        held.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
print(len(held), flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["tmpfs-pwrite", "ext4-pwrite", "ext4-mapped"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    """A small disk, for a data directory; `kind` says how to append."""
    kind, append = request.param.split("-")
    with small_disk(tmp_path / "data", kind, DISK_BYTES) as made:
        made.append = append  # type: ignore[attr-defined]
        yield made


def process_on(disk: SmallDisk, directory: Path, extra: str = "") -> GatewayProcess:
    append = disk.append  # type: ignore[attr-defined]
    return GatewayProcess(
        directory, extra_toml=f'[disk]\nappend = "{append}"\nreserve = "{RESERVE_BYTES}B"\n{extra}', env=None
    )


def payload_publisher(process: GatewayProcess, number: int = 0, *, topic: str = "load") -> QosOnePublisher:
    publisher = QosOnePublisher(process.port, f"c{topic}{number}", f"{topic}/{number}", padding=1000)
    publisher.start()
    return publisher


def numbers(data: Path, stream: str = "telemetry") -> list[int]:
    """What one publisher's records say; offsets without a hole."""
    rows = list(gateway.open(data)[stream].read().rows())
    assert [row[0] for row in rows] == list(range(rows[0][0], rows[0][0] + len(rows)))
    return [int(row[3].split()[0]) for row in rows if row[2] is not None and row[3] is not None]


def is_sound(data: Path) -> None:
    verified = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "verify", "--deep", "--data", str(data)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_the_oldest_segments_go_before_the_reserve_is_touched(disk: SmallDisk, tmp_path: Path) -> None:
    """Three times the disk under load: always acknowledged, the reserve stays free, the newest is all there."""
    with process_on(disk, tmp_path) as process:
        process.start()
        publisher = payload_publisher(process)
        lowest = disk.free_bytes
        while publisher.acknowledged * 1000 < 3 * DISK_BYTES and publisher.is_alive():
            lowest = min(lowest, disk.free_bytes)
        publisher.finish()
        assert publisher.fault is None
        assert publisher.acknowledged == publisher.sent, process.log
        assert process.end() == 0
        assert "refuses" not in process.log
        assert "segments deleted" in process.log
    assert lowest >= RESERVE_BYTES - (1 << 20), "the reserve was used"
    found = numbers(disk.path)
    assert found == list(range(found[0], publisher.sent))
    assert found[0] > 0
    is_sound(disk.path)


def test_a_disk_that_others_fill_to_the_last_block_is_freed_by_retention(disk: SmallDisk, tmp_path: Path) -> None:
    """Another file takes every block during load: old segments make room, ingest goes on unaided, nothing is lost."""
    with process_on(disk, tmp_path) as process:
        process.start()
        publisher = payload_publisher(process)
        wait_until(lambda: publisher.acknowledged * 1000 > DISK_BYTES // 3, "some segments to be there")
        disk.leave(0)
        wait_until(lambda: "segments deleted" in process.log, "retention to make room")
        later = payload_publisher(process, topic="later")
        wait_until(lambda: later.acknowledged > 100 or not later.is_alive(), "ingest to go on")
        assert later.acknowledged > 100, process.log
        disk.relieve()
        for each in (publisher, later):
            each.finish()
            assert each.fault is None
        assert process.end() == 0
    rows = [row for row in gateway.open(disk.path)["telemetry"].read().rows() if row[2] == b"load/0"]
    stored = [int(row[3].split()[0]) for row in rows if row[3] is not None]
    if stored and stored[0] < publisher.acknowledged:
        assert stored[: publisher.acknowledged - stored[0]] == list(range(stored[0], publisher.acknowledged))
    is_sound(disk.path)


def test_what_a_reader_holds_is_named_and_retention_goes_on_when_it_lets_go(disk: SmallDisk, tmp_path: Path) -> None:
    """A process maps every sealed segment: deleting frees nothing, so retention stops and names it."""
    with process_on(disk, tmp_path) as process:
        process.start()
        publisher = payload_publisher(process)
        wait_until(lambda: publisher.acknowledged * 1000 > DISK_BYTES // 2, "half of the disk to be filled")
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(disk.path / "telemetry-0")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert holder.stdout is not None
            assert int(holder.stdout.readline()) > 3
            disk.leave(RESERVE_BYTES + (2 << 20))
            wait_until(lambda: "Retention has stopped" in process.log, "retention to stop")
            assert f"held by process {holder.pid} (python" in process.log
            wait_until(lambda: "refuses records" in process.log, "the stream's policy to apply")
            before = sorted((disk.path / "telemetry-0").glob("*.log"))
        finally:
            holder.communicate(b"", 20)
        wait_until(lambda: "retention goes on" in process.log, "retention to go on")
        wait_until(lambda: "stream is well again" in process.log, "the stream to go on")
        assert before
        publisher.join(20)
        later = payload_publisher(process, topic="later")
        wait_until(lambda: later.acknowledged > 100, "ingest to go on")
        later.finish()
        assert process.end() == 0
    gaps = [record.gap for record in gateway.open(disk.path)["telemetry"].read() if record.gap]
    assert {gap.reason for gap in gaps} == {"full-disk"}
    is_sound(disk.path)


def test_two_policies_on_one_listener(disk: SmallDisk, tmp_path: Path) -> None:
    """One stream refuses and keeps its records, the other's oldest go; each client is served or told."""
    extra = '[streams.kept]\nwhen_full = "refuse"\n'
    with process_on(disk, tmp_path, extra) as process:
        routes = '{ filter = "kept/#", stream = "kept" }, { filter = "#", stream = "telemetry" }'
        text = process.config.read_text(encoding="utf-8")
        process.config.write_text(text.replace('{ filter = "#", stream = "telemetry" }', routes), encoding="utf-8")
        process.start()
        rolling, kept = payload_publisher(process), payload_publisher(process, topic="kept")
        wait_until(lambda: not kept.is_alive(), "the disk to be full of what must be kept")
        wait_until(
            lambda: "records refused, the disk is full source=devices stream=kept" in process.log, "it to be said"
        )
        rolling.finish()
        assert process.end() == 0
    assert kept.fault is None
    assert rolling.fault is None
    stored = numbers(disk.path, "kept")
    assert stored[: kept.acknowledged] == list(range(kept.acknowledged)), "an acknowledged record is missing"
    gaps = [record.gap for record in gateway.open(disk.path)["kept"].read() if record.gap is not None]
    assert {gap.reason for gap in gaps} == {"full-disk"}
    assert sum(gap.count for gap in gaps) + len(stored) >= kept.sent
    is_sound(disk.path)


@pytest.mark.parametrize("retention", ["3MiB", "4s"])
def test_streams_keep_no_more_than_they_are_told(tmp_path: Path, retention: str) -> None:
    """Retention by size and by age, while records come and after they have stopped coming."""
    extra = f'[site]\nclock = "trusted"\n[streams.telemetry]\nretention = "{retention}"\nsegment_size = "1MiB"\n'
    with GatewayProcess(tmp_path, extra_toml=extra) as process:
        process.start()
        publisher = payload_publisher(process)
        wait_until(lambda: publisher.acknowledged > 20_000, "several segments to be written")
        publisher.finish()
        stream = gateway.open(process.data)["telemetry"]
        if retention.endswith("B"):
            wait_until(lambda: stream.describe()["bytes"] <= 3 << 20, "all but 3 MiB to go")
            assert numbers(process.data)[-1] == publisher.sent - 1
        else:
            wait_until(lambda: stream.describe()["records"] == 0, "everything to go")
        again = payload_publisher(process, topic="again")
        wait_until(lambda: again.acknowledged > 10, "ingest to go on")
        again.finish()
        assert process.end() == 0
    is_sound(process.data)


def test_a_reserve_that_does_not_fit_is_refused_with_the_sum(disk: SmallDisk, tmp_path: Path) -> None:
    """Exit code 3, and the sum in the sentence, from `run` and `config check` alike."""
    with process_on(disk, tmp_path) as process:
        text = process.config.read_text(encoding="utf-8").replace(f"{RESERVE_BYTES}B", "47MiB")
        process.config.write_text(text, encoding="utf-8")
        for command in ("run", "config check"):
            ended = subprocess.run(
                [sys.executable, "-m", "gateway.cli", *command.split(), "-c", str(process.config)],
                capture_output=True,
                text=True,
                env=environment(),
                check=False,
                timeout=60,
            )
            assert ended.returncode == 3
            assert "47.0 MiB of reserve + " in ended.stderr


def test_deleting_by_hand_takes_whole_segments_and_needs_the_gateway_stopped(tmp_path: Path) -> None:
    """`stream delete --before` is refused, by process id, while a gateway runs; later it deletes what is older."""
    extra = '[streams.telemetry]\nsegment_size = "1MiB"\n'
    with GatewayProcess(tmp_path, extra_toml=extra) as process:
        process.start()
        publisher = payload_publisher(process)
        wait_until(lambda: publisher.acknowledged > 5_000, "several segments to be written")
        publisher.finish()
        command = [sys.executable, "-m", "gateway.cli", "stream", "delete", "telemetry", "--before", "now", "--json"]
        command += ["--data", str(process.data)]
        running = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
        assert running.returncode == 1
        assert process.process is not None
        assert f"process {process.process.pid}" in running.stderr
        assert process.end() == 0
    deleted = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert deleted.returncode == 0, deleted.stderr
    report = json.loads(deleted.stdout)
    assert report["segments"] >= 4
    found = numbers(process.data)
    assert found == list(range(found[0], publisher.sent))
    assert found[0] == report["log_start_offset"] > 0
    is_sound(process.data)
