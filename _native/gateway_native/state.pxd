"""What the writer and the flusher work on: plain structures, so that the code can be split into modules.

Every field says whose it is. "The writer's" is touched by the writer thread only; "handed over" belongs to the flusher
while the commit is READY and to the writer otherwise; "published" is stored with release or relaxed order and read by anyone.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gateway_native.batch cimport BatchBuilder
from gateway_native.ring cimport RingState
from gateway_native.segment cimport Active
from gateway_native.storage cimport StorageOps
from gateway_native.watermark cimport WatermarkFields

cdef enum:
    RINGS_MAX = 32                  # producing threads, the gateway's own among them
    BATCH_BYTES = 262144            # a batch closes here; a larger record has one of its own
    BATCH_BYTES_LEAST = 16384       # the smallest buffer; each size is twice the one before, up to BATCH_BYTES
    BATCH_SIZES = 5
    DRAIN_BYTES = 262144            # taken from one ring before the next has its turn
    CROWDED_PARTITIONS = 16         # dirty ones; more are many
    MARK_SYNC_BYTES = 67108864      # the recovery point is synced when the segment has grown by this much

    COMMIT_IDLE = 0                 # the flusher waits
    COMMIT_READY = 1                # handed over by the writer
    COMMIT_DONE = 2                 # synced, published; the writer may collect the buffers

    WRITER_NEW = 0
    WRITER_RUNNING = 1
    WRITER_FINISHED = 2

    # Where a partition failed, for the message.
    STEP_NONE = 0
    STEP_CREATE = 1
    STEP_ALLOCATE_APPEND = 2
    STEP_SYNC_DIRECTORY = 3
    STEP_SYNC_SEALED = 4
    STEP_SYNC = 5
    STEP_SEAL = 6
    STEP_MEMORY = 7

cdef struct Share:                  # what one ring put into a batch
    uint64_t count                  # records
    uint64_t bytes                  # keys, values and headers

cdef struct Batch:                  # one batch buffer from the bounded pool
    BatchBuilder builder            # every record touches this …
    Share shares[RINGS_MAX]         # … and its ring's
    uint8_t* data
    size_t capacity                 # one of the sizes, or what one large record needs
    size_t finished_bytes           # 0 while open
    uint64_t sequences[RINGS_MAX]   # once finished: the last sequence of each ring in it or before it
    uint32_t waiting_rings          # bit per ring: it holds a record whose sender waits for an acknowledgement
    bint begins_segment             # the clock stepped before its first record
    bint was_appended               # once at least: it may be written again, but is not refused
    Batch* next

cdef struct BatchList:              # first in, first out
    Batch* first
    Batch* last

cdef struct Sealed:                 # a sealed segment, until it is synced
    int log_fd                      # these: -1 once closed
    int index_fd
    int time_fd
    int sums_fd
    int manifest_fd
    int64_t base_offset
    int64_t position                # its final length
    Sealed* next

cdef struct Refusal:                # what one ring had refused in one partition; published
    uint64_t count
    uint64_t bytes                  # keys, values and headers
    int64_t first_ns                # of the first since `looked` was set
    int64_t last_ns
    uint64_t looked                 # 1: first_ns was read, the next refusal sets it anew

cdef struct Partition:
    # What every record touches: the writer's, side by side.
    Batch* open
    bint troubled                   # one of the states below, or failed: records take the slow way
    bint dirty
    bint ack_memory                 # fixed by add_partition
    bint clock_record               # the next batch begins with a clock record
    int64_t next_offset
    int64_t last_timestamp          # ms
    uint64_t clock_steps            # the writer's count when last looked at
    uint64_t forward_steps
    uint64_t drained[RINGS_MAX]     # last sequence of each ring that is in a batch
    # Fixed by add_partition.
    uint32_t index
    char* directory
    char* parent
    int64_t segment_bytes
    int64_t segment_age_ms          # 0: no limit
    uint64_t linger_ns
    bint refuse_when_full           # refuse at once; otherwise retention has FULL_PATIENCE_NS to make room
    uint64_t epoch
    # The writer's.
    Active* active                  # NULL before the first record of a new partition
    BatchList pending               # finished, not appended: the disk is full, or the segment is being replaced
    BatchList kept                  # appended since the last commit; kept until durable
    Sealed* sealed
    bint new_directory              # its entry in the parent is not synced yet
    bint new_files                  # the directory has entries that are not synced yet
    bint mark_unsynced              # the watermark on the disk is missing, or one of before this partition was opened
    bint full_disk                  # `pending` waits for room on the disk
    bint refusing                   # there was none: records are refused
    bint refusals_open              # a producer has not yet looked at what was refused
    bint rewriting                  # an append failed; the segment is replaced once the commit under way has ended
    bint rewritten                  # replaced since the last durable commit: a second failure is final
    bint in_commit                  # part of the commit under way
    bint roll                       # the open batch, or the next one, begins a new segment: the clock stepped
    bint ends                       # had an active segment when the writer ended, …
    bint ends_whole                 # … and that holds everything, so that its end is a clean one
    size_t batch_bytes              # its last batch: the next one gets a buffer for as much
    int rewrite_errno               # what made `rewriting`
    uint64_t rewrite_step
    uint64_t full_since_ns
    int64_t clock_old               # ms, for the clock record
    int64_t appended_offset         # next offset after what is appended
    int64_t appended_timestamp      # ms, of the latest record that is appended
    int64_t manifest_bytes          # end of the manifest's last entry; -1: there is none to go on with
    int64_t mark_synced_position    # how far of the active segment the watermark on the disk reaches
    uint64_t appended[RINGS_MAX]    # … in a batch that is appended
    uint64_t durable_sequence[RINGS_MAX]    # … in one that is durable
    uint64_t pending_bytes          # capacity of `pending`
    WatermarkFields durable         # what the last commit that succeeded published
    Partition* next_dirty
    # Handed over with a commit.
    int commit_fd
    WatermarkFields commit_mark
    uint64_t commit_sequence[RINGS_MAX]
    BatchList commit_batches
    Sealed* commit_sealed
    bint commit_new_directory
    bint commit_new_files
    bint commit_sync_mark
    int commit_errno                # set by the flusher: 0, or what failed …
    uint64_t commit_step            # … and where
    Partition* next_commit
    # Published.
    int watermark_fd
    uint64_t durable_offset
    uint64_t log_end_offset
    uint64_t durable_position       # of the segment …
    uint64_t segment_base           # … that begins here
    uint64_t failed                 # 1: nothing more is acknowledged from this partition
    uint64_t failed_errno
    uint64_t failed_step
    uint64_t stalled_errno          # not 0: the disk has no room; tried again until there is
    uint64_t is_refusing
    uint64_t watermark_errors
    uint64_t index_errors
    uint64_t summary_errors
    uint64_t rewrites
    uint64_t records
    uint64_t bytes                  # keys, values and headers
    uint64_t refused                # records refused for want of room
    uint64_t lost                   # records discarded because the partition failed
    uint64_t roll_wanted            # asked for by anyone, taken by the writer
    uint64_t followed               # 1 while somebody waits to read its next records: they are committed without relaxing
    Refusal refusals[RINGS_MAX]

cdef struct ManualTime:             # a test's clock
    uint64_t monotonic_ns
    int64_t realtime_ns

cdef struct WriterState:
    StorageOps* ops
    Partition** partitions
    uint32_t partitions_max
    uint64_t partition_count
    RingState* rings[RINGS_MAX]
    uint64_t ring_count
    ManualTime* manual              # NULL: the machine's clocks
    uint64_t reserve_bytes          # of the disk, never filled with records; anyone may set it
    bint into_reserve               # the writer's: what is appended now may use it
    bint sync_by_many               # at the end several threads may sync: the disk is a real one
    uint64_t syncfs_files           # from so many dirty files on, one syncfs instead; 0: never
    # Batch buffers.
    Batch* free_batches[BATCH_SIZES]    # by size
    uint64_t buffer_bytes_max
    uint64_t buffer_bytes
    bint starved
    # The writer thread's own.
    uint64_t positions[RINGS_MAX]
    int64_t ring_timestamps[RINGS_MAX]  # ms, latest since its clock last stepped back
    uint64_t clock_steps            # times that a ring's clock stepped back
    uint64_t forward_steps          # times that the wall clock jumped ahead
    int64_t clock_offset            # wall clock less boot time, when last looked at
    bint clock_known
    Partition* dirty
    uint64_t dirty_count            # partitions in `dirty` …
    uint64_t dirty_count_last       # … and when the last commit began
    uint64_t dirty_linger_ns
    uint64_t dirty_bytes
    uint64_t dirty_waiting          # records since the last commit whose senders wait
    uint64_t waiting_in_commit      # how many of these had come when the last commit ended
    uint64_t first_arrival_ns       # since the last commit ended; 0: none yet
    uint64_t last_arrival_ns
    uint64_t prompt_commits         # how many may still begin as soon as those who wait fell silent
    uint64_t last_commit_ns         # when it began …
    uint64_t collected_ns           # … and when its end was seen
    uint64_t full_partitions        # with `full_disk`
    uint64_t refusing_partitions
    uint64_t retry_ns
    uint64_t rolls_seen
    bint rings_to_notify
    uint32_t blocked_rings          # bit per ring: its next record had to wait
    uint64_t first_ring             # whose turn is first
    uint64_t commits_begun
    uint64_t commits_ended
    # The flush request that is being served.
    uint64_t flush_serving          # its number; equal to flush_done: none
    bint flush_drained              # what it asks for is in batches
    uint64_t flush_rings
    uint64_t flush_heads[RINGS_MAX]
    uint64_t flush_commit           # then it waits until so many commits have ended
    # Between the threads.
    int writer_fd
    int flusher_fd
    int health_fd
    uint64_t writer_sleeping        # AWAKE, SLEEPING or NAPPING (ring.pxd)
    uint64_t followed_count         # partitions with `followed`
    uint64_t commit_state
    Partition* commit_list
    uint64_t stopping
    uint64_t abandoned
    uint64_t flush_wanted
    uint64_t flush_done
    uint64_t rolls_wanted           # counts calls
    uint64_t retry_wanted
    uint64_t writer_state
    # Counters; published.
    uint64_t commits
    uint64_t batches
    uint64_t log_bytes
    uint64_t synced_files
    uint64_t synced_filesystems
    uint64_t sync_ns
    uint64_t sync_ns_max
    uint64_t close_errors
    uint64_t steps_seen             # of the wall clock, by more than CLAMP_MS either way
    int64_t step_old_ns             # what the wall clock would have said …
    int64_t step_new_ns             # … and what it said, at the last of them

# -- small helpers that both threads use ----------------------------------------------------------------------------------

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_acquire(const uint64_t*)
    uint64_t gw_load_relaxed(const uint64_t*)
    void gw_store_release(uint64_t*, uint64_t)
    void gw_store_relaxed(uint64_t*, uint64_t)
    void gw_store_seq(uint64_t*, uint64_t)
    uint64_t gw_load_seq(const uint64_t*)
    uint64_t gw_exchange(uint64_t*, uint64_t)
    void gw_fence()

cdef extern from "planted.h" nogil:
    # Is this bug planted? Never, but in a build made to show that tests find it.
    bint gw_planted(const char* bug)

cdef extern from "clock.h" nogil:
    uint64_t gw_monotonic_ns()
    int64_t gw_realtime_ns()
    int64_t gw_boottime_ns()

cdef extern from "<unistd.h>" nogil:
    ssize_t c_write "write"(int, const void*, size_t)

cdef inline uint64_t monotonic_ns(WriterState* w) noexcept nogil:
    return w.manual.monotonic_ns if w.manual is not NULL else gw_monotonic_ns()

cdef inline uint64_t dirty_partitions(WriterState* w) noexcept nogil:
    """How many partitions records come for at the moment."""
    return w.dirty_count if w.dirty_count > w.dirty_count_last else w.dirty_count_last

cdef inline bint is_crowded(WriterState* w) noexcept nogil:
    """Are they so many that what each costs counts, and that they do not stay in the processor's caches?"""
    return dirty_partitions(w) > CROWDED_PARTITIONS

