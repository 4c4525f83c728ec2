"""The manifest: a hint that is checked, completed, compacted, rebuilt, and that spares looking at old segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch, summary
from gateway_native.summary import Summary

from gateway.log import catalog, maintenance
from gateway.log.files import FILES
from gateway.log.manifest import Manifest, read_summary
from gateway.log.partition import PartitionReader
from gateway.log.recovery import recover
from gateway.log.segment import Segment
from tests.support.fault_files import WatchedFiles
from tests.support.many_segments import RECORDS, STEP_MS, make_many_segments
from tests.support.partitions import T0, Partition, make_batches, summary_of

ENTRY = summary.BYTES


def entry(base: int, end: int | None = None, **fields: int) -> Summary:
    return Summary(base, 1000, base + 10 if end is None else end, 5, 6, 7, 8)._replace(**fields)


def encoded(*entries: Summary) -> bytes:
    return b"".join(map(summary.encode, entries))


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    """Segments 0, 60, 120 sealed, 180 active; all durable."""
    made = Partition(tmp_path / "s-0")
    for base in range(0, 240, 60):
        made.add(make_batches(20, base_offset=base, time=T0 + base, value_bytes=100), sealed=base < 180)
    made.mark_all()
    return made


def bases(partition: Partition) -> list[int]:
    return Manifest(partition.manifest.read_bytes()).bases()


def test_entries_are_found_by_offset() -> None:
    """The last entry at or before an offset, by bisection; fields as they were encoded."""
    manifest = Manifest(encoded(*(entry(base) for base in range(0, 1000, 10))))
    assert (len(manifest), manifest.unsound, manifest.ignored) == (100, 0, 0)
    assert [manifest.at(offset) for offset in (-1, 0, 9, 10, 555, 10**9)] == [-1, 0, 0, 1, 55, 99]
    assert manifest[55] == entry(550)
    assert manifest[-1] == entry(990)
    assert manifest.bases(98) == [980, 990]
    with pytest.raises(IndexError, match="entry 100 of 100"):
        manifest[100]


def test_half_an_entry_at_the_end_is_ignored() -> None:
    """A crash while it grew: everything before is sound, and nothing is called damage."""
    data = encoded(entry(0), entry(10))
    for size in range(ENTRY + 1, 2 * ENTRY):
        manifest = Manifest(data[:size])
        assert (manifest.bases(), manifest.unsound) == ([0], 0)


def test_unsound_entries_are_passed_over_and_counted() -> None:
    """One with a wrong checksum hides nothing but itself, wherever it stands."""
    for number in range(4):
        data = bytearray(encoded(*(entry(base) for base in (0, 10, 20, 30))))
        data[number * ENTRY + 20] ^= 1
        manifest = Manifest(bytes(data))
        assert manifest.bases() == [base for base in (0, 10, 20, 30) if base != number * 10]
        assert (manifest.unsound, manifest.contradicts) == (1, False)


def test_entries_that_go_back_or_are_not_sealed_end_it() -> None:
    """What follows an entry that begins before the last one ends is not believed; nor is the watermark's segment."""
    manifest = Manifest(encoded(entry(0), entry(10), entry(15), entry(30)))
    assert (manifest.bases(), manifest.ignored, manifest.contradicts) == ([0, 10], 2, True)
    manifest = Manifest(encoded(entry(0), entry(10), entry(20), entry(30)), below=20)
    assert (manifest.bases(), manifest.ignored, manifest.contradicts) == ([0, 10], 2, False)
    assert Manifest(encoded(entry(0), entry(50))).bases() == [0, 50]


def test_the_first_segment_is_found_without_looking_at_each(tmp_path: Path) -> None:
    """Retention deletes from the front: bisection asks for few files; a segment lost in the middle misleads nobody."""
    manifest = Manifest(encoded(*(entry(base) for base in range(0, 10_000, 10))))

    class Asked(WatchedFiles):
        def __init__(self, there: range, but: int = -1) -> None:
            super().__init__()
            self.there, self.but, self.count = there, but, 0

        def exists(self, path: Path) -> bool:
            self.count += 1
            number = int(path.stem) // 10
            return number in self.there and number != self.but

    for first in (0, 1, 500, 998, 999, 1000):
        files = Asked(range(first, 1000))
        assert manifest.first_there(tmp_path, files) == first
        assert files.count < 25
    for gone in range(200, 1000, 50):
        assert manifest.first_there(tmp_path, Asked(range(200, 1000), gone)) == 200 + (gone == 200)


