"""Parts of a key index. See key_index.pxd for the layout and gateway/log/FORMAT.md, section 10, for the specification."""

import os
import struct
from typing import NamedTuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT32_MAX, INT64_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from gateway_native.batch cimport (
    AT_ATTRIBUTES,
    AT_BASE_OFFSET,
    AT_BASE_TIMESTAMP,
    AT_CRC,
    AT_LAST_OFFSET_DELTA,
    AT_LENGTH,
    AT_MAGIC,
    AT_RECORDS,
    ATTRIBUTE_CODEC,
    ATTRIBUTE_CONTROL,
    ATTRIBUTE_LOG_APPEND_TIME,
    BATCH_HEADER_BYTES,
    BATCH_LENGTH_PREFIX_BYTES,
    BATCH_MAGIC,
    KeyFilter,
    RecordView,
    Selection,
    crc32c_update,
    decode_headers,
    get_be16,
    get_be32,
    get_be64,
    get_uvarint,
    put_uvarint,
    record_parse,
    unzigzag,
    uvarint_bytes,
)
from gateway_native.batch import crc32c

cdef extern from "wire.h" nogil:
    void put_le32(uint8_t* to, uint32_t v)
    void put_le64(uint8_t* to, uint64_t v)
    uint32_t get_le32(const uint8_t* at)

Buffer = bytes | bytearray | memoryview
Place = tuple[int, int, int]

HEADER_BYTES = PART_HEADER_BYTES

# What a part holds at most: 36 MiB while it is collected, and as much when it is made.
RECORDS_MAX = 1 << 20
HEAP_BYTES_MAX = 16 << 20

SELECTED, LEFT_OUT, BEHIND, WRONG = range(4)

MAGIC = b"GWKEYS1\0"

_HEADER = struct.Struct("<8sQqqqqq7IqI")
assert _HEADER.size == PART_HEADER_BYTES

cdef enum:
    RECORD_LENGTH_BYTES_MAX = 5


# -- the header of a part ---------------------------------------------------------------------------------------------

class Part(NamedTuple):
    """The header of a part."""

    part_bytes: int
    segment_base: int
    log_from: int
    log_to: int
    offset_from: int
    offset_to: int
    first_crc: int
    last_crc: int
    keys: int
    records: int
    blocks: int
    index_bytes: int
    index_crc: int
    last_batch: int


def parse_part(data):
    if len(data) < PART_HEADER_BYTES:
        return None
    magic, *fields, crc = _HEADER.unpack_from(data)
    part = Part(*fields)
    if magic != MAGIC or crc != crc32c(data[:AT_PART_CRC]):
        return None
    if part.blocks * BLOCK_ENTRY_BYTES > part.index_bytes or part.index_bytes + PART_HEADER_BYTES > part.part_bytes:
        return None
    return part


# -- building ---------------------------------------------------------------------------------------------------------

cdef uint64_t hash_of(const uint8_t* key, size_t length, uint64_t seed) noexcept nogil:
    """Eight bytes at a time, seeded. Good enough for a table that nobody outside can probe."""
    cdef uint64_t h = seed ^ (<uint64_t>length * 0x9E3779B97F4A7C15ull)
    cdef uint64_t word
    while length >= 8:
        memcpy(&word, key, 8)
        h = (h ^ word) * 0xD6E8FEB86659FD93ull
        h ^= h >> 32
        key += 8
        length -= 8
    if length:
        word = 0
        memcpy(&word, key, length)
        h = (h ^ word) * 0xD6E8FEB86659FD93ull
        h ^= h >> 32
    return h ^ (h >> 29)


cdef int compare_keys(const void* left, const void* right) noexcept nogil:
    cdef const Sorted* one = <const Sorted*>left
    cdef const Sorted* other = <const Sorted*>right
    cdef uint32_t length = one.length if one.length < other.length else other.length
    cdef int order = memcmp(one.data, other.data, length) if length else 0
    if order:
        return order
    return (one.length > other.length) - (one.length < other.length)


cdef void* grown(void* data, size_t* room, size_t wanted, size_t item_bytes) except NULL nogil:
    """The same with room for `wanted` items at least, doubling."""
    cdef size_t more = room[0] if room[0] else 1024
    cdef void* made
    while more < wanted:
        more *= 2
    made = realloc(data, more * item_bytes)
    if made is NULL:
        with gil:
            raise MemoryError
    room[0] = more
    return made


