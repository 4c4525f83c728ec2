"""Records from the rings into open batches, on the writer thread. See drain.pxd."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf

from gateway_native.batch cimport (
    BATCH_HEADER_BYTES,
    batch_append,
    batch_begin,
    put_header,
    put_headers_count,
    record_bytes_max,
)
from gateway_native.buffers cimport grow_buffer, take_buffer
from gateway_native.partition cimport NS_PER_MS, append_open_batch, mark_dirty, take_troubled
from gateway_native.ring cimport (
    MARKS,
    SLOT_BYTES,
    SLOT_GAP,
    SLOT_KEYFRAME,
    SLOT_MARKED,
    SLOT_NULL_KEY,
    SLOT_NULL_VALUE,
    SLOT_WANTS_ACK,
    RingSlot,
    RingState,
    ring_free,
    ring_notify,
    ring_peek,
)
from gateway_native.state cimport (
    DRAIN_BYTES,
    Partition,
    WriterState,
    bump,
    gw_load_acquire,
    gw_load_relaxed,
    gw_planted,
    gw_store_relaxed,
    gw_store_release,
    is_crowded,
)

cdef extern from "atomics.h" nogil:
    void gw_prefetch(const void*)

cdef enum:
    # Rings are drained in turns, so after a stall one ring's records may be this much older than another's.
    LAG_MS_MAX = 300000
    AHEAD_STEP = 6                  # records, and three steps: so far ahead the processor is asked for what they touch
    AHEAD_MAX = 32
    CACHE_LINE_BYTES = 64
    CLOCK_TEXT_BYTES = 80
    CLOCK_RECORD_BYTES = 160        # bound of a whole clock record in a batch


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
    if slot.flags & (SLOT_NULL_KEY | SLOT_NULL_VALUE | SLOT_MARKED):
        if slot.flags & SLOT_NULL_KEY:
            key_length = -1
        if slot.flags & SLOT_NULL_VALUE:
            value_length = -1
        if slot.flags & SLOT_MARKED:
            gw_store_relaxed(&w.rings[ring_index].marks[slot.mark & (MARKS - 1)], <uint64_t>p.next_offset)
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
    elif gw_load_relaxed(&p.followed):
        w.dirty_waiting += 1
    if p.ack_memory:
        gw_store_release(&w.rings[ring_index].acked[p.index], slot.sequence)
        w.rings_to_notify = True
    return True


cdef struct Ahead:                  # a cursor that runs ahead of the one that takes records; counts since the turn began
    uint64_t position               # of the next slot to look at
    uint64_t seen                   # records whose partitions' lines were asked for
    uint64_t batches                # … whose batches'
    uint64_t ends                   # … and whose batches' ends
    uint64_t taken
    Partition* partitions[AHEAD_MAX]    # of those seen and not taken, in a circle


cdef inline void fetch_ahead(WriterState* w, uint64_t index, Ahead* ahead) noexcept nogil:
    """Where many partitions take turns, nothing of what the next records touch is in the processor's caches: ask in time.

    First for a partition's own lines; when these have come, for those of its open batch, to which it points; when these
    have, for the place in the batch's buffer where the record will be.
    """
    cdef RingState* ring = w.rings[index]
    cdef RingSlot* slot
    cdef Partition* p
    while ahead.seen < ahead.taken + 3 * AHEAD_STEP:
        slot = ring_peek(ring, &ahead.position)
        if slot is NULL:
            break
        ahead.position += slot.size
        p = ahead.partitions[ahead.seen % AHEAD_MAX] = w.partitions[slot.partition]
        gw_prefetch(p)
        gw_prefetch(&p.drained[index])
        ahead.seen += 1
    while ahead.batches < min(ahead.seen, ahead.taken + 2 * AHEAD_STEP):
        p = ahead.partitions[ahead.batches % AHEAD_MAX]
        if p.open is not NULL:
            gw_prefetch(&p.open.builder)
            gw_prefetch(&p.open.shares[index])
        ahead.batches += 1
    while ahead.ends < min(ahead.batches, ahead.taken + AHEAD_STEP):
        p = ahead.partitions[ahead.ends % AHEAD_MAX]
        if p.open is not NULL:
            gw_prefetch(p.open.builder.data + p.open.builder.length)
            gw_prefetch(p.open.builder.data + p.open.builder.length + CACHE_LINE_BYTES)
        ahead.ends += 1
    ahead.taken += 1                    # the record that is taken next


cdef bint drain_ring(WriterState* w, uint64_t index) noexcept nogil:
    """Take up to DRAIN_BYTES from one ring. True if anything moved."""
    cdef RingState* ring = w.rings[index]
    cdef uint64_t start = w.positions[index]
    cdef uint64_t end = start + DRAIN_BYTES
    cdef bint crowded = is_crowded(w)
    cdef Ahead ahead
    cdef RingSlot* slot
    ahead.position = start
    ahead.seen = ahead.batches = ahead.ends = ahead.taken = 0
    while w.positions[index] < end:
        slot = ring_peek(ring, &w.positions[index])
        if slot is NULL:
            break
        if crowded:
            fetch_ahead(w, index, &ahead)
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
