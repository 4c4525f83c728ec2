"""The pool of batch buffers. See buffers.pxd.

A batch is kept until it is durable, so what a buffer has beyond its batch is lost to all others for the length of a commit.
Hence several sizes: a thousand partitions that get a few records each must not take 256 KiB for everyone.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from gateway_native.state cimport (
    BATCH_BYTES,
    BATCH_BYTES_LEAST,
    BATCH_SIZES,
    Batch,
    BatchList,
    Share,
    WriterState,
    dirty_partitions,
    gw_load_acquire,
    pop_batch,
)


cdef int size_for(size_t wanted) noexcept nogil:
    """The smallest of the sizes that holds so many bytes, or the largest."""
    cdef int size = 0
    while size < BATCH_SIZES - 1 and (<size_t>BATCH_BYTES_LEAST << size) < wanted:
        size += 1
    return size


cdef void free_buffer(WriterState* w, Batch* batch) noexcept nogil:
    w.buffer_bytes -= batch.capacity
    free(batch.data)
    free(batch)


cdef bint free_spare(WriterState* w) noexcept nogil:
    """Free one buffer that is kept for reuse, a large one if there is one. False: there is none."""
    cdef int size
    cdef Batch* batch
    for size in range(BATCH_SIZES - 1, -1, -1):
        batch = w.free_batches[size]
        if batch is not NULL:
            w.free_batches[size] = batch.next
            free_buffer(w, batch)
            return True
    return False


cdef size_t share_bytes(WriterState* w) noexcept nogil:
    """What one open batch may take: each dirty partition may have one open and one that is being synced."""
    cdef uint64_t share = w.buffer_bytes_max // (2 * dirty_partitions(w) + 1)
    return BATCH_BYTES if share > BATCH_BYTES else share


cdef Batch* take_buffer(WriterState* w, size_t bytes_needed, size_t expected) noexcept nogil:
    cdef size_t share = share_bytes(w)
    cdef int size
    if expected > share:
        expected = share // 2 + 1       # the next smaller size
    size = size_for(bytes_needed if bytes_needed > expected else expected)
    cdef size_t capacity = <size_t>BATCH_BYTES_LEAST << size
    cdef Batch* batch = w.free_batches[size]
    if bytes_needed > capacity:
        capacity = bytes_needed
    elif batch is not NULL:
        w.free_batches[size] = batch.next
        batch.next = NULL
        batch.finished_bytes = 0
        batch.waiting_rings = 0
        memset(batch.shares, 0, gw_load_acquire(&w.ring_count) * sizeof(Share))   # of others there is none yet
        batch.begins_segment = batch.was_appended = False
        return batch
    while w.buffer_bytes + capacity > w.buffer_bytes_max and free_spare(w):
        pass                        # spare buffers of other sizes make room
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
    cdef size_t capacity
    if 2 * batch.capacity > share_bytes(w):
        return False
    larger = take_buffer(w, 2 * batch.capacity, 0)
    if larger is NULL:
        return False
    memcpy(larger.data, batch.data, batch.builder.length)
    # The buffers change places; the batch itself, to which others may point, stays.
    data, capacity = batch.data, batch.capacity
    batch.data, batch.capacity = larger.data, larger.capacity
    larger.data, larger.capacity = data, capacity
    batch.builder.data = batch.data
    batch.builder.capacity = batch.capacity
    release_buffer(w, larger)
    return True


cdef void release_buffer(WriterState* w, Batch* batch) noexcept nogil:
    cdef int size = size_for(batch.capacity)
    if batch.capacity != <size_t>BATCH_BYTES_LEAST << size:
        free_buffer(w, batch)
        return
    batch.next = w.free_batches[size]
    w.free_batches[size] = batch


cdef void release_buffers(WriterState* w, BatchList* batches) noexcept nogil:
    cdef Batch* batch = pop_batch(batches)
    while batch is not NULL:
        release_buffer(w, batch)
        batch = pop_batch(batches)


cdef void free_buffers(WriterState* w) noexcept nogil:
    while free_spare(w):
        pass
