"""Reading a partition: what is durable, where an offset or a time lies, and the records of a range.

It works while a gateway writes (the watermark says how far), after one was killed, on a copy without a watermark, and
with read permission only. It creates nothing and holds no file open between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gateway_native import batch, watermark

from gateway.errors import DamageError, FormatError
from gateway.log.index import NO_TIMESTAMP, SegmentIndexes, TimeEntry
from gateway.log.layout import BATCH_BYTES_MAX, WATERMARK_FILE, list_segments
from gateway.log.segment import CHUNK_BYTES, Damage, Segment, Walk, WalkEnd

# How far back times may run inside a segment. The gateway's own writer lets them run back not at all: it holds back
# steps of up to 1 s and seals the segment at a larger one. The rest is for logs that others wrote.
TIME_SLACK_MS = 10_000

# A segment that vanished or was rolled between listing and opening is looked up again so often.
LIST_ATTEMPTS = 10

_FOREVER = 2**63 - 1

OnDamage = Callable[[Damage], None]


class Limit(NamedTuple):
    """What may be read: whole segments below `segment_base`, of that one the bytes below `position`, up to `offset`."""

    segment_base: int
    position: int
    offset: int


class TimeRange(NamedTuple):
    """Times (ms) of a partition's records: the first one's, and the latest of all."""

    oldest: int
    newest: int


class PartitionReader:
    """Reads one partition's directory. Any number of readers, in any process, beside at most one writer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.by_watermark = False
        """Whether the last `limit` is what the watermark says."""
        self._refused: watermark.Watermark | None = None
        self._accepted_epoch: int | None = None
        self._walked = WalkEnd(0, -1, batch.PROBLEM_NONE, 0, 0)
        self._walked_base = -1
        self._first: dict[int, int] = {}  # by base offset: times that never change, of sealed segments or first batches
        self._newest: dict[int, int] = {}

    def segments(self) -> list[int]:
        """Base offsets of the segments, ascending, those that are not durable included."""
        return list_segments(self.directory)

    @property
    def log_start_offset(self) -> int:
        """The first offset that is there; 0 for an empty partition."""
        segments = self.segments()
        return segments[0] if segments else 0

    # -- how far -------------------------------------------------------------------------------------------------------

    def limit(self) -> Limit:
        """What is durable now.

        The watermark says so. Without one, or with one that speaks of bytes this copy does not have, everything up to
        the first bad batch of the last segment counts: its CRCs are checked once, then only what was added.
        """
        for _ in range(LIST_ATTEMPTS):
            size = self._watermark_size()
            found = watermark.read(self.directory / WATERMARK_FILE) if size else None
            self.by_watermark = size == 0 or (found is not None and self._accepts(found))
            if found is None and self.by_watermark:
                return Limit(0, 0, 0)  # a new partition before its first commit
            if found is not None and self.by_watermark:
                return Limit(found.segment_base, found.position, found.durable_offset)
            limit = self._limit_by_walk()
            if size is not None or self._watermark_size() is None:
                break
            # The partition was made while we walked: from now on its watermark decides.
        return limit

    def _watermark_size(self) -> int | None:
        try:
            return (self.directory / WATERMARK_FILE).stat().st_size
        except FileNotFoundError:
            return None

    def _accepts(self, mark: watermark.Watermark) -> bool:
        """Look once per epoch whether the bytes that the watermark speaks of are here."""
        if mark == self._refused:
            return False
        if self._accepted_epoch != mark.epoch:
            if not self._has_bytes_of(mark):
                self._refused = mark
                return False
            self._accepted_epoch = mark.epoch
        return True

    def _has_bytes_of(self, mark: watermark.Watermark) -> bool:
        """Does the log reach the watermark's position? A copy made while the gateway wrote may not.

        Zeros or the end of the file before that position mean no. Damage means yes: it shall be seen, not hidden.
        """
        if mark.position == 0:
            return True  # it speaks of none: of a new partition, the writer makes the watermark first, then the segment
        try:
            with Segment(self.directory, mark.segment_base) as segment:
                if segment.size < mark.position:
                    return False
                position, offset = self._locate(segment, mark.durable_offset - 1, mark.position)
                end = Walk(segment, position, mark.position, expected_offset=offset).run()
                return end.problem != batch.PROBLEM_ZEROS or not segment.is_zero(end.position, mark.position)
        except FileNotFoundError:
            return False

    def _limit_by_walk(self) -> Limit:
        for _ in range(LIST_ATTEMPTS):
            segments = self.segments()
            if not segments:
                return Limit(0, 0, 0)
            base = segments[-1]
            if base != self._walked_base:
                self._walked_base = base
                self._walked = WalkEnd(0, base, batch.PROBLEM_NONE, 0, 0)
            try:
                with Segment(self.directory, base) as segment:
                    size = segment.size
                    if size < self._walked.position:  # cut by recovery meanwhile
                        self._walked = WalkEnd(0, base, batch.PROBLEM_NONE, 0, 0)
                    start = self._walked
                    self._walked = Walk(segment, start.position, size, expected_offset=start.next_offset).run()
            except FileNotFoundError:
                continue
            return Limit(base, self._walked.position, self._walked.next_offset)
        raise FileNotFoundError(f"The last segment in {self.directory} keeps vanishing while it is being read.")

    # -- where ---------------------------------------------------------------------------------------------------------

    def _locate(self, segment: Segment, offset: int, end: int) -> tuple[int, int]:
        """A batch at or before the one that holds `offset`, below byte `end`: its position and its base offset.

        The index is a hint. What it names is checked; if it does not fit, the segment's start is always right.
        """
        if offset > segment.base_offset:
            entry = SegmentIndexes(self.directory, segment.base_offset).batch_at(offset, end)
            if entry is not None and entry.position >= 0:
                header = segment.header(entry.position)
                if header is not None and header.last_offset == entry.last_offset:
                    return entry.position, header.base_offset
        return 0, segment.base_offset

    def _start(self, segment: Segment, selection: batch.Selection, end: int) -> tuple[int, int]:
        """Where in the segment reading for `selection` starts: position and base offset of a batch."""
        first = selection.offset_from
        if selection.time_from > NO_TIMESTAMP:
            entry = SegmentIndexes(self.directory, segment.base_offset).last_before(selection.time_from)
            if entry is not None and entry.offset >= first and self._brings_time(segment, entry, end):
                first = entry.offset + 1
        return self._locate(segment, first, end)

    def _brings_time(self, segment: Segment, entry: TimeEntry, end: int) -> bool:
        """Is there a sound batch with that last offset and that largest time? A wrong entry would hide records."""
        position, offset = self._locate(segment, entry.offset, end)
        for batches in Walk(segment, position, end, expected_offset=offset):
            for _, _, _, last_offset, _, max_timestamp, _ in batches:
                if last_offset >= entry.offset:
                    return (last_offset, max_timestamp) == (entry.offset, entry.timestamp)
        return False

    def _has_times_of(self, segment: Segment, selection: batch.Selection, end: int, sealed: bool) -> bool:
        """May the segment hold times of the selection? Each is judged by its own range, whatever its neighbours'."""
        if selection.time_stop < _FOREVER and self._first_time(segment, end) >= selection.time_stop:
            return False
        if selection.time_from > NO_TIMESTAMP and sealed:
            return self._newest_time(segment, end) >= selection.time_from
        return True

    def _first_time(self, segment: Segment, end: int) -> int:
        """The time of the segment's first record, which decides for the whole segment, so its batch is checked."""
        known = self._first.get(segment.base_offset)
        if known is None:
            first = next(iter(Walk(segment, 0, end, expected_offset=segment.base_offset)), None)
            if first is None:
                return NO_TIMESTAMP  # nothing sound to judge by: the segment is read
            known = self._first[segment.base_offset] = first[0][4]
        return known

    def _newest_time(self, segment: Segment, end: int) -> int:
        """The latest time in a sealed segment, from its time index and what follows the index's last entry."""
        known = self._newest.get(segment.base_offset)
        if known is None:
            known = self._newest_by_walk(segment, end)
            self._newest[segment.base_offset] = known
        return known

    def _newest_by_walk(self, segment: Segment, end: int) -> int:
        newest = NO_TIMESTAMP
        position, offset = 0, segment.base_offset
        entry = SegmentIndexes(self.directory, segment.base_offset).last_time()
        if entry is not None:
            newest = entry.timestamp
            position, offset = self._locate(segment, entry.offset, end)
        walk = Walk(segment, position, end, expected_offset=offset)
        for batches in walk:
            newest = max(newest, *(found[5] for found in batches))
        return newest if walk.end.clean else _FOREVER

    def time_range(self) -> TimeRange | None:
        """Times of the first and of the latest record; None while there is none."""
        limit = self.limit()
        for _ in range(LIST_ATTEMPTS):
            segments = [base for base in self.segments() if base <= limit.segment_base]
            oldest, newest = None, NO_TIMESTAMP
            try:
                for base in segments:
                    with Segment(self.directory, base) as segment:
                        sealed = base != limit.segment_base
                        end = segment.size if sealed else limit.position
                        header = segment.header(0) if end >= batch.HEADER_BYTES else None
                        if header is None:
                            continue
                        oldest = header.base_timestamp if oldest is None else oldest
                        last = self._newest_time(segment, end) if sealed else self._newest_by_walk(segment, end)
                        newest = max(newest, last if last < _FOREVER else header.max_timestamp)
            except FileNotFoundError:
                continue
            return None if oldest is None else TimeRange(oldest, newest)
        raise FileNotFoundError(f"Segments in {self.directory} keep vanishing while they are being read.")

    def size_bytes(self) -> int:
        """Bytes of the log that may be read; without indexes, and without room that is only allocated."""
        limit = self.limit()
        total = limit.position
        for base in self.segments():
            if base < limit.segment_base:
                try:
                    with Segment(self.directory, base) as segment:
                        total += segment.size
                except FileNotFoundError:
                    continue  # retention took it since the listing: it counts no more
        return total

    def offset_of_time(self, timestamp: int) -> int:
        """The first offset whose record is not earlier than `timestamp` (ms); the durable offset if there is none."""
        limit = self.limit()
        for rows in self.chunks(batch.Selection(time_from=timestamp), limit):
            return rows[0][0]
        return limit.offset

    # -- reading -------------------------------------------------------------------------------------------------------

    def chunks(
        self, selection: batch.Selection, limit: Limit | None = None, *, on_damage: OnDamage | None = None
    ) -> Iterator[list[batch.Row]]:
        """The selected records, in lists of bounded size, in the order of their offsets.

        Segments that retention removes meanwhile are passed over. At damage DamageError is raised, or, with
        `on_damage`, that is called and reading goes on at the next sound batch. FormatError for compressed batches.
        """
        limit = self.limit() if limit is None else limit
        selection = self._within(selection, limit)
        if selection.offset_from >= selection.offset_to:
            return
        after = -1  # segments up to this base offset are done
        missing = 0
        bases = self._bases(limit, selection)
        while bases:
            base = bases.pop(0)
            try:
                segment = Segment(self.directory, base)
            except FileNotFoundError:
                missing += 1
                if missing >= LIST_ATTEMPTS:
                    raise
                bases = [found for found in self._bases(limit, selection) if found > after]
                continue
            with segment:
                offset_max = bases[0] if bases else limit.offset
                yield from self._segment_chunks(segment, selection, limit, offset_max, on_damage)
            after, missing = base, 0

    def _within(self, selection: batch.Selection, limit: Limit) -> batch.Selection:
        return batch.Selection(
            offset_from=max(selection.offset_from, 0),
            offset_to=min(selection.offset_to, limit.offset),
            time_from=selection.time_from,
            time_to=selection.time_to,
            time_slack=TIME_SLACK_MS,
            keys=selection.keys,
        )

    def _bases(self, limit: Limit, selection: batch.Selection) -> list[int]:
        """The segments that may hold offsets of the selection."""
        bases = [base for base in self.segments() if base <= limit.segment_base and base < selection.offset_to]
        first = sum(base <= selection.offset_from for base in bases)
        return bases[max(first - 1, 0) :]

    def _segment_chunks(
        self, segment: Segment, selection: batch.Selection, limit: Limit, offset_max: int, on_damage: OnDamage | None
    ) -> Iterator[list[batch.Row]]:
        sealed = segment.base_offset != limit.segment_base
        end = segment.size if sealed else limit.position
        if not self._has_times_of(segment, selection, end, sealed):
            return
        position, offset = self._start(segment, selection, end)
        wanted = CHUNK_BYTES
        while position < end:
            data = _read(segment, position, min(wanted, end - position))
            try:
                rows, passed, more, offset = batch.decode_chunk(data, 0, selection, expected_offset=offset)
                if passed == 0:
                    _check_room(more, len(data), min(end, segment.size) - position)
            except batch.UnsupportedBatch as error:
                raise FormatError(f"{segment.path}, byte {position + error.position}: {error}.") from None
            except batch.BatchError as error:
                stopped = WalkEnd(position + error.position, offset, error.problem, error.expected, error.found)
                position, offset, wanted = _behind(segment, stopped, end, offset_max, on_damage), -1, CHUNK_BYTES
                continue
            if rows:
                yield rows
            if more < 0:
                return
            position += passed
            wanted = min(max(more, CHUNK_BYTES), BATCH_BYTES_MAX)


