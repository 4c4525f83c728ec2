"""The manifest: what is known of every sealed segment, so that nobody needs to open them to know it.

FORMAT.md, section 6, is the specification. It is a hint with checksums: an entry that is not sound is passed over, what
it does not speak of is found by listing the directory, and everything in it can be made again from the segments. In
memory it is one piece of bytes, 64 for each segment.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

from gateway_native import summary
from gateway_native.summary import Summary

from gateway.log.files import Files
from gateway.log.layout import MANIFEST_FILE, SUMS_SUFFIX, segment_name

ENTRY_BYTES = summary.BYTES

# Entries of segments that retention deleted are left in front until so many, and half of all, are.
DEAD_ENTRIES_MAX = 1024

_BASE = struct.Struct("<q")
_BASE_AT = 8


class Manifest:
    """The sound entries of a manifest, ascending. Entries are unpacked only when they are looked at."""

    def __init__(self, data: bytes = b"", *, below: int = 2**63 - 1) -> None:
        """Take the sound entries of segments below offset `below` from a file's content."""
        self.unsound = 0
        """Entries that were passed over; the half of one at the end, which a crash leaves, is not among them."""
        self.ignored = 0
        """Entries at the end of segments that are not sealed, or that contradict those before them."""
        self.contradicts = False
        stop = len(data) - len(data) % ENTRY_BYTES
        pieces: list[bytes] = []
        start = end = 0
        for position in range(0, stop, ENTRY_BYTES):
            entry = summary.parse(data, position)
            if entry is None:
                self.unsound += 1
                pieces.append(data[start:position])
                start = position + ENTRY_BYTES
            elif entry.base_offset < end or entry.next_offset < entry.base_offset or entry.base_offset >= below:
                self.ignored = (stop - position) // ENTRY_BYTES
                self.contradicts = entry.base_offset < below
                stop = position
                break
            else:
                end = entry.next_offset
        self._data = b"".join([*pieces, data[start:stop]]) if pieces or stop < len(data) else data

    @classmethod
    def load(cls, directory: Path, files: Files, *, below: int = 2**63 - 1) -> Manifest | None:
        """Read a partition's manifest; None if there is none, or it cannot be read."""
        try:
            return cls(files.read_bytes(directory / MANIFEST_FILE), below=below)
        except OSError:  # missing, or a bad sector: listing the directory says the same, later
            return None

    def __len__(self) -> int:
        return len(self._data) // ENTRY_BYTES

    def __getitem__(self, number: int) -> Summary:
        found = summary.parse(self._data, (number + len(self) if number < 0 else number) * ENTRY_BYTES)
        if found is None:
            raise IndexError(f"entry {number} of {len(self)}")
        return found

    def __iter__(self) -> Iterator[Summary]:
        return (self[number] for number in range(len(self)))

    @property
    def data(self) -> bytes:
        """What a file with these entries holds."""
        return self._data

    def base(self, number: int) -> int:
        """The base offset of entry `number`, which must be there."""
        base: int = _BASE.unpack_from(self._data, number * ENTRY_BYTES + _BASE_AT)[0]
        return base

    def bases(self, first: int = 0) -> list[int]:
        """Base offsets of the entries from `first` on."""
        return [self.base(number) for number in range(first, len(self))]

    def at(self, offset: int) -> int:
        """The last entry that begins at or before `offset`; -1 if none does."""
        return bisect_right(range(len(self)), offset, key=self.base) - 1

    def first_there(self, directory: Path, files: Files) -> int:
        """The first entry whose segment retention has left: it deletes from the front. `len` if there is none."""

        def is_there(number: int) -> bool:
            return files.exists(directory / segment_name(self.base(number)))

        if not len(self) or is_there(0):
            return 0  # nothing was deleted since the manifest was written: the usual case, and one look
        first = bisect_left(range(len(self)), True, key=is_there)
        step = 1
        while step <= first:
            if is_there(first - step):  # a segment behind it was lost, which no retention does
                return next(number for number in range(first) if is_there(number))
            step *= 2
        return first

    def append(self, entry: Summary) -> None:
        """One more segment, the next one."""
        self._data += summary.encode(entry)

    def drop_last(self) -> None:
        """Take the last entry out."""
        self._data = self._data[:-ENTRY_BYTES]

    def drop_first(self, count: int) -> None:
        """Take entries out at the front."""
        self._data = self._data[count * ENTRY_BYTES :]


def read_summary(directory: Path, base_offset: int, files: Files) -> Summary | None:
    """What the sidecar of a segment says, if it fits the log beside it; None otherwise."""
    try:
        found = summary.parse(files.read_bytes(directory / segment_name(base_offset, SUMS_SUFFIX)))
        if found is None or found.base_offset != base_offset:
            return None
        return found if files.size(directory / segment_name(base_offset)) == found.log_bytes else None
    except OSError:  # missing, or unreadable: it can be made again
        return None
