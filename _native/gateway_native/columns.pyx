"""Records as columns. See columns.pxd for what lies where, and columns.pyi for what it does."""

import os
from typing import Literal, Union

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memset

from gateway_native.batch cimport (
    ATTRIBUTE_CODEC,
    ATTRIBUTE_CONTROL,
    ATTRIBUTE_LOG_APPEND_TIME,
    AT_RECORDS,
    BAD_RECORDS,
    GOOD,
    HeaderView,
    KeyFilter,
    SHORT,
    batch_check_crc,
    batch_next,
    header_parse,
    headers_open,
    problem_error,
    record_parse,
    unsupported_error,
)
from gateway_native.column_rooms cimport (
    FORM_CODES,
    FORM_COPY,
    FORM_NONE,
    FORM_VIEW,
    NO_MEMORY,
    dictionary_code,
    is_text,
    put_code,
    put_copy,
    put_int64,
    put_null,
    put_view,
    room_for,
    room_free,
    room_grow,
    strings_begin,
    strings_free,
    strings_reserve,
)

from gateway_native.batch import encode_headers

cdef enum:
    COMPRESSED = -2                     # beside Problem and NO_MEMORY
    NS_PER_MS = 1_000_000
    SOURCES_MAX = 64                    # buffers that the views of one batch of columns keep
    RECORD_BYTES_MIN = 7                # each of its fields at its shortest

_FORMS = {"none": FORM_NONE, "copy": FORM_COPY, "view": FORM_VIEW, "codes": FORM_CODES}
_FORM_NAMES = {number: name for name, number in _FORMS.items()}
Form = Union[Literal["none"], Literal["copy"], Literal["view"], Literal["codes"]]


cdef class Memory:
    def __dealloc__(self):
        free(self.data)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.size, 1, flags)


cdef Memory memory_of(Room* room):
    """Its bytes as an object of their own; the room is empty then."""
    cdef Memory memory = Memory.__new__(Memory)
    if room.data == NULL and not room_grow(room, 1):
        raise MemoryError
    memory.data = room.data
    memory.size = room.used
    room.expected = room.used + (room.used >> 4)
    room.data = NULL
    room.used = room.capacity = 0
    return memory


