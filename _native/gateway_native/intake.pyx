"""The intake thread. See intake.pxd for the contract, intake_peers.pxd for what becomes of one connection."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from gateway_native.intake_messages cimport (
    c_write,
    Message,
    mailbox_post,
    mailbox_take,
    message_data,
    message_need,
    message_new,
    messages_free,
    pthread_mutex_destroy,
    pthread_mutex_init,
)
from gateway_native.intake_peers cimport *
from gateway_native.intake_listeners cimport *
from gateway_native.mqtt cimport ACKS_MAX, ACK_BYTES_MAX, Group, MqttGroup, group_add_stream, group_set_routes
from gateway_native.mqtt_kept cimport DIRECT_BYTES
from gateway_native.mqtt_aliases cimport ALIASES_MAX
from gateway_native.mqtt_rate cimport rate_set
from gateway_native.mqtt_routes cimport MqttRoutes, Routes
from gateway_native.mqtt_session cimport Session
from gateway_native.outbox cimport outbox_drop
from gateway_native.sockets cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    EPOLL_CLOEXEC,
    EPOLLERR,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
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

import os

from gateway_native import mqtt

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_acquire(const uint64_t*)
    uint64_t gw_load_relaxed(const uint64_t*)
    uint64_t gw_load_seq(const uint64_t*)
    void gw_store_release(uint64_t*, uint64_t)
    void gw_store_relaxed(uint64_t*, uint64_t)

cdef extern from "clock.h" nogil:
    uint64_t gw_monotonic_ns()

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd*, unsigned long, const timespec*, const void*)
    enum: POLLIN

cdef enum:
    NS_PER_S = 1000000000
    NS_PER_MS = 1000000

CONNECTED, PACKET, FAULT, CLOSED = EVENT_CONNECTED, EVENT_PACKET, EVENT_FAULT, EVENT_CLOSED
OVERDUE, STALLED, FAILED = EVENT_OVERDUE, EVENT_STALLED, EVENT_FAILED
ACCEPT, RECORDED, REFUSED, UNROUTED = EVENT_ACCEPT, EVENT_RECORDED, EVENT_REFUSED, EVENT_UNROUTED
STREAM, DETACHED, FORBIDDEN, DAWDLED = EVENT_STREAM, EVENT_DETACHED, EVENT_FORBIDDEN, EVENT_DAWDLED


# -- commands ---------------------------------------------------------------------------------------------------------

cdef void add_listener(IntakeState* it, Message* message) noexcept nogil:
    cdef IntakeListener* listener = &it.listeners[message.listener]
    watch(it.epoll, listener.group.ring.event_fd, 0, EPOLLIN, <uint64_t>ABOUT_RING << 32 | listener.index)
    listener.used = True
    listener_watch(it, listener, True)


cdef void remove_listener(IntakeState* it, IntakeListener* listener) noexcept nogil:
    """Every socket of its goes."""
    cdef uint32_t i
    cdef Message* message
    listener_watch(it, listener, False)
    for i in range(it.peers_count):
        if it.peers[i].fd >= 0 and it.peers[i].listener == listener:
            peer_close(it, it.peers[i])
    while listener.first_record != NULL:
        message = listener.first_record
        listener.first_record = message.next
        free(message)
    listener.last_record = NULL
    listener.waiting = 0
    watch(it.epoll, listener.group.ring.event_fd, EPOLLIN, 0, 0)
    publish_counters(it)
    listener.used = False


cdef void pause_listener(IntakeState* it, IntakeListener* listener, bint paused) noexcept nogil:
    """Accept and read nothing more, or again. What had arrived still goes into the ring."""
    cdef uint32_t i
    listener.paused = paused
    listener_watch(it, listener, not paused)
    for i in range(it.peers_count):
        if it.peers[i].fd >= 0 and it.peers[i].listener == listener:
            it.peers[i].seen = it.tick
            peer_settle(it, it.peers[i])


cdef void take_record(IntakeState* it, IntakeListener* listener, Message* message) noexcept nogil:
    message.next = NULL
    if listener.last_record == NULL:
        listener.first_record = message
    else:
        listener.last_record.next = message
    listener.last_record = message
    listener.waiting += 1
    if not listener.group.crowded:
        put_records(it, listener)


cdef void end_peer(IntakeState* it, Peer* p, Message* message) noexcept nogil:
    """Acknowledge what can be, say the last word, and wait for the peer's end."""
    if p.ending:
        return
    p.failed = True                     # what is left of its acknowledgements is known to be lost
    peer_release(it, p)
    peer_unwait(p)
    peer_unlimit(it, p)
    peer_forget(p)
    peer_tell(it, p, EVENT_DETACHED)
    peer_write(it, p, message_data(message), message.sizes[0])
    p.parked = False
    p.ending = True
    p.ended_at = it.tick
    peer_settle(it, p)