cdef class Builder:
    def __cinit__(self, int64_t segment_base, size_t records_max=RECORDS_MAX, size_t heap_bytes_max=HEAP_BYTES_MAX):
        self.segment_base = segment_base
        self.records_max = records_max
        self.heap_max = heap_bytes_max
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.clear()

    def __dealloc__(self):
        free(self.postings)
        free(self.keys)
        free(self.heap)
        free(self.slots)

    cdef int clear(self) except -1:
        """Forget what was collected, and keep the memory for the next part."""
        self.posting_count = self.key_count = self.heap_used = 0
        self.log_from = -1
        self.log_to = self.offset_from = self.offset_to = 0
        if self.slots is not NULL:
            memset(self.slots, 0, self.slot_count * sizeof(uint32_t))
        return 0

    @property
    def full(self):
        return self.posting_count >= self.records_max or self.heap_used >= self.heap_max

    @property
    def empty(self):
        return self.log_from < 0

    def add(self, const uint8_t[::1] data, Py_ssize_t stop, int64_t origin):
        cdef const uint8_t* begin
        cdef Py_ssize_t at = 0
        if not 0 <= stop <= data.shape[0]:
            raise ValueError(f"{stop} is outside the buffer of {data.shape[0]} bytes")
        if stop == 0:
            return 0
        begin = &data[0]
        with nogil:
            while stop - at >= BATCH_HEADER_BYTES and self.posting_count < self.records_max \
                    and self.heap_used < self.heap_max and self.take(begin + at, stop - at, origin + at):
                at = <Py_ssize_t>(self.log_to - origin)
        return at

    cdef int take(self, const uint8_t* data, size_t room, int64_t position) except -1 nogil:
        """One batch; 0 if it cannot be indexed."""
        cdef size_t length = BATCH_LENGTH_PREFIX_BYTES + get_be32(data + AT_LENGTH)
        cdef int attributes = get_be16(data + AT_ATTRIBUTES)
        cdef int64_t log_from = position if self.log_from < 0 else self.log_from
        if length > room or attributes & (ATTRIBUTE_CODEC | ATTRIBUTE_CONTROL | ATTRIBUTE_LOG_APPEND_TIME):
            return 0
        if position - log_from > <int64_t>INT32_MAX or self.take_batch(data, length, position - log_from) == 0:
            return 0
        if self.log_from < 0:
            self.log_from = position
            self.offset_from = <int64_t>get_be64(data + AT_BASE_OFFSET)
            self.first_crc = get_be32(data + AT_CRC)
        self.last_batch = position
        self.last_crc = get_be32(data + AT_CRC)
        self.log_to = position + <int64_t>length
        self.offset_to = <int64_t>get_be64(data + AT_BASE_OFFSET) + <int32_t>get_be32(data + AT_LAST_OFFSET_DELTA) + 1
        return 1

    cdef int take_batch(self, const uint8_t* data, size_t length, int64_t from_start) except -1 nogil:
        """1; 0, and nothing is taken, if its records are not what its header says. from_start: of the part's log."""
        cdef const uint8_t* at = data + AT_RECORDS
        cdef const uint8_t* end = data + length
        cdef const uint8_t* start
        cdef size_t kept = self.posting_count
        cdef uint32_t header_crc = crc32c_update(0, data, BATCH_HEADER_BYTES)
        cdef RecordView record
        cdef Posting* posting
        cdef int64_t number
        while at < end:
            start = at
            at = record_parse(at, end, &record)
            if at is NULL:
                while self.posting_count > kept:        # the keys may stay: one without postings is left out
                    self.posting_count -= 1
                    self.keys[self.postings[self.posting_count].key].count -= 1
                return 0
            if record.key_bytes < 0:
                continue                                # no filter matches it
            number = self.number_of(record.key, <uint32_t>record.key_bytes)
            if self.posting_count == self.posting_room:
                self.postings = <Posting*>grown(
                    self.postings, &self.posting_room, self.posting_count + 1, sizeof(Posting)
                )
            posting = &self.postings[self.posting_count]
            posting.key = <uint32_t>number
            posting.batch = <uint32_t>from_start
            posting.record = <uint32_t>(start - data)
            posting.crc = crc32c_update(header_crc, start, at - start)
            self.posting_count += 1
            self.keys[number].count += 1
        return 1

    cdef int64_t number_of(self, const uint8_t* key, uint32_t length) except -1 nogil:
        """The key's number; a new one for a key that was not there."""
        cdef uint64_t h = hash_of(key, length, self.seed)
        cdef size_t slot
        cdef Key* known
        if self.key_count * 2 >= self.slot_count:
            self.grow_slots()
        slot = h & (self.slot_count - 1)
        while self.slots[slot]:
            known = &self.keys[self.slots[slot] - 1]
            if known.hash == h and known.length == length and memcmp(self.heap + known.start, key, length) == 0:
                return self.slots[slot] - 1
            slot = (slot + 1) & (self.slot_count - 1)
        if self.key_count == self.key_room:
            self.keys = <Key*>grown(self.keys, &self.key_room, self.key_count + 1, sizeof(Key))
        if self.heap_used + length > self.heap_room or self.heap is NULL:
            self.heap = <uint8_t*>grown(self.heap, &self.heap_room, self.heap_used + length, 1)
        known = &self.keys[self.key_count]
        known.hash = h
        known.start = self.heap_used
        known.length = length
        known.count = 0
        memcpy(self.heap + self.heap_used, key, length)
        self.heap_used += length
        self.key_count += 1
        self.slots[slot] = <uint32_t>self.key_count
        return <int64_t>self.key_count - 1

    cdef int grow_slots(self) except -1 nogil:
        cdef size_t count = self.slot_count * 2 if self.slot_count else 4096
        cdef uint32_t* slots = <uint32_t*>calloc(count, sizeof(uint32_t))
        cdef size_t number, slot
        if slots is NULL:
            with gil:
                raise MemoryError
        for number in range(self.key_count):
            slot = self.keys[number].hash & (count - 1)
            while slots[slot]:
                slot = (slot + 1) & (count - 1)
            slots[slot] = <uint32_t>number + 1
        free(self.slots)
        self.slots = slots
        self.slot_count = count
        return 0

    def finish(self):
        if self.log_from < 0:
            raise ValueError("no batch was added to this part")
        part = self.encode()
        self.clear()
        return part

    cdef object encode(self):
        cdef Sorted* order = NULL
        cdef uint32_t* by_key = NULL
        cdef uint64_t* starts = NULL
        cdef uint8_t* work = NULL
        cdef uint8_t* entries = NULL
        cdef Encoding made
        cdef uint8_t* to
        cdef object part
        memset(&made, 0, sizeof(made))
        try:
            order = <Sorted*>calloc(self.key_count + 1, sizeof(Sorted))
            by_key = <uint32_t*>calloc(self.posting_count + 1, sizeof(uint32_t))
            starts = <uint64_t*>calloc(self.key_count + 1, sizeof(uint64_t))
            # Blocks: each key with its length and three numbers. Entries: one for each block, and its first key.
            work = <uint8_t*>calloc(1, self.heap_used + self.key_count * (5 + 5 + 5 + 10) + 1)
            entries = <uint8_t*>calloc(1, self.heap_used + (self.key_count + 1) * BLOCK_ENTRY_BYTES + 1)
            if order is NULL or by_key is NULL or starts is NULL or work is NULL or entries is NULL:
                raise MemoryError
            made.blocks, made.entries = work, entries
            with nogil:
                sort_postings(self.keys, self.key_count, self.postings, self.posting_count, starts, by_key)
                sort_keys(self.keys, self.key_count, self.heap, order)
                layout(self.keys, self.key_count, self.postings, starts, by_key, order, &made)
            part = PyBytes_FromStringAndSize(NULL, made.part_bytes)
            to = <uint8_t*>PyBytes_AS_STRING(part)
            with nogil:
                write_part(
                    to, self, self.keys, self.key_count, self.postings, starts, by_key,
                    order, &made,
                )
            return part
        finally:
            free(order)
            free(by_key)
            free(starts)
            free(work)
            free(entries)


