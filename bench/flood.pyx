"""What loads an MQTT listener or broker for measurements: QoS 0 PUBLISH packets, as fast as the other side takes them.

One thread without the GIL. Built on demand by bench.native. Packets are prepared beforehand, several to a block, and
only the digits in their topics change from one block to the next; connections take turns, a block each. A send that
blocks is how the other side says that it has enough.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int, timespec*)
    enum: CLOCK_MONOTONIC

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int, const void*, size_t, int)
    ssize_t recv(int, void*, size_t, int)
    enum: MSG_NOSIGNAL, MSG_WAITALL

cdef extern from "<errno.h>" nogil:
    int errno
    enum: EINTR

cdef enum:
    NS_PER_S = 1000000000
    BLOCK_BYTES = 262144            # sent at once over a single connection
    BLOCK_MESSAGES = 2000           # at most, shared by the connections
    TOPIC_BYTES = 20
    TOPIC_DIGITS = 7                # at its end

cdef const char* TOPIC = b"plant/sensor-0000000"
# How a broker says that it has seen everything before: MQTT 3.1.1, sections 3.12 and 3.13.
cdef const char* PINGREQ = b"\xc0\x00"


cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * NS_PER_S + now.tv_nsec


cdef class Flood:
    """Publishes over sockets whose CONNECT was accepted; they stay the caller's, blocking, and open meanwhile.

    payload_bytes: of each message. topics: how many different ones, in turn, up to 10,000,000.
    """

    cdef int* sockets
    cdef size_t connections
    cdef uint8_t* block
    cdef size_t packet_bytes
    cdef size_t topic_at            # in a packet
    cdef size_t messages_a_block
    cdef uint64_t topics
    cdef uint64_t topic
    cdef readonly uint64_t messages  # sent by the last `run`

    def __cinit__(self, descriptors, size_t payload_bytes, uint64_t topics):
        cdef size_t i
        if not 1 <= topics <= 10**TOPIC_DIGITS:
            raise ValueError(f"1 to {10**TOPIC_DIGITS} topics")
        self.connections, self.topics = len(descriptors), topics
        head = _head(payload_bytes)
        self.topic_at = len(head)
        self.packet_bytes = len(head) + TOPIC_BYTES + payload_bytes
        self.messages_a_block = max(1, min(BLOCK_BYTES // self.packet_bytes, BLOCK_MESSAGES // self.connections))
        self.sockets = <int*>calloc(self.connections, sizeof(int))
        self.block = <uint8_t*>malloc(self.messages_a_block * self.packet_bytes)
        if self.sockets is NULL or self.block is NULL:
            raise MemoryError()
        for i in range(self.connections):
            self.sockets[i] = descriptors[i]
        for i in range(self.messages_a_block):
            self.prepare(self.block + i * self.packet_bytes, head)

    def __dealloc__(self):
        free(self.sockets)
        free(self.block)

    cdef int prepare(self, uint8_t* packet, bytes head) except -1:
        memcpy(packet, <const char*>head, self.topic_at)
        memcpy(packet + self.topic_at, TOPIC, TOPIC_BYTES)
        memset(packet + self.topic_at + TOPIC_BYTES, ord("x"), self.packet_bytes - self.topic_at - TOPIC_BYTES)
        return 0

    cdef void number(self) noexcept nogil:
        """The next topics into the packets of the block."""
        cdef size_t i, digit
        cdef uint64_t rest
        cdef uint8_t* last
        if self.topics == 1:
            return
        for i in range(self.messages_a_block):
            last = self.block + i * self.packet_bytes + self.topic_at + TOPIC_BYTES - 1
            rest = self.topic
            for digit in range(TOPIC_DIGITS):
                last[0] = <uint8_t>(48 + rest % 10)
                rest //= 10
                last -= 1
            self.topic = self.topic + 1 if self.topic + 1 < self.topics else 0

    cdef bint publish(self, uint64_t end, uint64_t messages_max) noexcept nogil:
        """False: a connection broke."""
        cdef size_t i
        while now_ns() < end:
            for i in range(self.connections):
                if self.messages >= messages_max:
                    return True
                self.number()
                if not send_all(self.sockets[i], self.block, self.messages_a_block * self.packet_bytes):
                    return False
                self.messages += self.messages_a_block
        return True

    cdef bint settle(self) noexcept nogil:
        """Until the other side has taken everything: it answers in order. False: a connection broke."""
        cdef uint8_t[2] answer
        cdef size_t i
        for i in range(self.connections):
            if not send_all(self.sockets[i], <const uint8_t*>PINGREQ, 2):
                return False
        for i in range(self.connections):
            if recv(self.sockets[i], answer, 2, MSG_WAITALL) != 2 or answer[0] != 0xd0:
                return False
        return True

    def run(self, double seconds, uint64_t messages_max) -> None:
        """Publish for so long, or so many; returns when the other side has answered that it has taken all.

        Raises RuntimeError when a connection broke.
        """
        cdef uint64_t end = now_ns() + <uint64_t>(seconds * 1e9)
        cdef bint went_well
        self.messages = 0
        with nogil:
            went_well = self.publish(end, messages_max) and self.settle()
        if not went_well:
            raise RuntimeError(f"a connection broke after {self.messages} messages")


cdef bint send_all(int descriptor, const uint8_t* data, size_t size) noexcept nogil:
    cdef ssize_t sent
    while size:
        sent = send(descriptor, data, size, MSG_NOSIGNAL)
        if sent < 0:
            if errno == EINTR:
                continue
            return False
        data += sent
        size -= <size_t>sent
    return True


def _head(payload_bytes: int) -> bytes:
    """A packet up to its topic's first byte (MQTT 3.1.1, section 3.3)."""
    remaining, length = 2 + TOPIC_BYTES + payload_bytes, b""
    while True:
        remaining, part = remaining // 128, remaining % 128
        length += bytes([part | 128 if remaining else part])
        if not remaining:
            return b"\x30" + length + bytes([0, TOPIC_BYTES])
