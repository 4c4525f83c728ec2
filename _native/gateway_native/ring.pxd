"""The ring: records on their way from one producing thread to the writer thread.

Bounded, lock-free, one producer and one consumer, slots of variable size. A slot never wraps: when the room to the
end of the buffer is too small, a pad slot fills it. Cursors count bytes since the ring was made and never wrap either.

Beside the slots the ring carries the way back: for each partition, up to which of this ring's records the
acknowledgement may leave, whether the partition has failed, and which records were refused.

Refused records (the disk was full) are a range of sequence numbers for each partition. The writer takes no further record of
that partition from this ring until the producer has looked at everything that waits and said so: so a sequence number
inside the range is never overtaken by an acknowledgement, however late the producer looks.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_acquire(const uint64_t*)

cdef enum:
    SLOT_BYTES = 48                 # the slot header; key, value and headers follow it
    SLOT_KEYFRAME = 1               # flag: a key frame; it opens a record batch of its own
    SLOT_WANTS_ACK = 2              # flag: someone waits for this record to be durable
    SLOT_PAD = 4                    # flag: no record, only room up to the end of the buffer
    SLOT_GAP = 8                    # flag: the gateway's own record of a loss; it may use the disk's reserve
    SLOT_NULL_KEY = 16              # flag: it has no key, which is not the same as an empty one
    SLOT_NULL_VALUE = 32            # flag: it has no value
    SLOT_MARKED = 64                # flag: the producer wants to know the record's offset: `mark`

    AWAKE = 0                       # the writer: it looks at the rings by itself
    SLEEPING = 1                    # it is to be woken by whatever comes
    NAPPING = 2                     # it has work to do later; to be woken only if somebody waits, or much has come

    MARKS = 4096                    # offsets that a ring can have on their way back; a power of two

    VERDICT_WAIT = 0                # not durable yet
    VERDICT_ACK = 1                 # on disk (or, with ack = "memory", taken): the acknowledgement may leave
    VERDICT_FAILED = 2              # the partition failed first: no acknowledgement will ever leave
    VERDICT_REFUSED = 3             # dropped, because the disk has no room: it is not and will not be in the log

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
    uint64_t mark                   # with SLOT_MARKED: its offset goes to `marks[mark % MARKS]`

cdef struct RingState:
    # Fixed after construction.
    uint8_t* data
    uint64_t capacity               # bytes, a power of two
    uint32_t partitions             # length of the tables below
    const uint64_t* partition_count # the writer's: how many of them it knows
    uint64_t* next_sequence         # [partition] last sequence given out; the producer's own
    uint64_t* acked                 # [partition] acknowledgements may leave up to here; written by writer or flusher
    uint64_t* failed                # [partition] 1 once the partition failed; written by writer or flusher
    uint64_t* refused_from          # [partition] refused: sequences from here …
    uint64_t* refused_to            # [partition] … up to here, unless the producer has confirmed; both the writer's
    uint64_t* refused_seen          # [partition] the producer has dealt with refusals up to here
    uint64_t* refused_looked        # [partition] where `refused_to` was when the producer began to look; its own
    uint64_t* marks                 # [MARKS] the writer's; read once the record is acknowledged, which comes after it
    int event_fd                    # readable when `acked` or `failed` moved, or room came back
    # The writer's doorbell: shared by all rings of one writer.
    uint64_t* writer_sleeping       # AWAKE, SLEEPING or NAPPING
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
    uint64_t urgent                 # flags of the records not yet published
    uint64_t rung_at                # where `head` was when the writer was last woken
    uint64_t waiting                # 1 while the producer waits for room (seq-cst, both sides)
    uint64_t ack_interest           # 1 while the producer waits for acknowledgements (seq-cst, both sides)
    uint64_t refusals               # records refused so far; the writer's
    uint64_t refusals_looked        # where `refusals` was when the producer began to look
    uint64_t refusals_seen          # where it was when the producer had looked
    # Counters, producer's own.
    uint64_t records
    uint64_t bytes
    uint64_t full                   # times a record found no room
    uint64_t restarts               # times it began again before it came to its end

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

# Were records refused that the producer has not dealt with? Then it asks for the verdict on everything that waits, …
cdef bint ring_refusals_pending(RingState* ring) noexcept nogil
# … marks what was refused, and calls this.
cdef void ring_confirm_refusals(RingState* ring) noexcept nogil

# -- consumer (the writer thread) -----------------------------------------------------------------------------------

# The slot at `position`, or NULL when everything published was seen. Skips pads by moving *position.
cdef RingSlot* ring_peek(RingState* ring, uint64_t* position) noexcept nogil

# Give the room below `position` back to the producer, and wake it if it waits for room.
cdef void ring_free(RingState* ring, uint64_t position) noexcept nogil

# Refuse sequences `first` to `last` of a partition; those before `first` are decided, or were refused just before.
cdef void ring_refuse(RingState* ring, uint32_t partition, uint64_t first, uint64_t last) noexcept nogil

# Does the producer still have to look at refused records of this partition?
cdef inline bint ring_refusal_open(RingState* ring, uint32_t partition) noexcept nogil:
    return ring.refused_to[partition] > gw_load_acquire(&ring.refused_seen[partition])

# Tell the producer that `acked` or `failed` moved.
cdef void ring_notify(RingState* ring) noexcept nogil


cdef class Ring:
    cdef RingState* state
    cdef readonly str name
    cdef readonly object owner      # keeps the writer, whose doorbell this ring rings, alive