cdef struct Encoding:
    uint8_t* blocks                 # all blocks, one after the other
    size_t blocks_bytes
    uint8_t* entries                # the blocks' entries; positions are still relative to the first block
    size_t block_count
    uint8_t* first_keys             # behind the entries, once their number is known
    size_t first_keys_bytes
    size_t postings_bytes
    size_t key_count                # those that have postings
    size_t part_bytes


cdef void sort_postings(
    const Key* keys, size_t key_count, const Posting* postings, size_t count, uint64_t* starts, uint32_t* by_key
) noexcept nogil:
    """Numbers of postings, by key, in the order of the log: counting sort. starts[k] to starts[k] + count are key k's."""
    cdef size_t at, total = 0
    for at in range(key_count):
        starts[at] = total
        total += keys[at].count
    for at in range(count):
        by_key[starts[postings[at].key]] = <uint32_t>at
        starts[postings[at].key] += 1
    for at in range(key_count):
        starts[at] -= keys[at].count


cdef void sort_keys(const Key* keys, size_t count, const uint8_t* heap, Sorted* order) noexcept nogil:
    cdef size_t at
    for at in range(count):
        order[at].data = heap + keys[at].start
        order[at].length = keys[at].length
        order[at].number = <uint32_t>at
    qsort(order, count, sizeof(Sorted), &compare_keys)


