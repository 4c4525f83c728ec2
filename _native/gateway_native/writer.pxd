"""The writer and the flusher: two threads without the GIL that take records from the rings to the disk.

The writer drains all rings fairly, encodes record batches and appends them to each partition's active segment. The
flusher syncs what the writer handed over (one group commit for all dirty partitions), publishes the durable offset and
lets acknowledgements go. While one commit is being synced, the writer fills the batches of the next.

    state       the structures, and who may touch which field
    drain       rings into open batches
    loop        when to commit; the threads
    writer      what Python sees
    partition   batches into segments; full and failing disks
    rolling     segments begin and end
    buffers     the bounded pool of batch buffers
    flusher     one group commit
"""

from libc.stdint cimport uint32_t

from gateway_native.state cimport ManualTime, Partition, WriterState
from gateway_native.storage cimport StorageTable


cdef class ManualClock:
    cdef ManualTime time


cdef class Writer:
    cdef WriterState state
    cdef StorageTable table
    cdef ManualClock clock
    cdef list ring_objects          # by index, as in state.rings
    cdef Partition* partition(self, uint32_t index) except NULL
