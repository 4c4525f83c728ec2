"""Reading a partition: what is durable, where an offset or a time lies, and the records of a range.

It works while a gateway writes (the watermark says how far), after one was killed, on a copy without a watermark, and
with read permission only. It creates nothing and holds no file open between calls. A sealed segment ends where the next
one begins, whatever else is in its file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gateway_native import batch, watermark

from gateway.log.chunks import Decode, OnDamage, Rows, SegmentChunks, report_damage
from gateway.log.index import NO_TIMESTAMP, SegmentIndexes, TimeEntry
from gateway.log.keyed import LOG_BYTES_MIN, KeyedChunks
from gateway.log.layout import WATERMARK_FILE, read_meta, segment_name
from gateway.log.segment import Damage, Segment, Walk, WalkEnd
from gateway.log.segments import FOREVER, SegmentList, Span

# How far back times may run inside a segment. The gateway's own writer lets them run back not at all: it holds back
# steps of up to 1 s and seals the segment at a larger one. The rest is for logs that others wrote.
TIME_SLACK_MS = 10_000

# A segment that vanished or was rolled between listing and opening is looked up again so often.
LIST_ATTEMPTS = 10


class Limit(NamedTuple):
    """What may be read: whole segments below `segment_base`, of that one the bytes below `position`, up to `offset`."""

    segment_base: int
    position: int
    offset: int


class Place(NamedTuple):
    """Where in an open segment to read on: a batch at or before the one that is wanted."""

    segment: Segment
    position: int
    base_offset: int
    """Of the batch at `position`."""
    end: int
    """Bytes of the segment that may be read."""
    offset_max: int
    """What follows begins with it, whatever else is in the file."""


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
        self._segments = SegmentList(directory)
        self._first: dict[int, int] = {}  # by base offset: times that never change, of sealed segments or first batches
        self._newest: dict[int, int] = {}

    @property
    def identity(self) -> str:
        """What a cursor knows the data directory by: when it was made. FormatError if it is none."""
        return read_meta(self.directory.parent).created

    def segments(self) -> list[int]:
        """Base offsets of the segments, ascending, those that are not durable included."""
        return self._segments.list()

    @property
    def log_start_offset(self) -> int:
        """The first offset that is there; 0 for an empty partition."""
        return self._segments.log_start()

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
        if selection.time_stop < FOREVER and self._first_time(segment, end) >= selection.time_stop:
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
        return newest if walk.end.clean else FOREVER

    def time_range(self) -> TimeRange | None:
        """Times of the first and of the latest record; None while there is none."""
        oldest, newest = None, NO_TIMESTAMP
        for span, limit in self._all_spans():
            times = self._times_of(span, limit)
            if times is not None:
                oldest = times.oldest if oldest is None else oldest
                newest = max(newest, times.newest)
        return None if oldest is None else TimeRange(oldest, newest)

    def _times_of(self, span: Span, limit: Limit) -> TimeRange | None:
        if span.summary is not None and span.summary.max_timestamp >= 0:
            return TimeRange(span.summary.first_timestamp, span.summary.max_timestamp)
        try:
            with Segment(self.directory, span.base_offset) as segment:
                sealed = span.base_offset != limit.segment_base
                end = segment.size if sealed else limit.position
                header = segment.header(0) if end >= batch.HEADER_BYTES else None
                if header is None:
                    return None
                last = self._newest_time(segment, end) if sealed else self._newest_by_walk(segment, end)
                return TimeRange(header.base_timestamp, last if last < FOREVER else header.max_timestamp)
        except FileNotFoundError:
            return None  # retention took it since the listing: it counts no more

    def size_bytes(self) -> int:
        """Bytes of the log that may be read; without indexes, and without room that is only allocated."""
        total = 0
        for span, limit in self._all_spans():
            if span.base_offset == limit.segment_base:
                total += limit.position
            elif span.summary is not None:
                total += span.summary.log_bytes
            else:
                try:
                    with Segment(self.directory, span.base_offset) as segment:
                        total += segment.size
                except FileNotFoundError:
                    continue  # retention took it since the listing: it counts no more
        return total

    def segment_count(self) -> int:
        """How many segments may be read, the active one included."""
        return sum(1 for _ in self._all_spans())

    def _all_spans(self) -> Iterator[tuple[Span, Limit]]:
        return self.spans(0, FOREVER)

    def spans(self, offset_from: int, offset_to: int) -> Iterator[tuple[Span, Limit]]:
        """The segments that may hold offsets in [offset_from, offset_to), and what may be read of the last one."""
        limit = self.limit()
        for span in self._segments.spans(limit.segment_base, limit.offset, offset_from, offset_to):
            yield span, limit

    def locate(self, span: Span, limit: Limit, offset: int) -> tuple[int, int, int]:
        """Where to begin to look for `offset` in a segment: position and base offset of a batch; and where it ends.

        FileNotFoundError if retention took it.
        """
        with Segment(self.directory, span.base_offset) as segment:
            end = limit.position if span.base_offset == limit.segment_base else segment.size
            return *self._locate(segment, offset, end), end

    def offset_of_time(self, timestamp: int) -> int:
        """The first offset whose record is not earlier than `timestamp` (ms); the durable offset if there is none."""
        limit = self.limit()
        for rows in self.chunks(batch.Selection(time_from=timestamp), limit, on_damage=lambda _: None):
            return rows[0][0]
        return limit.offset

    # -- reading -------------------------------------------------------------------------------------------------------

    def chunks(
        self, selection: batch.Selection, limit: Limit | None = None, *, on_damage: OnDamage | None = None
    ) -> Iterator[list[batch.Row]]:
        """The selected records, in lists of bounded size, in the order of their offsets.

        Segments that retention removes meanwhile are passed over. At damage DamageError is raised, or, with
        `on_damage`, that is called and reading goes on at the next sound batch. FormatError for batches whose
        compression is not known here.
        """
        yield from self.decoded(selection, batch.decode_chunk, limit, on_damage=on_damage)

    def decoded(
        self,
        selection: batch.Selection,
        decode: Decode[Rows],
        limit: Limit | None = None,
        *,
        on_damage: OnDamage | None = None,
        open_segment: Callable[[Path, int], Segment] = Segment,
    ) -> Iterator[Rows | list[batch.Row]]:
        """The same in the form that `decode` gives them, whenever that is not false.

        Records that are found otherwise than by decoding whole batches may come as rows.
        """
        limit = self.limit() if limit is None else limit
        selection = self._within(selection, limit)
        if selection.offset_from >= selection.offset_to:
            return
        log_start = 0
        for span in self._segments.spans(limit.segment_base, limit.offset, selection.offset_from, selection.offset_to):
            if span.base_offset < log_start or self._is_left_out(span, selection):
                continue
            try:
                segment = open_segment(self.directory, span.base_offset)
            except FileNotFoundError:
                log_start = next(iter(self.segments()), FOREVER)
                if log_start < span.base_offset:  # otherwise retention took it: it deletes the oldest
                    report_damage(_missing_segment(self.directory, span), on_damage)
                continue
            with segment:
                yield from self._segment_chunks(segment, selection, decode, limit, span.end_offset, on_damage)

    def places(self, offset: int, limit: Limit) -> Iterator[Place]:
        """For reading batches as they are: where `offset` lies, then the beginning of each segment that follows.

        A segment is open until the next one is asked for. Those that retention removed meanwhile are passed over.
        """
        for span in self._segments.spans(limit.segment_base, limit.offset, offset, limit.offset):
            try:
                segment = Segment(self.directory, span.base_offset)
            except FileNotFoundError:
                continue
            with segment:
                end = segment.size if span.base_offset != limit.segment_base else limit.position
                position, first = self._locate(segment, offset, end)
                yield Place(segment, position, first, end, span.end_offset)

    def _is_left_out(self, span: Span, selection: batch.Selection) -> bool:
        """Does the manifest say that none of its times is selected? Then the segment need not be opened."""
        entry = span.summary
        if entry is None or entry.first_timestamp < 0 or entry.max_timestamp < 0:
            return False
        return entry.first_timestamp >= selection.time_stop or entry.max_timestamp < selection.time_from

    def _within(self, selection: batch.Selection, limit: Limit) -> batch.Selection:
        return batch.Selection(
            offset_from=max(selection.offset_from, 0),
            offset_to=min(selection.offset_to, limit.offset),
            time_from=selection.time_from,
            time_to=selection.time_to,
            time_slack=TIME_SLACK_MS,
            keys=selection.keys,
        )

    def _segment_chunks(
        self,
        segment: Segment,
        selection: batch.Selection,
        decode: Decode[Rows],
        limit: Limit,
        offset_max: int,
        on_damage: OnDamage | None,
    ) -> Iterator[Rows | list[batch.Row]]:
        sealed = segment.base_offset != limit.segment_base
        end = segment.size if sealed else limit.position
        if not self._has_times_of(segment, selection, end, sealed):
            return
        if offset_max < selection.offset_to:
            selection = _up_to(selection, offset_max)
        position, offset = self._start(segment, selection, end)
        if sealed and selection.keys is not None:
            stop = self._about_stop(segment, selection, end)
            if stop - position >= LOG_BYTES_MIN:
                keyed = KeyedChunks(segment, selection, end, offset_max, on_damage)
                yield from keyed.read(position, offset, stop)
                return
        yield from SegmentChunks(segment, selection, end, offset_max, on_damage, decode).read(position, offset)

    def _about_stop(self, segment: Segment, selection: batch.Selection, end: int) -> int:
        """About where in the segment reading for `selection` will end, by what the indexes say, unchecked."""
        indexes = SegmentIndexes(self.directory, segment.base_offset)
        offset = selection.offset_to
        if selection.time_stop < FOREVER:
            entry = indexes.last_before(selection.time_stop)
            offset = min(offset, entry.offset) if entry is not None else segment.base_offset
        found = indexes.batch_at(offset, end)
        return min(end, (found.position if found is not None else 0) + LOG_BYTES_MIN)


def _up_to(selection: batch.Selection, offset_to: int) -> batch.Selection:
    return batch.Selection(
        offset_from=selection.offset_from,
        offset_to=offset_to,
        time_from=selection.time_from,
        time_to=selection.time_to,
        time_slack=TIME_SLACK_MS,
        keys=selection.keys,
    )


def _missing_segment(directory: Path, span: Span) -> Damage:
    size = span.summary.log_bytes if span.summary is not None else 0
    lost = (span.base_offset, span.end_offset)
    path = directory / segment_name(span.base_offset)
    return Damage(path, 0, "the segment's file is missing", "a file", "none", lost, size)