cdef size_t postings_bytes_of(
    const Posting* postings, const uint32_t* by_key, uint64_t start, uint32_t count
) noexcept nogil:
    """With the CRC-32C in front."""
    cdef size_t total = 4
    cdef uint32_t previous = 0
    cdef uint64_t at
    cdef const Posting* posting
    for at in range(start, start + count):
        posting = &postings[by_key[at]]
        total += uvarint_bytes(posting.batch - previous) + uvarint_bytes(posting.record) + 4
        previous = posting.batch
    return total


cdef void close_block(Encoding* made, size_t start) noexcept nogil:
    """The last block's length and CRC."""
    cdef uint8_t* entry = made.entries + (made.block_count - 1) * BLOCK_ENTRY_BYTES
    put_le32(entry + 4, <uint32_t>(made.blocks_bytes - start))
    put_le32(entry + 8, crc32c_update(0, made.blocks + start, made.blocks_bytes - start))


cdef void layout(
    const Key* keys, size_t key_count, const Posting* postings, const uint64_t* starts, const uint32_t* by_key,
    const Sorted* order, Encoding* made,
) noexcept nogil:
    """Write the blocks; their entries, with positions relative to the first; and find how long everything is.

    First keys are put behind the room for as many entries as there could be, and moved when the part is written.
    """
    cdef size_t at, size, block_start = 0
    cdef uint8_t* to
    cdef uint8_t* entry
    cdef const Key* key
    made.first_keys = made.entries + (key_count + 1) * BLOCK_ENTRY_BYTES
    for at in range(key_count):
        key = &keys[order[at].number]
        if key.count == 0:
            continue
        if made.block_count == 0 or made.blocks_bytes - block_start >= BLOCK_BYTES:
            if made.block_count:
                close_block(made, block_start)
            block_start = made.blocks_bytes
            memcpy(made.first_keys + made.first_keys_bytes, order[at].data, order[at].length)
            made.first_keys_bytes += order[at].length
            entry = made.entries + made.block_count * BLOCK_ENTRY_BYTES
            put_le32(entry, <uint32_t>block_start)
            put_le32(entry + 12, <uint32_t>made.first_keys_bytes)
            made.block_count += 1
        size = postings_bytes_of(postings, by_key, starts[order[at].number], key.count)
        to = put_uvarint(made.blocks + made.blocks_bytes, order[at].length)
        memcpy(to, order[at].data, order[at].length)
        to = put_uvarint(to + order[at].length, key.count)
        to = put_uvarint(to, size)
        to = put_uvarint(to, made.postings_bytes)
        made.blocks_bytes = to - made.blocks
        made.postings_bytes += size
        made.key_count += 1
    if made.block_count:
        close_block(made, block_start)
    made.part_bytes = PART_HEADER_BYTES + made.block_count * BLOCK_ENTRY_BYTES + made.first_keys_bytes \
        + made.blocks_bytes + made.postings_bytes


