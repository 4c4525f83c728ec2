"""What a start reads, lists and writes; a disk without room, or with bad sectors; segments that were written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch, summary, watermark
from gateway_native.watermark import CLEAN, INDEXES_WHOLE

from gateway.log import maintenance
from gateway.log.manifest import Manifest
from gateway.log.partition import PartitionReader
from gateway.log.recovery import recover
from gateway.log.segment import Segment
from tests.support.fault_files import BadSectors, FullFiles, WatchedFiles
from tests.support.partitions import T0, Partition, kafka_indexes, make_batch, make_batches, summary_of


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    return Partition(tmp_path / "s-0")


def offsets_read(partition: Partition, **selection: Any) -> list[int]:
    chunks = PartitionReader(partition.directory).chunks(batch.Selection(**selection), on_damage=lambda _: None)
    return [row[0] for rows in chunks for row in rows]


def publish(partition: Partition, **arguments: Any) -> None:
    """What the writer does with the state it was given."""
    found = recover(partition.directory, **arguments)
    partition.mark(found.segment_base, found.position, found.next_offset, epoch=found.epoch)


def closed(partition: Partition) -> None:
    """Two segments, closed cleanly."""
    partition.add(make_batches(20, value_bytes=300))
    batches = make_batches(20, base_offset=60, value_bytes=300)
    partition.add(batches, sealed=False)
    partition.mark_all()
    mark = watermark.read(partition.watermark)
    assert mark is not None
    partition.watermark.write_bytes(watermark.encode(mark._replace(flags=INDEXES_WHOLE | CLEAN)))
    partition.times(60).write_bytes(kafka_indexes(60, batches, sealed=True)[1])


def test_closed_cleanly_means_no_listing_and_no_walk(partition: Partition) -> None:
    """Nothing of a log is read, no directory is listed, and only the final entry of the time index is taken out."""
    closed(partition)
    files = WatchedFiles()
    found = recover(partition.directory, files=files)
    assert (found.clean, found.next_offset, found.segment_base, found.log_start_offset) == (True, 120, 60, 0)
    assert (files.listed, [name for name, _, _ in files.read if name.endswith(".log")]) == (0, [])
    assert files.changed == [("truncate", f"{60:020d}.timeindex")]
    assert (found.manifest_bytes, found.indexes_whole, found.walked_bytes) == (summary.BYTES, True, 0)
    assert (found.first_timestamp, found.max_timestamp, found.last_timestamp) == (T0, T0 + 59, T0 + 59)


@pytest.mark.parametrize("change", [b"", make_batch(120), b"torn"])
def test_clean_mark_of_another_log_is_not_believed(partition: Partition, change: bytes) -> None:
    """A log that is longer or shorter than it was when it was closed is walked like after a crash."""
    closed(partition)
    content = partition.log(60).read_bytes()
    partition.log(60).write_bytes(content + change if change else content[:-1])
    found = recover(partition.directory)
    assert not found.clean
    assert found.next_offset == {b"": 120, b"torn": 120}.get(change, 123)
    assert found.lost_records == (0 if change else 3)


def test_clean_mark_is_not_believed_where_another_segment_was_begun(partition: Partition) -> None:
    """A power cut may keep the mark of a clean stop beside the segment that the next run began: it is gone on with."""
    closed(partition)
    partition.add(make_batches(1, base_offset=120), sealed=False, tail=bytes(4096))
    found = recover(partition.directory)
    assert (found.clean, found.segment_base, found.next_offset, found.manifest_bytes) == (False, 120, 123, 2 * 64)


def test_only_what_follows_the_watermark_is_read(partition: Partition) -> None:
    """After a crash one listing is made, and of the log only the tail is read, however much lies before it."""
    partition.add(make_batches(20, value_bytes=3000))
    batches = make_batches(100, base_offset=60, value_bytes=3000)
    partition.add(batches, sealed=False)
    position = sum(map(len, batches[:95]))
    partition.mark(60, position, 60 + 285)
    files = WatchedFiles()
    found = recover(partition.directory, files=files)
    assert (found.next_offset, found.walked_bytes, files.listed) == (360, sum(map(len, batches[95:])), 1)
    logs = [(name, at) for name, at, size in files.read if name.endswith(".log") and size]
    assert all(name == f"{60:020d}.log" and at >= position - 4096 for name, at in logs)


def torn(partition: Partition) -> int:
    """A sealed segment after the watermark, and a torn tail."""
    partition.add(make_batches(20, value_bytes=300))
    partition.add(make_batches(20, base_offset=60, value_bytes=300))
    partition.add(make_batches(5, base_offset=120, value_bytes=300), sealed=False, tail=b"torn" * 9)
    partition.mark(60, 0, 60)
    return 135


def lost(partition: Partition) -> int:
    """Acknowledged records are gone."""
    partition.add(make_batches(20, value_bytes=300))
    partition.add(make_batches(20, base_offset=60, value_bytes=300), sealed=False)
    partition.mark_all()
    content = partition.log(60).read_bytes()
    partition.log(60).write_bytes(content[: len(content) // 2])
    return 120


def copied(partition: Partition) -> int:
    """No watermark."""
    torn(partition)
    partition.watermark.unlink()
    return 135


@pytest.mark.parametrize("state", [torn, lost, copied, lambda partition: (closed(partition), 120)[1]])
def test_a_full_disk_does_not_keep_a_log_from_opening(partition: Partition, state: Any) -> None:
    """Whichever write finds no room, recovery comes up with the same offsets; with room everything is there again."""
    for room in range(25):
        for path in partition.directory.glob("*"):
            path.unlink()
        end = state(partition)
        files = FullFiles(room)
        found = recover(partition.directory, files=files)
        assert (found.next_offset, found.epoch) == (end, 2 if partition.watermark.exists() else 1)
        if found.segment_base < 0:  # there was no room for a new segment: the writer makes it
            assert (state, found.position) == (lost, 0)
        if not found.skipped:
            break
        assert "could not be written" in found.skipped[0]
        again = recover(partition.directory)
        assert (again.next_offset, again.skipped, again.segment_base >= 0) == (end, (), True)
        for base in maintenance.missing(partition.directory):
            maintenance.rebuild_segment(partition.directory, base)
        assert maintenance.missing(partition.directory) == []
    assert not found.skipped
    assert room > 1 or state not in (torn, lost)


def test_what_was_skipped_is_said_and_left_to_maintenance(partition: Partition) -> None:
    """Without any room: a sentence for each file, and the sealed segment is named as one to be made again."""
    torn(partition)
    for path in (partition.index(60), partition.index(120), partition.sums(60)):
        path.unlink()
    found = recover(partition.directory, files=FullFiles())
    assert (found.rebuild, found.indexes_whole, found.index_bytes, found.manifest_bytes) == ((60,), False, 0, -1)
    assert all(
        "could not be written: No space left on device; it is made again later." in each for each in found.skipped
    )
    assert {Path(each.split(" could")[0]).name for each in found.skipped} >= {
        f"{60:020d}.index", f"{60:020d}.sums", f"{120:020d}.index",
    }  # fmt: skip


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("cut", [True, False])
def test_segment_written_again_after_a_failed_sync_goes_on_where_it_begins(
    partition: Partition, kept: int, cut: bool
) -> None:
    """The bad segment, which could not be cut, ends where the new one begins; what both hold is there once."""
    batches = make_batches(10)
    durable = 4
    partition.add(batches[:durable] if cut else batches, sealed=False)
    partition.add(batches[durable : durable + kept], base=durable * 3, sealed=False, tail=bytes(4096))
    partition.mark(0, sum(map(len, batches[:durable])), durable * 3)
    assert offsets_read(partition) == list(range(durable * 3))
    found = recover(partition.directory)
    assert (found.segment_base, found.next_offset, found.cut_bytes) == (durable * 3, (durable + kept) * 3, 0)
    assert partition.log(0).read_bytes() == b"".join(batches[:durable])
    assert partition.sums(0).read_bytes() == summary.encode(summary_of(0, batches[:durable]))
    assert found.set_aside == ()
    partition.mark(found.segment_base, found.position, found.next_offset)
    assert offsets_read(partition) == list(range((durable + kept) * 3))


def test_an_older_watermark_after_a_power_cut_keeps_what_follows(partition: Partition) -> None:
    """The log may be further than the watermark that survived, by whole segments: all that is sound stays."""
    partition.add(make_batches(20, value_bytes=300), sealed=False)
    partition.add(make_batches(20, base_offset=60, value_bytes=300), sealed=False)
    partition.add(make_batches(20, base_offset=120, value_bytes=300), sealed=False)
    partition.mark(0, sum(map(len, partition.segments[0][:5])), 15)
    found = recover(partition.directory)
    assert (found.segment_base, found.next_offset, found.rebuild) == (120, 180, ())
    for base in (0, 60):
        assert partition.sums(base).read_bytes() == summary.encode(summary_of(base, partition.segments[base]))
        assert partition.times(base).read_bytes() == kafka_indexes(base, partition.segments[base], sealed=True)[1]
    assert found.manifest_bytes == 2 * summary.BYTES
    assert [entry.base_offset for entry in Manifest(partition.manifest.read_bytes())] == [0, 60]


def test_zeros_where_acknowledged_records_were_are_a_loss(partition: Partition) -> None:
    """A copy whose log is older than its watermark: what is sound stays, the rest is counted, offsets go on behind."""
    batches = make_batches(10, value_bytes=3000)
    partition.add(batches, sealed=False)
    partition.mark_all()
    content = partition.log(0).read_bytes()
    partition.log(0).write_bytes(content[: 6 * len(batches[0])].ljust(len(content), b"\0"))
    found = recover(partition.directory)
    assert (found.lost_records, found.next_offset, found.segment_base, found.position) == (12, 30, 30, 0)
    assert partition.log(0).stat().st_size == 6 * len(batches[0])


def test_files_that_belong_to_no_segment_are_removed(partition: Partition) -> None:
    """What an interrupted retention, roll or replacement left goes; foreign files stay."""
    for base in (0, 60, 120):
        partition.add(make_batches(20, base_offset=base, value_bytes=300), sealed=base < 120)
    partition.mark_all()
    partition.log(0).unlink()
    stray = [partition.index(0), partition.times(0), partition.sums(0), partition.index(180), partition.sums(180)]
    stray.append(partition.directory / f".{60:020d}.index.new")
    for path in stray:
        path.write_bytes(b"x")
    foreign = partition.directory / "notes.txt"
    foreign.write_text("mine")
    found = recover(partition.directory)
    assert found.log_start_offset == 60
    assert not [path for path in stray if path.exists()]
    assert foreign.exists()
    assert partition.index(60).exists()


def test_bad_sector_in_the_tail_ends_the_log_there(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was never acknowledged and cannot be read is cut; what was is not looked at, readable or not."""
    batches = make_batches(10, value_bytes=3000)
    partition.add(batches, sealed=False)
    size = len(batches[0])
    partition.mark(0, 4 * size, 12)
    bad = {partition.log(0): [(size, size + 4096), (65536, 65536 + 4096)]}
    assert 7 * size < 65536 < 8 * size
    monkeypatch.setattr(Segment, "read", _as_method(BadSectors(Segment.read, bad)))
    found = recover(partition.directory)
    assert (found.next_offset, found.position) == (21, 7 * size)
    assert found.cut is not None
    assert "cannot be read here: Input/output error" in str(found.cut)


