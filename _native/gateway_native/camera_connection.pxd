"""One connection of the camera thread: reading, writing, what is said of it, its end.

Inline functions only; all run on the thread. None but connection_close frees a Connection.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove, memset, strlen

from gateway_native.camera_record cimport NUMBER_BYTES
from gateway_native.camera_thread cimport *
from gateway_native.intake_messages cimport Message, mailbox_post, message_data, message_need, message_new
from gateway_native.ring cimport ring_publish
from gateway_native.rtp cimport (
    CODEC_JPEG, REPORT_BYTES, session_end, session_feed, session_free, session_front, session_picture, session_report)
from gateway_native.rtp_blocks cimport buffer_drop, buffer_room
from gateway_native.sockets cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, c_close, recv, send, shutdown, watch)
from gateway_native.state cimport bump

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_relaxed(const uint64_t*)
    void gw_store_relaxed(uint64_t*, uint64_t)
    uint64_t gw_add_relaxed(uint64_t*, uint64_t)

cdef extern from "clock.h" nogil:
    uint64_t gw_monotonic_ns()
    int64_t gw_realtime_ns()

cdef enum:
    NS_PER_S = 1000000000
    RATE_SHARE = 4                  # of a new second in the rates


cdef inline uint64_t connection_handle(const Connection* c) noexcept nogil:
    return <uint64_t>c.generation << 32 | c.index


cdef inline Connection* connection_find(ThreadState* it, uint64_t handle) noexcept nogil:
    """NULL: it is gone, whoever has its place now."""
    cdef uint32_t index = <uint32_t>handle
    cdef Connection* c
    if index >= it.connections_max:
        return NULL
    c = it.connections[index]
    return c if c != NULL and c.generation == <uint32_t>(handle >> 32) else NULL


# -- what is said of it -----------------------------------------------------------------------------------------------

cdef inline void tell(Connection* c, uint32_t kind, uint64_t number, const void* data, size_t size) noexcept nogil:
    """Without memory for its data an event comes without."""
    cdef Message* message = message_new(kind, connection_handle(c), size)
    if message == NULL:
        message = message_need(kind, connection_handle(c))
    elif size:
        memcpy(message_data(message), data, size)
    message.first = number
    mailbox_post(&c.thread.events, message)


cdef inline void tell_text(void* context, const uint8_t* text, size_t size) noexcept nogil:
    """The session's sink."""
    cdef Connection* c = <Connection*>context
    c.texts += 1
    c.text_bytes += size
    if c.texts > TEXTS_MAX or c.text_bytes > TEXT_BYTES_SECOND:
        c.cause, c.over = CAUSE_CHATTER, True
    elif gw_load_relaxed(&c.thread.event_bytes) + size > EVENT_BYTES_MAX:
        bump(&c.thread.texts_dropped, 1)
    else:
        gw_add_relaxed(&c.thread.event_bytes, size)
        tell(c, EVENT_TEXT, 0, text, size)


cdef inline void tell_picture(Connection* c) noexcept nogil:
    cdef size_t size = 0
    cdef const uint8_t* found = NULL
    cdef uint64_t number = 0
    if c.rtp.codec == CODEC_JPEG:
        number = <uint64_t>c.rtp.image_width << 32 | c.rtp.image_height
    else:
        found = session_picture(&c.rtp, &size)
    tell(c, EVENT_PICTURE, number, found, size)


cdef inline bint may_tell(Connection* c) noexcept nogil:
    """A camera that changes all the time does so once a second, as far as Python can see."""
    if c.news >= NEWS_MAX:
        return False
    c.news += 1
    return True


cdef inline void tell_news(Connection* c) noexcept nogil:
    if c.say_run and may_tell(c):
        c.say_run = False
        tell(c, EVENT_RUN, <uint64_t>c.camera.run, NULL, 0)
    if c.rtp.picture_changed and c.unit_ns and may_tell(c):
        c.rtp.picture_changed = False
        tell_picture(c)
    if c.say_resumed and may_tell(c):
        c.say_resumed = False
        tell(c, EVENT_RESUMED, 0, NULL, 0)
    if c.rtp.goodbye and may_tell(c):
        c.rtp.goodbye = False
        tell(c, EVENT_GOODBYE, 0, NULL, 0)