cdef void write_part(
    uint8_t* to, Builder b, const Key* keys, size_t key_count, const Posting* postings, const uint64_t* starts,
    const uint32_t* by_key, const Sorted* order, Encoding* made,
) noexcept nogil:
    cdef size_t index_bytes = made.block_count * BLOCK_ENTRY_BYTES + made.first_keys_bytes
    cdef size_t blocks_at = PART_HEADER_BYTES + index_bytes
    cdef uint8_t* index = to + PART_HEADER_BYTES
    cdef size_t at
    for at in range(made.block_count):
        put_le32(
            made.entries + at * BLOCK_ENTRY_BYTES,
            <uint32_t>blocks_at + get_le32(made.entries + at * BLOCK_ENTRY_BYTES),
        )
    memcpy(index, made.entries, made.block_count * BLOCK_ENTRY_BYTES)
    memcpy(index + made.block_count * BLOCK_ENTRY_BYTES, made.first_keys, made.first_keys_bytes)
    memcpy(to + blocks_at, made.blocks, made.blocks_bytes)
    write_postings(to + blocks_at + made.blocks_bytes, keys, key_count, postings, starts, by_key, order)
    memset(to, 0, PART_HEADER_BYTES)
    memcpy(to, b"GWKEYS1", 7)
    put_le64(to + AT_PART_BYTES, made.part_bytes)
    put_le64(to + AT_SEGMENT_BASE, <uint64_t>b.segment_base)
    put_le64(to + AT_LOG_FROM, <uint64_t>b.log_from)
    put_le64(to + AT_LOG_TO, <uint64_t>b.log_to)
    put_le64(to + AT_OFFSET_FROM, <uint64_t>b.offset_from)
    put_le64(to + AT_OFFSET_TO, <uint64_t>b.offset_to)
    put_le32(to + AT_FIRST_CRC, b.first_crc)
    put_le32(to + AT_LAST_CRC, b.last_crc)
    put_le32(to + AT_KEYS, <uint32_t>made.key_count)
    put_le32(to + AT_POSTINGS, <uint32_t>b.posting_count)
    put_le32(to + AT_BLOCKS, <uint32_t>made.block_count)
    put_le32(to + AT_INDEX_BYTES, <uint32_t>index_bytes)
    put_le32(to + AT_INDEX_CRC, crc32c_update(0, index, index_bytes))
    put_le64(to + AT_LAST_BATCH, <uint64_t>b.last_batch)
    put_le32(to + AT_PART_CRC, crc32c_update(0, to, AT_PART_CRC))


cdef void write_postings(
    uint8_t* to, const Key* keys, size_t key_count, const Posting* postings, const uint64_t* starts,
    const uint32_t* by_key, const Sorted* order,
) noexcept nogil:
    """In the order of the keys, as `layout` has counted them."""
    cdef size_t at
    cdef uint64_t number, start
    cdef uint32_t previous
    cdef uint8_t* begin
    cdef const Posting* posting
    for at in range(key_count):
        if keys[order[at].number].count == 0:
            continue
        begin = to
        to += 4
        previous = 0
        start = starts[order[at].number]
        for number in range(start, start + keys[order[at].number].count):
            posting = &postings[by_key[number]]
            to = put_uvarint(to, posting.batch - previous)
            to = put_uvarint(to, posting.record)
            put_le32(to, posting.crc)
            to += 4
            previous = posting.batch
        put_le32(begin, crc32c_update(0, begin + 4, to - begin - 4))


# -- looking up -------------------------------------------------------------------------------------------------------

def find_block(bytes index not None, Py_ssize_t blocks, bytes key not None):
    cdef const uint8_t* entries = <const uint8_t*>PyBytes_AS_STRING(index)
    cdef const uint8_t* heap = entries + blocks * BLOCK_ENTRY_BYTES
    cdef size_t heap_bytes
    cdef Py_ssize_t low = 0, high = blocks, middle
    cdef Sorted wanted, first
    cdef uint32_t start, end
    if blocks < 0 or blocks * BLOCK_ENTRY_BYTES > len(index):
        raise ValueError(f"{len(index)} bytes are no index of {blocks} blocks")
    heap_bytes = len(index) - blocks * BLOCK_ENTRY_BYTES
    wanted.data = <const uint8_t*>PyBytes_AS_STRING(key)
    wanted.length = <uint32_t>len(key)
    while low < high:
        middle = (low + high) // 2
        start = get_le32(entries + middle * BLOCK_ENTRY_BYTES - 4) if middle else 0
        end = get_le32(entries + middle * BLOCK_ENTRY_BYTES + 12)
        if start > end or end > heap_bytes:
            raise ValueError(f"the first key of block {middle} is outside the index")
        first.data = heap + start
        first.length = end - start
        if compare_keys(&first, &wanted) <= 0:
            low = middle + 1
        else:
            high = middle
    return max(low - 1, 0)


