"""Reading one segment: whole batches in bounded pieces, and the walk that checks them.

Never through a mapping, which would turn a bad sector, or a file that is cut, into a signal.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from gateway_native import batch

from gateway.log.files import FILES, Files
from gateway.log.layout import BATCH_BYTES_MAX, LOG_SUFFIX, segment_name

# One read. Larger than a batch usually is (256 KiB), small enough that its records, as objects, stay bounded.
CHUNK_BYTES = 512 * 1024

# What a file system says of bytes that the disk, or its own checksum, has lost. Other errors are raised.
UNREADABLE = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
# Around bad sectors it is read in such steps; after so many of them in a row the steps grow, so that a dead disk is
# given up in the end.
SECTOR_BYTES = 4096
_SECTOR_STEPS = 256
_SECTOR_STEP_MAX = 16 << 20

# Beside batch.PROBLEM_*: the disk gives an error.
PROBLEM_UNREADABLE = -1

_HEADER = struct.Struct(">qiibIhiqqqhii")
assert _HEADER.size == batch.HEADER_BYTES


class BatchHeader(NamedTuple):
    """The fields of a batch's header, as they are on disk (FORMAT.md, section 3)."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta


class Damage(NamedTuple):
    """One damaged place: the file, the byte in it, and what was found there."""

    path: Path
    position: int
    problem: str
    expected: str
    found: str
    offsets: tuple[int, int] | None = None
    """Records that cannot be read because of it, from the first to before the second; None: none, or not known."""
    bytes: int = 0
    """How much of the file cannot be read because of it: up to the next sound batch; 0: not known."""

    def __str__(self) -> str:
        return f"{self.path}, byte {self.position}: {self.problem}{self._lost()}"

    def _lost(self) -> str:
        if self.offsets is None:
            return ""
        first, end = self.offsets
        return f" (offset {first})" if end - first == 1 else f" (offsets {first} to {end - 1})"


class Segment:
    """An open ``.log`` file. Only the caller's thread may use it."""

    def __init__(self, directory: Path, base_offset: int, files: Files = FILES) -> None:
        """Open it. FileNotFoundError if retention, or recovery, took it away since it was listed."""
        self.directory = directory
        self.base_offset = base_offset
        self.path = directory / segment_name(base_offset, LOG_SUFFIX)
        self._file = files.open_read(self.path)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Segment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Bytes in the file now; more than there are batches while the segment is being written."""
        return self._file.size

    def fileno(self) -> int:
        """The descriptor, for native code that reads by itself; only of files that are on a real disk."""
        number: int = self._file.fileno()  # type: ignore[attr-defined]
        return number

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only at the end of the file. OSError for a bad sector."""
        return self._file.read(position, size)

    def read_some(self, position: int, size: int) -> tuple[bytes, int]:
        """The same up to the first bad sector, and the errno met there; 0: there is none."""
        try:
            return self.read(position, size), 0
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            number = error.errno
        pieces: list[bytes] = []
        end = position + size
        while position < end:
            try:
                piece = self.read(position, min(SECTOR_BYTES - position % SECTOR_BYTES, end - position))
            except OSError as error:
                if error.errno not in UNREADABLE:
                    raise
                return b"".join(pieces), error.errno
            if not piece:
                break
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces), 0 if position >= end else number

    def piece(self, position: int, size: int) -> tuple[bytes | memoryview, int]:
        """The same for a reader that only decodes: perhaps without a copy."""
        return self.read_some(position, size)

    def header(self, position: int, *, any_magic: bool = False) -> BatchHeader | None:
        """The header at `position`, unchecked except for its magic byte; None if there is none."""
        data, _ = self.read_some(position, batch.HEADER_BYTES)
        if len(data) < batch.HEADER_BYTES or (data[16] != batch.MAGIC and not any_magic):
            return None
        return BatchHeader(*_HEADER.unpack(data))

    def is_zero(self, position: int, end: int) -> bool:
        """Are all bytes from `position` to `end` zero? Bytes that cannot be read are not."""
        while position < end:
            position = min(self._next_data(position), end)
            data, unreadable = self.read_some(position, min(CHUNK_BYTES, end - position))
            if data.count(0) != len(data) or unreadable:
                return False
            if not data:
                return True
            position += len(data)
        return True

    def _next_data(self, position: int) -> int:
        """Skips room that was allocated and never written, up to 64 MiB of it, where the file can tell."""
        find = getattr(self._file, "next_data", None)
        return find(position) if find is not None else position

    def content_end(self, start: int, end: int) -> int:
        """The end of what is not zero in [start, end); `start` if nothing is. What cannot be read is not zero."""
        while end > start:
            piece = max(end - CHUNK_BYTES, start)
            data, unreadable = self.read_some(piece, end - piece)
            if unreadable:
                return end
            content = data.rstrip(b"\0")
            if content:
                return piece + len(content)
            end = piece
        return start

    def find_batch(self, position: int, end: int, offset_min: int, offset_max: int) -> int | None:
        """The next sound batch from `position` on that ends by `end` and has offsets in [offset_min, offset_max).

        Every byte is tried, which `gateway.log.passing` narrows down. Bad sectors are stepped over.
        """
        wanted = CHUNK_BYTES
        steps = 0
        while end - position >= batch.HEADER_BYTES:
            data, unreadable = self.read_some(position, min(wanted, end - position))
            stopped, more = batch.find(data, 0, offset_min, offset_max)
            position += stopped
            if more == 0:
                return position
            if unreadable and len(data) - stopped < batch.HEADER_BYTES:
                steps += 1
                position = self._step(position + len(data) - stopped, steps)
                more = 0
            elif unreadable or more > min(end, self.size) - position or more > BATCH_BYTES_MAX:
                # What looks like a header here cannot be one, or its batch cannot be read. (At the end this stops us.)
                position += 1
                more = 0
            wanted = max(more, CHUNK_BYTES)
        return None

    @staticmethod
    def _step(position: int, steps: int) -> int:
        """Where to go on reading behind the bad sector at `position`, the so-manieth."""
        step = min(SECTOR_BYTES << max(steps - _SECTOR_STEPS, 0).bit_length(), _SECTOR_STEP_MAX)
        return position - position % SECTOR_BYTES + step


