"""One connection of the intake thread: reading, parsing, writing, parking, its end.

Inline functions only; all run on the thread. None of them frees a Peer: its place is used again, with another generation.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from gateway_native.intake cimport *
from gateway_native.intake_messages cimport Message, mailbox_post, message_data, message_need, message_new
from gateway_native.mqtt cimport (
    CROWDED_BYTES, FAULT_FORBIDDEN, FAULT_MEMORY, STOP_END, STOP_FAULT, STOP_PACKET, STOP_RATE, STOP_ROOM, STOP_STREAM,
    MqttConnection, MqttGroup, MqttText, connection_close, mqtt_parse)
from gateway_native.mqtt_acks cimport ACKS_REFUSED, acks_release
from gateway_native.mqtt_kept cimport kept_drop, kept_put
from gateway_native.sockets cimport (
    EPOLLIN, EPOLLOUT, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, c_close, recv, send, shutdown, watch)

cdef enum:
    LINGER_S = 2                    # after our last word: how long a peer may take to close its end
    STALLED_S = 60                  # a peer that reads nothing for so long while something waits for it is gone
    PING_BYTES = 4096               # of answers to pings written at once
    OUT_BYTES_MIN = 256


cdef inline uint64_t peer_handle(const Peer* p) noexcept nogil:
    return <uint64_t>p.generation << 32 | p.index


cdef inline Peer* peer_find(IntakeState* it, uint64_t handle) noexcept nogil:
    """NULL: that connection is gone, whoever has its place now."""
    cdef uint32_t index = <uint32_t>handle
    cdef Peer* p
    if index >= it.peers_count:
        return NULL
    p = it.peers[index]
    return p if p.fd >= 0 and p.generation == <uint32_t>(handle >> 32) else NULL


cdef inline void peer_arm(IntakeState* it, Peer* p) noexcept nogil:
    """Read exactly when something can be done with it; after the end only to see the peer's."""
    cdef uint32_t wanted = EPOLLOUT if p.out_size else 0
    if p.ending or not (p.parked or p.waits or p.limited or p.out_size or p.listener.paused):
        wanted |= EPOLLIN
    if watch(it.epoll, p.fd, p.armed, wanted, peer_handle(p)):
        p.armed = wanted
    else:
        p.broken = True             # no memory in the kernel: better gone than deaf


cdef inline void peer_forget(Peer* p) noexcept nogil:
    """Nothing more is recorded or acknowledged."""
    p.lost += connection_close(p.listener.group, &p.mqtt)
    kept_drop(&p.kept, p.listener.budget)
    p.kept.direct = False


cdef inline void peer_close(IntakeState* it, Peer* p) noexcept nogil:
    """The socket goes, and its place is free."""
    cdef Message* message = message_need(EVENT_CLOSED, peer_handle(p))
    peer_forget(p)
    peer_unwait(p)
    peer_unlimit(it, p)
    message.listener = p.listener.index
    message.first = p.lost
    out_empty(p)
    free(p.out)
    p.out = NULL
    p.out_start = p.out_capacity = 0
    c_close(p.fd)                   # epoll forgets it by itself
    p.fd = -1
    p.listener.sockets -= 1
    p.next_free = it.first_free
    it.first_free = p.index
    mailbox_post(&it.events, message)


cdef inline void peer_settle(IntakeState* it, Peer* p) noexcept nogil:
    """After anything was done with it: what had arrived from a lost peer is still recorded, then it goes."""
    if p.ending and not p.broken and not p.shut and p.out_size == 0:
        # Closing now, with bytes of the peer unread, would reset the connection and destroy our last word.
        p.shut = True
        shutdown(p.fd, SHUT_WR)
    if not p.broken:
        peer_arm(it, p)
    if p.broken and not p.waits and not p.limited:
        peer_close(it, p)
    elif p.broken and p.armed:
        watch(it.epoll, p.fd, p.armed, 0, 0)
        p.armed = 0


# -- waiting for room in the ring -------------------------------------------------------------------------------------

cdef inline void peer_wait(Peer* p) noexcept nogil:
    cdef IntakeListener* listener = p.listener
    p.waits = True
    p.next_waiting = NULL
    if listener.last_waiting == NULL:
        listener.first_waiting = p
    else:
        listener.last_waiting.next_waiting = p
    listener.last_waiting = p
    listener.waiting += 1