cdef Memory validity_of(Room* nulls, int64_t rows):
    """A bit for each row, lowest first; None when no row is null."""
    cdef Memory memory
    cdef Room room = Room(NULL, 0, 0, 0)
    cdef size_t size = <size_t>(rows + 7) // 8
    cdef int64_t* each = <int64_t*>nulls.data
    cdef size_t number
    if nulls.used == 0:
        return None
    if not room_for(&room, size):
        raise MemoryError
    memset(room.data, 0xFF, size)
    for number in range(nulls.used // sizeof(int64_t)):
        room.data[each[number] >> 3] &= <uint8_t>~(1 << (each[number] & 7))
    room.used = size
    return memory_of(&room)


class Strings:
    __slots__ = ("bytes", "distinct", "ends", "form", "items", "nulls", "validity")


class Columns:
    __slots__ = (
        "header_name", "header_value", "headers", "key", "not_text", "offset", "rows", "sources", "timestamp", "value",
    )


cdef object finished(ByteColumn* s, int64_t rows):
    """The column as Python sees it; the room it had goes with it."""
    result = Strings()
    result.form = _FORM_NAMES[s.form]
    result.nulls = s.nulls.used // sizeof(int64_t)
    result.validity = validity_of(&s.nulls, rows)
    result.items = memory_of(&s.items) if s.form != FORM_NONE else None
    result.bytes = memory_of(&s.bytes) if s.form == FORM_COPY or s.form == FORM_CODES else None
    result.distinct = s.ends.used // sizeof(int64_t) - 1 if s.form == FORM_CODES else 0
    result.ends = memory_of(&s.ends) if s.form == FORM_CODES else None
    s.nulls.used = 0
    return result


# -- building ---------------------------------------------------------------------------------------------------------------

cdef inline int64_t nanoseconds(int64_t ms) noexcept nogil:
    """At the bound of what 64 bits hold if it lies beyond it."""
    if ms > INT64_MAX // NS_PER_MS:
        return INT64_MAX
    if ms < INT64_MIN // NS_PER_MS:
        return INT64_MIN
    return ms * NS_PER_MS


cdef bint has_header(RecordView* record, const uint8_t* name, size_t name_bytes) noexcept nogil:
    """Is there a header of that name? Damaged headers have none."""
    cdef int64_t count
    cdef HeaderView header
    cdef const uint8_t* at
    if record.headers[0] == 0:
        return False
    at = headers_open(record, &count)
    while at != NULL and count > 0:
        at = header_parse(at, record.end, &header)
        if at != NULL and <size_t>header.name_bytes == name_bytes and memcmp(header.name, name, name_bytes) == 0:
            return True
        count -= 1
    return False


cdef bint headers_sound(RecordView* record) noexcept nogil:
    cdef int64_t count
    cdef HeaderView header
    cdef const uint8_t* at
    if record.headers[0] == 0:
        return record.headers + 1 == record.end
    at = headers_open(record, &count)
    while at != NULL and count > 0:
        at = header_parse(at, record.end, &header)
        count -= 1
    return at == record.end


cdef int form_of(str name, bint codes) except -1:
    form = _FORMS.get(name)
    if form is None or (form == FORM_CODES and not codes):
        raise ValueError(f"a column has one of the forms {', '.join(_FORMS)} (codes: keys only), not {name!r}")
    return form


cdef class ColumnBuilder:
    def __cinit__(
        self, *, str keys="copy", str values="copy", bint headers=False, bytes without_header=None,
        int64_t rows_max=256000, int64_t bytes_max=67108864,    # with a piece's more, 8 bytes each fill a huge page
    ):
        if rows_max < 1 or bytes_max < 1:
            raise ValueError(f"a batch of columns has at least one row and one byte, not {rows_max} and {bytes_max}")
        self.key.form = form_of(keys, True)
        self.value.form = form_of(values, False)
        self.header_name.form = self.header_value.form = FORM_COPY if headers else FORM_NONE
        self.with_headers = headers
        self.without_header = without_header
        if without_header is not None:
            self.without = <const uint8_t*><const char*>without_header
            self.without_bytes = len(without_header)
        self.rows_max = rows_max
        self.bytes_max = bytes_max
        self.dictionary.seed = int.from_bytes(os.urandom(8), "little")
        self.sources = []
        self.begin()

    def __dealloc__(self):
        room_free(&self.offsets)
        room_free(&self.timestamps)
        room_free(&self.header_ends)
        room_free(&self.source_used)
        room_free(&self.dictionary.hashes)
        free(self.dictionary.slots)
        strings_free(&self.key)
        strings_free(&self.value)
        strings_free(&self.header_name)
        strings_free(&self.header_value)

    @property
    def full(self):
        cdef size_t size = self.viewed + self.key.bytes.used + self.value.bytes.used + self.header_value.bytes.used
        return self.rows >= self.rows_max or size >= self.bytes_max or len(self.sources) >= SOURCES_MAX

    def decode(
        self, const uint8_t[::1] buffer, Py_ssize_t position, Selection selection not None, *,
        int64_t expected_offset=-1,
    ):
        cdef Py_ssize_t n = buffer.shape[0]
        cdef const uint8_t* data
        cdef KeyFilter keys = selection.keys
        cdef BatchView view
        cdef Mark mark
        cdef int64_t before = self.rows
        cdef int problem = GOOD
        cdef bint over = False
        if not 0 <= position <= n:
            raise ValueError(f"position {position} is outside the buffer of {n} bytes")
        if position == n:
            return 0, position, 0, expected_offset
        data = &buffer[0]
        if self.key.form == FORM_VIEW or self.value.form == FORM_VIEW:
            self.keep_source(buffer.base)
        with nogil:
            while position < n:
                # Not a byte behind what is selected is looked at: the file may be cut there.
                if expected_offset >= selection.offset_to:
                    over = True
                    break
                problem = batch_next(data + position, n - position, expected_offset, &view)
                if problem == GOOD:
                    problem = batch_check_crc(&view)
                if problem != GOOD:
                    break
                if view.base_offset >= selection.offset_to \
                        or (view.base_timestamp >= selection.time_stop and selection.time_stop != INT64_MAX):
                    over = True
                    break
                if view.max_timestamp >= selection.time_from \
                        and view.base_offset + view.last_offset_delta >= selection.offset_from:
                    self.remember(&mark)
                    problem = self.add_batch(&view, selection, keys)
                    if problem != GOOD:
                        self.go_back(&mark)
                        break
                expected_offset = view.base_offset + view.last_offset_delta + 1
                position += <Py_ssize_t>view.length
        if over:
            return self.rows - before, position, -1, expected_offset
        if problem == SHORT:
            return self.rows - before, position, view.expected, expected_offset
        if problem == NO_MEMORY:
            raise MemoryError
        if problem == GOOD or self.rows > before:
            return self.rows - before, position, 0, expected_offset
        # What came before is handed out first: the call that begins with the bad batch raises.
        if problem == COMPRESSED:
            raise unsupported_error(position, &view)
        raise problem_error(problem, position, &view)

    def add(self, list rows not None):
        cdef list pieces = []
        cdef bytes source, key, value, headers
        cdef const uint8_t* at
        cdef RecordView record
        cdef int64_t offset, timestamp
        cdef int64_t before = self.rows
        for _, _, key, value, pairs in rows:
            pieces += (b"" if key is None else key, b"" if value is None else value, encode_headers(pairs) or b"\0")
        source = b"".join(pieces)
        if self.key.form == FORM_VIEW or self.value.form == FORM_VIEW:
            self.keep_source(source)
        if not room_for(&self.offsets, len(rows) * sizeof(int64_t)) \
                or not room_for(&self.timestamps, len(rows) * sizeof(int64_t)) \
                or not strings_reserve(&self.key, len(rows), len(source)) \
                or not strings_reserve(&self.value, len(rows), len(source)):
            raise MemoryError
        at = <const uint8_t*><const char*>source
        for number, (offset, timestamp, key, value, _) in enumerate(rows):
            headers = pieces[3 * number + 2]
            record.key = at
            record.key_bytes = -1 if key is None else <int32_t>len(key)
            record.value = at + max(record.key_bytes, 0)
            record.value_bytes = -1 if value is None else <int32_t>len(value)
            record.headers = record.value + max(record.value_bytes, 0)
            at = record.end = record.headers + len(headers)
            if self.add_record(&record, offset, timestamp) != GOOD:
                raise MemoryError
        if self.source_data != NULL and self.rows > before:
            (<int64_t*>(self.source_used.data + self.source_used.used))[-1] = len(source)
        return self.rows - before

    def take(self):
        result = Columns()
        result.rows = self.rows
        result.not_text = self.not_text
        result.offset = memory_of(&self.offsets)
        result.timestamp = memory_of(&self.timestamps)
        result.key = finished(&self.key, self.rows)
        result.value = finished(&self.value, self.rows)
        result.headers = memory_of(&self.header_ends) if self.with_headers else None
        result.header_name = finished(&self.header_name, 0) if self.with_headers else None
        result.header_value = finished(&self.header_value, 0) if self.with_headers else None
        result.sources = [
            (source, (<int64_t*>self.source_used.data)[number]) for number, source in enumerate(self.sources)
        ]
        self.begin()
        return result

    cdef int begin(self) except -1:
        self.rows = self.not_text = 0
        self.dictionary.hashes.used = 0
        if self.dictionary.slots != NULL:
            memset(self.dictionary.slots, 0, self.dictionary.slot_count * sizeof(uint32_t))
        self.sources = []
        self.source_data = NULL
        self.source_used.used = 0
        self.viewed = 0
        if self.with_headers:
            if not room_for(&self.header_ends, sizeof(int64_t)):
                raise MemoryError
            put_int64(&self.header_ends, 0)
        if not (
            strings_begin(&self.key) and strings_begin(&self.value)
            and strings_begin(&self.header_name) and strings_begin(&self.header_value)
        ):
            raise MemoryError
        return 0

    cdef void remember(self, Mark* mark) noexcept nogil:
        mark.rows, mark.not_text, mark.left_out = self.rows, self.not_text, self.left_out
        mark.offsets, mark.timestamps = self.offsets.used, self.timestamps.used
        mark.header_ends = self.header_ends.used
        mark.key_items, mark.key_nulls = self.key.items.used, self.key.nulls.used
        mark.key_bytes = self.key.bytes.used
        mark.value_items, mark.value_nulls = self.value.items.used, self.value.nulls.used
        mark.value_bytes = self.value.bytes.used
        mark.name_items, mark.name_bytes = self.header_name.items.used, self.header_name.bytes.used
        mark.header_items, mark.header_bytes = self.header_value.items.used, self.header_value.bytes.used

    cdef void go_back(self, Mark* mark) noexcept nogil:
        """Forget what was added since. A dictionary may keep keys that no row has."""
        self.rows, self.not_text, self.left_out = mark.rows, mark.not_text, mark.left_out
        self.offsets.used, self.timestamps.used = mark.offsets, mark.timestamps
        self.header_ends.used = mark.header_ends
        self.key.items.used, self.key.nulls.used = mark.key_items, mark.key_nulls
        if self.key.form == FORM_COPY:
            self.key.bytes.used = mark.key_bytes
        self.value.items.used, self.value.nulls.used = mark.value_items, mark.value_nulls
        self.value.bytes.used = mark.value_bytes
        self.header_name.items.used, self.header_name.bytes.used = mark.name_items, mark.name_bytes
        self.header_value.items.used, self.header_value.bytes.used = mark.header_items, mark.header_bytes

    cdef int add_batch(self, BatchView* view, Selection selection, KeyFilter keys) noexcept nogil:
        """The selected records of one checked batch: GOOD, BAD_RECORDS, COMPRESSED or NO_MEMORY."""
        cdef const uint8_t* at = view.data + AT_RECORDS
        cdef const uint8_t* end = view.data + view.length
        cdef bint any_key = keys is None
        cdef int64_t before = self.rows
        cdef size_t records = view.length // RECORD_BYTES_MIN
        cdef RecordView record
        cdef int64_t offset, timestamp
        cdef int32_t last = -1
        cdef int problem
        if view.attributes & ATTRIBUTE_CONTROL:
            return GOOD
        if view.attributes & ATTRIBUTE_CODEC:
            return COMPRESSED
        records = min(records, <size_t>view.count)      # a count that is wrong takes no more memory than the batch
        if not room_for(&self.offsets, records * sizeof(int64_t)) \
                or not room_for(&self.timestamps, records * sizeof(int64_t)) \
                or not strings_reserve(&self.key, records, view.length) \
                or not strings_reserve(&self.value, records, view.length):
            return NO_MEMORY
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
            if not any_key and not keys.accepts(record.key, record.key_bytes):
                continue
            problem = self.add_record(&record, offset, timestamp)
            if problem != GOOD:
                if problem == BAD_RECORDS:
                    view.found -= 1
                return problem
        if self.source_data != NULL and self.rows > before:
            (<int64_t*>(self.source_used.data + self.source_used.used))[-1] = end - self.source_data
        return GOOD if at == end else BAD_RECORDS

    cdef int add_record(self, RecordView* record, int64_t offset, int64_t timestamp) noexcept nogil:
        cdef int64_t code
        cdef int32_t source = <int32_t>(self.source_used.used // sizeof(int64_t)) - 1
        if not headers_sound(record):
            return BAD_RECORDS
        if self.without != NULL and has_header(record, self.without, self.without_bytes):
            self.left_out += 1
            return GOOD
        put_int64(&self.offsets, offset)
        put_int64(&self.timestamps, nanoseconds(timestamp))
        if self.key.form == FORM_VIEW:
            put_view(&self.key, record.key, record.key_bytes, source, <int32_t>(record.key - self.source_data))
        elif self.key.form == FORM_COPY:
            put_copy(&self.key, record.key, record.key_bytes)
        elif self.key.form == FORM_CODES:
            code = 0
            if record.key_bytes >= 0:
                code = dictionary_code(&self.dictionary, &self.key, record.key, record.key_bytes)
            if code < 0:
                return NO_MEMORY
            put_code(&self.key, <int32_t>code)
        if record.key_bytes < 0:
            if not put_null(&self.key, self.rows):
                return NO_MEMORY
        elif self.key.form != FORM_NONE and not is_text(record.key, record.key_bytes):
            self.not_text += 1
        if self.value.form == FORM_VIEW:
            put_view(&self.value, record.value, record.value_bytes, source, <int32_t>(record.value - self.source_data))
            self.viewed += <size_t>max(record.value_bytes, 0)
        elif self.value.form == FORM_COPY:
            put_copy(&self.value, record.value, record.value_bytes)
        if record.value_bytes < 0 and not put_null(&self.value, self.rows):
            return NO_MEMORY
        self.rows += 1
        return self.add_headers(record) if self.with_headers else GOOD

    cdef int add_headers(self, RecordView* record) noexcept nogil:
        """Sound ones. A null value is an empty one, as in `batch.decode`."""
        cdef int64_t count = 0
        cdef HeaderView header
        cdef const uint8_t* at = headers_open(record, &count)
        if not room_for(&self.header_ends, sizeof(int64_t)):
            return NO_MEMORY
        while count > 0:
            at = header_parse(at, record.end, &header)
            if at == NULL:
                return BAD_RECORDS
            if not strings_reserve(&self.header_name, 1, header.name_bytes) \
                    or not strings_reserve(&self.header_value, 1, max(header.value_bytes, 0)):
                return NO_MEMORY
            put_copy(&self.header_name, header.name, header.name_bytes)
            put_copy(&self.header_value, header.value, header.value_bytes)
            count -= 1
        put_int64(&self.header_ends, <int64_t>(self.header_name.items.used // sizeof(int64_t)) - 1)
        return GOOD

    cdef int keep_source(self, object buffer) except -1:
        """Views point from now on into this buffer, or into the object whose bytes a memoryview shows."""
        cdef object source = buffer.obj if isinstance(buffer, memoryview) else buffer
        cdef Py_buffer view
        if self.sources and self.sources[-1] is source:
            return 0
        if self.sources and (<int64_t*>(self.source_used.data + self.source_used.used))[-1] == 0:
            self.sources.pop()                          # no view points into it
            self.source_used.used -= sizeof(int64_t)
        if not room_for(&self.source_used, sizeof(int64_t)):
            raise MemoryError
        PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
        self.source_data = <const uint8_t*>view.buf
        PyBuffer_Release(&view)
        self.sources.append(source)
        put_int64(&self.source_used, 0)
        return 0