def scan_block(bytes block not None, bytes prefix not None, bint exact, KeyFilter keys not None, dict found not None):
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(block)
    cdef const uint8_t* end = at + len(block)
    cdef const uint8_t* wanted = <const uint8_t*>PyBytes_AS_STRING(prefix)
    cdef size_t wanted_bytes = len(prefix), common
    cdef const uint8_t* key
    cdef uint64_t length, count, size, position
    cdef int order
    while at < end:
        at = get_uvarint(at, end, &length)
        if at is NULL or length > <uint64_t>(end - at):
            raise ValueError("a block of the key index is damaged")
        key = at
        at = get_uvarint(at + length, end, &count)
        if at is not NULL:
            at = get_uvarint(at, end, &size)
        if at is not NULL:
            at = get_uvarint(at, end, &position)
        if at is NULL:
            raise ValueError("a block of the key index is damaged")
        common = wanted_bytes if wanted_bytes < length else length
        order = memcmp(key, wanted, common) if common else 0
        if order > 0 or (exact and order == 0 and length > wanted_bytes):
            return False
        if order == 0 and length >= wanted_bytes and length < 0x7fffffff and keys.accepts(key, <int32_t>length):
            found[position] = (size, count)
    return True


def decode_postings(bytes data not None, int64_t log_from, list places not None):
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef const uint8_t* end = at + len(data)
    cdef int64_t previous = log_from
    cdef uint64_t delta, record
    if end - at < 4 or crc32c_update(0, at + 4, end - at - 4) != get_le32(at):
        raise ValueError("the postings of a key have a wrong CRC-32C")
    at += 4
    while at < end:
        at = get_uvarint(at, end, &delta)
        if at is not NULL:
            at = get_uvarint(at, end, &record)
        if at is NULL or end - at < 4 or delta > UINT32_MAX or record > UINT32_MAX:
            raise ValueError("the postings of a key are damaged")
        previous += <int64_t>delta
        places.append((previous + <int64_t>record, previous, get_le32(at)))
        at += 4


def decode_record(
    bytes header not None, const uint8_t[::1] data, Py_ssize_t start, tuple place not None,
    Selection selection not None, list rows not None,
):
    cdef const uint8_t* head = <const uint8_t*>PyBytes_AS_STRING(header)
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef const uint8_t* next_record
    cdef uint64_t raw
    cdef int64_t length, offset, timestamp, base_offset, base_timestamp
    cdef uint32_t crc = place[2]
    cdef RecordView record
    cdef tuple headers
    if len(header) < BATCH_HEADER_BYTES or head[AT_MAGIC] != BATCH_MAGIC or not 0 <= start <= data.shape[0]:
        return WRONG, 0
    base_offset = <int64_t>get_be64(head + AT_BASE_OFFSET)
    base_timestamp = <int64_t>get_be64(head + AT_BASE_TIMESTAMP)
    if start == data.shape[0]:
        return LEFT_OUT, RECORD_LENGTH_BYTES_MAX
    at = &data[start]
    end = at + (data.shape[0] - start)
    next_record = get_uvarint(at, end, &raw)
    if next_record is NULL:
        return (WRONG, 0) if end - at >= RECORD_LENGTH_BYTES_MAX else (LEFT_OUT, RECORD_LENGTH_BYTES_MAX)
    length = unzigzag(raw)
    if length < 1 or length > <int64_t>get_be32(head + AT_LENGTH):
        return WRONG, 0
    length += next_record - at
    if length > end - at:
        return LEFT_OUT, length
    if crc32c_update(crc32c_update(0, head, BATCH_HEADER_BYTES), at, length) != crc:
        return WRONG, 0
    # From here on it is what was indexed. What it says of itself is still looked at before it is used.
    if record_parse(at, at + length, &record) != at + length or record.key_bytes < 0:
        return WRONG, 0
    if base_offset >= selection.offset_to \
            or (base_timestamp >= selection.time_stop and selection.time_stop != INT64_MAX):
        return BEHIND, 0
    offset = base_offset + record.offset_delta
    timestamp = <int64_t>(<uint64_t>base_timestamp + record.timestamp_delta)
    if offset < selection.offset_from or offset >= selection.offset_to or timestamp < selection.time_from:
        return LEFT_OUT, 0
    if timestamp >= selection.time_to and selection.time_to != INT64_MAX:
        return LEFT_OUT, 0
    if selection.keys is not None and not selection.keys.accepts(record.key, record.key_bytes):
        return WRONG, 0
    headers = decode_headers(&record)
    if headers is None:
        return WRONG, 0
    rows.append((
        offset, timestamp, PyBytes_FromStringAndSize(<const char*>record.key, record.key_bytes),
        None if record.value_bytes < 0 else PyBytes_FromStringAndSize(<const char*>record.value, record.value_bytes),
        headers,
    ))
    return SELECTED, 0
