"""The camera thread: RTSP connections after PLAY on epoll without the GIL, their pictures into the ring.

    rtp                 the protocol
    camera_record       access units into records; what has no room
    camera_connection   one connection: reading, writing, what is said of it, its end
    sockets, intake_messages    shared with the intake thread

A thread of its own beside that of MQTT: a camera's bytes come in bulk and nobody awaits an answer, so that this one looks
every TICK_NS at all that came meanwhile, where the other answers at once. And each needs a ring of its own anyway.

One receive buffer serves all connections; what a camera keeps between two looks (a frame cut off, a picture begun) lies in
blocks of a pool that all share. What is below belongs to the thread, but for the mailboxes and what is marked published.
A handle is index and generation, so that a late command cannot hit a connection that took the place of another.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gateway_native.intake_messages cimport Mailbox, Message
from gateway_native.outbox cimport Outbox
from gateway_native.ring cimport Ring, RingState
from gateway_native.rtp cimport RtpCounters, RtpSession
from gateway_native.rtp_blocks cimport BlockPool

cdef enum:
    TICK_NS = 4000000               # between two looks while anything comes
    RECEIVE_BYTES = 262144          # read at once from one connection: its turn
    PUBLISH_BYTES = 262144          # in the ring before the writer is told, within one turn
    EVENTS_MAX = 1024               # of epoll, looked at in one turn
    RECEIVED_MAX = 1048576          # bytes that `add` may bring along
    OUT_BYTES_MAX = 65536           # written to a camera that does not read
    DEAF_S = 30                     # … for so long, and it is gone
    LINGER_S = 1                    # after our last word: how long a camera may take to close its end
    REPORT_S = 5                    # between receiver reports
    STALL_NS = 5000000000           # without a unit, or …
    STALL_INTERVALS = 10            # … so many of what is usual between two
    INTERVAL_MAX_NS = 60000000000   # … which is never taken for more than this
    TEXTS_MAX = 64                  # RTSP messages of one camera in a second, …
    TEXT_BYTES_SECOND = 131072      # … and their bytes
    EVENT_BYTES_MAX = 8388608       # of texts that nobody has taken yet, all cameras'
    NEWS_MAX = 16                   # other events of one camera in a second; then they wait for the next

    # Events: see camera_thread.pyi.
    EVENT_CLOSED = 1
    EVENT_TEXT = 2
    EVENT_RUN = 3
    EVENT_PICTURE = 4
    EVENT_STALLED = 5
    EVENT_RESUMED = 6
    EVENT_LOST = 7
    EVENT_GOODBYE = 8

    CAUSE_NONE = 0
    CAUSE_REMOVED = 1
    CAUSE_PEER = 2
    CAUSE_SOCKET = 3
    CAUSE_FAULT = 4
    CAUSE_DEAF = 5
    CAUSE_CHATTER = 6

    LOSS_PACKETS = 0
    LOSS_ROOM = 1
    LOSS_OVERSIZED = 2
    LOSSES = 3

    # Commands.
    COMMAND_ADD = 1                 # pointer: the Connection; data: what was received
    COMMAND_SEND = 2
    COMMAND_REMOVE = 3

cdef struct Loss:                   # as the event's data carries it
    uint64_t count
    uint64_t bytes
    int64_t first_ns
    int64_t last_ns

cdef struct CameraState:
    # Fixed.
    RingState* ring
    uint32_t partition
    const uint64_t* writer_refused  # records of the partition that a full disk refused; the writer's
    const uint8_t* key
    uint32_t key_bytes
    uint64_t record_bytes_max
    # The thread's while there is a connection.
    uint32_t lost                   # units, since the last record
    uint64_t lost_packets           # likewise
    bint until_key                  # what comes cannot be decoded, for something before it was lost
    uint64_t refused_seen
    # Published.
    int64_t run
    RtpCounters rtp
    uint64_t units
    uint64_t keyframes
    uint64_t bytes
    uint64_t lost_units             # for want of room, or oversized
    uint64_t oversized
    uint64_t refused
    uint64_t last_unit_ns
    uint64_t last_key_ns
    uint64_t interval_ns            # usual between two units; 0: unknown
    uint64_t bits_per_second

cdef struct Connection:
    RtpSession rtp
    CameraState* camera
    ThreadState* thread
    int fd
    uint32_t index
    uint32_t generation
    uint32_t armed                  # what epoll watches it for
    uint8_t cause                   # CAUSE_*: it ends
    int error                       # errno, if that is the cause
    bint over                       # … now
    bint leaving                    # our last word is said; only the camera's end is awaited
    uint64_t left_at                # second
    Outbox out                      # what the socket did not take
    uint64_t deaf_since             # second; 0: everything was taken
    uint64_t reported_at            # second
    uint64_t added_ns               # monotonic
    uint64_t unit_ns                # of the last unit, monotonic; 0: none
    bint stalled                    # said
    bint say_run                    # to be said
    bint say_resumed
    uint32_t news                   # said in this second; these likewise:
    uint32_t texts
    uint64_t text_bytes
    Loss[LOSSES] losses             # not said yet
    uint64_t packets_said           # of lost packets
    uint64_t bytes_before           # received, a second ago
    uint64_t bytes_at_ns            # … exactly then, monotonic

cdef struct ThreadState:
    int epoll
    Mailbox commands
    Mailbox events
    uint64_t event_bytes            # of texts in `events`; both sides'
    RingState* ring
    uint64_t done                   # commands; published
    uint64_t turns                  # published
    uint64_t ticks_slept            # published
    uint64_t texts_dropped          # published
    uint64_t open                   # connections; published
    uint64_t stopping               # set by anyone
    Connection** connections        # [connections_max]; NULL: the place is free
    uint32_t connections_max
    uint32_t connections_end        # no place from here on was ever used
    BlockPool pool
    uint64_t second                 # counted
    uint64_t ticked_ns
    uint64_t published              # of the ring, before this turn's records
    uint8_t* shared                 # front and RECEIVE_BYTES


cdef class Camera:
    cdef CameraState state
    cdef readonly bytes key
    cdef Ring ring
    cdef bint connected             # from `add` until CLOSED was taken


cdef class CameraThread:
    cdef ThreadState state
    cdef Ring ring
    cdef dict cameras               # by handle: keeps what the thread works on alive
    cdef list free_places
    cdef dict generations           # by index
    cdef int post(self, Message* message) except -1
    cdef int say(self, uint32_t kind, uint64_t handle, bytes data) except -1
    cdef object place(self, int fd, Camera camera, Connection* c, Message* message)
    cdef object taken(self, const Message* message)
