"""The writer and flusher threads. See writer.pxd for what each part is and who may touch it."""

import os
import time

from libc.errno cimport EDQUOT, ENOENT, ENOMEM, ENOSPC, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strdup

from gateway_native.batch cimport (
    BATCH_HEADER_BYTES,
    BatchBuilder,
    batch_append,
    batch_begin,
    batch_finish,
    record_bytes_max,
)
from gateway_native.ring cimport (
    SLOT_BYTES,
    SLOT_KEYFRAME,
    SLOT_WANTS_ACK,
    Ring,
    RingSlot,
    RingState,
    ring_free,
    ring_notify,
    ring_peek,
)
from gateway_native.segment cimport (
    Active,
    active_append,
    active_create,
    active_flush_indexes,
    active_has_room,
    active_open,
    active_seal,
    PATH_BYTES,
)
from gateway_native.storage cimport OPEN_EMPTY, OPEN_EXISTING, OPEN_NEW, StorageOps, storage_table
from gateway_native.watermark cimport WATERMARK_BYTES, watermark_encode

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_acquire(const uint64_t*)
    uint64_t gw_load_relaxed(const uint64_t*)
    void gw_store_release(uint64_t*, uint64_t)
    void gw_store_relaxed(uint64_t*, uint64_t)
    void gw_store_seq(uint64_t*, uint64_t)
    uint64_t gw_load_seq(const uint64_t*)
    uint64_t gw_exchange(uint64_t*, uint64_t)
    void gw_fence()

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int, int)
    enum: EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int, const void*, size_t)
    ssize_t read(int, void*, size_t)
    int close(int)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    enum: CLOCK_MONOTONIC

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd*, unsigned long, const timespec*, const void*)
    enum: POLLIN

cdef enum:
    NS_PER_MS = 1000000
    # Those who wait for acknowledgements fall silent when all of them wait: then commit at once.
    QUIET_NS = 150000
    # Where nobody waits for an acknowledgement, few bytes may wait this long for company.
    RELAXED_SPACING_NS = 100000000
    RELAXED_BYTES = 1048576
    # How often a full disk is tried again.
    RETRY_NS = 200000000
    # A clock stepping back by up to this is clamped, so that time stands still rather than runs backwards.
    CLAMP_MS = 1000
    # Rings are drained in turns, so after a stall one ring's records may be this much older than another's.
    LAG_MS_MAX = 300000

STEPS = {
    STEP_CREATE: "creating a segment",
    STEP_ALLOCATE_APPEND: "writing to a segment",
    STEP_SYNC_DIRECTORY: "syncing a directory",
    STEP_SYNC_SEALED: "syncing a sealed segment",
    STEP_SYNC: "syncing the active segment",
    STEP_SEAL: "sealing a segment",
    STEP_MEMORY: "getting memory",
}


# -- small helpers --------------------------------------------------------------------------------------------------

cdef inline uint64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef inline void bell(int fd) noexcept nogil:
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))    # EAGAIN: it rings already


cdef inline void wait_bell(int fd, int64_t timeout_ns) noexcept nogil:
    """Block until the bell rings, a signal arrives, or the time is over; timeout_ns -1: no limit."""
    cdef pollfd waiting
    cdef timespec timeout
    cdef uint64_t count
    timeout.tv_sec = timeout_ns // 1000000000
    timeout.tv_nsec = timeout_ns % 1000000000
    waiting.fd = fd
    waiting.events = POLLIN
    waiting.revents = 0
    if ppoll(&waiting, 1, &timeout if timeout_ns >= 0 else NULL, NULL) > 0:
        read(fd, &count, sizeof(count))


cdef inline void bump(uint64_t* counter, uint64_t by) noexcept nogil:
    """Add to a counter that one thread writes and others read."""
    gw_store_relaxed(counter, gw_load_relaxed(counter) + by)


cdef inline bint is_full_disk(int failed) noexcept nogil:
    return failed == -ENOSPC or failed == -EDQUOT


# -- batch buffers ----------------------------------------------------------------------------------------------------

cdef void free_one_batch(Writer w) noexcept nogil:
    cdef Batch* batch = w.free_batches
    w.free_batches = batch.next
    w.buffer_bytes -= batch.capacity
    free(batch.data)
    free(batch)


cdef Batch* take_batch(Writer w, size_t bytes_needed) noexcept nogil:
    """A batch buffer for at least that many bytes, or NULL while the pool is used up."""
    cdef size_t capacity = BATCH_BYTES
    cdef Batch* batch
    if bytes_needed > capacity:
        capacity = bytes_needed
    elif w.free_batches is not NULL:
        batch = w.free_batches
        w.free_batches = batch.next
        batch.next = NULL
        batch.finished_bytes = 0
        return batch
    while w.buffer_bytes + capacity > w.buffer_bytes_max and w.free_batches is not NULL:
        free_one_batch(w)           # only a large record comes here with spare buffers: they make room for it
    if w.buffer_bytes and w.buffer_bytes + capacity > w.buffer_bytes_max:
        return NULL
    batch = <Batch*>calloc(1, sizeof(Batch))
    if batch is NULL:
        return NULL
    batch.data = <uint8_t*>malloc(capacity)
    if batch.data is NULL:
        free(batch)
        return NULL
    batch.capacity = capacity
    w.buffer_bytes += capacity
    return batch


