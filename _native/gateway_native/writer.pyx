"""The writer thread: drains the rings, batches, decides when to commit; and `Writer`, which Python sees.

See writer.pxd for the division of labour, state.pxd for what each field is and who may touch it.
"""

import os
import time

from libc.errno cimport EIO, ENOENT, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport strdup

from gateway_native.batch cimport (
    BATCH_HEADER_BYTES,
    batch_append,
    batch_begin,
    put_header,
    put_headers_count,
    record_bytes_max,
)
from gateway_native.buffers cimport free_buffers, grow_buffer, take_buffer
from gateway_native.flusher cimport flush_commit
from gateway_native.partition cimport (
    NS_PER_MS,
    append_open_batch,
    collect_partition,
    mark_dirty,
    prepare_commit,
    retry_full_disk,
    roll_partition,
    take_troubled,
)
from gateway_native.ring cimport (
    SLOT_BYTES,
    SLOT_GAP,
    SLOT_KEYFRAME,
    SLOT_WANTS_ACK,
    Ring,
    RingSlot,
    RingState,
    ring_free,
    ring_notify,
    ring_peek,
)
from gateway_native.rolling cimport close_partition, free_partition
from gateway_native.segment cimport PATH_BYTES, Active, active_open
from gateway_native.state cimport (
    COMMIT_DONE,
    COMMIT_IDLE,
    COMMIT_READY,
    DRAIN_BYTES,
    RINGS_MAX,
    STEP_ALLOCATE_APPEND,
    STEP_CREATE,
    STEP_MEMORY,
    STEP_SEAL,
    STEP_SYNC,
    STEP_SYNC_DIRECTORY,
    STEP_SYNC_SEALED,
    WRITER_FINISHED,
    WRITER_RUNNING,
    Partition,
    WriterState,
    bell,
    bump,
    gw_boottime_ns,
    gw_exchange,
    gw_fence,
    gw_load_acquire,
    gw_load_relaxed,
    gw_planted,
    gw_realtime_ns,
    gw_store_release,
    gw_store_seq,
    is_crowded,
    monotonic_ns,
)
from gateway_native.storage cimport OPEN_EXISTING, OPEN_NEW, storage_table
from gateway_native.watermark cimport MARK_INDEXES_WHOLE, WATERMARK_BYTES, watermark_encode

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int, int)
    enum: EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void*, size_t)
    int close(int)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from "atomics.h" nogil:
    void gw_prefetch(const void*)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd*, unsigned long, const timespec*, const void*)
    enum: POLLIN

cdef enum:
    NS_PER_S = 1000000000
    # Clients that each wait for their last acknowledgement before they publish again fall silent together: then commit at
    # once, if it pays, …
    QUIET_NS = 150000
    QUIET_WAITING_MIN = 8
    # … unless more spacing than usual was asked for, to spare the disk, or so many wait that the spacing holds up nobody:
    # they get 25,000 acknowledgements a second with it.
    QUIET_LINGER_NS_MAX = 5000000
    QUIET_WAITING_MAX = 128
    # Who publishes while others' records are being synced waits for nobody: that is no such group. A few are late.
    QUIET_LATE_PART = 4
    # Where nobody waits for an acknowledgement, few bytes may wait this long for company.
    RELAXED_SPACING_NS = 100000000
    RELAXED_BYTES = 1048576
    # A clock stepping back by up to this is clamped, so that time stands still rather than runs backwards.
    CLAMP_MS = 1000
    # Rings are drained in turns, so after a stall one ring's records may be this much older than another's.
    LAG_MS_MAX = 300000
    # The wall clock jumping ahead by more than this begins a new segment.
    FORWARD_MS = 3600000
    AHEAD_RECORDS = 16              # so far ahead the processor is asked for what they touch
    CLOCK_TEXT_BYTES = 80
    CLOCK_RECORD_BYTES = 160        # bound of a whole clock record in a batch

STEPS = {
    STEP_CREATE: "creating a segment",
    STEP_ALLOCATE_APPEND: "writing to a segment",
    STEP_SYNC_DIRECTORY: "syncing a directory",
    STEP_SYNC_SEALED: "syncing a sealed segment",
    STEP_SYNC: "syncing the active segment",
    STEP_SEAL: "sealing a segment",
    STEP_MEMORY: "getting memory",
}


cdef inline void wait_bell(int fd, int64_t timeout_ns) noexcept nogil:
    """Block until the bell rings, a signal arrives, or the time is over; timeout_ns -1: no limit."""
    cdef pollfd waiting
    cdef timespec timeout
    cdef uint64_t count
    timeout.tv_sec = timeout_ns // NS_PER_S
    timeout.tv_nsec = timeout_ns % NS_PER_S
    waiting.fd = fd
    waiting.events = POLLIN
    waiting.revents = 0
    if ppoll(&waiting, 1, &timeout if timeout_ns >= 0 else NULL, NULL) > 0:
        read(fd, &count, sizeof(count))


# -- records into batches ---------------------------------------------------------------------------------------------

