"""The camera thread. See camera_thread.pxd for the contract, camera_connection.pxd for what becomes of one connection."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from gateway_native.camera_connection cimport (
    connection_close,
    connection_event,
    connection_find,
    connection_leave,
    connection_look_after,
    connection_settle,
    gw_add_relaxed,
    gw_load_relaxed,
    gw_monotonic_ns,
    gw_realtime_ns,
    gw_store_relaxed,
    out_write,
    tell_text,
)
from gateway_native.camera_record cimport record_unit
from gateway_native.intake_messages cimport (
    c_write,
    mailbox_post,
    mailbox_take,
    message_data,
    message_new,
    messages_free,
    pthread_mutex_destroy,
    pthread_mutex_init,
    usleep,
)
from gateway_native.ring cimport ring_publish
from gateway_native.rtp cimport (
    FRAME_BYTES_MAX, TEXT_MAX, UNIT_MAX, counters_of, session_configure, session_feed, session_free)
from gateway_native.rtp_blocks cimport buffer_drop, pool_free
from gateway_native.sockets cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EPOLL_CLOEXEC,
    EPOLLIN,
    PR_SET_TIMERSLACK,
    c_close,
    epoll_create1,
    epoll_event,
    epoll_wait,
    eventfd,
    prctl,
    silence,
    watch,
)
from gateway_native.writer cimport Writer

import os
from struct import Struct

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_acquire(const uint64_t*)
    void gw_store_release(uint64_t*, uint64_t)

cdef enum:
    NS_PER_S = 1000000000
    NS_PER_MS = 1000000
    NS_PER_US = 1000
    ABOUT_BELL = 0xFFFFFFFF         # what an event of epoll is about, if it is no connection
    GENERATION_MAX = 0x7FFFFFF0
    CAMERAS_MAX = 65536
    MEMORY_MAX = 268435456          # of units being put together, by default
    RECORD_MAX = 16777216

CLOSED, TEXT, RUN, PICTURE = EVENT_CLOSED, EVENT_TEXT, EVENT_RUN, EVENT_PICTURE
STALLED, RESUMED, LOST, GOODBYE = EVENT_STALLED, EVENT_RESUMED, EVENT_LOST, EVENT_GOODBYE
ENDED_REMOVED, ENDED_PEER, ENDED_SOCKET = CAUSE_REMOVED, CAUSE_PEER, CAUSE_SOCKET
ENDED_FAULT, ENDED_DEAF, ENDED_CHATTER = CAUSE_FAULT, CAUSE_DEAF, CAUSE_CHATTER
ENDED = {
    ENDED_REMOVED: "the gateway closed the connection",
    ENDED_PEER: "the camera closed the connection",
    ENDED_SOCKET: "the connection failed",
    ENDED_FAULT: "the camera sent what cannot be understood",
    ENDED_DEAF: "the camera does not read what is sent to it",
    ENDED_CHATTER: f"the camera sent more than {TEXTS_MAX} RTSP messages, or {TEXT_BYTES_SECOND} bytes of them, in a second",
}
LOST_PACKETS, LOST_ROOM, LOST_OVERSIZED = LOSS_PACKETS, LOSS_ROOM, LOSS_OVERSIZED
LOSS = Struct("=QQqq")
assert LOSS.size == sizeof(Loss)


# -- commands ---------------------------------------------------------------------------------------------------------

cdef void add_connection(ThreadState* it, Message* message) noexcept nogil:
    cdef Connection* c = <Connection*>message.pointer
    it.connections[c.index] = c
    it.connections_end = max(it.connections_end, c.index + 1)
    gw_store_relaxed(&it.open, it.open + 1)
    c.added_ns = c.bytes_at_ns = gw_monotonic_ns()
    c.packets_said = c.camera.rtp.lost_packets
    c.bytes_before = c.camera.rtp.packet_bytes
    c.reported_at = it.second - c.index % REPORT_S      # not all in one second
    if message.sizes[0]:
        session_feed(&c.rtp, message_data(message), message.sizes[0], gw_realtime_ns(), c.added_ns)
    connection_settle(it, c)


cdef void command(ThreadState* it, Message* message) noexcept nogil:
    cdef Connection* c
    if message.kind == COMMAND_ADD:
        add_connection(it, message)
        return
    c = connection_find(it, message.handle)
    if c == NULL:
        return                          # too late: that connection is gone
    if message.kind == COMMAND_REMOVE:
        connection_leave(c, message_data(message), message.sizes[0])
    elif not c.leaving:
        out_write(c, message_data(message), message.sizes[0])
    connection_settle(it, c)


cdef void take_commands(ThreadState* it) noexcept nogil:
    cdef Message* first = mailbox_take(&it.commands)
    cdef Message* message = first
    cdef uint64_t count = 0
    while message != NULL:
        command(it, message)
        message = message.next
        count += 1
    messages_free(first)
    if count:
        gw_store_release(&it.done, gw_load_relaxed(&it.done) + count)


# -- the thread's turns -----------------------------------------------------------------------------------------------

cdef void second_passed(ThreadState* it, uint64_t now) noexcept nogil:
    """Counted rather than read from a clock: a machine that slept kills no healthy camera."""
    cdef uint32_t i
    it.second += 1
    for i in range(it.connections_end):
        if it.connections[i] != NULL:
            connection_look_after(it, it.connections[i], now)


cdef void handle(ThreadState* it, const epoll_event* event) noexcept nogil:
    cdef Connection* c
    if event.data.u64 >> 32 == ABOUT_BELL:
        silence(it.commands.bell)
        take_commands(it)               # again: the bell of one that came since this turn began is silent now
        return
    c = connection_find(it, event.data.u64)
    if c != NULL:
        connection_event(it, c, event.events)


cdef int turn(ThreadState* it, epoll_event* events) noexcept nogil:
    """Look once: wait for at most what is left of a second, handle what is there. How many that were."""
    cdef uint64_t now = gw_monotonic_ns()
    cdef uint64_t until = it.ticked_ns + NS_PER_S
    cdef int patience_ms = 0 if until <= now else <int>((until - now + NS_PER_MS - 1) // NS_PER_MS)
    cdef int count = epoll_wait(it.epoll, events, EVENTS_MAX, patience_ms)
    cdef int i
    it.published = it.ring.reserved
    take_commands(it)
    for i in range(count):
        handle(it, &events[i])
    now = gw_monotonic_ns()
    if now - it.ticked_ns >= NS_PER_S:
        it.ticked_ns = now
        second_passed(it, now)
    ring_publish(it.ring)
    gw_store_relaxed(&it.turns, it.turns + 1)
    return count


cdef void rest(ThreadState* it, uint64_t began_ns) noexcept nogil:
    """Let what comes next collect: each look then serves many cameras, and many packets of each."""
    cdef uint64_t spent = gw_monotonic_ns() - began_ns
    if spent < TICK_NS:
        gw_store_relaxed(&it.ticks_slept, it.ticks_slept + 1)
        usleep(<unsigned int>((TICK_NS - spent) // NS_PER_US))


cdef void run_thread(ThreadState* it, epoll_event* events) noexcept nogil:
    cdef uint64_t began
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)        # usleep is for single ticks
    it.ticked_ns = gw_monotonic_ns()
    while not gw_load_acquire(&it.stopping):
        began = gw_monotonic_ns()
        if turn(it, events) > 0:
            rest(it, began)


# -- what Python sees -------------------------------------------------------------------------------------------------

cdef class Camera:
    """One configured camera: where its records go, and what outlives its connections."""

    def __cinit__(self, bytes key not None, Ring ring not None, uint32_t partition, *,
                  uint64_t record_bytes_max=RECORD_MAX):
        cdef CameraState* camera = &self.state
        cdef Writer writer = ring.owner
        self.key = key
        self.ring = ring
        camera.ring = ring.state
        camera.partition = partition
        camera.writer_refused = &writer.partition(partition).refused
        camera.refused_seen = gw_load_relaxed(camera.writer_refused)
        camera.key, camera.key_bytes = <const uint8_t*>PyBytes_AS_STRING(key), <uint32_t>len(key)
        camera.record_bytes_max = min(record_bytes_max, <uint64_t>ring.largest_record)

    @property
    def run(self) -> int:
        return <int64_t>gw_load_relaxed(<uint64_t*>&self.state.run)

    @property
    def statistics(self) -> dict:
        """Counters since this object was made."""
        cdef CameraState* camera = &self.state
        cdef uint64_t interval = gw_load_relaxed(&camera.interval_ns)
        found = counters_of(&camera.rtp)
        found["lost_units"] += gw_load_relaxed(&camera.lost_units)
        return {
            "units": gw_load_relaxed(&camera.units),
            "keyframes": gw_load_relaxed(&camera.keyframes),
            "bytes": gw_load_relaxed(&camera.bytes),
            **found,
            "oversized": gw_load_relaxed(&camera.oversized),
            "refused": gw_load_relaxed(&camera.refused),
            "last_unit_ns": gw_load_relaxed(&camera.last_unit_ns),
            "last_key_ns": gw_load_relaxed(&camera.last_key_ns),
            "fps": NS_PER_S / <double>interval if interval else 0.0,
            "bits_per_second": float(gw_load_relaxed(&camera.bits_per_second)),
            "jitter_ns": float(found["jitter_ns"]),
        }


cdef class CameraThread:
    """All connections of the native camera engine, on one thread, which `run` becomes."""

    def __cinit__(self, Ring ring not None, *, uint32_t cameras_max=4096, uint64_t memory_bytes_max=MEMORY_MAX):
        cdef ThreadState* it = &self.state
        it.epoll = it.commands.bell = it.events.bell = -1
        if not 1 <= cameras_max <= CAMERAS_MAX:
            raise ValueError(f"cameras_max is 1 to {CAMERAS_MAX}, not {cameras_max}")
        pthread_mutex_init(&it.commands.lock, NULL)
        pthread_mutex_init(&it.events.lock, NULL)
        self.ring = ring
        self.cameras = {}
        self.generations = {}
        self.free_places = list(range(cameras_max - 1, -1, -1))
        it.ring = ring.state
        it.pool.used_max = memory_bytes_max
        it.second = REPORT_S
        it.connections_max = cameras_max
        it.connections = <Connection**>calloc(cameras_max, sizeof(Connection*))
        it.shared = <uint8_t*>malloc(max(FRAME_BYTES_MAX, TEXT_MAX) + RECEIVE_BYTES)
        if it.connections == NULL or it.shared == NULL:
            raise MemoryError("no memory for the camera thread's buffers")
        it.epoll = epoll_create1(EPOLL_CLOEXEC)
        it.commands.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        it.events.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if it.epoll < 0 or it.commands.bell < 0 or it.events.bell < 0:
            raise OSError(errno, f"no descriptors for the camera thread: {os.strerror(errno)}")
        watch(it.epoll, it.commands.bell, 0, EPOLLIN, <uint64_t>ABOUT_BELL << 32)

    def __dealloc__(self):
        cdef ThreadState* it = &self.state
        cdef Message* message = mailbox_take(&it.commands)
        cdef uint32_t i
        while message != NULL:          # those that the thread never saw
            if message.kind == COMMAND_ADD:
                it.connections[(<Connection*>message.pointer).index] = <Connection*>message.pointer
            message = message.next
        for i in range(it.connections_max if it.connections != NULL else 0):
            if it.connections[i] != NULL:
                c_close(it.connections[i].fd)
                session_free(&it.connections[i].rtp)
                buffer_drop(&it.pool, &it.connections[i].out)
                free(it.connections[i])
        messages_free(mailbox_take(&it.events))
        for fd in (it.epoll, it.commands.bell, it.events.bell):
            if fd >= 0:
                c_close(fd)
        pool_free(&it.pool)
        free(it.connections)
        free(it.shared)
        pthread_mutex_destroy(&it.commands.lock)
        pthread_mutex_destroy(&it.events.lock)

    def run(self) -> None:
        """The thread's body: returns after `stop`. The GIL is not held."""
        cdef epoll_event* events = <epoll_event*>malloc(EVENTS_MAX * sizeof(epoll_event))
        if events == NULL:
            raise MemoryError("no memory for the camera thread's events")
        with nogil:
            run_thread(&self.state, events)
        free(events)

    def stop(self) -> None:
        """End the thread after its turn."""
        cdef uint64_t one = 1
        gw_store_release(&self.state.stopping, 1)
        c_write(self.state.commands.bell, &one, sizeof(one))

    cdef int post(self, Message* message) except -1:
        if message == NULL:
            raise MemoryError("no memory for a command to the camera thread")
        mailbox_post(&self.state.commands, message)
        return 0

    cdef int say(self, uint32_t kind, uint64_t handle, bytes data) except -1:
        cdef Message* message = message_new(kind, handle, len(data))
        if message != NULL:
            memcpy(message_data(message), PyBytes_AS_STRING(data), len(data))
        return self.post(message)

    def add(self, int fd, Camera camera not None, *, str codec not None, int rtp_channel=0, int rtcp_channel=1,
            int payload_type=-1, parameter_sets=(), tuple jpeg_size=(0, 0), bytes received not None=b"") -> int:
        """Take a connection over after PLAY was sent; its handle."""
        cdef Connection* c
        cdef Message* message
        if camera.ring is not self.ring:
            raise ValueError("the camera's ring is another one than the thread's")
        if camera.connected:
            raise ValueError(f"{camera.key!r} has a connection; add it again once its CLOSED was taken")
        if not self.free_places:
            raise ValueError(f"the camera thread has {self.state.connections_max} connections, and may have no more")
        if len(received) > RECEIVED_MAX:
            raise ValueError(f"{len(received)} bytes received before the thread took over; {RECEIVED_MAX} may be")
        c = <Connection*>calloc(1, sizeof(Connection))
        message = message_new(COMMAND_ADD, 0, len(received))
        try:
            if c == NULL or message == NULL:
                raise MemoryError("no memory for a camera's connection")
            session_configure(&c.rtp, codec, rtp_channel, rtcp_channel, payload_type, parameter_sets, jpeg_size)
            os.set_blocking(fd, False)
        except BaseException:
            if c != NULL:
                session_free(&c.rtp)
            free(c)
            free(message)
            raise
        memcpy(message_data(message), PyBytes_AS_STRING(received), len(received))
        message.pointer = c
        return self.place(fd, camera, c, message)

    cdef object place(self, int fd, Camera camera, Connection* c, Message* message):
        """Give it a handle, and to the thread."""
        cdef uint32_t before
        c.fd = fd
        c.camera, c.thread = &camera.state, &self.state
        c.rtp.pool, c.rtp.counters, c.rtp.context = &self.state.pool, &camera.state.rtp, c
        c.rtp.unit_sink, c.rtp.text_sink = record_unit, tell_text
        c.rtp.unit_bytes_max = min(camera.state.record_bytes_max, <uint64_t>UNIT_MAX)
        c.index = self.free_places.pop()
        before = self.generations.get(c.index, 0)
        c.generation = before + 1 if before < GENERATION_MAX else 1
        self.generations[c.index] = c.generation
        found = <uint64_t>c.generation << 32 | c.index
        self.cameras[found] = camera
        camera.connected = True
        mailbox_post(&self.state.commands, message)
        return found

    def send(self, uint64_t handle, bytes data not None) -> None:
        """An RTSP message, whole."""
        self.say(COMMAND_SEND, handle, data)

    def remove(self, uint64_t handle, bytes last not None=b"") -> None:
        """Say this as far as the socket takes it, and close."""
        self.say(COMMAND_REMOVE, handle, last)

    @property
    def event_fd(self) -> int:
        """Readable when there are events."""
        return self.state.events.bell

    cdef object taken(self, const Message* message):
        """An event for Python; what was the connection's is free again after its last."""
        cdef Camera camera
        if message.kind == EVENT_TEXT:
            gw_add_relaxed(&self.state.event_bytes, 0 - <uint64_t>message.sizes[0])
        elif message.kind == EVENT_CLOSED:
            camera = self.cameras.pop(message.handle)
            camera.connected = False
            self.free_places.append(<uint32_t>message.handle)
        return (message.kind, message.handle, message.first,
                PyBytes_FromStringAndSize(<const char*>message_data(<Message*>message), message.sizes[0]))

    def events(self) -> list:
        """What happened since the last call, oldest first."""
        cdef Message* first
        cdef Message* message
        silence(self.state.events.bell)
        first = message = mailbox_take(&self.state.events)
        found = []
        while message != NULL:
            found.append(self.taken(message))
            message = message.next
        messages_free(first)
        return found

    @property
    def settled(self) -> bool:
        """Has the thread taken every command?"""
        return gw_load_acquire(&self.state.done) == self.state.commands.posted

    @property
    def counters(self) -> dict:
        cdef ThreadState* it = &self.state
        return {
            "connections": gw_load_relaxed(&it.open),
            "turns": gw_load_relaxed(&it.turns),
            "ticks_slept": gw_load_relaxed(&it.ticks_slept),
            "memory_bytes": gw_load_relaxed(&it.pool.used_bytes),
            "memory_bytes_peak": gw_load_relaxed(&it.pool.used_peak),
            "texts_dropped": gw_load_relaxed(&it.texts_dropped),
        }
