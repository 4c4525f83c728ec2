"""The ring between one producing thread and the writer thread. See ring.pxd for the contract."""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_relaxed(const uint64_t*)
    void gw_store_release(uint64_t*, uint64_t)
    void gw_store_relaxed(uint64_t*, uint64_t)
    void gw_store_seq(uint64_t*, uint64_t)
    uint64_t gw_load_seq(const uint64_t*)
    uint64_t gw_exchange(uint64_t*, uint64_t)
    void gw_fence()

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int, int)
    enum: EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int, const void*, size_t)
    ssize_t read(int, void*, size_t)
    int close(int)

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void*, size_t, int, int, int, int64_t)
    int munmap(void*, size_t)
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void* MAP_FAILED

# Slots carry their size in 32 bits, and none is larger than half the ring.
CAPACITY_MIN = 4096
CAPACITY_MAX = 1 << 32

cdef enum:
    NAP_BYTES = 1 << 19             # a napping writer is woken for so many, or a quarter of the ring
    NAP_PART = 4
    RESTART_PART = 16               # an empty ring is used from its beginning again once it is used so far

KEYFRAME = SLOT_KEYFRAME
WANTS_ACK = SLOT_WANTS_ACK
GAP = SLOT_GAP
NULL_KEY = SLOT_NULL_KEY
NULL_VALUE = SLOT_NULL_VALUE
MARKS_MAX = MARKS
PENDING = VERDICT_WAIT
ACKED = VERDICT_ACK
FAILED = VERDICT_FAILED
REFUSED = VERDICT_REFUSED


cdef inline void ring_bell(int fd) noexcept nogil:
    """Make an eventfd readable. EAGAIN means that it already is, which is all that is wanted."""
    cdef uint64_t one = 1
    write(fd, &one, sizeof(one))


cdef inline void wake_writer(RingState* ring) noexcept nogil:
    if gw_exchange(ring.writer_sleeping, AWAKE):
        ring.rung_at = ring.reserved
        ring_bell(ring.writer_fd)


cdef inline void put_pad(RingState* ring, uint64_t at) noexcept nogil:
    """Fill the buffer from `at` to its end. Slots are multiples of 8: at least 8 bytes are left, for size and flags."""
    cdef RingSlot* slot = <RingSlot*>(ring.data + at)
    slot.size = <uint32_t>(ring.capacity - at)
    slot.flags = SLOT_PAD
    ring.reserved += slot.size


cdef inline bint begins_again(RingState* ring, uint64_t at, uint64_t size) noexcept nogil:
    """Use the beginning of the buffer again rather than touch more of it? So a ring that is seldom full costs little
    memory, and that stays in the processor's caches.

    Only if the writer has taken everything, and sleeps: woken, it first takes the pad, and all is free again. Had it
    other things to do before, there would be no more room than up to `at` until then.
    """
    if at < ring.capacity // RESTART_PART or at < size or ring.reserved != ring.head \
            or gw_load_relaxed(ring.writer_sleeping) == AWAKE:
        return False
    ring.tail_seen = gw_load_acquire(&ring.tail)
    return ring.tail_seen == ring.reserved


