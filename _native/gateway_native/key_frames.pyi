"""Finding the key frames of cameras in a segment without reading the pictures. FORMAT.md, sections 3 and 6."""

from typing import NamedTuple

ENTRY_BYTES: int

END: int
NOT_A_BATCH: int
TOO_MANY: int
UNREADABLE: int

class Scan(NamedTuple):
    """What one call of `scan` found: entries, where it stopped (a batch begins there), and why."""

    entries: bytes
    position: int
    next_offset: int
    stopped: int
    errno: int

def scan(
    fd: int,
    position: int,
    end: int,
    *,
    segment_base: int,
    next_offset: int,
    offset_end: int = ...,
    step: int = ...,
    entries_max: int = 262144,
) -> Scan:
    """Walk the batches in [position, end) of an open ``.log`` file and list the camera records that are key frames.

    A batch begins at `position`, with the offset `next_offset`; it ends with the last whole one below `end`, or earlier
    with the one that reaches `offset_end`, or the one that lies `step` bytes on. Only the heads and headers of records
    are read, about 600 bytes for each, without the GIL. No CRC is checked: an entry is a hint. Compressed batches are
    passed over.

    entries: ENTRY_BYTES each, little-endian: u32 position of the record's batch, u32 offset - segment_base, i64 time of
    the record in ms, u32 bytes of the batch, u32 CRC-32C of the record's key. stopped: END; NOT_A_BATCH, damage, zeros
    or the end of the file; TOO_MANY, the batch there has the entry that would be one more than `entries_max`;
    UNREADABLE, a bad sector, of which `errno` tells. ValueError for bounds that make no sense.
    """