cdef void open_peer(IntakeState* it, Peer* p, const Opening* opening) noexcept nogil:
    """CONNECT was accepted. Commands come in order, so another connection's `end` has freed the session already."""
    if opening.session != NULL:
        if opening.session.attached:
            p.broken = True             # its owner did not end the other connection first
            peer_settle(it, p)
            return
        opening.session.attached = True
    p.mqtt.session = opening.session
    p.mqtt.allow = opening.allow
    p.mqtt.version = opening.version
    p.mqtt.inflight_max = opening.inflight_max
    p.mqtt.aliases.max = opening.aliases_max
    p.mqtt.client_header = opening.client_header
    p.mqtt.rate = opening.rate
    p.patience = opening.patience
    p.seen = it.tick


cdef void command_peer(IntakeState* it, Message* message) noexcept nogil:
    cdef Peer* p = peer_find(it, message.handle)
    if p == NULL:
        return                          # too late: that connection is gone
    if message.kind == COMMAND_END:
        end_peer(it, p, message)
    elif message.kind == COMMAND_ABORT:
        peer_unwait(p)
        peer_unlimit(it, p)
        p.broken = True
        peer_settle(it, p)
    elif p.ending:
        return
    elif message.kind == COMMAND_SEND:
        peer_write(it, p, message_data(message), message.sizes[0])
        peer_settle(it, p)
    elif message.kind == COMMAND_OPEN:
        open_peer(it, p, <const Opening*>message_data(message))
    elif message.kind == COMMAND_RESUME and p.parked and not p.failed:
        p.parked = False
        peer_retry(it, p)


cdef bint command(IntakeState* it, Message* message) noexcept nogil:
    """True: the message may be freed."""
    cdef IntakeListener* listener = &it.listeners[message.listener]
    if message.kind == COMMAND_ADD:
        add_listener(it, message)
    elif message.handle:
        command_peer(it, message)
    elif not listener.used:
        return True
    elif message.kind == COMMAND_REMOVE:
        remove_listener(it, listener)
    elif message.kind == COMMAND_LEAVE:
        listener_watch(it, listener, False)
        listener.fds_count = 0
    elif message.kind == COMMAND_PAUSE or message.kind == COMMAND_UNPAUSE:
        pause_listener(it, listener, message.kind == COMMAND_PAUSE)
    elif message.kind == COMMAND_RECORD:
        take_record(it, listener, message)
        return False
    elif message.kind == COMMAND_ROUTES:
        group_set_routes(listener.group, <MqttRoutes*>message.pointer)
    elif message.kind == COMMAND_STREAM:
        group_add_stream(listener.group, message_data(message), <uint32_t>message.sizes[0], <uint32_t>message.first)
    return True


cdef void take_commands(IntakeState* it) noexcept nogil:
    cdef Message* message = mailbox_take(&it.commands)
    cdef Message* following
    cdef uint64_t count = 0
    while message != NULL:
        following = message.next
        if command(it, message):
            free(message)
        message = following
        count += 1
    if count:
        publish_counters(it)
        gw_store_release(&it.done, gw_load_relaxed(&it.done) + count)


# -- the thread's turns -----------------------------------------------------------------------------------------------

