"""A partition's batches on the writer thread. See partition.pxd."""

from libc.errno cimport EDQUOT, ENOSPC
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from gateway_native.batch cimport (
    BATCH_HEADER_BYTES,
    batch_append,
    batch_begin,
    batch_finish,
    record_bytes_max,
)
from gateway_native.buffers cimport release_buffer, release_buffers, take_buffer
from gateway_native.ring cimport (
    SLOT_BYTES,
    SLOT_GAP,
    SLOT_WANTS_ACK,
    RingSlot,
    ring_notify,
    ring_refusal_open,
    ring_refuse,
)
from gateway_native.rolling cimport create_segment, mark_appended, seal_at_durable, seal_segment
from gateway_native.segment cimport (
    active_append,
    active_flush_indexes,
    active_flush_many,
    active_has_room,
    active_make_room,
)
from gateway_native.state cimport (
    BATCH_BYTES,
    MARK_SYNC_BYTES,
    Batch,
    BatchList,
    Partition,
    Refusal,
    Sealed,
    WriterState,
    bell,
    bump,
    gw_fence,
    gw_load_acquire,
    gw_load_relaxed,
    gw_planted,
    gw_store_relaxed,
    gw_store_release,
    is_crowded,
    monotonic_ns,
    move_batches,
    pop_batch,
    push_batch,
    reserve_bytes,
    STEP_ALLOCATE_APPEND,
    STEP_CREATE,
    STEP_SEAL,
)


cdef inline bint is_full_disk(int failed) noexcept nogil:
    return failed == -ENOSPC or failed == -EDQUOT


cdef void judge_trouble(Partition* p) noexcept nogil:
    p.troubled = gw_load_relaxed(&p.failed) or p.full_disk or p.refusing or p.refusals_open or p.rewriting


cdef void mark_dirty(WriterState* w, Partition* p) noexcept nogil:
    if p.dirty:
        return
    p.dirty = True
    w.dirty_count += 1
    p.next_dirty = w.dirty
    if w.dirty is NULL or p.linger_ns < w.dirty_linger_ns:
        w.dirty_linger_ns = p.linger_ns
    w.dirty = p


# -- failing for good -------------------------------------------------------------------------------------------------

cdef void count_lost(WriterState* w, Partition* p, BatchList* batches) noexcept nogil:
    cdef Batch* batch = batches.first
    while batch is not NULL:
        bump(&p.lost, batch.builder.count)
        batch = batch.next
    release_buffers(w, batches)


cdef void drop_everything(WriterState* w, Partition* p) noexcept nogil:
    """What a failed partition holds was never acknowledged and never will be: count it, free it."""
    if p.open is not NULL:
        bump(&p.lost, p.open.builder.count)
        release_buffer(w, p.open)
        p.open = NULL
    count_lost(w, p, &p.pending)
    count_lost(w, p, &p.kept)
    if not p.in_commit:
        count_lost(w, p, &p.commit_batches)
    p.pending_bytes = 0


cdef void fail_partition(WriterState* w, Partition* p, int failed, uint64_t step) noexcept nogil:
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
    clear_full_disk(w, p)
    drop_everything(w, p)
    judge_trouble(p)
    bell(w.health_fd)


# -- a full disk ------------------------------------------------------------------------------------------------------

cdef void set_full_disk(WriterState* w, Partition* p, int failed) noexcept nogil:
    if p.full_disk or p.refusing:
        return
    p.full_disk = p.troubled = True
    p.full_since_ns = monotonic_ns(w)
    if w.full_partitions == 0 and w.refusing_partitions == 0:
        w.retry_ns = p.full_since_ns + RETRY_NS
    w.full_partitions += 1
    gw_store_relaxed(&p.stalled_errno, <uint64_t>(-failed))
    mark_dirty(w, p)
    bell(w.health_fd)


cdef void clear_full_disk(WriterState* w, Partition* p) noexcept nogil:
    """There is room, or the partition has failed."""
    if not p.full_disk and not p.refusing:
        return
    w.full_partitions -= p.full_disk
    w.refusing_partitions -= p.refusing
    p.full_disk = p.refusing = False
    gw_store_relaxed(&p.stalled_errno, 0)
    gw_store_relaxed(&p.is_refusing, 0)
    judge_trouble(p)
    bell(w.health_fd)