cdef int open_batch(WriterState* w, Partition* p, RingSlot* slot) noexcept nogil:
    """Have an open batch that the slot's record fits into. 1: ready; 0: not now (no buffer); -1: the partition failed."""
    cdef size_t most = record_bytes_max(slot.key_bytes, slot.value_bytes, slot.headers_bytes)
    if p.clock_record:
        most += CLOCK_RECORD_BYTES
    if p.open is not NULL:
        if not (slot.flags & SLOT_KEYFRAME and p.open.builder.count > 0):
            if p.open.builder.length + most <= p.open.builder.capacity:
                return 1
            while grow_buffer(w, p.open):
                if p.open.builder.length + most <= p.open.capacity:
                    return 1
        append_open_batch(w, p)
        if gw_load_relaxed(&p.failed):
            return -1
        if p.refusing and not gw_planted("taken while refusing"):
            return 0
    p.open = take_buffer(w, BATCH_HEADER_BYTES + most, p.batch_bytes)
    if p.open is NULL:
        w.starved = True
        return 0
    batch_begin(&p.open.builder, p.open.data, p.open.capacity, p.next_offset)
    return 1


cdef void put_clock_record(Partition* p, int64_t timestamp) noexcept nogil:
    """The first record behind a step of the wall clock says so: FORMAT.md, section 3."""
    cdef char text[CLOCK_TEXT_BYTES]
    cdef uint8_t headers[CLOCK_RECORD_BYTES]
    cdef int length = snprintf(text, CLOCK_TEXT_BYTES, "old=%lld new=%lld cause=step", <long long>p.clock_old,
                               <long long>timestamp)
    cdef uint8_t* end = put_header(put_headers_count(headers, 1), "gateway.clock", 13, <uint8_t*>text, length)
    p.clock_record = False
    batch_append(&p.open.builder, timestamp, NULL, -1, NULL, -1, headers, <uint32_t>(end - headers))
    p.next_offset += 1


cdef bint stepped_back(WriterState* w, Partition* p, uint64_t ring_index, int64_t timestamp) noexcept nogil:
    """Did the clock step back by more than is clamped since the partition's last record? A lagging ring is no step."""
    cdef int64_t back = p.last_timestamp - timestamp
    if w.ring_timestamps[ring_index] - timestamp > CLAMP_MS:
        w.clock_steps += 1
        w.ring_timestamps[ring_index] = timestamp
    elif timestamp > w.ring_timestamps[ring_index]:
        w.ring_timestamps[ring_index] = timestamp
    return back > CLAMP_MS and (p.clock_steps != w.clock_steps or back > LAG_MS_MAX)


cdef bint jumped_ahead(WriterState* w, Partition* p, int64_t timestamp) noexcept nogil:
    """Did the wall clock jump ahead since the partition's last record? A stream that was silent is no jump."""
    return p.last_timestamp >= 0 and timestamp - p.last_timestamp > FORWARD_MS and p.forward_steps != w.forward_steps


cdef int begin_after_step(WriterState* w, Partition* p, int64_t timestamp) noexcept nogil:
    """Look-up by time judges each segment by its own range, so a step of the clock begins a new one.

    1: go on with the record; 0: not now; -1: the partition failed.
    """
    if p.open is not NULL and p.open.builder.count > 0:
        append_open_batch(w, p)
        if gw_load_relaxed(&p.failed):
            return -1
        if p.refusing:
            return 0
    p.roll = p.clock_record = True
    p.clock_old = p.last_timestamp
    p.clock_steps = w.clock_steps
    p.forward_steps = w.forward_steps
    p.last_timestamp = timestamp
    return 1


cdef bint take_record(WriterState* w, uint64_t ring_index, RingSlot* slot) noexcept nogil:
    """Put the slot's record into its partition's open batch. False: not now; the slot stays in the ring."""
    cdef Partition* p = w.partitions[slot.partition]
    cdef uint8_t* key = <uint8_t*>slot + SLOT_BYTES
    cdef uint8_t* value = key + slot.key_bytes
    cdef int64_t timestamp = slot.timestamp_ns // NS_PER_MS
    cdef int32_t key_length = <int32_t>slot.key_bytes
    cdef int32_t value_length = <int32_t>slot.value_bytes
    cdef int ready
    if p.troubled:
        ready = take_troubled(w, p, ring_index, slot)
        if ready:
            return ready > 0
    if stepped_back(w, p, ring_index, timestamp) or jumped_ahead(w, p, timestamp):
        if begin_after_step(w, p, timestamp) < 0:
            bump(&p.lost, 1)
            return True
    ready = open_batch(w, p, slot) if not (p.troubled and p.refusing) else 0
    if p.troubled and p.refusing and not gw_planted("taken while refusing"):
        # Room was to be made for it, and that met the full disk.
        return take_troubled(w, p, ring_index, slot) > 0
    if ready < 0:
        bump(&p.lost, 1)
        return True
    if ready == 0:
        return False
    if timestamp < p.last_timestamp:
        timestamp = p.last_timestamp        # a small step back, or a ring that lags: time stands still
    if p.clock_record:
        put_clock_record(p, timestamp)
    if slot.flags & SLOT_GAP and key_length == 0 and value_length == 0:
        key_length = value_length = -1      # the gateway's own records have neither
    batch_append(&p.open.builder, timestamp, key, key_length, value, value_length, value + slot.value_bytes,
                 slot.headers_bytes)
    p.last_timestamp = timestamp
    p.next_offset += 1
    p.drained[ring_index] = slot.sequence
    p.open.shares[ring_index].count += 1
    p.open.shares[ring_index].bytes += <uint64_t>slot.key_bytes + slot.value_bytes + slot.headers_bytes
    w.dirty_bytes += slot.size
    if not p.dirty:
        mark_dirty(w, p)
    if slot.flags & (SLOT_WANTS_ACK | SLOT_GAP):
        p.open.waiting_rings |= <uint32_t>1 << ring_index
        w.dirty_waiting += 1
    if p.ack_memory:
        gw_store_release(&w.rings[ring_index].acked[p.index], slot.sequence)
        w.rings_to_notify = True
    return True


