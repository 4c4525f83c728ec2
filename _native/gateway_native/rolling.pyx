"""How segments begin and end. See rolling.pxd."""

from libc.errno cimport EIO, ENOENT, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from gateway_native.buffers cimport release_buffer, release_buffers
from gateway_native.segment cimport (
    Active,
    PATH_BYTES,
    active_create,
    active_flush_indexes,
    active_seal,
)
from gateway_native.state cimport (
    Partition,
    Sealed,
    WriterState,
    bump,
    close_counted,
    gw_load_acquire,
    gw_load_relaxed,
    gw_planted,
    gw_store_relaxed,
    STEP_SEAL,
)
from gateway_native.storage cimport OPEN_EMPTY, OPEN_EXISTING
from gateway_native.summary cimport SUMMARY_BYTES, SUMMARY_INDEXES_WHOLE, SummaryFields, summary_encode
from gateway_native.watermark cimport (
    MARK_CLEAN,
    MARK_INDEXES_WHOLE,
    WATERMARK_BYTES,
    WatermarkFields,
    watermark_encode,
)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    int pthread_create(pthread_t*, const void*, void* (*)(void*) noexcept nogil, void*)
    int pthread_join(pthread_t, void**)

cdef enum:
    # At the end: so many threads at most, each with so many partitions at least.
    SYNC_THREADS = 8
    SYNCS_EACH = 8

cdef struct Share:
    # Which partitions one of them syncs.
    WriterState* w
    uint64_t first
    uint64_t step
    uint64_t count
    bint marks                      # their watermarks; otherwise their segments


cdef void path_of(char* to, Partition* p, int64_t base_offset, const char* suffix) noexcept nogil:
    snprintf(to, PATH_BYTES, "%s/%020lld.%s", p.directory, <long long>base_offset, suffix)


# -- beginning --------------------------------------------------------------------------------------------------------

cdef int create_directory(WriterState* w, Partition* p, int64_t base_offset) noexcept nogil:
    """The directory of a new partition, and a watermark that says from the first moment on that nothing is durable.

    A reader that finds no watermark trusts every sound batch, so there must be one before there is a segment.
    """
    cdef char path[PATH_BYTES]
    cdef uint8_t encoded[WATERMARK_BYTES]
    cdef WatermarkFields mark
    cdef int fd
    cdef int failed = w.ops.make_directory(p.directory)
    if failed:
        return failed
    p.new_directory = True
    snprintf(path, PATH_BYTES, "%s/watermark", p.directory)
    fd = w.ops.open(path, OPEN_EMPTY)
    if fd < 0:
        return fd
    memset(&mark, 0, sizeof(mark))
    mark.epoch = p.epoch
    mark.segment_base = mark.durable_offset = mark.offset_of_max = base_offset
    mark.last_timestamp = mark.first_timestamp = mark.max_timestamp = mark.last_time_entry = -1
    mark.flags = MARK_INDEXES_WHOLE
    watermark_encode(encoded, &mark)
    failed = w.ops.write_at(fd, encoded, WATERMARK_BYTES, 0)
    if failed:
        close_counted(w, &fd)
        return failed
    p.watermark_fd = fd
    p.mark_unsynced = True
    p.durable = mark
    return 0


cdef int sync_mark(WriterState* w, Partition* p) noexcept nogil:
    """Before there is a second segment, the watermark on the disk must be one of this opening.

    Without one, recovery takes every segment but the last for committed; and one of a clean end says that there is no
    other. Hardly ever needed: the first commit syncs the watermark anyway.
    """
    cdef uint8_t encoded[WATERMARK_BYTES]
    cdef int failed = 0
    if not p.in_commit:             # then the flusher may be writing a newer one, and nothing has failed yet
        watermark_encode(encoded, &p.durable)
        failed = w.ops.write_at(p.watermark_fd, encoded, WATERMARK_BYTES, 0)
    if failed == 0:
        failed = w.ops.sync_all(p.watermark_fd)
    if failed == 0:
        failed = w.ops.sync_directory(p.directory)
    if failed == 0 and (p.new_directory or (p.in_commit and p.commit_new_directory)):
        failed = w.ops.sync_directory(p.parent)
    if failed == 0:
        p.mark_unsynced = False
    return failed