cdef void release_batches(Writer w, Batch* batch) noexcept nogil:
    """Give a list of buffers back. Standard ones are kept for reuse, large ones are freed."""
    cdef Batch* following
    while batch is not NULL:
        following = batch.next
        if batch.capacity == BATCH_BYTES:
            batch.next = w.free_batches
            w.free_batches = batch
        else:
            w.buffer_bytes -= batch.capacity
            free(batch.data)
            free(batch)
        batch = following


# -- a partition, on the writer thread --------------------------------------------------------------------------------

cdef void fail_partition(Writer w, Partition* p, int failed, uint64_t step) noexcept nogil:
    """From now on nothing more is acknowledged from this partition; whoever waits is told."""
    cdef uint64_t i
    if gw_load_relaxed(&p.failed):
        return
    gw_store_relaxed(&p.failed_errno, <uint64_t>(-failed))
    gw_store_relaxed(&p.failed_step, step)
    gw_store_release(&p.failed, 1)
    gw_fence()                      # `ring` counts a new ring, fences, then looks at `failed`
    for i in range(gw_load_acquire(&w.ring_count)):
        gw_store_release(&w.rings[i].failed[p.index], 1)
        ring_notify(w.rings[i])
    bell(w.health_fd)


cdef void set_full_disk(Writer w, Partition* p, int failed) noexcept nogil:
    if not p.full_disk:
        p.full_disk = True
        w.stalled_partitions += 1
        w.retry_ns = monotonic_ns() + RETRY_NS
        gw_store_relaxed(&p.stalled_errno, <uint64_t>(-failed))
        bell(w.health_fd)


cdef void clear_full_disk(Writer w, Partition* p) noexcept nogil:
    if p.full_disk:
        p.full_disk = False
        w.stalled_partitions -= 1
        gw_store_relaxed(&p.stalled_errno, 0)
        bell(w.health_fd)


cdef int create_directory(Writer w, Partition* p, int64_t base_offset) noexcept nogil:
    """The directory of a new partition, and a watermark that says from the first moment on that nothing is durable.

    A reader that finds no watermark trusts every sound batch, so there must be one before there is a segment.
    """
    cdef char path[PATH_BYTES]
    cdef uint8_t encoded[WATERMARK_BYTES]
    cdef int fd
    cdef int failed = w.ops.make_directory(p.directory)
    if failed:
        return failed
    p.new_directory = True
    snprintf(path, PATH_BYTES, "%s/watermark", p.directory)
    fd = w.ops.open(path, OPEN_EMPTY)
    if fd < 0:
        return fd
    watermark_encode(encoded, p.epoch, base_offset, 0, base_offset)
    failed = w.ops.write_at(fd, encoded, WATERMARK_BYTES, 0)
    if failed:
        close_counted(w, fd)
        return failed
    p.watermark_fd = fd
    return 0


cdef int create_segment(Writer w, Partition* p, int64_t base_offset) noexcept nogil:
    """A new active segment; for a new partition its directory and watermark file too."""
    cdef int failed
    cdef Active* active
    if p.watermark_fd < 0:
        failed = create_directory(w, p, base_offset)
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
    return 0


cdef int seal_segment(Writer w, Partition* p) noexcept nogil:
    """Finish the active segment; its descriptors stay open until the flusher has synced them."""
    cdef Sealed* sealed = <Sealed*>calloc(1, sizeof(Sealed))
    cdef int failed
    if sealed is NULL:
        return -ENOMEM
    failed = active_seal(w.ops, p.active)
    if failed:
        free(sealed)
        return failed
    if p.active.index_error:
        bump(&p.index_errors, 1)
    sealed.log_fd = p.active.log.fd
    sealed.index_fd = p.active.index_fd
    sealed.time_fd = p.active.time_fd
    sealed.base_offset = p.active.base_offset
    sealed.position = p.active.log.position
    sealed.next = p.sealed
    p.sealed = sealed
    free(p.active)
    p.active = NULL
    return 0


cdef bint append_open_batch(Writer w, Partition* p) noexcept nogil:
    """Close the open batch and append it to the active segment. False: no room on the disk, or the partition failed."""
    cdef Batch* batch = p.open
    cdef int64_t last_offset
    cdef int failed = 0
    if batch.finished_bytes == 0:
        batch.finished_bytes = batch_finish(&batch.builder)
    last_offset = batch.builder.base_offset + batch.builder.count - 1
    if p.active is not NULL and p.active.log.position > 0 and (p.roll or not active_has_room(
            p.active, batch.finished_bytes, last_offset, batch.builder.max_timestamp, p.segment_bytes,
            p.segment_age_ms)):
        failed = seal_segment(w, p)
        if failed:
            fail_partition(w, p, failed, STEP_SEAL)
            return False
    if p.active is NULL:
        failed = create_segment(w, p, batch.builder.base_offset)
        if is_full_disk(failed):
            set_full_disk(w, p, failed)
            return False
        if failed:
            fail_partition(w, p, failed, STEP_CREATE)
            return False
    failed = active_append(w.ops, p.active, batch.data, batch.finished_bytes, last_offset,
                           batch.builder.max_timestamp, p.segment_bytes)
    if is_full_disk(failed):
        set_full_disk(w, p, failed)
        return False
    if failed:
        fail_partition(w, p, failed, STEP_ALLOCATE_APPEND)
        return False
    p.roll = False
    clear_full_disk(w, p)
    bump(&w.batches, 1)
    bump(&w.log_bytes, batch.finished_bytes)
    batch.next = p.kept             # kept until durable
    p.kept = batch
    p.open = NULL
    return True


