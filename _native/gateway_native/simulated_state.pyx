"""Names and content of a simulated disk. See simulated_state.pxd."""

from libc.errno cimport ENOENT, ENOSPC, ENOTDIR
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset, strcmp, strdup, strlen, strrchr


# -- chance -----------------------------------------------------------------------------------------------------------

cdef uint64_t mixed(uint64_t z) noexcept nogil:
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef uint64_t below(DiskState* d, uint64_t limit) noexcept nogil:
    """A number from 0 to before `limit`: splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators)."""
    d.random += <uint64_t>0x9E3779B97F4A7C15
    return mixed(d.random) % limit


cdef bint chance(DiskState* d, uint64_t of_256) noexcept nogil:
    return below(d, 256) < of_256


# -- growing arrays ---------------------------------------------------------------------------------------------------

cdef void* grown(void* array, int64_t* room, int64_t needed, size_t item) noexcept nogil:
    """The array with room for so many items, the new ones zero. Tests have the memory that they need."""
    cdef int64_t more = room[0] * 2 if room[0] else 8
    cdef uint8_t* found
    if needed <= room[0]:
        return array
    more = needed if more < needed else more
    found = <uint8_t*>realloc(array, more * item)
    memset(found + room[0] * item, 0, (more - room[0]) * item)
    room[0] = more
    return found


cdef void* grown_int(void* array, int* room, int needed, size_t item) noexcept nogil:
    cdef int64_t wide = room[0]
    cdef void* found = grown(array, &wide, needed, item)
    room[0] = <int>wide
    return found


cdef void note(DiskState* d, int kind, int entry, int64_t position, int64_t size, int64_t result) noexcept nogil:
    """Add an operation to the digest, and to the journal."""
    cdef uint64_t sum = d.digest
    sum = mixed(sum ^ <uint64_t>kind)
    sum = mixed(sum ^ (d.entries[entry].hash if entry >= 0 else 0))
    sum = mixed(sum ^ <uint64_t>position)
    sum = mixed(sum ^ <uint64_t>size)
    d.digest = mixed(sum ^ <uint64_t>result)
    if d.tracing:
        d.journal = <Operation*>grown(d.journal, &d.journal_room, d.journal_count + 1, sizeof(Operation))
        d.journal[d.journal_count] = Operation(kind, entry, position, size, result)
        d.journal_count += 1


# -- names ------------------------------------------------------------------------------------------------------------

cdef uint64_t hash_of(const char* path, size_t length) noexcept nogil:
    cdef uint64_t found = <uint64_t>14695981039346656037
    cdef size_t i
    for i in range(length):
        found = (found ^ <uint8_t>path[i]) * <uint64_t>1099511628211
    return found


cdef int find_entry(DiskState* d, const char* path) noexcept nogil:
    cdef uint64_t hashed = hash_of(path, strlen(path))
    cdef int i
    for i in range(d.entry_count):
        if d.entries[i].hash == hashed and strcmp(d.entries[i].path, path) == 0:
            return i
    return NOWHERE


cdef int directory_of(DiskState* d, const char* path) noexcept nogil:
    """The entry of the directory that `path` is in; NOWHERE if there is none."""
    cdef const char* slash = strrchr(path, c'/')
    cdef size_t length
    cdef uint64_t hashed
    cdef int i
    if slash is NULL:
        return NOWHERE
    length = slash - path
    hashed = hash_of(path, length)
    for i in range(d.entry_count):
        if d.entries[i].hash == hashed and strlen(d.entries[i].path) == length:
            return i
    return NOWHERE


cdef int entry_for(DiskState* d, const char* path) noexcept nogil:
    """The entry of a path whose directory is there; -errno if that is not."""
    cdef int found = find_entry(d, path)
    cdef int directory
    if found >= 0:
        directory = d.entries[found].directory
        return found if directory < 0 or d.entries[directory].inode >= 0 else -ENOENT
    directory = directory_of(d, path)
    if directory < 0 or d.entries[directory].inode < 0:
        return -ENOENT
    if not d.inodes[d.entries[directory].inode].directory:
        return -ENOTDIR
    return add_entry(d, path, directory)


cdef int add_entry(DiskState* d, const char* path, int directory) noexcept nogil:
    cdef Entry* entry
    d.entries = <Entry*>grown_int(d.entries, &d.entry_room, d.entry_count + 1, sizeof(Entry))
    entry = &d.entries[d.entry_count]
    entry.path = strdup(path)
    entry.hash = hash_of(path, strlen(path))
    entry.directory = directory
    entry.inode = entry.disk_inode = NOWHERE
    d.entry_count += 1
    return d.entry_count - 1


