"""Reading the records of some keys from a segment through its key index; what it does not cover is walked.

Whatever is wrong with the index, or with what it names, ends the use of it at that place: the rest of the segment is
walked, which finds and reports damage in its own way. So an index can make reading faster and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gateway_native import batch, key_index
from gateway_native.key_index import Part, Place

from gateway.log.chunks import OnDamage, SegmentChunks
from gateway.log.key_index import BYTES_PER_RECORD_MIN, KeyIndex, KeyIndexDamaged, fits
from gateway.log.segment import CHUNK_BYTES, Segment

# Less of a log than this is walked: that takes 4 ms, and looking keys up is not free either.
LOG_BYTES_MIN = 4 << 20
# What looking at the postings of one key costs, in bytes of log that could be walked meanwhile.
BYTES_PER_KEY = 10_000

# Records that are not further apart are read together.
_GAP_BYTES = 16 << 10
# How much is read of a record of which only the beginning is known.
_GUESS_BYTES = 512


class Stretch(NamedTuple):
    """Part of a segment's log: either records that the index names, or, with `places` None, a range to be walked."""

    part: Part
    places: list[Place] | None


class KeyedChunks:
    """The selected records of one open, sealed segment, as `SegmentChunks` gives them, read by its key index."""

    def __init__(
        self, segment: Segment, selection: batch.Selection, end: int, offset_max: int, on_damage: OnDamage | None
    ) -> None:
        """The selection names keys."""
        assert selection.keys is not None
        self._segment = segment
        self._selection = selection
        self._keys = selection.keys
        self._end = end
        self._offset_max = offset_max
        self._on_damage = on_damage

    def read(self, position: int, offset: int, stop: int) -> Iterator[list[batch.Row]]:
        """From the batch at `position` on, which begins with `offset`.

        stop: about where reading will end, which decides only whether the index is worth its while.
        """
        place = _Place(position, offset)
        for stretch in self._stretches(position, stop):
            part = stretch.part
            if stretch.places is None:
                yield from self._walk(place, part.log_to, part.offset_to)
            else:
                named = NamedRecords(self._segment, self._selection, stretch.places)
                following = self._selection.offset_from
                for rows in named.chunks():
                    yield rows
                    following = rows[-1][0] + 1
                if named.ended:
                    return
                if named.wrong_at is not None:
                    # What came before is given already; from there on the log itself says what there is.
                    self._selection = starting_at(self._selection, following)
                    yield from self._walk(place, self._end, self._offset_max)
                    return
            place = _Place(part.log_to, part.offset_to)
        yield from self._walk(place, self._end, self._offset_max)

    def _walk(self, place: _Place, end: int, offset_max: int) -> Iterator[list[batch.Row]]:
        return SegmentChunks(self._segment, self._selection, end, offset_max, self._on_damage, batch.decode_chunk).read(
            *place
        )

    def _stretches(self, start: int, stop: int) -> Iterator[Stretch]:
        """The parts of the index from byte `start` on, in order. What follows the last is not indexed."""
        try:
            with KeyIndex(self._segment.directory, self._segment.base_offset) as index:
                for position, part in index.parts():
                    if part.log_to <= start:
                        continue
                    behind = part.log_from >= stop or part.offset_from >= self._selection.offset_to
                    if behind or not fits(part, self._segment, self._end):
                        return
                    yield Stretch(part, self._places(index, position, part, max(start, part.log_from), stop))
        except (FileNotFoundError, KeyIndexDamaged):
            return

    def _places(self, index: KeyIndex, position: int, part: Part, start: int, stop: int) -> list[Place] | None:
        """None: walking costs less."""
        found = index.find(position, part, self._keys)
        records = sum(count for _, _, count in found)
        if records * BYTES_PER_RECORD_MIN > part.log_to - part.log_from:
            return None
        if len(found) * BYTES_PER_KEY > min(stop, part.log_to) - start:
            return None
        return [place for place in index.places(part, found) if place[1] >= start]


class _Place(NamedTuple):
    """A batch, and the offset it begins with."""

    position: int
    offset: int


def starting_at(selection: batch.Selection, offset_from: int) -> batch.Selection:
    """The same from a later offset on."""
    return batch.Selection(
        offset_from=max(offset_from, selection.offset_from),
        offset_to=selection.offset_to,
        time_from=selection.time_from,
        time_to=selection.time_to,
        time_slack=selection.time_stop - selection.time_to,
        keys=selection.keys,
    )


class NamedRecords:
    """The records that an index names, read from the log in windows, decoded and checked one by one."""

    def __init__(self, segment: Segment, selection: batch.Selection, places: list[Place]) -> None:
        self._segment = segment
        self._selection = selection
        self._places = places
        self.wrong_at: int | None = None
        """Where a record is not what the index says of it: nothing from there on was read."""
        self.ended = False
        """A batch behind the selection was met."""

    def chunks(self) -> Iterator[list[batch.Row]]:
        """The selected ones, in lists of bounded size. `wrong_at` and `ended` say afterwards why it stopped."""
        rows: list[batch.Row] = []
        taken = 0
        for window in _windows(self._places):
            taken += self._window(window, rows)
            if self.ended or self.wrong_at is not None:
                break
            if taken >= CHUNK_BYTES and rows:
                yield rows
                rows, taken = [], 0
        if rows:
            yield rows

    def _window(self, places: list[Place], rows: list[batch.Row]) -> int:
        """Decode these, as far as nothing is wrong; returns how many bytes were read for it."""
        origin = places[0][0]
        data, _ = self._segment.read_some(origin, places[-1][0] - origin + _GUESS_BYTES)
        header, header_at, taken = b"", -1, len(data)
        for place in places:
            position, batch_at, _ = place
            if batch_at != header_at:
                header, header_at = self._segment.read_some(batch_at, batch.HEADER_BYTES)[0], batch_at
            found, more = key_index.decode_record(
                header, data, min(position - origin, len(data)), place, self._selection, rows
            )
            for _attempt in range(2):  # once for a record's length, once for the record
                if not more:
                    break
                alone, _ = self._segment.read_some(position, max(more, _GUESS_BYTES))
                taken += len(alone)
                found, more = key_index.decode_record(header, alone, 0, place, self._selection, rows)
            if found == key_index.WRONG or more:
                self.wrong_at = position
                return taken
            if found == key_index.BEHIND:
                self.ended = True
                return taken
        return taken


def _windows(places: list[Place]) -> Iterator[list[Place]]:
    """Records that are read at once, because they are near each other."""
    window: list[Place] = []
    for place in places:
        if window and (place[0] - window[-1][0] > _GAP_BYTES or place[0] - window[0][0] > CHUNK_BYTES):
            yield window
            window = []
        window.append(place)
    if window:
        yield window