cdef void mark_dirty(Writer w, Partition* p) noexcept nogil:
    if p.dirty:
        return
    p.dirty = True
    p.next_dirty = w.dirty
    if w.dirty is NULL or p.linger_ns < w.dirty_linger_ns:
        w.dirty_linger_ns = p.linger_ns
    w.dirty = p


cdef int open_batch(Writer w, Partition* p, RingSlot* slot) noexcept nogil:
    """Have an open batch that the slot's record fits into. 1: ready; 0: not now (no buffer, no disk room); -1: failed."""
    cdef size_t most = record_bytes_max(slot.key_bytes, slot.value_bytes, slot.headers_bytes)
    if p.open is not NULL:
        if p.open.finished_bytes == 0 and not (slot.flags & SLOT_KEYFRAME and p.open.builder.count > 0) \
                and p.open.builder.length + most <= p.open.capacity:
            return 1
        if not append_open_batch(w, p):
            return -1 if gw_load_relaxed(&p.failed) else 0
    p.open = take_batch(w, BATCH_HEADER_BYTES + most)
    if p.open is NULL:
        w.starved = True
        return 0
    batch_begin(&p.open.builder, p.open.data, p.open.capacity, p.next_offset)
    return 1


cdef bint stepped_back(Writer w, Partition* p, uint64_t ring_index, int64_t timestamp) noexcept nogil:
    """Did the clock step back by more than is clamped since the partition's last record? A lagging ring is no step."""
    cdef int64_t back = p.last_timestamp - timestamp
    if w.ring_timestamps[ring_index] - timestamp > CLAMP_MS:
        w.clock_steps += 1
        w.ring_timestamps[ring_index] = timestamp
    elif timestamp > w.ring_timestamps[ring_index]:
        w.ring_timestamps[ring_index] = timestamp
    return back > CLAMP_MS and (p.clock_steps != w.clock_steps or back > LAG_MS_MAX)


cdef bint take_failed(Partition* p) noexcept nogil:
    """A record found no way in. True: its partition failed, and it is counted as lost. False: the slot waits."""
    if not gw_load_relaxed(&p.failed):
        return False
    bump(&p.lost, 1)
    return True


cdef bint take_record(Writer w, uint64_t ring_index, RingSlot* slot) noexcept nogil:
    """Put the slot's record into its partition's open batch. False: not now; the slot stays in the ring."""
    cdef Partition* p = w.partitions[slot.partition]
    cdef uint8_t* key = <uint8_t*>slot + SLOT_BYTES
    cdef uint8_t* value = key + slot.key_bytes
    cdef int64_t timestamp = slot.timestamp_ns // NS_PER_MS
    cdef int ready
    if gw_load_relaxed(&p.failed):
        bump(&p.lost, 1)
        return True
    if p.full_disk:
        return False
    if stepped_back(w, p, ring_index, timestamp):
        # Look-up by time relies on times that do not run back within a segment.
        if p.open is not NULL and p.open.builder.count > 0 and not append_open_batch(w, p):
            return take_failed(p)
        p.roll = True
        p.clock_steps = w.clock_steps
        p.last_timestamp = timestamp
    ready = open_batch(w, p, slot)
    if ready < 0:
        bump(&p.lost, 1)
        return True
    if ready == 0:
        return False
    if timestamp < p.last_timestamp:
        timestamp = p.last_timestamp        # a small step back, or a ring that lags: time stands still
    batch_append(&p.open.builder, timestamp, key, <int32_t>slot.key_bytes, value, <int32_t>slot.value_bytes,
                 value + slot.value_bytes, slot.headers_bytes)
    p.last_timestamp = timestamp
    p.next_offset += 1
    p.drained[ring_index] = slot.sequence
    bump(&p.records, 1)
    bump(&p.bytes, <uint64_t>slot.key_bytes + slot.value_bytes + slot.headers_bytes)
    w.dirty_bytes += slot.size
    mark_dirty(w, p)
    if p.ack_memory:
        gw_store_release(&w.rings[ring_index].acked[p.index], slot.sequence)
        w.rings_to_notify = True
    elif slot.flags & SLOT_WANTS_ACK:
        w.dirty_wants_ack = True
    return True


cdef bint drain_ring(Writer w, uint64_t index) noexcept nogil:
    """Take up to DRAIN_BYTES from one ring. True if anything moved."""
    cdef RingState* ring = w.rings[index]
    cdef uint64_t start = w.positions[index]
    cdef uint64_t end = start + DRAIN_BYTES
    cdef RingSlot* slot
    while w.positions[index] < end:
        slot = ring_peek(ring, &w.positions[index])
        if slot is NULL or not take_record(w, index, slot):
            break
        w.positions[index] += slot.size
    if w.positions[index] == start:
        return False
    ring_free(ring, w.positions[index])
    if w.rings_to_notify:
        w.rings_to_notify = False
        ring_notify(ring)
    return True


