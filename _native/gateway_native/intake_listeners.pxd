"""A listening socket of the intake thread, and the ring behind it: who comes in, who waits for room, what may leave.

Inline functions only; all run on the thread.
"""

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset, strlen

from gateway_native.intake cimport *
from gateway_native.intake_messages cimport Message, mailbox_post, message_data, message_need, message_new
from gateway_native.intake_peers cimport peer_handle, peer_release, peer_retry, peer_settle, next_waiting
from gateway_native.mqtt cimport MqttConnection, MqttGroup
from gateway_native.mqtt_acks cimport acks_settle_refusals
from gateway_native.ring cimport RingState, ring_publish, ring_put
from gateway_native.sockets cimport EPOLLIN, c_close, silence, watch

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_seq(const uint64_t*)

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_port
        in6_addr sin6_addr
    struct sockaddr_storage:
        unsigned short ss_family
    unsigned short ntohs(unsigned short)
    enum: IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NODELAY

cdef extern from "<arpa/inet.h>" nogil:
    const char* inet_ntop(int, const void*, char*, unsigned int)

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    int accept4(int, sockaddr*, unsigned int*, int)
    int setsockopt(int, int, int, const void*, unsigned int)
    enum: AF_INET, AF_INET6, AF_UNIX, SOCK_NONBLOCK, SOCK_CLOEXEC

cdef enum:
    HOST_BYTES = 48                 # INET6_ADDRSTRLEN, and more
    ADDRESS_BYTES = 64
    # What an event of epoll is about, if it is no connection: above all generations.
    ABOUT_BELL = 0xFFFFFFFF
    ABOUT_ACCEPT = 0xFFFFFFFE
    ABOUT_RING = 0xFFFFFFFD
    GENERATION_MAX = 0xFFFFFFF0
    NONE_FREE = 0xFFFFFFFF


# -- accepting --------------------------------------------------------------------------------------------------------

cdef inline void address_text(const sockaddr_storage* address, char* text) noexcept nogil:
    """host:port, with brackets around IPv6."""
    cdef char[HOST_BYTES] host
    host[0] = 0
    if address.ss_family == AF_INET:
        inet_ntop(AF_INET, &(<const sockaddr_in*>address).sin_addr, host, HOST_BYTES)
        snprintf(text, ADDRESS_BYTES, "%s:%d", host, <int>ntohs((<const sockaddr_in*>address).sin_port))
    elif address.ss_family == AF_INET6:
        inet_ntop(AF_INET6, &(<const sockaddr_in6*>address).sin6_addr, host, HOST_BYTES)
        snprintf(text, ADDRESS_BYTES, "[%s]:%d", host, <int>ntohs((<const sockaddr_in6*>address).sin6_port))
    else:
        snprintf(text, ADDRESS_BYTES, "a Unix socket")


cdef inline bint grow_peers(IntakeState* it) noexcept nogil:
    cdef uint32_t capacity = it.peers_capacity * 2 if it.peers_capacity else 64
    cdef Peer** larger
    if it.peers_count < it.peers_capacity:
        return True
    if it.peers_capacity >= PEERS_MAX:
        return False
    larger = <Peer**>realloc(it.peers, capacity * sizeof(Peer*))
    if larger == NULL:
        return False
    it.peers = larger
    it.peers_capacity = capacity
    return True


cdef inline Peer* take_peer(IntakeState* it) noexcept nogil:
    """A free place, or a new one. NULL: no memory."""
    cdef uint32_t generation
    cdef Peer* p
    if it.first_free != NONE_FREE:
        p = it.peers[it.first_free]
        it.first_free = p.next_free
    else:
        if not grow_peers(it):
            return NULL
        p = <Peer*>calloc(1, sizeof(Peer))
        if p == NULL:
            return NULL
        p.index = it.peers_count
        it.peers[it.peers_count] = p
        it.peers_count += 1
    cdef uint32_t index = p.index
    generation = p.generation + 1 if p.generation < GENERATION_MAX else 1
    memset(p, 0, sizeof(Peer))
    p.index = index
    p.generation = generation
    p.mqtt.owner = p
    return p


cdef inline void welcome(IntakeState* it, IntakeListener* listener, int fd, const sockaddr_storage* address) noexcept nogil:
    """A socket becomes a connection, unless there are too many."""
    cdef int on = 1
    cdef Peer* p = NULL
    cdef Message* message
    if listener.sockets < listener.sockets_max:
        p = take_peer(it)
    if p == NULL:
        message = message_need(EVENT_REFUSED, 0)
        message.listener = listener.index
        mailbox_post(&it.events, message)
        c_close(fd)
        return
    p.fd = fd
    p.listener = listener
    listener.sockets += 1
    p.patience = listener.patience
    p.seen = it.tick
    if address.ss_family != AF_UNIX:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))
    message = message_new(EVENT_CONNECTED, peer_handle(p), ADDRESS_BYTES)
    if message == NULL:
        message = message_need(EVENT_CONNECTED, peer_handle(p))
    else:
        address_text(address, <char*>message_data(message))
        message.sizes[0] = strlen(<char*>message_data(message))
    message.listener = listener.index
    mailbox_post(&it.events, message)
    peer_settle(it, p)


