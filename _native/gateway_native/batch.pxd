"""Kafka's record batch, version 2: the only form in which records lie on disk. gateway/log/FORMAT.md is the specification.

Source: Apache Kafka, clients/src/main/java/org/apache/kafka/common/record/DefaultRecordBatch.java and DefaultRecord.java.
Everything is big-endian; a varint is zig-zag coded, then base 128, least significant group first.

The functions here need no GIL and no Python object, keep nothing, and allocate nothing: the caller owns the buffer, and
one BatchBuilder belongs to one thread at a time.
"""

from libc.stdint cimport INT32_MAX, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "wire.h" nogil:
    void put_be16(uint8_t* to, uint16_t v)
    void put_be32(uint8_t* to, uint32_t v)
    void put_be64(uint8_t* to, uint64_t v)
    uint16_t get_be16(const uint8_t* at)
    uint32_t get_be32(const uint8_t* at)
    uint64_t get_be64(const uint8_t* at)
    size_t uvarint_bytes(uint64_t v)                    # bytes of v in base 128: 1 to 10

cdef enum:
    # Where the fields of the header are: each is the one before it plus that one's width.
    AT_BASE_OFFSET = 0
    AT_LENGTH = AT_BASE_OFFSET + 8                      # i32: bytes after this field
    AT_LEADER_EPOCH = AT_LENGTH + 4                     # i32: 0 here
    AT_MAGIC = AT_LEADER_EPOCH + 4                      # i8: 2
    AT_CRC = AT_MAGIC + 1                               # u32: CRC-32C of everything from AT_ATTRIBUTES on
    AT_ATTRIBUTES = AT_CRC + 4                          # i16: ATTRIBUTE_*
    AT_LAST_OFFSET_DELTA = AT_ATTRIBUTES + 2            # i32: last offset minus base offset
    AT_BASE_TIMESTAMP = AT_LAST_OFFSET_DELTA + 4        # i64: the first record's, ms since the epoch
    AT_MAX_TIMESTAMP = AT_BASE_TIMESTAMP + 8            # i64: the largest of all
    AT_PRODUCER_ID = AT_MAX_TIMESTAMP + 8               # i64: -1 here
    AT_PRODUCER_EPOCH = AT_PRODUCER_ID + 8              # i16: -1 here
    AT_BASE_SEQUENCE = AT_PRODUCER_EPOCH + 2            # i32: -1 here
    AT_COUNT = AT_BASE_SEQUENCE + 4                     # i32: records
    AT_RECORDS = AT_COUNT + 4

    BATCH_HEADER_BYTES = AT_RECORDS                     # 61
    BATCH_LENGTH_PREFIX_BYTES = AT_LENGTH + 4           # 12: what the length field does not count
    BATCH_MAGIC = 2

    ATTRIBUTE_CODEC = 7                                 # bits 0-2: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd
    ATTRIBUTE_LOG_APPEND_TIME = 8                       # bit 3: every record's time is the batch's max timestamp
    ATTRIBUTE_CONTROL = 32                              # bit 5: a transaction marker, no user's data

    # Everything in a record besides key, value and headers, at its widest: length 5, attributes 1, timestamp delta 10,
    # offset delta 5, key length 5, value length 5, header count 1.
    RECORD_OVERHEAD_BYTES_MAX = 5 + 1 + 10 + 5 + 5 + 5 + 1

cdef struct BatchBuilder:
    uint8_t* data                   # the caller's; the batch grows here
    size_t capacity                 # bytes at `data`
    size_t length                   # bytes used, header included: BATCH_HEADER_BYTES when empty
    int64_t base_offset
    int64_t base_timestamp          # the first record's; undefined while count is 0
    int64_t max_timestamp           # undefined while count is 0
    int32_t count
    int64_t offset_of_max_timestamp # first record with max_timestamp. A time index holds the batch's LAST offset instead.

# -- building -----------------------------------------------------------------------------------------------------------