cdef void publish_counters(IntakeState* it) noexcept nogil:
    cdef IntakeListener* listener
    cdef MqttGroup* group
    cdef int i
    for i in range(LISTENERS_MAX):
        listener = &it.listeners[i]
        if not listener.used:
            continue
        group = listener.group
        gw_store_relaxed(&listener.counters.records, group.records)
        gw_store_relaxed(&listener.counters.bytes, group.bytes)
        gw_store_relaxed(&listener.counters.unrouted, group.unrouted)
        gw_store_relaxed(&listener.counters.acknowledged, group.acknowledged)
        gw_store_relaxed(&listener.counters.refused, group.refused)
        gw_store_relaxed(&listener.counters.pending, group.pending)
        gw_store_relaxed(&listener.counters.stopped, group.stopped)
        gw_store_relaxed(&listener.counters.kept, listener.budget.kept)
        gw_store_relaxed(&listener.counters.overflowed, group.overflowed)
        gw_store_relaxed(&listener.counters.forbidden, group.forbidden)
        gw_store_relaxed(&listener.counters.duplicates, group.duplicates)
        gw_store_relaxed(&listener.counters.limited, listener.limited)
        gw_store_relaxed(&listener.counters.stalled, listener.stalled)
        gw_store_relaxed(&listener.counters.unsent, listener.unsent)
        gw_store_relaxed(&listener.counters.sockets, listener.sockets)
        gw_store_relaxed(&listener.counters.waiting, listener.waiting)


cdef void second_passed(IntakeState* it) noexcept nogil:
    """Counted rather than read from a clock: a machine that slept kills no healthy client."""
    cdef uint32_t i
    it.tick += 1
    for i in range(it.peers_count):
        if it.peers[i].fd >= 0:
            peer_look_after(it, it.peers[i])
    for i in range(LISTENERS_MAX):
        if it.listeners[i].used:
            say_unrecorded(it, &it.listeners[i])
            if not it.listeners[i].paused:
                listener_watch(it, &it.listeners[i], True)
            if it.listeners[i].group.crowded and gw_load_seq(&it.listeners[i].group.ring.waiting) == 0:
                reopen(it, &it.listeners[i])    # the ring's event does this; once more costs nothing


cdef void peer_event(IntakeState* it, Peer* p, uint32_t events) noexcept nogil:
    cdef uint32_t watched = p.armed
    if p.out.size and events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
        peer_flush(it, p)
    if watched & EPOLLIN and not p.broken and events & (EPOLLIN | EPOLLERR | EPOLLHUP):
        if p.ending:
            peer_discard(it, p)
        else:
            peer_receive(it, p)
    peer_settle(it, p)


cdef void handle(IntakeState* it, const epoll_event* event) noexcept nogil:
    cdef uint32_t about = <uint32_t>(event.data.u64 >> 32)
    cdef IntakeListener* listener = &it.listeners[<uint32_t>event.data.u64 % LISTENERS_MAX]
    cdef Peer* p
    if about == ABOUT_BELL:
        silence(it.commands.bell)
        take_commands(it)               # again: the bell of one that came since this turn began is silent now
    elif about == ABOUT_ACCEPT:
        if listener.accepting:
            accept_some(it, listener, listener.fds[(<uint32_t>event.data.u64 >> 8) % SOCKETS_MAX])
    elif about == ABOUT_RING:
        listener.ring_rang = listener.used
    else:
        p = peer_find(it, event.data.u64)
        if p != NULL:
            peer_event(it, p, event.events)


