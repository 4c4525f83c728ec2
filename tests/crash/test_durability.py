"""Acknowledged means on disk: nothing leaves, and no reader sees anything, before the sync of that very file is over.

A kill -9 proves nothing here, since what was written survives it in the page cache. So every call that can make
data durable is interposed in the gateway's process (hold_sync.c), held back or made to fail. Take the flusher's sync
out of the writer, and these tests fail.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from tests.support.gateway_process import GatewayProcess, environment

HELD_S = 2.0
CONNECT_4 = b"\x10\x0d\0\4MQTT\4\2\0\0\0\1c"
CONNECT_5 = b"\x10\x0e\0\4MQTT\5\2\0\0\0\0\1c"
PUBACK_1 = b"\x40\x02\0\1"
COUNT = "import gateway, sys; print(len(list(gateway.open(sys.argv[1])['telemetry'].read())))"


class Disk:
    """The switch of the interposed calls, and their journal."""

    def __init__(self, directory: Path, library: Path) -> None:
        self._control = directory / "sync-control"
        self._journal = directory / "sync-journal"
        self.passes()
        self.environment = {
            "LD_PRELOAD": str(library),
            "GATEWAY_SYNC_CONTROL": str(self._control),
            "GATEWAY_SYNC_JOURNAL": str(self._journal),
        }

    def passes(self) -> None:
        self._control.write_bytes(b"p")

    def holds(self) -> None:
        self._control.write_bytes(b"h")

    def fails(self) -> None:
        self._control.write_bytes(b"f")

    def fails_once(self) -> None:
        self._control.write_bytes(b"o")

    def passes_again(self) -> bool:
        return self._control.read_bytes() == b"p"

    def synced(self) -> list[tuple[int, str]]:
        """When (ns), and what: the data of which files was synced without an error."""
        found = []
        for line in self._journal.read_text(encoding="utf-8").splitlines():
            ended_ns, name, result, path = line.split(" ", 3)
            if result == "0" and name in ("fdatasync", "fsync"):
                found.append((int(ended_ns), path))
        return found


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hold_sync.c as a shared library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a C compiler is needed, as for the extensions"
    built = tmp_path_factory.mktemp("hold_sync") / "hold_sync.so"
    source = Path(__file__).with_name("hold_sync.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(source), "-ldl"], check=True)
    return built


@pytest.fixture
def disk(tmp_path: Path, library: Path) -> Disk:
    return Disk(tmp_path, library)


@pytest.fixture(params=["pwrite", "mapped"])
def process(tmp_path: Path, disk: Disk, request: pytest.FixtureRequest) -> Iterator[GatewayProcess]:
    extra = f'[disk]\nappend = "{request.param}"\n'
    with GatewayProcess(tmp_path, extra_toml=extra, env=disk.environment) as running:
        running.start()
        yield running
        disk.passes()


def connect(port: int, packet: bytes = CONNECT_4) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(packet)
    assert connection.recv(64)[:1] == b"\x20"
    return connection


def publish(connection: socket.socket, packet_id: int, payload: bytes = b"v", *, properties: bytes = b"") -> None:
    body = b"\0\1t" + packet_id.to_bytes(2, "big") + properties + payload
    connection.sendall(b"\x32" + bytes([len(body)]) + body)


def nothing_comes(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(64) == b"?"
    except TimeoutError:
        return True
    finally:
        connection.settimeout(10)


def seen_by_another_process(data: Path) -> int:
    """How many records a reader in a process of its own finds; 0 also while there is no stream yet."""
    read = subprocess.run(
        [sys.executable, "-c", COUNT, str(data)], capture_output=True, text=True, env=environment(), check=False
    )
    if "StreamNotFound" in read.stderr:
        return 0
    assert read.returncode == 0, read.stderr
    return int(read.stdout)


def test_while_syncs_are_held_no_acknowledgement_leaves_and_nobody_sees_the_record(
    process: GatewayProcess, disk: Disk
) -> None:
    """Two seconds of a disk that does not answer: no PUBACK, no record for readers; then both."""
    with connect(process.port) as connection:
        publish(connection, 1)
        assert connection.recv(64) == PUBACK_1, "the disk passes everything on, so the first must be acknowledged"
        assert seen_by_another_process(process.data) == 1
        disk.holds()
        publish(connection, 2)
        assert nothing_comes(connection, HELD_S), "a PUBACK left while the sync was held"
        assert seen_by_another_process(process.data) == 1, "a reader saw what was not on disk"
        assert gateway.open(process.data)["telemetry"].durable_offset == 1
        disk.passes()
        assert connection.recv(64) == b"\x40\x02\0\2"
        assert seen_by_another_process(process.data) == 2
    assert process.end() == 0


def test_the_first_record_of_a_stream_waits_for_its_directory_too(process: GatewayProcess, disk: Disk) -> None:
    """A new stream's files must be findable after a crash: with all syncs held, not even its first record is seen."""
    disk.holds()
    with connect(process.port) as connection:
        publish(connection, 1)
        assert nothing_comes(connection, HELD_S)
        assert seen_by_another_process(process.data) == 0
        disk.passes()
        assert connection.recv(64) == PUBACK_1
    synced = {path for _, path in disk.synced()}
    assert str(process.data / "telemetry-0") in synced, "the partition's directory was not synced"
    assert str(process.data) in synced, "the entry of the partition's directory was not synced"


