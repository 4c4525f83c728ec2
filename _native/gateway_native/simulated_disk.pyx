"""A disk in memory that loses power, fills up and fails. See simulated_disk.pxd for what it promises.

One disk is current at a time, for the table's functions have no other way to find theirs, and one thread at a time uses it.
"""

import os

from libc.errno cimport ENOENT
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport strncpy, strrchr

from gateway_native.loop cimport writer_step_once
from gateway_native.simulated_state cimport (
    FAULTS_MAX,
    NOWHERE,
    OP_ALLOCATE,
    OP_APPEND,
    OP_CLOSE,
    OP_MAKE_DIRECTORY,
    OP_OPEN,
    OP_RENAME,
    OP_RESERVE,
    OP_RESTART,
    OP_SYNC_ALL,
    OP_SYNC_DATA,
    OP_SYNC_DIRECTORY,
    OP_SYNC_FILESYSTEM,
    OP_TRUNCATE,
    OP_UNLINK,
    OP_WRITE,
    SUFFIX_BYTES,
    DiskState,
    Inode,
    Operation,
    add_entry,
    find_entry,
    free_state,
    mixed,
    new_inode,
    restart,
    set_name,
)
from gateway_native.simulated_table cimport current_disk, make_current, simulated_ops
from gateway_native.storage cimport OPEN_EXISTING, StorageOps, StorageTable
from gateway_native.writer cimport Writer

KINDS = {
    "open": OP_OPEN,
    "allocate": OP_ALLOCATE,
    "reserve": OP_RESERVE,
    "append": OP_APPEND,
    "write": OP_WRITE,
    "sync_data": OP_SYNC_DATA,
    "sync_all": OP_SYNC_ALL,
    "sync_filesystem": OP_SYNC_FILESYSTEM,
    "truncate": OP_TRUNCATE,
    "rename": OP_RENAME,
    "unlink": OP_UNLINK,
    "make_directory": OP_MAKE_DIRECTORY,
    "sync_directory": OP_SYNC_DIRECTORY,
    "close": OP_CLOSE,
    "restart": OP_RESTART,
}
KIND_NAMES = {number: name for name, number in KINDS.items()}

# Descriptors of one disk, and of one life on it, are never another's: a writer that is freed late closes its own.
cdef enum:
    DESCRIPTORS_PER_DISK = 65536
    DISKS = 32000

cdef int disks_made = 0


cdef int check(int64_t result, str path) except? -1:
    """What a table's function returned, or its error as an exception."""
    if result < 0:
        raise OSError(<int>-result, os.strerror(<int>-result), path)
    return <int>result