cdef inline void tell_losses(Connection* c) noexcept nogil:
    cdef Loss* packets = &c.losses[LOSS_PACKETS]
    cdef int i
    packets.count = c.camera.rtp.lost_packets - c.packets_said
    c.packets_said = c.camera.rtp.lost_packets
    packets.first_ns, packets.last_ns = c.rtp.hole_first_ns, c.rtp.hole_last_ns
    c.rtp.hole_first_ns = 0
    for i in range(LOSSES):
        if c.losses[i].count:
            tell(c, EVENT_LOST, i, &c.losses[i], sizeof(Loss))
            memset(&c.losses[i], 0, sizeof(Loss))


# -- its end ----------------------------------------------------------------------------------------------------------

cdef inline void connection_finish(Connection* c) noexcept nogil:
    """Nothing more is recorded."""
    session_end(&c.rtp)
    tell_news(c)
    tell_losses(c)
    gw_store_relaxed(&c.camera.interval_ns, 0)
    gw_store_relaxed(&c.camera.bits_per_second, 0)


cdef inline void connection_close(ThreadState* it, Connection* c) noexcept nogil:
    cdef char[NUMBER_BYTES] detail
    detail[0] = 0
    if not c.leaving:
        connection_finish(c)
    if c.cause == CAUSE_SOCKET:
        snprintf(detail, NUMBER_BYTES, "%d", c.error)
    elif c.cause == CAUSE_FAULT:
        snprintf(detail, NUMBER_BYTES, "%d", <int>c.rtp.fault)
    ring_publish(it.ring)               # whoever hears of the end may count on it
    tell(c, EVENT_CLOSED, c.cause, detail, strlen(detail))
    it.connections[c.index] = NULL
    c_close(c.fd)                       # epoll forgets it by itself
    session_free(&c.rtp)
    buffer_drop(&it.pool, &c.out)
    free(c)
    gw_store_relaxed(&it.open, it.open - 1)


cdef inline void connection_broken(Connection* c, uint8_t cause, int error) noexcept nogil:
    """It has to be closed; the first cause is the one that is told."""
    c.over = True
    if c.cause == CAUSE_NONE:
        c.cause, c.error = cause, error


cdef inline void connection_settle(ThreadState* it, Connection* c) noexcept nogil:
    """After anything was done with it."""
    cdef uint32_t wanted = EPOLLIN | (EPOLLOUT if c.out.size else 0)
    if c.rtp.fault:
        connection_broken(c, CAUSE_FAULT, 0)
    if not c.over and not watch(it.epoll, c.fd, c.armed, wanted, connection_handle(c)):
        connection_broken(c, CAUSE_SOCKET, errno)
    if c.over:
        connection_close(it, c)
    else:
        c.armed = wanted
        tell_news(c)


# -- writing ----------------------------------------------------------------------------------------------------------

cdef inline void out_keep(Connection* c, const uint8_t* data, size_t size) noexcept nogil:
    """What the socket did not take."""
    if c.out_start:
        c.out.size -= c.out_start
        memmove(c.out.data, c.out.data + c.out_start, c.out.size)
        c.out_start = 0
    if c.out.size + size > OUT_BYTES_MAX or not buffer_room(&c.thread.pool, &c.out, size):
        connection_broken(c, CAUSE_DEAF, 0)
        return
    if c.out.size == 0:
        c.deaf_since = c.thread.second
    memcpy(c.out.data + c.out.size, data, size)
    c.out.size += size


