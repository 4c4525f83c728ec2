"""Encode and read the watermark file; watermark.pxd describes its 128 bytes."""

import struct
import time
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gateway_native.batch cimport crc32c_update

cdef extern from "wire.h" nogil:
    void put_le32(uint8_t* to, uint32_t v)
    void put_le64(uint8_t* to, uint64_t v)

BYTES = WATERMARK_BYTES
INDEXES_WHOLE = MARK_INDEXES_WHOLE
CLEAN = MARK_CLEAN

MAGIC = b"GWWMARK2"

# A writer is between two bytes for less than a microsecond; a version that stays bad is damage, not a race.
READ_ATTEMPTS = 20
READ_PAUSE_SECONDS = 0.0005

_LAYOUT = struct.Struct("<8sQqqqqqqqqqqqIII8xI")
assert _LAYOUT.size == WATERMARK_BYTES


class Watermark(NamedTuple):
    """What of one partition is durable, and the state in which its writer goes on."""

    epoch: int
    segment_base: int
    position: int
    durable_offset: int
    last_timestamp: int = -1
    first_timestamp: int = -1
    max_timestamp: int = -1
    offset_of_max: int = 0
    last_time_entry: int = -1
    bytes_since_entry: int = 0
    index_bytes: int = 0
    time_bytes: int = 0
    index_crc: int = 0
    time_crc: int = 0
    flags: int = 0


cdef void watermark_encode(uint8_t* to, const WatermarkFields* mark) noexcept nogil:
    memset(to, 0, WATERMARK_BYTES)
    memcpy(to, b"GWWMARK2", 8)
    put_le64(to + 8, mark.epoch)
    put_le64(to + 16, <uint64_t>mark.segment_base)
    put_le64(to + 24, <uint64_t>mark.position)
    put_le64(to + 32, <uint64_t>mark.durable_offset)
    put_le64(to + 40, <uint64_t>mark.last_timestamp)
    put_le64(to + 48, <uint64_t>mark.first_timestamp)
    put_le64(to + 56, <uint64_t>mark.max_timestamp)
    put_le64(to + 64, <uint64_t>mark.offset_of_max)
    put_le64(to + 72, <uint64_t>mark.last_time_entry)
    put_le64(to + 80, <uint64_t>mark.bytes_since_entry)
    put_le64(to + 88, <uint64_t>mark.index_bytes)
    put_le64(to + 96, <uint64_t>mark.time_bytes)
    put_le32(to + 104, mark.index_crc)
    put_le32(to + 108, mark.time_crc)
    put_le32(to + 112, mark.flags)
    put_le32(to + 124, crc32c_update(0, to, 124))


def encode(mark) -> bytes:
    """The file's 128 bytes."""
    cdef WatermarkFields fields
    cdef uint8_t to[WATERMARK_BYTES]
    (fields.epoch, fields.segment_base, fields.position, fields.durable_offset, fields.last_timestamp,
     fields.first_timestamp, fields.max_timestamp, fields.offset_of_max, fields.last_time_entry,
     fields.bytes_since_entry, fields.index_bytes, fields.time_bytes, fields.index_crc, fields.time_crc,
     fields.flags) = mark
    watermark_encode(to, &fields)
    return (<char*>to)[:WATERMARK_BYTES]


def parse(bytes data) -> Watermark | None:
    """The watermark in the file's bytes, or None when they are not a sound one."""
    if len(data) < WATERMARK_BYTES:
        return None
    fields = _LAYOUT.unpack_from(data)
    if fields[0] != MAGIC or crc32c_update(0, <const uint8_t*><const char*>data, 124) != fields[-1]:
        return None
    return Watermark(*fields[1:-1])


def read(path) -> Watermark | None:
    """Read a partition's watermark file; None when it is missing or not sound. Other failures raise OSError."""
    for _ in range(READ_ATTEMPTS):
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.read(WATERMARK_BYTES)
        except FileNotFoundError:
            return None
        found = parse(data)
        if found is not None or len(data) < WATERMARK_BYTES:
            return found
        time.sleep(READ_PAUSE_SECONDS)
    return None