cdef uint8_t* ring_put(
    RingState* ring, uint32_t partition, uint16_t flags, int64_t timestamp_ns,
    uint32_t key_bytes, uint32_t value_bytes, uint32_t headers_bytes, uint64_t* sequence,
) noexcept nogil:
    cdef uint64_t content = <uint64_t>key_bytes + value_bytes + headers_bytes
    cdef uint64_t size = (SLOT_BYTES + content + 7) & ~(<uint64_t>7)
    cdef uint64_t at = ring.reserved & (ring.capacity - 1)
    cdef uint64_t to_end = ring.capacity - at
    cdef uint64_t need = size if size <= to_end else to_end + size
    cdef RingSlot* slot
    if begins_again(ring, at, size):
        ring.restarts += 1
        put_pad(ring, at)
        at = 0
        need = size
        to_end = ring.capacity
    if ring.reserved + need - ring.tail_seen > ring.capacity:
        ring.tail_seen = gw_load_acquire(&ring.tail)
        if ring.reserved + need - ring.tail_seen > ring.capacity:
            # Say that we wait, then look once more: the consumer may have freed room in between.
            gw_store_seq(&ring.waiting, 1)
            ring.tail_seen = gw_load_seq(&ring.tail)
            if ring.reserved + need - ring.tail_seen > ring.capacity:
                ring.full += 1
                wake_writer(ring)       # it may nap
                return NULL
            gw_store_seq(&ring.waiting, 0)
    if size > to_end:
        put_pad(ring, at)
        at = 0
    slot = <RingSlot*>(ring.data + at)
    slot.size = <uint32_t>size
    slot.flags = flags
    slot.partition = partition
    slot.key_bytes = key_bytes
    slot.value_bytes = value_bytes
    slot.headers_bytes = headers_bytes
    ring.next_sequence[partition] += 1
    slot.sequence = ring.next_sequence[partition]
    sequence[0] = slot.sequence
    slot.timestamp_ns = timestamp_ns
    ring.reserved += size
    ring.urgent |= flags
    ring.records += 1
    ring.bytes += content
    return <uint8_t*>slot + SLOT_BYTES