cdef int create_segment(WriterState* w, Partition* p, int64_t base_offset) noexcept nogil:
    cdef int failed = 0
    cdef Active* active
    if p.watermark_fd < 0:
        failed = create_directory(w, p, base_offset)
    elif p.mark_unsynced and not gw_planted("second segment without watermark"):
        failed = sync_mark(w, p)
    if failed:
        return failed
    active = <Active*>calloc(1, sizeof(Active))
    if active is NULL:
        return -ENOMEM
    failed = active_create(w.ops, active, p.directory, base_offset)
    if failed:
        free(active)
        return failed
    p.active = active
    p.new_files = True
    p.mark_synced_position = 0
    return 0


# -- ending -----------------------------------------------------------------------------------------------------------

cdef int write_new(WriterState* w, Partition* p, const char* path, const uint8_t* data, int64_t size) noexcept nogil:
    """A small file with that content: its descriptor, or -errno."""
    cdef int fd = w.ops.open(path, OPEN_EMPTY)
    cdef int failed
    if fd < 0:
        return fd
    failed = w.ops.write_at(fd, data, size, 0)
    if failed:
        close_counted(w, &fd)
        return failed
    p.new_files = True
    return fd


cdef int extend_manifest(WriterState* w, Partition* p, const uint8_t* entry) noexcept nogil:
    """One more entry: the manifest's descriptor, or -errno; then it is not gone on with until the next start."""
    cdef char path[PATH_BYTES]
    cdef int fd, failed
    snprintf(path, PATH_BYTES, "%s/manifest", p.directory)
    fd = w.ops.open(path, OPEN_EXISTING)
    if fd == -ENOENT and p.manifest_bytes == 0:
        fd = w.ops.open(path, OPEN_EMPTY)
        p.new_files = True
    if fd < 0:
        p.manifest_bytes = -1
        return fd
    failed = w.ops.write_at(fd, entry, SUMMARY_BYTES, p.manifest_bytes)
    if failed:
        p.manifest_bytes = -1
        close_counted(w, &fd)
        return failed
    p.manifest_bytes += SUMMARY_BYTES
    return fd


cdef void summarize(WriterState* w, Partition* p, Sealed* sealed, SummaryFields* summary) noexcept nogil:
    """Write what is known of a sealed segment beside it and into the manifest. Both can be made again from the log."""
    cdef char path[PATH_BYTES]
    cdef uint8_t encoded[SUMMARY_BYTES]
    summary_encode(encoded, summary)
    path_of(path, p, summary.base_offset, "sums")
    sealed.sums_fd = write_new(w, p, path, encoded, SUMMARY_BYTES)
    sealed.manifest_fd = -1
    if p.manifest_bytes >= 0:
        sealed.manifest_fd = extend_manifest(w, p, encoded)
    if sealed.sums_fd < 0 or sealed.manifest_fd < 0:
        bump(&p.summary_errors, 1)


cdef int seal_segment(WriterState* w, Partition* p) noexcept nogil:
    cdef Sealed* sealed = <Sealed*>calloc(1, sizeof(Sealed))
    cdef SummaryFields summary
    cdef Active* active = p.active
    cdef int failed
    if sealed is NULL:
        return -ENOMEM
    failed = active_seal(w.ops, active)
    if failed:
        free(sealed)
        return failed
    if active.index_error:
        bump(&p.index_errors, 1)
    summary.base_offset = active.base_offset
    summary.log_bytes = active.log.position
    summary.next_offset = p.appended_offset
    summary.first_timestamp = active.first_timestamp
    summary.max_timestamp = active.max_timestamp
    summary.index_crc = active.index_crc
    summary.time_crc = active.time_crc
    summary.flags = 0 if active.index_error else SUMMARY_INDEXES_WHOLE
    summarize(w, p, sealed, &summary)
    sealed.log_fd = active.log.fd
    sealed.index_fd = active.index_fd
    sealed.time_fd = active.time_fd
    sealed.base_offset = active.base_offset
    sealed.position = active.log.position
    sealed.next = p.sealed
    p.sealed = sealed
    free(active)
    p.active = NULL
    return 0


