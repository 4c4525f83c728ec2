"""The active segment and its indexes. See segment.pxd."""

from libc.errno cimport EIO, ENOENT, ENOSPC
from libc.stdint cimport INT32_MAX, int64_t, uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memset

from gateway_native.batch cimport AT_BASE_TIMESTAMP, crc32c_update, get_be64
from gateway_native.storage cimport OPEN_EMPTY, OPEN_EXISTING, OPEN_NEW, SegmentFile, StorageOps


cdef int open_part(
    StorageOps* ops, const char* directory, int64_t base_offset, const char* suffix, int mode,
) noexcept nogil:
    cdef char path[PATH_BYTES]
    snprintf(path, PATH_BYTES, "%s/%020lld.%s", directory, <long long>base_offset, suffix)
    return ops.open(path, mode)


cdef void close_part(StorageOps* ops, int* fd) noexcept nogil:
    if fd[0] >= 0:
        ops.close(fd[0])
    fd[0] = -1


cdef int open_all(
    StorageOps* ops, Active* segment, const char* directory, int64_t base_offset, bint create,
) noexcept nogil:
    cdef int failed = 0
    memset(segment, 0, sizeof(Active))
    segment.log.fd = segment.index_fd = segment.time_fd = -1
    segment.base_offset = base_offset
    segment.first_timestamp = segment.max_timestamp = segment.last_time_entry = segment.flushed_time_entry = -1
    segment.offset_of_max = base_offset
    # The log comes last and must be new: without it the indexes are orphans, which a second attempt empties.
    segment.index_fd = open_part(ops, directory, base_offset, "index", OPEN_EMPTY if create else OPEN_EXISTING)
    segment.time_fd = open_part(ops, directory, base_offset, "timeindex", OPEN_EMPTY if create else OPEN_EXISTING)
    if not create and (segment.index_fd == -ENOENT or segment.time_fd == -ENOENT):
        # The disk had no room for them when the log was recovered: the log goes on without.
        close_part(ops, &segment.index_fd)
        close_part(ops, &segment.time_fd)
        segment.index_error = ENOENT
    elif segment.index_fd < 0 or segment.time_fd < 0:
        failed = segment.index_fd if segment.index_fd < 0 else segment.time_fd
    if failed == 0:
        segment.log.fd = open_part(ops, directory, base_offset, "log", OPEN_NEW if create else OPEN_EXISTING)
        if segment.log.fd < 0:
            failed = segment.log.fd
    if failed:
        close_part(ops, &segment.log.fd)
        close_part(ops, &segment.index_fd)
        close_part(ops, &segment.time_fd)
    return failed


cdef int active_create(StorageOps* ops, Active* segment, const char* directory, int64_t base_offset) noexcept nogil:
    return open_all(ops, segment, directory, base_offset, True)


cdef int active_open(StorageOps* ops, Active* segment, const char* directory, int64_t base_offset) noexcept nogil:
    return open_all(ops, segment, directory, base_offset, False)


cdef inline void put_big_endian(uint8_t* to, uint64_t value, int size) noexcept nogil:
    cdef int i
    for i in range(size):
        to[i] = <uint8_t>(value >> (8 * (size - 1 - i)))


cdef void add_time_entry(StorageOps* ops, Active* segment) noexcept nogil:
    """TimeIndex.maybeAppend: only a timestamp beyond the last entry's makes a new one."""
    cdef uint8_t* to
    if segment.max_timestamp <= segment.last_time_entry:
        return
    if segment.time_count == INDEX_BUFFERED:
        active_flush_indexes(ops, segment)
    to = segment.time_buffer + segment.time_count * TIME_ENTRY_BYTES
    put_big_endian(to, <uint64_t>segment.max_timestamp, 8)
    put_big_endian(to + 8, <uint64_t>(segment.offset_of_max - segment.base_offset), 4)
    segment.time_count += 1
    segment.last_time_entry = segment.max_timestamp


cdef void add_index_entry(StorageOps* ops, Active* segment, int64_t last_offset, int64_t position) noexcept nogil:
    cdef uint8_t* to
    if segment.index_count == INDEX_BUFFERED:
        active_flush_indexes(ops, segment)
    to = segment.index_buffer + segment.index_count * INDEX_ENTRY_BYTES
    put_big_endian(to, <uint64_t>(last_offset - segment.base_offset), 4)
    put_big_endian(to + 4, <uint64_t>position, 4)
    segment.index_count += 1


