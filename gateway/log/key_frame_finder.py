"""Finding the key frames of a partition for readers: by the indexes beside its segments, or by looking at its records.

Nothing is written, so read permission is enough. Without an index a key frame is looked for backwards from the place
asked for, in growing steps: that costs some microseconds for each record up to the nearest one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from gateway_native import batch

from gateway.log import key_frames
from gateway.log.key_frames import KeyFrame, KeyFrames, Search
from gateway.log.partition import Limit, PartitionReader
from gateway.log.segments import Span

# So many records before a place its key frame is looked for: 10 minutes of 120 pictures a second.
RECORDS_BACK_MAX = 72_000
# Indexes kept in memory, mostly some 20 KiB each.
INDEXES_KEPT = 8
_FIRST_WINDOW = 32


class KeyFrameFinder:
    """Looks into one partition. One thread at a time."""

    def __init__(self, reader: PartitionReader) -> None:
        self._reader = reader
        self._indexes: OrderedDict[int, KeyFrames] = OrderedDict()

    def last_before(self, end_offset: int, key: bytes | None = None) -> KeyFrame | None:
        """The last durable key frame below that offset, of the camera with that key; RECORDS_BACK_MAX away at most."""
        key_crc = None if key is None else batch.crc32c(key)
        end_offset = min(end_offset, self._reader.limit().offset)
        floor = max(end_offset - RECORDS_BACK_MAX, 0)
        while end_offset > floor:
            at = next(self._reader.spans(end_offset - 1, end_offset), None)
            if at is None or at[0].base_offset >= end_offset:
                return None
            span, limit = at
            end_offset = min(end_offset, span.end_offset)
            try:
                found = self._last_in(span, limit, end_offset, floor, key_crc)
            except FileNotFoundError:  # retention took it, and what lay before it
                return None
            if found is not None:
                return found
            end_offset = span.base_offset
        return None

    def between(self, first: int, end_offset: int, key: bytes | None = None) -> Iterator[KeyFrame]:
        """The durable key frames at offsets [first, end_offset) of the camera with that key, ascending."""
        key_crc = None if key is None else batch.crc32c(key)
        for span, limit in self._reader.spans(first, end_offset):
            try:
                for found in self._all_in(span, limit, first, min(end_offset, span.end_offset)):
                    if key_crc is None or found.key_crc == key_crc:
                        yield found
            except FileNotFoundError:  # retention took it
                continue

    def _last_in(self, span: Span, limit: Limit, end_offset: int, floor: int, key_crc: int | None) -> KeyFrame | None:
        index = self._index(span, limit)
        if index is not None:
            return index.last_before(end_offset, key_crc)
        width = _FIRST_WINDOW
        first = end_offset
        while first > max(span.base_offset, floor):
            end_offset, first = first, max(first - width, span.base_offset)
            search, end = self._search(span, limit, first)
            while search.step(end, end_offset):
                pass
            found = search.found.last_before(end_offset, key_crc)
            if found is not None:
                return found
            width *= 2
        return None

    def _all_in(self, span: Span, limit: Limit, first: int, end_offset: int) -> Iterator[KeyFrame]:
        index = self._index(span, limit)
        if index is not None:
            for number in range(index.from_offset(first), index.from_offset(end_offset)):
                yield index[number]
            return
        search, end = self._search(span, limit, max(first, span.base_offset))
        more = True
        while more:
            more = search.step(end, end_offset)
            found = search.take()
            for number in range(found.from_offset(first), found.from_offset(end_offset)):
                yield found[number]

    def _search(self, span: Span, limit: Limit, offset: int) -> tuple[Search, int]:
        position, base, end = self._reader.locate(span, limit, offset)
        return Search(self._reader.directory, span.base_offset, position, base, entries_max=2**31), end

    def _index(self, span: Span, limit: Limit) -> KeyFrames | None:
        if span.base_offset == limit.segment_base:
            return None  # it still grows
        known = self._indexes.get(span.base_offset)
        if known is None:
            known = key_frames.load(self._reader.directory, span.base_offset, span.end_offset)
            if known is None:
                return None
            self._indexes[span.base_offset] = known
            if len(self._indexes) > INDEXES_KEPT:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(span.base_offset)
        return known
