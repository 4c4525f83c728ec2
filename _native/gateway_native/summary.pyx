"""Encode and parse summaries of sealed segments; summary.pxd describes their 64 bytes."""

import struct
from typing import NamedTuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from gateway_native.batch cimport crc32c_update

cdef extern from "wire.h" nogil:
    void put_le32(uint8_t* to, uint32_t v)
    void put_le64(uint8_t* to, uint64_t v)

BYTES = SUMMARY_BYTES
INDEXES_WHOLE = SUMMARY_INDEXES_WHOLE

MAGIC = b"GWSUMS1\0"

_LAYOUT = struct.Struct("<8sqqqqqIIII")
assert _LAYOUT.size == SUMMARY_BYTES


class Summary(NamedTuple):
    """What is known of one sealed segment."""

    base_offset: int
    log_bytes: int
    next_offset: int
    first_timestamp: int
    max_timestamp: int
    index_crc: int
    time_crc: int
    flags: int = INDEXES_WHOLE


cdef void summary_encode(uint8_t* to, const SummaryFields* summary) noexcept nogil:
    memset(to, 0, SUMMARY_BYTES)
    memcpy(to, b"GWSUMS1", 7)
    put_le64(to + 8, <uint64_t>summary.base_offset)
    put_le64(to + 16, <uint64_t>summary.log_bytes)
    put_le64(to + 24, <uint64_t>summary.next_offset)
    put_le64(to + 32, <uint64_t>summary.first_timestamp)
    put_le64(to + 40, <uint64_t>summary.max_timestamp)
    put_le32(to + 48, summary.index_crc)
    put_le32(to + 52, summary.time_crc)
    put_le32(to + 56, summary.flags)
    put_le32(to + 60, crc32c_update(0, to, 60))


def encode(summary) -> bytes:
    """Its 64 bytes."""
    cdef SummaryFields fields
    cdef uint8_t to[SUMMARY_BYTES]
    (fields.base_offset, fields.log_bytes, fields.next_offset, fields.first_timestamp, fields.max_timestamp,
     fields.index_crc, fields.time_crc, fields.flags) = summary
    summary_encode(to, &fields)
    return (<char*>to)[:SUMMARY_BYTES]


def parse(bytes data, Py_ssize_t position=0) -> Summary | None:
    """The summary at `position`, or None when there is no sound one."""
    if position < 0 or len(data) - position < SUMMARY_BYTES:
        return None
    fields = _LAYOUT.unpack_from(data, position)
    if fields[0] != MAGIC or crc32c_update(0, <const uint8_t*><const char*>data + position, 60) != fields[-1]:
        return None
    return Summary(*fields[1:-1])
