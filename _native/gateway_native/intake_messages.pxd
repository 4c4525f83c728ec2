"""Messages between the intake thread and the event loop: two lists, each under a lock that is held for a few
instructions only, so neither side waits for the other's work.

Inline functions only. How many there can be is bounded by the connections: one whose packet is with the event loop is not
parsed on, and the event loop answers what it was told.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, const void*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)

cdef extern from "<unistd.h>" nogil:
    ssize_t c_write "write"(int, const void*, size_t)
    int usleep(unsigned int)

cdef struct Message:
    Message* next
    uint32_t kind
    uint32_t listener
    uint64_t handle                 # of a connection, or 0
    uint64_t first                  # these two: by kind
    uint64_t second
    size_t[3] sizes                 # of the parts that follow, one after another
    void* pointer

cdef struct Mailbox:
    pthread_mutex_t lock
    Message* first
    Message* last
    uint64_t posted                 # so far
    int bell                        # eventfd, rung when the first one comes


cdef inline uint8_t* message_data(Message* message) noexcept nogil:
    return <uint8_t*>message + sizeof(Message)


cdef inline Message* message_new(uint32_t kind, uint64_t handle, size_t size) noexcept nogil:
    """Zeroed but for its data. NULL: no memory, which callers with nothing to say about it wait for (message_need)."""
    cdef Message* message = <Message*>malloc(sizeof(Message) + size)
    if message == NULL:
        return NULL
    memset(message, 0, sizeof(Message))
    message.kind = kind
    message.handle = handle
    message.sizes[0] = size
    return message


cdef inline Message* message_need(uint32_t kind, uint64_t handle) noexcept nogil:
    """One without data. A machine without a hundred free bytes is waited for: a lost message would leak a connection."""
    cdef Message* message = message_new(kind, handle, 0)
    while message == NULL:
        usleep(1000)
        message = message_new(kind, handle, 0)
    return message


cdef inline void mailbox_post(Mailbox* box, Message* message) noexcept nogil:
    cdef uint64_t one = 1
    cdef bint was_empty
    pthread_mutex_lock(&box.lock)
    was_empty = box.first == NULL
    if was_empty:
        box.first = message
    else:
        box.last.next = message
    box.last = message
    box.posted += 1
    pthread_mutex_unlock(&box.lock)
    if was_empty:
        c_write(box.bell, &one, sizeof(one))    # EAGAIN: it rings already


cdef inline Message* mailbox_take(Mailbox* box) noexcept nogil:
    """Everything that is there, oldest first."""
    cdef Message* first
    pthread_mutex_lock(&box.lock)
    first = box.first
    box.first = box.last = NULL
    pthread_mutex_unlock(&box.lock)
    return first


cdef inline void messages_free(Message* message) noexcept nogil:
    """All of a list."""
    cdef Message* following
    while message != NULL:
        following = message.next
        free(message)
        message = following
