"""Many connections that publish and wait for acknowledgements, on one thread without the GIL; and a bare echo server to
compare with. Built on demand by bench.native.

The connections are made beforehand. Each sends one packet over and over; where it holds a packet identifier, that counts
up. An acknowledgement is so many bytes, or so many lines.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcpy, memset

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    enum: CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)
    enum: EPOLLIN, EPOLL_CTL_ADD

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void*, size_t, int)
    ssize_t send(int, const void*, size_t, int)
    int accept4(int, void*, void*, int)
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, SOCK_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    int close(int)

cdef enum:
    NS_PER_S = 1000000000
    READ_BYTES = 65536
    EVENTS = 1024
    BUCKETS = 2000000               # of 1 µs
    PATIENCE_S = 30

cdef struct Sender:
    int fd
    uint16_t packet_id              # of the next packet
    uint32_t outstanding
    uint32_t part                   # of an acknowledgement that is not whole
    uint64_t sent
    uint64_t acknowledged


cdef inline uint64_t now_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * NS_PER_S + now.tv_nsec


cdef class Publishers:
    """descriptors: of connected, blocking sockets. packet: what each sends. id_at: where in it the packet identifier is, or
    -1; with `id_text` three digits with the connection's number are there instead. ack_bytes: of one acknowledgement; 0: it is `ack_lines` lines. Counters are of the last `run`."""

    cdef Sender* senders
    cdef uint32_t count
    cdef uint8_t* packets           # `window` of them
    cdef size_t packet_bytes
    cdef int id_at
    cdef bint id_text
    cdef uint32_t ack_bytes
    cdef uint32_t ack_lines
    cdef uint32_t window
    cdef uint64_t* sent_at          # [sender][window]
    cdef uint32_t* histogram
    cdef int epoll
    cdef uint8_t[READ_BYTES] buffer
    cdef readonly uint64_t acknowledged
    cdef readonly uint64_t sent
    cdef readonly uint64_t skipped  # paced: not sent, because too many were unacknowledged
    cdef readonly uint64_t cpu_ns
    cdef readonly uint64_t elapsed_ns

    def __cinit__(self, descriptors, bytes packet, *, uint32_t window, int id_at=-1, bint id_text=False,
                  uint32_t ack_bytes=0, uint32_t ack_lines=0):
        cdef epoll_event event
        cdef uint32_t i
        if (ack_bytes == 0) == (ack_lines == 0) or window < 1:
            raise ValueError("an acknowledgement is so many bytes or so many lines; the window is at least 1")
        self.count, self.window = len(descriptors), window
        self.packet_bytes, self.id_at, self.id_text = len(packet), id_at, id_text
        self.ack_bytes, self.ack_lines = ack_bytes, ack_lines
        self.senders = <Sender*>calloc(self.count, sizeof(Sender))
        self.packets = <uint8_t*>malloc(window * self.packet_bytes)
        self.sent_at = <uint64_t*>calloc(<size_t>self.count * window, sizeof(uint64_t))
        self.histogram = <uint32_t*>calloc(BUCKETS, sizeof(uint32_t))
        self.epoll = epoll_create1(0)
        if self.senders is NULL or self.packets is NULL or self.sent_at is NULL or self.histogram is NULL \
                or self.epoll < 0:
            raise MemoryError()
        for i in range(window):
            memcpy(self.packets + i * self.packet_bytes, <const char*>packet, self.packet_bytes)
        for i in range(self.count):
            self.senders[i].fd = descriptors[i]
            self.senders[i].packet_id = 1
            event.events = EPOLLIN
            event.data.u32 = i
            if epoll_ctl(self.epoll, EPOLL_CTL_ADD, self.senders[i].fd, &event):
                raise OSError(errno, "epoll_ctl")

    def __dealloc__(self):
        free(self.senders)
        free(self.packets)
        free(self.sent_at)
        free(self.histogram)
        if self.epoll >= 0:
            close(self.epoll)

    cdef bint publish(self, uint32_t index, uint32_t count) noexcept nogil:
        """So many at once, at most the window."""
        cdef Sender* sender = &self.senders[index]
        cdef uint64_t now = now_ns(CLOCK_MONOTONIC)
        cdef uint8_t* id
        cdef size_t size = count * self.packet_bytes
        cdef size_t at = 0
        cdef ssize_t taken
        cdef uint32_t i
        for i in range(count):
            if self.id_text:
                id = self.packets + i * self.packet_bytes + self.id_at
                id[0], id[1], id[2] = 48 + index // 100 % 10, 48 + index // 10 % 10, 48 + index % 10
            elif self.id_at >= 0:
                id = self.packets + i * self.packet_bytes + self.id_at
                id[0] = sender.packet_id >> 8
                id[1] = <uint8_t>sender.packet_id
                sender.packet_id = sender.packet_id + 1 if sender.packet_id < 65535 else 1
            self.sent_at[<size_t>index * self.window + sender.sent % self.window] = now
            sender.sent += 1
        sender.outstanding += count
        self.sent += count
        while at < size:
            taken = send(sender.fd, self.packets + at, size - at, MSG_NOSIGNAL)
            if taken < 0 and errno != EINTR:
                return False
            at += max(taken, 0)
        return True

    cdef uint32_t acks_in(self, Sender* sender, size_t size) noexcept nogil:
        """Acknowledgements that end in what was read."""
        cdef uint32_t units = 0
        cdef uint32_t each = self.ack_bytes
        cdef const uint8_t* at = self.buffer
        cdef const uint8_t* end = at + size
        if each:
            units = <uint32_t>size
        else:
            each = self.ack_lines
            while at < end:
                at = <const uint8_t*>memchr(at, c'\n', end - at)
                if at is NULL:
                    break
                units += 1
                at += 1
        units += sender.part
        sender.part = units % each
        return units // each

    cdef int take(self, uint32_t index) noexcept nogil:
        """Read acknowledgements: how many; -1: the connection is gone, or was told more than it asked."""
        cdef Sender* sender = &self.senders[index]
        cdef ssize_t size = recv(sender.fd, self.buffer, READ_BYTES, MSG_DONTWAIT)
        cdef uint64_t now, took
        cdef uint32_t count, i
        if size <= 0:
            return 0 if size < 0 and (errno == EAGAIN or errno == EINTR) else -1
        count = self.acks_in(sender, size)
        if count > sender.outstanding:
            return -1
        now = now_ns(CLOCK_MONOTONIC)
        for i in range(count):
            took = now - self.sent_at[<size_t>index * self.window + sender.acknowledged % self.window]
            self.histogram[min(took // 1000, <uint64_t>BUCKETS - 1)] += 1
            sender.acknowledged += 1
        sender.outstanding -= count
        self.acknowledged += count
        return <int>count

    cdef bint look(self, epoll_event* events, int timeout_ms, bint refill) noexcept nogil:
        cdef int count = epoll_wait(self.epoll, events, EVENTS, timeout_ms)
        cdef int i, acks
        for i in range(count):
            acks = self.take(events[i].data.u32)
            if acks < 0 or (refill and acks and not self.publish(events[i].data.u32, acks)):
                return False
        return True

    cdef bint closed_loop(self, epoll_event* events, uint64_t end) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            if not self.publish(i, self.window):
                return False
        while now_ns(CLOCK_MONOTONIC) < end:
            if not self.look(events, 100, True):
                return False
        return True

    cdef bint paced(self, epoll_event* events, uint64_t start, uint64_t end, double rate) noexcept nogil:
        """All connections in turn, so that each has its share of the rate at even distances."""
        cdef uint64_t number = 0
        cdef uint64_t now = start
        cdef uint64_t due
        cdef uint32_t index
        while now < end:
            due = <uint64_t>((now - start) * 1e-9 * rate) + 1
            while number < due:
                index = <uint32_t>(number % self.count)
                if self.senders[index].outstanding >= self.window:
                    self.skipped += 1
                elif not self.publish(index, 1):
                    return False
                number += 1
            if not self.look(events, 1, False):
                return False
            now = now_ns(CLOCK_MONOTONIC)
        return True

    cdef bint finish(self, epoll_event* events) noexcept nogil:
        cdef uint64_t patience = now_ns(CLOCK_MONOTONIC) + <uint64_t>PATIENCE_S * NS_PER_S
        while self.acknowledged < self.sent:
            if not self.look(events, 100, False) or now_ns(CLOCK_MONOTONIC) > patience:
                return False
        return True

    def run(self, double seconds, *, double rate=0.0) -> None:
        """Keep every window full for so long; or publish `rate` packets a second, over all connections in turn.

        Ends when the last acknowledgement is there. Raises RuntimeError when a connection is lost, when more is
        acknowledged than was sent, or when an acknowledgement does not come within half a minute.
        """
        cdef uint64_t start = now_ns(CLOCK_MONOTONIC)
        cdef uint64_t end = start + <uint64_t>(seconds * 1e9)
        cdef uint64_t cpu
        cdef bint went_well
        cdef epoll_event* events = <epoll_event*>malloc(EVENTS * sizeof(epoll_event))
        if events is NULL:
            raise MemoryError()
        self.acknowledged = self.sent = self.skipped = 0
        memset(self.histogram, 0, BUCKETS * sizeof(uint32_t))
        with nogil:
            cpu = now_ns(CLOCK_THREAD_CPUTIME_ID)
            if rate > 0:
                went_well = self.paced(events, start, end, rate)
            else:
                went_well = self.closed_loop(events, end)
            went_well = went_well and self.finish(events)
            self.elapsed_ns = now_ns(CLOCK_MONOTONIC) - start
            self.cpu_ns = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu
        free(events)
        if not went_well:
            raise RuntimeError(f"a connection was lost or stays unacknowledged: {self.sent} sent, {self.acknowledged} "
                               "acknowledged")

    def latency_us(self, double share) -> float:
        """The time from publish to acknowledgement that so many (0.99: 99 %) do not exceed."""
        cdef uint64_t needed = <uint64_t>(share * self.acknowledged)
        cdef uint64_t seen = 0
        cdef uint64_t i
        if self.acknowledged == 0:
            raise ValueError("nothing was acknowledged")
        for i in range(BUCKETS):
            seen += self.histogram[i]
            if seen > needed or seen == self.acknowledged:
                return i + 1.0
        return <double>BUCKETS


def echo(int listening) -> None:
    """Accept and send back whatever comes, for ever: the least that any server does. The process is ended by a signal."""
    cdef epoll_event* events = <epoll_event*>malloc(EVENTS * sizeof(epoll_event))
    cdef uint8_t* buffer = <uint8_t*>malloc(READ_BYTES)
    cdef int epoll = epoll_create1(0)
    cdef int count, i, fd
    cdef ssize_t size
    cdef epoll_event event
    if events is NULL or buffer is NULL:
        raise MemoryError()
    event.events = EPOLLIN
    event.data.u32 = <uint32_t>listening
    epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &event)
    with nogil:
        while True:
            count = epoll_wait(epoll, events, EVENTS, -1)
            for i in range(count):
                fd = <int>events[i].data.u32
                if fd == listening:
                    fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)
                    event.data.u32 = <uint32_t>fd
                    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)
                    continue
                size = recv(fd, buffer, READ_BYTES, MSG_DONTWAIT)
                if size > 0:
                    send(fd, buffer, size, MSG_NOSIGNAL)
                elif size == 0 or errno != EAGAIN:
                    close(fd)