cdef int new_inode(DiskState* d, bint directory, int entry) noexcept nogil:
    cdef int i
    for i in range(d.inode_count):
        if not d.inodes[i].used:
            break
    else:
        i = d.inode_count
        d.inodes = <Inode*>grown_int(d.inodes, &d.inode_room, i + 1, sizeof(Inode))
        d.inode_count += 1
    memset(&d.inodes[i], 0, sizeof(Inode))
    d.inodes[i].used = True
    d.inodes[i].directory = directory
    d.inodes[i].entry = entry
    return i


cdef void set_name(DiskState* d, int entry, int inode) noexcept nogil:
    """What has the name from now on, in the volatile state."""
    cdef int before = d.entries[entry].inode
    d.entries[entry].inode = inode
    if inode >= 0:
        d.inodes[inode].links += 1
        d.inodes[inode].entry = entry
    if before >= 0:
        d.inodes[before].links -= 1
        drop_blocks_if_gone(d, before)


cdef void change(DiskState* d, int entry, int inode, int old_entry) noexcept nogil:
    cdef Change* made
    d.changes = <Change*>grown_int(d.changes, &d.change_room, d.change_count + 1, sizeof(Change))
    made = &d.changes[d.change_count]
    made.inode = inode
    made.entry = entry
    made.old_entry = old_entry
    d.change_count += 1


cdef void commit_change(DiskState* d, Change* one) noexcept nogil:
    if one.old_entry >= 0 and d.entries[one.old_entry].disk_inode == one.inode:
        d.entries[one.old_entry].disk_inode = NOWHERE
    d.entries[one.entry].disk_inode = one.inode


cdef void commit_changes(DiskState* d, int directory) noexcept nogil:
    """All changes of a directory become durable, in their order; NOWHERE: of every directory."""
    cdef int i
    cdef int kept = 0
    for i in range(d.change_count):
        if directory >= 0 and d.entries[d.changes[i].entry].directory != directory:
            d.changes[kept] = d.changes[i]
            kept += 1
        else:
            commit_change(d, &d.changes[i])
    d.change_count = kept


# -- content ----------------------------------------------------------------------------------------------------------

cdef void make_room(Inode* f, int64_t size) noexcept nogil:
    """Content up to `size` can be stored."""
    cdef int64_t before = f.room // PAGE_BYTES
    cdef int64_t room = before
    if size <= f.room:
        return
    f.data = <uint8_t*>grown(f.data, &room, pages_of(size), PAGE_BYTES)
    f.disk = <uint8_t*>grown(f.disk, &before, pages_of(size), PAGE_BYTES)
    f.room = room * PAGE_BYTES
    make_pages(f, f.room)


cdef void make_pages(Inode* f, int64_t size) noexcept nogil:
    f.pages = <uint8_t*>grown(f.pages, &f.page_room, pages_of(size), 1)


cdef int take_blocks(DiskState* d, Inode* f, int64_t first, int64_t end) noexcept nogil:
    """Room on the disk for pages [first, end). At -ENOSPC those in front may have got theirs."""
    cdef int64_t i
    make_pages(f, end * PAGE_BYTES)
    for i in range(first, end):
        if f.pages[i] & PAGE_BLOCK:
            continue
        if d.used >= d.capacity:
            return -ENOSPC
        f.pages[i] |= PAGE_BLOCK
        d.used += 1
    return 0


cdef void give_blocks(DiskState* d, Inode* f, int64_t first) noexcept nogil:
    """Pages from `first` on take no room any longer."""
    cdef int64_t i
    for i in range(first, f.page_room):
        if f.pages[i] & PAGE_BLOCK:
            f.pages[i] &= <uint8_t>~PAGE_BLOCK
            d.used -= 1


cdef void drop_blocks_if_gone(DiskState* d, int inode) noexcept nogil:
    cdef Inode* f = &d.inodes[inode]
    if f.links == 0 and f.opens == 0:
        give_blocks(d, f, 0)


