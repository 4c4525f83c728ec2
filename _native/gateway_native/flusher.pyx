"""One group commit on the flusher thread. See flusher.pxd."""

from libc.stdint cimport uint8_t, uint64_t

from gateway_native.ring cimport AWAKE, ring_notify
from gateway_native.state cimport (
    COMMIT_DONE,
    Partition,
    STEP_SYNC,
    STEP_SYNC_DIRECTORY,
    STEP_SYNC_SEALED,
    Sealed,
    WriterState,
    bell,
    bump,
    close_counted,
    gw_exchange,
    gw_fence,
    gw_load_acquire,
    gw_load_relaxed,
    gw_monotonic_ns,
    gw_planted,
    gw_store_relaxed,
    gw_store_release,
)
from gateway_native.watermark cimport WATERMARK_BYTES, WatermarkFields, watermark_encode


cdef void count_sync(WriterState* w, uint64_t start) noexcept nogil:
    cdef uint64_t took = gw_monotonic_ns() - start
    bump(&w.sync_ns, took)
    if took > gw_load_relaxed(&w.sync_ns_max):
        gw_store_relaxed(&w.sync_ns_max, took)


cdef int timed_sync(WriterState* w, int fd, bint everything) noexcept nogil:
    cdef uint64_t start = gw_monotonic_ns()
    cdef int failed = w.ops.sync_all(fd) if everything else w.ops.sync_data(fd)
    bump(&w.synced_files, 1)
    count_sync(w, start)
    return failed


cdef int sync_sealed(WriterState* w, Partition* p, bint covered) noexcept nogil:
    """Sync and close sealed segments, the log with its new length first; what can be made again is only counted."""
    cdef Sealed* sealed = p.commit_sealed
    cdef int failed = 0
    while sealed is not NULL:
        if failed == 0 and not covered and not gw_planted("sealed log not synced"):
            failed = timed_sync(w, sealed.log_fd, True)
        if failed == 0 and not covered and (w.ops.sync_all(sealed.index_fd) | w.ops.sync_all(sealed.time_fd)):
            bump(&p.index_errors, 1)
        if failed == 0 and not covered and (
                (sealed.sums_fd >= 0 and w.ops.sync_all(sealed.sums_fd))
                or (sealed.manifest_fd >= 0 and w.ops.sync_all(sealed.manifest_fd))):
            bump(&p.summary_errors, 1)
        close_counted(w, &sealed.log_fd)
        close_counted(w, &sealed.index_fd)
        close_counted(w, &sealed.time_fd)
        close_counted(w, &sealed.sums_fd)
        close_counted(w, &sealed.manifest_fd)
        sealed = sealed.next        # the writer frees it
    return failed


cdef int write_watermark(WriterState* w, Partition* p, const WatermarkFields* mark) noexcept nogil:
    cdef uint8_t encoded[WATERMARK_BYTES]
    watermark_encode(encoded, mark)
    return w.ops.write_at(p.watermark_fd, encoded, WATERMARK_BYTES, 0)


cdef void publish(WriterState* w, Partition* p) noexcept nogil:
    """The commit is on the disk: say so to other processes, to this one, and to those who wait."""
    cdef uint64_t i
    if write_watermark(w, p, &p.commit_mark):
        bump(&p.watermark_errors, 1)     # readers elsewhere see less for a while; nothing is lost
    gw_store_relaxed(&p.segment_base, <uint64_t>p.commit_mark.segment_base)
    gw_store_relaxed(&p.durable_position, <uint64_t>p.commit_mark.position)
    gw_store_release(&p.durable_offset, <uint64_t>p.commit_mark.durable_offset)
    for i in range(gw_load_acquire(&w.ring_count)):
        if p.commit_sequence[i] > gw_load_relaxed(&w.rings[i].acked[p.index]):
            gw_store_release(&w.rings[i].acked[p.index], p.commit_sequence[i])


cdef int sync_watermark(WriterState* w, Partition* p) noexcept nogil:
    """Written again first: had an earlier sync failed, its page would be clean, and this one succeed without it."""
    cdef int failed = write_watermark(w, p, &p.durable)
    return failed if failed else timed_sync(w, p.watermark_fd, True)


cdef void sync_partition(WriterState* w, Partition* p, bint covered) noexcept nogil:
    """Everything the commit speaks of, in the order that a crash in between can be recovered from."""
    cdef uint64_t step = STEP_SYNC_SEALED
    cdef int failed
    if gw_planted("watermark early"):
        write_watermark(w, p, &p.commit_mark)
    if gw_planted("acknowledged early"):
        publish(w, p)
    failed = sync_sealed(w, p, covered)
    if failed == 0 and p.commit_fd >= 0 and not covered and not gw_planted("log not synced"):
        step = STEP_SYNC
        failed = timed_sync(w, p.commit_fd, False)
        if failed and gw_planted("failed sync tried again"):
            failed = timed_sync(w, p.commit_fd, False)
    if failed == 0 and p.commit_sync_mark and not covered:
        # The recovery point: of an earlier commit, so never too far. A reader must not meet an empty one beside
        # committed data, and a clean one must be gone before anything follows it.
        step = STEP_SYNC_DIRECTORY
        failed = sync_watermark(w, p)
    if failed == 0 and p.commit_new_files and not covered and not gw_planted("directory not synced"):
        step = STEP_SYNC_DIRECTORY
        failed = w.ops.sync_directory(p.directory)
    if failed == 0 and p.commit_new_directory and not covered:
        step = STEP_SYNC_DIRECTORY
        failed = w.ops.sync_directory(p.parent)
    if failed:
        p.commit_errno = -failed
        p.commit_step = step
    elif not gw_load_acquire(&p.failed):
        publish(w, p)


cdef bint renew_watermarks(WriterState* w) noexcept nogil:
    """Make those dirty that are to be on the disk: see `sync_watermark`."""
    cdef Partition* p = w.commit_list
    while p is not NULL:
        if p.commit_sync_mark and write_watermark(w, p, &p.durable):
            return False
        p = p.next_commit
    return True


cdef bint sync_whole_filesystem(WriterState* w) noexcept nogil:
    """Where many files are dirty, one call for all of them. False: too few, or it failed, and each is to be asked."""
    cdef Partition* p = w.commit_list
    cdef uint64_t files = 0
    cdef uint64_t start
    cdef bint synced
    cdef int fd = -1
    if w.syncfs_files == 0:
        return False
    while p is not NULL and files < w.syncfs_files:
        files += 1
        fd = p.watermark_fd
        p = p.next_commit
    if files < w.syncfs_files or not renew_watermarks(w):
        return False
    start = gw_monotonic_ns()
    synced = w.ops.sync_filesystem(fd) == 0
    bump(&w.synced_filesystems, 1)
    count_sync(w, start)
    return synced


cdef void flush_commit(WriterState* w) noexcept nogil:
    cdef Partition* p = w.commit_list
    cdef bint covered = sync_whole_filesystem(w)
    cdef uint64_t i
    while p is not NULL:
        sync_partition(w, p, covered)
        p = p.next_commit
    for i in range(gw_load_acquire(&w.ring_count)):
        ring_notify(w.rings[i])
    gw_store_release(&w.commit_state, COMMIT_DONE)
    gw_fence()
    if gw_load_relaxed(&w.writer_sleeping) and gw_exchange(&w.writer_sleeping, AWAKE):
        bell(w.writer_fd)
