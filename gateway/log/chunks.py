"""Decoding the selected records of one segment, piece by piece, over whatever is damaged in it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from gateway_native import batch

from gateway.errors import DamageError, FormatError
from gateway.log.compression import expanded
from gateway.log.layout import BATCH_BYTES_MAX
from gateway.log.passing import Passed, pass_over
from gateway.log.segment import CHUNK_BYTES, PROBLEM_UNREADABLE, Damage, Segment, WalkEnd

OnDamage = Callable[[Damage], None]

Rows = TypeVar("Rows")
Rows_co = TypeVar("Rows_co", covariant=True)


class Decode(Protocol[Rows_co]):
    """`batch.decode_chunk`, or what answers as it does with something else for the records, false if there are none."""

    def __call__(
        self, buffer: bytes | memoryview, position: int, selection: batch.Selection, /, *, expected_offset: int
    ) -> tuple[Rows_co, int, int, int]: ...


_OFFSETS = struct.Struct(">qi11xi")  # base offset, length, last offset delta


class SegmentChunks(Generic[Rows]):
    """The selected records of one open segment, of which the bytes below `end` and offsets below `offset_max` count.

    They come as `decode` gives them.

    At damage DamageError is raised, or, with `on_damage`, that is called and reading goes on at the next sound batch.
    """

    def __init__(
        self,
        segment: Segment,
        selection: batch.Selection,
        end: int,
        offset_max: int,
        on_damage: OnDamage | None,
        decode: Decode[Rows],
    ) -> None:
        self._segment = segment
        self._decode_chunk = decode
        self._selection = selection
        self._end = end
        self._offset_max = offset_max
        self._on_damage = on_damage

    def read(self, position: int, offset: int) -> Iterator[Rows]:
        """From the batch at `position` on, which begins with `offset`, in lists of bounded size."""
        wanted = CHUNK_BYTES
        while position < self._end:
            try:
                rows, passed, more, offset = self._decode(position, wanted, offset)
            except batch.BatchError as error:
                stopped = WalkEnd(position + error.position, offset, error.problem, error.expected, error.found)
                behind = self._behind(stopped)
                position, offset, wanted = behind.position, behind.offset, CHUNK_BYTES
                continue
            if rows:
                yield rows
            if more < 0:
                return
            position += passed
            wanted = min(max(more, CHUNK_BYTES), BATCH_BYTES_MAX)
        if offset < min(self._offset_max, self._selection.offset_to):
            missing = self._offset_max - offset
            problem = f"the log ends here, {missing} records before what follows it"
            lost = (offset, self._offset_max)
            report_damage(
                Damage(self._segment.path, position, problem, str(self._offset_max), str(offset), lost), self._on_damage
            )

    def _decode(self, position: int, wanted: int, offset: int) -> tuple[Rows | None, int, int, int]:
        data, unreadable = self._segment.piece(position, min(wanted, self._end - position))
        try:
            rows, passed, more, offset = self._decode_chunk(data, 0, self._selection, expected_offset=offset)
        except batch.UnsupportedBatch as error:
            if error.position:
                return None, error.position, 0, _offset_behind(data, error.position)
            return self._decode_compressed(data, position, offset)
        except batch.BatchError as error:
            if error.position == 0:
                raise
            # Sound batches of which nothing is selected lie before it: behind them the next call raises.
            return None, error.position, 0, _offset_behind(data, error.position)
        if passed == 0 and more >= 0:
            if unreadable:
                raise batch.BatchError("unreadable", 0, PROBLEM_UNREADABLE, 0, unreadable)
            _check_room(more, len(data), min(self._end, self._segment.size) - position)
        return rows, passed, more, offset

    def _decode_compressed(
        self, data: bytes | memoryview, position: int, offset: int
    ) -> tuple[Rows | None, int, int, int]:
        """The batch with which `data` begins, whole and with a right CRC, which a broker has compressed."""
        length = batch.LENGTH_PREFIX_BYTES + _OFFSETS.unpack_from(data)[1]
        try:
            plain = expanded(data[:length])
        except FormatError as error:
            raise FormatError(f"{self._segment.path}, byte {position}: {error}.") from None
        rows, passed, more, offset = self._decode_chunk(plain, 0, self._selection, expected_offset=offset)
        return rows, length if passed else 0, more, offset

    def _behind(self, stopped: WalkEnd) -> Passed:
        """Where to go on when no sound batch begins at `stopped`."""
        if stopped.problem == batch.PROBLEM_ZEROS and self._segment.is_zero(stopped.position, self._end):
            # Allocated, never written: a copy taken while the segment was being sealed, or a crash while it was.
            return Passed(self._end, stopped.next_offset, False)
        if stopped.next_offset >= self._offset_max:
            return Passed(self._end, self._offset_max, False)  # what a failed disk left is no part of the log
        if stopped.next_offset >= self._selection.offset_to:
            return Passed(self._end, stopped.next_offset, False)  # nothing behind this is asked for
        passed = pass_over(self._segment, stopped, self._end, self._offset_max)
        if passed.offset > self._selection.offset_from:  # otherwise none of what is missing was asked for
            damage = stopped.damage(self._segment.path)
            lost = (stopped.next_offset, passed.offset)
            report_damage(damage._replace(offsets=lost, bytes=passed.position - stopped.position), self._on_damage)
        return passed


def report_damage(damage: Damage, on_damage: OnDamage | None) -> None:
    """Tell of a damaged place, or raise it."""
    if on_damage is None:
        raise DamageError(
            f"{damage}. What follows can be read by passing over the damage; `gateway verify` lists every such place."
        )
    on_damage(damage)


def _offset_behind(data: bytes | memoryview, end: int) -> int:
    """The offset that follows the sound batches in data[:end]."""
    position, base_offset, last_offset_delta = 0, -1, 0
    while position < end:
        base_offset, length, last_offset_delta = _OFFSETS.unpack_from(data, position)
        position += batch.LENGTH_PREFIX_BYTES + length
    return base_offset + last_offset_delta + 1


def _check_room(wanted: int, available_here: int, available: int) -> None:
    """BatchError if the batch that wants so many bytes cannot be: it runs past the end of the file, or is too long."""
    if wanted > BATCH_BYTES_MAX:
        raise batch.BatchError("too long", 0, batch.PROBLEM_LENGTH, BATCH_BYTES_MAX, wanted)
    if wanted > available or available_here == 0:
        raise batch.BatchError("too short", 0, batch.PROBLEM_SHORT, max(wanted, batch.HEADER_BYTES), available)
