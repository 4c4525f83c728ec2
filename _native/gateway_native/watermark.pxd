"""The watermark: what of a partition is durable, for readers in other processes and for recovery.

A 64-byte little-endian file, rewritten in place after each group commit:

      0  8 bytes  magic "GWWMARK1"
      8  u64      epoch: grows each time a gateway opens the partition
     16  i64      base offset of the segment that holds the durable position
     24  i64      position: bytes of that segment that are durable
     32  i64      durable offset: every record below it is durable
     40  16 bytes zero
     56  u32      zero
     60  u32      CRC-32C of bytes 0 to 59

It is written after the data it speaks of was synced, so whatever version of it survives a crash claims too little at
worst. A reader that meets a half-written version sees a wrong CRC and reads again.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    WATERMARK_BYTES = 64

cdef void watermark_encode(
    uint8_t* to, uint64_t epoch, int64_t segment_base, int64_t position, int64_t durable_offset,
) noexcept nogil