@pytest.mark.parametrize("version", [4, 5])
def test_when_syncs_fail_no_acknowledgement_ever_leaves(process: GatewayProcess, disk: Disk, version: int) -> None:
    """A disk that fails to sync: the client is disconnected, not acknowledged, the log says so, readers see nothing."""
    properties = b"\0" if version == 5 else b""
    with connect(process.port, CONNECT_5 if version == 5 else CONNECT_4) as connection:
        publish(connection, 1, properties=properties)
        assert connection.recv(64)[:1] == b"\x40"
        disk.fails()
        publish(connection, 2, properties=properties)
        answer = b""
        while received := connection.recv(64):
            answer += received
        assert answer[:1] != b"\x40", f"a PUBACK left: {answer!r}"
        assert answer[:1] == (b"\xe0" if version == 5 else b"")
    disk.passes()
    with connect(process.port, CONNECT_5 if version == 5 else CONNECT_4) as connection:
        publish(connection, 1, properties=properties)
        connection.settimeout(3)
        with contextlib.suppress(TimeoutError, ConnectionError):
            assert connection.recv(64)[:1] != b"\x40", "a failed stream acknowledged something"
    assert seen_by_another_process(process.data) == 1
    assert "failed while syncing" in process.log
    assert process.end() == 0


def test_when_one_sync_fails_the_records_go_to_a_new_segment_and_are_acknowledged(
    process: GatewayProcess, disk: Disk
) -> None:
    """A sync fails once: what it spoke of is written again elsewhere, acknowledged after that, and there once."""
    with connect(process.port) as connection:
        for packet_id in range(1, 31):
            if packet_id % 10 == 0:
                disk.fails_once()
            publish(connection, packet_id, b"%d" % packet_id)
            assert connection.recv(64) == b"\x40\x02" + packet_id.to_bytes(2, "big")
            assert disk.passes_again(), "no sync stood between the publish and its acknowledgement"
    assert process.end() == 0
    rows = list(gateway.open(process.data)["telemetry"].read().rows())
    assert [(row[0], row[3]) for row in rows] == [(number, b"%d" % (number + 1)) for number in range(30)]
    segments = sorted(path.name for path in (process.data / "telemetry-0").glob("*.log"))
    assert segments == [f"{base:020d}.log" for base in (0, 9, 19, 29)]
    verified = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "verify", "--deep", "--data", str(process.data)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_each_acknowledgement_follows_a_sync_of_the_segment_it_is_in(process: GatewayProcess, disk: Disk) -> None:
    """Between sending a publish and its PUBACK a sync of that stream's log file ends, for each of twenty in turn."""
    log = str(process.data / "telemetry-0" / f"{0:020d}.log")
    with connect(process.port) as connection:
        for packet_id in range(1, 21):
            sent_ns = time.time_ns()
            publish(connection, packet_id)
            assert connection.recv(64) == b"\x40\x02" + packet_id.to_bytes(2, "big")
            acknowledged_ns = time.time_ns()
            ends = [ended_ns for ended_ns, path in disk.synced() if path == log]
            assert any(sent_ns <= ended_ns <= acknowledged_ns for ended_ns in ends), (
                f"publish {packet_id} was not synced"
            )
