"""What loads the log for measurements: one producing thread without the GIL. Built on demand by bench.native.

It does what an intake thread does: puts records into the ring, stamps and publishes them once per received block; waits
for the ring's event when the ring is full; takes acknowledgements off in order.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from gateway_native.ring cimport (
    VERDICT_ACK,
    VERDICT_WAIT,
    Ring,
    RingState,
    ring_publish,
    ring_put,
    ring_verdict,
)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    enum: CLOCK_MONOTONIC, CLOCK_REALTIME

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd*, unsigned long, const timespec*, const void*)
    enum: POLLIN

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void*, size_t)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)
    enum: PR_SET_TIMERSLACK

cdef enum:
    NS_PER_S = 1000000000
    BLOCK_BYTES = 32768             # published at once at full speed: about what one recv() brings
    KEY_BYTES = 22
    KEY_DIGITS = 5                  # at its end
    WAITING_MAX = 2097152           # records put and not yet acknowledged, a power of two
    BUCKETS = 4194304               # of 1 µs
    PATIENCE_S = 60

cdef const char* KEY = b"plant/line-1/sens-00000"


cdef inline uint64_t now_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * NS_PER_S + now.tv_nsec


cdef class Load:
    """One producer on one ring. Counters are those of the last `run`.

    Records go to partitions 0 to `partitions` - 1 in turn; the key is 22 B, one of `keys`. `flags` are the ring's.
    With `latencies` every record wants an acknowledgement, and the time from put to ACKED is kept (one partition only).
    """

    cdef RingState* ring
    cdef readonly object owner
    cdef uint32_t partitions
    cdef uint32_t value_bytes
    cdef uint16_t flags
    cdef uint64_t keys
    cdef uint8_t[KEY_BYTES] key
    cdef uint8_t* value
    cdef uint64_t* put_at           # when each waiting record was put: by sequence, modulo WAITING_MAX
    cdef uint32_t* histogram
    cdef uint64_t first_sequence    # of the record that waits longest
    cdef uint64_t last_sequence
    cdef readonly uint64_t records  # put
    cdef readonly uint64_t acked
    cdef readonly uint64_t full     # times the ring was
    cdef readonly uint64_t late_ns_max  # paced: how far the producer was behind, at worst
    cdef readonly uint64_t latency_ns_max
    cdef uint32_t partition
    cdef uint64_t number

    def __cinit__(self, Ring ring, uint32_t value_bytes, *, uint32_t partitions=1, uint64_t keys=1000, uint16_t flags=0,
                  bint latencies=False):
        if latencies and partitions != 1:
            raise ValueError("latencies are measured with one partition")
        self.ring, self.owner = ring.state, ring
        self.partitions, self.value_bytes, self.keys, self.flags = partitions, value_bytes, keys, flags
        memcpy(self.key, KEY, KEY_BYTES)
        self.value = <uint8_t*>calloc(1, value_bytes)
        if self.value is NULL:
            raise MemoryError()
        memset(self.value, ord("x"), value_bytes)
        if latencies:
            self.put_at = <uint64_t*>calloc(WAITING_MAX, sizeof(uint64_t))
            self.histogram = <uint32_t*>calloc(BUCKETS, sizeof(uint32_t))
            if self.put_at is NULL or self.histogram is NULL:
                raise MemoryError()

    def __dealloc__(self):
        free(self.value)
        free(self.put_at)
        free(self.histogram)

    cdef bint wait(self, uint64_t timeout_ns) noexcept nogil:
        """Until the ring has room or acknowledgements, or the time is over."""
        cdef pollfd waiting
        cdef timespec timeout
        cdef uint64_t count
        timeout.tv_sec = timeout_ns // NS_PER_S
        timeout.tv_nsec = timeout_ns % NS_PER_S
        waiting.fd = self.ring.event_fd
        waiting.events = POLLIN
        waiting.revents = 0
        if ppoll(&waiting, 1, &timeout, NULL) <= 0:
            return False
        read(waiting.fd, &count, sizeof(count))
        return True

    cdef bint take_acks(self) noexcept nogil:
        """False: a record failed."""
        cdef uint64_t now, took
        cdef int verdict = VERDICT_WAIT
        if self.histogram is NULL or self.first_sequence > self.last_sequence:
            return True
        now = now_ns(CLOCK_MONOTONIC)
        while self.first_sequence <= self.last_sequence:
            verdict = ring_verdict(self.ring, 0, self.first_sequence)
            if verdict != VERDICT_ACK:
                break
            took = now - self.put_at[self.first_sequence & (WAITING_MAX - 1)]
            self.latency_ns_max = max(self.latency_ns_max, took)
            self.histogram[min(took // 1000, <uint64_t>BUCKETS - 1)] += 1
            self.acked += 1
            self.first_sequence += 1
        return verdict == VERDICT_ACK or verdict == VERDICT_WAIT

    cdef bint put(self, uint64_t stamp) noexcept nogil:
        """One record. False: no room."""
        cdef uint64_t sequence, digits
        cdef int i
        cdef uint8_t* to
        if self.histogram is not NULL and self.last_sequence + 1 - self.first_sequence >= WAITING_MAX:
            return False
        to = ring_put(self.ring, self.partition, self.flags, <int64_t>stamp, KEY_BYTES, self.value_bytes, 0, &sequence)
        if to is NULL:
            return False
        memcpy(to + KEY_BYTES, self.value, self.value_bytes)
        memcpy(to, self.key, KEY_BYTES - KEY_DIGITS)
        digits = self.number
        for i in range(KEY_DIGITS):
            to[KEY_BYTES - 1 - i] = <uint8_t>(48 + digits % 10)
            digits //= 10
        self.number = self.number + 1 if self.number + 1 < self.keys else 0
        self.partition = self.partition + 1 if self.partition + 1 < self.partitions else 0
        self.records += 1
        if self.histogram is not NULL:
            if self.records == 1:
                self.first_sequence = sequence
            self.last_sequence = sequence
            self.put_at[sequence & (WAITING_MAX - 1)] = now_ns(CLOCK_MONOTONIC)
        return True

    cdef bint at_full_speed(self, uint64_t end, uint64_t records_max) noexcept nogil:
        cdef uint64_t block = max(<uint64_t>1, <uint64_t>BLOCK_BYTES // (KEY_BYTES + self.value_bytes))
        cdef uint64_t stamp, i
        while now_ns(CLOCK_MONOTONIC) < end and self.records < records_max:
            stamp = now_ns(CLOCK_REALTIME)
            for i in range(min(block, records_max - self.records)):
                if not self.put(stamp):
                    self.full += 1
                    break
            ring_publish(self.ring)
            if not self.take_acks():
                return False
            if self.ring.waiting:
                self.wait(NS_PER_S)
        return True

    cdef bint paced(self, uint64_t start, uint64_t end, double rate, uint64_t tick_ns) noexcept nogil:
        cdef uint64_t now = start
        cdef uint64_t stamp, due, next_at, wake = start
        while now < end:
            if now >= wake:
                stamp = now_ns(CLOCK_REALTIME)
                due = <uint64_t>((now - start) * 1e-9 * rate) + 1
                while self.records < due:
                    next_at = start + <uint64_t>(self.records / rate * 1e9)
                    self.late_ns_max = max(self.late_ns_max, now - min(now, next_at))
                    if not self.put(stamp):
                        self.full += 1
                        break
                ring_publish(self.ring)
                wake = max(start + <uint64_t>(self.records / rate * 1e9), now + tick_ns)
            if not self.take_acks():
                return False
            now = now_ns(CLOCK_MONOTONIC)
            if wake > now:
                self.wait(min(wake, end) - min(now, end))
                now = now_ns(CLOCK_MONOTONIC)
        return True

    cdef bint take_last_acks(self) noexcept nogil:
        cdef uint64_t patience = now_ns(CLOCK_MONOTONIC) + <uint64_t>PATIENCE_S * NS_PER_S
        if self.histogram is NULL:
            return True
        while self.take_acks():
            if self.first_sequence > self.last_sequence:
                return True
            if now_ns(CLOCK_MONOTONIC) > patience:
                return False
            self.wait(NS_PER_S // 100)
        return False

    def run(self, double seconds, *, double rate=0.0, uint64_t tick_ns=1000000, records=None) -> None:
        """Produce for so long: at full speed, or `rate` records a second, put in ticks at least `tick_ns` apart.

        `records` ends it earlier. Raises RuntimeError when a record failed or was not acknowledged within a minute.
        """
        cdef uint64_t start = now_ns(CLOCK_MONOTONIC)
        cdef uint64_t end = start + <uint64_t>(seconds * 1e9)
        cdef uint64_t records_max = 1 << 62 if records is None else records
        cdef bint went_well
        self.records = self.acked = self.full = self.late_ns_max = self.latency_ns_max = 0
        self.first_sequence, self.last_sequence = 1, 0
        if self.histogram is not NULL:
            memset(self.histogram, 0, BUCKETS * sizeof(uint32_t))
            self.owner.set_ack_interest(True)
        with nogil:
            prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
            if rate > 0:
                went_well = self.paced(start, end, rate, tick_ns)
            else:
                went_well = self.at_full_speed(end, records_max)
            went_well = went_well and self.take_last_acks()
            prctl(PR_SET_TIMERSLACK, 0, 0, 0, 0)
        if not went_well:
            raise RuntimeError("a record failed, or was not acknowledged within a minute")

    def latency_us(self, double share) -> float:
        """The latency that so many (0.99: 99 %) of the records do not exceed."""
        cdef uint64_t needed = <uint64_t>(share * self.acked)
        cdef uint64_t seen = 0
        cdef uint64_t i
        if self.histogram is NULL or self.acked == 0:
            raise ValueError("no latencies were measured")
        for i in range(BUCKETS):
            seen += self.histogram[i]
            if seen > needed or seen == self.acked:
                return i + 1.0
        return <double>BUCKETS
