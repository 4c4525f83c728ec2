"""Readers at their edges: wrong indexes, vanishing segments, followers that are stopped, memory, locks."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch

import gateway
from gateway.errors import StreamNotFound
from gateway.log.layout import prepare
from gateway.log.lock import DataLock
from gateway.log.partition import PartitionReader
from gateway.log.segment import CHUNK_BYTES, Segment
from tests.support.partitions import T0, Partition, make_batch, make_batches


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    data = tmp_path / "data"
    prepare(data, "test", "Europe/Berlin")
    return Partition(data / "s-0")


def offsets(partition: Partition, **selection: Any) -> list[int]:
    chunks = PartitionReader(partition.directory).chunks(batch.Selection(**selection))
    return [row[0] for rows in chunks for row in rows]


def test_a_wrong_time_index_hides_no_record(partition: Partition) -> None:
    """Whichever byte of a time index is wrong, every range of times still gives exactly its records."""
    partition.add(make_batches(14, value_bytes=700))
    partition.add(make_batches(4, base_offset=42, time=T0 + 42, value_bytes=700), sealed=False)
    partition.mark_all()
    sound = partition.times(0).read_bytes()
    assert len(sound) >= 4 * 12
    for position in range(len(sound)):
        for change in (0x01, 0x10, 0x80):
            data = bytearray(sound)
            data[position] ^= change
            partition.times(0).write_bytes(data)
            for first in (5, 20, 34, 41):
                found = offsets(partition, time_from=T0 + first, time_to=T0 + 47)
                assert found == list(range(first, 47)), f"byte {position} of the time index, from {first}"


def test_when_every_segment_vanishes_the_reader_just_ends(partition: Partition) -> None:
    """Retention that overtakes a slow reader costs it the records that are gone, and is no error."""
    for base in (0, 30, 60):
        partition.add(make_batches(10, base_offset=base))
    partition.mark_all()
    records = iter(gateway.open(partition.directory.parent)["s"].read())
    assert next(records).offset == 0
    for base in (0, 30, 60):
        partition.log(base).unlink()
    assert [record.offset for record in records] == list(range(1, 30))


def test_segment_missing_in_the_middle_is_a_gap(partition: Partition) -> None:
    """Retention deletes from the front: a hole behind older segments is loss, and is told, by manifest and without."""
    for base in (0, 30, 60):
        partition.add(make_batches(10, base_offset=base), sealed=base < 60)
    partition.mark_all()
    partition.log(30).unlink()
    for with_manifest in (True, False):
        if not with_manifest:
            partition.manifest.unlink()
        records = gateway.open(partition.directory.parent)["s"].read(damage="skip")
        assert [record.offset for record in records] == [*range(30), *range(60, 90)]
        assert [gap.offsets for gap in records.gaps] == [(30, 60)]


def test_reading_begins_without_reading_everything(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first record of a large log costs a bounded number of bytes, and making the range costs none."""
    for base in range(0, 3000, 300):
        partition.add(make_batches(100, base_offset=base, value_bytes=4000))
    partition.mark_all()
    read, sizes = Segment.read, list[int]()

    def counted(self: Segment, position: int, size: int) -> bytes:
        sizes.append(size)
        return read(self, position, size)

    monkeypatch.setattr(Segment, "read", counted)
    records = gateway.open(partition.directory.parent)["s"].read(start=None, keys="a/+")
    assert sizes == []
    assert next(iter(records)).offset == 0
    assert sum(sizes) <= 4 * CHUNK_BYTES


def test_iterating_over_a_large_log_takes_bounded_memory(partition: Partition) -> None:
    """Ten times the log is no more memory: only one piece of it is held at a time."""
    for base in range(0, 3000, 300):
        partition.add(make_batches(100, base_offset=base, value_bytes=8000))
    partition.mark_all()
    stream = gateway.open(partition.directory.parent)["s"]
    assert stream.describe()["bytes"] > 20 * 2**20
    partition.segments.clear()
    tracemalloc.start()
    try:
        count = sum(1 for _ in stream.read())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 3000
    assert peak < 6 * CHUNK_BYTES