cdef bint drain_rings(Writer w) noexcept nogil:
    """One turn for each ring. Where the batch buffers run out, the round ends there, and the next begins with whoever got
    nothing: a large record would else find them taken by others every time."""
    cdef bint moved = False
    cdef bint served
    cdef uint64_t count = gw_load_acquire(&w.ring_count)
    cdef uint64_t i, index
    for i in range(count):
        index = (w.first_ring + i) % count
        served = drain_ring(w, index)
        moved = moved or served
        if w.starved:
            w.first_ring = index + 1 if served else index
            break
    return moved


cdef bint rings_empty(Writer w) noexcept nogil:
    cdef uint64_t i
    for i in range(gw_load_acquire(&w.ring_count)):
        if ring_peek(w.rings[i], &w.positions[i]) is not NULL:
            return False
    return True


cdef void retry_full_disk(Writer w) noexcept nogil:
    """Try again to append what waits for room."""
    cdef Partition* p = w.dirty
    w.retry_ns = monotonic_ns() + RETRY_NS
    while p is not NULL:
        if p.full_disk:
            append_open_batch(w, p)
            if gw_load_relaxed(&p.failed):
                clear_full_disk(w, p)
        p = p.next_dirty


# -- group commit -----------------------------------------------------------------------------------------------------

cdef void drop_failed(Writer w, Partition* p) noexcept nogil:
    """What a failed partition still holds was never acknowledged and never will be: count it, free it."""
    cdef Batch* batch
    if p.open is not NULL:
        bump(&p.lost, p.open.builder.count)
        release_batches(w, p.open)
        p.open = NULL
    while p.kept is not NULL:
        batch = p.kept
        p.kept = batch.next
        batch.next = NULL
        bump(&p.lost, batch.builder.count)
        release_batches(w, batch)
    clear_full_disk(w, p)


cdef bint prepare_partition(Writer w, Partition* p) noexcept nogil:
    """Close the partition's batch and describe to the flusher what is to be synced. False: not in this commit."""
    cdef uint64_t i
    if not gw_load_relaxed(&p.failed) and p.open is not NULL and not p.full_disk:
        append_open_batch(w, p)
    if gw_load_relaxed(&p.failed):
        drop_failed(w, p)
        return False
    if p.kept is NULL:
        return False
    if p.active is not NULL:
        active_flush_indexes(w.ops, p.active)
        p.commit_fd = p.active.log.fd
        p.commit_base = p.active.base_offset
        p.commit_position = p.active.log.position
    else:
        # The disk had no room for a segment after the one just sealed, which holds all that was kept.
        p.commit_fd = -1
        p.commit_base = p.sealed.base_offset
        p.commit_position = p.sealed.position
    p.commit_offset = p.kept.builder.base_offset + p.kept.builder.count
    if p.open is NULL:
        # Sequences of a batch that still waits for room are not in this commit.
        for i in range(RINGS_MAX):
            p.commit_sequence[i] = p.drained[i]
    p.commit_batches = p.kept
    p.kept = NULL
    p.commit_sealed = p.sealed
    p.sealed = NULL
    p.commit_new_directory = p.new_directory
    p.commit_new_files = p.new_files
    p.new_directory = p.new_files = False
    gw_store_relaxed(&p.log_end_offset, <uint64_t>p.commit_offset)
    return True


cdef void start_commit(Writer w, uint64_t now) noexcept nogil:
    """Hand everything that is dirty to the flusher."""
    cdef Partition* p = w.dirty
    cdef Partition* following
    w.dirty = NULL
    w.commit_list = NULL
    w.commits_begun += 1
    while p is not NULL:
        following = p.next_dirty
        p.dirty = False
        if prepare_partition(w, p):
            p.next_commit = w.commit_list
            w.commit_list = p
        if p.full_disk:
            mark_dirty(w, p)
        p = following
    w.dirty_bytes = 0
    w.dirty_wants_ack = False
    w.last_commit_ns = now
    if w.commit_list is not NULL:
        bump(&w.commits, 1)
        gw_store_release(&w.commit_state, COMMIT_READY)
        bell(w.flusher_fd)
    else:
        w.commits_ended += 1
        w.starved = False           # what failed gave its buffers back


cdef void collect_commit(Writer w) noexcept nogil:
    """The flusher is done: reuse the buffers."""
    cdef Partition* p = w.commit_list
    while p is not NULL:
        release_batches(w, p.commit_batches)
        p.commit_batches = NULL
        if gw_load_relaxed(&p.failed):
            drop_failed(w, p)
        p = p.next_commit
    w.commit_list = NULL
    w.commits_ended += 1
    w.starved = False
    gw_store_release(&w.commit_state, COMMIT_IDLE)