# Start an empty batch. `capacity` is at least BATCH_HEADER_BYTES.
cdef inline void batch_begin(BatchBuilder* b, uint8_t* data, size_t capacity, int64_t base_offset) noexcept nogil:
    b.data = data
    b.capacity = capacity if capacity < INT32_MAX else INT32_MAX    # the length field is an i32
    b.length = BATCH_HEADER_BYTES
    b.base_offset = base_offset
    b.base_timestamp = 0
    b.max_timestamp = 0
    b.count = 0
    b.offset_of_max_timestamp = base_offset

# An upper bound of the bytes one record takes in a batch.
cdef inline size_t record_bytes_max(size_t key_bytes, size_t value_bytes, size_t headers_bytes) noexcept nogil:
    return RECORD_OVERHEAD_BYTES_MAX + key_bytes + value_bytes + headers_bytes

# Add one record; its offset is base_offset + count before the call. key_bytes or value_bytes -1 means null; `headers`
# are encoded with their count (headers_count, then put_header for each), headers_bytes 0 means there are none.
# 1: added. 0: it does not fit, and nothing changed.
cdef inline bint batch_append(
    BatchBuilder* b, int64_t timestamp_ms, const uint8_t* key, int32_t key_bytes,
    const uint8_t* value, int32_t value_bytes, const uint8_t* headers, uint32_t headers_bytes,
) noexcept nogil:
    cdef int64_t base_timestamp = b.base_timestamp if b.count else timestamp_ms
    cdef uint64_t timestamp_delta = zigzag(<int64_t>(<uint64_t>timestamp_ms - <uint64_t>base_timestamp))
    cdef uint64_t offset_delta = <uint64_t>b.count << 1
    cdef uint64_t key_length = zigzag(key_bytes)
    cdef uint64_t value_length = zigzag(value_bytes)
    cdef size_t key_copy = key_bytes if key_bytes > 0 else 0
    cdef size_t value_copy = value_bytes if value_bytes > 0 else 0
    cdef size_t body = (
        1 + uvarint_bytes(timestamp_delta) + uvarint_bytes(offset_delta)
        + uvarint_bytes(key_length) + key_copy + uvarint_bytes(value_length) + value_copy
        + (headers_bytes if headers_bytes else 1)
    )
    cdef uint8_t* to = b.data + b.length
    if b.length + uvarint_bytes(<uint64_t>body << 1) + body > b.capacity:
        return 0
    to = put_uvarint(to, <uint64_t>body << 1)
    to[0] = 0                                           # record attributes: unused in version 2
    to = put_uvarint(to + 1, timestamp_delta)
    to = put_uvarint(to, offset_delta)
    to = put_uvarint(to, key_length)
    if key_copy:
        memcpy(to, key, key_copy)
        to += key_copy
    to = put_uvarint(to, value_length)
    if value_copy:
        memcpy(to, value, value_copy)
        to += value_copy
    if headers_bytes:
        memcpy(to, headers, headers_bytes)
        to += headers_bytes
    else:
        to[0] = 0
        to += 1
    if b.count == 0:
        b.base_timestamp = timestamp_ms
    if b.count == 0 or timestamp_ms > b.max_timestamp:
        b.max_timestamp = timestamp_ms
        b.offset_of_max_timestamp = b.base_offset + b.count
    b.count += 1
    b.length = to - b.data
    return 1

# Write the header with its CRC-32C and return the batch's length in bytes. count must not be 0. Calling it again after
# more appends is fine.
cdef size_t batch_finish(BatchBuilder* b) noexcept nogil

# CRC-32C: 0 to begin with, the previous result to go on. Chosen for this processor when the module is imported.
cdef uint32_t crc32c_update(uint32_t crc, const uint8_t* data, size_t n) noexcept nogil

# -- headers ------------------------------------------------------------------------------------------------------------

# A headers block is put_headers_count, then put_header for each; the *_bytes functions give the exact room they take.

cdef inline size_t headers_count_bytes(uint32_t count) noexcept nogil:
    return uvarint_bytes(<uint64_t>count << 1)

