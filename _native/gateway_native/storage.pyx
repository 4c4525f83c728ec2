"""The shipped storage tables, `mapped` and `pwrite`, and what file system a path is on. See storage.pxd."""

from libc.errno cimport EEXIST, EINTR, EIO, EOPNOTSUPP, ENOSYS, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memset

cdef extern from "<fcntl.h>" nogil:
    int c_open "open"(const char*, int, ...)
    int fallocate(int, int, int64_t, int64_t)
    enum: FALLOC_FL_KEEP_SIZE
    enum: O_RDWR, O_RDONLY, O_CREAT, O_EXCL, O_TRUNC, O_CLOEXEC, O_DIRECTORY

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int)
    int fsync(int)
    int ftruncate(int, int64_t)
    ssize_t pwrite(int, const void*, size_t, int64_t)
    int c_close "close"(int)

    int syncfs(int)
    int c_unlink "unlink"(const char*)

cdef extern from "<stdio.h>" nogil:
    int c_rename "rename"(const char*, const char*)

cdef extern from "<sys/statvfs.h>" nogil:
    struct statvfs_t "statvfs":
        unsigned long f_frsize
        uint64_t f_bavail
    int fstatvfs(int, statvfs_t*)

cdef extern from "sigbus.h" nogil:
    int gw_bus_install()
    int gw_bus_copy(uint8_t* to, const uint8_t* source, size_t size)

cdef extern from "<sys/stat.h>" nogil:
    int mkdir(const char*, unsigned int)

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, int64_t)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    enum: MADV_DONTNEED, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_NORESERVE
    void* MAP_FAILED

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_t "statfs":
        long f_type
    int c_statfs "statfs"(const char*, statfs_t*)


cdef enum:
    LET_GO_BYTES = 1 << 18      # small beside a commit under load, and 64 pages a call
    LARGEST_PAGE = 1 << 16      # of the kernels we run on (aarch64 may have 64 KiB)


cdef int posix_open(const char* path, int mode) noexcept nogil:
    cdef int flags = O_RDWR | O_CLOEXEC
    cdef int fd
    if mode == OPEN_NEW:
        flags |= O_CREAT | O_EXCL
    elif mode == OPEN_EMPTY:
        flags |= O_CREAT | O_TRUNC
    fd = c_open(path, flags, 0o644)
    return fd if fd >= 0 else -errno


cdef int posix_allocate(SegmentFile* file, int64_t upto) noexcept nogil:
    """Real blocks for [0, upto) by fallocate(2): never glibc's emulation, which writes zeros over nothing."""
    if upto <= file.allocated:
        return 0
    while fallocate(file.fd, 0, file.allocated, upto - file.allocated) != 0:
        if errno != EINTR:
            return -errno
    file.allocated = upto
    return 0


cdef int mapped_allocate(SegmentFile* file, int64_t upto, int64_t bytes_max) noexcept nogil:
    cdef void* address
    cdef int failed = posix_allocate(file, upto)
    if failed:
        return failed
    if file.map is NULL or file.map_bytes < upto:
        mapped_detach(file)
        # Addresses beyond the allocated part are reserved, not touched; they become usable as the file grows.
        bytes_max = bytes_max if bytes_max > upto else upto
        address = mmap(NULL, bytes_max, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.fd, 0)
        if address == MAP_FAILED:
            return -errno
        file.map = <uint8_t*>address
        file.map_bytes = bytes_max
    return 0


cdef void mapped_detach(SegmentFile* file) noexcept nogil:
    if file.map is not NULL:
        munmap(file.map, file.map_bytes)
        file.map = NULL
        file.map_bytes = 0


cdef int mapped_append(SegmentFile* file, const uint8_t* data, int64_t size) noexcept nogil:
    if file.map is NULL or file.position + size > file.allocated:
        return -EIO                 # a bug of the caller's, and never a SIGBUS
    if gw_bus_copy(file.map + file.position, data, size):
        return -EIO                 # a bad sector, or somebody cut the file
    file.position += size
    if file.position - file.let_go >= LET_GO_BYTES:
        let_go(file)
    return 0


cdef void let_go(SegmentFile* file) noexcept nogil:
    """Drop the page-table entries of what was written; the pages stay dirty in the page cache, for the next sync.

    Left mapped, each dirty page is write-protected by the sync, which interrupts every core that runs the process, page by
    page: more than half of a core for the flusher, and half of the throughput. One call here does for all of them.
    """
    cdef int64_t upto = file.position & ~<int64_t>(LARGEST_PAGE - 1)
    if upto > file.let_go:
        madvise(file.map + file.let_go, upto - file.let_go, MADV_DONTNEED)    # refused (mlock): slower, as right
        file.let_go = upto


cdef int pwrite_allocate(SegmentFile* file, int64_t upto, int64_t bytes_max) noexcept nogil:
    """Preallocation is a courtesy here: where the file system has none, the write itself reports a full disk."""
    cdef int failed = posix_allocate(file, upto)
    if failed == -EOPNOTSUPP or failed == -ENOSYS:
        file.allocated = upto       # asked once is enough
        return 0
    return failed


cdef int posix_reserve(int fd, int64_t upto) noexcept nogil:
    while fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, upto) != 0:
        if errno == EOPNOTSUPP or errno == ENOSYS:
            return 0
        if errno != EINTR:
            return -errno
    return 0