cdef uint64_t commit_due(Writer w) noexcept nogil:
    """When the next commit may start (DESIGN: `linger` is the least spacing of commits, not a delay)."""
    cdef uint64_t linger = w.dirty_linger_ns
    cdef uint64_t due
    if w.starved or gw_load_relaxed(&w.flush_wanted) != gw_load_relaxed(&w.flush_done) \
            or gw_load_relaxed(&w.stopping):
        return 0
    if w.dirty_wants_ack:
        due = w.last_commit_ns + linger
        return due if due < w.last_arrival_ns + QUIET_NS else w.last_arrival_ns + QUIET_NS
    if w.dirty_bytes < RELAXED_BYTES and linger < RELAXED_SPACING_NS:
        linger = RELAXED_SPACING_NS
    return w.last_commit_ns + linger


cdef bint serve_flush(Writer w) noexcept nogil:
    """Take a flush request further; True once it is served.

    It asks for what was published when the writer saw it, not for an idle moment: under load there is none. That is
    drained first, then the commit that holds it must end.
    """
    cdef uint64_t wanted, i
    if w.flush_serving == gw_load_relaxed(&w.flush_done):
        wanted = gw_load_acquire(&w.flush_wanted)
        if wanted == w.flush_serving:
            return False
        w.flush_serving = wanted
        w.flush_drained = False
        w.flush_rings = gw_load_acquire(&w.ring_count)
        for i in range(w.flush_rings):
            w.flush_heads[i] = gw_load_acquire(&w.rings[i].head)
    if not w.flush_drained:
        for i in range(w.flush_rings):
            if w.positions[i] < w.flush_heads[i]:
                return False
        w.flush_drained = True
        w.flush_commit = w.commits_begun + (1 if w.dirty is not NULL else 0)
    if w.stalled_partitions:
        w.flush_commit = w.commits_begun + 1    # what waits for room on the disk comes with a later one
    if w.commits_ended < w.flush_commit:
        return False
    gw_store_release(&w.flush_done, w.flush_serving)
    return True


# -- the flusher thread -----------------------------------------------------------------------------------------------

cdef int timed_sync(Writer w, int fd, bint everything) noexcept nogil:
    cdef uint64_t start = monotonic_ns()
    cdef int failed = w.ops.sync_all(fd) if everything else w.ops.sync_data(fd)
    cdef uint64_t took = monotonic_ns() - start
    bump(&w.synced_files, 1)
    bump(&w.sync_ns, took)
    if took > gw_load_relaxed(&w.sync_ns_max):
        gw_store_relaxed(&w.sync_ns_max, took)
    return failed


cdef int sync_sealed(Writer w, Partition* p) noexcept nogil:
    """Sync and close sealed segments, the log with its new length first; indexes can be rebuilt and only counted."""
    cdef Sealed* sealed
    cdef int failed = 0
    while p.commit_sealed is not NULL:
        sealed = p.commit_sealed
        if failed == 0:
            failed = timed_sync(w, sealed.log_fd, True)
        if failed == 0 and (w.ops.sync_all(sealed.index_fd) or w.ops.sync_all(sealed.time_fd)):
            bump(&p.index_errors, 1)
        close_counted(w, sealed.log_fd)
        close_counted(w, sealed.index_fd)
        close_counted(w, sealed.time_fd)
        p.commit_sealed = sealed.next
        free(sealed)
    return failed


cdef void close_counted(Writer w, int fd) noexcept nogil:
    if w.ops.close(fd):
        bump(&w.close_errors, 1)


cdef void publish(Writer w, Partition* p) noexcept nogil:
    """The commit is on the disk: say so to other processes, to this one, and to those who wait."""
    cdef uint8_t encoded[WATERMARK_BYTES]
    cdef uint64_t i
    watermark_encode(encoded, p.epoch, p.commit_base, p.commit_position, p.commit_offset)
    if w.ops.write_at(p.watermark_fd, encoded, WATERMARK_BYTES, 0):
        bump(&p.watermark_errors, 1)     # readers elsewhere see less for a while; nothing is lost
    gw_store_release(&p.durable_offset, <uint64_t>p.commit_offset)
    for i in range(gw_load_acquire(&w.ring_count)):
        if p.commit_sequence[i] > gw_load_relaxed(&w.rings[i].acked[p.index]):
            gw_store_release(&w.rings[i].acked[p.index], p.commit_sequence[i])


cdef void sync_partition(Writer w, Partition* p) noexcept nogil:
    """Everything the commit speaks of, in the order that a crash in between can be recovered from."""
    cdef uint64_t step = STEP_SYNC_SEALED
    cdef int failed = sync_sealed(w, p)
    if failed == 0 and p.commit_fd >= 0:
        step = STEP_SYNC
        failed = timed_sync(w, p.commit_fd, False)
    if failed == 0 and p.commit_new_files:
        step = STEP_SYNC_DIRECTORY
        # Once for each segment: after a power failure readers must not meet an empty watermark beside committed data.
        failed = timed_sync(w, p.watermark_fd, True)
        if failed == 0:
            failed = w.ops.sync_directory(p.directory)
    if failed == 0 and p.commit_new_directory:
        step = STEP_SYNC_DIRECTORY
        failed = w.ops.sync_directory(p.parent)
    if failed:
        fail_partition(w, p, failed, step)
    elif not gw_load_acquire(&p.failed):
        publish(w, p)


