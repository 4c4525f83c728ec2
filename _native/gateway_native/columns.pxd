"""Records as columns: what a walk over record batches leaves in memory, laid out as Apache Arrow lays out arrays.

Source of the layouts: Apache Arrow, docs/source/format/Columnar.rst ("Variable-size Binary Layout", "Variable-size Binary
View Layout", "Validity bitmaps"). Little-endian machines only, as everywhere in the gateway that runs on x86-64 and aarch64.
"""

from libc.stdint cimport int64_t, uint8_t

from gateway_native.batch cimport BatchView, KeyFilter, RecordView, Selection
from gateway_native.column_rooms cimport ByteColumn, Dictionary, Room

cdef struct Mark:                       # how much was there, to go back to
    int64_t rows, not_text, left_out
    size_t offsets, timestamps, header_ends
    size_t key_items, key_bytes, key_nulls
    size_t value_items, value_bytes, value_nulls
    size_t name_items, name_bytes, header_items, header_bytes


cdef class Memory:                      # a finished buffer: Python's buffer protocol, read-only
    cdef uint8_t* data
    cdef Py_ssize_t size


cdef class ColumnBuilder:
    cdef readonly int64_t rows          # in the columns so far
    cdef readonly int64_t not_text      # keys among them that are not UTF-8
    cdef readonly int64_t left_out      # records left out for `without_header`, since the builder was made
    cdef int64_t rows_max
    cdef size_t bytes_max
    cdef Room offsets, timestamps       # int64; timestamps in ns
    cdef ByteColumn key, value
    cdef Dictionary dictionary
    cdef bint with_headers
    cdef Room header_ends               # int64 by row: how many headers up to and with it
    cdef ByteColumn header_name, header_value
    cdef bytes without_header           # records that have a header of this name are left out; None: none are
    cdef const uint8_t* without         # its bytes; NULL: none
    cdef size_t without_bytes
    cdef list sources                   # objects whose bytes views point into
    cdef const uint8_t* source_data     # of the last one
    cdef size_t viewed                  # bytes of values that views point to
    cdef Room source_used               # int64 by source: bytes up to the end of the last batch in it
    cdef int begin(self) except -1
    cdef void remember(self, Mark* mark) noexcept nogil
    cdef void go_back(self, Mark* mark) noexcept nogil
    cdef int add_batch(self, BatchView* view, Selection selection, KeyFilter keys) noexcept nogil
    cdef int add_record(self, RecordView* record, int64_t offset, int64_t timestamp) noexcept nogil
    cdef int add_headers(self, RecordView* record) noexcept nogil
    cdef int keep_source(self, object buffer) except -1
