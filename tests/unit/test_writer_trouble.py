"""The writer in trouble: a full disk, a clock that steps, segments rolled on demand. The test takes each step."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_native import summary, watermark
from gateway_native.batch import encode_headers
from gateway_native.ring import ACKED, GAP, PENDING, REFUSED, WANTS_ACK, Ring
from gateway_native.simulated_disk import Disk
from gateway_native.writer import ManualClock, Writer

from tests.support.segments import Row, read_partition

FULL = 1 << 60  # a reserve that no disk has
MS = 1_000_000
HOUR_MS = 3_600_000
T0 = 1_700_000_000_000  # ms


class Stepped:
    """A writer whose threads are the test."""

    def __init__(self, directory: Path, **options: int) -> None:
        self.directory = directory
        self.clock = ManualClock(realtime_ns=T0 * MS)
        self.writer = Writer("pwrite", clock=self.clock, **options)
        self.rings: list[Ring] = []

    def partition(self, name: str, *, refuse: bool = True, segment_bytes: int = 1 << 30) -> int:
        return self.writer.add_partition(
            str(self.directory / name), refuse_when_full=refuse, segment_bytes=segment_bytes
        )

    def ring(self, name: str) -> Ring:
        made = self.writer.ring(name, 1 << 20)
        self.rings.append(made)
        return made

    def run(self, seconds: float = 0.3) -> None:
        """Let so much time pass, in steps of 50 ms."""
        for _ in range(max(1, round(seconds / 0.05))):
            self.clock.monotonic_ns += 50 * MS
            self.clock.realtime_ns += 50 * MS
            for _ in range(8):
                self.writer.step_writer()
                self.writer.step_flusher()

    def put(self, ring: Ring, partition: int, value: bytes, *, flags: int = WANTS_ACK) -> int:
        return ring.append(partition, b"key", value, b"", self.clock.realtime_ns, flags)

    def end(self) -> None:
        self.writer.stop()
        self.run(2)
        assert self.writer.finish()


@pytest.fixture
def stepped(tmp_path: Path) -> Stepped:
    return Stepped(tmp_path)


def values(directory: Path) -> list[bytes | None]:
    return [row.value for row in read_partition(directory) if row.key is not None]


def gaps(rows: list[Row]) -> list[bytes]:
    return [value for row in rows for name, value in row.headers if name == "gateway.gap"]


def test_a_full_disk_refuses_one_stream_and_says_so(stepped: Stepped, tmp_path: Path) -> None:
    """Refused at once, with a verdict; taken again only after the producer has looked, and never acknowledged late."""
    a, ring = stepped.partition("a-0"), stepped.ring("r")
    first = stepped.put(ring, a, b"1")
    stepped.run()
    assert ring.verdict(a, first) == ACKED
    stepped.writer.roll(a)
    stepped.run()
    stepped.writer.reserve_bytes = FULL
    refused = [stepped.put(ring, a, b"refused %d" % n) for n in range(3)]
    stepped.run()
    assert [ring.verdict(a, sequence) for sequence in refused] == [REFUSED] * 3
    assert stepped.writer.partition_state(a)["refusing"]
    stepped.writer.reserve_bytes = 0
    stepped.run()
    assert not stepped.writer.partition_state(a)["refusing"]
    assert ring.refusals_pending
    late = stepped.put(ring, a, b"before the producer looked")
    stepped.run()
    assert [ring.verdict(a, sequence) for sequence in (*refused, late)] == [REFUSED] * 4
    assert ring.refusals_pending
    ring.confirm_refusals()
    assert not ring.refusals_pending
    second = stepped.put(ring, a, b"2")
    stepped.run()
    assert ring.verdict(a, second) == ACKED
    count, size, first_ns, last_ns = stepped.writer.refusals(a)["r"]
    assert (count, size) == (4, sum(map(len, [b"key", b"refused 0"])) * 3 + len(b"key") + 26)
    assert T0 * MS < first_ns < last_ns < (T0 + 10_000) * MS
    stepped.end()
    assert values(tmp_path / "a-0") == [b"1", b"2"]


def test_a_stream_that_refuses_holds_up_no_other_on_the_same_ring(stepped: Stepped, tmp_path: Path) -> None:
    """One stream has room in its segment, the other has none: the first is acknowledged, the second refused."""
    a, b, ring = stepped.partition("a-0"), stepped.partition("b-0"), stepped.ring("r")
    assert stepped.put(ring, a, b"0")
    stepped.run()
    stepped.writer.reserve_bytes = FULL
    verdicts = []
    for number in range(20):
        pair = stepped.put(ring, b, b"no"), stepped.put(ring, a, b"%d" % (number + 1))
        stepped.run(0.1)
        verdicts.append((ring.verdict(b, pair[0]), ring.verdict(a, pair[1])))
    assert verdicts == [(REFUSED, ACKED)] * 20
    stepped.end()
    assert values(tmp_path / "a-0") == [b"%d" % number for number in range(21)]
    assert not (tmp_path / "b-0" / f"{0:020d}.log").exists() or values(tmp_path / "b-0") == []


def test_where_retention_may_delete_it_has_a_second_to_make_room(stepped: Stepped, tmp_path: Path) -> None:
    """With delete-oldest records wait; with room within a second they are acknowledged, without they are refused."""
    a, ring = stepped.partition("a-0", refuse=False), stepped.ring("r")
    stepped.writer.reserve_bytes = FULL
    first = stepped.put(ring, a, b"1")
    stepped.run(0.5)
    assert ring.verdict(a, first) == PENDING
    assert stepped.writer.partition_state(a)["stalled_errno"]
    stepped.writer.reserve_bytes = 0
    stepped.writer.retry()
    stepped.run(0.05)
    assert ring.verdict(a, first) == ACKED
    stepped.writer.reserve_bytes = FULL
    stepped.writer.roll(a)
    stepped.run()
    second = stepped.put(ring, a, b"2")
    stepped.run(0.5)
    assert ring.verdict(a, second) == PENDING
    stepped.run(1.5)
    assert ring.verdict(a, second) == REFUSED
    stepped.end()
    assert values(tmp_path / "a-0") == [b"1"]


def test_a_gap_record_is_written_from_the_reserve(stepped: Stepped, tmp_path: Path) -> None:
    """While a stream refuses, the gateway's own record of that is taken, and nothing else."""
    a, ring, own = stepped.partition("a-0"), stepped.ring("r"), stepped.ring("gateway")
    stepped.writer.reserve_bytes = FULL
    stepped.put(ring, a, b"no")
    stepped.run()
    gap = own.append(a, b"", b"", encode_headers([("gateway.gap", b"reason=full-disk")]), T0 * MS, GAP)
    stepped.run()
    assert own.verdict(a, gap) == ACKED
    assert stepped.writer.partition_state(a)["refusing"]
    stepped.end()
    rows = read_partition(tmp_path / "a-0")
    assert gaps(rows) == [b"reason=full-disk"]
    assert [(row.key, row.value) for row in rows] == [(None, None)]


