"""`Writer`, which Python sees: partitions, rings, the two threads, and what they count.

See writer.pxd for the division of labour, state.pxd for what each field is and who may touch it.
"""

import os
import time

from libc.errno cimport EIO, ENOENT, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport strdup

from gateway_native.buffers cimport free_buffers
from gateway_native.flusher cimport flush_commit
from gateway_native.loop cimport finish, is_finished, run_flusher_loop, run_writer_loop, writer_step
from gateway_native.ring cimport Ring
from gateway_native.rolling cimport free_partition
from gateway_native.segment cimport PATH_BYTES, Active, active_open
from gateway_native.state cimport (
    COMMIT_READY,
    RINGS_MAX,
    STEP_ALLOCATE_APPEND,
    STEP_CREATE,
    STEP_MEMORY,
    STEP_SEAL,
    STEP_SYNC,
    STEP_SYNC_DIRECTORY,
    STEP_SYNC_SEALED,
    WRITER_RUNNING,
    Partition,
    WriterState,
    bell,
    gw_fence,
    gw_load_acquire,
    gw_load_relaxed,
    gw_store_relaxed,
    gw_store_release,
    monotonic_ns,
)
from gateway_native.storage cimport OPEN_EXISTING, OPEN_NEW, storage_table
from gateway_native.watermark cimport MARK_INDEXES_WHOLE, WATERMARK_BYTES, watermark_encode

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int, int)
    enum: EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void*, size_t)
    int close(int)

STEPS = {
    STEP_CREATE: "creating a segment",
    STEP_ALLOCATE_APPEND: "writing to a segment",
    STEP_SYNC_DIRECTORY: "syncing a directory",
    STEP_SYNC_SEALED: "syncing a sealed segment",
    STEP_SYNC: "syncing the active segment",
    STEP_SEAL: "sealing a segment",
    STEP_MEMORY: "getting memory",
}


cdef int open_existing(Writer writer, Partition* p) except -1:
    """Open what recovery left of a partition, and publish its watermark under the new epoch."""
    cdef WriterState* w = &writer.state
    cdef uint8_t encoded[WATERMARK_BYTES]
    cdef char path[PATH_BYTES]
    cdef Active* active
    cdef int failed
    directory = os.fsdecode(<bytes>p.directory)
    snprintf(path, PATH_BYTES, "%s/watermark", p.directory)
    p.watermark_fd = w.ops.open(path, OPEN_EXISTING)
    if p.watermark_fd == -ENOENT:
        p.watermark_fd = w.ops.open(path, OPEN_NEW)
    if p.watermark_fd < 0:
        raise OSError(-p.watermark_fd, "cannot open the watermark", directory)
    # The recovery point, which may say that the log was closed cleanly, is replaced on the disk before anything is
    # acknowledged.
    p.new_files = p.mark_unsynced = True
    watermark_encode(encoded, &p.durable)
    failed = w.ops.write_at(p.watermark_fd, encoded, WATERMARK_BYTES, 0)
    if failed:
        raise OSError(-failed, "cannot write the watermark", directory)
    active = p.active = <Active*>calloc(1, sizeof(Active))
    if active is NULL:
        raise MemoryError()
    failed = active_open(w.ops, active, p.directory, p.durable.segment_base)
    if failed:
        free(active)
        p.active = NULL
        raise OSError(-failed, f"cannot open segment {p.durable.segment_base}", directory)
    active.log.position = active.log.allocated = p.mark_synced_position = p.durable.position
    active.index_bytes = p.durable.index_bytes
    active.time_bytes = p.durable.time_bytes
    active.index_crc = p.durable.index_crc
    active.time_crc = p.durable.time_crc
    active.bytes_since_entry = p.durable.bytes_since_entry
    active.first_timestamp = p.durable.first_timestamp
    active.max_timestamp = p.durable.max_timestamp
    active.offset_of_max = p.durable.offset_of_max
    active.last_time_entry = active.flushed_time_entry = p.durable.last_time_entry
    active.flushed_position = p.durable.position
    if not p.durable.flags & MARK_INDEXES_WHOLE:
        active.index_error = EIO    # what is missing is made again after the segment is sealed
    return 0


cdef class ManualClock:
    """A test's clocks, in ns: they stand still until set."""

    def __init__(self, uint64_t monotonic_ns=1_000_000_000, int64_t realtime_ns=1_700_000_000_000_000_000):
        self.time.monotonic_ns = monotonic_ns
        self.time.realtime_ns = realtime_ns

    @property
    def monotonic_ns(self) -> int:
        """What waiting is measured with."""
        return self.time.monotonic_ns

    @monotonic_ns.setter
    def monotonic_ns(self, uint64_t value):
        self.time.monotonic_ns = value

    @property
    def realtime_ns(self) -> int:
        """The wall clock, since 1970."""
        return self.time.realtime_ns

    @realtime_ns.setter
    def realtime_ns(self, int64_t value):
        self.time.realtime_ns = value


