"""The summary of a sealed segment: what a start, a reader or a check need not read the segment for.

64 bytes, little-endian; beside the segment as <base offset>.sums, and once more in the partition's `manifest`, which holds one
for each sealed segment, ascending:

      0  8 bytes  magic "GWSUMS1" and a zero
      8  i64      base offset
     16  i64      log bytes: the log's length
     24  i64      next offset: the one after the last record
     32  i64      first timestamp: ms, the first record's
     40  i64      max timestamp: ms, the largest
     48  u32      CRC-32C of the whole offset index
     52  u32      CRC-32C of the whole time index
     56  u32      flags: SUMMARY_*
     60  u32      CRC-32C of bytes 0 to 59

Everything in it can be made again from the log.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum:
    SUMMARY_BYTES = 64

    SUMMARY_INDEXES_WHOLE = 1       # no write of the indexes ever failed

cdef struct SummaryFields:
    int64_t base_offset
    int64_t log_bytes
    int64_t next_offset
    int64_t first_timestamp
    int64_t max_timestamp
    uint32_t index_crc
    uint32_t time_crc
    uint32_t flags

cdef void summary_encode(uint8_t* to, const SummaryFields* summary) noexcept nogil
