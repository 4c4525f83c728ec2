"""Records from the rings into open batches, on the writer thread."""

from gateway_native.state cimport WriterState

cdef enum:
    # A clock stepping back by up to this is clamped, so that time stands still rather than runs backwards.
    CLAMP_MS = 1000
    # The wall clock jumping ahead by more than this begins a new segment.
    FORWARD_MS = 3600000

# Take a bounded number of bytes from each ring, fairly. True if anything moved.
cdef bint drain_rings(WriterState* w) noexcept nogil
cdef bint rings_empty(WriterState* w) noexcept nogil
# Is every ring empty, or blocked by a record that must wait?
cdef bint nothing_to_take(WriterState* w) noexcept nogil
