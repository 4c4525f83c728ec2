"""The ring: records on their way from one producing thread to the writer thread.

Bounded, lock-free, one producer and one consumer, slots of variable size. A slot never wraps: when the room to the
end of the buffer is too small, a pad slot fills it. Cursors count bytes since the ring was made and never wrap either.

Beside the slots the ring carries the way back: for each partition, up to which of this ring's records the
acknowledgement may leave, and whether the partition has failed.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    SLOT_BYTES = 48                 # the slot header; key, value and headers follow it
    SLOT_KEYFRAME = 1               # flag: a key frame; it opens a record batch of its own
    SLOT_WANTS_ACK = 2              # flag: someone waits for this record to be durable
    SLOT_PAD = 4                    # flag: no record, only room up to the end of the buffer

    VERDICT_WAIT = 0                # not durable yet
    VERDICT_ACK = 1                 # on disk (or, with ack = "memory", taken): the acknowledgement may leave
    VERDICT_FAILED = 2              # the partition failed first: no acknowledgement will ever leave

cdef struct RingSlot:
    uint32_t size                   # header, contents and padding; a multiple of 8
    uint16_t flags                  # SLOT_*
    uint16_t reserved
    uint32_t partition              # index that the engine gave out
    uint32_t key_bytes
    uint32_t value_bytes
    uint32_t headers_bytes          # headers as record batch v2 stores them, their count included
    uint64_t sequence               # 1, 2, 3 … within (ring, partition)
    int64_t timestamp_ns            # receive time, Unix epoch
    int64_t reserved2

cdef struct RingState:
    # Fixed after construction.
    uint8_t* data
    uint64_t capacity               # bytes, a power of two
    uint32_t partitions             # length of the three tables below
    const uint64_t* partition_count # the writer's: how many of them it knows
    uint64_t* next_sequence         # [partition] last sequence given out; the producer's own
    uint64_t* acked                 # [partition] acknowledgements may leave up to here; written by writer or flusher
    uint64_t* failed                # [partition] 1 once the partition failed; written by writer or flusher
    int event_fd                    # readable when `acked` or `failed` moved, or room came back
    # The writer's doorbell: shared by all rings of one writer.
    uint64_t* writer_sleeping       # 1 while the writer may block
    int writer_fd                   # eventfd that wakes it
    # Cursors, each on a cache line of its own.
    uint64_t pad0[8]
    uint64_t head                   # published up to here; written by the producer
    uint64_t pad1[8]
    uint64_t tail                   # freed up to here; written by the consumer
    uint64_t pad2[8]
    # The producer's own.
    uint64_t reserved               # reserved up to here, not yet published
    uint64_t tail_seen              # last value read from `tail`
    uint64_t waiting                # 1 while the producer waits for room (seq-cst, both sides)
    uint64_t ack_interest           # 1 while the producer waits for acknowledgements (seq-cst, both sides)
    # Counters, producer's own.
    uint64_t records
    uint64_t bytes
    uint64_t full                   # times a record found no room

# -- producer -----------------------------------------------------------------------------------------------------

# Reserve a slot and fill its header; the caller then writes key, value and headers, in that order and without gaps,
# to the returned address. NULL: no room now (the record counts as not offered; `waiting` is set, and `event_fd`
# becomes readable when there is room) . Nothing is visible to the consumer before ring_publish.
cdef uint8_t* ring_put(
    RingState* ring, uint32_t partition, uint16_t flags, int64_t timestamp_ns,
    uint32_t key_bytes, uint32_t value_bytes, uint32_t headers_bytes, uint64_t* sequence,
) noexcept nogil

# Make everything reserved visible to the writer and wake it if it sleeps: once per received buffer, not per record.
cdef void ring_publish(RingState* ring) noexcept nogil

# May the acknowledgement for this record leave? One of VERDICT_*.
cdef int ring_verdict(RingState* ring, uint32_t partition, uint64_t sequence) noexcept nogil

# -- consumer (the writer thread) -----------------------------------------------------------------------------------

# The slot at `position`, or NULL when everything published was seen. Skips pads by moving *position.
cdef RingSlot* ring_peek(RingState* ring, uint64_t* position) noexcept nogil

# Give the room below `position` back to the producer, and wake it if it waits for room.
cdef void ring_free(RingState* ring, uint64_t position) noexcept nogil

# Tell the producer that `acked` or `failed` moved.
cdef void ring_notify(RingState* ring) noexcept nogil


cdef class Ring:
    cdef RingState* state
    cdef readonly str name
    cdef readonly object owner      # keeps the writer, whose doorbell this ring rings, alive