cdef inline uint8_t* put_headers_count(uint8_t* to, uint32_t count) noexcept nogil:
    return put_uvarint(to, <uint64_t>count << 1)

cdef inline size_t header_bytes(size_t name_bytes, size_t value_bytes) noexcept nogil:
    return (
        uvarint_bytes(<uint64_t>name_bytes << 1) + name_bytes + uvarint_bytes(<uint64_t>value_bytes << 1) + value_bytes
    )

# `name` is UTF-8. Returns the address after the header.
cdef inline uint8_t* put_header(
    uint8_t* to, const char* name, size_t name_bytes, const uint8_t* value, size_t value_bytes
) noexcept nogil:
    to = put_uvarint(to, <uint64_t>name_bytes << 1)
    if name_bytes:
        memcpy(to, name, name_bytes)
    to = put_uvarint(to + name_bytes, <uint64_t>value_bytes << 1)
    if value_bytes:
        memcpy(to, value, value_bytes)
    return to + value_bytes

# -- varints ------------------------------------------------------------------------------------------------------------

cdef inline uint64_t zigzag(int64_t v) noexcept nogil:
    return (<uint64_t>v << 1) ^ <uint64_t>(v >> 63)

cdef inline int64_t unzigzag(uint64_t v) noexcept nogil:
    return <int64_t>((v >> 1) ^ (0 - (v & 1)))

# Returns the address after the number: at most 10 bytes, exactly uvarint_bytes(v).
cdef inline uint8_t* put_uvarint(uint8_t* to, uint64_t v) noexcept nogil:
    while v >= 0x80:
        to[0] = <uint8_t>(v | 0x80)
        to += 1
        v >>= 7
    to[0] = <uint8_t>v
    return to + 1

# Read a number of at most 64 bits below `end`. Returns the address after it; NULL when it does not end there or is wider.
cdef inline const uint8_t* get_uvarint(const uint8_t* at, const uint8_t* end, uint64_t* v) noexcept nogil:
    cdef uint64_t result = 0
    cdef unsigned int shift = 0
    cdef uint8_t byte
    while at < end and shift < 64:
        byte = at[0]
        at += 1
        result |= <uint64_t>(byte & 0x7f) << shift
        if byte < 0x80:
            if shift == 63 and byte > 1:
                return NULL
            v[0] = result
            return at
        shift += 7
    return NULL

# -- parsing ------------------------------------------------------------------------------------------------------------

cdef struct RecordView:             # points into the batch it was parsed from
    uint64_t timestamp_delta        # add to the base timestamp modulo 2**64
    int32_t offset_delta
    int32_t key_bytes               # -1: null
    int32_t value_bytes             # -1: null
    const uint8_t* key
    const uint8_t* value
    const uint8_t* headers          # count, then headers; not checked by record_parse
    const uint8_t* end              # of the record, and of its headers

# A zig-zag varint from -1 (null) up to what is left below `end`.
cdef inline const uint8_t* get_length(const uint8_t* at, const uint8_t* end, int32_t* length) noexcept nogil:
    cdef uint64_t raw
    cdef int64_t v
    at = get_uvarint(at, end, &raw)
    if at == NULL:
        return NULL
    v = unzigzag(raw)
    if v < -1 or v > end - at:
        return NULL
    length[0] = <int32_t>v
    return at

# Parse the record at `at`; nothing at or above `end` is read. Returns the address of the next record, NULL if damaged.
cdef inline const uint8_t* record_parse(const uint8_t* at, const uint8_t* end, RecordView* view) noexcept nogil:
    cdef uint64_t raw
    cdef int64_t delta
    cdef int32_t length
    at = get_length(at, end, &length)
    if at == NULL or length < 1:
        return NULL
    end = at + length
    view.end = end
    at = get_uvarint(at + 1, end, &raw)                 # after the record's attributes byte
    if at == NULL:
        return NULL
    view.timestamp_delta = <uint64_t>unzigzag(raw)
    at = get_uvarint(at, end, &raw)
    if at == NULL:
        return NULL
    delta = unzigzag(raw)
    if delta < 0 or delta > INT32_MAX:
        return NULL
    view.offset_delta = <int32_t>delta
    at = get_length(at, end, &view.key_bytes)
    if at == NULL:
        return NULL
    view.key = at
    if view.key_bytes > 0:
        at += view.key_bytes
    at = get_length(at, end, &view.value_bytes)
    if at == NULL:
        return NULL
    view.value = at
    if view.value_bytes > 0:
        at += view.value_bytes
    view.headers = at
    return end if at < end else NULL                    # at least the header count is there