cdef inline void listener_watch(IntakeState* it, IntakeListener* listener, bint wanted) noexcept nogil:
    cdef uint32_t i
    if listener.accepting == wanted:
        return
    listener.accepting = wanted
    for i in range(listener.fds_count):
        watch(it.epoll, listener.fds[i], 0 if wanted else EPOLLIN, EPOLLIN if wanted else 0,
              <uint64_t>ABOUT_ACCEPT << 32 | i << 8 | listener.index)


cdef inline void accept_some(IntakeState* it, IntakeListener* listener, int socket) noexcept nogil:
    """Its turn. When descriptors run out accepting rests until the next second: the queue would else be asked in a loop."""
    cdef sockaddr_storage address
    cdef unsigned int size
    cdef Message* message
    cdef int fd, i
    for i in range(ACCEPT_MAX):
        size = sizeof(address)
        memset(&address, 0, sizeof(address))
        fd = accept4(socket, <sockaddr*>&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            welcome(it, listener, fd, &address)
        elif errno == EAGAIN:
            return
        elif errno != EINTR and errno != ECONNABORTED:
            message = message_need(EVENT_ACCEPT, 0)
            message.listener = listener.index
            message.first = errno
            mailbox_post(&it.events, message)
            listener_watch(it, listener, False)
            return


# -- the ring's side ------------------------------------------------------------------------------------------------

cdef inline void release_all(IntakeState* it, IntakeListener* listener) noexcept nogil:
    """Send the acknowledgements that may leave."""
    cdef MqttConnection* connection = listener.group.waiting
    cdef MqttConnection* following
    cdef Peer* p
    acks_settle_refusals(listener.group)
    while connection != NULL:
        following = connection.next
        p = <Peer*>connection.owner
        peer_release(it, p)
        if p.broken or p.parked or p.out_size:
            peer_settle(it, p)
        connection = following


cdef inline bint put_record(IntakeState* it, IntakeListener* listener, Message* message) noexcept nogil:
    """A record of Python's. False: no room."""
    cdef uint64_t sequence
    cdef RingState* ring = listener.group.ring
    cdef size_t size = message.sizes[0] + message.sizes[1] + message.sizes[2]
    cdef Message* event
    cdef uint8_t* to = ring_put(ring, <uint32_t>message.first, 0, <int64_t>message.second, <uint32_t>message.sizes[0],
                                <uint32_t>message.sizes[1], <uint32_t>message.sizes[2], &sequence)
    if to == NULL:
        return False
    memcpy(to, message_data(message), size)
    ring_publish(ring)
    event = message_need(EVENT_RECORDED, 0)
    event.listener = listener.index
    event.first = size
    mailbox_post(&it.events, event)
    return True


cdef inline void put_records(IntakeState* it, IntakeListener* listener) noexcept nogil:
    """As far as there is room; nobody may pass those that are left."""
    cdef Message* message = listener.first_record
    while message != NULL:
        if not put_record(it, listener, message):
            listener.group.crowded = True
            return
        listener.first_record = message.next
        if listener.first_record == NULL:
            listener.last_record = NULL
        listener.waiting -= 1
        free(message)
        message = listener.first_record


cdef inline void reopen(IntakeState* it, IntakeListener* listener) noexcept nogil:
    """Let those who wait try again, each once, until the ring is full again."""
    cdef uint32_t turns
    cdef Peer* p
    listener.group.crowded = False
    put_records(it, listener)
    turns = listener.waiting
    while turns and not listener.group.crowded:
        turns -= 1
        p = next_waiting(listener)
        if p == NULL:
            return
        peer_retry(it, p)


cdef inline void ring_rang(IntakeState* it, IntakeListener* listener) noexcept nogil:
    """Acknowledgements may leave, a stream failed, or there is room again."""
    silence(listener.group.ring.event_fd)
    release_all(it, listener)
    if listener.group.crowded and gw_load_seq(&listener.group.ring.waiting) == 0:
        reopen(it, listener)


cdef inline void say_messages(
    IntakeState* it, IntakeListener* listener, uint32_t kind, uint64_t count, uint64_t* said, const MqttText* topic,
) noexcept nogil:
    cdef Message* message
    if count == said[0]:
        return
    message = message_new(kind, 0, topic.size)
    if message == NULL:
        return                          # the next second says it
    memcpy(message_data(message), topic.text, topic.size)
    message.listener = listener.index
    message.first = count - said[0]
    said[0] = count
    mailbox_post(&it.events, message)


cdef inline void say_unrecorded(IntakeState* it, IntakeListener* listener) noexcept nogil:
    """Messages without a route, or that their senders may not publish: for a log line, once a second at most."""
    cdef MqttGroup* group = listener.group
    say_messages(it, listener, EVENT_UNROUTED, group.unrouted, &listener.unrouted_said, &group.unrouted_topic)
    say_messages(it, listener, EVENT_FORBIDDEN, group.forbidden, &listener.forbidden_said, &group.forbidden_topic)