cdef void mark_indexes(Active* active, WatermarkFields* mark) noexcept nogil:
    """What is written of the indexes; entries that wait are not promised."""
    mark.last_time_entry = active.flushed_time_entry
    mark.bytes_since_entry = active.bytes_since_entry
    mark.index_bytes = active.index_bytes
    mark.time_bytes = active.time_bytes
    mark.index_crc = active.index_crc
    mark.time_crc = active.time_crc
    mark.flags = 0 if active.index_error else MARK_INDEXES_WHOLE


cdef void mark_appended(Partition* p, WatermarkFields* mark) noexcept nogil:
    cdef Active* active = p.active
    memset(mark, 0, sizeof(WatermarkFields))
    mark.epoch = p.epoch
    mark.durable_offset = p.appended_offset
    mark.last_timestamp = p.appended_timestamp
    if active is NULL:
        # The disk had no room for a segment after the one just sealed, which holds all that was kept. Nothing goes on in
        # it, so its indexes need no state.
        mark.segment_base = p.sealed.base_offset
        mark.position = p.sealed.position
        mark.first_timestamp = mark.max_timestamp = mark.last_time_entry = -1
        return
    mark.segment_base = active.base_offset
    mark.position = active.log.position
    mark.first_timestamp = active.first_timestamp
    mark.max_timestamp = active.max_timestamp
    mark.offset_of_max = active.offset_of_max
    mark_indexes(active, mark)


# -- after a failure --------------------------------------------------------------------------------------------------

cdef void set_aside(WriterState* w, Partition* p, int64_t base_offset) noexcept nogil:
    """Take a segment that holds nothing durable out of the log. Renamed, so that its bad blocks are not used again."""
    cdef char path[PATH_BYTES]
    cdef char to[PATH_BYTES]
    path_of(path, p, base_offset, "index")
    w.ops.unlink(path)
    path_of(path, p, base_offset, "timeindex")
    w.ops.unlink(path)
    path_of(path, p, base_offset, "sums")
    w.ops.unlink(path)
    path_of(path, p, base_offset, "log")
    snprintf(to, PATH_BYTES, "%s/%020lld.log.%llu.cut", p.directory, <long long>base_offset,
             <unsigned long long>(p.epoch * 1000 + gw_load_relaxed(&p.rewrites)))
    if w.ops.rename(path, to):
        w.ops.unlink(path)          # if that fails too, the next segment of this name cannot be made, which is noticed


cdef int cut_file(WriterState* w, Partition* p, const char* suffix, int64_t size) noexcept nogil:
    cdef char path[PATH_BYTES]
    cdef int fd, failed
    path_of(path, p, p.durable.segment_base, suffix)
    fd = w.ops.open(path, OPEN_EXISTING)
    if fd < 0:
        return fd
    failed = w.ops.truncate(fd, size)
    if failed == 0:
        w.ops.sync_all(fd)          # if that fails, readers stop where the next segment begins
    close_counted(w, &fd)
    return failed


cdef void end_durable_segment(WriterState* w, Partition* p) noexcept nogil:
    """Cut the segment at its durable position. Without a summary: whether its indexes are whole is seen when it is made."""
    cdef char path[PATH_BYTES]
    cdef int failed = cut_file(w, p, "log", p.durable.position)
    if cut_file(w, p, "index", p.durable.index_bytes) or cut_file(w, p, "timeindex", p.durable.time_bytes):
        bump(&p.index_errors, 1)
    path_of(path, p, p.durable.segment_base, "sums")
    w.ops.unlink(path)
    if failed:
        bump(&p.summary_errors, 1)  # readers stop where the next segment begins


