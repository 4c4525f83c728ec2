"""The only way to the disk: one small table of native functions.

Two tables ship: `mapped` copies into a mapped, preallocated segment; `pwrite` writes to the file. A third, a simulated disk
for tests, is in simulated_disk.pyx. Every function
returns 0 (or a descriptor) on success and -errno on failure, takes no GIL, and calls libc by name (no raw system
calls), so that a test can put itself in between.
"""

from libc.stdint cimport int64_t, uint8_t

cdef enum:
    OPEN_EXISTING = 0           # it must exist
    OPEN_NEW = 1                # it must not exist
    OPEN_EMPTY = 2              # made when missing, emptied when there

cdef struct SegmentFile:
    int fd                      # -1: not open
    uint8_t* map                # mapped table: the whole segment's address range, also beyond what is allocated
    int64_t map_bytes
    int64_t allocated           # bytes asked for; where preallocation holds, there are blocks behind them
    int64_t position            # end of the last batch
    int64_t let_go              # mapped table: what is before this has no page-table entries any more

cdef struct StorageOps:
    const char* name
    # Open `path` for reading and writing; mode is one of OPEN_*.
    int (*open)(const char* path, int mode) noexcept nogil
    # Make [0, upto) of the segment writable without failing later; mapped: map `bytes_max` on first use.
    int (*allocate)(SegmentFile* file, int64_t upto, int64_t bytes_max) noexcept nogil
    # Find room for [0, upto) of another file without changing its size: an index must not be what meets the full disk.
    int (*reserve)(int fd, int64_t upto) noexcept nogil
    # Put bytes at file.position, which the caller has allocated, and move it.
    int (*append)(SegmentFile* file, const uint8_t* data, int64_t size) noexcept nogil
    # Write all bytes at a place (indexes, watermark).
    int (*write_at)(int fd, const uint8_t* data, int64_t size, int64_t position) noexcept nogil
    # All data of the file, and what is needed to find it again, is on the disk when this returns 0.
    int (*sync_data)(int fd) noexcept nogil
    # The same with all metadata, the file's size included.
    int (*sync_all)(int fd) noexcept nogil
    # The same for everything on the file system that holds `fd`; which file failed, only its own sync tells.
    int (*sync_filesystem)(int fd) noexcept nogil
    int (*truncate)(int fd, int64_t size) noexcept nogil
    int (*rename)(const char* path, const char* to) noexcept nogil
    int (*unlink)(const char* path) noexcept nogil
    # Room on the file system that holds `fd` which a writer without privileges may still take; or -errno.
    int64_t (*free_bytes)(int fd) noexcept nogil
    int (*make_directory)(const char* path) noexcept nogil
    # The directory's entries are on the disk when this returns 0.
    int (*sync_directory)(const char* path) noexcept nogil
    # Unmap; the descriptor stays open.
    void (*detach)(SegmentFile* file) noexcept nogil
    int (*close)(int fd) noexcept nogil

cdef class StorageTable:
    cdef StorageOps* ops
    cdef object owner               # keeps what the functions work on alive

# The table of that name, or the one given.
cdef StorageTable storage_table(object storage)
