"""The intake thread: plain sockets on epoll without the GIL, driving the MQTT parser.

It accepts, reads, parses, records, acknowledges, answers pings and looks after time-outs, whatever Python is busy with. At
any other packet it parks the connection (nothing more is read or parsed) and posts an event; the event loop's verdict
comes back as a command on a handle, index and generation, so that a late one cannot hit a connection that took the
place of another. Nothing else is shared: what is below belongs to the thread, but for the two mailboxes and what is
marked published.

It blocks in epoll while little comes. When many connections are busy it lets TICK_NS pass between two rounds of looks,
so that a look serves many of them. One receive buffer serves all connections: a connection costs its Peer, and what it
has sent of a packet that is not whole.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gateway_native.intake_messages cimport Mailbox, Message
from gateway_native.mqtt cimport MqttConnection, MqttGroup
from gateway_native.mqtt_kept cimport MqttBudget, MqttKept
from gateway_native.mqtt_rate cimport MqttRate
from gateway_native.mqtt_routes cimport MqttRoutes
from gateway_native.mqtt_session cimport MqttSession
from gateway_native.outbox cimport Outbox

cdef enum:
    LISTENERS_MAX = 16
    SOCKETS_MAX = 8                 # that one listener accepts from: a name may have several addresses
    PEERS_MAX = 1048576             # sockets of all listeners
    RECEIVE_BYTES = 262144          # read at once from one connection: its turn
    EVENTS_MAX = 1024               # of epoll, looked at in one turn
    ACCEPT_MAX = 64                 # accepted in one turn of a listener
    OUT_BYTES_MAX = 1048576         # written to a peer that does not read; it is not read from meanwhile
    SETTLED_MAX = 64                # records from Python put into the ring in one turn
    TICK_NS = 4000000               # between two rounds of looks while many connections are busy
    BUSY_SOCKETS = 256              # fewer never make a tick: a few that wait for each acknowledgement get it at once
    BUSY_READS = 16                 # within a tick: that many are
    BUSY_BYTES = 4096               # a read of more than this is worth a look of its own

    # Events; the handle is the connection's.
    EVENT_CONNECTED = 1             # data: address
    EVENT_PACKET = 2                # first: the packet's first byte; data: its body. Parked until resume, open or end
    EVENT_FAULT = 3                 # first: index into FAULTS of mqtt; data: the last topic that was. Parked until end
    EVENT_CLOSED = 4                # first: acknowledgements that never left. The handle means nothing any more
    EVENT_OVERDUE = 5               # nothing came for longer than its patience
    EVENT_STALLED = 6               # it does not read what is written to it
    EVENT_FAILED = 7                # first: 1 if the disk was full. Its next acknowledgement never leaves
    EVENT_ACCEPT = 8                # first: errno. Accepting rests for a second
    EVENT_RECORDED = 9              # first: bytes of a record of `record` that is in the ring
    EVENT_REFUSED = 10              # the listener has as many sockets as it may have; one more was closed
    EVENT_UNROUTED = 11             # first: publishes that no route took since the last one; data: the last one's topic
    EVENT_STREAM = 12               # data: name of a stream whose partition it waits for. Parked until add_stream
    EVENT_DETACHED = 13             # `end` was done: its session may be changed, and attached to another connection
    EVENT_FORBIDDEN = 14            # as UNROUTED, of those that their senders may not publish
    EVENT_DAWDLED = 15              # a packet does not become whole in time

    # Commands.
    COMMAND_ADD = 1
    COMMAND_REMOVE = 2
    COMMAND_OPEN = 3
    COMMAND_SEND = 4
    COMMAND_RESUME = 5
    COMMAND_END = 6
    COMMAND_ABORT = 7
    COMMAND_PAUSE = 8
    COMMAND_UNPAUSE = 9
    COMMAND_RECORD = 10
    COMMAND_ROUTES = 11
    COMMAND_LEAVE = 12              # accept no more
    COMMAND_STREAM = 13             # first: the partition; data: the stream's name

# What comes with COMMAND_OPEN: see Connection.open in mqtt.pyx.
cdef struct Opening:
    uint8_t version
    bint client_header
    uint32_t inflight_max
    uint32_t aliases_max
    uint64_t patience
    MqttSession* session
    const MqttRoutes* allow
    MqttRate rate

cdef struct Counters:               # published
    uint64_t records
    uint64_t bytes
    uint64_t unrouted
    uint64_t acknowledged
    uint64_t refused
    uint64_t pending
    uint64_t stopped
    uint64_t kept
    uint64_t overflowed
    uint64_t forbidden
    uint64_t duplicates
    uint64_t sockets
    uint64_t waiting                # connections, and records from Python, that wait for room in the ring
    uint64_t limited                # connections that rest, for they were faster than they may be
    uint64_t stalled                # connections that do not read what is written to them …
    uint64_t unsent                 # … which is so many bytes

cdef struct IntakeListener:
    bint used
    bint paused
    bint accepting                  # its sockets are in the epoll set
    bint ring_rang
    int[SOCKETS_MAX] fds            # closed by whoever opened them
    uint32_t fds_count
    uint32_t index
    uint32_t sockets
    uint32_t sockets_max
    uint64_t patience               # seconds until CONNECT must be there
    uint64_t packet_patience        # seconds until a packet must be whole; 0: for ever
    MqttGroup* group
    MqttBudget* budget
    Peer* first_waiting             # for room in the ring, first come first served
    Peer* last_waiting
    Message* first_record           # from Python, before all of them
    Message* last_record
    uint32_t waiting
    uint32_t limited
    uint32_t stalled
    uint64_t unsent
    uint64_t unrouted_said
    uint64_t forbidden_said
    Counters counters

cdef struct Peer:
    MqttConnection mqtt
    MqttKept kept
    IntakeListener* listener
    int fd                          # -1: this place is free
    uint32_t index
    uint32_t generation
    uint32_t armed                  # what epoll watches it for; 0: it is not in the set
    bint parked                     # the event loop decides
    bint waits                      # for room in the ring
    bint limited                    # rests until mqtt.resume_ns
    bint broken                     # the socket is lost
    bint ending                     # our last word is said; only the peer's end is awaited
    bint shut                       # … and sent
    bint failed                     # told already; these two likewise
    bint overdue
    uint32_t lost                   # acknowledgements that never left
    uint64_t seen                   # tick at which something was last received
    uint64_t patience
    uint64_t partial_since          # tick, of a packet that is not whole; 0: there is none
    uint64_t stalled_since          # tick, since it does not read; 0: it does
    uint64_t ended_at
    Outbox out                      # what the socket did not take
    Peer* next_waiting
    Peer* next_limited
    uint32_t next_free

cdef struct IntakeState:
    int epoll
    Mailbox commands
    Mailbox events
    uint64_t done                   # commands; published
    uint64_t turns                  # published
    uint64_t ticks_slept            # published
    uint64_t stopping               # set by anyone
    IntakeListener[LISTENERS_MAX] listeners
    Peer** peers
    uint32_t peers_count            # places there are
    uint32_t peers_capacity
    uint32_t first_free             # PEERS_MAX: none
    Peer* first_limited             # in no order
    int64_t resume_ns               # when the first of them goes on, monotonic
    uint64_t tick                   # seconds, counted
    uint64_t ticked_ns
    uint64_t slept_ns               # when the last look began
    uint32_t small_reads            # in this turn
    uint32_t window_reads           # such reads since …
    uint64_t window_ns              # … the present tick began
    uint8_t* shared                 # RECEIVE_BYTES and what is kept
    uint8_t* out                    # acknowledgements of one connection


cdef class Intake:
    cdef IntakeState state
    cdef list groups                # by listener: keeps what the thread works on alive; these too:
    cdef list retired               # routes that were replaced, a few at each change of the configuration
    cdef int post(self, Message* message) except -1
    cdef int tell(self, int listener, uint32_t kind, void* pointer=*) except -1
    cdef int say(self, uint32_t kind, uint64_t handle, bytes data) except -1