cdef void active_flush_indexes(StorageOps* ops, Active* segment) noexcept nogil:
    cdef int failed = 0
    cdef int64_t size
    if segment.index_count and not segment.index_error:
        size = segment.index_count * INDEX_ENTRY_BYTES
        failed = ops.write_at(segment.index_fd, segment.index_buffer, size, segment.index_bytes)
        if not failed:
            segment.index_bytes += size
            segment.index_crc = crc32c_update(segment.index_crc, segment.index_buffer, size)
    if segment.time_count and not segment.index_error and not failed:
        size = segment.time_count * TIME_ENTRY_BYTES
        failed = ops.write_at(segment.time_fd, segment.time_buffer, size, segment.time_bytes)
        if not failed:
            segment.time_bytes += size
            segment.time_crc = crc32c_update(segment.time_crc, segment.time_buffer, size)
    if failed:
        segment.index_error = -failed
    segment.index_count = 0
    segment.time_count = 0
    segment.flushed_time_entry = segment.last_time_entry
    segment.flushed_position = segment.log.position


cdef void active_flush_many(StorageOps* ops, Active* segment) noexcept nogil:
    if segment.index_count >= INDEX_FLUSHED or segment.log.position - segment.flushed_position >= INDEX_FLUSHED_BYTES:
        active_flush_indexes(ops, segment)


cdef int allocate(
    StorageOps* ops, Active* segment, int64_t upto, int64_t segment_bytes, int64_t reserve_bytes,
) noexcept nogil:
    """Room for so much of the log and for every index entry that it can bring, the final one included."""
    cdef int64_t entries = upto // INDEX_INTERVAL_BYTES + 2
    cdef int64_t left
    cdef int failed
    if reserve_bytes > 0:
        left = ops.free_bytes(segment.log.fd)
        # What cannot be asked is found out by writing.
        if left >= 0 and left - (upto - segment.log.allocated) < reserve_bytes:
            return -ENOSPC
    failed = ops.reserve(segment.index_fd, entries * INDEX_ENTRY_BYTES) if segment.index_fd >= 0 else 0
    if failed == 0 and segment.time_fd >= 0:
        failed = ops.reserve(segment.time_fd, entries * TIME_ENTRY_BYTES)
    if failed == 0:
        failed = ops.allocate(&segment.log, upto, segment_bytes)
    return failed


cdef int active_make_room(
    StorageOps* ops, Active* segment, int64_t size, int64_t segment_bytes, int64_t reserve_bytes,
) noexcept nogil:
    cdef int64_t needed = segment.log.position + size
    cdef int64_t step = segment.log.allocated
    cdef int64_t upto
    cdef int failed
    if needed <= segment.log.allocated:
        return 0
    step = ALLOCATE_FIRST_BYTES if step < ALLOCATE_FIRST_BYTES else step
    step = ALLOCATE_STEP_BYTES if step > ALLOCATE_STEP_BYTES else step
    upto = segment.log.allocated + step
    upto = segment_bytes if upto > segment_bytes else upto
    upto = needed if upto < needed or reserve_bytes < 0 else upto
    failed = allocate(ops, segment, upto, segment_bytes, reserve_bytes)
    if failed and upto > needed:
        failed = allocate(ops, segment, needed, segment_bytes, reserve_bytes)   # the last blocks of a full disk
    return failed


cdef int active_append(
    StorageOps* ops, Active* segment, const uint8_t* batch, int64_t size, int64_t last_offset, int64_t max_timestamp,
    int64_t segment_bytes, int64_t reserve_bytes,
) noexcept nogil:
    cdef int64_t position = segment.log.position
    cdef int failed = active_make_room(ops, segment, size, segment_bytes, reserve_bytes)
    if failed:
        return failed
    failed = ops.append(&segment.log, batch, size)
    if failed:
        return failed
    if segment.first_timestamp < 0:
        segment.first_timestamp = <int64_t>get_be64(batch + AT_BASE_TIMESTAMP)
    if max_timestamp > segment.max_timestamp:
        segment.max_timestamp = max_timestamp
        segment.offset_of_max = last_offset
    if segment.bytes_since_entry > INDEX_INTERVAL_BYTES:
        add_index_entry(ops, segment, last_offset, position)
        add_time_entry(ops, segment)
        segment.bytes_since_entry = 0
    segment.bytes_since_entry += size
    return 0


cdef bint active_has_room(
    Active* segment, int64_t size, int64_t last_offset, int64_t timestamp, int64_t segment_bytes,
    int64_t segment_age_ms,
) noexcept nogil:
    if segment.log.position == 0:
        return True
    if segment.log.position + size > segment_bytes:
        return False
    if last_offset - segment.base_offset > INT32_MAX:
        return False
    return not (segment_age_ms > 0 and timestamp - segment.first_timestamp > segment_age_ms)


cdef int active_seal(StorageOps* ops, Active* segment) noexcept nogil:
    add_time_entry(ops, segment)
    active_flush_indexes(ops, segment)
    # Gives back what was reserved beyond the entries, and half an entry that a failed write left.
    if ops.truncate(segment.index_fd, segment.index_bytes) or ops.truncate(segment.time_fd, segment.time_bytes):
        segment.index_error = EIO
    ops.detach(&segment.log)
    return ops.truncate(segment.log.fd, segment.log.position)
