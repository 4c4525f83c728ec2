"""The pool of batch buffers. See buffers.pxd."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from gateway_native.state cimport BATCH_BYTES, BATCH_BYTES_SMALL, Batch, BatchList, WriterState, pop_batch


cdef void free_buffer(WriterState* w, Batch* batch) noexcept nogil:
    w.buffer_bytes -= batch.capacity
    free(batch.data)
    free(batch)


cdef bint free_spare(WriterState* w) noexcept nogil:
    """Free one buffer that is kept for reuse. False: there is none."""
    cdef Batch** spare = &w.free_batches if w.free_batches is not NULL else &w.free_small
    cdef Batch* batch = spare[0]
    if batch is NULL:
        return False
    spare[0] = batch.next
    free_buffer(w, batch)
    return True


cdef Batch* take_buffer(WriterState* w, size_t bytes_needed, bint small) noexcept nogil:
    cdef Batch** spare = &w.free_small if small and bytes_needed <= BATCH_BYTES_SMALL else &w.free_batches
    cdef size_t capacity = BATCH_BYTES_SMALL if spare == &w.free_small else BATCH_BYTES
    cdef Batch* batch = spare[0]
    if bytes_needed > capacity:
        capacity = bytes_needed
    elif batch is not NULL:
        spare[0] = batch.next
        batch.next = NULL
        batch.finished_bytes = 0
        batch.waiting_rings = 0
        memset(batch.counts, 0, sizeof(batch.counts))
        memset(batch.content_bytes, 0, sizeof(batch.content_bytes))
        batch.begins_segment = batch.was_appended = False
        return batch
    while w.buffer_bytes + capacity > w.buffer_bytes_max and free_spare(w):
        pass                        # spare buffers of another size make room
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


cdef bint grow_buffer(WriterState* w, Batch* batch) noexcept nogil:
    cdef Batch* larger
    cdef uint8_t* data
    if batch.capacity != BATCH_BYTES_SMALL:
        return False
    larger = take_buffer(w, BATCH_BYTES, False)
    if larger is NULL:
        return False
    memcpy(larger.data, batch.data, batch.builder.length)
    # The buffers change places; the batch itself, to which others may point, stays.
    data = batch.data
    batch.data = larger.data
    larger.data = data
    batch.capacity = BATCH_BYTES
    larger.capacity = BATCH_BYTES_SMALL
    batch.builder.data = batch.data
    batch.builder.capacity = BATCH_BYTES
    release_buffer(w, larger)
    return True


cdef void release_buffer(WriterState* w, Batch* batch) noexcept nogil:
    if batch.capacity == BATCH_BYTES:
        batch.next = w.free_batches
        w.free_batches = batch
    elif batch.capacity == BATCH_BYTES_SMALL:
        batch.next = w.free_small
        w.free_small = batch
    else:
        free_buffer(w, batch)


cdef void release_buffers(WriterState* w, BatchList* batches) noexcept nogil:
    cdef Batch* batch = pop_batch(batches)
    while batch is not NULL:
        release_buffer(w, batch)
        batch = pop_batch(batches)


cdef void free_buffers(WriterState* w) noexcept nogil:
    while free_spare(w):
        pass