cdef void count_refusal(Partition* p, uint64_t ring_index, uint64_t count, uint64_t size, int64_t time_ns) noexcept nogil:
    cdef Refusal* refusal = &p.refusals[ring_index]
    if gw_load_acquire(&refusal.looked) or gw_load_relaxed(&refusal.count) == 0:
        refusal.first_ns = time_ns
        gw_store_release(&refusal.looked, 0)
    refusal.last_ns = time_ns
    bump(&refusal.bytes, size)
    gw_store_release(&refusal.count, refusal.count + count)
    bump(&p.refused, count)


cdef void refuse_slot(WriterState* w, Partition* p, uint64_t ring_index, RingSlot* slot) noexcept nogil:
    """The record is dropped; whoever waits for its acknowledgement is told. A gap record is its sender's to keep."""
    if not slot.flags & SLOT_GAP:
        count_refusal(p, ring_index, 1, <uint64_t>slot.key_bytes + slot.value_bytes + slot.headers_bytes,
                      slot.timestamp_ns)
    if slot.flags & (SLOT_WANTS_ACK | SLOT_GAP) and not gw_planted("refusal not told"):
        ring_refuse(w.rings[ring_index], p.index, slot.sequence, slot.sequence)
        p.refusals_open = p.troubled = True
        w.rings_to_notify = True


cdef void refuse_batch(WriterState* w, Partition* p, Batch* batch) noexcept nogil:
    cdef uint64_t i
    for i in range(gw_load_acquire(&w.ring_count)):
        if batch.shares[i].count:
            count_refusal(p, i, batch.shares[i].count, batch.shares[i].bytes, batch.builder.max_timestamp * NS_PER_MS)


cdef void refuse_batches(WriterState* w, Partition* p) noexcept nogil:
    """Everything taken and never appended is dropped: its offsets were seen by nobody and are given out again.

    What was appended once, to a segment that then failed, stays until there is room: its range of sequences may already be
    followed by refused ones, and one range cannot grow at both ends.
    """
    cdef uint64_t i
    cdef uint32_t waiting = 0
    cdef BatchList stays
    cdef uint64_t* sequences = p.appended
    cdef Batch* batch
    stays.first = stays.last = NULL
    if not gw_planted("refused offsets kept"):
        p.next_offset = p.appended_offset
    p.last_timestamp = p.appended_timestamp
    if p.open is not NULL and p.open.builder.count == 0:
        release_buffer(w, p.open)
        p.open = NULL
    if p.open is not NULL:
        finish_batch(w, p)
    while p.pending.first is not NULL:
        batch = pop_batch(&p.pending)
        if batch.was_appended:
            push_batch(&stays, batch)
            sequences = batch.sequences
            p.next_offset = batch.builder.base_offset + batch.builder.count
            p.last_timestamp = batch.builder.max_timestamp
            continue
        waiting |= batch.waiting_rings
        p.pending_bytes -= batch.capacity
        refuse_batch(w, p, batch)
        release_buffer(w, batch)
    p.pending = stays
    for i in range(gw_load_acquire(&w.ring_count)):
        if waiting & (1 << i):
            ring_refuse(w.rings[i], p.index, sequences[i] + 1, p.drained[i])
            ring_notify(w.rings[i])
            p.refusals_open = True
        p.drained[i] = sequences[i]
    p.roll = False
    w.starved = False


cdef void begin_refusing(WriterState* w, Partition* p) noexcept nogil:
    refuse_batches(w, p)
    w.full_partitions -= p.full_disk
    w.refusing_partitions += 1
    p.full_disk = False
    p.refusing = p.troubled = True
    gw_store_relaxed(&p.is_refusing, 1)
    bell(w.health_fd)


cdef bint out_of_patience(WriterState* w, Partition* p) noexcept nogil:
    if p.full_disk and (p.refuse_when_full or monotonic_ns(w) - p.full_since_ns >= FULL_PATIENCE_NS):
        begin_refusing(w, p)
    return p.refusing


