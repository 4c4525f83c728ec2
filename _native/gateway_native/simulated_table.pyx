"""The functions of the simulated disk's table. See simulated_table.pxd."""

from libc.errno cimport EBADF, EEXIST, EIO, EISDIR, ENOENT, ENOSPC
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport strcmp, strlen

from gateway_native.batch cimport crc32c_update
from gateway_native.simulated_state cimport (
    NOWHERE,
    OP_ALLOCATE,
    OP_APPEND,
    OP_MAKE_DIRECTORY,
    OP_OPEN,
    OP_RENAME,
    OP_RESERVE,
    OP_SYNC_ALL,
    OP_SYNC_DATA,
    OP_SYNC_DIRECTORY,
    OP_SYNC_FILESYSTEM,
    OP_TRUNCATE,
    OP_UNLINK,
    OP_WRITE,
    PAGE_BLOCK,
    PAGE_BYTES,
    SECTOR_BYTES,
    DiskState,
    Fault,
    Inode,
    below,
    chance,
    change,
    commit_changes,
    drop_blocks_if_gone,
    entry_for,
    find_entry,
    grown_int,
    lose_content,
    new_inode,
    note,
    pages_of,
    put,
    resize,
    set_name,
    some_reach_the_disk,
    sync_content,
    take_blocks,
)
from gateway_native.storage cimport OPEN_EMPTY, OPEN_EXISTING, OPEN_NEW, SegmentFile, StorageOps

cdef DiskState* current = NULL


cdef DiskState* current_disk() noexcept nogil:
    return current


cdef void make_current(DiskState* disk) noexcept nogil:
    global current
    current = disk


# -- what happens before and around every operation --------------------------------------------------------------------

cdef bint ends_with(const char* path, const char* suffix) noexcept nogil:
    cdef size_t length = strlen(path)
    cdef size_t wanted = strlen(suffix)
    return length >= wanted and strcmp(path + length - wanted, suffix) == 0


cdef Fault* fault_of(DiskState* d, int kind, int entry) noexcept nogil:
    cdef Fault* fault
    cdef int i
    for i in range(d.fault_count):
        fault = &d.faults[i]
        if not fault.kinds >> kind & 1 or (entry >= 0 and not ends_with(d.entries[entry].path, fault.suffix)):
            continue
        if fault.skip:
            fault.skip -= 1
        elif fault.count:
            fault.count -= 1
            return fault
    return NULL


cdef enum:
    GO_ON = 0
    FAILS = 1                       # with EIO, after as much of it as chance wants
    LIES = 2                        # nothing happens, and success is reported
    POWER_FAILS = 3                 # in the middle of it
    IS_OFF = 4


cdef int begin(DiskState* d, int kind, int entry) noexcept nogil:
    """What is to happen to the operation: one of GO_ON … IS_OFF."""
    cdef Fault* fault
    if d.crashed:
        return IS_OFF
    d.operations += 1
    if d.crash_at and d.operations >= d.crash_at:
        d.crashed = True
        return POWER_FAILS
    if d.inode_count and chance(d, d.writeback):
        some_reach_the_disk(d)
    fault = fault_of(d, kind, entry)
    if fault is NULL:
        return GO_ON
    return LIES if fault.lies else FAILS


cdef void let_others_run(DiskState* d) noexcept nogil:
    """During a sync the writer may do a few rounds."""
    cdef int rounds
    if d.interleave is NULL or d.interleaving or not chance(d, d.interleave_chance):
        return
    d.interleaving = True
    for rounds in range(1 + <int>below(d, 3)):
        d.interleave(d.interleave_with)
    d.interleaving = False


cdef int inode_of(DiskState* d, int fd) noexcept nogil:
    """The inode that the descriptor is open for; NOWHERE if it is not open."""
    if d is NULL or fd < d.first_descriptor or fd - d.first_descriptor >= d.descriptor_count:
        return NOWHERE
    return d.descriptors[fd - d.first_descriptor]


