"""What a simulated disk holds: names and content, volatile and durable; and what is left of them without power.

simulated_disk.pxd says what the disk promises. Nothing here fails: tests have the memory that they need.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    PAGE_BYTES = 4096
    SECTOR_BYTES = 512
    FAULTS_MAX = 8
    SUFFIX_BYTES = 32
    NOWHERE = -1                    # no inode, no entry

    PAGE_DIRTY = 1                  # the disk may hold something older
    PAGE_BLOCK = 2                  # it takes room on the disk

    OP_OPEN = 1                     # kinds of operations: in the journal and for faults
    OP_ALLOCATE = 2
    OP_RESERVE = 3
    OP_APPEND = 4
    OP_WRITE = 5
    OP_SYNC_DATA = 6
    OP_SYNC_ALL = 7
    OP_SYNC_FILESYSTEM = 8
    OP_TRUNCATE = 9
    OP_RENAME = 10
    OP_UNLINK = 11
    OP_MAKE_DIRECTORY = 12
    OP_SYNC_DIRECTORY = 13
    OP_CLOSE = 14
    OP_RESTART = 15

cdef struct Inode:
    bint used
    bint directory
    int links                       # names it has
    int opens                       # descriptors
    int entry                       # a name it had, for faults and the journal
    bint failed                     # writing it failed since its last sync: the next one says so
    int64_t size
    int64_t low_size                # the least it was since its size was last synced
    int64_t disk_size
    uint8_t* data                   # volatile content; beyond `room` it is zeros
    uint8_t* disk                   # durable content
    uint8_t* pages                  # PAGE_* of each
    int64_t room                    # bytes in `data` and `disk`, whole pages
    int64_t page_room               # length of `pages`

cdef struct Entry:                  # a path that was used once; never removed
    char* path
    uint64_t hash
    int directory                   # entry of the directory it is in; NOWHERE for the root
    int inode                       # volatile: what has that name; NOWHERE: nothing
    int disk_inode                  # durable

cdef struct Change:                 # of a directory, not yet durable
    int inode                       # gets the name `entry`; NOWHERE: the name is removed
    int entry
    int old_entry                   # a rename: the name it had; otherwise NOWHERE

cdef struct Fault:                  # some operations to come fail with EIO
    uint64_t kinds                  # bit per OP_*
    uint64_t skip                   # so many are let pass …
    uint64_t count                  # … then so many fail
    bint lies                       # report success instead, and do nothing
    char suffix[SUFFIX_BYTES]       # of the path; empty: any

cdef struct Operation:              # one line of the journal
    int kind
    int entry
    int64_t position
    int64_t size
    int64_t result

cdef struct DiskState:
    uint64_t random                 # splitmix64
    uint64_t operations
    uint64_t crash_at               # the operation that the crash prevents; 0: none
    bint crashed
    uint64_t digest                 # of all operations and what came of them
    Inode* inodes
    int inode_count
    int inode_room
    Entry* entries
    int entry_count
    int entry_room
    Change* changes
    int change_count
    int change_room
    int* descriptors                # inode by descriptor less first_descriptor
    int descriptor_count
    int descriptor_room
    int first_descriptor
    int64_t capacity                # pages
    int64_t used
    uint64_t writeback              # chance of 256 that some dirty pages reach the disk before an operation
    Fault faults[FAULTS_MAX]
    int fault_count
    uint64_t bus_errors
    void (*interleave)(void*) noexcept nogil    # called at the start and end of syncs; NULL: nothing
    void* interleave_with
    uint64_t interleave_chance      # of 256
    bint interleaving
    bint tracing
    Operation* journal
    int64_t journal_count
    int64_t journal_room

# -- chance: every function that decides something takes it from the seed's sequence ------------------------------------

cdef uint64_t mixed(uint64_t z) noexcept nogil
cdef uint64_t below(DiskState* d, uint64_t limit) noexcept nogil
cdef bint chance(DiskState* d, uint64_t of_256) noexcept nogil

# Add an operation to the digest, and to the journal.
cdef void note(DiskState* d, int kind, int entry, int64_t position, int64_t size, int64_t result) noexcept nogil
# An array with room for so many items, the new ones zero.
cdef void* grown_int(void* array, int* room, int needed, size_t item) noexcept nogil

# -- names ------------------------------------------------------------------------------------------------------------

# The entry of a path; NOWHERE if it was never used.
cdef int find_entry(DiskState* d, const char* path) noexcept nogil
# … made if its directory is there; -errno if that is not.
cdef int entry_for(DiskState* d, const char* path) noexcept nogil
cdef int add_entry(DiskState* d, const char* path, int directory) noexcept nogil
cdef int new_inode(DiskState* d, bint directory, int entry) noexcept nogil
# What has the name from now on, in the volatile state; NOWHERE: nothing.
cdef void set_name(DiskState* d, int entry, int inode) noexcept nogil
# The same for the durable state, in time.
cdef void change(DiskState* d, int entry, int inode, int old_entry) noexcept nogil
# All changes of a directory become durable; NOWHERE: of every directory.
cdef void commit_changes(DiskState* d, int directory) noexcept nogil

# -- content ----------------------------------------------------------------------------------------------------------

cdef inline int64_t pages_of(int64_t size) noexcept nogil:
    return (size + PAGE_BYTES - 1) // PAGE_BYTES

# Room on the disk for pages [first, end); at -ENOSPC those in front may have got theirs.
cdef int take_blocks(DiskState* d, Inode* f, int64_t first, int64_t end) noexcept nogil
cdef void drop_blocks_if_gone(DiskState* d, int inode) noexcept nogil
# Content into the volatile state; the file grows.
cdef void put(Inode* f, const uint8_t* data, int64_t size, int64_t position) noexcept nogil
cdef void resize(DiskState* d, Inode* f, int64_t size) noexcept nogil
# What sync_all promises, or sync_data.
cdef void sync_content(Inode* f, bint everything) noexcept nogil
# A sync failed: some pages are written, some never will be, and all are clean.
cdef void lose_content(DiskState* d, Inode* f) noexcept nogil
# The kernel writes dirty pages when it likes.
cdef void some_reach_the_disk(DiskState* d) noexcept nogil

# -- the end ----------------------------------------------------------------------------------------------------------

# All descriptors are gone; with the power also everything that was not durable.
cdef void restart(DiskState* d, bint power_loss) noexcept nogil
cdef void free_state(DiskState* d) noexcept nogil
