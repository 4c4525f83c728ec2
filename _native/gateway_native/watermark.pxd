"""The watermark: what of a partition is durable, for readers in other processes; and the recovery point, with the state in
which the writer goes on.

A 128-byte little-endian file, rewritten in place after each group commit:

      0  8 bytes  magic "GWWMARK2"
      8  u64      epoch: grows each time a gateway opens the partition
     16  i64      base offset of the segment that holds the durable position
     24  i64      position: bytes of that segment that are durable
     32  i64      durable offset: every record below it is durable
     40  i64      last timestamp: ms, of the partition's latest record; -1: none
     48  i64      first timestamp: ms, of the segment's first record; -1: none
     56  i64      max timestamp: ms, the largest in the segment; -1: none
     64  i64      offset of max: last offset of the batch that brought it
     72  i64      last time entry: timestamp of the time index's last entry; -1: none
     80  i64      bytes since entry: bytes of log since the last index entry
     88  i64      index bytes: length of the offset index
     96  i64      time bytes: length of the time index
    104  u32      CRC-32C of so many bytes of the offset index
    108  u32      … of the time index
    112  u32      flags: MARK_*
    116  8 bytes  zero
    124  u32      CRC-32C of bytes 0 to 123

It is written after the data it speaks of was synced, so whatever version of it survives a crash claims too little at
worst. A reader that meets a half-written version sees a wrong CRC and reads again.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    WATERMARK_BYTES = 128

    MARK_INDEXES_WHOLE = 1          # no write of this segment's indexes ever failed
    MARK_CLEAN = 2                  # closed cleanly: nothing follows the position, and the indexes are complete

cdef struct WatermarkFields:
    uint64_t epoch
    int64_t segment_base
    int64_t position
    int64_t durable_offset
    int64_t last_timestamp
    int64_t first_timestamp
    int64_t max_timestamp
    int64_t offset_of_max
    int64_t last_time_entry
    int64_t bytes_since_entry
    int64_t index_bytes
    int64_t time_bytes
    uint32_t index_crc
    uint32_t time_crc
    uint32_t flags

cdef void watermark_encode(uint8_t* to, const WatermarkFields* mark) noexcept nogil
