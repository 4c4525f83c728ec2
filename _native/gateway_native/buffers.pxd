"""The bounded pool of batch buffers. All of it is the writer's."""

from gateway_native.state cimport Batch, BatchList, WriterState

# A buffer for at least that many bytes, or NULL while the pool is used up. `expected`: as many are likely to come.
cdef Batch* take_buffer(WriterState* w, size_t bytes_needed, size_t expected) noexcept nogil
# Move the open batch into a buffer of twice the size, up to BATCH_BYTES. False: there is none now.
cdef bint grow_buffer(WriterState* w, Batch* batch) noexcept nogil
# Give buffers back. Those of the usual sizes are kept for reuse, others are freed.
cdef void release_buffer(WriterState* w, Batch* batch) noexcept nogil
cdef void release_buffers(WriterState* w, BatchList* batches) noexcept nogil
# Free what is kept for reuse.
cdef void free_buffers(WriterState* w) noexcept nogil
