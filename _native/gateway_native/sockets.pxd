"""What threads without the interpreter need of sockets, epoll and eventfds. Inline functions only."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLL_CLOEXEC

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int, int)
    enum: EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)
    enum: PR_SET_TIMERSLACK

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void*, size_t, int)
    ssize_t send(int, const void*, size_t, int)
    int shutdown(int, int)
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_WR

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int)
    ssize_t c_read "read"(int, void*, size_t)


cdef inline bint watch(int epoll, int fd, uint32_t before, uint32_t wanted, uint64_t data) noexcept nogil:
    """What epoll watches a descriptor for; 0: nothing. Out of the set even a reset is not heard of."""
    cdef epoll_event event
    cdef int how = EPOLL_CTL_DEL if wanted == 0 else EPOLL_CTL_MOD if before else EPOLL_CTL_ADD
    event.events = wanted
    event.data.u64 = data
    return before == wanted or epoll_ctl(epoll, how, fd, &event) == 0


cdef inline void silence(int fd) noexcept nogil:
    """Make an eventfd unreadable."""
    cdef uint64_t count
    c_read(fd, &count, sizeof(count))
