"""Record batches: build, parse, check. See batch.pxd for the format and the functions other modules use."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport INT32_MAX, INT64_MAX, INT64_MIN
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

cdef extern from "Python.h":
    object PyUnicode_DecodeUTF8(const char* text, Py_ssize_t size, const char* errors)

cdef extern from "crc32c.h" nogil:
    ctypedef uint32_t (*crc32c_function)(uint32_t, const uint8_t*, size_t)
    ctypedef struct crc32c_implementation:
        const char* name
        crc32c_function function
    void crc32c_init()
    size_t c_crc32c_implementations "crc32c_implementations"(const crc32c_implementation** list)
    uint32_t c_crc32c "crc32c"(uint32_t crc, const uint8_t* data, size_t n)

crc32c_init()

assert BATCH_HEADER_BYTES == 61 and AT_CRC == 17 and AT_ATTRIBUTES == 21

Buffer = bytes | bytearray | memoryview
Row = tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]
Batch = tuple[int, int, int, int, int, int, int]

HEADER_BYTES = BATCH_HEADER_BYTES
LENGTH_PREFIX_BYTES = BATCH_LENGTH_PREFIX_BYTES
MAGIC = BATCH_MAGIC

PROBLEM_NONE = GOOD
PROBLEM_SHORT = SHORT
PROBLEM_ZEROS = ZEROS
PROBLEM_LENGTH = BAD_LENGTH
PROBLEM_MAGIC = BAD_MAGIC
PROBLEM_EPOCH = BAD_EPOCH
PROBLEM_OFFSET = BAD_OFFSET
PROBLEM_COUNT = BAD_COUNT
PROBLEM_CRC = BAD_CRC
PROBLEM_RECORDS = BAD_RECORDS

PROBLEM_TEXTS = {
    SHORT: "the data ends before the batch does: {found} bytes of {expected}",
    ZEROS: "only zero bytes: room that was allocated and never written",
    BAD_LENGTH: "the length is {found} bytes, its bound is {expected}",
    BAD_MAGIC: "the magic byte is {found}, expected {expected}",
    BAD_EPOCH: "the leader epoch is {found}, expected {expected}",
    BAD_OFFSET: "the base offset is {found}, expected {expected}",
    BAD_COUNT: "the batch counts {found} records, its offsets say {expected}",
    BAD_CRC: "the CRC-32C is 0x{found:08x}, expected 0x{expected:08x}",
    BAD_RECORDS: "record {found} of {expected} is damaged although the CRC-32C is right",
}

CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}

# Below this a batch is summed faster than the GIL is let go and taken again under contention.
cdef enum:
    NOGIL_BYTES_MIN = 16384


class BatchError(ValueError):
    """A batch is damaged. `position` is where it starts in the buffer; `problem` is one of PROBLEM_*."""

    def __init__(self, message, position, problem, expected=0, found=0):
        super().__init__(message)
        self.position = position
        self.problem = problem
        self.expected = expected
        self.found = found


class UnsupportedBatch(ValueError):
    """A batch is sound but compressed, whose records are not parsed here. `codec` names it."""

    def __init__(self, codec, position, base_offset):
        super().__init__(
            f"the batch at base offset {base_offset} is compressed with {codec}; only uncompressed batches can be read"
        )
        self.codec = codec
        self.position = position
        self.base_offset = base_offset


# -- CRC-32C --------------------------------------------------------------------------------------------------------------

cdef uint32_t crc32c_update(uint32_t crc, const uint8_t* data, size_t n) noexcept nogil:
    return c_crc32c(crc, data, n)


def crc32c_implementations():
    cdef const crc32c_implementation* implementations
    cdef size_t n = c_crc32c_implementations(&implementations)
    return tuple([implementations[i].name.decode() for i in range(n)])


def crc32c(const uint8_t[::1] data, uint32_t value=0, str implementation="auto"):
    cdef const crc32c_implementation* implementations
    cdef size_t n = c_crc32c_implementations(&implementations)
    cdef size_t i
    cdef crc32c_function function = c_crc32c
    if implementation != "auto":
        for i in range(n):
            if implementations[i].name.decode() == implementation:
                function = implementations[i].function
                break
        else:
            raise ValueError(
                f"no CRC-32C implementation {implementation!r} on this processor; there are: "
                + ", ".join(crc32c_implementations())
            )
    if data.shape[0] == 0:
        return value
    with nogil:
        value = function(value, &data[0], data.shape[0])
    return value


# -- building -------------------------------------------------------------------------------------------------------------

cdef size_t batch_finish(BatchBuilder* b) noexcept nogil:
    cdef uint8_t* data = b.data
    put_be64(data + AT_BASE_OFFSET, <uint64_t>b.base_offset)
    put_be32(data + AT_LENGTH, <uint32_t>(b.length - BATCH_LENGTH_PREFIX_BYTES))
    put_be32(data + AT_LEADER_EPOCH, 0)
    data[AT_MAGIC] = BATCH_MAGIC
    put_be16(data + AT_ATTRIBUTES, 0)
    put_be32(data + AT_LAST_OFFSET_DELTA, <uint32_t>(b.count - 1))
    put_be64(data + AT_BASE_TIMESTAMP, <uint64_t>b.base_timestamp)
    put_be64(data + AT_MAX_TIMESTAMP, <uint64_t>b.max_timestamp)
    put_be64(data + AT_PRODUCER_ID, <uint64_t>-1)
    put_be16(data + AT_PRODUCER_EPOCH, <uint16_t>-1)
    put_be32(data + AT_BASE_SEQUENCE, <uint32_t>-1)
    put_be32(data + AT_COUNT, <uint32_t>b.count)
    put_be32(data + AT_CRC, c_crc32c(0, data + AT_ATTRIBUTES, b.length - AT_ATTRIBUTES))
    return b.length


cdef inline const uint8_t* start_of(bytes data) noexcept:
    """The first byte, valid as long as the object; NULL for None."""
    if data is None:
        return NULL
    return <const uint8_t*><const char*>data


def encode_headers(headers):
    cdef list pairs = [(pair[0].encode("utf-8", "surrogateescape"), pair[1]) for pair in headers]
    cdef size_t size = headers_count_bytes(<uint32_t>len(pairs))
    cdef bytes name, value
    cdef bytes result
    cdef uint8_t* to
    if not pairs:
        return b""
    for name, value in pairs:
        size += header_bytes(len(name), len(value))
    result = PyBytes_FromStringAndSize(NULL, size)
    to = put_headers_count(<uint8_t*><char*>result, <uint32_t>len(pairs))
    for name, value in pairs:
        to = put_header(to, <const char*>name, len(name), start_of(value), len(value))
    return result


def encode(records, int64_t base_offset=0):
    cdef list rows = [(*record[:3], encode_headers(record[3])) for record in records]
    cdef size_t capacity = BATCH_HEADER_BYTES
    cdef bytes key, value, headers
    cdef int64_t timestamp
    cdef bint fits
    cdef BatchBuilder builder
    cdef uint8_t* data
    if not rows:
        raise ValueError("a batch holds at least one record")
    for _, key, value, headers in rows:
        capacity += record_bytes_max(
            0 if key is None else len(key), 0 if value is None else len(value), len(headers)
        )
    if capacity > INT32_MAX:
        raise ValueError(f"{capacity} bytes are more than a batch can hold ({INT32_MAX})")
    data = <uint8_t*>malloc(capacity)
    if data == NULL:
        raise MemoryError
    try:
        batch_begin(&builder, data, capacity, base_offset)
        for timestamp, key, value, headers in rows:
            fits = batch_append(
                &builder, timestamp, start_of(key), -1 if key is None else <int32_t>len(key),
                start_of(value), -1 if value is None else <int32_t>len(value),
                start_of(headers), <uint32_t>len(headers),
            )
            assert fits, "record_bytes_max was too small"
        return PyBytes_FromStringAndSize(<char*>data, batch_finish(&builder))
    finally:
        free(data)


# -- parsing --------------------------------------------------------------------------------------------------------------

cdef bint headers_sound(RecordView* view) noexcept nogil:
    cdef int64_t count
    cdef HeaderView header
    cdef const uint8_t* at = headers_open(view, &count)
    while at != NULL and count > 0:
        at = header_parse(at, view.end, &header)
        count -= 1
    return at == view.end


cdef int batch_view(const uint8_t* data, size_t n, BatchView* view) noexcept nogil:
    """Read the header of the batch at `data`, of which n bytes are there. Checks what is needed to walk on safely."""
    cdef int64_t length
    view.data = data
    view.expected = BATCH_HEADER_BYTES
    view.found = <int64_t>n
    if n < BATCH_HEADER_BYTES:
        return SHORT
    length = <int32_t>get_be32(data + AT_LENGTH)
    if length < BATCH_HEADER_BYTES - BATCH_LENGTH_PREFIX_BYTES:
        view.expected = BATCH_HEADER_BYTES - BATCH_LENGTH_PREFIX_BYTES
        view.found = length
        return ZEROS if length == 0 and all_zero(data, BATCH_HEADER_BYTES) else BAD_LENGTH
    if data[AT_MAGIC] != BATCH_MAGIC:
        view.expected = BATCH_MAGIC
        view.found = data[AT_MAGIC]
        return BAD_MAGIC
    view.length = <size_t>(length + BATCH_LENGTH_PREFIX_BYTES)
    view.base_offset = <int64_t>get_be64(data + AT_BASE_OFFSET)
    view.last_offset_delta = <int32_t>get_be32(data + AT_LAST_OFFSET_DELTA)
    view.base_timestamp = <int64_t>get_be64(data + AT_BASE_TIMESTAMP)
    view.max_timestamp = <int64_t>get_be64(data + AT_MAX_TIMESTAMP)
    view.count = <int32_t>get_be32(data + AT_COUNT)
    view.attributes = get_be16(data + AT_ATTRIBUTES)
    if view.length > n:
        view.expected = <int64_t>view.length
        return SHORT
    return GOOD


cdef bint all_zero(const uint8_t* data, size_t n) noexcept nogil:
    return data[0] == 0 and (n == 1 or memcmp(data, data + 1, n - 1) == 0)


cdef int batch_check_crc(BatchView* view) noexcept nogil:
    view.expected = c_crc32c(0, view.data + AT_ATTRIBUTES, view.length - AT_ATTRIBUTES)
    view.found = get_be32(view.data + AT_CRC)
    return GOOD if view.expected == view.found else BAD_CRC


cdef int batch_check_ranges(BatchView* view) noexcept nogil:
    """What is covered by no CRC, or would overflow a calculation: a base offset or a count below zero."""
    view.expected = 0
    view.found = view.base_offset
    if view.base_offset < 0 or view.last_offset_delta < 0 or view.base_offset > INT64_MAX - view.last_offset_delta - 1:
        return BAD_OFFSET
    view.expected = <int64_t>view.last_offset_delta + 1
    view.found = view.count
    return GOOD if 0 <= view.count <= view.expected else BAD_COUNT


cdef int batch_next(const uint8_t* data, size_t n, int64_t expected_offset, BatchView* view) noexcept nogil:
    cdef int problem = batch_view(data, n, view)
    if problem != GOOD:
        return problem
    if expected_offset >= 0 and view.base_offset != expected_offset:
        view.expected = expected_offset
        view.found = view.base_offset
        return BAD_OFFSET
    view.expected = 0
    view.found = <int32_t>get_be32(data + AT_LEADER_EPOCH)
    if view.found != 0:
        return BAD_EPOCH
    return batch_check_ranges(view)


cdef int batch_check_records(BatchView* view) noexcept nogil:
    """Parse every record of an uncompressed batch; `found` is the index of the first damaged one."""
    cdef const uint8_t* at = view.data + AT_RECORDS
    cdef const uint8_t* end = view.data + view.length
    cdef RecordView record
    cdef int32_t last = -1
    view.expected = view.count
    view.found = 0
    while view.found < view.count:
        at = record_parse(at, end, &record)
        if at == NULL or not headers_sound(&record) or record.offset_delta <= last \
                or record.offset_delta > view.last_offset_delta:
            return BAD_RECORDS
        last = record.offset_delta
        view.found += 1
    return GOOD if at == end else BAD_RECORDS


cdef object problem_error(int problem, Py_ssize_t position, BatchView* view):
    text = PROBLEM_TEXTS[problem].format(expected=view.expected, found=view.found)
    return BatchError(f"damaged batch at byte {position}: {text}", position, problem, view.expected, view.found)


cdef object unsupported_error(Py_ssize_t position, BatchView* view):
    codec = view.attributes & ATTRIBUTE_CODEC
    return UnsupportedBatch(CODECS.get(codec, f"unknown codec {codec}"), position, view.base_offset)


def scan(
    const uint8_t[::1] buffer, Py_ssize_t position=0, *, int64_t origin=0, int64_t expected_offset=-1,
    bint check_crc=True, bint check_records=False,
):
    cdef Py_ssize_t n = buffer.shape[0]
    cdef Py_ssize_t start = position
    cdef Py_ssize_t at = position
    cdef const uint8_t* data
    cdef BatchView view
    cdef int problem = GOOD
    if not 0 <= position <= n:
        raise ValueError(f"position {position} is outside the buffer of {n} bytes")
    if n == position:
        return [], origin + position, GOOD, 0, 0
    data = &buffer[0]
    with nogil:
        while at < n:
            problem = scan_one(data + at, n - at, expected_offset, check_crc, check_records, &view)
            if problem != GOOD:
                break
            expected_offset = view.base_offset + view.last_offset_delta + 1
            at += <Py_ssize_t>view.length
    cdef object expected = view.expected if problem else 0
    cdef object found = view.found if problem else 0
    cdef list batches = []
    while start < at:
        batch_view(data + start, n - start, &view)
        batches.append((
            origin + start, view.length, view.base_offset, view.base_offset + view.last_offset_delta,
            view.base_timestamp, view.max_timestamp, view.count,
        ))
        start += <Py_ssize_t>view.length
    return batches, origin + at, problem, expected, found


cdef int scan_one(
    const uint8_t* data, size_t n, int64_t expected_offset, bint check_crc, bint check_records, BatchView* view
) noexcept nogil:
    cdef int problem = batch_view(data, n, view)
    if problem != GOOD:
        return problem
    view.expected = 0
    view.found = <int32_t>get_be32(data + AT_LEADER_EPOCH)
    if view.found != 0:
        return BAD_EPOCH
    problem = batch_check_ranges(view)
    if problem != GOOD:
        return problem
    if expected_offset >= 0 and view.base_offset != expected_offset:
        view.expected = expected_offset
        view.found = view.base_offset
        return BAD_OFFSET
    if view.count != <int64_t>view.last_offset_delta + 1:
        return BAD_COUNT                                # expected and found are set by batch_check_ranges
    if check_crc:
        problem = batch_check_crc(view)
        if problem != GOOD:
            return problem
    if check_records and not view.attributes & ATTRIBUTE_CODEC:
        return batch_check_records(view)
    return GOOD


def find(const uint8_t[::1] buffer, Py_ssize_t position, int64_t offset_min, int64_t offset_max):
    cdef Py_ssize_t n = buffer.shape[0]
    cdef Py_ssize_t at = position
    cdef const uint8_t* data
    cdef BatchView view
    cdef int problem = BAD_MAGIC
    if not 0 <= position <= n:
        raise ValueError(f"position {position} is outside the buffer of {n} bytes")
    if n - position < BATCH_HEADER_BYTES:
        return position, BATCH_HEADER_BYTES
    data = &buffer[0]
    with nogil:
        while n - at >= BATCH_HEADER_BYTES:
            # The cheap test first: almost no position has this byte here and zeros for the epoch.
            if data[at + AT_MAGIC] == BATCH_MAGIC and get_be32(data + at + AT_LEADER_EPOCH) == 0:
                problem = find_one(data + at, n - at, offset_min, offset_max, &view)
                if problem == GOOD or problem == SHORT:
                    break
            at += 1
    if problem == GOOD and n - at >= BATCH_HEADER_BYTES:
        return at, 0
    return at, view.expected if problem == SHORT and n - at >= BATCH_HEADER_BYTES else BATCH_HEADER_BYTES


cdef int find_one(
    const uint8_t* data, size_t n, int64_t offset_min, int64_t offset_max, BatchView* view
) noexcept nogil:
    cdef int problem = batch_view(data, n, view)
    cdef int64_t wanted = view.expected
    if problem != GOOD and problem != SHORT:
        return problem
    if batch_check_ranges(view) != GOOD:
        return BAD_COUNT
    if view.base_offset < offset_min or view.base_offset + view.last_offset_delta >= offset_max:
        return BAD_OFFSET
    if problem == SHORT:
        view.expected = wanted
        return SHORT
    return batch_check_crc(view)


# -- key filters ------------------------------------------------------------------------------------------------------------

cdef bint topic_matches(const uint8_t* f, size_t filter_bytes, const uint8_t* key, size_t key_bytes) noexcept nogil:
    """MQTT 5.0, section 4.7: '+' is one level, '#' the parent and everything below it."""
    cdef const uint8_t* filter_end = f + filter_bytes
    cdef const uint8_t* key_end = key + key_bytes
    if key_bytes and key[0] == c'$' and (f[0] == c'+' or f[0] == c'#'):
        return False                                    # [MQTT-4.7.2-1]
    while f < filter_end:
        if f[0] == c'#':
            return True
        if f[0] == c'+':
            while key < key_end and key[0] != c'/':
                key += 1
            f += 1
        else:
            while f < filter_end and f[0] != c'/':
                if key == key_end or key[0] != f[0]:
                    return False
                f += 1
                key += 1
        # Both are at the end of a level now, or they differ.
        if f == filter_end:
            return key == key_end
        if key == key_end:
            return filter_end - f == 2 and f[1] == c'#'     # "a/#" matches "a"
        if key[0] != c'/':
            return False
        f += 1
        key += 1
    return key == key_end                               # the filter ended in '/': so must the key


cdef class KeyFilter:
    def __cinit__(self, filters):
        cdef list encoded = []
        cdef list spans = []
        cdef bytes one
        cdef size_t start = 0
        cdef int i
        if isinstance(filters, (str, bytes)):
            filters = (filters,)
        try:
            self.filters = tuple(filters)
        except TypeError:
            raise TypeError(f"keys are one filter or several, text or bytes, not {filters!r}") from None
        for given in self.filters:
            if isinstance(given, str):
                one = given.encode()
                wild = check_topic_filter(given)
            elif isinstance(given, bytes):
                one = given
                wild = False
            else:
                raise TypeError(f"a key filter is a str (MQTT topic filter) or bytes (exact key), not {given!r}")
            encoded.append(one)
            spans.append((start, len(one), wild))
            start += len(one)
        self.packed = b"".join(encoded)
        self.spans = spans
        self.count = len(spans)
        self.starts = <const uint8_t**>malloc((self.count + 1) * sizeof(void*))
        self.lengths = <size_t*>malloc((self.count + 1) * sizeof(size_t))
        self.wild = <uint8_t*>malloc(self.count + 1)
        if self.starts == NULL or self.lengths == NULL or self.wild == NULL:
            raise MemoryError
        for i in range(self.count):
            self.starts[i] = start_of(self.packed) + <size_t>spans[i][0]
            self.lengths[i] = spans[i][1]
            self.wild[i] = spans[i][2]

    def __dealloc__(self):
        free(self.starts)
        free(self.lengths)
        free(self.wild)

    cdef bint accepts(self, const uint8_t* key, int32_t key_bytes) noexcept nogil:
        cdef int i
        if key_bytes < 0:
            return False
        for i in range(self.count):
            if self.wild[i]:
                if topic_matches(self.starts[i], self.lengths[i], key, key_bytes):
                    return True
            elif self.lengths[i] == <size_t>key_bytes and memcmp(self.starts[i], key, key_bytes) == 0:
                return True
        return False

    def matches(self, key):
        cdef bytes given = key
        if given is None:
            return False
        return self.accepts(start_of(given), <int32_t>len(given))

    def __repr__(self):
        return f"KeyFilter({list(self.filters)!r})"


cdef bint check_topic_filter(str text) except -1:
    """True if it has wildcards; ValueError if one stands where MQTT allows none."""
    if not text:
        raise ValueError("a key filter is empty; leave `keys` out to get every key")
    levels = text.split("/")
    for i, level in enumerate(levels):
        if level == "#":
            if i != len(levels) - 1:
                raise ValueError(f"key filter {text!r}: '#' is allowed only as the last level")
        elif level != "+" and ("#" in level or "+" in level):
            raise ValueError(f"key filter {text!r}: '+' and '#' stand alone in their level; for an exact key pass bytes")
    return "+" in text or "#" in text


# -- decoding -----------------------------------------------------------------------------------------------------------------

cdef class Selection:
    def __init__(
        self, *, offset_from=None, offset_to=None, time_from=None, time_to=None, int64_t time_slack=0, keys=None
    ):
        self.offset_from = INT64_MIN if offset_from is None else offset_from
        self.offset_to = INT64_MAX if offset_to is None else offset_to
        self.time_from = INT64_MIN if time_from is None else time_from
        self.time_to = INT64_MAX if time_to is None else time_to
        # A batch that begins here or later ends the selection; saturating, so that "no end" stays one.
        self.time_stop = min(self.time_to + <object>time_slack, INT64_MAX)
        self.keys = keys if keys is None or isinstance(keys, KeyFilter) else KeyFilter(keys)


cdef Selection EVERYTHING = Selection()


cdef tuple decode_headers(RecordView* record):
    """The headers as ((name, value), ...); None if they are damaged."""
    cdef int64_t count
    cdef HeaderView header
    cdef list result
    cdef const uint8_t* at = headers_open(record, &count)
    if at == NULL:
        return None
    if count == 0:
        return () if at == record.end else None
    result = []
    while count > 0:
        at = header_parse(at, record.end, &header)
        if at == NULL:
            return None
        result.append((
            PyUnicode_DecodeUTF8(<const char*>header.name, header.name_bytes, "surrogateescape"),
            PyBytes_FromStringAndSize(<const char*>header.value, header.value_bytes if header.value_bytes > 0 else 0),
        ))
        count -= 1
    return tuple(result) if at == record.end else None


cdef int decode_records(BatchView* view, Selection selection, list out) except -1:
    """Append the selected records of one checked batch. GOOD or BAD_RECORDS."""
    cdef const uint8_t* at = view.data + AT_RECORDS
    cdef const uint8_t* end = view.data + view.length
    cdef KeyFilter keys = selection.keys
    cdef RecordView record
    cdef int64_t offset, timestamp
    cdef int32_t last = -1
    cdef tuple headers
    view.expected = view.count
    view.found = 0
    while view.found < view.count:
        at = record_parse(at, end, &record)
        if at == NULL or record.offset_delta <= last or record.offset_delta > view.last_offset_delta:
            return BAD_RECORDS
        last = record.offset_delta
        view.found += 1
        offset = view.base_offset + record.offset_delta
        if view.attributes & ATTRIBUTE_LOG_APPEND_TIME:
            timestamp = view.max_timestamp
        else:
            timestamp = <int64_t>(<uint64_t>view.base_timestamp + record.timestamp_delta)
        if offset < selection.offset_from or offset >= selection.offset_to or timestamp < selection.time_from:
            continue
        if timestamp >= selection.time_to and selection.time_to != INT64_MAX:   # which means no bound
            continue
        if keys is not None and not keys.accepts(record.key, record.key_bytes):
            continue
        headers = decode_headers(&record)
        if headers is None:
            view.found -= 1
            return BAD_RECORDS
        out.append((
            offset, timestamp,
            None if record.key_bytes < 0 else PyBytes_FromStringAndSize(<const char*>record.key, record.key_bytes),
            None if record.value_bytes < 0 else PyBytes_FromStringAndSize(<const char*>record.value, record.value_bytes),
            headers,
        ))
    return GOOD if at == end else BAD_RECORDS


cdef int check_crc_of(BatchView* view) noexcept:
    if view.length < NOGIL_BYTES_MIN:
        return batch_check_crc(view)
    with nogil:
        return batch_check_crc(view)


cdef int check_one(BatchView* view, bint check_crc) noexcept:
    """What must hold before any field of the header is believed."""
    cdef int problem = batch_check_ranges(view)
    return check_crc_of(view) if problem == GOOD and check_crc else problem


cdef int decode_one(BatchView* view, Py_ssize_t position, Selection selection, list out) except -1:
    """Append the selected records of a checked batch. Raises BatchError or UnsupportedBatch."""
    cdef int problem
    if view.attributes & ATTRIBUTE_CONTROL:
        return 0
    if view.attributes & ATTRIBUTE_CODEC:
        raise unsupported_error(position, view)
    problem = decode_records(view, selection, out)
    if problem != GOOD:
        raise problem_error(problem, position, view)
    return 0


def decode(const uint8_t[::1] buffer, Py_ssize_t position=0, *, bint check_crc=True, Selection selection=None):
    cdef Py_ssize_t n = buffer.shape[0]
    cdef BatchView view
    cdef list out = []
    cdef int problem = SHORT
    if not 0 <= position <= n:
        raise ValueError(f"position {position} is outside the buffer of {n} bytes")
    if position == n:
        view.expected = BATCH_HEADER_BYTES
        view.found = 0
    else:
        problem = batch_view(&buffer[position], n - position, &view)
        if problem == GOOD:
            problem = check_one(&view, check_crc)
    if problem != GOOD:
        raise problem_error(problem, position, &view)
    decode_one(&view, position, EVERYTHING if selection is None else selection, out)
    return out


def decode_chunk(
    const uint8_t[::1] buffer, Py_ssize_t position, Selection selection not None, *, int64_t expected_offset=-1,
    bint check_crc=True,
):
    cdef Py_ssize_t n = buffer.shape[0]
    cdef BatchView view
    cdef list out = []
    cdef int problem
    cdef Py_ssize_t good
    if not 0 <= position <= n:
        raise ValueError(f"position {position} is outside the buffer of {n} bytes")
    while position < n:
        problem = batch_next(&buffer[position], n - position, expected_offset, &view)
        if problem == GOOD and check_crc:
            problem = check_crc_of(&view)
        if problem == SHORT:
            return out, position, view.expected, expected_offset
        if problem != GOOD:
            if out:
                return out, position, 0, expected_offset
            raise problem_error(problem, position, &view)
        if view.base_offset >= selection.offset_to \
                or (view.base_timestamp >= selection.time_stop and selection.time_stop != INT64_MAX):
            return out, position, -1, expected_offset
        if view.max_timestamp >= selection.time_from \
                and view.base_offset + view.last_offset_delta >= selection.offset_from:
            good = len(out)
            try:
                decode_one(&view, position, selection, out)
            except (BatchError, UnsupportedBatch):
                # What came before is sound: hand it out first. The next call begins with this batch and raises.
                del out[good:]
                if out:
                    return out, position, 0, expected_offset
                raise
        expected_offset = view.base_offset + view.last_offset_delta + 1
        position += <Py_ssize_t>view.length
    return out, position, 0, expected_offset
