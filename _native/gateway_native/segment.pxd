"""The active segment: a log file and its two indexes, as the writer thread appends to them.

Index rules are Apache Kafka's (storage/.../log/LogSegment.java, append): one entry in each index when more than 4,096
bytes were appended since the last; a sealed segment's time index gets a final entry. Indexes can be rebuilt, so a
failure to write one is counted and never holds up ingest.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from gateway_native.storage cimport SegmentFile, StorageOps

cdef enum:
    INDEX_INTERVAL_BYTES = 4096
    INDEX_ENTRY_BYTES = 8           # relative last offset of the batch i32, position i32
    TIME_ENTRY_BYTES = 12           # timestamp i64, relative offset i32
    INDEX_BUFFERED = 128            # entries held back before a write
    # Where many streams are written, a commit writes the entries of each only when there are so many, or when they stand
    # for so much of the log. A crash costs them: then look-up by offset or time has to go on through that much.
    INDEX_FLUSHED = 64
    INDEX_FLUSHED_BYTES = 1048576

    ALLOCATE_FIRST_BYTES = 1048576  # preallocation grows from here, doubling,
    ALLOCATE_STEP_BYTES = 67108864  # in steps of at most this

    PATH_BYTES = 4096

cdef struct Active:
    SegmentFile log
    int index_fd
    int time_fd
    int64_t base_offset
    int64_t first_timestamp         # ms, of the first batch; -1 while empty
    int64_t bytes_since_entry
    int64_t max_timestamp           # ms, so far; -1 while empty
    int64_t offset_of_max           # last offset of the batch that brought it
    int64_t last_time_entry         # timestamp of the time index's last entry, -1: none
    int64_t flushed_time_entry      # … of the last one that is written
    int64_t flushed_position        # of the log when the indexes were last written
    int64_t index_bytes             # written to the file
    int64_t time_bytes
    int index_count                 # entries waiting in the buffers
    int time_count
    uint32_t index_crc              # CRC-32C of what is written of each
    uint32_t time_crc
    int index_error                 # errno of the first failed index write; this segment's indexes then stop growing
    uint8_t index_buffer[INDEX_BUFFERED * INDEX_ENTRY_BYTES]
    uint8_t time_buffer[INDEX_BUFFERED * TIME_ENTRY_BYTES]

# All return 0 or -errno. `directory` is the partition's.
cdef int active_create(StorageOps* ops, Active* segment, const char* directory, int64_t base_offset) noexcept nogil
# Open an existing segment; the caller sets its state (position, index lengths…) from recovery before the first append.
cdef int active_open(StorageOps* ops, Active* segment, const char* directory, int64_t base_offset) noexcept nogil
# Append one finished batch. On failure nothing changed that a later attempt would not do again. -ENOSPC also when so
# little would be left on the disk that `reserve_bytes` of it were touched. -1: all of it may be used, but only as needed.
cdef int active_append(
    StorageOps* ops, Active* segment, const uint8_t* batch, int64_t size, int64_t last_offset, int64_t max_timestamp,
    int64_t segment_bytes, int64_t reserve_bytes,
) noexcept nogil
# Have room for `size` more bytes, and the preallocation that append would ask for.
cdef int active_make_room(
    StorageOps* ops, Active* segment, int64_t size, int64_t segment_bytes, int64_t reserve_bytes,
) noexcept nogil
# Room in this segment for one more batch, by size, offset range (i32) and age?
cdef bint active_has_room(
    Active* segment, int64_t size, int64_t last_offset, int64_t timestamp, int64_t segment_bytes,
    int64_t segment_age_ms,
) noexcept nogil
# Write the index entries that wait, …
cdef void active_flush_indexes(StorageOps* ops, Active* segment) noexcept nogil
# … if they are worth it by now.
cdef void active_flush_many(StorageOps* ops, Active* segment) noexcept nogil
# Final time index entry, exact length, unmapped. The descriptors stay open: the caller syncs and closes them.
cdef int active_seal(StorageOps* ops, Active* segment) noexcept nogil