cdef struct HeaderView:
    const uint8_t* name
    const uint8_t* value
    int32_t name_bytes
    int32_t value_bytes             # -1: null

# The first of a record's headers, and how many there are; NULL if their count is damaged.
cdef inline const uint8_t* headers_open(RecordView* view, int64_t* count) noexcept nogil:
    cdef uint64_t raw
    cdef const uint8_t* at = get_uvarint(view.headers, view.end, &raw)
    if at == NULL:
        return NULL
    count[0] = unzigzag(raw)
    return at if 0 <= count[0] <= view.end - at else NULL

# One header; the address after it, NULL if it is damaged.
cdef inline const uint8_t* header_parse(const uint8_t* at, const uint8_t* end, HeaderView* header) noexcept nogil:
    at = get_length(at, end, &header.name_bytes)
    if at == NULL or header.name_bytes < 0:
        return NULL
    header.name = at
    at = get_length(at + header.name_bytes, end, &header.value_bytes)
    if at == NULL:
        return NULL
    header.value = at
    return at + header.value_bytes if header.value_bytes > 0 else at

# What may be wrong with a batch, in the order in which it is looked for. SHORT is no damage by itself: the buffer ends
# before the batch does.
cdef enum Problem:
    GOOD = 0
    SHORT = 1                       # expected: bytes of the whole batch (or of its header); found: bytes in the buffer
    ZEROS = 2                       # the header's 61 bytes are all zero: preallocated room
    BAD_LENGTH = 3
    BAD_MAGIC = 4
    BAD_EPOCH = 5
    BAD_OFFSET = 6
    BAD_COUNT = 7
    BAD_CRC = 8
    BAD_RECORDS = 9

cdef struct BatchView:
    const uint8_t* data
    size_t length                   # whole batch, prefix included
    int64_t base_offset
    int32_t last_offset_delta
    int64_t base_timestamp
    int64_t max_timestamp
    int32_t count
    int attributes
    # What is wrong, when something is.
    int64_t expected
    int64_t found

# The header of the batch that follows offset `expected_offset` - 1 (-1: not known), of which n bytes are at `data`: a
# Problem. All is checked but the CRC, so that its records may be walked once that is right, too.
cdef int batch_next(const uint8_t* data, size_t n, int64_t expected_offset, BatchView* view) noexcept nogil
cdef int batch_check_crc(BatchView* view) noexcept nogil
# Raised for the batch at `position` of a buffer.
cdef object problem_error(int problem, Py_ssize_t position, BatchView* view)
cdef object unsupported_error(Py_ssize_t position, BatchView* view)

# The record's headers as ((name, value), ...); None if they are damaged. With the GIL.
cdef tuple decode_headers(RecordView* record)


cdef class KeyFilter:
    cdef readonly tuple filters     # as given
    cdef bytes packed               # the filters one after the other, encoded
    cdef list spans                 # (start, length, has wildcards): what `packed` holds
    cdef int count
    cdef const uint8_t** starts
    cdef size_t* lengths
    cdef uint8_t* wild
    cdef bint accepts(self, const uint8_t* key, int32_t key_bytes) noexcept nogil


cdef class Selection:
    cdef readonly int64_t offset_from
    cdef readonly int64_t offset_to
    cdef readonly int64_t time_from
    cdef readonly int64_t time_to
    cdef readonly int64_t time_stop     # a batch that begins at or after this ends the reading of a segment
    cdef readonly KeyFilter keys
