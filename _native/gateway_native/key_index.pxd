"""Where each key's records lie in a segment: building and reading one part of a key index. gateway/log/FORMAT.md, section 10.

A part covers a run of whole batches. It is a sorted table: blocks of at most about 4 KiB of keys, an index of the
blocks' first keys in front, and behind them each key's postings. Everything is little-endian and has a CRC-32C.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    PART_HEADER_BYTES = 96
    AT_PART_BYTES = 8               # u64: of the whole part
    AT_SEGMENT_BASE = 16            # i64
    AT_LOG_FROM = 24                # i64: the first batch's position in the log
    AT_LOG_TO = 32                  # i64: where the last one ends
    AT_OFFSET_FROM = 40             # i64
    AT_OFFSET_TO = 48               # i64: the offset after the last
    AT_FIRST_CRC = 56               # u32: the first batch's own CRC-32C
    AT_LAST_CRC = 60                # u32: the last one's
    AT_KEYS = 64                    # u32
    AT_POSTINGS = 68                # u32: those with a key
    AT_BLOCKS = 72                  # u32
    AT_INDEX_BYTES = 76             # u32: block entries and first keys, right behind the header
    AT_INDEX_CRC = 80               # u32
    AT_LAST_BATCH = 84              # i64: the last batch's position in the log
    AT_PART_CRC = 92                # u32: of bytes 0 to 91

    BLOCK_ENTRY_BYTES = 16          # u32 position in the part, u32 bytes, u32 CRC-32C, u32 end of its first key
    BLOCK_BYTES = 4096              # a block is closed when it has so many

cdef struct Posting:                # one record, while a part is built
    uint32_t key                    # number of its key
    uint32_t batch                  # position of its batch, from the part's log_from on
    uint32_t record                 # position of the record in its batch
    uint32_t crc                    # CRC-32C of the batch's header and the record

cdef struct Key:
    uint64_t hash
    uint64_t start                  # where its bytes are in the heap
    uint32_t length
    uint32_t count                  # postings

cdef struct Sorted:                 # a key's place in the order of keys
    const uint8_t* data
    uint32_t length
    uint32_t number

cdef class Builder:
    cdef int64_t segment_base
    cdef size_t records_max         # a part with so many is full
    cdef size_t heap_max            # … or with so many bytes of keys
    cdef uint64_t seed              # keys come from devices: nobody shall choose what collides
    cdef Posting* postings
    cdef size_t posting_count, posting_room
    cdef Key* keys
    cdef size_t key_count, key_room
    cdef uint8_t* heap
    cdef size_t heap_used, heap_room
    cdef uint32_t* slots            # key number plus one; 0: free
    cdef size_t slot_count          # a power of two
    cdef int64_t log_from, log_to, offset_from, offset_to, last_batch
    cdef uint32_t first_crc, last_crc
    cdef int take(self, const uint8_t* data, size_t room, int64_t position) except -1 nogil
    cdef int take_batch(self, const uint8_t* data, size_t length, int64_t from_start) except -1 nogil
    cdef int64_t number_of(self, const uint8_t* key, uint32_t length) except -1 nogil
    cdef int grow_slots(self) except -1 nogil
    cdef int clear(self) except -1
    cdef object encode(self)