cdef int64_t a_part(DiskState* d, int64_t size, int64_t position) noexcept nogil:
    """How much of a write is done when something stops it: whole sectors."""
    cdef int64_t end = position + <int64_t>below(d, <uint64_t>size + 1)
    if end < position + size:
        end -= end % SECTOR_BYTES
    return end - position if end > position else 0


# -- the table ---------------------------------------------------------------------------------------------------------

cdef int sim_open(const char* path, int mode) noexcept nogil:
    cdef DiskState* d = current
    cdef int entry = entry_for(d, path)
    cdef int verdict = begin(d, OP_OPEN, entry)
    cdef int failed = 0
    cdef int inode = d.entries[entry].inode if entry >= 0 else NOWHERE
    cdef int fd
    if verdict:
        failed = -EIO
    elif entry < 0:
        failed = entry
    elif inode >= 0 and d.inodes[inode].directory:
        failed = -EISDIR
    elif inode >= 0 and mode == OPEN_NEW:
        failed = -EEXIST
    elif inode < 0 and mode == OPEN_EXISTING:
        failed = -ENOENT
    elif inode < 0 and d.used >= d.capacity and chance(d, 128):
        failed = -ENOSPC            # the directory would need one more block
    if failed:
        note(d, OP_OPEN, entry, mode, 0, failed)
        return failed
    if inode < 0:
        inode = new_inode(d, False, entry)
        set_name(d, entry, inode)
        change(d, entry, inode, NOWHERE)
    elif mode == OPEN_EMPTY:
        resize(d, &d.inodes[inode], 0)
    d.inodes[inode].opens += 1
    d.descriptors = <int*>grown_int(d.descriptors, &d.descriptor_room, d.descriptor_count + 1, sizeof(int))
    d.descriptors[d.descriptor_count] = inode
    fd = d.first_descriptor + d.descriptor_count
    d.descriptor_count += 1
    note(d, OP_OPEN, entry, mode, 0, 0)
    return fd


