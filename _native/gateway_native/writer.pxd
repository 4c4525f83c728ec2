"""The writer and the flusher: two threads without the GIL that take records from the rings to the disk.

The writer drains all rings fairly, encodes record batches and appends them to each partition's active segment. The
flusher syncs what the writer handed over (one group commit for all dirty partitions), publishes the durable offset and
lets acknowledgements go. While one commit is being synced, the writer fills the batches of the next.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gateway_native.batch cimport BatchBuilder
from gateway_native.ring cimport RingState
from gateway_native.segment cimport Active
from gateway_native.storage cimport StorageOps

cdef enum:
    RINGS_MAX = 16                  # producing threads
    BATCH_BYTES = 262144            # a batch closes here; a larger record has one of its own
    DRAIN_BYTES = 262144            # taken from one ring before the next has its turn

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

cdef struct Batch:                  # one batch buffer from the bounded pool
    BatchBuilder builder
    uint8_t* data
    size_t capacity                 # BATCH_BYTES, or more for one large record
    size_t finished_bytes           # 0 while open
    Batch* next

cdef struct Sealed:                 # descriptors of a sealed segment, until it is synced
    int log_fd
    int index_fd
    int time_fd
    int64_t base_offset
    int64_t position                # its final length
    Sealed* next

cdef struct Partition:
    # Fixed by add_partition.
    uint32_t index
    char* directory
    char* parent
    int64_t segment_bytes
    int64_t segment_age_ms          # 0: no limit
    uint64_t linger_ns
    bint ack_memory
    uint64_t epoch
    # The writer's.
    Active* active                  # NULL before the first record of a new partition
    Batch* open
    Batch* kept                     # appended since the last commit; kept until durable
    Sealed* sealed
    bint new_directory              # its entry in the parent is not synced yet
    bint new_files                  # the directory has entries that are not synced yet
    bint dirty
    bint roll                       # the next batch begins a new segment: the clock stepped back
    bint full_disk                  # the open batch waits for room on the disk
    int64_t next_offset
    int64_t last_timestamp          # ms
    uint64_t clock_steps            # the writer's count when last looked at
    uint64_t drained[RINGS_MAX]     # last sequence of each ring that is in a batch
    Partition* next_dirty
    # Handed over with a commit; the flusher's while it is READY.
    int commit_fd
    int64_t commit_base
    int64_t commit_position
    int64_t commit_offset
    uint64_t commit_sequence[RINGS_MAX]
    Batch* commit_batches
    Sealed* commit_sealed
    bint commit_new_directory
    bint commit_new_files
    Partition* next_commit
    # Published, relaxed or release.
    int watermark_fd
    uint64_t durable_offset
    uint64_t log_end_offset
    uint64_t failed                 # 1: nothing more is acknowledged from this partition
    uint64_t failed_errno
    uint64_t failed_step
    uint64_t stalled_errno          # not 0: the disk has no room; tried again until there is
    uint64_t watermark_errors
    uint64_t index_errors
    uint64_t records
    uint64_t bytes                  # keys, values and headers
    uint64_t lost                   # records discarded because the partition failed

cdef class Writer:
    cdef StorageOps* ops
    cdef Partition** partitions
    cdef readonly uint32_t partitions_max
    cdef uint64_t partition_count
    cdef RingState* rings[RINGS_MAX]
    cdef uint64_t ring_count
    cdef list ring_objects
    # Batch buffers.
    cdef Batch* free_batches
    cdef uint64_t buffer_bytes_max
    cdef uint64_t buffer_bytes
    cdef bint starved
    # The writer thread's own.
    cdef uint64_t positions[RINGS_MAX]
    cdef int64_t ring_timestamps[RINGS_MAX]     # ms, latest since its clock last stepped back
    cdef uint64_t clock_steps       # times that a ring's clock stepped back
    cdef Partition* dirty
    cdef uint64_t dirty_linger_ns
    cdef uint64_t dirty_bytes
    cdef bint dirty_wants_ack
    cdef uint64_t last_arrival_ns
    cdef uint64_t last_commit_ns
    cdef uint64_t stalled_partitions
    cdef uint64_t retry_ns
    cdef bint rings_to_notify
    cdef uint64_t first_ring        # whose turn is first
    cdef uint64_t commits_begun
    cdef uint64_t commits_ended
    # The flush request that is being served.
    cdef uint64_t flush_serving     # its number; equal to flush_done: none
    cdef bint flush_drained         # what it asks for is in batches
    cdef uint64_t flush_rings
    cdef uint64_t flush_heads[RINGS_MAX]
    cdef uint64_t flush_commit      # then it waits until so many commits have ended
    # Between the threads.
    cdef int writer_fd
    cdef int flusher_fd
    cdef int health_fd
    cdef uint64_t writer_sleeping
    cdef uint64_t commit_state
    cdef Partition* commit_list
    cdef uint64_t stopping
    cdef uint64_t abandoned
    cdef uint64_t flush_wanted
    cdef uint64_t flush_done
    cdef uint64_t writer_state
    # Counters.
    cdef uint64_t commits
    cdef uint64_t batches
    cdef uint64_t log_bytes
    cdef uint64_t synced_files
    cdef uint64_t sync_ns
    cdef uint64_t sync_ns_max
    cdef uint64_t close_errors
