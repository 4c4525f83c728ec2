"""Encode and read the watermark file; watermark.pxd describes its 64 bytes."""

import time
from typing import NamedTuple

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gateway_native.batch cimport crc32c_update

# A writer is between two bytes for less than a microsecond; a version that stays bad is damage, not a race.
READ_ATTEMPTS = 20
READ_PAUSE_SECONDS = 0.0005


class Watermark(NamedTuple):
    """What of one partition is durable."""

    epoch: int
    segment_base: int
    position: int
    durable_offset: int


cdef inline void put_u64(uint8_t* to, uint64_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        to[i] = <uint8_t>(value >> (8 * i))


cdef void watermark_encode(
    uint8_t* to, uint64_t epoch, int64_t segment_base, int64_t position, int64_t durable_offset,
) noexcept nogil:
    cdef uint32_t crc
    cdef int i
    memset(to, 0, WATERMARK_BYTES)
    memcpy(to, b"GWWMARK1", 8)
    put_u64(to + 8, epoch)
    put_u64(to + 16, <uint64_t>segment_base)
    put_u64(to + 24, <uint64_t>position)
    put_u64(to + 32, <uint64_t>durable_offset)
    crc = crc32c_update(0, to, 60)
    for i in range(4):
        to[60 + i] = <uint8_t>(crc >> (8 * i))


def encode(uint64_t epoch, int64_t segment_base, int64_t position, int64_t durable_offset) -> bytes:
    """The file's 64 bytes."""
    cdef uint8_t to[WATERMARK_BYTES]
    watermark_encode(to, epoch, segment_base, position, durable_offset)
    return (<char*>to)[:WATERMARK_BYTES]


def parse(bytes data) -> Watermark | None:
    """The watermark in the file's bytes, or None when they are not a sound one."""
    cdef const uint8_t* start = <const uint8_t*><const char*>data
    if len(data) < WATERMARK_BYTES or data[:8] != b"GWWMARK1":
        return None
    if crc32c_update(0, start, 60) != int.from_bytes(data[60:64], "little"):
        return None
    return Watermark(
        int.from_bytes(data[8:16], "little"),
        int.from_bytes(data[16:24], "little", signed=True),
        int.from_bytes(data[24:32], "little", signed=True),
        int.from_bytes(data[32:40], "little", signed=True),
    )


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