cdef class Disk:
    """A disk that holds one directory, `root`, and everything below it. It is the current one until another is made.

    Every method that does what a program does to a disk (open, write_at, sync …) is an operation like those of the
    writer's table: it counts, it can fail, and after the crash it fails with EIO. `read_file`, `names`, `exists` and
    `size` look at the volatile state and always work.
    """

    def __cinit__(self, uint64_t seed, *, str root="/disk", int64_t capacity=1 << 40, int writeback=8, bint tracing=False):
        global disks_made
        cdef DiskState* d = &self.state
        d.random = mixed(seed + 1)
        d.capacity = capacity
        d.writeback = writeback
        d.tracing = tracing
        d.first_descriptor = (1 + disks_made % DISKS) * DESCRIPTORS_PER_DISK
        disks_made += 1
        entry = add_entry(d, os.fsencode(root), NOWHERE)
        inode = new_inode(d, True, entry)
        set_name(d, entry, inode)
        d.entries[entry].disk_inode = inode
        make_current(d)

    def __dealloc__(self):
        if current_disk() == &self.state:
            make_current(NULL)
        free_state(&self.state)

    cdef StorageOps* ops(self) noexcept:
        make_current(&self.state)
        return simulated_ops(False)

    def table(self, str flavour) -> StorageTable:
        """The table for a writer: "mapped" or "pwrite"."""
        cdef StorageTable table = StorageTable.__new__(StorageTable)
        if flavour not in ("mapped", "pwrite"):
            raise ValueError(f"there is no flavour {flavour!r} of the simulated disk; there are 'mapped' and 'pwrite'")
        make_current(&self.state)
        table.ops = simulated_ops(flavour == "mapped")
        table.owner = self
        return table

    # What is to happen.

    def crash_after(self, uint64_t operations) -> None:
        """Let the power fail in the middle of the operation after so many more."""
        self.state.crash_at = self.state.operations + operations + 1

    def fail(self, *kinds, uint64_t after=0, uint64_t count=1, str suffix="", bint lies=False) -> None:
        """Let operations of these kinds, on paths that end in `suffix`, fail with EIO: `count` of them, after `after` more.

        lies: they do nothing, and say that they did it.
        """
        cdef DiskState* d = &self.state
        cdef bytes encoded = suffix.encode()
        if d.fault_count >= FAULTS_MAX or len(encoded) >= SUFFIX_BYTES:
            raise ValueError(f"at most {FAULTS_MAX} faults, of paths that end in less than {SUFFIX_BYTES} bytes")
        fault = &d.faults[d.fault_count]
        fault.kinds = 0
        for kind in kinds:
            fault.kinds |= <uint64_t>1 << <int>KINDS[kind]
        fault.skip = after
        fault.count = count
        fault.lies = lies
        strncpy(fault.suffix, encoded, SUFFIX_BYTES - 1)
        d.fault_count += 1

    def heal(self) -> None:
        """Forget all faults."""
        self.state.fault_count = 0

    def restart(self, *, bint power_loss) -> None:
        """The process is gone, and its descriptors; with the power everything that was not durable. Faults are forgotten."""
        self.interleave(None)
        restart(&self.state, power_loss)

    def interleave(self, Writer writer, uint64_t chance_of_256=0) -> None:
        """Let the writer run at the start and the end of syncs, with that chance; None: no longer."""
        self.interleave_owner = writer
        self.state.interleave = NULL
        if writer is not None:
            self.state.interleave = writer_step_once
            self.state.interleave_with = &writer.state
            self.state.interleave_chance = chance_of_256

    @property
    def capacity(self) -> int:
        """Pages of 4 KiB. May be set at any time, also to less than is used."""
        return self.state.capacity

    @capacity.setter
    def capacity(self, int64_t pages):
        self.state.capacity = pages

    # What has happened.

    @property
    def used(self) -> int:
        """Pages that take room."""
        return self.state.used

    @property
    def crashed(self) -> bool:
        """The power has failed, and `restart` was not called since."""
        return self.state.crashed

    @property
    def operations(self) -> int:
        """How many there were."""
        return self.state.operations

    @property
    def bus_errors(self) -> int:
        """Writes through the mapping into pages without a block."""
        return self.state.bus_errors

    @property
    def digest(self) -> int:
        """Of all operations, what was written, and what came of it."""
        return self.state.digest

    def journal(self) -> list:
        """With tracing, every operation: (kind, path, position, size, result)."""
        cdef int64_t i
        cdef Operation* one
        found = []
        for i in range(self.state.journal_count):
            one = &self.state.journal[i]
            path = os.fsdecode(<bytes>self.state.entries[one.entry].path) if one.entry >= 0 else ""
            found.append((KIND_NAMES[one.kind], path, one.position, one.size, one.result))
        return found

    # Looking, which is no operation.

    cdef Inode* file(self, str path) except NULL:
        cdef int entry = find_entry(&self.state, os.fsencode(path))
        if entry < 0 or self.state.entries[entry].inode < 0:
            raise FileNotFoundError(ENOENT, os.strerror(ENOENT), path)
        return &self.state.inodes[self.state.entries[entry].inode]

    def names(self, str directory) -> list:
        """Names in a directory, in no order; a directory that is missing has none."""
        cdef DiskState* d = &self.state
        cdef int entry = find_entry(d, os.fsencode(directory))
        cdef int i
        found = []
        if entry >= 0 and d.entries[entry].inode >= 0:
            for i in range(d.entry_count):
                if d.entries[i].directory == entry and d.entries[i].inode >= 0:
                    found.append(os.fsdecode(strrchr(d.entries[i].path, c'/') + 1))
        return found

    def exists(self, str path) -> bool:
        """Is there a file or directory of that name?"""
        cdef int entry = find_entry(&self.state, os.fsencode(path))
        return entry >= 0 and self.state.entries[entry].inode >= 0

    def is_directory(self, str path) -> bool:
        """Is there a directory of that name?"""
        return self.exists(path) and self.file(path).directory

    def size(self, str path) -> int:
        """Bytes in a file."""
        return self.file(path).size

    def read(self, str path, int64_t position, int64_t size) -> bytes:
        """Up to `size` bytes from `position` of a file; fewer only at its end."""
        cdef Inode* f = self.file(path)
        cdef int64_t end = position + size if position + size < f.size else f.size
        cdef int64_t stored = end if end < f.room else f.room
        if position < 0 or position >= end:
            return b""
        found = b"" if stored <= position else (<char*>f.data)[position:stored]
        return found + bytes(end - position - len(found))

    def read_file(self, str path) -> bytes:
        """All of a file."""
        return self.read(path, 0, self.file(path).size)

    def read_durable(self, str path) -> bytes | None:
        """What of a file has reached the disk for certain; None if its name has not."""
        cdef int entry = find_entry(&self.state, os.fsencode(path))
        cdef Inode* f
        if entry < 0 or self.state.entries[entry].disk_inode < 0:
            return None
        f = &self.state.inodes[self.state.entries[entry].disk_inode]
        stored = min(f.disk_size, f.room)
        return ((<char*>f.disk)[:stored] if stored else b"") + bytes(f.disk_size - stored)

    # Operations: OSError says why not.

    def open(self, str path, int mode=OPEN_EXISTING) -> int:
        """A descriptor. mode: 0 it must exist, 1 it must not, 2 made when missing and emptied when there."""
        return check(self.ops().open(os.fsencode(path), mode), path)

    def close(self, int fd) -> None:
        """Give a descriptor back."""
        check(self.ops().close(fd), "")

    def write_at(self, int fd, bytes data, int64_t position) -> None:
        """Write all of it."""
        check(self.ops().write_at(fd, data, len(data), position), "")

    def reserve(self, int fd, int64_t upto) -> None:
        """Find room without changing the size."""
        check(self.ops().reserve(fd, upto), "")

    def truncate(self, int fd, int64_t size) -> None:
        """Give a file another size."""
        check(self.ops().truncate(fd, size), "")

    def sync_data(self, int fd) -> None:
        """Make content durable."""
        check(self.ops().sync_data(fd), "")

    def sync_all(self, int fd) -> None:
        """Make content and size durable."""
        check(self.ops().sync_all(fd), "")

    def sync_filesystem(self, int fd) -> None:
        """Make everything durable."""
        check(self.ops().sync_filesystem(fd), "")

    def rename(self, str path, str to) -> None:
        """Give a file another name, replacing what had it."""
        check(self.ops().rename(os.fsencode(path), os.fsencode(to)), path)

    def unlink(self, str path) -> None:
        """Remove a file."""
        check(self.ops().unlink(os.fsencode(path)), path)

    def make_directory(self, str path) -> None:
        """Make a directory; one that is there is no error."""
        check(self.ops().make_directory(os.fsencode(path)), path)

    def sync_directory(self, str path) -> None:
        """Make a directory's entries durable."""
        check(self.ops().sync_directory(os.fsencode(path)), path)