cdef int posix_write_at(int fd, const uint8_t* data, int64_t size, int64_t position) noexcept nogil:
    cdef ssize_t written
    while size > 0:
        written = pwrite(fd, data, size, position)
        if written < 0:
            if errno == EINTR:
                continue
            return -errno
        if written == 0:
            return -EIO
        data += written
        size -= written
        position += written
    return 0


cdef int pwrite_append(SegmentFile* file, const uint8_t* data, int64_t size) noexcept nogil:
    cdef int failed = posix_write_at(file.fd, data, size, file.position)
    if failed == 0:
        file.position += size
    return failed


cdef void nothing_to_detach(SegmentFile* file) noexcept nogil:
    return


cdef int posix_sync_data(int fd) noexcept nogil:
    # Not retried, not even after EINTR: after a failed sync the kernel may call the lost pages clean.
    return 0 if fdatasync(fd) == 0 else -errno


cdef int posix_sync_all(int fd) noexcept nogil:
    return 0 if fsync(fd) == 0 else -errno


cdef int posix_sync_filesystem(int fd) noexcept nogil:
    return 0 if syncfs(fd) == 0 else -errno


cdef int posix_rename(const char* path, const char* to) noexcept nogil:
    return 0 if c_rename(path, to) == 0 else -errno


cdef int posix_unlink(const char* path) noexcept nogil:
    return 0 if c_unlink(path) == 0 else -errno


cdef int64_t posix_free_bytes(int fd) noexcept nogil:
    cdef statvfs_t info
    if fstatvfs(fd, &info) != 0:
        return -errno
    return <int64_t>(info.f_bavail * info.f_frsize)


cdef int posix_truncate(int fd, int64_t size) noexcept nogil:
    while ftruncate(fd, size) != 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int posix_make_directory(const char* path) noexcept nogil:
    if mkdir(path, 0o755) != 0 and errno != EEXIST:
        return -errno
    return 0


cdef int posix_sync_directory(const char* path) noexcept nogil:
    cdef int failed = 0
    cdef int fd = c_open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if fd < 0:
        return -errno
    if fsync(fd) != 0:
        failed = -errno
    c_close(fd)
    return failed


cdef int posix_close(int fd) noexcept nogil:
    return 0 if c_close(fd) == 0 else -errno


cdef StorageOps mapped_ops
mapped_ops.name = "mapped"
mapped_ops.open = posix_open
mapped_ops.allocate = mapped_allocate
mapped_ops.reserve = posix_reserve
mapped_ops.append = mapped_append
mapped_ops.write_at = posix_write_at
mapped_ops.sync_data = posix_sync_data
mapped_ops.sync_all = posix_sync_all
mapped_ops.sync_filesystem = posix_sync_filesystem
mapped_ops.truncate = posix_truncate
mapped_ops.rename = posix_rename
mapped_ops.unlink = posix_unlink
mapped_ops.free_bytes = posix_free_bytes
mapped_ops.make_directory = posix_make_directory
mapped_ops.sync_directory = posix_sync_directory
mapped_ops.detach = mapped_detach
mapped_ops.close = posix_close

cdef StorageOps pwrite_ops = mapped_ops
pwrite_ops.name = "pwrite"
pwrite_ops.allocate = pwrite_allocate
pwrite_ops.append = pwrite_append
pwrite_ops.detach = nothing_to_detach


cdef class StorageTable:
    """One implementation of the table, to be passed to `Writer`. It comes from the module that implements it."""

    @property
    def name(self) -> str:
        """What the table is called; empty for one that implements nothing."""
        return self.ops.name.decode() if self.ops is not NULL else ""


cdef StorageTable table_of(StorageOps* ops):
    cdef StorageTable table = StorageTable.__new__(StorageTable)
    table.ops = ops
    return table


cdef StorageTable storage_table(object storage):
    if isinstance(storage, StorageTable):
        if (<StorageTable>storage).ops is NULL:
            raise ValueError("this storage table implements nothing; take one from the module that implements it")
        return storage
    if storage == "mapped":
        if gw_bus_install():
            raise OSError(errno, "cannot handle SIGBUS, without which a mapped segment is not safe")
        return table_of(&mapped_ops)
    if storage == "pwrite":
        return table_of(&pwrite_ops)
    raise ValueError(f"there is no storage table {storage!r}; there are 'mapped' and 'pwrite'")


# statfs(2) f_type. Only where preallocated blocks are kept for good is a mapped write safe from SIGBUS.
FILESYSTEMS = {
    0xEF53: ("ext4", True),
    0x58465342: ("xfs", True),
    0x01021994: ("tmpfs", False),
    0x9123683E: ("btrfs", False),
    0x2FC12FC1: ("zfs", False),
    0x6969: ("nfs", False),
    0x65735546: ("fuse", False),
    0x794C7630: ("overlayfs", False),
    0xFF534D42: ("cifs", False),
    0x4D44: ("vfat", False),
    0xF2F52010: ("f2fs", False),
}


def filesystem(str path) -> tuple:
    """Name of the file system that holds `path`, and whether preallocation can be relied on there.

    Raises OSError when the path cannot be looked at.
    """
    cdef statfs_t info
    memset(&info, 0, sizeof(info))
    encoded = path.encode("utf-8", "surrogateescape")
    if c_statfs(<const char*>encoded, &info) != 0:
        raise OSError(errno, "cannot look at the file system", path)
    kind = <long>info.f_type & 0xFFFFFFFF
    return FILESYSTEMS.get(kind, (f"type 0x{kind:x}", False))
