"""The storage table of the simulated disk, and the same operations for its Python side.

All return what storage.pxd says. Descriptors of one disk, and of one life on it, are never another's: a writer that is
freed late closes nothing of the next.
"""

from libc.stdint cimport int64_t, uint8_t

from gateway_native.simulated_state cimport DiskState
from gateway_native.storage cimport StorageOps

# The disk that the functions work on, for they have no other way to find theirs; NULL: none.
cdef DiskState* current_disk() noexcept nogil
cdef void make_current(DiskState* disk) noexcept nogil

cdef StorageOps* simulated_ops(bint mapped) noexcept nogil
