"""MQTT publishers' side of the wire, sans I/O: bytes in, records into a ring, acknowledgements out.

The parser knows no socket, no clock but the one it stamps records with, and no policy. It takes every whole packet of
a received buffer in one call: a PUBLISH goes straight into the ring, a PUBREL ends its QoS 2 exchange, a PINGREQ is counted
to be answered, and at any other packet it stops, so that its driver can decide. Whoever drives it holds one MqttGroup per listening socket or
broker and one MqttConnection per peer; all of one group belong to one thread.

Source: MQTT 5.0 and MQTT 3.1.1, OASIS standards; numbers in brackets are theirs.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gateway_native.mqtt_aliases cimport MqttAliases
from gateway_native.mqtt_drops cimport MqttDrops
from gateway_native.mqtt_kept cimport MqttBudget, MqttKept
from gateway_native.mqtt_rate cimport MqttRate
from gateway_native.mqtt_routes cimport MqttRoutes, Routes as RoutesType
from gateway_native.mqtt_session cimport MqttSession, MqttSessions, Session as SessionType
from gateway_native.mqtt_topics cimport MqttNames, MqttTopics
from gateway_native.ring cimport Ring, RingState

cdef enum:
    SHARED_BYTES = 262144           # the receive buffer that all connections of a group share
    CROWDED_BYTES = 2048            # received at once while the ring is full: what may then have to be kept
    NOGIL_BYTES = 16384             # parse shorter buffers with the GIL held: giving it up costs more than it frees
    CONTROL_BYTES_MAX = 524288      # any packet but PUBLISH; the largest CONNECT has five fields of 64 KiB
    ACKS_MAX = 65535                # packet identifiers there are
    ACK_BYTES_MAX = 5
    OVERSIZED_BYTES = 65544         # of a publish too large to take: header, topic and packet identifier
    NAME_BYTES_MAX = 256            # of a topic kept for a log line, and room for a stream's name

    # Which side of the wire the group's connections are.
    ROLE_SERVER = 0                 # clients connect to us; their first packet is CONNECT
    ROLE_CLIENT = 1                 # we connected to a broker; its first packet is CONNACK

    # Why the parser stopped.
    STOP_NONE = 0                   # it did not; there is more to parse
    STOP_END = 1                    # what is left is no whole packet
    STOP_PACKET = 2                 # a packet that the driver must decide on
    STOP_ROOM = 3                   # the ring is full; the packet waits
    STOP_FAULT = 4                  # the peer broke the protocol; see `fault`
    STOP_STREAM = 5                 # the packet waits for the partition of the stream `group.wanted`; see group_add_stream
    STOP_RATE = 6                   # the client is faster than it may be; the packet waits until `resume_ns`

    # How: indexes into FAULTS in mqtt_faults.py, which says the rest.
    FAULT_NONE = 0
    FAULT_FIRST_PACKET = 1
    FAULT_TYPE = 2
    FAULT_FLAGS = 3
    FAULT_LENGTH = 4
    FAULT_TOO_LARGE = 5
    FAULT_TRUNCATED = 6
    FAULT_QOS_3 = 7
    FAULT_QOS_2 = 8
    FAULT_DUP = 9
    FAULT_TOPIC_EMPTY = 10
    FAULT_TOPIC_UTF8 = 11
    FAULT_TOPIC_NUL = 12
    FAULT_TOPIC_WILDCARD = 13
    FAULT_PACKET_ID = 14
    FAULT_PROPERTY_UNKNOWN = 15
    FAULT_PROPERTY_TWICE = 16
    FAULT_PROPERTY_VALUE = 17
    FAULT_PROPERTY_TEXT = 18
    FAULT_TOPIC_ALIAS = 19
    FAULT_SUBSCRIPTION_ID = 20
    FAULT_INFLIGHT = 21
    FAULT_UNROUTED = 22
    FAULT_MEMORY = 23
    FAULT_RECORD = 24
    FAULT_ALIAS_UNKNOWN = 25
    FAULT_ALIAS_BYTES = 26
    FAULT_FORBIDDEN = 27
    FAULT_OVERLOAD = 28
    FAULT_REASON = 29

# A text from a peer for a log line, cut to what fits.
cdef struct MqttText:
    uint8_t[NAME_BYTES_MAX] text
    uint32_t size

# An acknowledgement on its way.
cdef struct MqttAck:
    uint64_t sequence               # of the record it waits for, in (ring, partition); 0: it waits for its turn only
    uint32_t partition
    uint16_t packet_id
    uint8_t reason                  # reason code (MQTT 3.1.1 has none but 0), or REASON_DISCONNECT
    uint8_t kind                    # the packet's first byte: PUBACK, PUBREC or PUBCOMP

cdef struct MqttConnection:
    # Set by `open`, after CONNECT.
    uint8_t version                 # 4: MQTT 3.1.1, 5: MQTT 5, 0: CONNECT is awaited
    bint client_header              # every record says who sent it
    uint32_t inflight_max           # unacknowledged publishes the client may have
    MqttSession* session            # NULL: no QoS 2; borrowed
    const MqttRoutes* allow         # topics that the client may publish to; NULL: every one; borrowed
    MqttAliases aliases
    MqttRate rate
    # Where the parser is.
    uint8_t stop                    # STOP_*
    uint8_t fault                   # index into FAULTS
    uint8_t refused                 # 1: an acknowledgement was queued that need not wait for a commit
    uint32_t header_bytes           # STOP_PACKET: fixed header
    uint32_t body_bytes             # STOP_PACKET: what follows it
    uint64_t need                   # STOP_END: bytes of the packet that is not whole yet, as far as known
    uint32_t pings                  # PINGREQs not answered yet
    uint64_t skip                   # of the packet before, a publish that was too large: bytes still to be passed over
    int64_t resume_ns               # STOP_RATE: when to go on, monotonic
    # Answers that have not left yet, in their order: a circular buffer that doubles.
    MqttAck* acks
    uint32_t acks_capacity          # a power of two, or 0
    uint32_t acks_first
    uint32_t acks_count
    uint32_t received               # how many of them are PUBRECs without an error: their publishes are in the session
    # The list of connections that have some, so that a commit need not look at all.
    MqttConnection* next
    MqttConnection* previous
    bint listed
    void* owner                     # the Connection around this struct; borrowed

cdef struct MqttGroup:
    # Fixed after construction.
    RingState* ring
    uint64_t packet_bytes_max
    uint64_t record_bytes_max       # key, value and headers of one record
    int64_t clock_ns                # not 0: tests' own time, of both clocks
    uint8_t role                    # ROLE_*
    const MqttRoutes* routes
    # What every message touches.
    bint crowded                    # the ring was full: connections wait, and nobody may pass them
    uint64_t records
    uint64_t bytes                  # payload
    # State.
    MqttTopics topics
    MqttNames names                 # of streams that templates have named
    MqttSessions sessions
    MqttDrops drops
    MqttRate rate                   # of all connections together
    MqttText wanted                 # STOP_STREAM: the name; valid until the next call of mqtt_parse
    MqttConnection* waiting         # those with acknowledgements pending
    # More counters.
    uint64_t retained               # of the records: those whose retain flag was set
    uint64_t unrouted               # publishes whose topic no route takes
    uint64_t acknowledged
    uint64_t refused                # publishes whose record the full disk had no room for
    uint64_t pending                # acknowledgements not sent yet, all connections
    uint64_t stopped                # times a connection found the ring full
    uint64_t overflowed             # records of streams that have no partition of their own
    uint64_t forbidden              # publishes to topics that their client must not publish to
    uint64_t duplicates             # QoS 2 publishes that were received before
    # The last such topics, for a log line.
    MqttText unrouted_topic
    MqttText forbidden_topic

# Take whole packets from data[*position : size] until one of STOP_*, which is also left in connection.stop. Whatever
# was put into the ring is published.
cdef int mqtt_parse(
    MqttGroup* group, MqttConnection* connection, const uint8_t* data, size_t size, size_t* position,
) noexcept nogil

# The stream that mqtt_parse stopped for has this partition; go on with the same packet. A name that there is no room
# for any more goes to overflow from then on.
cdef void group_add_stream(MqttGroup* group, const uint8_t* name, uint32_t name_bytes, uint32_t partition) noexcept nogil

# Other routes from the next packet on; nothing is remembered of the former ones.
cdef void group_set_routes(MqttGroup* group, const MqttRoutes* routes) noexcept nogil

# The end of a connection: acknowledgements that have not left are forgotten (their number is returned), its aliases and
# its buffer of acknowledgements are freed, its session can be attached again.
cdef uint32_t connection_close(MqttGroup* group, MqttConnection* connection) noexcept nogil


cdef class Window:
    cdef uint8_t* shared            # SHARED_BYTES, this object's own
    cdef uint8_t* data              # where the next bytes of some connection go: into `shared`, or its own buffer
    cdef Py_ssize_t size


cdef class Group:
    cdef MqttGroup state
    cdef readonly Ring ring
    cdef readonly RoutesType routes
    cdef uint8_t* out               # acknowledgements of one connection
    cdef Window window
    cdef MqttBudget budget
    cdef readonly uint64_t tick             # counts calls of `advance`, about one a second
    cdef uint64_t drops_taken
    cdef public object resolve      # callable(bytes) -> int: the partition of a stream that a template named
    cdef int check_partition(self, uint64_t partition) except -1


cdef class Connection:
    cdef MqttConnection state
    cdef readonly Group group
    cdef public object write        # callable(bytes): how to send; None when there is no way
    cdef readonly bint closed
    cdef readonly bint blocked      # waits for room in the ring, or for a decision (`park`)
    cdef readonly bint limited      # must rest until `resume_ns`
    cdef readonly bint refused      # its next acknowledgement never leaves, because its record was refused
    cdef readonly SessionType session
    cdef readonly RoutesType allow
    cdef readonly uint64_t seen     # tick at which something was last received
    cdef public uint64_t patience   # ticks without any byte until `overdue`; 0: for ever
    cdef uint64_t partial_since     # tick at which the packet that is not whole yet began
    cdef MqttKept kept
    # What is being parsed; NULL between two buffers.
    cdef const uint8_t* data
    cdef size_t size
    cdef size_t position
    cdef void parse(self) noexcept
    cdef void keep(self) noexcept
    cdef int answer(self) except -1
    cdef int find_stream(self) except -1
