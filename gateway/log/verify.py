"""Check every byte of a data directory that may be read: CRCs, continuity, indexes, summaries. Changes nothing.

It works beside a running gateway: what is not durable yet is named and not judged. A directory without a watermark (a
copy) does not say what was acknowledged, so there all of the last segment, but for zeros at its end, must be sound.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gateway_native import batch, watermark

from gateway.errors import StreamNotFound
from gateway.log.index import NO_TIMESTAMP
from gateway.log.index_check import IndexCheck
from gateway.log.layout import (
    CUT_SUFFIX,
    LOG_SUFFIX,
    WATERMARK_FILE,
    PartitionName,
    list_partitions,
    list_segments,
    read_meta,
    segment_base,
    segment_name,
)
from gateway.log.partition import TIME_SLACK_MS, Limit, PartitionReader
from gateway.log.passing import pass_over
from gateway.log.segment import Damage, Segment, Walk, WalkEnd
from gateway.log.sidecar_check import SidecarCheck, Walked

# progress(done, total), in bytes of log
Progress = Callable[[int, int], None]

# A report lists so many damaged places, and as many notes, one by one; more are only counted.
DAMAGES_MAX = 10_000

_FOREVER = 2**63 - 1


class Note(NamedTuple):
    """Something worth knowing about a file that is not damage."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


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
class Repairable:
    """What of one partition can be made again."""

    directory: Path
    limit: Limit
    marked: bool
    """It is the watermark that says what is durable."""
    closed: bool
    """The log was closed cleanly."""
    segments: set[int] = field(default_factory=set)
    """Base offsets of segments whose indexes or summary are not as they should be."""
    key_indexes: set[int] = field(default_factory=set)
    """Base offsets of segments whose key index is damaged."""
    manifest: bool = False
    watermark: bool = False


