"""MQTT publishers' side of the wire, sans I/O. See mqtt.pxd for the contract."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME

from gateway_native.mqtt_acks cimport (
    ACKS_FINE,
    ACKS_REFUSED,
    PUBACK,
    acks_forget,
    acks_make_room,
    acks_push,
    acks_push_again,
    acks_release,
    acks_settle_refusals,
)
from gateway_native.mqtt_aliases cimport ALIASES_MAX, aliases_drop
from gateway_native.mqtt_drops cimport MqttDrop
from gateway_native.mqtt_kept cimport kept_drop, kept_put
from gateway_native.mqtt_packets cimport PUBLISH, clock_now, packet_begin, packet_take, pass_over, rest
from gateway_native.mqtt_publish cimport publish, publish_receive
from gateway_native.mqtt_rate cimport rate_charge, rate_set
from gateway_native.mqtt_session cimport (
    PARTITION_NONE,
    MqttDelivery,
    session_find,
    session_make_room,
    session_reconnected,
    session_reconsider,
    spin_lock,
    spin_unlock,
)
from gateway_native.mqtt_topics cimport names_add, names_forget, topics_forget_all, topics_init, topics_memory
from gateway_native.ring cimport Ring, ring_publish

import secrets

from gateway_native.mqtt_faults import FAULTS, RemoteFault
from gateway_native.mqtt_routes import Routes, filter_match, is_text, is_topic
from gateway_native.mqtt_session import Session

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_seq(const uint64_t*)

cdef enum:
    SESSIONS_BYTES_MAX = 67108864   # identifiers of all sessions of a group, see MqttDelivery


cdef int mqtt_parse(
    MqttGroup* group, MqttConnection* connection, const uint8_t* data, size_t size, size_t* position,
) noexcept nogil:
    cdef const uint8_t* at
    cdef int stop = STOP_NONE
    cdef int64_t time_ns = clock_now(group, CLOCK_REALTIME)
    cdef bint limited = connection.rate.interval_ns or group.rate.interval_ns
    cdef int64_t steady_ns = clock_now(group, CLOCK_MONOTONIC) if limited else 0
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
        if at[0] >> 4 != PUBLISH:
            stop = packet_take(group, connection, at, time_ns)
        elif limited and rest(group, connection, steady_ns):
            stop = STOP_RATE
        else:
            stop = publish(group, connection, at[0], at + connection.header_bytes, connection.body_bytes, time_ns)
            if limited and stop == STOP_NONE:
                rate_charge(&connection.rate, steady_ns)
                rate_charge(&group.rate, steady_ns)
        if stop == STOP_NONE:
            position[0] += connection.need
    ring_publish(group.ring)
    connection.stop = <uint8_t>stop
    return stop


cdef void group_add_stream(
    MqttGroup* group, const uint8_t* name, uint32_t name_bytes, uint32_t partition,
) noexcept nogil:
    if not names_add(&group.names, group.topics.seed, name, name_bytes, partition):
        group.names.closed = True


cdef void group_set_routes(MqttGroup* group, const MqttRoutes* routes) noexcept nogil:
    group.routes = routes
    topics_forget_all(&group.topics)
    names_forget(&group.names)


cdef uint32_t connection_close(MqttGroup* group, MqttConnection* connection) noexcept nogil:
    cdef uint32_t lost = connection.acks_count
    if lost:
        acks_forget(group, connection, lost)
    free(connection.acks)
    connection.acks = NULL
    connection.acks_capacity = connection.received = 0
    aliases_drop(&connection.aliases)
    if connection.session != NULL:
        connection.session.attached = False
        connection.session = NULL
    connection.allow = NULL
    return lost


# -- the objects of Python's side -------------------------------------------------------------------------------------


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
    have only partly arrived. clock_ns: a fixed time instead of the system's, for tests. client: we
    are the client at the other end, a broker; `take` then also returns, as (3, flags, body), publishes that are too large.

    `resolve` is called with the name of a stream that a route's template gave and that is not known yet; it returns the
    partition and must not fail. Without it such records go to overflow.
    """

    def __cinit__(self, Ring ring not None, RoutesType routes not None, *, uint64_t packet_bytes_max,
                  uint64_t record_bytes_max, uint64_t kept_bytes_max, int64_t clock_ns=0, bint client=False):
        self.ring = ring
        self.state.ring = ring.state
        self.state.packet_bytes_max = packet_bytes_max
        # A record that can never fit would wait for ever.
        self.state.record_bytes_max = min(record_bytes_max, <uint64_t>ring.largest_record)
        self.state.clock_ns = clock_ns
        self.state.role = ROLE_CLIENT if client else ROLE_SERVER
        self.budget.kept_max = kept_bytes_max
        topics_init(&self.state.topics, secrets.randbits(64))
        self.state.sessions.ring = ring.state
        self.state.sessions.partition = PARTITION_NONE
        self.state.sessions.delivery_next = 1
        self.state.sessions.bytes_max = SESSIONS_BYTES_MAX
        self.set_routes(routes)
        self.window = Window()
        self.out = <uint8_t*>malloc(ACKS_MAX * ACK_BYTES_MAX)
        self.state.drops.table = <MqttDrop*>calloc(ring.state.partitions, sizeof(MqttDrop))
        if self.out == NULL or self.state.drops.table == NULL:
            raise MemoryError("no memory for a group's acknowledgements")

    def __dealloc__(self):
        free(self.out)
        free(self.state.drops.table)
        topics_forget_all(&self.state.topics)
        names_forget(&self.state.names)

    def set_routes(self, RoutesType routes not None) -> None:
        """From the next packet on. Streams that templates name are asked for again."""
        for partition in routes.partitions:
            self.check_partition(partition)
        group_set_routes(&self.state, &routes.table)
        self.routes = routes

    cdef int check_partition(self, uint64_t partition) except -1:
        if partition >= self.ring.state.partitions:
            raise IndexError(f"partition {partition} of {self.ring.state.partitions}")
        return 0

    def add_stream(self, bytes name not None, uint32_t partition) -> None:
        """The stream that a template named has this partition. One too many goes to overflow."""
        self.check_partition(partition)
        group_add_stream(&self.state, name, <uint32_t>len(name), partition)

    @property
    def sessions_partition(self):
        """Of the internal stream that releases of durable sessions are recorded in, or None."""
        return None if self.state.sessions.partition == PARTITION_NONE else self.state.sessions.partition

    @sessions_partition.setter
    def sessions_partition(self, uint32_t partition) -> None:
        self.check_partition(partition)
        self.state.sessions.partition = partition

    @property
    def delivery_next(self) -> int:
        """The delivery number that the next QoS 2 record gets: at least 1, more than any that is on disk."""
        return self.state.sessions.delivery_next

    @delivery_next.setter
    def delivery_next(self, uint64_t delivery) -> None:
        if delivery < max(1, self.state.sessions.delivery_next):
            raise ValueError(f"delivery numbers grow; {delivery} is less than {self.state.sessions.delivery_next}")
        self.state.sessions.delivery_next = delivery

    def set_rate(self, double messages) -> None:
        """Messages a second of all connections together; 0: no limit."""
        rate_set(&self.state.rate, messages)

    def set_clock(self, int64_t clock_ns) -> None:
        """Another fixed time, for tests; 0: the system's."""
        self.state.clock_ns = clock_ns

    def take_drops(self) -> list:
        """(partition, count, bytes, first_ns, last_ns) of what was dropped since the last call: see mqtt_drops.pxd."""
        cdef MqttDrop drop
        cdef uint32_t partition
        cdef list found = []
        if self.state.drops.total == self.drops_taken:
            return found
        for partition in range(self.ring.state.partitions):
            spin_lock(&self.state.drops.lock)
            drop = self.state.drops.table[partition]
            memset(&self.state.drops.table[partition], 0, sizeof(MqttDrop))
            spin_unlock(&self.state.drops.lock)
            if drop.count:
                self.drops_taken += drop.count
                found.append((partition, drop.count, drop.bytes, drop.first_ns, drop.last_ns))
        return found

    def advance(self) -> None:
        """A second has passed. Counted here rather than read from a clock: a stalled loop kills no healthy client."""
        self.tick += 1

    @property
    def crowded(self) -> bool:
        """Connections wait for room in the ring."""
        return self.state.crowded

    @property
    def kept_bytes(self) -> int:
        """In buffers of connections' own."""
        return self.budget.kept

    @property
    def kept_bytes_max(self) -> int:
        return self.budget.kept_max

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
        acks_settle_refusals(&self.state)
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

    @property
    def unrouted_topic(self) -> bytes:
        """The last topic that no route took, cut to 256 bytes."""
        return (<const char*>self.state.unrouted_topic.text)[:self.state.unrouted_topic.size]

    @property
    def forbidden_topic(self) -> bytes:
        """The last topic that its client must not publish to, cut to 256 bytes."""
        return (<const char*>self.state.forbidden_topic.text)[:self.state.forbidden_topic.size]

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
            "kept_bytes": self.budget.kept,
            "overflowed": self.state.overflowed,
            "forbidden": self.state.forbidden,
            "duplicates": self.state.duplicates,
            "dropped": self.state.drops.total,
            "topics_looked_up": self.state.topics.looked_up,
            "topics_bytes": topics_memory(&self.state.topics),
            "sessions_bytes": self.state.sessions.bytes,
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
            connection_close(&self.group.state, &self.state)
            kept_drop(&self.kept, &self.group.budget)

    # -- receiving

    def get_buffer(self, Py_ssize_t sizehint) -> Window:
        """Where to receive to: the shared buffer behind what is kept, or the rest of a large packet's own buffer."""
        cdef Group group = self.group
        cdef Window window = group.window
        if self.kept.direct:
            window.data = self.kept.block + self.kept.size
            window.size = self.kept.capacity - self.kept.size
        else:
            if self.kept.size > SHARED_BYTES - CROWDED_BYTES:
                raise RuntimeError("a connection that waits for room in the ring must not be read from")
            if self.kept.size:
                memcpy(window.shared, self.kept.block + self.kept.start, self.kept.size)
            window.data = window.shared + self.kept.size
            window.size = SHARED_BYTES - self.kept.size
        if (group.state.crowded or self.state.rate.interval_ns or group.state.rate.interval_ns) \
                and window.size > CROWDED_BYTES:
            window.size = CROWDED_BYTES     # what cannot be taken now has to be kept
        return window

    def buffer_updated(self, Py_ssize_t count) -> None:
        """So many bytes were received into the buffer last given."""
        if self.closed or count <= 0:
            return
        self.data = self.kept.block if self.kept.direct else self.group.window.shared
        self.size = self.kept.size + count
        self.position = 0
        if self.state.version:
            self.seen = self.group.tick
        if not self.blocked and not self.limited:   # else the driver had read already when it paused: kept for later
            self.parse()
        if (self.state.stop == STOP_END or self.blocked or self.limited) \
                and not self.state.pings and not self.state.refused:
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
        while self.state.stop == STOP_STREAM:
            self.find_stream()
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
        self.limited = self.state.stop == STOP_RATE
        if self.state.stop != STOP_FAULT:
            self.keep()
        if self.state.stop == STOP_FAULT:
            self.data = NULL
            reason, cause = FAULTS[self.state.fault]
            raise RemoteFault(reason, cause)
        return None

    def park(self) -> None:
        """Parse nothing more until `retry`: the packet last taken is decided on elsewhere. What follows it is kept.

        Raises RemoteFault when there is no memory to keep it; the connection must then be closed.
        """
        if self.closed:
            return
        self.answer()
        if self.data != NULL:
            self.keep()
        if self.data != NULL:
            self.data = NULL
            reason, cause = FAULTS[self.state.fault]
            raise RemoteFault(reason, cause)
        self.blocked = True

    def retry(self) -> None:
        """There may be room in the ring again, a rest is over, or a decision was made: go on where it stopped."""
        if self.closed or not (self.blocked or self.limited):
            return
        self.blocked = self.limited = False
        self.seen = self.partial_since = self.group.tick
        self.data = self.kept.block + self.kept.start
        self.size = self.kept.size
        self.position = 0
        self.state.stop = STOP_NONE
        self.attend()

    cdef int find_stream(self) except -1:
        """The parser waits for the partition of a stream."""
        cdef MqttText* wanted = &self.group.state.wanted
        cdef bytes name = (<const char*>wanted.text)[:wanted.size]
        cdef object partition = self.group.routes.table.overflow
        if self.group.resolve is not None:
            partition = self.group.resolve(name)
        self.group.add_stream(name, partition)
        return 0

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
        if self.position or not self.kept.size:
            self.partial_since = self.group.tick
        cdef uint64_t need = self.state.need if self.state.stop == STOP_END else 0
        if kept_put(&self.kept, &self.group.budget, self.data, self.size, self.position, need):
            self.data = NULL
            return
        self.state.stop = STOP_FAULT
        self.state.fault = FAULT_MEMORY

    # -- what the driver decides

    def open(self, *, int version, uint32_t inflight_max, SessionType session=None, int topic_alias_max=0,
             RoutesType allow=None, bint client_header=False, double rate_messages=0) -> None:
        """CONNECT was accepted.

        version: 4 (MQTT 3.1.1) or 5. inflight_max: unacknowledged publishes allowed. session: what the client's QoS 2
        publishes left; without one there is no QoS 2. topic_alias_max: aliases offered. allow: the filters of topics that
        the client may publish to. client_header: every record says who sent it. rate_messages: a second; 0: no limit.
        """
        if version not in (4, 5):
            raise ValueError(f"MQTT protocol level {version}; 4 and 5 are known")
        if not 1 <= inflight_max <= ACKS_MAX:
            raise ValueError(f"inflight_max is 1 to {ACKS_MAX}, not {inflight_max}")
        if not 0 <= topic_alias_max <= ALIASES_MAX:
            raise ValueError(f"topic_alias_max is 0 to {ALIASES_MAX}, not {topic_alias_max}")
        if client_header and session is None:
            raise ValueError("the client header needs a session, which knows the client")
        if session is not None:
            session.attach(self.group, &self.group.state.sessions)
            self.state.session = &session.state
            if self.group.state.role == ROLE_CLIENT:
                session_reconnected(&session.state)
        self.session, self.allow = session, allow
        self.state.allow = NULL if allow is None else &allow.table
        self.state.version = <uint8_t>version
        self.state.inflight_max = inflight_max
        self.state.aliases.max = topic_alias_max
        self.state.client_header = client_header
        rate_set(&self.state.rate, rate_messages)
        self.seen = self.group.tick

    def close(self) -> int:
        """Nothing more is parsed, written or acknowledged. Returns the acknowledgements that never left."""
        cdef uint32_t lost
        if self.closed:
            return 0
        self.closed = True
        self.write = None
        self.data = NULL
        lost = connection_close(&self.group.state, &self.state)
        self.session = self.allow = None
        self.blocked = self.limited = False
        kept_drop(&self.kept, &self.group.budget)
        return lost

    def acknowledge(self, int packet_id, int qos=1, *, bint dup=False) -> bool:
        """Answer a publish that `take` returned, after those before it: with PUBACK, or PUBREC for QoS 2.

        dup: it is marked as a duplicate. False: it is one of QoS 2 that was answered before. Raises RemoteFault when too
        much waits for an answer; MemoryError leaves it to be sent again.
        """
        cdef MqttDelivery* entry = NULL
        if self.closed:
            return True
        if qos == 2 and self.session is None:
            raise ValueError("QoS 2 needs a session")
        if self.state.acks_count >= ACKS_MAX:
            reason, cause = FAULTS[FAULT_INFLIGHT]
            raise RemoteFault(reason, cause)
        if qos == 2 and not dup:
            session_reconsider(self.state.session, <uint16_t>packet_id)
        if not acks_make_room(&self.state) or (qos == 2 and not session_make_room(self.state.session)):
            raise MemoryError("no memory for an acknowledgement")
        if qos == 2:
            entry = session_find(self.state.session, <uint16_t>packet_id)
        if entry != NULL:
            acks_push_again(&self.group.state, &self.state, <uint16_t>packet_id, entry)
            self.group.state.duplicates += 1
        elif qos == 2:
            publish_receive(&self.group.state, &self.state, <uint16_t>packet_id)
        else:
            acks_push(&self.group.state, &self.state, PUBACK, <uint16_t>packet_id, 0, 0, 0)
        if self.data == NULL:
            self.answer()
        return entry == NULL

    @property
    def passed_over(self) -> int:
        """Bytes of the publish just taken that lie behind its `body`, because it is larger than allowed."""
        return self.state.skip

    @property
    def kept_data(self) -> bytes:
        """What has arrived and was not parsed, because it is not whole or the ring is full."""
        return (<const char*>self.kept.block)[self.kept.start:self.kept.start + self.kept.size] if self.kept.size else b""

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
    def partial_ticks(self) -> int:
        """For how many ticks a packet has been arriving that is not whole yet; 0 when there is none."""
        return self.group.tick - self.partial_since if self.kept.size and not self.blocked and not self.limited else 0

    @property
    def overdue(self) -> bool:
        """Silent for longer than `patience`. One that waits for room in the ring is not: nobody reads from it."""
        return self.patience != 0 and not self.blocked and not self.limited and self.group.tick - self.seen > self.patience

    @property
    def resume_ns(self) -> int:
        """When a connection that is `limited` may go on: call `retry` then. time.monotonic_ns()."""
        return self.state.resume_ns