cdef bint try_room(WriterState* w, Partition* p) noexcept nogil:
    """Is there room for a batch again? While records are refused nothing waits that could find out."""
    cdef int failed = 0
    if p.pending.first is not NULL:
        return append_pending(w, p)
    if p.active is not NULL and p.active.log.position > 0 and p.active.log.position + BATCH_BYTES > p.segment_bytes:
        failed = seal_segment(w, p)
        mark_dirty(w, p)
    if failed == 0 and p.active is NULL:
        failed = create_segment(w, p, p.next_offset)
    if failed == 0:
        failed = active_make_room(w.ops, p.active, BATCH_BYTES, p.segment_bytes, reserve_bytes(w))
    if failed:
        gw_store_relaxed(&p.stalled_errno, <uint64_t>(-failed))
    return failed == 0


cdef void retry_full_disk(WriterState* w, uint64_t now) noexcept nogil:
    cdef uint64_t i
    cdef Partition* p
    w.retry_ns = now + RETRY_NS
    for i in range(w.partition_count):
        p = w.partitions[i]
        if p.full_disk and not p.rewriting:
            if not append_pending(w, p):
                out_of_patience(w, p)
        elif p.refusing and not p.rewriting and try_room(w, p):
            clear_full_disk(w, p)


cdef bint take_gap(WriterState* w, Partition* p, uint64_t ring_index, RingSlot* slot) noexcept nogil:
    """Append a gap record though the stream refuses others: from the disk's reserve. False: there is no room even there."""
    cdef uint8_t* key = <uint8_t*>slot + SLOT_BYTES
    cdef uint8_t* value = key + slot.key_bytes
    cdef int64_t timestamp = slot.timestamp_ns // NS_PER_MS
    cdef uint64_t before = p.drained[ring_index]
    cdef bint appended
    p.open = take_buffer(
        w, BATCH_HEADER_BYTES + record_bytes_max(slot.key_bytes, slot.value_bytes, slot.headers_bytes), 0)
    if p.open is NULL:
        return False
    timestamp = timestamp if timestamp > p.last_timestamp else p.last_timestamp
    batch_begin(&p.open.builder, p.open.data, p.open.capacity, p.next_offset)
    batch_append(&p.open.builder, timestamp, key, record_length(slot.key_bytes), value, record_length(slot.value_bytes),
                 value + slot.value_bytes, slot.headers_bytes)
    p.next_offset += 1
    p.last_timestamp = timestamp
    p.drained[ring_index] = slot.sequence
    w.into_reserve = True
    appended = append_open_batch(w, p)
    w.into_reserve = False
    if not appended:
        # Still full: it is refused, and its sender keeps it. It is no loss that would be counted.
        p.drained[ring_index] = before
        refuse_batches(w, p)
    return appended


cdef int32_t record_length(uint32_t size) noexcept nogil:
    """The gateway's own records have neither key nor value."""
    return <int32_t>size if size else -1


cdef bint close_refusals(WriterState* w, Partition* p) noexcept nogil:
    """Have all producers looked at what was refused?"""
    cdef uint64_t i
    for i in range(gw_load_acquire(&w.ring_count)):
        if ring_refusal_open(w.rings[i], p.index):
            return False
    p.refusals_open = False
    judge_trouble(p)
    return True


cdef int take_troubled(WriterState* w, Partition* p, uint64_t ring_index, RingSlot* slot) noexcept nogil:
    if gw_load_relaxed(&p.failed):
        bump(&p.lost, 1)
        return 1
    if p.refusing:
        if slot.flags & SLOT_GAP and not p.rewriting and not ring_refusal_open(w.rings[ring_index], p.index) \
                and take_gap(w, p, ring_index, slot):
            return 1
        refuse_slot(w, p, ring_index, slot)
        return 1
    if p.refusals_open and not close_refusals(w, p) and ring_refusal_open(w.rings[ring_index], p.index):
        refuse_slot(w, p, ring_index, slot)
        return 1
    if p.full_disk and p.refuse_when_full and out_of_patience(w, p):
        refuse_slot(w, p, ring_index, slot)
        return 1
    if (p.full_disk or p.rewriting) and p.pending_bytes >= w.buffer_bytes_max // 4:
        # Its share of the buffers is used up; the others' are not.
        if not out_of_patience(w, p):
            return -1
        refuse_slot(w, p, ring_index, slot)
        return 1
    return 0


# -- appending --------------------------------------------------------------------------------------------------------

