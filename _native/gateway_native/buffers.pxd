"""The bounded pool of batch buffers. All of it is the writer's."""

from gateway_native.state cimport Batch, BatchList, WriterState

# A buffer for at least that many bytes, or NULL while the pool is used up. `small`: the partition fills little.
cdef Batch* take_buffer(WriterState* w, size_t bytes_needed, bint small) noexcept nogil
# Move the open batch of a small buffer into one of the usual size. False: there is none now.
cdef bint grow_buffer(WriterState* w, Batch* batch) noexcept nogil
# Give buffers back. Those of the two usual sizes are kept for reuse, others are freed.
cdef void release_buffer(WriterState* w, Batch* batch) noexcept nogil
cdef void release_buffers(WriterState* w, BatchList* batches) noexcept nogil
# Free what is kept for reuse.
cdef void free_buffers(WriterState* w) noexcept nogil