cdef void flush_commit(Writer w) noexcept nogil:
    cdef Partition* p = w.commit_list
    cdef uint64_t i
    while p is not NULL:
        sync_partition(w, p)
        p = p.next_commit
    for i in range(gw_load_acquire(&w.ring_count)):
        ring_notify(w.rings[i])
    gw_store_release(&w.commit_state, COMMIT_DONE)
    gw_fence()
    if gw_load_relaxed(&w.writer_sleeping) and gw_exchange(&w.writer_sleeping, 0):
        bell(w.writer_fd)


cdef void run_flusher_loop(Writer w) noexcept nogil:
    while True:
        wait_bell(w.flusher_fd, -1)
        if gw_load_acquire(&w.commit_state) == COMMIT_READY:
            flush_commit(w)
        elif gw_load_acquire(&w.writer_state) == WRITER_FINISHED:
            return


# -- the writer thread ------------------------------------------------------------------------------------------------

cdef bint writer_step(Writer w) noexcept nogil:
    """One round: collect, retry, drain, commit. True if anything moved."""
    cdef bint moved = False
    cdef uint64_t now
    if gw_load_acquire(&w.commit_state) == COMMIT_DONE:
        collect_commit(w)
        moved = True
    if w.starved and w.dirty is NULL and gw_load_acquire(&w.commit_state) == COMMIT_IDLE:
        w.starved = False
    if w.stalled_partitions and monotonic_ns() >= w.retry_ns:
        retry_full_disk(w)
    if not w.starved and not w.stalled_partitions and drain_rings(w):
        moved = True
        w.last_arrival_ns = monotonic_ns()
    if w.dirty is not NULL and gw_load_acquire(&w.commit_state) == COMMIT_IDLE:
        now = monotonic_ns()
        if now >= commit_due(w) and not only_stalled(w):
            start_commit(w, now)
    if serve_flush(w):
        moved = True
    return moved


cdef bint only_stalled(Writer w) noexcept nogil:
    """Nothing to commit: every dirty partition waits for room on the disk and has nothing appended."""
    cdef Partition* p = w.dirty
    while p is not NULL:
        if not p.full_disk or p.kept is not NULL:
            return False
        p = p.next_dirty
    return True


cdef int64_t sleep_ns(Writer w) noexcept nogil:
    """How long the writer may sleep; -1: until something happens."""
    cdef uint64_t now = monotonic_ns()
    cdef uint64_t due
    if w.stalled_partitions:
        due = w.retry_ns
    elif w.dirty is NULL or gw_load_acquire(&w.commit_state) != COMMIT_IDLE:
        return -1
    else:
        due = commit_due(w)
    return <int64_t>(due - now) if due > now else 0


cdef void writer_sleep(Writer w) noexcept nogil:
    """Sleep until a producer publishes, the flusher is done, someone asks, or a commit is due.

    A flush or stop request leaves the bell ringing, so it needs no look here.
    """
    cdef int64_t timeout = sleep_ns(w)
    if timeout == 0:
        return
    gw_store_seq(&w.writer_sleeping, 1)
    gw_fence()                      # a producer publishes, fences, then looks at `writer_sleeping`
    if gw_load_acquire(&w.commit_state) != COMMIT_DONE and (w.starved or w.stalled_partitions or rings_empty(w)):
        wait_bell(w.writer_fd, timeout)
    gw_store_seq(&w.writer_sleeping, 0)


cdef void close_partition(Writer w, Partition* p) noexcept nogil:
    """Leave the active segment at its exact length, with complete indexes, synced."""
    cdef int failed
    if p.active is NULL:
        return
    failed = active_seal(w.ops, p.active)
    if failed == 0:
        failed = w.ops.sync_all(p.active.log.fd)
    if failed and not gw_load_relaxed(&p.failed):
        gw_store_relaxed(&p.failed_errno, <uint64_t>(-failed))
        gw_store_relaxed(&p.failed_step, STEP_SEAL)
    if p.active.index_error or w.ops.sync_all(p.active.index_fd) or w.ops.sync_all(p.active.time_fd):
        bump(&p.index_errors, 1)
    close_counted(w, p.active.log.fd)
    close_counted(w, p.active.index_fd)
    close_counted(w, p.active.time_fd)
    free(p.active)
    p.active = NULL


cdef void run_writer_loop(Writer w) noexcept nogil:
    cdef uint64_t i
    while True:
        if not writer_step(w):
            if gw_load_acquire(&w.stopping) and rings_empty(w) and w.dirty is NULL \
                    and gw_load_acquire(&w.commit_state) == COMMIT_IDLE:
                break
            if gw_load_acquire(&w.abandoned) and gw_load_acquire(&w.commit_state) == COMMIT_IDLE:
                break
            writer_sleep(w)
    for i in range(gw_load_acquire(&w.partition_count)):
        close_partition(w, w.partitions[i])
    gw_store_release(&w.writer_state, WRITER_FINISHED)
    bell(w.flusher_fd)


# -- from Python ------------------------------------------------------------------------------------------------------