class WalkEnd(NamedTuple):
    """Where a walk ended and why: after the last good batch."""

    position: int
    next_offset: int
    problem: int
    expected: int
    found: int

    @property
    def clean(self) -> bool:
        """Everything up to the end asked for is sound."""
        return self.problem == batch.PROBLEM_NONE

    @property
    def text(self) -> str:
        """What is wrong there."""
        if self.problem == PROBLEM_UNREADABLE:
            return f"cannot be read here: {os.strerror(self.found)}"
        return batch.PROBLEM_TEXTS[self.problem].format(expected=self.expected, found=self.found)

    def damage(self, path: Path) -> Damage:
        """The same as a report's entry."""
        if self.problem == PROBLEM_UNREADABLE:
            return Damage(path, self.position, self.text, "readable bytes", "an error")
        if self.problem == batch.PROBLEM_CRC:
            return Damage(path, self.position, self.text, f"0x{self.expected:08x}", f"0x{self.found:08x}")
        return Damage(path, self.position, self.text, str(self.expected), str(self.found))


class Walk:
    """Check the batches of a segment one after the other, from `position` to `end`.

    Iterating gives them in lists of bounded size (see `batch.scan` for what a batch is and what is checked); when it is
    over, `end` says where and why: a bad sector ends it too. Not a byte at or above `end` is looked at.
    """

    def __init__(
        self,
        segment: Segment,
        position: int,
        end: int,
        *,
        expected_offset: int,
        check_crc: bool = True,
        check_records: bool = False,
    ) -> None:
        self._segment = segment
        self._position = position
        self._end = end
        self._expected_offset = expected_offset
        self._check_crc = check_crc
        self._check_records = check_records
        self.end = WalkEnd(position, expected_offset, batch.PROBLEM_NONE, 0, 0)

    def __iter__(self) -> Iterator[list[batch.Batch]]:
        position, offset, wanted = self._position, self._expected_offset, CHUNK_BYTES
        while position < self._end:
            data, unreadable = self._segment.read_some(position, min(wanted, self._end - position))
            batches, stopped, problem, expected, found = batch.scan(
                data,
                origin=position,
                expected_offset=offset,
                check_crc=self._check_crc,
                check_records=self._check_records,
            )
            if batches:
                offset = batches[-1][3] + 1
            position = stopped
            self.end = WalkEnd(position, offset, problem, expected, found)
            if batches:
                yield batches
            wanted = CHUNK_BYTES
            if unreadable and not batches and problem in {batch.PROBLEM_NONE, batch.PROBLEM_SHORT}:
                self.end = WalkEnd(position, offset, PROBLEM_UNREADABLE, 0, unreadable)
                return
            if problem == batch.PROBLEM_NONE and not data:
                self.end = self.end._replace(problem=batch.PROBLEM_SHORT, expected=batch.HEADER_BYTES)
                return
            if problem == batch.PROBLEM_SHORT:
                available = min(self._end, self._segment.size) - position
                if expected > BATCH_BYTES_MAX:
                    self.end = WalkEnd(position, offset, batch.PROBLEM_LENGTH, BATCH_BYTES_MAX, expected)
                    return
                if expected > available:
                    self.end = self.end._replace(found=available)
                    return
                wanted = max(expected, CHUNK_BYTES)
            elif problem != batch.PROBLEM_NONE:
                return

    def run(self) -> WalkEnd:
        """Walk to the end, keeping nothing."""
        for _ in self:
            pass
        return self.end
