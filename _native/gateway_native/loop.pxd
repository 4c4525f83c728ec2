"""When to commit, and what the two threads do: rounds of the writer, the flusher's wait for its next commit."""

from gateway_native.state cimport WriterState

# One round: collect, retry, drain, commit. True if anything moved.
cdef bint writer_step(WriterState* w) noexcept nogil
# The same; `state` is a WriterState. For a simulated disk that lets the writer run during a sync.
cdef void writer_step_once(void* state) noexcept nogil
# Asked to end, and everything is done; or it is to be left behind.
cdef bint is_finished(WriterState* w) noexcept nogil
# Close every partition; the flusher ends then.
cdef void finish(WriterState* w) noexcept nogil
# The threads' bodies.
cdef void run_writer_loop(WriterState* w) noexcept nogil
cdef void run_flusher_loop(WriterState* w) noexcept nogil