cdef inline void out_write(Connection* c, const uint8_t* data, size_t size) noexcept nogil:
    """In order, behind what waits already."""
    cdef ssize_t sent = 0
    if c.cause != CAUSE_NONE or size == 0:
        return
    if c.out.size == 0:
        sent = send(c.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                connection_broken(c, CAUSE_SOCKET, errno)
                return
            sent = 0
    if <size_t>sent < size:
        out_keep(c, data + sent, size - sent)


cdef inline void out_flush(Connection* c) noexcept nogil:
    """The socket takes more."""
    cdef ssize_t sent = send(c.fd, c.out.data + c.out_start, c.out.size - c.out_start, MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent < 0:
        if errno != EAGAIN and errno != EINTR:
            connection_broken(c, CAUSE_SOCKET, errno)
        return
    c.out_start += sent
    c.deaf_since = c.thread.second
    if c.out_start == c.out.size:
        buffer_drop(&c.thread.pool, &c.out)
        c.out_start = 0
        c.deaf_since = 0
        if c.leaving:
            shutdown(c.fd, SHUT_WR)


cdef inline void connection_leave(Connection* c, const uint8_t* last, size_t size) noexcept nogil:
    """Say the last word and wait for the camera's end: a close with its bytes unread would destroy what we said."""
    if c.leaving:
        return
    out_write(c, last, size)
    connection_finish(c)
    c.leaving = True
    c.left_at = c.thread.second
    if size == 0:
        connection_broken(c, CAUSE_REMOVED, 0)      # there is nothing to wait for
    elif c.cause == CAUSE_NONE:
        c.cause = CAUSE_REMOVED
        if c.out.size == 0:
            shutdown(c.fd, SHUT_WR)


# -- reading ----------------------------------------------------------------------------------------------------------

cdef inline void connection_receive(ThreadState* it, Connection* c) noexcept nogil:
    cdef size_t front = 0 if c.leaving else session_front(&c.rtp, it.shared)
    cdef ssize_t got = recv(c.fd, it.shared + front, RECEIVE_BYTES, MSG_DONTWAIT)
    if got == 0:
        connection_broken(c, CAUSE_PEER, 0)
    elif got < 0 and errno != EAGAIN and errno != EINTR:
        connection_broken(c, CAUSE_SOCKET, errno)
    if not c.leaving:
        session_feed(&c.rtp, it.shared, front + max(got, 0), gw_realtime_ns(), gw_monotonic_ns())
    if it.ring.reserved - it.published > PUBLISH_BYTES:
        ring_publish(it.ring)
        it.published = it.ring.reserved


cdef inline void connection_event(ThreadState* it, Connection* c, uint32_t events) noexcept nogil:
    if c.out.size and events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
        out_flush(c)
    if events & (EPOLLIN | EPOLLERR | EPOLLHUP) and not c.over:
        connection_receive(it, c)
    connection_settle(it, c)


# -- once a second ----------------------------------------------------------------------------------------------------

cdef inline void look_for_stall(Connection* c, uint64_t now) noexcept nogil:
    cdef uint64_t limit = max(<uint64_t>STALL_NS, STALL_INTERVALS * c.camera.interval_ns)
    cdef uint64_t silent = now - max(c.added_ns, c.unit_ns)
    if not c.stalled and silent > limit:
        c.stalled = True
        tell(c, EVENT_STALLED, silent // 1000000, NULL, 0)


cdef inline void take_rates(Connection* c, uint64_t now) noexcept nogil:
    cdef uint64_t size = c.camera.rtp.packet_bytes
    cdef double rate = (size - c.bytes_before) * 8.0 * NS_PER_S / max(<uint64_t>1, now - c.bytes_at_ns)
    cdef double before = <double>c.camera.bits_per_second
    c.bytes_before, c.bytes_at_ns = size, now
    gw_store_relaxed(&c.camera.bits_per_second, <uint64_t>(before + (rate - before) / RATE_SHARE if before else rate))


cdef inline void connection_look_after(ThreadState* it, Connection* c, uint64_t now) noexcept nogil:
    cdef uint8_t[REPORT_BYTES] report
    if c.leaving:
        c.over = it.second - c.left_at > LINGER_S
        connection_settle(it, c)
        return
    c.news = c.texts = 0
    c.text_bytes = 0
    tell_losses(c)
    look_for_stall(c, now)
    take_rates(c, now)
    if c.deaf_since and it.second - c.deaf_since > DEAF_S:
        connection_broken(c, CAUSE_DEAF, 0)
    elif it.second - c.reported_at >= REPORT_S and c.out.size == 0:
        c.reported_at = it.second
        out_write(c, report, session_report(&c.rtp, report, now))
    connection_settle(it, c)