def test_records_that_nobody_waits_for_are_counted_and_block_nothing(stepped: Stepped, tmp_path: Path) -> None:
    """QoS 0 on a full disk: counted, and taken again without anybody having to look."""
    a, ring = stepped.partition("a-0"), stepped.ring("r")
    stepped.writer.reserve_bytes = FULL
    for _ in range(7):
        stepped.put(ring, a, b"no", flags=0)
    stepped.run()
    stepped.writer.reserve_bytes = 0
    stepped.run()
    stepped.put(ring, a, b"yes", flags=0)
    stepped.run()
    assert stepped.writer.partition_state(a)["refused"] == 7
    assert stepped.writer.partition_state(a)["records"] == 1
    stepped.end()
    assert values(tmp_path / "a-0") == [b"yes"]


def test_a_jump_ahead_begins_a_segment_and_silence_does_not(stepped: Stepped, tmp_path: Path) -> None:
    """Ten silent hours go on in one segment; a clock that jumps ten hours ahead begins one, and back another."""
    a, ring = stepped.partition("a-0"), stepped.ring("r")
    stepped.put(ring, a, b"1")
    stepped.run()
    stepped.clock.monotonic_ns += 10 * HOUR_MS * MS
    stepped.clock.realtime_ns += 10 * HOUR_MS * MS
    stepped.run()
    stepped.put(ring, a, b"2")
    stepped.run()
    stepped.clock.realtime_ns += 10 * HOUR_MS * MS
    stepped.run()
    stepped.put(ring, a, b"3")
    stepped.run()
    assert stepped.writer.clock_step[2] == 1
    stepped.clock.realtime_ns -= 10 * HOUR_MS * MS
    stepped.run()
    stepped.put(ring, a, b"4")
    stepped.run()
    assert stepped.writer.clock_step[2] == 2
    stepped.end()
    assert sorted(path.name for path in (tmp_path / "a-0").glob("*.log")) == [f"{base:020d}.log" for base in (0, 2, 4)]
    rows = read_partition(tmp_path / "a-0")
    assert [row.value for row in rows] == [b"1", b"2", None, b"3", None, b"4"]
    assert all(b"cause=step" in row.headers[0][1] for row in rows if row.value is None)


