"""What a socket did not take yet: kept in order, written when it takes more. Inline functions only."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from gateway_native.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, send

cdef enum:
    OUTBOX_BYTES_MIN = 256
    OUTBOX_FULL = -1                # no errno: more than may wait, or no memory

cdef struct Outbox:
    uint8_t* data                   # NULL: nothing waits
    size_t start                    # what waits begins here …
    size_t size                     # … and has so many bytes
    size_t capacity


cdef inline void outbox_drop(Outbox* box) noexcept nogil:
    """Whatever waits is sent, or never will be."""
    free(box.data)
    box.data = NULL
    box.start = box.size = box.capacity = 0


cdef inline bint outbox_keep(Outbox* box, const uint8_t* data, size_t size, size_t size_max) noexcept nogil:
    """False: too much, or no memory."""
    cdef size_t capacity = max(box.capacity, <size_t>OUTBOX_BYTES_MIN)
    cdef uint8_t* larger
    if box.size + size > size_max:
        return False
    if box.start:
        memmove(box.data, box.data + box.start, box.size)
        box.start = 0
    while capacity < box.size + size:
        capacity *= 2
    if capacity != box.capacity:
        larger = <uint8_t*>realloc(box.data, capacity)
        if larger == NULL:
            return False
        box.data = larger
        box.capacity = capacity
    memcpy(box.data + box.size, data, size)
    box.size += size
    return True


cdef inline int outbox_send(int fd, const uint8_t* data, size_t size, size_t* sent) noexcept nogil:
    """What the socket takes at once. Returns 0, or the errno of a lost socket."""
    cdef ssize_t taken = send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
    sent[0] = <size_t>max(taken, 0)
    return errno if taken < 0 and errno != EAGAIN and errno != EINTR else 0


cdef inline int outbox_write(Outbox* box, int fd, const uint8_t* data, size_t size, size_t size_max) noexcept nogil:
    """In order, behind what waits already. Returns 0, the errno of a lost socket, or OUTBOX_FULL."""
    cdef size_t sent = 0
    cdef int error = 0
    if box.size == 0:
        error = outbox_send(fd, data, size, &sent)
    if error == 0 and sent < size and not outbox_keep(box, data + sent, size - sent, size_max):
        return OUTBOX_FULL
    return error


cdef inline int outbox_flush(Outbox* box, int fd) noexcept nogil:
    """The socket takes more. Returns 0, or the errno of a lost one; with nothing left the memory is given back."""
    cdef size_t sent
    cdef int error = outbox_send(fd, box.data + box.start, box.size, &sent)
    box.start += sent
    box.size -= sent
    if box.size == 0:
        outbox_drop(box)
    return error
