"""Where the key frames of cameras lie in a segment: the index beside a sealed one, and finding them without it.

Decoding starts at a key frame, so every look-up of a picture begins by finding one. FORMAT.md, section 6, specifies the
file ``<base offset>.keyframes``. It is a hint that can be made again: whoever uses an entry reads the record it names,
and in a segment without one key frames are found by looking at the heads of records (`gateway_native.key_frames`).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

from gateway_native import batch, key_frames

from gateway.log.files import FILES, Files, replace
from gateway.log.layout import KEY_FRAMES_SUFFIX, segment_name
from gateway.log.passing import pass_over
from gateway.log.segment import PROBLEM_UNREADABLE, Segment, WalkEnd

ENTRY_BYTES = key_frames.ENTRY_BYTES
# A segment with more key frames (26 a second for a week) has no index: 6 MiB are read as a whole.
ENTRIES_MAX = 262_144
# So much is looked through in one go; then whoever waits for an end is asked.
STEP_BYTES = 16 << 20
# No segment is larger. FORMAT.md, section 2.
LOG_BYTES_MAX = 2**31 - 1

_MAGIC = b"GWKEYFR1"
_HEADER = struct.Struct("<8sqqqII")  # magic, base offset, log bytes, next offset, entries, CRC-32C
_CHECKED = _HEADER.size - 4
_ENTRY = struct.Struct("<IIqII")
assert _ENTRY.size == ENTRY_BYTES


class KeyFrame(NamedTuple):
    """One key frame. position, size: of the batch that holds it, in bytes. key_crc: CRC-32C of the record's key."""

    offset: int
    timestamp_ms: int
    position: int
    size: int
    key_crc: int


class KeyFrames(Sequence[KeyFrame]):
    """Key frames of one segment, ascending by offset; unpacked when they are looked at."""

    def __init__(self, base_offset: int, entries: bytes) -> None:
        self.base_offset = base_offset
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries) // ENTRY_BYTES

    @overload
    def __getitem__(self, number: int) -> KeyFrame: ...
    @overload
    def __getitem__(self, number: slice) -> KeyFrames: ...

    def __getitem__(self, number: int | slice) -> KeyFrame | KeyFrames:
        if isinstance(number, slice):
            first, end, _ = number.indices(len(self))
            return KeyFrames(self.base_offset, self.entries[first * ENTRY_BYTES : end * ENTRY_BYTES])
        at = number + len(self) if number < 0 else number
        if not 0 <= at < len(self):
            raise IndexError(number)
        position, delta, timestamp_ms, size, key_crc = _ENTRY.unpack_from(self.entries, at * ENTRY_BYTES)
        return KeyFrame(self.base_offset + delta, timestamp_ms, position, size, key_crc)

    def from_offset(self, offset: int) -> int:
        """The number of the first one at that offset or behind it; `len` if there is none."""
        return bisect_left(range(len(self)), offset, key=lambda number: self[number].offset)

    def last_before(self, end_offset: int, key_crc: int | None) -> KeyFrame | None:
        """The last one below that offset, of the camera with that key if one is named."""
        for number in range(self.from_offset(end_offset) - 1, -1, -1):
            found = self[number]
            if key_crc is None or found.key_crc == key_crc:
                return found
        return None


class Index(NamedTuple):
    """What the file beside a sealed segment says, of its first `log_bytes` bytes, which end before `next_offset`."""

    base_offset: int
    log_bytes: int
    next_offset: int
    key_frames: KeyFrames


def encode(base_offset: int, log_bytes: int, next_offset: int, entries: bytes) -> bytes:
    """A file's content. FORMAT.md, section 6."""
    count = len(entries) // ENTRY_BYTES
    head = _HEADER.pack(_MAGIC, base_offset, log_bytes, next_offset, count, 0)[:_CHECKED]
    crc = batch.crc32c(entries, batch.crc32c(head))
    return head + crc.to_bytes(4, "little") + entries


def parse(data: bytes) -> Index | None:
    """The index in a file's content; None when it is not sound."""
    if len(data) < _HEADER.size:
        return None
    magic, base_offset, log_bytes, next_offset, count, crc = _HEADER.unpack_from(data)
    entries = data[_HEADER.size :]
    if magic != _MAGIC or len(entries) != count * ENTRY_BYTES:
        return None
    if batch.crc32c(entries, batch.crc32c(data[:_CHECKED])) != crc:
        return None
    return Index(base_offset, log_bytes, next_offset, KeyFrames(base_offset, entries))