def test_a_rolled_segment_is_sealed_with_summary_and_manifest(stepped: Stepped, tmp_path: Path) -> None:
    """Rolled without a record: the old segment is whole, a new empty one begins, the watermark says so."""
    a, ring = stepped.partition("a-0"), stepped.ring("r")
    for number in range(2):
        stepped.put(ring, a, b"%d" % number)
        stepped.run()
        stepped.writer.roll(a)
        stepped.run()
        stepped.writer.roll(a)  # an empty segment is not rolled
        stepped.run()
    mark = watermark.read(tmp_path / "a-0" / "watermark")
    assert mark is not None
    assert (mark.segment_base, mark.position, mark.durable_offset) == (2, 0, 2)
    stepped.end()
    manifest = (tmp_path / "a-0" / "manifest").read_bytes()
    assert len(manifest) == 2 * summary.BYTES
    for base in range(2):
        beside = (tmp_path / "a-0" / f"{base:020d}.sums").read_bytes()
        found = summary.parse(beside)
        assert beside == manifest[base * summary.BYTES : (base + 1) * summary.BYTES]
        assert found is not None
        assert (found.base_offset, found.next_offset) == (base, base + 1)
        assert found.log_bytes == (tmp_path / "a-0" / f"{base:020d}.log").stat().st_size


def test_a_clean_end_is_said_in_the_watermark(stepped: Stepped, tmp_path: Path) -> None:
    """After `stop` the watermark carries the clean flag; while running it does not."""
    a, ring = stepped.partition("a-0"), stepped.ring("r")
    stepped.put(ring, a, b"1")
    stepped.run()
    mark = watermark.read(tmp_path / "a-0" / "watermark")
    assert mark is not None
    assert not mark.flags & watermark.CLEAN
    stepped.end()
    clean = watermark.read(tmp_path / "a-0" / "watermark")
    assert clean == mark._replace(flags=mark.flags | watermark.CLEAN)


@pytest.mark.parametrize("syncfs_files", [0, 4])
def test_many_partitions_end_together(tmp_path: Path, syncfs_files: int) -> None:
    """All of them clean: synced by several threads, or by two calls for the whole file system."""
    stepped = Stepped(tmp_path, syncfs_files=syncfs_files)
    ring = stepped.ring("r")
    names = [f"s{number}-0" for number in range(40)]
    for number, name in enumerate(names):
        stepped.put(ring, stepped.partition(name), b"%d" % number)
    stepped.run()
    before = stepped.writer.counters["syncfs"]
    stepped.end()
    assert stepped.writer.counters["syncfs"] - before == (2 if syncfs_files else 0)
    for number, name in enumerate(names):
        mark = watermark.read(tmp_path / name / "watermark")
        assert mark is not None
        assert mark.flags & watermark.CLEAN
        assert (tmp_path / name / f"{0:020d}.log").stat().st_size == mark.position
        assert [row.value for row in read_partition(tmp_path / name)] == [b"%d" % number]


def test_a_sync_that_fails_at_the_end_costs_one_partition_its_clean_end() -> None:
    """It is told, and the others end cleanly."""
    disk = Disk(1)
    clock = ManualClock(realtime_ns=T0 * MS)
    writer = Writer(disk.table("pwrite"), clock=clock)
    ring = writer.ring("r", 1 << 20)
    names = [f"s{number}-0" for number in range(5)]
    for name in names:
        index = writer.add_partition(f"/disk/{name}")
        ring.append(index, b"key", b"value", b"", clock.realtime_ns, WANTS_ACK)
    writer.step_writer()
    clock.monotonic_ns += 100 * MS
    writer.step_writer()
    writer.step_flusher()
    writer.step_writer()
    assert ring.verdict(0, 1) == ACKED
    disk.fail("sync_all", suffix=f"s2-0/{0:020d}.log")
    writer.stop()
    writer.step_writer()
    assert writer.finish()
    marks = [watermark.parse(disk.read_file(f"/disk/{name}/watermark")) for name in names]
    clean = [mark is not None and bool(mark.flags & watermark.CLEAN) for mark in marks]
    assert clean == [True, True, False, True, True]
    assert [writer.partition_state(index)["failed_errno"] != 0 for index in range(5)] == [
        False,
        False,
        True,
        False,
        False,
    ]