cdef class Writer:
    """Rings, partitions, and the two threads between them and the disk.

    ``storage`` is "mapped", "pwrite", or a StorageTable. ``buffer_bytes`` bounds the batch buffers of all partitions
    together, ``partitions_max`` the number of partitions. ``reserve_bytes`` of the disk are kept free: records find it full
    before that. From ``syncfs_files`` dirty partitions on one syncfs replaces the sync of each; 0: never. Run
    ``run_writer`` and ``run_flusher`` in a thread each; both return after ``stop``. A test may give a ``clock`` and call
    ``step_writer`` and ``step_flusher`` instead.

    Durable: a record whose ring says ACKED (with ack = "disk") was synced, with the directory entries needed to find
    it. Not durable: anything else, also when a later record of another partition is.
    """

    def __cinit__(self, object storage="pwrite", uint64_t buffer_bytes=67108864, uint32_t partitions_max=1024,
                  int64_t reserve_bytes=0, uint64_t syncfs_files=0, ManualClock clock=None):
        cdef WriterState* w = &self.state
        w.writer_fd = w.flusher_fd = w.health_fd = -1
        self.table = storage_table(storage)
        self.clock = clock
        w.ops = self.table.ops
        w.partitions_max = partitions_max
        w.buffer_bytes_max = buffer_bytes
        w.reserve_bytes = <uint64_t>reserve_bytes
        w.syncfs_files = syncfs_files
        w.sync_by_many = isinstance(storage, str)
        if clock is not None:
            w.manual = &clock.time
        self.ring_objects = []
        w.partitions = <Partition**>calloc(partitions_max, sizeof(Partition*))
        if w.partitions is NULL:
            raise MemoryError()
        w.writer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        w.flusher_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        w.health_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if w.writer_fd < 0 or w.flusher_fd < 0 or w.health_fd < 0:
            raise OSError(errno, "eventfd")

    def __dealloc__(self):
        cdef WriterState* w = &self.state
        cdef uint64_t i
        for i in range(w.partition_count):
            free_partition(w, w.partitions[i])
        free(w.partitions)
        free_buffers(w)
        for fd in (w.writer_fd, w.flusher_fd, w.health_fd):
            if fd >= 0:
                close(fd)

    @property
    def partitions_max(self) -> int:
        """The most partitions there can be."""
        return self.state.partitions_max

    @property
    def storage(self) -> str:
        """Name of the storage table."""
        return self.table.name

    @property
    def reserve_bytes(self) -> int:
        """Bytes of the disk that records may not use; may be changed at any time."""
        return <int64_t>gw_load_relaxed(&self.state.reserve_bytes)

    @reserve_bytes.setter
    def reserve_bytes(self, int64_t value):
        gw_store_relaxed(&self.state.reserve_bytes, <uint64_t>value)

    @property
    def health_fd(self) -> int:
        """Readable when a partition failed, ran out of disk or found room again, or the clock stepped."""
        return self.state.health_fd

    def clear_health(self) -> None:
        """Make `health_fd` unreadable until the next change."""
        cdef uint64_t count
        read(self.state.health_fd, &count, sizeof(count))

    def ring(self, str name, uint64_t capacity) -> Ring:
        """A new ring for one producing thread. capacity: bytes, a power of two."""
        cdef WriterState* w = &self.state
        if w.ring_count >= RINGS_MAX:
            raise ValueError(f"at most {RINGS_MAX} producing threads can have a ring; {name} would be one more")
        made = Ring(self, name, capacity, w.partitions_max, <size_t>&w.partition_count, w.writer_fd,
                    <size_t>&w.writer_sleeping)
        cdef Ring ring = made
        cdef uint64_t i
        # The writer keeps the ring's memory alive; the ring points back here, and the cycle collector sees both.
        self.ring_objects.append(ring)
        w.rings[w.ring_count] = ring.state
        gw_store_release(&w.ring_count, w.ring_count + 1)
        gw_fence()                  # `fail_partition` sets `failed`, fences, then looks at `ring_count`
        for i in range(w.partition_count):
            if gw_load_acquire(&w.partitions[i].failed):
                gw_store_release(&ring.state.failed[i], 1)
        return made

    def add_partition(
        self, str directory, *, uint64_t epoch=1, int64_t next_offset=0, int64_t segment_base=-1, int64_t position=0,
        int64_t index_bytes=0, int64_t time_bytes=0, uint32_t index_crc=0, uint32_t time_crc=0,
        bint indexes_whole=True, int64_t bytes_since_entry=0, int64_t first_timestamp=-1, int64_t max_timestamp=-1,
        int64_t offset_of_max=0, int64_t last_time_entry=-1, int64_t last_timestamp=-1, int64_t manifest_bytes=-1,
        int64_t segment_bytes=1073741824, int64_t segment_age_ms=0, uint64_t linger_ns=5000000, bint ack_memory=False,
        bint refuse_when_full=False,
    ) -> int:
        """Make a partition known and return its index for ring slots.

        A new partition (segment_base -1) costs nothing on disk until its first record. For an existing one the
        arguments are what recovery found in the last segment; its files are opened here, and its watermark is
        published under the new epoch. manifest_bytes: where the manifest's last entry ends, -1 if it is not to be gone
        on with. Raises OSError naming the directory.
        """
        cdef WriterState* w = &self.state
        cdef Partition* p
        if w.partition_count >= w.partitions_max:
            raise ValueError(f"at most {w.partitions_max} partitions; {directory} would be one more")
        if len(os.fsencode(directory)) > PATH_BYTES - 64:
            raise ValueError(f"the path of the partition is longer than {PATH_BYTES - 64} bytes: {directory[:80]}…")
        p = <Partition*>calloc(1, sizeof(Partition))
        if p is NULL:
            raise MemoryError()
        p.watermark_fd = -1
        p.directory = strdup(os.fsencode(directory))
        p.parent = strdup(os.fsencode(os.path.dirname(directory) or "."))
        p.index = <uint32_t>w.partition_count
        p.segment_bytes = segment_bytes
        p.segment_age_ms = segment_age_ms
        p.linger_ns = linger_ns
        p.ack_memory = ack_memory
        p.refuse_when_full = refuse_when_full
        p.epoch = epoch
        p.next_offset = p.appended_offset = next_offset
        p.last_timestamp = p.appended_timestamp = last_timestamp
        p.manifest_bytes = 0 if segment_base < 0 else manifest_bytes
        p.durable_offset = p.log_end_offset = <uint64_t>next_offset
        p.durable.epoch = epoch
        p.durable.segment_base = segment_base if segment_base >= 0 else next_offset
        p.durable.position = position
        p.durable.durable_offset = next_offset
        p.durable.last_timestamp = last_timestamp
        p.durable.first_timestamp = first_timestamp
        p.durable.max_timestamp = max_timestamp
        p.durable.offset_of_max = offset_of_max
        p.durable.last_time_entry = last_time_entry
        p.durable.bytes_since_entry = bytes_since_entry
        p.durable.index_bytes = index_bytes
        p.durable.time_bytes = time_bytes
        p.durable.index_crc = index_crc
        p.durable.time_crc = time_crc
        p.durable.flags = MARK_INDEXES_WHOLE if indexes_whole else 0
        p.segment_base = <uint64_t>p.durable.segment_base
        p.durable_position = <uint64_t>position
        try:
            if segment_base >= 0:
                open_existing(self, p)
        except BaseException:
            free_partition(w, p)
            raise
        w.partitions[w.partition_count] = p
        gw_store_release(&w.partition_count, w.partition_count + 1)
        return p.index

    def run_writer(self) -> None:
        """The writer thread's body; returns after `stop`, when everything published is durable or has failed."""
        gw_store_release(&self.state.writer_state, WRITER_RUNNING)
        with nogil:
            run_writer_loop(&self.state)

    def run_flusher(self) -> None:
        """The flusher thread's body; returns after the writer."""
        with nogil:
            run_flusher_loop(&self.state)

    def step_writer(self) -> bool:
        """One round of the writer on this thread, for tests that decide the order of things. True if anything moved."""
        return writer_step(&self.state)

    def step_flusher(self) -> bool:
        """Serve the commit that is handed over, if there is one, on this thread."""
        if gw_load_acquire(&self.state.commit_state) != COMMIT_READY:
            return False
        flush_commit(&self.state)
        return True

    def finish(self) -> bool:
        """After `stop`, with steps: close every partition. False: there is still something to do."""
        if not is_finished(&self.state):
            return False
        finish(&self.state)
        return True

    def flush(self, double timeout_s=30.0) -> bool:
        """Wait until everything published before is durable (or its partition failed). False: not within the time."""
        cdef WriterState* w = &self.state
        cdef uint64_t wanted = gw_load_relaxed(&w.flush_wanted) + 1
        gw_store_release(&w.flush_wanted, wanted)
        bell(w.writer_fd)
        deadline = time.monotonic() + timeout_s
        while gw_load_acquire(&w.flush_done) < wanted:
            if time.monotonic() > deadline or gw_load_acquire(&w.writer_state) != WRITER_RUNNING:
                return gw_load_acquire(&w.flush_done) >= wanted
            time.sleep(0.0005)
        return True

    def roll(self, uint32_t index) -> None:
        """Ask for the partition's active segment to be sealed, so that it can be deleted; a new one begins."""
        gw_store_release(&self.partition(index).roll_wanted, 1)
        gw_store_release(&self.state.rolls_wanted, gw_load_relaxed(&self.state.rolls_wanted) + 1)
        bell(self.state.writer_fd)

    def follow(self, uint32_t index, bint followed) -> None:
        """Does somebody wait to read the partition's next records? They are then committed as if their senders waited."""
        cdef Partition* p = self.partition(index)
        cdef WriterState* w = &self.state
        if gw_load_relaxed(&p.followed) == <uint64_t>followed:
            return
        gw_store_release(&p.followed, followed)
        gw_store_release(&w.followed_count, w.followed_count + 1 if followed else w.followed_count - 1)
        bell(w.writer_fd)               # it may nap over what is to be read

    def retry(self) -> None:
        """There may be room on the disk again: try now rather than within 200 ms."""
        gw_store_release(&self.state.retry_wanted, 1)
        bell(self.state.writer_fd)

    def stop(self, *, bint abandon=False) -> None:
        """Ask both threads to end once everything published is durable; abandon: leave behind what waits for a full disk."""
        if abandon:
            gw_store_release(&self.state.abandoned, 1)
        gw_store_release(&self.state.stopping, 1)
        bell(self.state.writer_fd)

    cdef Partition* partition(self, uint32_t index) except NULL:
        if index >= gw_load_acquire(&self.state.partition_count):
            raise IndexError(f"partition {index} of {self.state.partition_count}")
        return self.state.partitions[index]

    def partition_state(self, uint32_t index) -> dict:
        """Offsets, counters and trouble of one partition."""
        cdef Partition* p = self.partition(index)
        failed = gw_load_acquire(&p.failed) != 0
        return {
            "durable_offset": gw_load_acquire(&p.durable_offset),
            "segment_base": gw_load_relaxed(&p.segment_base),
            "position": gw_load_relaxed(&p.durable_position),
            "records": gw_load_relaxed(&p.records),
            "bytes": gw_load_relaxed(&p.bytes),
            "refused": gw_load_relaxed(&p.refused),
            "lost": gw_load_relaxed(&p.lost),
            "rewrites": gw_load_relaxed(&p.rewrites),
            "failed": failed,
            "failed_errno": gw_load_relaxed(&p.failed_errno),
            "failed_step": STEPS.get(gw_load_relaxed(&p.failed_step), ""),
            "stalled_errno": gw_load_relaxed(&p.stalled_errno),
            "refusing": gw_load_relaxed(&p.is_refusing) != 0,
            "index_errors": gw_load_relaxed(&p.index_errors),
            "summary_errors": gw_load_relaxed(&p.summary_errors),
            "watermark_errors": gw_load_relaxed(&p.watermark_errors),
        }

    def refusals(self, uint32_t index) -> dict:
        """What each ring had refused in the partition: (records, bytes, first_ns, last_ns), by the ring's name.

        Counts only grow. first_ns is the receive time of the first record refused since the last call.
        """
        cdef Partition* p = self.partition(index)
        cdef uint64_t i
        found = {}
        for i in range(gw_load_acquire(&self.state.ring_count)):
            count = gw_load_acquire(&p.refusals[i].count)
            if count:
                found[self.ring_objects[i].name] = (
                    count, gw_load_relaxed(&p.refusals[i].bytes), p.refusals[i].first_ns, p.refusals[i].last_ns)
                gw_store_release(&p.refusals[i].looked, 1)
        return found

    @property
    def clock_step(self) -> tuple:
        """The wall clock's last step: what it would have said, what it said (ns), and how many there were."""
        return (self.state.step_old_ns, self.state.step_new_ns, gw_load_relaxed(&self.state.steps_seen))

    @property
    def counters(self) -> dict:
        """Work done since the start: commits, batches, bytes appended, files synced, time in sync (ns)."""
        cdef WriterState* w = &self.state
        cdef uint64_t i
        refused = 0
        for i in range(gw_load_acquire(&w.partition_count)):
            refused += gw_load_relaxed(&w.partitions[i].refused)
        return {
            "commits": gw_load_relaxed(&w.commits),
            "batches": gw_load_relaxed(&w.batches),
            "log_bytes": gw_load_relaxed(&w.log_bytes),
            "synced_files": gw_load_relaxed(&w.synced_files),
            "syncfs": gw_load_relaxed(&w.synced_filesystems),
            "sync_ns": gw_load_relaxed(&w.sync_ns),
            "sync_ns_max": gw_load_relaxed(&w.sync_ns_max),
            "close_errors": gw_load_relaxed(&w.close_errors),
            "clock_steps": gw_load_relaxed(&w.steps_seen),
            "refused": refused,
        }
