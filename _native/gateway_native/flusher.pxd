"""The flusher: makes durable what the writer handed over, then says so to whoever waits. Nothing here changes a segment."""

from gateway_native.state cimport WriterState

# Sync everything in the commit, publish, and hand it back. The commit is READY before and DONE afterwards.
cdef void flush_commit(WriterState* w) noexcept nogil