cdef struct Ahead:                  # a cursor that runs ahead of the one that takes records
    uint64_t position
    uint64_t records                # so many ahead


cdef inline RingSlot* look_ahead(RingState* ring, Ahead* ahead, uint64_t position, uint64_t records) noexcept nogil:
    """The next slot to look at, as long as fewer than `records` lie between; NULL: none now."""
    cdef RingSlot* slot
    if ahead.position <= position:
        ahead.position = position
        ahead.records = 0
    if ahead.records == records:
        return NULL
    slot = ring_peek(ring, &ahead.position)
    if slot is not NULL:
        ahead.position += slot.size
        ahead.records += 1
    return slot


cdef inline void fetch_ahead(WriterState* w, uint64_t index, Ahead* partitions, Ahead* batches) noexcept nogil:
    """Where many partitions take turns, nothing of what the next records touch is in the processor's caches: ask in time.

    First for a partition's own lines; when these have come, for those of its open batch, to which it points.
    """
    cdef RingState* ring = w.rings[index]
    cdef uint64_t position = w.positions[index]
    cdef RingSlot* slot = look_ahead(ring, partitions, position, AHEAD_RECORDS)
    cdef Partition* p
    while slot is not NULL:
        p = w.partitions[slot.partition]
        gw_prefetch(p)
        gw_prefetch(&p.drained[index])
        slot = look_ahead(ring, partitions, position, AHEAD_RECORDS)
    slot = look_ahead(ring, batches, position, AHEAD_RECORDS // 2)
    while slot is not NULL:
        p = w.partitions[slot.partition]
        if p.open is not NULL:
            gw_prefetch(&p.open.builder)
            gw_prefetch(&p.open.shares[index])
            gw_prefetch(p.open.builder.data + p.open.builder.length)
        slot = look_ahead(ring, batches, position, AHEAD_RECORDS // 2)
    partitions.records -= 1             # the record that is taken next
    batches.records -= 1


cdef bint drain_ring(WriterState* w, uint64_t index) noexcept nogil:
    """Take up to DRAIN_BYTES from one ring. True if anything moved."""
    cdef RingState* ring = w.rings[index]
    cdef uint64_t start = w.positions[index]
    cdef uint64_t end = start + DRAIN_BYTES
    cdef bint crowded = is_crowded(w)
    cdef Ahead partitions, batches
    cdef RingSlot* slot
    partitions.position = batches.position = partitions.records = batches.records = 0
    while w.positions[index] < end:
        slot = ring_peek(ring, &w.positions[index])
        if slot is NULL:
            break
        if crowded:
            fetch_ahead(w, index, &partitions, &batches)
        if not take_record(w, index, slot):
            w.blocked_rings |= <uint32_t>1 << index
            break
        w.positions[index] += slot.size
    if w.positions[index] == start:
        return False
    ring_free(ring, w.positions[index])
    if w.rings_to_notify:
        w.rings_to_notify = False
        ring_notify(ring)
    return True


cdef bint drain_rings(WriterState* w) noexcept nogil:
    """One turn for each ring. Where the batch buffers run out, the round ends there, and the next begins with whoever got
    nothing: a large record would else find them taken by others every time."""
    cdef bint moved = False
    cdef bint served
    cdef uint64_t count = gw_load_acquire(&w.ring_count)
    cdef uint64_t i, index
    w.blocked_rings = 0
    for i in range(count):
        index = (w.first_ring + i) % count
        served = drain_ring(w, index)
        moved = moved or served
        if w.starved:
            w.first_ring = index + 1 if served else index
            break
    return moved


cdef bint rings_empty(WriterState* w) noexcept nogil:
    cdef uint64_t i
    for i in range(gw_load_acquire(&w.ring_count)):
        if ring_peek(w.rings[i], &w.positions[i]) is not NULL:
            return False
    return True


cdef bint nothing_to_take(WriterState* w) noexcept nogil:
    """Is every ring empty, or blocked by a record that must wait?"""
    cdef uint64_t i
    for i in range(gw_load_acquire(&w.ring_count)):
        if not w.blocked_rings & (<uint32_t>1 << i) and ring_peek(w.rings[i], &w.positions[i]) is not NULL:
            return False
    return True


# -- the wall clock ---------------------------------------------------------------------------------------------------

cdef void watch_clock(WriterState* w) noexcept nogil:
    """Notice when the wall clock jumps: it then moves against the clock that counts since boot."""
    cdef int64_t wall = w.manual.realtime_ns if w.manual is not NULL else gw_realtime_ns()
    cdef int64_t boot = <int64_t>w.manual.monotonic_ns if w.manual is not NULL else gw_boottime_ns()
    cdef int64_t moved = wall - boot - w.clock_offset
    if not w.clock_known:
        w.clock_known = True
        w.clock_offset = wall - boot
        return
    if -CLAMP_MS * NS_PER_MS <= moved <= CLAMP_MS * NS_PER_MS:
        # Slewing is followed, so that it never adds up to a step.
        w.clock_offset += moved
        return
    w.clock_offset += moved
    w.step_old_ns = wall - moved
    w.step_new_ns = wall
    if moved > <int64_t>FORWARD_MS * NS_PER_MS:
        w.forward_steps += 1
    bump(&w.steps_seen, 1)
    bell(w.health_fd)


# -- group commit -----------------------------------------------------------------------------------------------------

cdef void start_commit(WriterState* w, uint64_t now) noexcept nogil:
    """Hand everything that is dirty to the flusher."""
    cdef Partition* p = w.dirty
    cdef Partition* following
    w.dirty = NULL
    w.commit_list = NULL
    w.commits_begun += 1
    w.dirty_count_last = w.dirty_count
    w.dirty_count = 0
    while p is not NULL:
        following = p.next_dirty
        if prepare_commit(w, p):
            p.next_commit = w.commit_list
            w.commit_list = p
        p.dirty = False
        if p.full_disk:
            mark_dirty(w, p)
        p = following
    w.dirty_bytes = 0
    w.dirty_waiting = 0
    w.last_commit_ns = now
    if w.commit_list is not NULL:
        bump(&w.commits, 1)
        gw_store_release(&w.commit_state, COMMIT_READY)
        bell(w.flusher_fd)
    else:
        w.commits_ended += 1
        w.starved = False           # what failed gave its buffers back


cdef void collect_commit(WriterState* w) noexcept nogil:
    """The flusher is done: reuse the buffers."""
    cdef Partition* p = w.commit_list
    while p is not NULL:
        collect_partition(w, p)
        p = p.next_commit
    w.commit_list = NULL
    w.commits_ended += 1
    w.waiting_in_commit = w.dirty_waiting
    w.starved = False
    gw_store_release(&w.commit_state, COMMIT_IDLE)


cdef uint64_t commit_due(WriterState* w) noexcept nogil:
    """When the next commit may start (DESIGN: `linger` is the least spacing of commits, not a delay)."""
    cdef uint64_t linger = w.dirty_linger_ns
    cdef uint64_t due
    if w.starved or gw_load_relaxed(&w.flush_wanted) != gw_load_relaxed(&w.flush_done) \
            or gw_load_relaxed(&w.stopping):
        return 0
    if w.dirty_waiting:
        due = w.last_commit_ns + linger
        if linger > QUIET_LINGER_NS_MAX or not QUIET_WAITING_MIN <= w.dirty_waiting <= QUIET_WAITING_MAX \
                or w.waiting_in_commit * QUIET_LATE_PART > w.dirty_waiting:
            return due
        return due if due < w.last_arrival_ns + QUIET_NS else w.last_arrival_ns + QUIET_NS
    if w.dirty_bytes < RELAXED_BYTES and linger < RELAXED_SPACING_NS:
        linger = RELAXED_SPACING_NS
    return w.last_commit_ns + linger


cdef bint serve_flush(WriterState* w) noexcept nogil:
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
    if w.full_partitions:
        w.flush_commit = w.commits_begun + 1    # what waits for room on the disk comes with a later one
    if w.commits_ended < w.flush_commit:
        return False
    gw_store_release(&w.flush_done, w.flush_serving)
    return True


# -- the threads ------------------------------------------------------------------------------------------------------

cdef void roll_wanted(WriterState* w) noexcept nogil:
    """Roll the partitions that somebody asked for."""
    cdef uint64_t wanted = gw_load_acquire(&w.rolls_wanted)
    cdef uint64_t i
    if wanted == w.rolls_seen:
        return
    w.rolls_seen = wanted
    for i in range(gw_load_acquire(&w.partition_count)):
        if gw_exchange(&w.partitions[i].roll_wanted, 0):
            roll_partition(w, w.partitions[i])


cdef void try_full_disks(WriterState* w) noexcept nogil:
    cdef uint64_t now = monotonic_ns(w)
    if now >= w.retry_ns or gw_load_relaxed(&w.retry_wanted):
        gw_exchange(&w.retry_wanted, 0)
        retry_full_disk(w, now)


cdef bint writer_step(WriterState* w) noexcept nogil:
    """One round: collect, retry, drain, commit. True if anything moved."""
    cdef bint moved = False
    cdef uint64_t now
    watch_clock(w)
    if gw_load_acquire(&w.commit_state) == COMMIT_DONE:
        collect_commit(w)
        moved = True
    if w.starved and w.dirty is NULL and gw_load_acquire(&w.commit_state) == COMMIT_IDLE:
        w.starved = False
    if w.full_partitions or w.refusing_partitions:
        try_full_disks(w)
    roll_wanted(w)
    if not w.starved and drain_rings(w):
        moved = True
        w.last_arrival_ns = monotonic_ns(w)
    if w.dirty is not NULL and gw_load_acquire(&w.commit_state) == COMMIT_IDLE:
        now = monotonic_ns(w)
        if now >= commit_due(w) and not only_full(w):
            start_commit(w, now)
    if serve_flush(w):
        moved = True
    return moved


cdef void writer_step_once(void* state) noexcept nogil:
    writer_step(<WriterState*>state)


cdef bint only_full(WriterState* w) noexcept nogil:
    """Nothing to commit: every dirty partition waits for room on the disk and has nothing appended."""
    cdef Partition* p = w.dirty
    while p is not NULL:
        if not p.full_disk or p.kept.first is not NULL or p.sealed is not NULL:
            return False
        p = p.next_dirty
    return True


cdef int64_t sleep_ns(WriterState* w) noexcept nogil:
    """How long the writer may sleep; -1: until something happens."""
    cdef uint64_t now = monotonic_ns(w)
    cdef uint64_t due = <uint64_t>-1
    if w.full_partitions or w.refusing_partitions:
        due = w.retry_ns
    if w.dirty is not NULL and gw_load_acquire(&w.commit_state) == COMMIT_IDLE and not only_full(w):
        due = min(due, commit_due(w))
    if due == <uint64_t>-1:
        return -1
    return <int64_t>(due - now) if due > now else 0


cdef void writer_sleep(WriterState* w) noexcept nogil:
    """Sleep until a producer publishes, the flusher is done, someone asks, or a commit is due.

    Who asks for a flush, a roll or the end leaves the bell ringing, so that needs no look here.
    """
    cdef int64_t timeout = sleep_ns(w)
    if timeout == 0:
        return
    gw_store_seq(&w.writer_sleeping, 1)
    gw_fence()                      # a producer publishes, fences, then looks at `writer_sleeping`
    if gw_load_acquire(&w.commit_state) != COMMIT_DONE and (w.starved or nothing_to_take(w)):
        wait_bell(w.writer_fd, timeout)
    gw_store_seq(&w.writer_sleeping, 0)


cdef bint is_finished(WriterState* w) noexcept nogil:
    """Asked to end, and everything is done; or it is to be left behind."""
    if gw_load_acquire(&w.commit_state) != COMMIT_IDLE:
        return False
    return gw_load_acquire(&w.abandoned) or (gw_load_acquire(&w.stopping) and rings_empty(w) and w.dirty is NULL)


cdef void finish(WriterState* w) noexcept nogil:
    cdef uint64_t i
    for i in range(gw_load_acquire(&w.partition_count)):
        close_partition(w, w.partitions[i])
    gw_store_release(&w.writer_state, WRITER_FINISHED)
    bell(w.flusher_fd)


cdef void run_writer_loop(WriterState* w) noexcept nogil:
    while True:
        if not writer_step(w):
            if is_finished(w):
                break
            writer_sleep(w)
    finish(w)


cdef void run_flusher_loop(WriterState* w) noexcept nogil:
    while True:
        wait_bell(w.flusher_fd, -1)
        if gw_load_acquire(&w.commit_state) == COMMIT_READY:
            flush_commit(w)
        elif gw_load_acquire(&w.writer_state) == WRITER_FINISHED:
            return


# -- from Python ------------------------------------------------------------------------------------------------------

cdef int open_existing(Writer writer, Partition* p) except -1:
    """Open what recovery left of a partition, and publish its watermark under the new epoch."""
    cdef WriterState* w = &writer.state
    cdef uint8_t encoded[WATERMARK_BYTES]
    cdef char path[PATH_BYTES]
    cdef Active* active
    cdef int failed
    directory = os.fsdecode(<bytes>p.directory)
    snprintf(path, PATH_BYTES, "%s/watermark", p.directory)
    p.watermark_fd = w.ops.open(path, OPEN_EXISTING)
    if p.watermark_fd == -ENOENT:
        p.watermark_fd = w.ops.open(path, OPEN_NEW)
    if p.watermark_fd < 0:
        raise OSError(-p.watermark_fd, "cannot open the watermark", directory)
    # The recovery point, which may say that the log was closed cleanly, is replaced on the disk before anything is
    # acknowledged.
    p.new_files = p.mark_unsynced = True
    watermark_encode(encoded, &p.durable)
    failed = w.ops.write_at(p.watermark_fd, encoded, WATERMARK_BYTES, 0)
    if failed:
        raise OSError(-failed, "cannot write the watermark", directory)
    active = p.active = <Active*>calloc(1, sizeof(Active))
    if active is NULL:
        raise MemoryError()
    failed = active_open(w.ops, active, p.directory, p.durable.segment_base)
    if failed:
        free(active)
        p.active = NULL
        raise OSError(-failed, f"cannot open segment {p.durable.segment_base}", directory)
    active.log.position = active.log.allocated = p.mark_synced_position = p.durable.position
    active.index_bytes = p.durable.index_bytes
    active.time_bytes = p.durable.time_bytes
    active.index_crc = p.durable.index_crc
    active.time_crc = p.durable.time_crc
    active.bytes_since_entry = p.durable.bytes_since_entry
    active.first_timestamp = p.durable.first_timestamp
    active.max_timestamp = p.durable.max_timestamp
    active.offset_of_max = p.durable.offset_of_max
    active.last_time_entry = active.flushed_time_entry = p.durable.last_time_entry
    active.flushed_position = p.durable.position
    if not p.durable.flags & MARK_INDEXES_WHOLE:
        active.index_error = EIO    # what is missing is made again after the segment is sealed
    return 0


cdef class ManualClock:
    """A test's clocks, in ns: they stand still until set."""

    def __init__(self, uint64_t monotonic_ns=1_000_000_000, int64_t realtime_ns=1_700_000_000_000_000_000):
        self.time.monotonic_ns = monotonic_ns
        self.time.realtime_ns = realtime_ns

    @property
    def monotonic_ns(self) -> int:
        """What waiting is measured with."""
        return self.time.monotonic_ns

    @monotonic_ns.setter
    def monotonic_ns(self, uint64_t value):
        self.time.monotonic_ns = value

    @property
    def realtime_ns(self) -> int:
        """The wall clock, since 1970."""
        return self.time.realtime_ns

    @realtime_ns.setter
    def realtime_ns(self, int64_t value):
        self.time.realtime_ns = value


cdef class Writer:
    """Rings, partitions, and the two threads between them and the disk.

    ``storage`` is "mapped", "pwrite", or a StorageTable. ``buffer_bytes`` bounds the batch buffers of all partitions
    together, ``partitions_max`` the number of partitions. ``reserve_bytes`` of the disk are kept free: records find it full
    before that. From ``syncfs_files`` dirty partitions on one syncfs replaces the sync of each; 0: never. Run
    ``run_writer`` and ``run_flusher`` in a thread each; both return after ``stop``. A test may give a ``clock`` and call
    ``step_writer`` and ``step_flusher`` instead.

    Durable: a record whose ring says ACKED (with ack = "disk") was synced, with the directory entries needed to find
    it. Not durable: anything else, also when a later record of another partition is.
    """

    def __cinit__(self, object storage="pwrite", uint64_t buffer_bytes=67108864, uint32_t partitions_max=1024,
                  int64_t reserve_bytes=0, uint64_t syncfs_files=0, ManualClock clock=None):
        cdef WriterState* w = &self.state
        w.writer_fd = w.flusher_fd = w.health_fd = -1
        self.table = storage_table(storage)
        self.clock = clock
        w.ops = self.table.ops
        w.partitions_max = partitions_max
        w.buffer_bytes_max = buffer_bytes
        w.reserve_bytes = reserve_bytes
        w.syncfs_files = syncfs_files
        if clock is not None:
            w.manual = &clock.time
        self.ring_objects = []
        w.partitions = <Partition**>calloc(partitions_max, sizeof(Partition*))
        if w.partitions is NULL:
            raise MemoryError()
        w.writer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        w.flusher_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        w.health_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if w.writer_fd < 0 or w.flusher_fd < 0 or w.health_fd < 0:
            raise OSError(errno, "eventfd")

    def __dealloc__(self):
        cdef WriterState* w = &self.state
        cdef uint64_t i
        for i in range(w.partition_count):
            free_partition(w, w.partitions[i])
        free(w.partitions)
        free_buffers(w)
        for fd in (w.writer_fd, w.flusher_fd, w.health_fd):
            if fd >= 0:
                close(fd)

    @property
    def partitions_max(self) -> int:
        """The most partitions there can be."""
        return self.state.partitions_max

    @property
    def storage(self) -> str:
        """Name of the storage table."""
        return self.table.name

    @property
    def reserve_bytes(self) -> int:
        """Bytes of the disk that records may not use; may be changed at any time."""
        return self.state.reserve_bytes

    @reserve_bytes.setter
    def reserve_bytes(self, int64_t value):
        self.state.reserve_bytes = value

    @property
    def health_fd(self) -> int:
        """Readable when a partition failed, ran out of disk or found room again, or the clock stepped."""
        return self.state.health_fd

    def clear_health(self) -> None:
        """Make `health_fd` unreadable until the next change."""
        cdef uint64_t count
        read(self.state.health_fd, &count, sizeof(count))

    def ring(self, str name, uint64_t capacity) -> Ring:
        """A new ring for one producing thread. capacity: bytes, a power of two."""
        cdef WriterState* w = &self.state
        if w.ring_count >= RINGS_MAX:
            raise ValueError(f"at most {RINGS_MAX} producing threads can have a ring; {name} would be one more")
        made = Ring(self, name, capacity, w.partitions_max, <size_t>&w.partition_count, w.writer_fd,
                    <size_t>&w.writer_sleeping)
        cdef Ring ring = made
        cdef uint64_t i
        # The writer keeps the ring's memory alive; the ring points back here, and the cycle collector sees both.
        self.ring_objects.append(ring)
        w.rings[w.ring_count] = ring.state
        gw_store_release(&w.ring_count, w.ring_count + 1)
        gw_fence()                  # `fail_partition` sets `failed`, fences, then looks at `ring_count`
        for i in range(w.partition_count):
            if gw_load_acquire(&w.partitions[i].failed):
                gw_store_release(&ring.state.failed[i], 1)
        return made

    def add_partition(
        self, str directory, *, uint64_t epoch=1, int64_t next_offset=0, int64_t segment_base=-1, int64_t position=0,
        int64_t index_bytes=0, int64_t time_bytes=0, uint32_t index_crc=0, uint32_t time_crc=0,
        bint indexes_whole=True, int64_t bytes_since_entry=0, int64_t first_timestamp=-1, int64_t max_timestamp=-1,
        int64_t offset_of_max=0, int64_t last_time_entry=-1, int64_t last_timestamp=-1, int64_t manifest_bytes=-1,
        int64_t segment_bytes=1073741824, int64_t segment_age_ms=0, uint64_t linger_ns=5000000, bint ack_memory=False,
        bint refuse_when_full=False,
    ) -> int:
        """Make a partition known and return its index for ring slots.

        A new partition (segment_base -1) costs nothing on disk until its first record. For an existing one the
        arguments are what recovery found in the last segment; its files are opened here, and its watermark is
        published under the new epoch. manifest_bytes: where the manifest's last entry ends, -1 if it is not to be gone
        on with. Raises OSError naming the directory.
        """
        cdef WriterState* w = &self.state
        cdef Partition* p
        if w.partition_count >= w.partitions_max:
            raise ValueError(f"at most {w.partitions_max} partitions; {directory} would be one more")
        if len(os.fsencode(directory)) > PATH_BYTES - 64:
            raise ValueError(f"the path of the partition is longer than {PATH_BYTES - 64} bytes: {directory[:80]}…")
        p = <Partition*>calloc(1, sizeof(Partition))
        if p is NULL:
            raise MemoryError()
        p.watermark_fd = -1
        p.directory = strdup(os.fsencode(directory))
        p.parent = strdup(os.fsencode(os.path.dirname(directory) or "."))
        p.index = <uint32_t>w.partition_count
        p.segment_bytes = segment_bytes
        p.segment_age_ms = segment_age_ms
        p.linger_ns = linger_ns
        p.ack_memory = ack_memory
        p.refuse_when_full = refuse_when_full
        p.epoch = epoch
        p.next_offset = p.appended_offset = next_offset
        p.last_timestamp = p.appended_timestamp = last_timestamp
        p.manifest_bytes = 0 if segment_base < 0 else manifest_bytes
        p.durable_offset = p.log_end_offset = <uint64_t>next_offset
        p.durable.epoch = epoch
        p.durable.segment_base = segment_base if segment_base >= 0 else next_offset
        p.durable.position = position
        p.durable.durable_offset = next_offset
        p.durable.last_timestamp = last_timestamp
        p.durable.first_timestamp = first_timestamp
        p.durable.max_timestamp = max_timestamp
        p.durable.offset_of_max = offset_of_max
        p.durable.last_time_entry = last_time_entry
        p.durable.bytes_since_entry = bytes_since_entry
        p.durable.index_bytes = index_bytes
        p.durable.time_bytes = time_bytes
        p.durable.index_crc = index_crc
        p.durable.time_crc = time_crc
        p.durable.flags = MARK_INDEXES_WHOLE if indexes_whole else 0
        p.segment_base = <uint64_t>p.durable.segment_base
        p.durable_position = <uint64_t>position
        try:
            if segment_base >= 0:
                open_existing(self, p)
        except BaseException:
            free_partition(w, p)
            raise
        w.partitions[w.partition_count] = p
        gw_store_release(&w.partition_count, w.partition_count + 1)
        return p.index

    def run_writer(self) -> None:
        """The writer thread's body; returns after `stop`, when everything published is durable or has failed."""
        gw_store_release(&self.state.writer_state, WRITER_RUNNING)
        with nogil:
            run_writer_loop(&self.state)

    def run_flusher(self) -> None:
        """The flusher thread's body; returns after the writer."""
        with nogil:
            run_flusher_loop(&self.state)

    def step_writer(self) -> bool:
        """One round of the writer on this thread, for tests that decide the order of things. True if anything moved."""
        return writer_step(&self.state)

    def step_flusher(self) -> bool:
        """Serve the commit that is handed over, if there is one, on this thread."""
        if gw_load_acquire(&self.state.commit_state) != COMMIT_READY:
            return False
        flush_commit(&self.state)
        return True

    def finish(self) -> bool:
        """After `stop`, with steps: close every partition. False: there is still something to do."""
        if not is_finished(&self.state):
            return False
        finish(&self.state)
        return True

    def flush(self, double timeout_s=30.0) -> bool:
        """Wait until everything published before is durable (or its partition failed). False: not within the time."""
        cdef WriterState* w = &self.state
        cdef uint64_t wanted = gw_load_relaxed(&w.flush_wanted) + 1
        gw_store_release(&w.flush_wanted, wanted)
        bell(w.writer_fd)
        deadline = time.monotonic() + timeout_s
        while gw_load_acquire(&w.flush_done) < wanted:
            if time.monotonic() > deadline or gw_load_acquire(&w.writer_state) != WRITER_RUNNING:
                return gw_load_acquire(&w.flush_done) >= wanted
            time.sleep(0.0005)
        return True

    def roll(self, uint32_t index) -> None:
        """Ask for the partition's active segment to be sealed, so that it can be deleted; a new one begins."""
        gw_store_release(&self.partition(index).roll_wanted, 1)
        gw_store_release(&self.state.rolls_wanted, gw_load_relaxed(&self.state.rolls_wanted) + 1)
        bell(self.state.writer_fd)

    def retry(self) -> None:
        """There may be room on the disk again: try now rather than within 200 ms."""
        gw_store_release(&self.state.retry_wanted, 1)
        bell(self.state.writer_fd)

    def stop(self, *, bint abandon=False) -> None:
        """Ask both threads to end once everything published is durable; abandon: leave behind what waits for a full disk."""
        if abandon:
            gw_store_release(&self.state.abandoned, 1)
        gw_store_release(&self.state.stopping, 1)
        bell(self.state.writer_fd)

    cdef Partition* partition(self, uint32_t index) except NULL:
        if index >= gw_load_acquire(&self.state.partition_count):
            raise IndexError(f"partition {index} of {self.state.partition_count}")
        return self.state.partitions[index]

    def partition_state(self, uint32_t index) -> dict:
        """Offsets, counters and trouble of one partition."""
        cdef Partition* p = self.partition(index)
        failed = gw_load_acquire(&p.failed) != 0
        return {
            "durable_offset": gw_load_acquire(&p.durable_offset),
            "segment_base": gw_load_relaxed(&p.segment_base),
            "position": gw_load_relaxed(&p.durable_position),
            "records": gw_load_relaxed(&p.records),
            "bytes": gw_load_relaxed(&p.bytes),
            "refused": gw_load_relaxed(&p.refused),
            "lost": gw_load_relaxed(&p.lost),
            "rewrites": gw_load_relaxed(&p.rewrites),
            "failed": failed,
            "failed_errno": gw_load_relaxed(&p.failed_errno),
            "failed_step": STEPS.get(gw_load_relaxed(&p.failed_step), ""),
            "stalled_errno": gw_load_relaxed(&p.stalled_errno),
            "refusing": gw_load_relaxed(&p.is_refusing) != 0,
            "index_errors": gw_load_relaxed(&p.index_errors),
            "summary_errors": gw_load_relaxed(&p.summary_errors),
            "watermark_errors": gw_load_relaxed(&p.watermark_errors),
        }

    def refusals(self, uint32_t index) -> dict:
        """What each ring had refused in the partition: (records, bytes, first_ns, last_ns), by the ring's name.

        Counts only grow. first_ns is the receive time of the first record refused since the last call.
        """
        cdef Partition* p = self.partition(index)
        cdef uint64_t i
        found = {}
        for i in range(gw_load_acquire(&self.state.ring_count)):
            count = gw_load_acquire(&p.refusals[i].count)
            if count:
                found[self.ring_objects[i].name] = (
                    count, gw_load_relaxed(&p.refusals[i].bytes), p.refusals[i].first_ns, p.refusals[i].last_ns)
                gw_store_release(&p.refusals[i].looked, 1)
        return found

    @property
    def clock_step(self) -> tuple:
        """The wall clock's last step: what it would have said, what it said (ns), and how many there were."""
        return (self.state.step_old_ns, self.state.step_new_ns, gw_load_relaxed(&self.state.steps_seen))

    @property
    def counters(self) -> dict:
        """Work done since the start: commits, batches, bytes appended, files synced, time in sync (ns)."""
        cdef WriterState* w = &self.state
        cdef uint64_t i
        refused = 0
        for i in range(gw_load_acquire(&w.partition_count)):
            refused += gw_load_relaxed(&w.partitions[i].refused)
        return {
            "commits": gw_load_relaxed(&w.commits),
            "batches": gw_load_relaxed(&w.batches),
            "log_bytes": gw_load_relaxed(&w.log_bytes),
            "synced_files": gw_load_relaxed(&w.synced_files),
            "syncfs": gw_load_relaxed(&w.synced_filesystems),
            "sync_ns": gw_load_relaxed(&w.sync_ns),
            "sync_ns_max": gw_load_relaxed(&w.sync_ns_max),
            "close_errors": gw_load_relaxed(&w.close_errors),
            "clock_steps": gw_load_relaxed(&w.steps_seen),
            "refused": refused,
        }