cdef void close_sealed(WriterState* w, Sealed* sealed) noexcept nogil:
    close_counted(w, &sealed.log_fd)
    close_counted(w, &sealed.index_fd)
    close_counted(w, &sealed.time_fd)
    close_counted(w, &sealed.sums_fd)
    close_counted(w, &sealed.manifest_fd)


cdef void close_active(WriterState* w, Partition* p) noexcept nogil:
    if p.active is NULL:
        return
    w.ops.detach(&p.active.log)
    close_counted(w, &p.active.log.fd)
    close_counted(w, &p.active.index_fd)
    close_counted(w, &p.active.time_fd)
    free(p.active)
    p.active = NULL


cdef void take_out(WriterState* w, Partition* p, int64_t base_offset) noexcept nogil:
    if base_offset == p.durable.segment_base and p.durable.position > 0:
        end_durable_segment(w, p)
    elif base_offset >= p.durable.segment_base:
        set_aside(w, p, base_offset)


cdef void take_out_sealed(WriterState* w, Partition* p, Sealed** list) noexcept nogil:
    cdef Sealed* sealed
    while list[0] is not NULL:
        sealed = list[0]
        list[0] = sealed.next
        close_sealed(w, sealed)
        take_out(w, p, sealed.base_offset)
        free(sealed)


cdef void seal_at_durable(WriterState* w, Partition* p) noexcept nogil:
    cdef int64_t base_offset
    take_out_sealed(w, p, &p.commit_sealed)
    take_out_sealed(w, p, &p.sealed)
    if p.active is not NULL:
        base_offset = p.active.base_offset
        close_active(w, p)
        take_out(w, p, base_offset)
    # The manifest may speak of segments that are gone, and will lack the one that was cut: the next start completes it.
    p.manifest_bytes = -1
    bump(&p.summary_errors, 1)
    p.new_files = True


# -- the end ----------------------------------------------------------------------------------------------------------

cdef void end_segment(WriterState* w, Partition* p) noexcept nogil:
    """Bring the active segment to its exact length, and look whether it holds everything; nothing is synced."""
    cdef int failed
    p.ends_whole = not gw_load_relaxed(&p.failed) and p.kept.first is NULL and p.pending.first is NULL \
        and p.sealed is NULL and p.active.base_offset == p.durable.segment_base \
        and p.active.log.position == p.durable.position
    if p.ends_whole:
        active_flush_indexes(w.ops, p.active)
        mark_indexes(p.active, &p.durable)
    failed = active_seal(w.ops, p.active)
    if failed:
        end_fails(p, failed)


cdef void end_fails(Partition* p, int failed) noexcept nogil:
    p.ends_whole = False
    if not gw_load_relaxed(&p.failed):
        gw_store_relaxed(&p.failed_errno, <uint64_t>(-failed))
        gw_store_relaxed(&p.failed_step, STEP_SEAL)


cdef void sync_end(WriterState* w, Partition* p) noexcept nogil:
    """What `end_segment` left."""
    cdef int failed = w.ops.sync_all(p.active.log.fd)
    if failed:
        end_fails(p, failed)
    if not p.active.index_error and (w.ops.sync_all(p.active.index_fd) or w.ops.sync_all(p.active.time_fd)):
        p.active.index_error = EIO
    # What never came to a commit is not promised, but a clean end says that all names are on the disk.
    if (p.new_files and w.ops.sync_directory(p.directory)) or (p.new_directory and w.ops.sync_directory(p.parent)):
        p.ends_whole = False


cdef void sync_clean_mark(WriterState* w, Partition* p) noexcept nogil:
    if w.ops.sync_all(p.watermark_fd):
        bump(&p.watermark_errors, 1)