def test_a_start_completes_it_from_the_summaries(partition: Partition) -> None:
    """Entries that are missing at the end, or all of them, come from the segments' sidecars, without reading a log."""
    whole = partition.manifest.read_bytes()
    for content in (whole[:ENTRY], whole[: 2 * ENTRY + 7], b"", None, whole + b"torn"):
        if content is None:
            partition.manifest.unlink()
        else:
            partition.manifest.write_bytes(content)
        files = WatchedFiles()
        found = recover(partition.directory, files=files)
        assert (found.manifest_bytes, partition.manifest.read_bytes()) == (3 * ENTRY, whole)
        assert {name for name, _, size in files.read if name.endswith(".log") and size} <= {f"{180:020d}.log"}


def test_where_that_takes_long_it_is_left_to_others(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a summary, or with too many missing, the log opens at once and the writer leaves the manifest alone."""
    whole = partition.manifest.read_bytes()
    partition.manifest.unlink()
    partition.sums(60).unlink()
    found = recover(partition.directory)
    assert (found.manifest_bytes, found.next_offset, found.log_start_offset) == (-1, 240, 0)
    assert maintenance.missing(partition.directory) == [60]
    assert maintenance.rebuild_manifest(partition.directory, found.segment_base) == 3
    assert (partition.manifest.read_bytes(), maintenance.missing(partition.directory)) == (whole, [])
    partition.manifest.unlink()
    monkeypatch.setattr(catalog, "ENTRIES_COMPLETED_MAX", 1)
    assert recover(partition.directory).manifest_bytes == -1


def test_damage_in_the_middle_is_left_to_others(partition: Partition) -> None:
    """A manifest with an unsound entry is not added to, and is made again as a whole."""
    whole = partition.manifest.read_bytes()
    spoilt = bytearray(whole)
    spoilt[ENTRY + 20] ^= 1
    partition.manifest.write_bytes(spoilt)
    assert recover(partition.directory).manifest_bytes == -1
    maintenance.rebuild_manifest(partition.directory, 180)
    assert partition.manifest.read_bytes() == whole
    assert recover(partition.directory).manifest_bytes == 3 * ENTRY


def test_entries_of_segments_that_were_written_again_are_dropped(partition: Partition) -> None:
    """After a failed sync, entries at the end may speak of what is no more: a start takes them out."""
    whole = partition.manifest.read_bytes()
    wrong = summary_of(120, partition.segments[120])._replace(log_bytes=1, next_offset=150)
    partition.manifest.write_bytes(whole[: 2 * ENTRY] + summary.encode(wrong))
    assert recover(partition.directory).manifest_bytes == 3 * ENTRY
    assert partition.manifest.read_bytes() == whole


def test_readers_do_not_believe_entries_of_segments_that_were_written_again(partition: Partition) -> None:
    """Times and lengths that are no more so hide no record, before the next start puts that right."""
    whole = partition.manifest.read_bytes()
    right = summary_of(120, partition.segments[120])
    for wrong in (
        right._replace(log_bytes=1, next_offset=180, first_timestamp=1, max_timestamp=2),
        right._replace(log_bytes=10**6, next_offset=10**6),
    ):
        partition.manifest.write_bytes(whole[: 2 * ENTRY] + summary.encode(wrong))
        reader = PartitionReader(partition.directory)
        for selection in ({}, {"time_from": T0 + 130, "time_to": T0 + 150}, {"offset_from": 130, "offset_to": 150}):
            rows = [row[0] for rows in reader.chunks(batch.Selection(**selection)) for row in rows]
            assert rows == list(range(130, 150) if selection else range(240))
        assert reader.size_bytes() == sum(path.stat().st_size for path in partition.directory.glob("*.log"))


def test_dead_entries_are_taken_out_once_they_are_many(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention leaves them in front; a start compacts when most are dead; the start is found either way."""
    for path in (partition.log(0), partition.log(60)):
        path.unlink()
    found = recover(partition.directory)
    assert (bases(partition), found.log_start_offset, found.manifest_bytes) == ([0, 60, 120], 120, 3 * ENTRY)
    monkeypatch.setattr(catalog, "DEAD_ENTRIES_MAX", 1)
    found = recover(partition.directory)
    assert (bases(partition), found.log_start_offset, found.manifest_bytes) == ([120], 120, ENTRY)
    assert PartitionReader(partition.directory).log_start_offset == 120
    assert [row[0] for rows in PartitionReader(partition.directory).chunks(batch.Selection()) for row in rows] == [
        *range(120, 240)
    ]


def test_a_manifest_that_lacks_older_segments_hides_none(partition: Partition) -> None:
    """One that begins in the middle of the log is not believed where the directory has more."""
    partition.manifest.write_bytes(partition.manifest.read_bytes()[ENTRY:])
    reader = PartitionReader(partition.directory)
    assert reader.log_start_offset == 0
    assert [row[0] for rows in reader.chunks(batch.Selection()) for row in rows] == list(range(240))
    assert recover(partition.directory).manifest_bytes == -1


def test_rebuilt_from_logs_alone_it_is_the_same(partition: Partition) -> None:
    """Without summaries and indexes everything comes from the log, byte for byte."""
    names = {path.name: path.read_bytes() for path in partition.directory.iterdir()}
    for base in (0, 60, 120):
        for path in (partition.index(base), partition.times(base), partition.sums(base)):
            path.unlink()
    partition.manifest.unlink()
    assert maintenance.missing(partition.directory) == [0, 60, 120]
    assert maintenance.rebuild_manifest(partition.directory, 180) == 3
    assert {path.name: path.read_bytes() for path in partition.directory.iterdir()} == names


def test_rebuilding_passes_over_damage(partition: Partition) -> None:
    """A damaged batch costs its index entries and nothing else; the next offset is known from the next segment."""
    size = len(partition.segments[60][0])
    partition.damage(60, 5 * size + 100)
    partition.damage(60, 19 * size + 100)
    made = maintenance.rebuild_segment(partition.directory, 60)
    assert (made.log_bytes, made.next_offset) == (partition.log(60).stat().st_size, 120)
    assert (made.first_timestamp, made.max_timestamp) == (T0 + 60, T0 + 116)
    assert read_summary(partition.directory, 60, FILES) == made


def test_many_old_segments_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start reads the manifest, one summary and the last segment; a range of times opens the segments it needs."""
    directory = tmp_path / "s-0"
    make_many_segments(directory, 600, sparse_bytes=1 << 20)
    files = WatchedFiles()
    found = recover(directory, files=files)
    assert (found.next_offset, found.log_start_offset, found.manifest_bytes) == (601 * RECORDS, 0, 600 * ENTRY)
    assert len({name for name, _, _ in files.read}) <= 3
    opened: list[int] = []
    real = Segment.__init__

    def counted(self: Segment, directory: Path, base_offset: int, *arguments: Any) -> None:
        opened.append(base_offset)
        real(self, directory, base_offset, *arguments)

    monkeypatch.setattr(Segment, "__init__", counted)
    reader = PartitionReader(directory)
    start = T0 + 300 * STEP_MS
    chunks = reader.chunks(batch.Selection(time_from=start, time_to=start + 1))
    assert [row[0] for rows in chunks for row in rows] == [900]
    assert len(opened) < 15  # within the slack that times have inside a segment
    opened.clear()
    assert [row[0] for rows in reader.chunks(batch.Selection(offset_from=1801)) for row in rows] == [1801, 1802]
    assert set(opened) == {1800}
    opened.clear()
    assert reader.log_start_offset == 0
    assert reader.size_bytes() == 600 * (1 << 20) + found.position
    assert reader.segment_count() == 601
    times = reader.time_range()
    assert times is not None
    assert (times.oldest, times.newest) == (T0, T0 + 600 * STEP_MS + RECORDS - 1)
    assert len(opened) <= 2
    make_many_segments(tmp_path / "clean-0", 50, clean=True)
    assert recover(tmp_path / "clean-0").clean