cdef int open_existing(
    Writer w, Partition* p, int64_t base, int64_t position, int64_t index_bytes, int64_t time_bytes,
) except -1:
    """Open what recovery left of a partition, and publish its watermark under the new epoch."""
    cdef uint8_t encoded[WATERMARK_BYTES]
    cdef char path[PATH_BYTES]
    cdef int failed
    directory = os.fsdecode(<bytes>p.directory)
    snprintf(path, PATH_BYTES, "%s/watermark", p.directory)
    p.watermark_fd = w.ops.open(path, OPEN_EXISTING)
    if p.watermark_fd == -ENOENT:
        p.watermark_fd = w.ops.open(path, OPEN_NEW)
        p.new_files = True
    if p.watermark_fd < 0:
        raise OSError(-p.watermark_fd, "cannot open the watermark", directory)
    watermark_encode(encoded, p.epoch, base, position, p.next_offset)
    failed = w.ops.write_at(p.watermark_fd, encoded, WATERMARK_BYTES, 0)
    if failed:
        raise OSError(-failed, "cannot write the watermark", directory)
    p.active = <Active*>calloc(1, sizeof(Active))
    if p.active is NULL:
        raise MemoryError()
    failed = active_open(w.ops, p.active, p.directory, base)
    if failed:
        free(p.active)
        p.active = NULL
        raise OSError(-failed, f"cannot open segment {base}", directory)
    p.active.log.position = position
    p.active.log.allocated = position
    p.active.index_bytes = index_bytes
    p.active.time_bytes = time_bytes
    return 0


