"""A partition on the writer thread: its batches on their way into segments, and what happens when the disk does not take them.

    open ──► pending ──► kept ──► (commit) ──► durable
              │   ▲        │         │
              │   └────────┴─────────┘  a write or sync failed: once more, into a new segment
              └──► refused              the disk is full, and stays so

A disk that fails a second time before anything became durable fails the partition. A full one does not: it is tried again.
"""

from libc.stdint cimport int64_t, uint64_t

from gateway_native.ring cimport RingSlot
from gateway_native.state cimport Partition, WriterState

cdef enum:
    NS_PER_MS = 1000000
    # How often a full disk is tried again.
    RETRY_NS = 200000000
    # So long retention may take to make room before records are refused, where it may delete.
    FULL_PATIENCE_NS = 1000000000

# From now on nothing more is acknowledged from this partition; whoever waits is told, and what it holds is counted as lost.
cdef void fail_partition(WriterState* w, Partition* p, int failed, uint64_t step) noexcept nogil
cdef void mark_dirty(WriterState* w, Partition* p) noexcept nogil
# Close the open batch and append it. False: something could not be appended, or the partition failed.
cdef bint append_open_batch(WriterState* w, Partition* p) noexcept nogil
# A record of a partition in trouble. 1: it is dealt with (refused, lost, or a gap record that was appended). 0: it is taken as
# usual. -1: not now; the slot stays in the ring.
cdef int take_troubled(WriterState* w, Partition* p, uint64_t ring_index, RingSlot* slot) noexcept nogil
# Try again what waits for room on the disk; refuse it when it has waited long enough.
cdef void retry_full_disk(WriterState* w, uint64_t now) noexcept nogil
# Describe to the flusher what is to be synced. False: nothing, or the partition failed.
cdef bint prepare_commit(WriterState* w, Partition* p) noexcept nogil
# The flusher is done with the partition: reuse the buffers, or write them again if it failed.
cdef void collect_partition(WriterState* w, Partition* p) noexcept nogil
# Seal the active segment though no record asks for it, and begin a new one.
cdef void roll_partition(WriterState* w, Partition* p) noexcept nogil