cdef inline Peer* next_waiting(IntakeListener* listener) noexcept nogil:
    cdef Peer* p = listener.first_waiting
    if p != NULL:
        listener.first_waiting = p.next_waiting
        if listener.first_waiting == NULL:
            listener.last_waiting = NULL
        p.waits = False
        listener.waiting -= 1
    return p


cdef inline void peer_unwait(Peer* p) noexcept nogil:
    """It ends before its turn comes."""
    cdef IntakeListener* listener = p.listener
    cdef Peer* before = NULL
    cdef Peer* at = listener.first_waiting
    if not p.waits:
        return
    while at != p:
        before, at = at, at.next_waiting
    if before == NULL:
        listener.first_waiting = p.next_waiting
    else:
        before.next_waiting = p.next_waiting
    if listener.last_waiting == p:
        listener.last_waiting = before
    p.waits = False
    listener.waiting -= 1


# -- resting, for it was faster than it may be ---------------------------------------------------------------------------

cdef inline void peer_limit(IntakeState* it, Peer* p) noexcept nogil:
    p.limited = True
    p.next_limited = it.first_limited
    if it.first_limited == NULL or p.mqtt.resume_ns < it.resume_ns:
        it.resume_ns = p.mqtt.resume_ns
    it.first_limited = p
    p.listener.limited += 1


cdef inline void peer_unlimit(IntakeState* it, Peer* p) noexcept nogil:
    cdef Peer** at = &it.first_limited
    if not p.limited:
        return
    while at[0] != p:
        at = &at[0].next_limited
    at[0] = p.next_limited
    p.limited = False
    p.listener.limited -= 1


cdef inline void resume_limited(IntakeState* it, int64_t now_ns) noexcept nogil:
    """Those whose rest is over go on; parsing may send them to rest again."""
    cdef Peer* p = it.first_limited
    cdef Peer* following
    if p == NULL or now_ns < it.resume_ns:
        return
    it.first_limited = NULL
    while p != NULL:
        following = p.next_limited
        p.limited = False
        p.listener.limited -= 1
        if p.mqtt.resume_ns <= now_ns:
            peer_retry(it, p)
        else:
            peer_limit(it, p)
        p = following


# -- writing ----------------------------------------------------------------------------------------------------------

cdef inline bint out_append(IntakeState* it, Peer* p, const uint8_t* data, size_t size) noexcept nogil:
    """What the socket did not take. False: too much, or no memory."""
    cdef size_t capacity = max(p.out_capacity, <size_t>OUT_BYTES_MIN)
    cdef uint8_t* larger
    if p.out_size + size > OUT_BYTES_MAX:
        return False
    if p.out_start:
        memmove(p.out, p.out + p.out_start, p.out_size)
        p.out_start = 0
    while capacity < p.out_size + size:
        capacity *= 2
    if capacity != p.out_capacity:
        larger = <uint8_t*>realloc(p.out, capacity)
        if larger == NULL:
            return False
        p.out = larger
        p.out_capacity = capacity
    memcpy(p.out + p.out_size, data, size)
    if p.out_size == 0:
        p.stalled_since = it.tick
        p.listener.stalled += 1
    p.out_size += size
    p.listener.unsent += size
    return True


cdef inline void out_empty(Peer* p) noexcept nogil:
    """Whatever waits is sent, or never will be."""
    if p.out_size:
        p.listener.stalled -= 1
        p.listener.unsent -= p.out_size
    p.out_size = 0
    p.stalled_since = 0