def test_bad_sectors_cost_readers_their_batches_and_no_more(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around a sector that gives EIO everything is served, and the gap says why, from where and how far."""
    batches = make_batches(30, value_bytes=3000)
    partition.add(batches, sealed=False)
    partition.mark_all()
    size = len(batches[0])
    for number in (0, 3, 29):
        start = number * size + 500
        bad = BadSectors(Segment.read, {partition.log(0): [(start - start % 4096, start - start % 4096 + 512)]})
        with monkeypatch.context() as patched:
            patched.setattr(Segment, "read", _as_method(bad))
            gaps: list[Any] = []
            chunks = PartitionReader(partition.directory).chunks(batch.Selection(), on_damage=gaps.append)
            seen = [row[0] for rows in chunks for row in rows]
        (gap,) = gaps
        missing = list(range(*gap.offsets))
        assert [*seen, *missing] != seen
        assert sorted([*seen, *missing]) == list(range(90))
        assert len(missing) <= 6
        assert "cannot be read here: Input/output error" in str(gap)
        assert bad.errors < 100


def test_a_dead_stretch_is_given_up_in_bounded_steps(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole of 64 MiB costs some hundred reads that fail, not one for each of its sectors."""
    batches = make_batches(2)
    partition.add(batches, sealed=False)
    with partition.log(0).open("r+b") as file:
        file.truncate(64 << 20)
    partition.mark(0, 64 << 20, 10**6)
    bad = BadSectors(Segment.read, {partition.log(0): [(4096, 64 << 20)]})
    monkeypatch.setattr(Segment, "read", _as_method(bad))
    assert offsets_read(partition) == list(range(6))
    assert 0 < bad.errors < 2000


def _as_method(bad: BadSectors) -> Any:
    def read(self: Segment, position: int, size: int) -> bytes:
        return bad(self, position, size)

    return read