cdef inline void copy_sequences(WriterState* w, uint64_t* to, const uint64_t* source) noexcept nogil:
    """Of the rings there are: those to come have 0 everywhere, since rings are only ever added."""
    cdef uint64_t i
    for i in range(gw_load_acquire(&w.ring_count)):
        to[i] = source[i]


cdef void finish_batch(WriterState* w, Partition* p) noexcept nogil:
    """Close the open batch: it goes behind what waits."""
    cdef Batch* batch = p.open
    batch.finished_bytes = batch_finish(&batch.builder)
    copy_sequences(w, batch.sequences, p.drained)
    batch.begins_segment = p.roll
    p.roll = False
    p.pending_bytes += batch.capacity
    p.batch_bytes = batch.finished_bytes
    push_batch(&p.pending, batch)
    p.open = NULL


cdef int append_batch(WriterState* w, Partition* p, Batch* batch, uint64_t* step) noexcept nogil:
    """Into the active segment, or a new one where it has no room or the clock stepped."""
    cdef int64_t last_offset = batch.builder.base_offset + batch.builder.count - 1
    cdef int failed
    if p.active is not NULL and p.active.log.position > 0 and (
            batch.begins_segment or not active_has_room(
                p.active, batch.finished_bytes, last_offset, batch.builder.max_timestamp, p.segment_bytes,
                p.segment_age_ms)):
        step[0] = STEP_SEAL
        failed = seal_segment(w, p)
        if failed:
            return failed
    if p.active is NULL:
        step[0] = STEP_CREATE
        failed = create_segment(w, p, batch.builder.base_offset)
        if failed:
            return failed
    step[0] = STEP_ALLOCATE_APPEND
    return active_append(w.ops, p.active, batch.data, batch.finished_bytes, last_offset, batch.builder.max_timestamp,
                         p.segment_bytes, reserve_bytes(w))


cdef void count_records(WriterState* w, Partition* p, Batch* batch) noexcept nogil:
    cdef uint64_t content = 0
    cdef uint64_t i
    for i in range(gw_load_acquire(&w.ring_count)):
        content += batch.shares[i].bytes
    bump(&p.records, batch.builder.count)
    bump(&p.bytes, content)
    batch.was_appended = True


cdef bint append_pending(WriterState* w, Partition* p) noexcept nogil:
    """Append everything finished, in order. False: something could not be, or the partition failed."""
    cdef Batch* batch
    cdef uint64_t step = STEP_ALLOCATE_APPEND
    cdef int failed
    if p.rewriting:
        return False
    while p.pending.first is not NULL:
        failed = append_batch(w, p, p.pending.first, &step)
        if is_full_disk(failed):
            set_full_disk(w, p, failed)
            if p.refuse_when_full:
                out_of_patience(w, p)
            return False
        if failed:
            return begin_rewrite(w, p, failed, step)
        batch = pop_batch(&p.pending)
        p.pending_bytes -= batch.capacity
        p.appended_offset = batch.builder.base_offset + batch.builder.count
        p.appended_timestamp = batch.builder.max_timestamp
        copy_sequences(w, p.appended, batch.sequences)
        bump(&w.batches, 1)
        bump(&w.log_bytes, batch.finished_bytes)
        if not batch.was_appended:
            count_records(w, p, batch)
        push_batch(&p.kept, batch)
    if p.full_disk:
        clear_full_disk(w, p)
    mark_dirty(w, p)
    return True


cdef bint append_open_batch(WriterState* w, Partition* p) noexcept nogil:
    if p.open is not NULL:
        if p.open.builder.count == 0:
            release_buffer(w, p.open)
            p.open = NULL
        else:
            finish_batch(w, p)
    if p.full_disk:
        return False                # tried again by `retry_full_disk`
    return append_pending(w, p)


# -- a failing disk ---------------------------------------------------------------------------------------------------

cdef bint begin_rewrite(WriterState* w, Partition* p, int failed, uint64_t step) noexcept nogil:
    """A write or sync failed: replace the segment, at once or when the commit under way has ended. True: it is done."""
    if p.rewritten:
        fail_partition(w, p, failed, step)
        return False
    p.rewrite_errno = -failed
    p.rewrite_step = step
    p.rewriting = p.troubled = True
    if p.in_commit:
        mark_dirty(w, p)
        return False
    return rewrite(w, p)