cdef int allocate_blocks(int kind, int fd, int64_t start, int64_t upto, bint grow) noexcept nogil:
    cdef DiskState* d = current
    cdef int inode = inode_of(d, fd)
    cdef int failed = 0
    cdef Inode* f
    if inode < 0:
        return -EBADF
    f = &d.inodes[inode]
    if begin(d, kind, f.entry):
        failed = -EIO
    else:
        failed = take_blocks(d, f, start // PAGE_BYTES, pages_of(upto))
        if failed == 0 and grow and upto > f.size:
            f.size = upto
    note(d, kind, f.entry, start, upto, failed)
    return failed


cdef int sim_allocate(SegmentFile* file, int64_t upto, int64_t bytes_max) noexcept nogil:
    cdef int failed
    if upto <= file.allocated:
        return 0
    failed = allocate_blocks(OP_ALLOCATE, file.fd, file.allocated, upto, True)
    if failed == 0:
        file.allocated = upto
    return failed


cdef int sim_reserve(int fd, int64_t upto) noexcept nogil:
    return allocate_blocks(OP_RESERVE, fd, 0, upto, False)


cdef int write_bytes(int kind, int fd, const uint8_t* data, int64_t size, int64_t position, bint mapped) noexcept nogil:
    cdef DiskState* d = current
    cdef int inode = inode_of(d, fd)
    cdef int failed = 0
    cdef int verdict
    cdef int64_t done = size
    cdef int64_t page
    cdef Inode* f
    if inode < 0:
        return -EBADF
    f = &d.inodes[inode]
    verdict = begin(d, kind, f.entry)
    if verdict == FAILS or verdict == POWER_FAILS:
        failed = -EIO
        done = a_part(d, size, position)
    elif verdict == IS_OFF:
        return -EIO
    elif verdict == LIES:
        done = 0
    for page in range(position // PAGE_BYTES, pages_of(position + done)):
        if page < f.page_room and f.pages[page] & PAGE_BLOCK:
            continue
        if mapped:
            d.bus_errors += 1
        if take_blocks(d, f, page, page + 1):
            failed = -ENOSPC
            done = page * PAGE_BYTES - position if page * PAGE_BYTES > position else 0
            break
    put(f, data, done, position)
    note(d, kind, f.entry, position, size, failed ^ <int64_t>crc32c_update(0, data, size))
    return failed


cdef int sim_write_at(int fd, const uint8_t* data, int64_t size, int64_t position) noexcept nogil:
    return write_bytes(OP_WRITE, fd, data, size, position, False)


cdef int append_bytes(SegmentFile* file, const uint8_t* data, int64_t size, bint mapped) noexcept nogil:
    cdef int failed
    if mapped and file.position + size > file.allocated:
        return -EIO
    failed = write_bytes(OP_APPEND, file.fd, data, size, file.position, mapped)
    if failed == 0:
        file.position += size
    return failed


cdef int sim_append_mapped(SegmentFile* file, const uint8_t* data, int64_t size) noexcept nogil:
    return append_bytes(file, data, size, True)


cdef int sim_append_pwrite(SegmentFile* file, const uint8_t* data, int64_t size) noexcept nogil:
    return append_bytes(file, data, size, False)


cdef int sync_one(int kind, int fd) noexcept nogil:
    cdef DiskState* d = current
    cdef int inode = inode_of(d, fd)
    cdef int failed = 0
    cdef int verdict
    cdef Inode* f
    if inode < 0:
        return -EBADF
    let_others_run(d)
    f = &d.inodes[inode]            # only now: inodes move when the writer makes files
    verdict = begin(d, kind, f.entry)
    if verdict == FAILS:
        failed = -EIO
        f.failed = False
        lose_content(d, f)
    elif verdict == GO_ON and f.failed:
        failed = -EIO
        f.failed = False
    elif verdict == GO_ON:
        sync_content(f, kind == OP_SYNC_ALL)
    elif verdict != LIES:
        failed = -EIO
    note(d, kind, f.entry, f.disk_size, f.size, failed)
    let_others_run(d)
    return failed


cdef int sim_sync_data(int fd) noexcept nogil:
    return sync_one(OP_SYNC_DATA, fd)


cdef int sim_sync_all(int fd) noexcept nogil:
    return sync_one(OP_SYNC_ALL, fd)


cdef int sim_sync_filesystem(int fd) noexcept nogil:
    cdef DiskState* d = current
    cdef int failed = 0
    cdef int verdict, i
    if inode_of(d, fd) < 0:
        return -EBADF
    let_others_run(d)
    verdict = begin(d, OP_SYNC_FILESYSTEM, NOWHERE)
    if verdict == FAILS:
        failed = -EIO
        i = <int>below(d, d.inode_count)
        if d.inodes[i].used and not d.inodes[i].directory:
            d.inodes[i].failed = True
            lose_content(d, &d.inodes[i])
    elif verdict == GO_ON:
        for i in range(d.inode_count):
            if d.inodes[i].used and not d.inodes[i].directory:
                sync_content(&d.inodes[i], True)
        commit_changes(d, NOWHERE)
    elif verdict != LIES:
        failed = -EIO
    note(d, OP_SYNC_FILESYSTEM, NOWHERE, 0, 0, failed)
    let_others_run(d)
    return failed


cdef int sim_truncate(int fd, int64_t size) noexcept nogil:
    cdef DiskState* d = current
    cdef int inode = inode_of(d, fd)
    cdef int failed = 0
    if inode < 0:
        return -EBADF
    if begin(d, OP_TRUNCATE, d.inodes[inode].entry):
        failed = -EIO
    else:
        resize(d, &d.inodes[inode], size)
    note(d, OP_TRUNCATE, d.inodes[inode].entry, 0, size, failed)
    return failed


cdef int sim_rename(const char* path, const char* to) noexcept nogil:
    cdef DiskState* d = current
    cdef int entry = find_entry(d, path)
    cdef int target = entry_for(d, to)
    cdef int failed = 0
    cdef int inode
    if begin(d, OP_RENAME, target):
        failed = -EIO
    elif entry < 0 or d.entries[entry].inode < 0:
        failed = -ENOENT
    elif target < 0:
        failed = target
    elif target != entry:
        inode = d.entries[entry].inode
        set_name(d, target, inode)
        set_name(d, entry, NOWHERE)
        d.inodes[inode].entry = target
        change(d, target, inode, entry)
    note(d, OP_RENAME, target, entry, 0, failed)
    return failed


cdef int sim_unlink(const char* path) noexcept nogil:
    cdef DiskState* d = current
    cdef int entry = find_entry(d, path)
    cdef int failed = 0
    if begin(d, OP_UNLINK, entry):
        failed = -EIO
    elif entry < 0 or d.entries[entry].inode < 0:
        failed = -ENOENT
    elif d.inodes[d.entries[entry].inode].directory:
        failed = -EISDIR
    else:
        set_name(d, entry, NOWHERE)
        change(d, entry, NOWHERE, NOWHERE)
    note(d, OP_UNLINK, entry, 0, 0, failed)
    return failed


cdef int64_t sim_free_bytes(int fd) noexcept nogil:
    cdef DiskState* d = current
    if inode_of(d, fd) < 0:
        return -EBADF
    if d.crashed:
        return -EIO
    return (d.capacity - d.used) * PAGE_BYTES if d.capacity > d.used else 0


cdef int sim_make_directory(const char* path) noexcept nogil:
    cdef DiskState* d = current
    cdef int entry = entry_for(d, path)
    cdef int failed = 0
    cdef int inode
    if begin(d, OP_MAKE_DIRECTORY, entry):
        failed = -EIO
    elif entry < 0:
        failed = entry
    elif d.entries[entry].inode < 0:
        inode = new_inode(d, True, entry)
        set_name(d, entry, inode)
        change(d, entry, inode, NOWHERE)
    note(d, OP_MAKE_DIRECTORY, entry, 0, 0, failed)
    return failed


cdef int sim_sync_directory(const char* path) noexcept nogil:
    cdef DiskState* d = current
    cdef int entry, verdict
    cdef int failed = 0
    let_others_run(d)
    entry = find_entry(d, path)
    verdict = begin(d, OP_SYNC_DIRECTORY, entry)
    if verdict == GO_ON and (entry < 0 or d.entries[entry].inode < 0):
        failed = -ENOENT
    elif verdict == GO_ON:
        commit_changes(d, entry)
    elif verdict != LIES:
        failed = -EIO
    note(d, OP_SYNC_DIRECTORY, entry, 0, 0, failed)
    let_others_run(d)
    return failed


cdef void sim_detach(SegmentFile* file) noexcept nogil:
    return


cdef int sim_close(int fd) noexcept nogil:
    """Changes nothing on the disk, so it works after the crash too; not counted as an operation."""
    cdef DiskState* d = current
    cdef int inode = inode_of(d, fd)
    if inode < 0:
        return -EBADF
    d.descriptors[fd - d.first_descriptor] = NOWHERE
    d.inodes[inode].opens -= 1
    drop_blocks_if_gone(d, inode)
    return 0


cdef StorageOps mapped_ops
mapped_ops.name = "simulated mapped"
mapped_ops.open = sim_open
mapped_ops.allocate = sim_allocate
mapped_ops.reserve = sim_reserve
mapped_ops.append = sim_append_mapped
mapped_ops.write_at = sim_write_at
mapped_ops.sync_data = sim_sync_data
mapped_ops.sync_all = sim_sync_all
mapped_ops.sync_filesystem = sim_sync_filesystem
mapped_ops.truncate = sim_truncate
mapped_ops.rename = sim_rename
mapped_ops.unlink = sim_unlink
mapped_ops.free_bytes = sim_free_bytes
mapped_ops.make_directory = sim_make_directory
mapped_ops.sync_directory = sim_sync_directory
mapped_ops.detach = sim_detach
mapped_ops.close = sim_close

cdef StorageOps pwrite_ops = mapped_ops
pwrite_ops.name = "simulated pwrite"
pwrite_ops.append = sim_append_pwrite


cdef StorageOps* simulated_ops(bint mapped) noexcept nogil:
    return &mapped_ops if mapped else &pwrite_ops