def load(directory: Path, base_offset: int, end_offset: int, files: Files = FILES) -> KeyFrames | None:
    """The index beside a sealed segment that ends at `end_offset`; None if there is none that is sound and fits."""
    try:
        found = parse(files.read_bytes(directory / segment_name(base_offset, KEY_FRAMES_SUFFIX)))
    except OSError:  # missing, or unreadable: its segment can be looked through
        return None
    if found is None or (found.base_offset, found.next_offset) != (base_offset, end_offset):
        return None
    return found.key_frames


def stands_beside(directory: Path, base_offset: int, end_offset: int) -> bool:
    """Is there an index of that segment, as far as its length and its header tell?"""
    try:
        file = FILES.open_read(directory / segment_name(base_offset, KEY_FRAMES_SUFFIX))
    except OSError:
        return False
    try:
        head, size = file.read(0, _HEADER.size), file.size
    except OSError:
        return False
    finally:
        file.close()
    if len(head) < _HEADER.size:
        return False
    magic, base, _, next_offset, count, _ = _HEADER.unpack(head)
    whole = _HEADER.size + count * ENTRY_BYTES == size
    return (magic, base, next_offset) == (_MAGIC, base_offset, end_offset) and whole


class Search:
    """Goes through one segment from a batch on and collects its key frames, a step at a time, over whatever is damaged.

    entries_max: behind so many it ends, and is not `whole`.
    """

    def __init__(
        self,
        directory: Path,
        base_offset: int,
        position: int = 0,
        next_offset: int = -1,
        *,
        entries_max: int = ENTRIES_MAX,
    ) -> None:
        """position, next_offset: where a batch begins, and with which offset; the segment's start if not given."""
        self.directory = directory
        self.base_offset = base_offset
        self.position = position
        self.next_offset = base_offset if next_offset < 0 else next_offset
        self.whole = True
        """Nothing was left out because there was too much of it."""
        self._entries_max = entries_max
        self._entries = bytearray()

    @property
    def found(self) -> KeyFrames:
        """So far, ascending."""
        return KeyFrames(self.base_offset, bytes(self._entries))

    def take(self) -> KeyFrames:
        """What was found since the last call, which is forgotten here."""
        taken = self.found
        self._entries.clear()
        return taken

    def step(self, end: int, end_offset: int) -> bool:
        """Look through the next bytes below `end`, and offsets below `end_offset`; False when that is over.

        FileNotFoundError when the segment is not there any more, OSError for a disk that fails.
        """
        if self.position >= end or self.next_offset >= end_offset or not self.whole:
            return False
        with Segment(self.directory, self.base_offset) as segment:
            end = min(end, segment.size)
            found = key_frames.scan(
                segment.fileno(),
                self.position,
                end,
                segment_base=self.base_offset,
                next_offset=self.next_offset,
                offset_end=end_offset,
                step=STEP_BYTES,
                entries_max=self._entries_max - len(self._entries) // ENTRY_BYTES,
            )
            self._entries += found.entries
            self.position, self.next_offset = found.position, found.next_offset
            self.whole = found.stopped != key_frames.TOO_MANY
            if found.stopped in {key_frames.NOT_A_BATCH, key_frames.UNREADABLE}:
                self._pass_over(segment, found.errno, end, end_offset)
        return self.whole and self.position < end and self.next_offset < end_offset

    def _pass_over(self, segment: Segment, errno: int, end: int, end_offset: int) -> None:
        """Go on at the next sound batch, or be over: what lies between is for those to tell who read it."""
        problem = PROBLEM_UNREADABLE if errno else batch.PROBLEM_LENGTH
        passed = pass_over(segment, WalkEnd(self.position, self.next_offset, problem, 0, errno), end, end_offset)
        self.position, self.next_offset = passed.position, passed.offset


def write(search: Search, end_offset: int, files: Files = FILES) -> bool:
    """Write the index of a sealed segment that a search has come to the end of; False: it has too many key frames.

    On the disk when this returns, but for its name: a crash may cost the file. OSError if it cannot be written.
    """
    if not search.whole:
        return False
    path = search.directory / segment_name(search.base_offset, KEY_FRAMES_SUFFIX)
    replace(files, path, encode(search.base_offset, search.position, end_offset, search.found.entries))
    if not files.exists(search.directory / segment_name(search.base_offset)):
        files.unlink(path)  # retention took the segment meanwhile, and does not come again
    return True
