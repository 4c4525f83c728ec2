"""The way past damage: where the next sound batch begins, behind one that is not.

Its offsets lie between those of the batches around the damage, so an old batch, or one inside a value, is hardly ever
taken for it. What the damaged batch's own header says is believed first: where it ends, and which offset follows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gateway_native import batch

from gateway.log.layout import BATCH_BYTES_MAX
from gateway.log.segment import CHUNK_BYTES, BatchHeader, Segment, WalkEnd

# The CRC covers a batch from its attributes on.
_CHECKED_FROM = 21


class Passed(NamedTuple):
    """What a damaged place costs: bytes up to `position`, records up to `offset`."""

    position: int
    offset: int
    found: bool
    """A sound batch begins there; otherwise the end is there."""


def pass_over(segment: Segment, stopped: WalkEnd, end: int, offset_max: int) -> Passed:
    """Where to go on when no sound batch begins at `stopped`.

    A batch that follows ends by byte `end` and below `offset_max`, where what comes after begins.
    """
    offset_min = max(stopped.next_offset, 0)
    position = _behind(segment, stopped, end, offset_min, offset_max)
    header = segment.header(position) if position is not None else None
    if position is None or header is None:
        return Passed(end, max(offset_max, offset_min), False)
    return Passed(position, header.base_offset, True)


def _behind(segment: Segment, stopped: WalkEnd, end: int, offset_min: int, offset_max: int) -> int | None:
    header = segment.header(stopped.position, any_magic=True)
    if header is not None and batch.HEADER_BYTES - batch.LENGTH_PREFIX_BYTES <= header.length <= BATCH_BYTES_MAX:
        following = stopped.position + batch.LENGTH_PREFIX_BYTES + header.length
        if following == end:
            return None
        if _is_sound(segment, following, end, offset_min, offset_max):
            return following
    start = stopped.position + 1
    if header is not None and header.base_offset == offset_min and header.last_offset_delta >= 0:
        # Its length is wrong, but not, it seems, how many records it has.
        near = min(end, start + 2 * BATCH_BYTES_MAX)
        found, is_end = _by_checksum(segment, stopped.position, near, header, offset_max)
        if found is not None or (is_end and near == end):
            return found
    first = None
    for found in _batches(segment, start, end, offset_min, offset_max):
        if _fits_on(segment, found, end):
            return found
        first = found if first is None else first
    return first


def _batches(segment: Segment, position: int, end: int, offset_min: int, offset_max: int) -> Iterator[int]:
    """Whatever is a sound batch with such offsets, wherever it begins."""
    while (found := segment.find_batch(position, end, offset_min, offset_max)) is not None:
        yield found
        position = found + 1


def _by_checksum(
    segment: Segment, position: int, end: int, header: BatchHeader, offset_max: int
) -> tuple[int | None, bool]:
    """The batch that begins with the offset after the damaged one's last, best where its CRC-32C comes out right.

    That proves that only the length is wrong, and where the batch ends: also at `end`, and then the second is true.
    """
    first = None
    crc, at = 0, position + _CHECKED_FROM
    for found in _batches(segment, position + 1, end, header.last_offset + 1, offset_max):
        if _base_offset(segment, found) != header.last_offset + 1:
            continue
        crc, at = _crc(segment, at, found, crc), max(at, found)
        if crc == header.crc and at == found:
            return found, False
        first = found if first is None else first
    return first, first is None and _crc(segment, at, end, crc) == header.crc


def _crc(segment: Segment, position: int, end: int, crc: int) -> int:
    """Go on with a CRC-32C; -1 if something cannot be read."""
    while position < end and crc >= 0:
        data, unreadable = segment.read_some(position, min(CHUNK_BYTES, end - position))
        crc = -1 if unreadable or not data else batch.crc32c(data, crc)
        position += len(data)
    return crc


def _base_offset(segment: Segment, position: int) -> int | None:
    header = segment.header(position)
    return header.base_offset if header is not None else None


def _is_sound(segment: Segment, position: int, end: int, offset_min: int, offset_max: int) -> bool:
    """Is there a sound batch exactly here?"""
    header = segment.header(position)
    if header is None or not offset_min <= header.base_offset <= header.last_offset < offset_max:
        return False
    size = batch.LENGTH_PREFIX_BYTES + header.length
    if not batch.HEADER_BYTES <= size <= min(end - position, BATCH_BYTES_MAX):
        return False
    data, _ = segment.read_some(position, size)
    return batch.find(data, 0, offset_min, offset_max) == (0, 0)


def _fits_on(segment: Segment, position: int, end: int) -> bool:
    """Does the log go on behind this batch, or end there? Behind one inside a value it does not."""
    header = segment.header(position)
    if header is None:
        return False
    following = position + batch.LENGTH_PREFIX_BYTES + header.length
    if following >= end:
        return following == end
    after = segment.header(following)
    if after is not None:
        return after.base_offset == header.last_offset + 1
    return segment.is_zero(following, min(end, following + CHUNK_BYTES))