cdef int patience_ms(IntakeState* it, uint64_t now) noexcept nogil:
    """How long nothing but an event can be of interest."""
    cdef uint64_t until = it.ticked_ns + NS_PER_S
    if it.first_limited != NULL:
        until = min(until, <uint64_t>it.resume_ns)
    return 0 if until <= now else <int>((until - now + NS_PER_MS - 1) // NS_PER_MS)


cdef void turn(IntakeState* it, epoll_event* events) noexcept nogil:
    """Look once: at most a second, handle what is there, see to the time."""
    cdef int i
    cdef int count = epoll_wait(it.epoll, events, EVENTS_MAX, patience_ms(it, gw_monotonic_ns()))
    it.slept_ns = gw_monotonic_ns()
    it.small_reads = 0
    take_commands(it)
    for i in range(count):
        handle(it, &events[i])
    for i in range(LISTENERS_MAX):
        if it.listeners[i].ring_rang:
            it.listeners[i].ring_rang = False
            if it.listeners[i].used:
                ring_rang(it, &it.listeners[i])
    resume_limited(it, <int64_t>it.slept_ns)
    if it.slept_ns - it.ticked_ns >= NS_PER_S:
        it.ticked_ns = it.slept_ns
        second_passed(it)
    publish_counters(it)
    gw_store_relaxed(&it.turns, gw_load_relaxed(&it.turns) + 1)


cdef uint32_t sockets_open(IntakeState* it) noexcept nogil:
    cdef uint32_t sockets = 0
    cdef int i
    for i in range(LISTENERS_MAX):
        sockets += it.listeners[i].sockets
    return sockets


cdef void rest_until(IntakeState* it, uint64_t until) noexcept nogil:
    """Look at no socket. Acknowledgements leave all the same: those who wait for them have waited for a look already."""
    cdef pollfd[LISTENERS_MAX + 1] bells
    cdef IntakeListener* listeners[LISTENERS_MAX]
    cdef timespec left
    cdef int count = 0
    cdef int i
    cdef uint64_t now = gw_monotonic_ns()
    for i in range(LISTENERS_MAX):
        if it.listeners[i].used:
            listeners[count] = &it.listeners[i]
            bells[count].fd, bells[count].events = listeners[count].group.ring.event_fd, POLLIN
            count += 1
    bells[count].fd, bells[count].events = it.commands.bell, POLLIN
    left.tv_sec = 0
    while now < until:
        left.tv_nsec = <long>(until - now)
        if ppoll(bells, count + 1, &left, NULL) <= 0 or bells[count].revents:
            return                      # time is over, or the event loop decided something
        for i in range(count):
            if bells[i].revents:
                ring_rang(it, listeners[i])
        now = gw_monotonic_ns()


cdef void rest(IntakeState* it) noexcept nogil:
    """Under load from many small senders let what comes next collect: each look and each commit then serves more."""
    cdef uint64_t now = gw_monotonic_ns()
    it.window_reads += it.small_reads
    if now - it.window_ns >= TICK_NS:
        it.window_ns = it.slept_ns
        it.window_reads = it.small_reads
    if it.window_reads >= BUSY_READS and sockets_open(it) >= BUSY_SOCKETS and now - it.window_ns < TICK_NS:
        gw_store_relaxed(&it.ticks_slept, gw_load_relaxed(&it.ticks_slept) + 1)
        rest_until(it, it.window_ns + TICK_NS)
        it.window_ns = gw_monotonic_ns()
        it.window_reads = 0


cdef class Intake:
    """All plain sockets of the process, on one thread, which `run` becomes.

    Every call but `run` belongs to one other thread, the event loop's; none of them waits. A listener is a small number;
    a handle stands for one connection and is never used again within 4 billion connections of its place.
    """

    def __cinit__(self):
        cdef int i
        self.state.epoll = self.state.commands.bell = self.state.events.bell = -1
        self.state.first_free = NONE_FREE
        self.state.tick = 1
        pthread_mutex_init(&self.state.commands.lock, NULL)
        pthread_mutex_init(&self.state.events.lock, NULL)
        self.groups = [None] * LISTENERS_MAX
        self.retired = []
        for i in range(LISTENERS_MAX):
            self.state.listeners[i].index = i
        self.state.shared = <uint8_t*>malloc(RECEIVE_BYTES + DIRECT_BYTES)
        self.state.out = <uint8_t*>malloc(ACKS_MAX * ACK_BYTES_MAX)
        if self.state.shared == NULL or self.state.out == NULL:
            raise MemoryError("no memory for the intake thread's buffers")
        self.state.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.state.commands.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.state.events.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.state.epoll < 0 or self.state.commands.bell < 0 or self.state.events.bell < 0:
            raise OSError(errno, f"no descriptors for the intake thread: {os.strerror(errno)}")
        watch(self.state.epoll, self.state.commands.bell, 0, EPOLLIN, <uint64_t>ABOUT_BELL << 32)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.state.peers_count):
            if self.state.peers[i].fd >= 0:
                c_close(self.state.peers[i].fd)
            free(self.state.peers[i].kept.block)
            outbox_drop(&self.state.peers[i].out)
            free(self.state.peers[i].mqtt.acks)
            free(self.state.peers[i])
        free(self.state.peers)
        messages_free(self.state.commands.first)
        messages_free(self.state.events.first)
        for i in range(LISTENERS_MAX):
            messages_free(self.state.listeners[i].first_record)
        for fd in (self.state.epoll, self.state.commands.bell, self.state.events.bell):
            if fd >= 0:
                c_close(fd)
        free(self.state.shared)
        free(self.state.out)
        pthread_mutex_destroy(&self.state.commands.lock)
        pthread_mutex_destroy(&self.state.events.lock)

    def run(self) -> None:
        """The thread's body: returns after `stop`. The GIL is not held."""
        cdef IntakeState* it = &self.state
        cdef epoll_event* events = <epoll_event*>malloc(EVENTS_MAX * sizeof(epoll_event))
        if events == NULL:
            raise MemoryError("no memory for the intake thread's events")
        with nogil:
            prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)        # a rest is for single ticks
            it.ticked_ns = gw_monotonic_ns()
            while not gw_load_acquire(&it.stopping):
                turn(it, events)
                rest(it)
        free(events)

    def stop(self) -> None:
        """End the thread after its turn. Sockets stay until their listeners are removed, or this object goes."""
        cdef uint64_t one = 1
        gw_store_release(&self.state.stopping, 1)
        c_write(self.state.commands.bell, &one, sizeof(one))

    cdef int post(self, Message* message) except -1:
        if message == NULL:
            raise MemoryError("no memory for a command to the intake thread")
        mailbox_post(&self.state.commands, message)
        return 0

    # -- listeners

    def add_listener(self, fds, Group group not None, *, uint32_t sockets_max, uint64_t patience_s,
                     uint64_t packet_patience_s=0) -> int:
        """Accept from these listening sockets, which must not block; nobody else drives the group from here on.

        sockets_max: more are closed at once. patience_s: until CONNECT must be there. packet_patience_s: until any packet
        must be whole (0: for ever). Raises ValueError when there are too many listeners.
        """
        cdef Message* message
        cdef IntakeListener* listener
        cdef int index = next((i for i in range(LISTENERS_MAX) if self.groups[i] is None), -1)
        if index < 0:
            raise ValueError(f"the intake thread has {LISTENERS_MAX} listeners already")
        if len(fds) > SOCKETS_MAX:
            raise ValueError(f"a listener accepts from {SOCKETS_MAX} sockets at most, not {len(fds)}")
        listener = &self.state.listeners[index]         # not the thread's before it has taken the command
        listener.fds_count = <uint32_t>len(fds)
        for i in range(len(fds)):
            listener.fds[i] = fds[i]
        listener.unrouted_said, listener.forbidden_said = group.state.unrouted, group.state.forbidden
        listener.group = &group.state
        listener.budget = &group.budget
        listener.sockets_max = sockets_max
        listener.patience, listener.packet_patience = patience_s, packet_patience_s
        listener.paused = False
        message = message_new(COMMAND_ADD, 0, 0)
        if message != NULL:
            message.listener = index
        self.post(message)
        self.groups[index] = group
        return index

    cdef int tell(self, int listener, uint32_t kind, void* pointer=NULL) except -1:
        cdef Message* message
        if not 0 <= listener < LISTENERS_MAX or self.groups[listener] is None:
            raise ValueError(f"{listener} is no listener")
        message = message_new(kind, 0, 0)
        if message != NULL:
            message.listener = listener
            message.pointer = pointer
        return self.post(message)

    def leave(self, int listener) -> None:
        """Accept no more. The socket may be closed once this is `settled`."""
        self.tell(listener, COMMAND_LEAVE)

    def pause(self, int listener) -> None:
        """Accept and read nothing more. Once this is `settled` and nothing waits, all that had been read is in the ring."""
        self.tell(listener, COMMAND_PAUSE)

    def unpause(self, int listener) -> None:
        self.tell(listener, COMMAND_UNPAUSE)

    def remove_listener(self, int listener) -> None:
        """Close all its connections; each has its CLOSED event. Once `settled`, call `forget_listener`."""
        self.tell(listener, COMMAND_REMOVE)

    def forget_listener(self, int listener) -> None:
        """Its number may be given out again; the group is nobody's. Raises RuntimeError before `settled`."""
        if not self.settled:
            raise RuntimeError("the intake thread has not removed the listener yet")
        self.groups[listener] = None

    def set_routes(self, int listener, Routes routes not None) -> None:
        """From some packet soon on."""
        cdef Group group = self.groups[listener]
        for partition in routes.partitions:
            group.check_partition(partition)
        self.tell(listener, COMMAND_ROUTES, &routes.table)
        self.retired.append(group.routes)
        group.routes = routes

    def record(self, int listener, uint32_t partition, bytes key not None, bytes value not None, bytes headers not None,
               int64_t timestamp_ns) -> None:
        """Put a record into the listener's ring as soon as there is room, before connections that wait; then RECORDED.

        As `Ring.append` otherwise. How many bytes may wait is the caller's to bound.
        """
        cdef size_t total = len(key) + len(value) + len(headers)
        cdef Message* message
        cdef uint8_t* to
        if not 0 <= listener < LISTENERS_MAX or self.groups[listener] is None:
            raise ValueError(f"{listener} is no listener")
        if partition >= (<Group>self.groups[listener]).ring.state.partitions:
            raise IndexError(f"there is no partition {partition}")
        if total > (<Group>self.groups[listener]).ring.largest_record:
            raise ValueError(f"a record of {total} bytes never fits into the ring")
        message = message_new(COMMAND_RECORD, 0, total)
        if message != NULL:
            message.listener = listener
            message.first, message.second = partition, <uint64_t>timestamp_ns
            message.sizes = [len(key), len(value), len(headers)]
            to = message_data(message)
            memcpy(to, <const char*>key, len(key))
            memcpy(to + len(key), <const char*>value, len(value))
            memcpy(to + len(key) + len(value), <const char*>headers, len(headers))
        self.post(message)

    # -- verdicts

    def open(self, int listener, uint64_t handle, *, int version, uint32_t inflight_max, uint64_t patience_s,
             Session session=None, int topic_alias_max=0, Routes allow=None, bint client_header=False,
             double rate_messages=0.0) -> None:
        """CONNECT was accepted: see `mqtt.Connection.open`. patience_s: silence until OVERDUE; 0: for ever.

        session and allow must stay alive until CLOSED; the session's former connection must have been ended before.
        """
        cdef Opening opening
        cdef Message* message
        cdef Group group = self.groups[listener]
        if version not in (4, 5):
            raise ValueError(f"MQTT protocol level {version}; 4 and 5 are known")
        if not 1 <= inflight_max <= ACKS_MAX:
            raise ValueError(f"inflight_max is 1 to {ACKS_MAX}, not {inflight_max}")
        if not 0 <= topic_alias_max <= ALIASES_MAX:
            raise ValueError(f"topic_alias_max is 0 to {ALIASES_MAX}, not {topic_alias_max}")
        if client_header and session is None:
            raise ValueError("the client header needs a session, which knows the client")
        if session is not None:
            session.adopt(group, &group.state.sessions)
        opening.version, opening.inflight_max, opening.aliases_max = version, inflight_max, topic_alias_max
        opening.client_header, opening.patience = client_header, patience_s
        opening.session = NULL if session is None else &session.state
        opening.allow = NULL if allow is None else &allow.table
        rate_set(&opening.rate, rate_messages)
        message = message_new(COMMAND_OPEN, handle, sizeof(Opening))
        if message != NULL:
            memcpy(message_data(message), &opening, sizeof(Opening))
        self.post(message)

    def add_stream(self, int listener, uint64_t handle, bytes name not None, uint32_t partition) -> None:
        """The stream that a connection waits for has this partition; it goes on."""
        cdef Message* message
        (<Group>self.groups[listener]).check_partition(partition)
        message = message_new(COMMAND_STREAM, 0, len(name))
        if message != NULL:
            message.listener, message.first = listener, partition
            memcpy(message_data(message), <const char*>name, len(name))
        self.post(message)
        self.resume(handle)

    cdef int say(self, uint32_t kind, uint64_t handle, bytes data) except -1:
        cdef Message* message = message_new(kind, handle, len(data))
        if message != NULL:
            memcpy(message_data(message), <const char*>data, len(data))
        return self.post(message)

    def send(self, uint64_t handle, bytes data not None) -> None:
        """Whole packets; nothing happens if the connection is gone."""
        self.say(COMMAND_SEND, handle, data)

    def resume(self, uint64_t handle) -> None:
        """The packet that parked it is decided on: parse on."""
        self.say(COMMAND_RESUME, handle, b"")

    def end(self, uint64_t handle, bytes last not None) -> None:
        """Take and acknowledge nothing more, say this, give the peer time to read it, close."""
        self.say(COMMAND_END, handle, last)

    def abort(self, uint64_t handle) -> None:
        """Close at once."""
        self.say(COMMAND_ABORT, handle, b"")

    # -- what happened

    @property
    def event_fd(self) -> int:
        """Readable when there are events."""
        return self.state.events.bell

    def events(self) -> list:
        """(kind, listener, handle, number, data) of everything that happened since the last call; see the constants."""
        cdef Message* message
        cdef Message* following
        cdef list found = []
        silence(self.state.events.bell)
        message = mailbox_take(&self.state.events)
        while message != NULL:
            following = message.next
            found.append((message.kind, message.listener, message.handle, message.first,
                          PyBytes_FromStringAndSize(<const char*>message_data(message), message.sizes[0])))
            free(message)
            message = following
        return found

    @property
    def settled(self) -> bool:
        """Has the thread taken every command?"""
        return gw_load_acquire(&self.state.done) == self.state.commands.posted

    def counters(self, int listener) -> dict:
        """As `mqtt.Group.counters`, and sockets; as of the thread's last turn."""
        cdef Counters* counters = &self.state.listeners[listener % LISTENERS_MAX].counters
        return {
            "records": gw_load_relaxed(&counters.records),
            "bytes": gw_load_relaxed(&counters.bytes),
            "unrouted": gw_load_relaxed(&counters.unrouted),
            "acknowledged": gw_load_relaxed(&counters.acknowledged),
            "refused_full_disk": gw_load_relaxed(&counters.refused),
            "unacknowledged": gw_load_relaxed(&counters.pending),
            "stopped_for_room": gw_load_relaxed(&counters.stopped),
            "kept_bytes": gw_load_relaxed(&counters.kept),
            "overflowed": gw_load_relaxed(&counters.overflowed),
            "forbidden": gw_load_relaxed(&counters.forbidden),
            "duplicates": gw_load_relaxed(&counters.duplicates),
            "resting": gw_load_relaxed(&counters.limited),
            "not_reading": gw_load_relaxed(&counters.stalled),
            "unsent_bytes": gw_load_relaxed(&counters.unsent),
            "sockets": gw_load_relaxed(&counters.sockets),
            "waiting_for_room": gw_load_relaxed(&counters.waiting),
        }

    @property
    def turns(self) -> tuple:
        """(looks at the sockets, how many of them were followed by a rest of a tick)."""
        return gw_load_relaxed(&self.state.turns), gw_load_relaxed(&self.state.ticks_slept)


def fault_text(int number) -> tuple:
    """(MQTT 5 reason code, what a log line says) of a FAULT event's number."""
    return mqtt.FAULTS[number]
