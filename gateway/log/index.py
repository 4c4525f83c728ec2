"""The two indexes of a segment: Kafka's rules for writing them, and look-up that never trusts them.

Source: Apache Kafka, storage/src/main/java/org/apache/kafka/storage/internals/log/: LogSegment.java (append, recover),
OffsetIndex.java, TimeIndex.java. FORMAT.md, section 4, is the specification. Indexes carry no checksum: whoever looks
something up checks what lies at the place they name, and walks when it is not what they promised.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gateway.log.layout import INDEX_SUFFIX, TIME_SUFFIX, segment_name

INTERVAL_BYTES = 4096

_INDEX_ENTRY = struct.Struct(">ii")
_TIME_ENTRY = struct.Struct(">qi")
INDEX_ENTRY_BYTES = _INDEX_ENTRY.size
TIME_ENTRY_BYTES = _TIME_ENTRY.size
assert (INDEX_ENTRY_BYTES, TIME_ENTRY_BYTES) == (8, 12)

NO_TIMESTAMP = -1

_Test = Callable[[tuple[int, int]], bool]


class IndexEntry(NamedTuple):
    """A batch: its last offset, and where it starts in the log file."""

    last_offset: int
    position: int


class TimeEntry(NamedTuple):
    """Up to `offset`, no record of the segment is later than `timestamp` (ms)."""

    timestamp: int
    offset: int


class IndexBuilder:
    """Both indexes of one segment, built as Kafka builds them while it appends.

    An entry is added *before* a batch is counted, when more than 4,096 bytes were appended since the last entry. The
    time index gets one only if its timestamp is beyond the last one's. A sealed segment's gets a final entry: `seal`.
    """

    def __init__(
        self,
        base_offset: int,
        *,
        max_timestamp: int = NO_TIMESTAMP,
        offset_of_max: int | None = None,
        last_time_entry: int = NO_TIMESTAMP,
        bytes_since_entry: int = 0,
    ) -> None:
        """Begin with an empty segment, or go on in the state in which another builder, or the writer, stopped.

        `index` and `times` hold what is added from here on.
        """
        self.base_offset = base_offset
        self.index = bytearray()
        self.times = bytearray()
        self.bytes_since_entry = bytes_since_entry
        self.max_timestamp = max_timestamp
        self.offset_of_max = base_offset if offset_of_max is None else offset_of_max
        self.last_time_entry = last_time_entry

    def add(self, position: int, length: int, last_offset: int, max_timestamp: int) -> None:
        """One batch was appended at `position`."""
        if max_timestamp > self.max_timestamp:
            self.max_timestamp = max_timestamp
            self.offset_of_max = last_offset
        if self.bytes_since_entry > INTERVAL_BYTES:
            self.index += _INDEX_ENTRY.pack(last_offset - self.base_offset, position)
            self._add_time()
            self.bytes_since_entry = 0
        self.bytes_since_entry += length

    def seal(self) -> None:
        """The segment is complete: its time index ends with its largest timestamp."""
        self._add_time()

    def _add_time(self) -> None:
        if self.max_timestamp > self.last_time_entry:
            self.times += _TIME_ENTRY.pack(self.max_timestamp, self.offset_of_max - self.base_offset)
            self.last_time_entry = self.max_timestamp


class SegmentIndexes:
    """Look-up in both indexes of one segment. A missing or torn file has fewer entries, which costs time only."""

    def __init__(self, directory: Path, base_offset: int) -> None:
        self._base_offset = base_offset
        self._index = directory / segment_name(base_offset, INDEX_SUFFIX)
        self._times = directory / segment_name(base_offset, TIME_SUFFIX)

    def batch_at(self, offset: int, position_max: int) -> IndexEntry | None:
        """The last entry whose batch ends at or before `offset` and starts below `position_max`, if there is one."""
        key = offset - self._base_offset
        found = self._last(self._index, _INDEX_ENTRY, lambda entry: entry[0] <= key and entry[1] < position_max)
        return IndexEntry(found[0] + self._base_offset, found[1]) if found else None

    def last_before(self, timestamp: int) -> TimeEntry | None:
        """The last entry with a timestamp below `timestamp` (ms): nothing up to its offset is as late as that."""
        found = self._last(self._times, _TIME_ENTRY, lambda entry: entry[0] < timestamp)
        return TimeEntry(found[0], found[1] + self._base_offset) if found else None

    def last_time(self) -> TimeEntry | None:
        """The last entry of the time index."""
        found = self._last(self._times, _TIME_ENTRY, lambda _: True)
        return TimeEntry(found[0], found[1] + self._base_offset) if found else None

    @staticmethod
    def _last(path: Path, entry: struct.Struct, holds: _Test) -> tuple[int, int] | None:
        """Binary search for the last entry for which `holds` is true: it is true up to some entry, then false."""
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        with file:
            low, high = 0, file.seek(0, 2) // entry.size
            found = None
            while low < high:
                middle = (low + high) // 2
                file.seek(middle * entry.size)
                data = file.read(entry.size) or b""
                candidate = entry.unpack(data) if len(data) == entry.size else None
                if candidate is not None and holds(candidate):
                    found, low = candidate, middle + 1
                else:
                    high = middle
            return found
