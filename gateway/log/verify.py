"""Check every byte of a data directory that may be read: CRCs, continuity, indexes. Changes nothing.

It works beside a running gateway: what is not durable yet is not looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway_native import batch, watermark

from gateway.log.index import NO_TIMESTAMP
from gateway.log.layout import (
    INDEX_SUFFIX,
    TIME_SUFFIX,
    WATERMARK_FILE,
    PartitionName,
    list_partitions,
    list_segments,
    read_meta,
    segment_name,
)
from gateway.log.partition import Limit, PartitionReader
from gateway.log.segment import Damage, Segment, Walk, WalkEnd

# progress(done, total), in bytes of log
Progress = Callable[[int, int], None]

# A report lists so many damaged places one by one; more are only counted.
DAMAGES_MAX = 10_000

_ENTRIES_READ = 4096  # index entries read at a time
_REBUILD = "delete the file while the gateway is stopped, and the next start rebuilds it"


@dataclass(slots=True)
class PartitionReport:
    """What was checked in one partition."""

    stream: str
    partition: int
    segments: int = 0
    batches: int = 0
    records: int = 0
    bytes: int = 0
    index_entries: int = 0
    log_start_offset: int = 0
    durable_offset: int = 0


@dataclass(slots=True)
class Report:
    """The outcome of `verify`."""

    path: Path
    deep: bool
    partitions: list[PartitionReport] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    damage_count: int = 0

    @property
    def sound(self) -> bool:
        """Every byte that was looked at is as it was written."""
        return self.damage_count == 0

    def add(self, damage: Damage) -> None:
        self.damage_count += 1
        if len(self.damages) < DAMAGES_MAX:
            self.damages.append(damage)


def verify(path: Path, *, deep: bool = False, progress: Progress | None = None) -> Report:
    """Check the data directory `path`; `deep` also parses every record inside batches whose CRC is right.

    Damage is reported, not raised. FormatError if `path` is not a data directory.
    """
    data = Path(path)
    report = Report(data, deep)
    read_meta(data)
    partitions = list_partitions(data)
    total = sum(
        (found.path / segment_name(base)).stat().st_size for found in partitions for base in list_segments(found.path)
    )
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, max(total, done))

    for found in partitions:
        _PartitionCheck(found, report, deep, advance).run()
    return report


class _PartitionCheck:
    def __init__(self, name: PartitionName, report: Report, deep: bool, advance: Callable[[int], None]) -> None:
        self.directory = name.path
        self.report = report
        self.deep = deep
        self.advance = advance
        self.counts = PartitionReport(name.stream, name.partition)
        report.partitions.append(self.counts)

    def run(self) -> None:
        self._check_watermark()
        limit = PartitionReader(self.directory).limit()
        bases = [base for base in list_segments(self.directory) if base <= limit.segment_base]
        self.counts.durable_offset = limit.offset
        self.counts.log_start_offset = bases[0] if bases else limit.offset
        expected = bases[0] if bases else limit.offset
        for base in bases:
            if base != expected:
                self._misses(base, expected)
            try:
                with Segment(self.directory, base) as segment:
                    expected = self._check_segment(segment, limit)
            except FileNotFoundError:
                expected = next((later for later in bases if later > base), limit.offset)  # retention took it
            except OSError as error:  # a bad sector: the rest of this segment is unknown
                path = self.directory / segment_name(base)
                self.report.add(Damage(path, 0, f"cannot be read: {error.strerror}", "readable bytes", "an error"))
                expected = next((later for later in bases if later > base), limit.offset)
        if expected < limit.offset:
            self._misses(limit.offset, expected)

    def _misses(self, base: int, expected: int) -> None:
        """Offsets between two segments, or up to the durable offset, are gone or given twice."""
        path = self.directory / segment_name(base)
        if base > expected:
            problem = (
                f"the {base - expected} records from offset {expected} to {base - 1} are missing before this segment"
            )
        else:
            problem = f"the segment begins at offset {base}, which the one before it holds too"
        self.report.add(Damage(path, 0, problem, str(expected), str(base)))

    def _check_watermark(self) -> None:
        """It may be missing (a copy) or empty (a partition before its first commit), but not anything else."""
        path = self.directory / WATERMARK_FILE
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return
        if size and watermark.read(path) is None:
            self.report.add(
                Damage(path, 0, "the watermark is damaged; recovery makes a new one", "a sound CRC", "none")
            )

    def _check_segment(self, segment: Segment, limit: Limit) -> int:
        """Walk one segment with its indexes beside it; returns the offset at which the next one begins."""
        sealed = segment.base_offset != limit.segment_base
        end = segment.size if sealed else limit.position
        later = [base for base in list_segments(self.directory) if base > segment.base_offset]
        offset_max = min([limit.offset, *later])
        indexes = _IndexCheck(
            self.directory, segment.base_offset, self.report, durable_offset=limit.offset, sealed=sealed
        )
        position, offset = 0, segment.base_offset
        with indexes:
            while position < end:
                stopped = self._walk(segment, position, end, offset, indexes)
                offset = stopped.next_offset
                if stopped.clean:
                    break
                self.report.add(self._damage(segment, stopped, end))
                following = segment.find_batch(stopped.position + 1, end, offset, offset_max)
                position = end if following is None else following
                self.advance(position - stopped.position)
                header = segment.header(position) if following is not None else None
                offset = header.base_offset if header is not None else offset
                indexes.forgive()
            indexes.finish()
        self.counts.segments += 1
        self.counts.bytes += end
        self.counts.index_entries += indexes.entries
        return offset

    def _walk(self, segment: Segment, position: int, end: int, offset: int, indexes: _IndexCheck) -> WalkEnd:
        walk = Walk(segment, position, end, expected_offset=offset, check_records=self.deep)
        for batches in walk:
            for start, _, _, last_offset, _, max_timestamp, count in batches:
                indexes.batch(start, last_offset, max_timestamp)
                self.counts.records += count
            self.counts.batches += len(batches)
            self.advance(sum(one[1] for one in batches))
        return walk.end

    @staticmethod
    def _damage(segment: Segment, stopped: WalkEnd, end: int) -> Damage:
        if stopped.problem == batch.PROBLEM_ZEROS and segment.is_zero(stopped.position, end):
            problem = f"{end - stopped.position} zero bytes after the last batch; recovery cuts them"
            return Damage(segment.path, stopped.position, problem, "the end of the file", "zeros")
        return stopped.damage(segment.path)


class _IndexCheck:
    """Checks both indexes of a segment while its batches are walked, one pass, a bounded piece of each in memory."""

    def __init__(self, directory: Path, base_offset: int, report: Report, *, durable_offset: int, sealed: bool) -> None:
        self._sealed = sealed
        self._durable_offset = durable_offset
        self._base_offset = base_offset
        index, times = (directory / segment_name(base_offset, suffix) for suffix in (INDEX_SUFFIX, TIME_SUFFIX))
        self._offsets = _Entries(index, ">ii", "offset +{0}, byte {1}", report, whole=sealed)
        self._times = _Entries(times, ">qi", "time {0} ms, offset +{1}", report, whole=sealed)
        self._max_timestamp = NO_TIMESTAMP
        self._forgiving = False
        self.entries = 0

    def __enter__(self) -> _IndexCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._offsets.close()
        self._times.close()

    def forgive(self) -> None:
        """Batches were passed over: entries may point at them, and times are no longer known to be the largest."""
        self._forgiving = True

    def batch(self, position: int, last_offset: int, max_timestamp: int) -> None:
        """The walk found a sound batch."""
        relative = last_offset - self._base_offset
        while (entry := self._offsets.entry) is not None and entry[1] <= position:
            passed_over = self._forgiving and entry[1] < position
            if entry != (relative, position) and not passed_over:
                self._offsets.wrong(self._offsets.text((relative, position)), self._offsets.text(entry))
            self._take(self._offsets)
            if entry[1] == position:
                break
        newest = max(self._max_timestamp, max_timestamp)
        while (entry := self._times.entry) is not None and entry[1] <= relative:
            brought_it = max_timestamp > self._max_timestamp and entry == (max_timestamp, relative)
            if not brought_it and not self._forgiving:
                self._times.wrong(self._times.text((newest, relative)), self._times.text(entry))
            self._take(self._times)
        self._max_timestamp = newest

    def _take(self, entries: _Entries) -> None:
        entries.next()
        self.entries += 1

    def finish(self) -> None:
        """The segment is over: what is left in the indexes must speak of what is not durable yet."""
        if self._forgiving:
            return
        for entries, field_number in ((self._offsets, 0), (self._times, 1)):
            least = self._durable_offset - self._base_offset
            while (entry := entries.entry) is not None:
                if self._sealed or entry[field_number] < least:
                    entries.wrong("no entry beyond the last batch", entries.text(entry))
                    break
                least = entry[field_number] + 1
                self._take(entries)
        if self._sealed and self._times.exists and self._times.last[0] != self._max_timestamp:
            self._times.wrong(f"a final entry for time {self._max_timestamp} ms", self._times.text(self._times.last))


class _Entries:
    """The entries of one index file, one after the other."""

    def __init__(self, path: Path, layout: str, text: str, report: Report, *, whole: bool) -> None:
        self.path = path
        self._struct = struct.Struct(layout)
        self._text = text
        self._report = report
        self._position = 0
        self._pending: list[tuple[int, ...]] = []
        self.entry: tuple[int, ...] | None = None
        self.last: tuple[int, ...] = (NO_TIMESTAMP, -1)
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            self.exists = False
            report.add(Damage(path, 0, f"the index is missing; {_REBUILD}", "a file", "none"))
            return
        self.exists = True
        size = self._file.seek(0, 2)
        if whole and size % self._struct.size:  # one that is being written may end anywhere
            start = size - size % self._struct.size
            report.add(Damage(path, start, f"the index ends inside an entry; {_REBUILD}", "a whole entry", "a part"))
        self._file.seek(0)
        self.next()

    def close(self) -> None:
        if self.exists:
            self._file.close()

    def text(self, entry: tuple[int, ...]) -> str:
        return self._text.format(*entry)

    def next(self) -> None:
        """Move to the next entry; None after the last."""
        if self.entry is not None:
            self.last = self.entry
            self._position += self._struct.size
        if not self._pending:
            data = self._file.read(_ENTRIES_READ * self._struct.size) or b""
            whole = len(data) - len(data) % self._struct.size
            self._pending = list(self._struct.iter_unpack(data[:whole]))[::-1]
        self.entry = self._pending.pop() if self._pending else None

    def wrong(self, expected: str, found: str) -> None:
        problem = f"the index entry says {found}, expected {expected}; {_REBUILD}"
        self._report.add(Damage(self.path, self._position, problem, expected, found))