cdef inline bint may_nap(RingState* ring) noexcept nogil:
    """Nobody waits for what was just published, nor for room, and little has come since the writer was last woken."""
    return not ring.urgent & (SLOT_WANTS_ACK | SLOT_GAP) and not gw_load_relaxed(&ring.waiting) \
        and ring.reserved - ring.rung_at < min(<uint64_t>NAP_BYTES, ring.capacity // NAP_PART)


cdef void ring_publish(RingState* ring) noexcept nogil:
    cdef uint64_t sleeping
    if ring.reserved == ring.head:
        return
    gw_store_release(&ring.head, ring.reserved)
    gw_fence()                      # the consumer sets `writer_sleeping`, fences, then looks at `head`
    sleeping = gw_load_relaxed(ring.writer_sleeping)
    if sleeping == SLEEPING or (sleeping == NAPPING and not may_nap(ring)):
        wake_writer(ring)
    ring.urgent = 0


cdef int ring_verdict(RingState* ring, uint32_t partition, uint64_t sequence) noexcept nogil:
    if gw_load_acquire(&ring.acked[partition]) >= sequence:
        return VERDICT_ACK
    if gw_load_acquire(&ring.refused_to[partition]) >= sequence \
            and ring.refused_to[partition] > ring.refused_seen[partition] \
            and gw_load_relaxed(&ring.refused_from[partition]) <= sequence:
        return VERDICT_REFUSED
    if gw_load_acquire(&ring.failed[partition]):
        return VERDICT_FAILED
    return VERDICT_WAIT


cdef bint ring_refusals_pending(RingState* ring) noexcept nogil:
    cdef uint64_t refusals = gw_load_acquire(&ring.refusals)
    cdef uint64_t i
    if refusals == ring.refusals_seen:
        return False
    ring.refusals_looked = refusals
    for i in range(gw_load_acquire(ring.partition_count)):
        ring.refused_looked[i] = gw_load_acquire(&ring.refused_to[i])
    return True


cdef void ring_confirm_refusals(RingState* ring) noexcept nogil:
    cdef uint64_t i
    if ring.refusals_looked == ring.refusals_seen:
        return
    ring.refusals_seen = ring.refusals_looked
    for i in range(gw_load_acquire(ring.partition_count)):
        if ring.refused_looked[i] > ring.refused_seen[i]:
            gw_store_release(&ring.refused_seen[i], ring.refused_looked[i])


cdef void ring_refuse(RingState* ring, uint32_t partition, uint64_t first, uint64_t last) noexcept nogil:
    if not ring_refusal_open(ring, partition):
        gw_store_relaxed(&ring.refused_from[partition], first)
    gw_store_release(&ring.refused_to[partition], last)
    gw_store_release(&ring.refusals, ring.refusals + last - first + 1)


cdef RingSlot* ring_peek(RingState* ring, uint64_t* position) noexcept nogil:
    cdef uint64_t head = gw_load_acquire(&ring.head)
    cdef RingSlot* slot
    while position[0] < head:
        slot = <RingSlot*>(ring.data + (position[0] & (ring.capacity - 1)))
        if not slot.flags & SLOT_PAD:
            return slot
        position[0] += slot.size
    return NULL


cdef void ring_free(RingState* ring, uint64_t position) noexcept nogil:
    gw_store_seq(&ring.tail, position)
    if gw_load_seq(&ring.waiting):
        # Woken too early, the producer would only stop again: wait until half of the ring is free.
        if gw_load_acquire(&ring.head) - position <= ring.capacity // 2:
            gw_store_seq(&ring.waiting, 0)
            ring_bell(ring.event_fd)


cdef void ring_notify(RingState* ring) noexcept nogil:
    if gw_load_seq(&ring.ack_interest):
        ring_bell(ring.event_fd)


cdef class Ring:
    """One ring, seen from its producing thread.

    Made by ``Writer.ring(name, capacity)``. Exactly one thread at a time may produce. Python callers are serialised
    by the GIL, which `append` holds throughout, so several Python threads may share one ring.
    """

    def __cinit__(self, object owner, str name, uint64_t capacity, uint32_t partitions, size_t partition_count,
                  int writer_fd, size_t writer_sleeping):
        self.owner = owner
        self.name = name
        if not CAPACITY_MIN <= capacity <= CAPACITY_MAX or capacity & (capacity - 1):
            raise ValueError(f"ring capacity must be a power of two from {CAPACITY_MIN} to {CAPACITY_MAX} bytes, "
                             f"not {capacity}")
        self.state = <RingState*>calloc(1, sizeof(RingState))
        if self.state is NULL:
            raise MemoryError()
        self.state.event_fd = -1
        self.state.capacity = capacity
        self.state.partitions = partitions
        self.state.next_sequence = <uint64_t*>calloc(partitions, sizeof(uint64_t))
        self.state.acked = <uint64_t*>calloc(partitions, sizeof(uint64_t))
        self.state.failed = <uint64_t*>calloc(partitions, sizeof(uint64_t))
        self.state.refused_from = <uint64_t*>calloc(4 * <size_t>partitions, sizeof(uint64_t))
        # Mapped, so that a ring costs memory only as far as it was ever filled.
        self.state.data = <uint8_t*>mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if self.state.data == <uint8_t*>MAP_FAILED:
            self.state.data = NULL
        self.state.marks = <uint64_t*>calloc(MARKS, sizeof(uint64_t))
        if (self.state.data is NULL or self.state.marks is NULL or self.state.next_sequence is NULL or self.state.acked is NULL
                or self.state.failed is NULL or self.state.refused_from is NULL):
            raise MemoryError(f"no memory for ring {name} of {capacity} bytes")
        self.state.refused_to = self.state.refused_from + partitions
        self.state.refused_seen = self.state.refused_to + partitions
        self.state.refused_looked = self.state.refused_seen + partitions
        self.state.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.state.event_fd < 0:
            raise OSError(errno, f"eventfd for ring {name}")
        self.state.partition_count = <const uint64_t*>partition_count
        self.state.writer_fd = writer_fd
        self.state.writer_sleeping = <uint64_t*>writer_sleeping

    def __dealloc__(self):
        if self.state is NULL:
            return
        if self.state.data is not NULL:
            munmap(self.state.data, self.state.capacity)
        if self.state.event_fd >= 0:
            close(self.state.event_fd)
        free(self.state.next_sequence)
        free(self.state.acked)
        free(self.state.failed)
        free(self.state.refused_from)
        free(self.state.marks)
        free(self.state)

    @property
    def event_fd(self) -> int:
        """Readable when acknowledgements may leave, a partition failed, or room came back. Clear with `clear_event`."""
        return self.state.event_fd

    @property
    def capacity(self) -> int:
        """Bytes."""
        return self.state.capacity

    @property
    def used(self) -> int:
        """Bytes waiting for the writer, slot headers included."""
        return gw_load_acquire(&self.state.head) - gw_load_acquire(&self.state.tail)

    @property
    def largest_record(self) -> int:
        """Most bytes of key, value and headers together that fit: half the ring less a slot header."""
        return self.state.capacity // 2 - SLOT_BYTES

    @property
    def counters(self) -> dict:
        """Records and content bytes taken, how often a record found no room, and how often an empty ring began again."""
        cdef RingState* ring = self.state
        return {"records": ring.records, "bytes": ring.bytes, "full": ring.full, "restarts": ring.restarts}

    def append(self, uint32_t partition, bytes key, bytes value, bytes headers, int64_t timestamp_ns,
               int flags=0, uint64_t mark=0) -> int:
        """Put one record in and publish it; return its sequence number in (ring, partition), or 0 when the ring is full.

        mark: a number above 0 by which `offset_of` knows the record; those of two records that both wait for their
        acknowledgement must not be the same modulo MARKS_MAX.
        headers: as `batch.encode_headers` gives them. timestamp_ns: receive time, Unix epoch. A record over
        `largest_record` raises ValueError, since it could never fit.
        """
        cdef uint64_t sequence = 0
        cdef uint8_t* to
        cdef RingSlot* slot
        cdef size_t total = len(key) + len(value) + len(headers)
        if partition >= gw_load_acquire(self.state.partition_count):
            raise IndexError(f"partition {partition} of {gw_load_acquire(self.state.partition_count)}")
        if total > self.state.capacity // 2 - SLOT_BYTES:
            raise ValueError(f"record of {total} bytes exceeds the ring's limit of {self.largest_record} bytes")
        to = ring_put(self.state, partition, <uint16_t>flags, timestamp_ns, <uint32_t>len(key), <uint32_t>len(value),
                      <uint32_t>len(headers), &sequence)
        if to is NULL:
            return 0
        memcpy(to, <const char*>key, len(key))
        memcpy(to + len(key), <const char*>value, len(value))
        memcpy(to + len(key) + len(value), <const char*>headers, len(headers))
        if mark:
            slot = <RingSlot*>(to - SLOT_BYTES)
            slot.flags |= SLOT_MARKED
            slot.mark = mark
        ring_publish(self.state)
        return sequence

    def offset_of(self, uint64_t mark) -> int:
        """The offset of the record that was appended with this mark. Only once its verdict is ACKED."""
        return <int64_t>gw_load_relaxed(&self.state.marks[mark & (MARKS - 1)])

    def verdict(self, uint32_t partition, uint64_t sequence) -> int:
        """PENDING, ACKED (it is on disk), FAILED (the partition failed before it got there) or REFUSED (the disk is full).

        REFUSED is said until `confirm_refusals`; whoever keeps outstanding records asks for all of them before that.
        """
        if partition >= self.state.partitions:
            raise IndexError(f"partition {partition} of {self.state.partitions}")
        return ring_verdict(self.state, partition, sequence)

    @property
    def refusals_pending(self) -> bool:
        """Were records refused since the last `confirm_refusals`? Then look at every outstanding verdict, and confirm."""
        return ring_refusals_pending(self.state)

    def confirm_refusals(self) -> None:
        """Every outstanding record was looked at since `refusals_pending` said so; the writer takes records again."""
        ring_confirm_refusals(self.state)

    def set_ack_interest(self, bint interested) -> None:
        """While true, `event_fd` becomes readable whenever acknowledgements may leave. Look once more after setting."""
        gw_store_seq(&self.state.ack_interest, 1 if interested else 0)

    def clear_event(self) -> None:
        """Make `event_fd` unreadable until the next event."""
        cdef uint64_t count
        read(self.state.event_fd, &count, sizeof(count))