cdef class Writer:
    """Rings, partitions, and the two threads between them and the disk.

    ``storage`` is "mapped" or "pwrite". ``buffer_bytes`` bounds the batch buffers of all partitions together,
    ``partitions_max`` the number of partitions. Run ``run_writer`` and ``run_flusher`` in a thread each; both return
    after ``stop``.

    Durable: a record whose ring says ACKED (with ack = "disk") was synced, with the directory entries needed to find
    it. Not durable: anything else, also when a later record of another partition is.
    """

    def __cinit__(self, str storage="mapped", uint64_t buffer_bytes=67108864, uint32_t partitions_max=1024):
        self.writer_fd = self.flusher_fd = self.health_fd = -1
        self.ops = storage_table(storage)
        self.partitions_max = partitions_max
        self.buffer_bytes_max = buffer_bytes
        self.ring_objects = []
        self.partitions = <Partition**>calloc(partitions_max, sizeof(Partition*))
        if self.partitions is NULL:
            raise MemoryError()
        self.writer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.flusher_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.health_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.writer_fd < 0 or self.flusher_fd < 0 or self.health_fd < 0:
            raise OSError(errno, "eventfd")

    def __dealloc__(self):
        cdef uint64_t i
        for i in range(self.partition_count):
            free_partition(self, self.partitions[i])
        free(self.partitions)
        while self.free_batches is not NULL:
            free_one_batch(self)
        for fd in (self.writer_fd, self.flusher_fd, self.health_fd):
            if fd >= 0:
                close(fd)

    @property
    def storage(self) -> str:
        """Name of the storage table."""
        return self.ops.name.decode()

    @property
    def health_fd(self) -> int:
        """Readable when a partition failed, ran out of disk, or found room again; see `partition_state`."""
        return self.health_fd

    def clear_health(self) -> None:
        """Make `health_fd` unreadable until the next change."""
        cdef uint64_t count
        read(self.health_fd, &count, sizeof(count))

    def ring(self, str name, uint64_t capacity) -> Ring:
        """A new ring for one producing thread. capacity: bytes, a power of two."""
        if self.ring_count >= RINGS_MAX:
            raise ValueError(f"at most {RINGS_MAX} producing threads can have a ring; {name} would be one more")
        made = Ring(self, name, capacity, self.partitions_max, <size_t>&self.partition_count, self.writer_fd,
                    <size_t>&self.writer_sleeping)
        cdef Ring ring = made
        cdef uint64_t i
        # The writer keeps the ring's memory alive; the ring points back here, and the cycle collector sees both.
        self.ring_objects.append(ring)
        self.rings[self.ring_count] = ring.state
        gw_store_release(&self.ring_count, self.ring_count + 1)
        gw_fence()                  # `fail_partition` sets `failed`, fences, then looks at `ring_count`
        for i in range(self.partition_count):
            if gw_load_acquire(&self.partitions[i].failed):
                gw_store_release(&ring.state.failed[i], 1)
        return made

    def add_partition(
        self, str directory, *, uint64_t epoch=1, int64_t next_offset=0, int64_t segment_base=-1, int64_t position=0,
        int64_t index_bytes=0, int64_t time_bytes=0, int64_t bytes_since_entry=0, int64_t first_timestamp=-1,
        int64_t max_timestamp=-1, int64_t offset_of_max=0, int64_t last_time_entry=-1, int64_t last_timestamp=-1,
        int64_t segment_bytes=1073741824, int64_t segment_age_ms=0, uint64_t linger_ns=5000000, bint ack_memory=False,
    ) -> int:
        """Make a partition known and return its index for ring slots.

        A new partition (segment_base -1) costs nothing on disk until its first record. For an existing one the
        arguments are what recovery found in the last segment; its files are opened here, and its watermark is
        published under the new epoch. Raises OSError naming the directory.
        """
        cdef Partition* p
        if self.partition_count >= self.partitions_max:
            raise ValueError(f"at most {self.partitions_max} partitions; {directory} would be one more")
        if len(os.fsencode(directory)) > PATH_BYTES - 64:
            raise ValueError(f"the path of the partition is longer than {PATH_BYTES - 64} bytes: {directory[:80]}…")
        p = <Partition*>calloc(1, sizeof(Partition))
        if p is NULL:
            raise MemoryError()
        p.watermark_fd = -1
        p.directory = strdup(os.fsencode(directory))
        p.parent = strdup(os.fsencode(os.path.dirname(directory) or "."))
        p.index = <uint32_t>self.partition_count
        p.segment_bytes = segment_bytes
        p.segment_age_ms = segment_age_ms
        p.linger_ns = linger_ns
        p.ack_memory = ack_memory
        p.epoch = epoch
        p.next_offset = next_offset
        p.last_timestamp = last_timestamp
        p.durable_offset = p.log_end_offset = <uint64_t>next_offset
        try:
            if segment_base >= 0:
                open_existing(self, p, segment_base, position, index_bytes, time_bytes)
                p.active.bytes_since_entry = bytes_since_entry
                p.active.first_timestamp = first_timestamp
                p.active.max_timestamp = max_timestamp
                p.active.offset_of_max = offset_of_max
                p.active.last_time_entry = last_time_entry
        except BaseException:
            free_partition(self, p)
            raise
        self.partitions[self.partition_count] = p
        gw_store_release(&self.partition_count, self.partition_count + 1)
        return p.index

    def run_writer(self) -> None:
        """The writer thread's body; returns after `stop`, when everything published is durable or has failed."""
        gw_store_release(&self.writer_state, WRITER_RUNNING)
        with nogil:
            run_writer_loop(self)

    def run_flusher(self) -> None:
        """The flusher thread's body; returns after the writer."""
        with nogil:
            run_flusher_loop(self)

    def flush(self, double timeout_s=30.0) -> bool:
        """Wait until everything published before is durable (or its partition failed). False: not within the time."""
        cdef uint64_t wanted = gw_load_relaxed(&self.flush_wanted) + 1
        gw_store_release(&self.flush_wanted, wanted)
        bell(self.writer_fd)
        deadline = time.monotonic() + timeout_s
        while gw_load_acquire(&self.flush_done) < wanted:
            if time.monotonic() > deadline or gw_load_acquire(&self.writer_state) != WRITER_RUNNING:
                return gw_load_acquire(&self.flush_done) >= wanted
            time.sleep(0.0005)
        return True

    def stop(self, *, bint abandon=False) -> None:
        """Ask both threads to end once everything published is durable; abandon: leave behind what waits for a full disk."""
        if abandon:
            gw_store_release(&self.abandoned, 1)
        gw_store_release(&self.stopping, 1)
        bell(self.writer_fd)

    def partition_state(self, uint32_t index) -> dict:
        """Offsets, counters and trouble of one partition."""
        if index >= self.partition_count:
            raise IndexError(f"partition {index} of {self.partition_count}")
        cdef Partition* p = self.partitions[index]
        failed = gw_load_acquire(&p.failed) != 0
        return {
            "durable_offset": gw_load_acquire(&p.durable_offset),
            "records": gw_load_relaxed(&p.records),
            "bytes": gw_load_relaxed(&p.bytes),
            "lost": gw_load_relaxed(&p.lost),
            "failed": failed,
            "failed_errno": gw_load_relaxed(&p.failed_errno),
            "failed_step": STEPS.get(gw_load_relaxed(&p.failed_step), ""),
            "stalled_errno": gw_load_relaxed(&p.stalled_errno),
            "index_errors": gw_load_relaxed(&p.index_errors),
            "watermark_errors": gw_load_relaxed(&p.watermark_errors),
        }

    @property
    def counters(self) -> dict:
        """Work done since the start: commits, batches, bytes appended, files synced, time in sync (ns)."""
        return {
            "commits": gw_load_relaxed(&self.commits),
            "batches": gw_load_relaxed(&self.batches),
            "log_bytes": gw_load_relaxed(&self.log_bytes),
            "synced_files": gw_load_relaxed(&self.synced_files),
            "sync_ns": gw_load_relaxed(&self.sync_ns),
            "sync_ns_max": gw_load_relaxed(&self.sync_ns_max),
            "close_errors": gw_load_relaxed(&self.close_errors),
        }


cdef void free_partition(Writer w, Partition* p) noexcept:
    """Free what a partition holds. The threads are gone, or never knew it."""
    cdef Sealed* sealed
    if p is NULL:
        return
    if p.open is not NULL:
        release_batches(w, p.open)
    release_batches(w, p.kept)
    release_batches(w, p.commit_batches)
    while p.sealed is not NULL:
        sealed = p.sealed
        p.sealed = sealed.next
        w.ops.close(sealed.log_fd)
        w.ops.close(sealed.index_fd)
        w.ops.close(sealed.time_fd)
        free(sealed)
    if p.active is not NULL:
        w.ops.detach(&p.active.log)
        w.ops.close(p.active.log.fd)
        w.ops.close(p.active.index_fd)
        w.ops.close(p.active.time_fd)
        free(p.active)
    if p.watermark_fd >= 0:
        w.ops.close(p.watermark_fd)
    free(p.directory)
    free(p.parent)
    free(p)