cdef void write_clean_mark(WriterState* w, Partition* p) noexcept nogil:
    """Say that nothing follows the watermark's position, so that the next start need not look."""
    cdef uint8_t encoded[WATERMARK_BYTES]
    cdef WatermarkFields mark = p.durable
    mark.flags |= MARK_CLEAN
    watermark_encode(encoded, &mark)
    if w.ops.write_at(p.watermark_fd, encoded, WATERMARK_BYTES, 0):
        bump(&p.watermark_errors, 1)
        p.ends_whole = False


cdef void* sync_share(void* argument) noexcept nogil:
    cdef Share* share = <Share*>argument
    cdef WriterState* w = share.w
    cdef uint64_t i = share.first
    while i < share.count:
        if share.marks:
            if w.partitions[i].ends_whole:
                sync_clean_mark(w, w.partitions[i])
        elif w.partitions[i].ends:
            sync_end(w, w.partitions[i])
        i += share.step
    return NULL


cdef void sync_each(WriterState* w, uint64_t count, bint marks) noexcept nogil:
    """By several threads, each for its part of the partitions: the disk takes the syncs of many at once."""
    cdef Share[SYNC_THREADS] shares
    cdef pthread_t[SYNC_THREADS] threads
    cdef uint64_t parts = min(<uint64_t>SYNC_THREADS, 1 + count // SYNCS_EACH) if w.sync_by_many else 1
    cdef uint64_t i, started = 1
    for i in range(parts):
        shares[i] = Share(w, i, parts, count, marks)
    while started < parts and pthread_create(&threads[started], NULL, sync_share, &shares[started]) == 0:
        started += 1
    sync_share(&shares[0])
    for i in range(started, parts):
        sync_share(&shares[i])      # there was no thread for it
    for i in range(1, started):
        pthread_join(threads[i], NULL)


cdef void sync_ends(WriterState* w, uint64_t count, uint64_t ending, int fd, bint marks) noexcept nogil:
    """With one call for all of them where that is allowed and they are many. fd: of any file there."""
    if w.syncfs_files and ending >= w.syncfs_files:
        bump(&w.synced_filesystems, 1)
        if w.ops.sync_filesystem(fd) == 0:
            return
    sync_each(w, count, marks)


cdef void close_partitions(WriterState* w) noexcept nogil:
    """In steps, each for all of them: hundreds of syncs one after the other would take the disk many seconds."""
    cdef uint64_t count = gw_load_acquire(&w.partition_count)
    cdef uint64_t i, ending = 0
    cdef Partition* p
    cdef int fd = -1
    for i in range(count):
        p = w.partitions[i]
        p.ends = p.active is not NULL
        p.ends_whole = False
        if p.ends:
            end_segment(w, p)
            ending += 1
            fd = p.watermark_fd
    sync_ends(w, count, ending, fd, False)
    for i in range(count):
        p = w.partitions[i]
        if not p.ends:
            continue
        if p.active.index_error:
            bump(&p.index_errors, 1)
            p.ends_whole = False
        close_active(w, p)
        if p.ends_whole:
            write_clean_mark(w, p)
    sync_ends(w, count, ending, fd, True)


cdef void free_partition(WriterState* w, Partition* p) noexcept nogil:
    cdef Sealed* sealed
    if p is NULL:
        return
    if p.open is not NULL:
        release_buffer(w, p.open)
    release_buffers(w, &p.pending)
    release_buffers(w, &p.kept)
    release_buffers(w, &p.commit_batches)
    while p.sealed is not NULL or p.commit_sealed is not NULL:
        sealed = p.sealed if p.sealed is not NULL else p.commit_sealed
        if p.sealed is not NULL:
            p.sealed = sealed.next
        else:
            p.commit_sealed = sealed.next
        close_sealed(w, sealed)
        free(sealed)
    close_active(w, p)
    close_counted(w, &p.watermark_fd)
    free(p.directory)
    free(p.parent)
    free(p)