def test_a_follower_sees_what_becomes_durable_and_nothing_else(partition: Partition) -> None:
    """Sound batches above the watermark stay unseen until it moves; keys choose; "end" means the moment of the call."""
    partition.add([make_batch(0), make_batch(3, key=b"other"), make_batch(6), make_batch(9)], sealed=False)
    sizes = [len(data) for data in partition.segments[0]]
    partition.mark(0, sizes[0], 3)
    stream = gateway.open(partition.directory.parent)["s"]
    from_start, from_end = stream.follow("start", keys="a/#"), stream.follow(poll_s=0.001)
    assert [next(from_start).offset for _ in range(3)] == [0, 1, 2]
    partition.mark(0, sum(sizes[:3]), 9)
    assert [next(from_start).offset for _ in range(3)] == [6, 7, 8]
    assert [next(from_end).offset for _ in range(6)] == [3, 4, 5, 6, 7, 8]
    stop = threading.Event()
    seen: list[int] = []

    def follow() -> None:
        seen.extend(record.offset for record in stream.follow(7, poll_s=0.001, stop=stop))

    follower = threading.Thread(target=follow)
    follower.start()
    while len(seen) < 2:
        time.sleep(0.001)
    stop.set()
    follower.join(10)
    assert not follower.is_alive()
    assert seen == [7, 8]


def test_a_missing_stream_names_those_there_are(partition: Partition) -> None:
    """The error is a KeyError with a whole sentence, also where nothing has been recorded."""
    log = gateway.open(partition.directory.parent)
    with pytest.raises(KeyError, match="nothing has been recorded yet") as caught:
        log["s"]
    assert isinstance(caught.value, StreamNotFound)
    for name in ("s", "gate-1", "x.y"):
        Partition(partition.directory.with_name(f"{name}-0")).add([make_batch(0)])
    (partition.directory.parent / "no partition-0").mkdir()
    assert log.streams() == [stream.name for stream in log] == ["gate-1", "s", "x.y"]
    assert "s" in log
    assert "gate" not in log
    with pytest.raises(StreamNotFound, match=r"^There is no stream 'gate' here; there is: gate-1, s, x\.y\.$"):
        log["gate"]


def test_the_example_in_the_packages_docstring_runs(partition: Partition, capsys: pytest.CaptureFixture[str]) -> None:
    """What `help(gateway)` shows does what it says on a directory with recent records."""
    now = time.time_ns() // 1_000_000
    path = partition.directory.with_name("telemetry-0")
    rows: list[tuple[int, bytes, bytes, list[tuple[str, bytes]]]] = [
        (now - 3_600_000, b"plant/1/press/temperature", b"too old", []),
        (now - 60_000, b"plant/1/press/temperature", b"21.5", []),
        (now - 59_000, b"plant/1/press/humidity", b"another", []),
    ]
    Partition(path).add([batch.encode([row], offset) for offset, row in enumerate(rows)], sealed=False)
    indented = [line for line in (gateway.__doc__ or "").splitlines() if line.startswith("    ")]
    example = textwrap.dedent("\n".join(indented))
    assert '"/var/lib/gateway"' in example
    exec(example.replace("/var/lib/gateway", str(path.parent)), {})  # noqa: S102  # it is our own
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert printed[0].endswith("b'plant/1/press/temperature' b'21.5'")


LOCK_AND_CHILD = """
import os, sys; sys.path[:0] = sys.argv[2].split(':')
from pathlib import Path
from gateway.log.lock import DataLock
lock = DataLock(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    lock.release()  # not the child's to give back
    os.write(1, b'forked\\n')
    sys.stdin.read()
    os._exit(0)
os.write(1, b'held\\n')
os.waitpid(child, 0) if sys.argv[3] == 'wait' else os._exit(0)
"""


@pytest.mark.parametrize("ending", ["wait", "die"])
def test_a_child_neither_keeps_nor_loses_the_writers_lock(tmp_path: Path, ending: str) -> None:
    """A forked child's release leaves the parent's lock alone; one that outlives the parent keeps nobody out."""
    arguments = [sys.executable, "-c", LOCK_AND_CHILD, str(tmp_path), ":".join(sys.path), ending]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert sorted(parent.stdout.readline() for _ in range(2)) == ["forked\n", "held\n"]
        if ending == "wait":
            with pytest.raises(gateway.LockedError, match=f"process {parent.pid} "):
                DataLock(tmp_path)
        else:
            parent.wait(10)
            DataLock(tmp_path).release()  # although the child, forked while the lock was held, still lives
        parent.communicate("")