def _read(segment: Segment, position: int, size: int) -> bytes:
    try:
        return segment.read(position, size)
    except OSError as error:  # a bad sector; the file system says no more than that
        raise DamageError(f"{segment.path} cannot be read at byte {position}: {error.strerror}.") from error


def _behind(segment: Segment, stopped: WalkEnd, end: int, offset_max: int, on_damage: OnDamage | None) -> int:
    """Where to go on when no sound batch begins at `stopped`: the next one's position, or `end`."""
    if stopped.problem == batch.PROBLEM_ZEROS and segment.is_zero(stopped.position, end):
        return end  # allocated, never written: a copy taken while the segment was being sealed
    damage = stopped.damage(segment.path)
    if on_damage is None:
        raise DamageError(
            f"{damage}. What follows can be read by passing over the damage; `gateway verify` lists every such place."
        )
    on_damage(damage)
    following = segment.find_batch(stopped.position + 1, end, max(stopped.next_offset, 0), offset_max)
    return end if following is None else following


def _check_room(wanted: int, available_here: int, available: int) -> None:
    """BatchError if the batch that wants so many bytes cannot be: it runs past the end of the file, or is too long."""
    if wanted > BATCH_BYTES_MAX:
        raise batch.BatchError("too long", 0, batch.PROBLEM_LENGTH, BATCH_BYTES_MAX, wanted)
    if wanted > available or available_here == 0:
        raise batch.BatchError("too short", 0, batch.PROBLEM_SHORT, max(wanted, batch.HEADER_BYTES), available)