cdef inline void peer_write(IntakeState* it, Peer* p, const uint8_t* data, size_t size) noexcept nogil:
    """In order, behind what waits already. A lost socket only marks the peer `broken`."""
    cdef ssize_t sent = 0
    if p.broken or p.shut or size == 0:
        return
    if p.out_size == 0:
        sent = send(p.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                p.broken = True
                return
            sent = 0
    if <size_t>sent < size and not out_append(it, p, data + sent, size - sent):
        p.broken = True


cdef inline void peer_flush(IntakeState* it, Peer* p) noexcept nogil:
    """The socket takes more."""
    cdef ssize_t sent = send(p.fd, p.out + p.out_start, p.out_size, MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            p.broken = True
            out_empty(p)
        return
    if <size_t>sent < p.out_size:
        p.out_start += sent
        p.out_size -= sent
        p.listener.unsent -= sent
        p.stalled_since = it.tick
    else:
        out_empty(p)
        free(p.out)
        p.out = NULL
        p.out_start = p.out_capacity = 0


cdef inline void peer_release(IntakeState* it, Peer* p) noexcept nogil:
    """Write the acknowledgements that may leave, in one go."""
    cdef int trouble
    cdef size_t size = acks_release(p.listener.group, &p.mqtt, it.out, &trouble)
    cdef Message* message
    p.mqtt.refused = 0
    peer_write(it, p, it.out, size)
    if trouble and not p.failed and not p.broken:
        p.failed = p.parked = True
        message = message_need(EVENT_FAILED, peer_handle(p))
        message.listener = p.listener.index
        message.first = trouble == ACKS_REFUSED
        mailbox_post(&it.events, message)


cdef inline void peer_answer(IntakeState* it, Peer* p) noexcept nogil:
    """What waits for nobody: PINGRESP, and refusals whose turn it is."""
    cdef size_t pings = p.mqtt.pings
    cdef size_t size, i
    p.mqtt.pings = 0
    while pings and not p.broken:
        size = 2 * min(pings, <size_t>PING_BYTES // 2)
        for i in range(0, size, 2):
            it.out[i] = 0xD0
            it.out[i + 1] = 0
        peer_write(it, p, it.out, size)
        pings -= size // 2
    if p.mqtt.refused:
        peer_release(it, p)


# -- reading ----------------------------------------------------------------------------------------------------------

cdef inline void peer_fault(IntakeState* it, Peer* p, uint8_t fault) noexcept nogil:
    """Its connection has to end; the event loop says how."""
    cdef MqttGroup* group = p.listener.group
    cdef const MqttText* topic = &group.forbidden_topic if fault == FAULT_FORBIDDEN else &group.unrouted_topic
    cdef Message* message = message_new(EVENT_FAULT, peer_handle(p), topic.size)
    if message == NULL:
        message = message_need(EVENT_FAULT, peer_handle(p))
    else:
        memcpy(message_data(message), topic.text, topic.size)
    message.listener = p.listener.index
    message.first = fault
    p.parked = True
    kept_drop(&p.kept, p.listener.budget)
    p.kept.direct = False
    mailbox_post(&it.events, message)


cdef inline bint peer_park(IntakeState* it, Peer* p, const uint8_t* packet) noexcept nogil:
    """Hand a packet to the event loop. False: no memory."""
    cdef Message* message = message_new(EVENT_PACKET, peer_handle(p), p.mqtt.body_bytes)
    if message == NULL:
        return False
    message.listener = p.listener.index
    message.first = packet[0]
    memcpy(message_data(message), packet + p.mqtt.header_bytes, p.mqtt.body_bytes)
    p.parked = True
    mailbox_post(&it.events, message)
    return True


cdef inline bint peer_ask(IntakeState* it, Peer* p) noexcept nogil:
    """The packet waits for the partition of a stream that a template named. False: no memory."""
    cdef MqttText* wanted = &p.listener.group.wanted
    cdef Message* message = message_new(EVENT_STREAM, peer_handle(p), wanted.size)
    if message == NULL:
        return False
    message.listener = p.listener.index
    memcpy(message_data(message), wanted.text, wanted.size)
    p.parked = True
    mailbox_post(&it.events, message)
    return True


cdef inline void peer_parse(IntakeState* it, Peer* p, const uint8_t* data, size_t size) noexcept nogil:
    """Take what is whole, keep the rest."""
    cdef MqttGroup* group = p.listener.group
    cdef size_t position = 0
    cdef uint64_t need = 0
    cdef int stop = mqtt_parse(group, &p.mqtt, data, size, &position)
    cdef uint8_t fault = p.mqtt.fault if stop == STOP_FAULT else 0
    peer_answer(it, p)
    if stop == STOP_PACKET:
        if peer_park(it, p, data + position):
            position += p.mqtt.need
        else:
            fault = FAULT_MEMORY
    elif stop == STOP_ROOM:
        group.crowded = True
        group.stopped += 1
        peer_wait(p)
    elif stop == STOP_STREAM:
        if not peer_ask(it, p):
            fault = FAULT_MEMORY
    elif stop == STOP_RATE:
        peer_limit(it, p)
    elif stop == STOP_END:
        need = p.mqtt.need
        if position:
            p.partial_since = 0
    if fault == 0 and not kept_put(&p.kept, p.listener.budget, data, size, position, need):
        fault = FAULT_MEMORY
    if fault:
        peer_unwait(p)
        peer_unlimit(it, p)
        peer_fault(it, p, fault)
    elif p.kept.size == 0 or stop != STOP_END:
        p.partial_since = 0
    elif p.partial_since == 0:
        p.partial_since = it.tick


cdef inline void peer_retry(IntakeState* it, Peer* p) noexcept nogil:
    """There may be room again, or a decision was made: go on with what is kept."""
    p.seen = it.tick
    if p.kept.size and not p.parked:
        peer_parse(it, p, p.kept.block + p.kept.start, p.kept.size)
    peer_settle(it, p)


cdef inline void peer_discard(IntakeState* it, Peer* p) noexcept nogil:
    """After our last word: whatever still comes is thrown away, until the peer's end."""
    cdef ssize_t count = recv(p.fd, it.shared, RECEIVE_BYTES, MSG_DONTWAIT)
    if count == 0 or (count < 0 and errno != EAGAIN and errno != EINTR):
        p.broken = True


cdef inline void peer_receive(IntakeState* it, Peer* p) noexcept nogil:
    """One read: its turn."""
    cdef uint8_t* begin = p.kept.block if p.kept.direct else it.shared
    cdef size_t room = p.kept.capacity - p.kept.size if p.kept.direct else RECEIVE_BYTES
    cdef ssize_t count
    if not p.kept.direct and p.kept.size:
        memcpy(it.shared, p.kept.block + p.kept.start, p.kept.size)
    if p.listener.group.crowded or p.mqtt.rate.interval_ns or p.listener.group.rate.interval_ns:
        room = min(room, <size_t>CROWDED_BYTES)     # what may then have to be kept
    count = recv(p.fd, begin + p.kept.size, room, MSG_DONTWAIT)
    if count <= 0:
        if count == 0 or (errno != EAGAIN and errno != EINTR):
            p.broken = True
        return
    if count < BUSY_BYTES:
        it.small_reads += 1
    if p.mqtt.version:
        p.seen = it.tick
    peer_parse(it, p, begin, p.kept.size + count)


# -- once a second ----------------------------------------------------------------------------------------------------

cdef inline void peer_tell(IntakeState* it, Peer* p, uint32_t kind) noexcept nogil:
    cdef Message* message = message_need(kind, peer_handle(p))
    message.listener = p.listener.index
    mailbox_post(&it.events, message)


cdef inline void peer_look_after(IntakeState* it, Peer* p) noexcept nogil:
    """Time-outs. One that waits for room or for a decision is not silent: nobody reads from it."""
    cdef uint64_t patience = p.listener.packet_patience
    if p.ending:
        if it.tick - p.ended_at > LINGER_S:
            p.broken = True
            peer_settle(it, p)
    elif p.stalled_since and it.tick - p.stalled_since > STALLED_S:
        if not p.overdue:
            p.overdue = True
            peer_tell(it, p, EVENT_STALLED)
    elif p.parked or p.waits or p.limited or p.overdue or p.listener.paused:
        return
    elif p.patience and it.tick - p.seen > p.patience:
        p.overdue = True
        peer_tell(it, p, EVENT_OVERDUE)
    elif patience and p.partial_since and it.tick - p.partial_since > patience:
        p.overdue = True
        peer_tell(it, p, EVENT_DAWDLED)
    elif p.mqtt.acks_count == 0 and p.mqtt.acks_capacity > 8:
        free(p.mqtt.acks)           # it has gone quiet
        p.mqtt.acks = NULL
        p.mqtt.acks_capacity = 0