@dataclass(slots=True)
class Report:
    """The outcome of `verify`."""

    path: Path
    deep: bool
    partitions: list[PartitionReport] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    damage_count: int = 0
    notes: list[Note] = field(default_factory=list)
    note_count: int = 0
    repairable: list[Repairable] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Every byte that was looked at is as it was written."""
        return self.damage_count == 0

    def add(self, damage: Damage) -> None:
        """Count a damaged place, and list it if there is room."""
        self.damage_count += 1
        if len(self.damages) < DAMAGES_MAX:
            self.damages.append(damage)

    def note(self, path: Path, text: str) -> None:
        """Count a note, and list it if there is room."""
        self.note_count += 1
        if len(self.notes) < DAMAGES_MAX:
            self.notes.append(Note(path, text))


def verify(
    path: str | Path, *, streams: Collection[str] = (), deep: bool = False, progress: Progress | None = None
) -> Report:
    """Check the data directory `path`, or only some `streams` of it.

    `deep` also parses every record inside batches whose CRC is right. Damage is reported, not raised, and so are places
    that cannot be read. FormatError if `path` is not a data directory, StreamNotFound for a stream that is not there,
    PermissionError for a file that may not be read.
    """
    data = Path(path)
    read_meta(data)
    report = Report(data, deep)
    checks = [_PartitionCheck(found, report, deep) for found in _chosen(data, streams)]
    total = sum(check.total_bytes() for check in checks)
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, max(total, done))

    for check in checks:
        check.run(advance)
    return report


def _chosen(data: Path, streams: Collection[str]) -> list[PartitionName]:
    partitions = list_partitions(data)
    existing = {found.stream for found in partitions}
    for name in streams:
        if name not in existing:
            raise StreamNotFound(name, sorted(existing))
    return [found for found in partitions if not streams or found.stream in streams]


@dataclass(slots=True)
class _Place:
    """How far the check of a segment has come: everything before is sound or was reported."""

    position: int
    offset: int
    first_timestamp: int = NO_TIMESTAMP
    max_timestamp: int = NO_TIMESTAMP


class _PartitionCheck:
    def __init__(self, name: PartitionName, report: Report, deep: bool) -> None:
        self.directory = name.path
        self.report = report
        self.deep = deep
        self.counts = PartitionReport(name.stream, name.partition)
        report.partitions.append(self.counts)
        # In this order: while a gateway writes, the limit can only be beyond the watermark read before it.
        self.mark = watermark.read(self.directory / WATERMARK_FILE)
        self.limit, self.marked = self._find_limit()
        self.bases = [base for base in list_segments(self.directory) if base <= self.limit.segment_base]
        self.sidecars = SidecarCheck(self.directory, self.limit.segment_base, report.add, report.note)
        closed = self.mark is not None and bool(self.mark.flags & watermark.CLEAN)
        self.repairable = Repairable(self.directory, self.limit, self.marked, closed)
        report.repairable.append(self.repairable)

    def _find_limit(self) -> tuple[Limit, bool]:
        """What is durable, and whether it is the watermark that says so."""
        reader = PartitionReader(self.directory)
        try:
            return reader.limit(), reader.by_watermark
        except PermissionError:
            raise
        except OSError as error:
            if self.mark is not None:  # reading the segment will name the place
                return Limit(self.mark.segment_base, self.mark.position, self.mark.durable_offset), True
            base = max(list_segments(self.directory), default=0)
            self.report.add(_unreadable(self._log(base), 0, error))
            return Limit(base, 0, base), True

    def total_bytes(self) -> int:
        """Bytes of log that `run` is going to read, about."""
        return sum(self._end(base) for base in self.bases)

    def run(self, advance: Callable[[int], None]) -> None:
        self.advance = advance
        self._check_watermark()
        expected = self.bases[0] if self.bases else 0
        self.counts.log_start_offset = self.bases[0] if self.bases else self.limit.offset
        self.counts.durable_offset = self.limit.offset
        for base in self.bases:
            if base != expected:
                self._misses(base, expected)
            try:
                with Segment(self.directory, base) as segment:
                    expected = self._check_segment(segment)
            except FileNotFoundError:
                expected = self._next_base(base)  # retention took it
        self._check_end(expected)
        self._note_the_rest()
        self.sidecars.finish()
        self.repairable.segments.update(self.sidecars.to_rebuild)
        self.repairable.key_indexes.update(self.sidecars.keys_to_rebuild)
        self.repairable.manifest = self.sidecars.manifest_is_wrong

    def _log(self, base: int) -> Path:
        return self.directory / segment_name(base)

    def _end(self, base: int) -> int:
        """How far the segment is judged: to the end of its file, or to the durable position."""
        if base == self.limit.segment_base and self.marked:
            return self.limit.position
        try:
            return self._log(base).stat().st_size
        except FileNotFoundError:
            return 0

    def _next_base(self, base: int) -> int:
        """The offset with which what follows the segment begins."""
        number = bisect_right(self.bases, base)
        if number < len(self.bases):
            return self.bases[number]
        return self.limit.offset if self.marked else _FOREVER

    # -- between and around segments -----------------------------------------------------------------------------------

    def _misses(self, base: int, expected: int) -> None:
        """Offsets between two segments are gone or given twice."""
        offsets = None
        if base > expected:
            problem = f"the {base - expected} records before this segment are missing"
            offsets = (expected, base)
        else:
            problem = f"the segment begins at offset {base}, which the one before it holds too"
        self.report.add(Damage(self._log(base), 0, problem, str(expected), str(base), offsets))

    def _check_watermark(self) -> None:
        """It may be missing (a copy) or empty (a partition before its first commit), but not anything else."""
        path = self.directory / WATERMARK_FILE
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            if self.bases:
                self.report.note(path, "is missing, as in a copy; the last segment was checked to its end instead")
            return
        if size and self.mark is None and watermark.read(path) is None:  # it may have been written since
            self.repairable.watermark = True
            problem = "the watermark is damaged; the next start of the gateway makes a new one"
            self.report.add(Damage(path, 0, problem, "a sound CRC", "none"))

    def _check_end(self, found: int) -> None:
        """Does the log end where the watermark says?"""
        durable = max(self.limit.offset, self.mark.durable_offset if self.mark else 0)
        if found < durable:
            base = self.bases[-1] if self.bases else 0
            problem = (
                f"the log ends here, {durable - found} records before what its watermark calls durable; "
                "a copy made while the gateway wrote may end like that"
            )
            self.report.add(
                Damage(self._log(base), self._end(base), problem, str(durable), str(found), (found, durable))
            )
        elif self.marked and self.bases and found > durable:
            problem = f"the watermark says that offset {durable} comes next where the log goes on with {found}"
            self.report.add(Damage(self.directory / WATERMARK_FILE, 0, problem, str(found), str(durable)))

    def _note_the_rest(self) -> None:
        """What is there besides: bytes above the durable position, segments that recovery set aside."""
        known = set(self.bases)
        for base in list_segments(self.directory):
            start = self._end(base) if base in known else 0
            try:
                with Segment(self.directory, base) as segment:
                    content = segment.content_end(start, segment.size) - start
            except OSError:  # gone, or a bad sector among what nobody reads
                continue
            if content > 0 and (base not in known or base == self.limit.segment_base):
                self.report.note(
                    segment.path, f"{content} bytes from byte {start} on are not durable yet and were not checked"
                )
        for path in sorted(self.directory.glob(f"*{CUT_SUFFIX}")):
            self.report.note(path, "was set aside by recovery and is no part of the log")

    # -- one segment ---------------------------------------------------------------------------------------------------

    def _check_segment(self, segment: Segment) -> int:
        """Walk one segment with its indexes beside it; returns the offset at which the next one begins."""
        sealed = segment.base_offset != self.limit.segment_base
        end = self._end(segment.base_offset)
        place = _Place(0, segment.base_offset)
        damages = self.report.damage_count
        indexes = IndexCheck(
            self.directory,
            segment.base_offset,
            durable_offset=self.limit.offset,
            sealed=sealed,
            on_damage=self._add_index_damage,
            on_note=self.report.note,
        )
        with indexes:
            self._check_batches(segment, place, end, indexes)
            sound = self.report.damage_count == damages
            indexes.finish()
        if sealed:
            times = (place.first_timestamp, place.max_timestamp)
            self.sidecars.segment(Walked(segment.base_offset, place.position, place.offset, *times, sound))
            self.sidecars.key_frames(segment.base_offset)
        elif self.mark is not None and self.mark.segment_base == segment.base_offset:
            self.sidecars.active(self.mark)
        self.counts.segments += 1
        self.counts.bytes += end
        self.counts.index_entries += indexes.entries
        return place.offset

    def _add_index_damage(self, damage: Damage) -> None:
        base = segment_base(damage.path.stem + LOG_SUFFIX)
        if base is not None:
            self.repairable.segments.add(base)
        self.report.add(damage)

    def _check_batches(self, segment: Segment, place: _Place, end: int, indexes: IndexCheck) -> None:
        after = self._next_base(segment.base_offset)
        while place.position < end:
            stopped = self._walk(segment, place, end, after, indexes)
            if stopped.clean or self._is_room(segment, stopped, end):
                return
            if self._is_left_over(segment, stopped, after, end):
                self._note_left_over(segment, stopped.position, indexes)
                return
            passed = pass_over(segment, stopped, end, after)
            offset = passed.offset if passed.found or after != _FOREVER else _FOREVER
            self.report.add(self._damage(segment, stopped, end, offset, passed.position - stopped.position))
            place.position = passed.position
            place.offset = offset if offset != _FOREVER else stopped.next_offset
            self.advance(place.position - stopped.position)
            indexes.forgive()

    def _is_left_over(self, segment: Segment, stopped: WalkEnd, after: int, end: int) -> bool:
        """Is a sealed segment over, and does something follow that could not be cut after a failed sync?"""
        sealed = segment.base_offset != self.limit.segment_base
        return sealed and stopped.next_offset >= after and not segment.is_zero(stopped.position, end)

    def _note_left_over(self, segment: Segment, position: int, indexes: IndexCheck) -> None:
        indexes.forgive()
        self.report.note(segment.path, f"what follows byte {position} is in the next segment too, and is not read here")

    def _walk(self, segment: Segment, place: _Place, end: int, after: int, indexes: IndexCheck) -> WalkEnd:
        """Walk to the next bad batch, or to one that belongs to the next segment."""
        walk = Walk(segment, place.position, end, expected_offset=place.offset, check_records=self.deep)
        newest, steps_back = NO_TIMESTAMP, False
        for batches in walk:
            for start, size, base_offset, last_offset, base_timestamp, max_timestamp, count in batches:
                if base_offset == after:
                    self._note_left_over(segment, start, indexes)
                    return WalkEnd(start, after, batch.PROBLEM_NONE, 0, 0)
                if place.first_timestamp == NO_TIMESTAMP:
                    place.first_timestamp = base_timestamp
                place.max_timestamp = max(place.max_timestamp, max_timestamp)
                indexes.batch(start, last_offset, max_timestamp)
                self.counts.records += count
                self.counts.batches += 1
                steps_back |= base_timestamp < newest - TIME_SLACK_MS
                newest = max(newest, max_timestamp)
                place.position, place.offset = start + size, last_offset + 1
            self.advance(sum(one[1] for one in batches))
        if steps_back:
            text = f"times run back by more than {TIME_SLACK_MS // 1000} s, so reading by time may miss records"
            self.report.note(segment.path, text)
        return walk.end

    def _is_room(self, segment: Segment, stopped: WalkEnd, end: int) -> bool:
        """Only room allocated for more batches follows, where the watermark does not say how far these reach."""
        last_of_copy = segment.base_offset == self.limit.segment_base and not self.marked
        return last_of_copy and stopped.problem == batch.PROBLEM_ZEROS and segment.is_zero(stopped.position, end)

    def _damage(self, segment: Segment, stopped: WalkEnd, end: int, offset: int, size: int) -> Damage:
        """The damaged place; the next sound record after it is `offset`, `size` bytes on."""
        damage = stopped.damage(segment.path)
        if stopped.problem == batch.PROBLEM_ZEROS and segment.is_zero(stopped.position, end):
            problem = f"{end - stopped.position} zero bytes after the last batch"
            damage = Damage(segment.path, stopped.position, problem, "the end of the file", "zeros")
        if not self.marked and (segment.base_offset, stopped.position) == self.limit[:2]:
            damage = damage._replace(problem=f"{damage.problem}; without a watermark the next start cuts the log here")
        lost = (stopped.next_offset, offset) if stopped.next_offset < offset < _FOREVER else None
        return damage._replace(offsets=lost, bytes=size)


def _unreadable(path: Path, position: int, error: OSError) -> Damage:
    problem = f"cannot be read here: {error.strerror or error}; the rest of the segment was not checked"
    return Damage(path, position, problem, "readable bytes", "an error")
