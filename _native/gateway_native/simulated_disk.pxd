"""A disk in memory that loses power, fills up and fails, for tests: the third table of storage.pxd, in two flavours.

Everything that the shipped tables do happens to a volatile state, which is what a read sees, and of which the durable
state learns in time. One seed decides everything that is left open, so the same calls always end the same.

What the disk promises, which is no more than POSIX does and less than ext4:

* A page (4 KiB) that was written may reach the disk at any time, or never; until a sync, each page by itself. Power
  that fails leaves each unsynced page old, new, or a mixture of old and new sectors (512 bytes).
* A write that is cut short by a failure ends with a whole sector.
* sync_data makes content durable, and the size where the file has grown. A file that was only cut may have its old
  size again after sync_data; not after sync_all.
* New names, renames and removals are kept or lost one by one until sync_directory of their directory. A rename is
  atomic: the file has the old name, or the new one, whatever else of the directory is lost. Syncing a file does not
  make its name durable.
* Where the size survives and the data does not, there are zeros, or what was there before.
* A failed sync may have written some pages; the others are clean from then on, so the next sync succeeds without them.
  What is read of them is the new content or the old. sync_filesystem reports an error once, and so does the file.
* A full disk: pages get blocks when they are written (pwrite), or by allocate and reserve; with a block, never
  ENOSPC. Writing through the mapping into a page without one is SIGBUS on a real machine, and counted in `bus_errors`.

Not simulated: reordering inside one sector, directories that move, links, and time.
"""

from gateway_native.simulated_state cimport DiskState, Inode
from gateway_native.storage cimport StorageOps

cdef class Disk:
    cdef DiskState state
    cdef object interleave_owner    # keeps the writer that runs during syncs alive

    cdef StorageOps* ops(self) noexcept
    cdef Inode* file(self, str path) except NULL
