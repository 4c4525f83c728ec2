"""MQTT publishers' side of the wire, sans I/O. See mqtt.pxd for the contract."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memmove
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from gateway_native.mqtt_acks cimport (
    ACKS_FINE,
    ACKS_REFUSED,
    acks_forget,
    acks_make_room,
    acks_mark_refused,
    acks_push,
    acks_release,
    acks_unlist,
)
from gateway_native.mqtt_headers cimport variable_integer
from gateway_native.mqtt_publish cimport fault, fault_of_topic, publish
from gateway_native.mqtt_routes cimport MqttRoute, filter_matches, route_find
from gateway_native.mqtt_text cimport TEXT_OK, text_check
from gateway_native.ring cimport Ring, ring_confirm_refusals, ring_publish, ring_refusals_pending

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_seq(const uint64_t*)

cdef enum:
    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15

    NOT_SENT = 0xFF                 # in FLAGS_OF_TYPE

# MQTT 5 reason code, and the sentence that a log line says after "closed:".
FAULTS = (
    (0x00, "nothing is wrong"),
    (0x82, "the first packet is not the one that opens a connection"),
    (0x82, "a packet of a type that its side does not send"),
    (0x81, "reserved flags of the fixed header are wrong"),
    (0x81, "the length of a packet is malformed"),
    (0x95, "a packet is larger than allowed"),
    (0x81, "a field reaches beyond the end of its packet"),
    (0x81, "a publish has QoS 3"),
    (0x9B, "a publish has QoS 2; this gateway takes 0 and 1"),
    (0x81, "a publish with QoS 0 is marked as a duplicate"),
    (0x82, "a publish has an empty topic"),
    (0x81, "a topic is not UTF-8"),
    (0x81, "a topic contains U+0000"),
    (0x81, "a publish has a topic with + or #"),
    (0x82, "a publish with QoS 1 has packet identifier 0"),
    (0x81, "a publish has a property that a publish cannot have"),
    (0x82, "a publish has the same property twice"),
    (0x82, "a property of a publish has a value outside its range"),
    (0x81, "a property of a publish is not UTF-8, or contains U+0000"),
    (0x94, "a publish has a topic alias; this gateway takes none"),
    (0x82, "a publish has a subscription identifier"),
    (0x93, "more publishes are unacknowledged than allowed"),
    (0x90, "no route takes the topic of a publish with QoS 1"),
    (0x97, "no memory is left for a packet that arrives"),
    (0x95, "a publish would become a record larger than allowed"),
)

# Flags each packet type must have [MQTT-2.2.2-2]; PUBLISH has its own rules.
cdef uint8_t[2][16] FLAGS_OF_TYPE = [
    # From clients: no CONNACK, SUBACK, UNSUBACK, PINGRESP. From servers: the other way round; CONNACK only once.
    [NOT_SENT, 0, NOT_SENT, 0, 0, 0, 2, 0, 2, NOT_SENT, 2, NOT_SENT, 0, NOT_SENT, 0, 0],
    [NOT_SENT, NOT_SENT, NOT_SENT, 0, 0, 0, 2, 0, NOT_SENT, 0, NOT_SENT, 0, NOT_SENT, 0, 0, 0],
]


class RemoteFault(Exception):
    """The peer broke the protocol, or asked for what is not offered; the only error that received bytes can cause.

    ``reason`` is the MQTT 5 reason code to answer with, ``cause`` what a log line says. Neither holds anything that
    the peer sent.
    """

    def __init__(self, reason, cause):
        super().__init__(f"{cause} (reason code 0x{reason:02X})")
        self.reason = reason
        self.cause = cause


# -- the packets of a buffer -------------------------------------------------------------------------------------------

cdef uint8_t fault_of_first_byte(uint8_t role, MqttConnection* connection, uint8_t first_byte) noexcept nogil:
    """Judged as soon as it is there: garbage need not be awaited to its end."""
    cdef uint8_t flags
    if connection.version == 0:             # [MQTT-3.1.0-1], [MQTT-3.2.0-1]
        return FAULT_NONE if first_byte == (CONNECT if role == ROLE_SERVER else CONNACK) << 4 else FAULT_FIRST_PACKET
    if first_byte >> 4 == PUBLISH:
        return FAULT_NONE
    flags = FLAGS_OF_TYPE[role][first_byte >> 4]
    if flags == NOT_SENT or (first_byte >> 4 == AUTH and connection.version != 5):
        return FAULT_TYPE
    if first_byte >> 4 == DISCONNECT and role == ROLE_CLIENT and connection.version != 5:
        return FAULT_TYPE
    return FAULT_NONE if first_byte & 15 == flags else FAULT_FLAGS


cdef int packet_begin(
    MqttGroup* group, MqttConnection* connection, const uint8_t* at, size_t left,
) noexcept nogil:
    """Read a fixed header into header_bytes and body_bytes. STOP_NONE when the packet is whole."""
    cdef uint8_t wrong = fault_of_first_byte(group.role, connection, at[0])
    cdef uint64_t limit = group.packet_bytes_max
    cdef int width
    if wrong:
        return fault(connection, wrong)
    width = variable_integer(at + 1, left - 1, connection.version == 5, &connection.body_bytes)
    if width < 0:
        return fault(connection, FAULT_LENGTH)
    if width == 0:
        connection.need = left + 1
        return STOP_END
    connection.header_bytes = 1 + width
    connection.need = <uint64_t>connection.header_bytes + connection.body_bytes
    if at[0] >> 4 != PUBLISH and limit > CONTROL_BYTES_MAX:
        limit = CONTROL_BYTES_MAX
    if connection.need > limit:
        if group.role == ROLE_CLIENT and at[0] >> 4 == PUBLISH:
            return oversized(connection, left)
        return fault(connection, FAULT_TOO_LARGE)
    return STOP_NONE if connection.need <= left else STOP_END


cdef int oversized(MqttConnection* connection, size_t left) noexcept nogil:
    """A broker's publish larger than allowed: the driver gets its beginning, the rest is passed over.

    MQTT 3.1.1 has no way to tell a broker of a limit, and one that never gets its PUBACK sends it again and again.
    """
    cdef uint64_t whole = connection.need
    connection.need = min(whole, <uint64_t>OVERSIZED_BYTES)
    if connection.need > left:
        return STOP_END
    connection.body_bytes = <uint32_t>(connection.need - connection.header_bytes)
    connection.skip = whole - connection.need
    return STOP_PACKET


cdef inline void pass_over(MqttConnection* connection, size_t size, size_t* position) noexcept nogil:
    """What is left of an oversized publish."""
    cdef uint64_t count = min(connection.skip, <uint64_t>(size - position[0]))
    position[0] += count
    connection.skip -= count


cdef int mqtt_parse(
    MqttGroup* group, MqttConnection* connection, const uint8_t* data, size_t size, size_t* position,
) noexcept nogil:
    cdef const uint8_t* at
    cdef int stop = STOP_NONE
    cdef int64_t time_ns = group.clock_ns
    cdef timespec now
    if time_ns == 0:
        clock_gettime(CLOCK_REALTIME, &now)
        time_ns = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
    if connection.skip:
        pass_over(connection, size, position)
    while stop == STOP_NONE:
        if position[0] == size:
            stop = STOP_END
            break
        at = data + position[0]
        stop = packet_begin(group, connection, at, size - position[0])
        if stop != STOP_NONE:
            break
        if at[0] >> 4 == PUBLISH:
            stop = publish(group, connection, at[0], at + connection.header_bytes, connection.body_bytes, time_ns)
        elif at[0] >> 4 == PINGREQ:
            if connection.body_bytes:
                stop = fault(connection, FAULT_LENGTH)
            else:
                connection.pings += 1
        elif at[0] >> 4 == PINGRESP:
            if connection.body_bytes:
                stop = fault(connection, FAULT_LENGTH)
        else:
            stop = STOP_PACKET
        if stop == STOP_NONE:
            position[0] += connection.need
    ring_publish(group.ring)
    connection.stop = <uint8_t>stop
    return stop


# -- the objects of Python's side -------------------------------------------------------------------------------------


def filter_match(bytes filter not None, bytes topic not None) -> bool:
    """Does a topic name match a topic filter (MQTT 5 section 4.7)? Both must be valid."""
    return filter_matches(<const uint8_t*><const char*>filter, len(filter), <const uint8_t*><const char*>topic,
                          len(topic))


def is_text(bytes text not None) -> bool:
    """Is this a UTF-8 string as MQTT wants it: well-formed, no surrogates, no U+0000 (MQTT 5 section 1.5.4)?"""
    return text_check(<const uint8_t*><const char*>text, len(text), False) == TEXT_OK


def is_topic(bytes topic not None) -> bool:
    """Is this a valid topic name: text of 1 to 65535 bytes without wildcards?"""
    return len(topic) <= 65535 and fault_of_topic(<const uint8_t*><const char*>topic, len(topic)) == FAULT_NONE


cdef class Routes:
    """Topic filters and the partitions they lead to; the first filter that matches a topic decides.

    routes: (filter as UTF-8, partition) in their order. Filters must be valid; `gateway_adapters.mqtt.routes` sees to
    that.
    """

    def __cinit__(self, routes):
        cdef bytes filter
        cdef size_t at = 0
        cdef MqttRoute* route
        self.filters = tuple([filter for filter, _ in routes])
        self.partitions = tuple([partition for _, partition in routes])
        self.table.routes = <MqttRoute*>calloc(len(self.filters) + 1, sizeof(MqttRoute))
        self.table.text = <uint8_t*>malloc(sum([len(filter) for filter in self.filters]) + 1)
        if self.table.routes == NULL or self.table.text == NULL:
            raise MemoryError(f"no memory for {len(self.filters)} routes")
        for filter, partition in zip(self.filters, self.partitions):
            if not filter:
                raise ValueError("a route's topic filter is empty")
            wildcards = [index for index in (filter.find(b"+"), filter.find(b"#")) if index >= 0]
            route = &self.table.routes[self.table.count]
            route.filter = self.table.text + at
            route.filter_bytes = <uint32_t>len(filter)
            route.literal_bytes = min(wildcards, default=len(filter))
            route.wild = 1 if wildcards else 0
            route.partition = partition
            memcpy(self.table.text + at, <const char*>filter, len(filter))
            at += len(filter)
            self.table.count += 1

    def __dealloc__(self):
        free(self.table.routes)
        free(self.table.text)

    def __len__(self) -> int:
        return self.table.count

    def find(self, bytes topic not None):
        """Index of the route that a topic takes, or None."""
        cdef const MqttRoute* route = route_find(&self.table, <const uint8_t*><const char*>topic, len(topic))
        return None if route == NULL else <size_t>(route - self.table.routes)


cdef class Window:
    """The memory that the next received bytes go to. Valid until they were taken, which drivers do at once."""

    def __cinit__(self):
        self.shared = <uint8_t*>malloc(SHARED_BYTES)
        if self.shared == NULL:
            raise MemoryError("no memory for a group's receive buffer")

    def __dealloc__(self):
        free(self.shared)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.size, False, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass

    def __len__(self) -> int:
        return self.size


cdef class Group:
    """What the connections of one listening socket, or to one broker, share: ring, routes, receive buffer, counters.

    ring: this group's own; nothing else may produce into it from another thread. packet_bytes_max: of one packet,
    fixed header included. record_bytes_max: key, value and headers of one record. kept_bytes_max: of all packets that
    have only partly arrived. clock_ns: a fixed receive time instead of the system's, for tests. client: we are the
    client at the other end, a broker; `take` then also returns, as (3, flags, body), publishes that are too large.
    """

    def __cinit__(self, Ring ring not None, Routes routes not None, *, uint64_t packet_bytes_max,
                  uint64_t record_bytes_max, uint64_t kept_bytes_max, int64_t clock_ns=0, bint client=False):
        self.ring = ring
        self.state.ring = ring.state
        self.state.packet_bytes_max = packet_bytes_max
        # A record that can never fit would wait for ever.
        self.state.record_bytes_max = min(record_bytes_max, <uint64_t>ring.largest_record)
        self.state.clock_ns = clock_ns
        self.state.role = ROLE_CLIENT if client else ROLE_SERVER
        self.kept_bytes_max = kept_bytes_max
        self.set_routes(routes)
        self.window = Window()
        self.out = <uint8_t*>malloc(ACKS_MAX * PUBACK_BYTES_MAX)
        if self.out == NULL:
            raise MemoryError("no memory for a group's acknowledgements")

    def __dealloc__(self):
        free(self.out)

    def set_routes(self, Routes routes not None) -> None:
        """From the next packet on."""
        cdef uint32_t partitions = self.ring.state.partitions
        for partition in routes.partitions:
            if partition >= partitions:
                raise IndexError(f"partition {partition} of {partitions}")
        self.routes = routes
        self.state.routes = &routes.table

    def advance(self) -> None:
        """A second has passed. Counted here rather than read from a clock: a stalled loop kills no healthy client."""
        self.tick += 1

    @property
    def crowded(self) -> bool:
        """Connections wait for room in the ring."""
        return self.state.crowded

    def has_room(self) -> bool:
        """Did the ring report room since a connection had to stop?"""
        return gw_load_seq(&self.state.ring.waiting) == 0

    def reopen(self) -> None:
        """Let connections try again; call `retry` of those that wait, in their order, until `crowded` again."""
        self.state.crowded = False

    def crowd(self) -> None:
        """Nobody may pass from here on: a record from elsewhere found the ring full."""
        self.state.crowded = True

    def release(self) -> list:
        """Send the acknowledgements that may leave; return the connections whose next one never will.

        Per connection one write, in publish order.
        """
        cdef list writes = []
        cdef list failures = []
        cdef MqttConnection* connection = self.state.waiting
        cdef MqttConnection* following
        cdef size_t size
        cdef int trouble
        self.settle_refusals()
        # First collect, then write: writing runs other code, which may close connections.
        while connection != NULL:
            following = connection.next
            owner = <Connection>connection.owner
            size = acks_release(&self.state, connection, self.out, &trouble)
            if size:
                writes.append((owner, PyBytes_FromStringAndSize(<const char*>self.out, size)))
            if trouble != ACKS_FINE:
                (<Connection>owner).refused = trouble == ACKS_REFUSED
                failures.append(owner)
            connection = following
        for owner, data in writes:
            if owner.write is not None:
                owner.write(data)
        return failures

    cdef void settle_refusals(self) noexcept:
        """Before the writer takes records again of a stream whose disk was full, every refused publish gets its answer."""
        cdef MqttConnection* connection = self.state.waiting
        if not ring_refusals_pending(self.state.ring):
            return
        while connection != NULL:
            acks_mark_refused(&self.state, connection)
            connection = connection.next
        ring_confirm_refusals(self.state.ring)

    @property
    def unrouted_topic(self) -> bytes:
        """The last topic that no route took, cut to 256 bytes."""
        return (<const char*>self.state.unrouted_topic)[:self.state.unrouted_topic_bytes]

    @property
    def counters(self) -> dict:
        return {
            "records": self.state.records,
            "bytes": self.state.bytes,
            "retained": self.state.retained,
            "unrouted": self.state.unrouted,
            "acknowledged": self.state.acknowledged,
            "refused_full_disk": self.state.refused,
            "unacknowledged": self.state.pending,
            "stopped_for_room": self.state.stopped,
            "kept_bytes": self.kept_bytes,
        }


# A connection unlinks itself from the group's list when it goes, so its `group` must still be there then.
@cython.no_gc_clear
cdef class Connection:
    """One peer. Speaks asyncio's buffered protocol: `get_buffer` and `buffer_updated`, with no wait between the two.

    When the parser stops for anything but the end of the buffer, `buffer_updated` calls `attend`, which a subclass
    overrides: it calls `take` until that returns None, and then looks at `blocked`.
    """

    def __cinit__(self, Group group not None):
        self.group = group
        self.state.owner = <void*>self
        self.seen = group.tick

    def __dealloc__(self):
        if not self.closed:
            acks_unlist(&self.group.state, &self.state)
            self.group.state.pending -= self.state.acks_count
            self.group.kept_bytes -= self.kept_capacity
        free(self.kept)
        free(self.state.acks)

    # -- receiving

    def get_buffer(self, Py_ssize_t sizehint) -> Window:
        """Where to receive to: the shared buffer behind what is kept, or the rest of a large packet's own buffer."""
        cdef Group group = self.group
        cdef Window window = group.window
        if self.direct:
            window.data = self.kept + self.kept_size
            window.size = self.kept_capacity - self.kept_size
        else:
            if self.kept_size > SHARED_BYTES - CROWDED_BYTES:
                raise RuntimeError("a connection that waits for room in the ring must not be read from")
            if self.kept_size:
                memcpy(window.shared, self.kept + self.kept_start, self.kept_size)
            window.data = window.shared + self.kept_size
            window.size = SHARED_BYTES - self.kept_size
        if group.state.crowded and window.size > CROWDED_BYTES:
            window.size = CROWDED_BYTES
        return window

    def buffer_updated(self, Py_ssize_t count) -> None:
        """So many bytes were received into the buffer last given."""
        if self.closed or count <= 0:
            return
        self.data = self.kept if self.direct else self.group.window.shared
        self.size = self.kept_size + count
        self.position = 0
        if self.state.version:
            self.seen = self.group.tick
        if not self.blocked:                # else the driver had read already when it paused: kept for later
            self.parse()
        if (self.state.stop == STOP_END or self.blocked) and not self.state.pings and not self.state.refused:
            self.keep()
        if self.data != NULL:
            self.attend()

    def attend(self) -> None:
        """The parser stopped; for subclasses to override."""

    def take(self):
        """The next packet that needs a decision as (type, flags, body); None when all that arrived was looked at.

        Raises RemoteFault when the peer broke the protocol; the connection must then be closed.
        """
        cdef object packet
        if self.closed or self.data == NULL:
            return None
        if self.state.stop == STOP_NONE:
            self.parse()
        if self.state.stop == STOP_PACKET:
            packet = (
                self.data[self.position] >> 4,
                self.data[self.position] & 15,
                PyBytes_FromStringAndSize(<const char*>self.data + self.position + self.state.header_bytes,
                                          self.state.body_bytes),
            )
            self.position += self.state.need
            self.state.stop = STOP_NONE
            return packet
        self.answer()
        if self.state.stop == STOP_ROOM:
            self.blocked = True
            self.group.state.crowded = True
            self.group.state.stopped += 1
        if self.state.stop != STOP_FAULT:
            self.keep()
        if self.state.stop == STOP_FAULT:
            self.data = NULL
            reason, cause = FAULTS[self.state.fault]
            raise RemoteFault(reason, cause)
        return None

    def retry(self) -> None:
        """There may be room in the ring again: go on where it stopped."""
        if self.closed or not self.blocked:
            return
        self.blocked = False
        self.seen = self.group.tick
        self.data = self.kept + self.kept_start
        self.size = self.kept_size
        self.position = 0
        self.state.stop = STOP_NONE
        self.attend()

    cdef void parse(self) noexcept:
        cdef size_t left = self.size - self.position
        if left < NOGIL_BYTES:
            mqtt_parse(&self.group.state, &self.state, self.data, self.size, &self.position)
        else:
            with nogil:
                mqtt_parse(&self.group.state, &self.state, self.data, self.size, &self.position)

    cdef int answer(self) except -1:
        """Send what waits for nobody: PINGRESP, and refusals whose turn it is."""
        cdef uint32_t pings = self.state.pings
        cdef size_t size
        cdef int trouble
        self.state.pings = 0
        if pings and self.write is not None:
            self.write(b"\xd0\x00" * pings)
        if self.state.refused:
            self.state.refused = 0
            size = acks_release(&self.group.state, &self.state, self.group.out, &trouble)
            if size and self.write is not None:
                self.write(PyBytes_FromStringAndSize(<const char*>self.group.out, size))
        return 0

    # -- what is left of a buffer

    cdef void keep(self) noexcept:
        """Keep what was not parsed, in as little memory as will do. `data` is NULL then, or `stop` is STOP_FAULT."""
        cdef const uint8_t* rest = self.data + self.position
        cdef size_t left = self.size - self.position
        cdef size_t capacity = left
        cdef bint own = self.kept != NULL and self.data == self.kept + self.kept_start
        self.direct = False
        if left == 0:
            self.drop_kept()
            self.data = NULL
        elif self.state.stop == STOP_END and self.state.need > DIRECT_BYTES:
            # Grows with what has really arrived: a length alone must not cost memory.
            self.direct = True
            capacity = min(self.state.need, max(2 * left, <size_t>DIRECT_BYTES))
            self.keep_in(rest, left, capacity)
        elif own and left >= self.kept_capacity // 4:
            self.kept_start += self.position
            self.kept_size = left
            self.data = NULL
        else:
            self.keep_in(rest, left, capacity)

    cdef void keep_in(self, const uint8_t* rest, size_t left, size_t capacity) noexcept:
        """Move `left` bytes into a buffer of `capacity`; they may lie in the present one."""
        cdef uint8_t* block = NULL
        if self.kept_capacity >= capacity and self.kept_capacity // 4 <= capacity:
            memmove(self.kept, rest, left)
        else:
            if self.group.kept_bytes - self.kept_capacity + capacity <= self.group.kept_bytes_max:
                block = <uint8_t*>malloc(capacity)
            if block == NULL:
                self.state.stop = STOP_FAULT
                self.state.fault = FAULT_MEMORY
                return
            memcpy(block, rest, left)
            self.drop_kept()
            self.kept = block
            self.kept_capacity = capacity
            self.group.kept_bytes += capacity
        self.kept_start = 0
        self.kept_size = left
        self.data = NULL

    cdef void drop_kept(self) noexcept:
        self.group.kept_bytes -= self.kept_capacity
        free(self.kept)
        self.kept = NULL
        self.kept_capacity = self.kept_start = self.kept_size = 0

    # -- what the driver decides

    def open(self, *, int version, uint32_t inflight_max) -> None:
        """CONNECT was accepted. version: 4 (MQTT 3.1.1) or 5. inflight_max: unacknowledged publishes allowed."""
        if version not in (4, 5):
            raise ValueError(f"MQTT protocol level {version}; 4 and 5 are known")
        if not 1 <= inflight_max <= ACKS_MAX:
            raise ValueError(f"inflight_max is 1 to {ACKS_MAX}, not {inflight_max}")
        self.state.version = <uint8_t>version
        self.state.inflight_max = inflight_max
        self.seen = self.group.tick

    def close(self) -> int:
        """Nothing more is parsed, written or acknowledged. Returns the acknowledgements that never left."""
        cdef uint32_t lost = self.state.acks_count
        if self.closed:
            return 0
        self.closed = True
        self.write = None
        self.data = NULL
        if lost:
            acks_forget(&self.group.state, &self.state, lost)
        free(self.state.acks)
        self.state.acks = NULL
        self.state.acks_capacity = 0
        self.direct = self.blocked = False
        self.drop_kept()
        return lost

    def acknowledge(self, int packet_id) -> None:
        """Send PUBACK for a publish that `take` returned, after those before it. MemoryError leaves it to be sent again."""
        if self.closed:
            return
        if not acks_make_room(&self.state):
            raise MemoryError("no memory for an acknowledgement")
        acks_push(&self.group.state, &self.state, <uint16_t>packet_id, 0, 0, 0)
        if self.data == NULL:
            self.answer()

    @property
    def passed_over(self) -> int:
        """Bytes of the publish just taken that lie behind its `body`, because it is larger than allowed."""
        return self.state.skip

    @property
    def kept_data(self) -> bytes:
        """What has arrived and was not parsed, because it is not whole or the ring is full."""
        return (<const char*>self.kept)[self.kept_start:self.kept_start + self.kept_size] if self.kept_size else b""

    def trim(self) -> None:
        """Give back the acknowledgement buffer of a connection that has gone quiet."""
        if self.state.acks_count == 0 and self.state.acks_capacity > 8:
            free(self.state.acks)
            self.state.acks = NULL
            self.state.acks_capacity = 0

    @property
    def version(self) -> int:
        """4, 5, or 0 before CONNECT was accepted."""
        return self.state.version

    @property
    def unacknowledged(self) -> int:
        """Publishes taken whose acknowledgement has not left."""
        return self.state.acks_count

    @property
    def overdue(self) -> bool:
        """Silent for longer than `patience`. One that waits for room in the ring is not: nobody reads from it."""
        return self.patience != 0 and not self.blocked and self.group.tick - self.seen > self.patience