cdef inline int64_t reserve_bytes(WriterState* w) noexcept nogil:
    """What appending has to leave free: see `active_make_room`."""
    return -1 if w.into_reserve else <int64_t>gw_load_relaxed(&w.reserve_bytes)

cdef inline void bell(int fd) noexcept nogil:
    """Make an eventfd readable."""
    cdef uint64_t one = 1
    c_write(fd, &one, sizeof(one))  # EAGAIN: it rings already

cdef inline void bump(uint64_t* counter, uint64_t by) noexcept nogil:
    """Add to a counter that one thread writes and others read."""
    gw_store_relaxed(counter, gw_load_relaxed(counter) + by)

cdef inline void close_counted(WriterState* w, int* fd) noexcept nogil:
    """Close it if it is open."""
    if fd[0] >= 0 and w.ops.close(fd[0]):
        bump(&w.close_errors, 1)
    fd[0] = -1

cdef inline void push_batch(BatchList* to, Batch* batch) noexcept nogil:
    batch.next = NULL
    if to.last is NULL:
        to.first = batch
    else:
        to.last.next = batch
    to.last = batch

cdef inline Batch* pop_batch(BatchList* source) noexcept nogil:
    """The first one; NULL if there is none."""
    cdef Batch* batch = source.first
    if batch is not NULL:
        source.first = batch.next
        if source.first is NULL:
            source.last = NULL
        batch.next = NULL
    return batch

cdef inline void move_batches(BatchList* source, BatchList* to) noexcept nogil:
    """All of `source` to the end of `to`."""
    if source.first is NULL:
        return
    if to.last is NULL:
        to.first = source.first
    else:
        to.last.next = source.first
    to.last = source.last
    source.first = source.last = NULL