cdef void put(Inode* f, const uint8_t* data, int64_t size, int64_t position) noexcept nogil:
    """Content into the volatile state. The file grows."""
    cdef int64_t i
    if size <= 0:
        return
    make_room(f, position + size)
    memcpy(f.data + position, data, size)
    for i in range(position // PAGE_BYTES, pages_of(position + size)):
        f.pages[i] |= PAGE_DIRTY
    if position + size > f.size:
        f.size = position + size


cdef void resize(DiskState* d, Inode* f, int64_t size) noexcept nogil:
    cdef int64_t end = f.size if f.size < f.room else f.room
    cdef int64_t i
    if size < end:
        memset(f.data + size, 0, end - size)
        for i in range(size // PAGE_BYTES, pages_of(end)):
            f.pages[i] |= PAGE_DIRTY
    # Also what was reserved beyond the end goes back.
    give_blocks(d, f, pages_of(size))
    f.size = size
    if size < f.low_size:
        f.low_size = size


cdef void write_back(Inode* f, int64_t page) noexcept nogil:
    memcpy(f.disk + page * PAGE_BYTES, f.data + page * PAGE_BYTES, PAGE_BYTES)
    f.pages[page] &= <uint8_t>~PAGE_DIRTY


cdef int64_t dirty_end(Inode* f) noexcept nogil:
    """Pages that may be dirty: those with content."""
    return f.room // PAGE_BYTES


cdef void cut_disk(Inode* f, int64_t size) noexcept nogil:
    """The durable state ends at `size`, and so does its content."""
    if size < f.room and size < f.disk_size:
        memset(f.disk + size, 0, (f.disk_size if f.disk_size < f.room else f.room) - size)
    f.disk_size = size


cdef void sync_content(Inode* f, bint everything) noexcept nogil:
    """What sync_data and sync_all promise."""
    cdef int64_t i
    cdef int64_t end = dirty_end(f)
    # Blocks that came after a cut cannot be found without it.
    cdef bint size_too = everything or f.size >= f.disk_size or f.size > f.low_size
    if size_too:
        if f.low_size < f.disk_size:
            cut_disk(f, f.low_size)
    elif pages_of(f.size) < end:
        end = pages_of(f.size)      # what was cut off may come back until the size is synced
    for i in range(end):
        if f.pages[i] & PAGE_DIRTY:
            write_back(f, i)
    if size_too:
        f.disk_size = f.low_size = f.size


cdef void lose_content(DiskState* d, Inode* f) noexcept nogil:
    """A sync failed: some pages are written, some never will be, and all are clean."""
    cdef int64_t i
    for i in range(dirty_end(f)):
        if not f.pages[i] & PAGE_DIRTY:
            continue
        f.pages[i] &= <uint8_t>~PAGE_DIRTY
        if chance(d, 85):
            write_back(f, i)
        elif chance(d, 128) and (i + 1) * PAGE_BYTES <= f.low_size:
            # Thrown out of the cache: what is read from now on is what the disk has.
            memcpy(f.data + i * PAGE_BYTES, f.disk + i * PAGE_BYTES, PAGE_BYTES)


cdef void some_reach_the_disk(DiskState* d) noexcept nogil:
    """The kernel writes dirty pages when it likes."""
    cdef Inode* f = &d.inodes[below(d, d.inode_count)]
    cdef uint64_t share
    cdef int64_t i
    if not f.used or f.directory:
        return
    share = 32 + below(d, 225)
    for i in range(dirty_end(f)):
        # Not beyond a cut whose new size is not durable: those blocks are not the file's any more.
        if f.pages[i] & PAGE_DIRTY and (i + 1) * PAGE_BYTES <= f.low_size and chance(d, share):
            write_back(f, i)


# -- power failure ----------------------------------------------------------------------------------------------------

cdef void tear(DiskState* d, Inode* f, int64_t page) noexcept nogil:
    """Some sectors of the page are new, others old."""
    cdef int64_t position = page * PAGE_BYTES
    cdef int64_t i
    for i in range(PAGE_BYTES // SECTOR_BYTES):
        if chance(d, 128):
            memcpy(f.disk + position, f.data + position, SECTOR_BYTES)
        position += SECTOR_BYTES


cdef int64_t surviving_size(DiskState* d, Inode* f, bint cut) noexcept nogil:
    """The size before or after what was not synced, or one in between that a growing file had."""
    cdef int64_t low = f.low_size if cut else f.disk_size
    cdef int64_t between
    cdef uint64_t which = below(d, 4)
    if f.size <= low or (which == 0):
        return low
    if which == 1:
        between = low + <int64_t>below(d, f.size - low + 1)
        between -= between % SECTOR_BYTES
        return between if between > low else low
    return f.size


cdef void settle_content(DiskState* d, Inode* f, uint64_t kept, uint64_t torn) noexcept nogil:
    """Decide what of a file is on the disk: `kept` and `torn` are chances of 256."""
    cdef bint was_cut = f.low_size < f.disk_size
    cdef bint cut = was_cut and chance(d, 128)
    cdef int64_t size, i
    cdef int64_t end = dirty_end(f)
    if was_cut and not cut:
        # A journal keeps its order: without the cut, nothing of what followed it beyond that place either.
        size = f.disk_size
        end = pages_of(f.low_size) if pages_of(f.low_size) < end else end
    else:
        size = surviving_size(d, f, cut)
        if cut:
            cut_disk(f, f.low_size)
    for i in range(end):
        if f.pages[i] & PAGE_DIRTY:
            if chance(d, torn):
                tear(d, f, i)
            elif chance(d, kept):
                write_back(f, i)
    if size < f.room:
        memset(f.disk + size, 0, f.room - size)
    f.disk_size = size


cdef void settle_names(DiskState* d, uint64_t kept) noexcept nogil:
    cdef int i, directory
    cdef bint moved = True
    for i in range(d.change_count):
        if chance(d, kept):
            commit_change(d, &d.changes[i])
    d.change_count = 0
    while moved:                    # a directory that is lost takes everything in it along
        moved = False
        for i in range(d.entry_count):
            directory = d.entries[i].directory
            if d.entries[i].disk_inode >= 0 and directory >= 0 and d.entries[directory].disk_inode < 0:
                d.entries[i].disk_inode = NOWHERE
                moved = True


cdef uint64_t mood(DiskState* d) noexcept nogil:
    """How much is kept: of all crashes, those that keep all or nothing say most."""
    return below(d, 5) * 64


cdef void lose_power(DiskState* d) noexcept nogil:
    cdef uint64_t kept = mood(d)
    cdef uint64_t torn = mood(d) // 4
    cdef Inode* f
    cdef int i
    settle_names(d, mood(d))
    for i in range(d.inode_count):
        f = &d.inodes[i]
        if not f.used or f.directory:
            continue
        settle_content(d, f, kept, torn)
        if f.room:
            memcpy(f.data, f.disk, f.room)
        f.size = f.low_size = f.disk_size
        f.failed = False
        if f.page_room:
            memset(f.pages, 0, f.page_room)
    for i in range(d.entry_count):
        d.entries[i].inode = d.entries[i].disk_inode
    count_links(d)
    count_blocks(d)


cdef void count_links(DiskState* d) noexcept nogil:
    cdef int i
    for i in range(d.inode_count):
        d.inodes[i].links = 0
    for i in range(d.entry_count):
        if d.entries[i].inode >= 0:
            d.inodes[d.entries[i].inode].links += 1
            d.inodes[d.entries[i].inode].entry = i


cdef void count_blocks(DiskState* d) noexcept nogil:
    """After a power failure what has a size has its blocks. What came back may be more than there was room for."""
    cdef Inode* f
    cdef int i
    d.used = 0
    for i in range(d.inode_count):
        f = &d.inodes[i]
        if f.used and not f.directory and f.links and f.size:
            make_pages(f, f.size)
            memset(f.pages, PAGE_BLOCK, pages_of(f.size))
            d.used += pages_of(f.size)
    if d.capacity < d.used:
        d.capacity = d.used


cdef void free_inode(Inode* f) noexcept nogil:
    free(f.data)
    free(f.disk)
    free(f.pages)
    memset(f, 0, sizeof(Inode))


cdef bint is_on_disk(DiskState* d, int inode) noexcept nogil:
    """Does anything durable, or that may become so, name it?"""
    cdef int i
    for i in range(d.entry_count):
        if d.entries[i].disk_inode == inode:
            return True
    for i in range(d.change_count):
        if d.changes[i].inode == inode:
            return True
    return False


cdef void restart(DiskState* d, bint power_loss) noexcept nogil:
    """All descriptors are gone; with the power also everything that was not durable."""
    cdef int i
    if power_loss:
        lose_power(d)
    for i in range(d.inode_count):
        d.inodes[i].opens = 0
        if d.inodes[i].used and d.inodes[i].links == 0:
            give_blocks(d, &d.inodes[i], 0)
            if not is_on_disk(d, i):
                free_inode(&d.inodes[i])
    d.first_descriptor += d.descriptor_count
    d.descriptor_count = 0
    d.crashed = False
    d.crash_at = 0
    d.fault_count = 0
    note(d, OP_RESTART, NOWHERE, d.used, power_loss, <int64_t>d.random)


cdef void free_state(DiskState* d) noexcept nogil:
    cdef int i
    for i in range(d.inode_count):
        free_inode(&d.inodes[i])
    for i in range(d.entry_count):
        free(d.entries[i].path)
    free(d.inodes)
    free(d.entries)
    free(d.changes)
    free(d.descriptors)
    free(d.journal)