cdef bint rewrite(WriterState* w, Partition* p) noexcept nogil:
    """Seal at the durable offset; write everything that is not durable again, to a new segment."""
    cdef BatchList again
    cdef Batch* batch
    again.first = again.last = NULL
    p.rewriting = False
    p.rewritten = True
    bump(&p.rewrites, 1)
    seal_at_durable(w, p)
    move_batches(&p.commit_batches, &again)
    move_batches(&p.kept, &again)
    batch = again.first
    while batch is not NULL:
        p.pending_bytes += batch.capacity
        batch = batch.next
    move_batches(&p.pending, &again)
    p.pending = again
    p.appended_offset = p.durable.durable_offset
    p.appended_timestamp = p.durable.last_timestamp
    copy_sequences(w, p.appended, p.durable_sequence)
    judge_trouble(p)
    mark_dirty(w, p)
    bell(w.health_fd)
    if p.pending.first is NULL:
        return True
    return append_pending(w, p)


# -- committing -------------------------------------------------------------------------------------------------------

cdef bint prepare_commit(WriterState* w, Partition* p) noexcept nogil:
    if gw_load_relaxed(&p.failed):
        drop_everything(w, p)
        return False
    if not p.full_disk and not p.rewriting and (p.open is not NULL or p.pending.first is not NULL):
        append_open_batch(w, p)
    if gw_load_relaxed(&p.failed) or p.rewriting or (p.kept.first is NULL and p.sealed is NULL):
        return False
    if p.active is not NULL:
        if is_crowded(w):
            active_flush_many(w.ops, p.active)
        else:
            active_flush_indexes(w.ops, p.active)
    mark_appended(p, &p.commit_mark)
    p.commit_fd = p.active.log.fd if p.active is not NULL else -1
    copy_sequences(w, p.commit_sequence, p.appended)
    move_batches(&p.kept, &p.commit_batches)
    if gw_planted("buffers freed early"):
        release_buffers(w, &p.commit_batches)
    p.commit_sealed = p.sealed
    p.sealed = NULL
    p.commit_new_directory = p.new_directory
    p.commit_new_files = p.new_files
    p.commit_sync_mark = p.new_files or p.commit_mark.position - p.mark_synced_position >= MARK_SYNC_BYTES
    p.commit_errno = 0
    p.new_directory = p.new_files = False
    p.in_commit = True
    gw_store_relaxed(&p.log_end_offset, <uint64_t>p.commit_mark.durable_offset)
    return True


cdef void free_sealed(Partition* p) noexcept nogil:
    cdef Sealed* sealed
    while p.commit_sealed is not NULL:
        sealed = p.commit_sealed
        p.commit_sealed = sealed.next
        free(sealed)


cdef void collect_partition(WriterState* w, Partition* p) noexcept nogil:
    p.in_commit = False
    if gw_load_relaxed(&p.failed):
        free_sealed(p)
        drop_everything(w, p)
        return
    if p.commit_errno:
        # What needed a sync needs one still.
        p.new_directory = p.new_directory or p.commit_new_directory
        p.new_files = p.new_files or p.commit_new_files
        p.mark_unsynced = p.mark_unsynced or p.commit_sync_mark
        begin_rewrite(w, p, -p.commit_errno, p.commit_step)
        free_sealed(p)
        return
    free_sealed(p)
    p.durable = p.commit_mark
    copy_sequences(w, p.durable_sequence, p.commit_sequence)
    if p.commit_sync_mark:
        p.mark_synced_position = p.commit_mark.position
        p.mark_unsynced = False
    release_buffers(w, &p.commit_batches)
    if p.rewriting:
        rewrite(w, p)
    else:
        p.rewritten = False


cdef void roll_partition(WriterState* w, Partition* p) noexcept nogil:
    cdef int failed
    if gw_load_relaxed(&p.failed) or p.full_disk or p.refusing or p.rewriting or p.active is NULL:
        return
    if not append_open_batch(w, p) or p.active is NULL or p.active.log.position == 0:
        return
    failed = seal_segment(w, p)
    if failed == 0:
        failed = create_segment(w, p, p.next_offset)
    mark_dirty(w, p)
    if is_full_disk(failed):
        return                      # the next record tries again
    if failed:
        begin_rewrite(w, p, failed, STEP_CREATE)
