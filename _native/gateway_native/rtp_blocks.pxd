"""Memory for what is being put together, shared by all cameras of a thread: blocks of powers of two, and buffers in them.

Inline functions only. A camera holds a block while an access unit is open, which is a few milliseconds of each 40, so
hundreds of cameras share the memory of some. What is handed out is bounded (`used_max`), and so is what waits unused.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_relaxed(const uint64_t*)
    void gw_store_relaxed(uint64_t*, uint64_t)

cdef enum:
    BLOCK_BITS_MIN = 11             # 2 KiB: more than an RTP packet of Ethernet's size
    BLOCK_CLASSES = 15              # … to 32 MiB: an access unit of 16 MiB with the sizes of its parts fits
    IDLE_BYTES_MAX = 8388608        # kept for the next; more goes back to the system

cdef struct Block:                  # one that waits
    Block* next

cdef struct BlockPool:
    uint64_t used_bytes             # handed out; published
    uint64_t used_peak              # published
    uint64_t used_max
    uint64_t idle_bytes
    Block* idle[BLOCK_CLASSES]

cdef struct Buffer:
    uint8_t* data                   # NULL: no block
    size_t size
    size_t capacity                 # a block's: a power of two


cdef inline uint8_t* pool_take(BlockPool* pool, size_t need, size_t* capacity) noexcept nogil:
    """A block of at least so many bytes. NULL: more than may be used, or no memory."""
    cdef int number = 0
    cdef Block* found
    while number < BLOCK_CLASSES and (<size_t>1 << (BLOCK_BITS_MIN + number)) < need:
        number += 1
    if number == BLOCK_CLASSES:
        return NULL
    capacity[0] = <size_t>1 << (BLOCK_BITS_MIN + number)
    if pool.used_bytes + capacity[0] > pool.used_max:
        return NULL
    found = pool.idle[number]
    if found != NULL:
        pool.idle[number] = found.next
        pool.idle_bytes -= capacity[0]
    else:
        found = <Block*>malloc(capacity[0])
        if found == NULL:
            return NULL
    gw_store_relaxed(&pool.used_bytes, pool.used_bytes + capacity[0])
    if pool.used_bytes > pool.used_peak:
        gw_store_relaxed(&pool.used_peak, pool.used_bytes)
    return <uint8_t*>found


cdef inline void pool_give(BlockPool* pool, uint8_t* data, size_t capacity) noexcept nogil:
    cdef int number = 0
    cdef Block* block = <Block*>data
    gw_store_relaxed(&pool.used_bytes, pool.used_bytes - capacity)
    if pool.idle_bytes + capacity > IDLE_BYTES_MAX:
        free(data)
        return
    while (<size_t>1 << (BLOCK_BITS_MIN + number)) < capacity:
        number += 1
    block.next = pool.idle[number]
    pool.idle[number] = block
    pool.idle_bytes += capacity


cdef inline void pool_free(BlockPool* pool) noexcept nogil:
    """At the end; what is still handed out is its holders' to give back before."""
    cdef Block* block
    cdef int number
    for number in range(BLOCK_CLASSES):
        while pool.idle[number] != NULL:
            block = pool.idle[number]
            pool.idle[number] = block.next
            free(block)
    pool.idle_bytes = 0


cdef inline bint buffer_room(BlockPool* pool, Buffer* buffer, size_t more) noexcept nogil:
    """Room for so many bytes behind those that are there. False: no memory, and nothing changed."""
    cdef size_t capacity
    cdef uint8_t* larger
    if buffer.size + more <= buffer.capacity:
        return True
    larger = pool_take(pool, buffer.size + more, &capacity)
    if larger == NULL:
        return False
    if buffer.data != NULL:
        memcpy(larger, buffer.data, buffer.size)
        pool_give(pool, buffer.data, buffer.capacity)
    buffer.data = larger
    buffer.capacity = capacity
    return True


cdef inline void buffer_drop(BlockPool* pool, Buffer* buffer) noexcept nogil:
    if buffer.data != NULL:
        pool_give(pool, buffer.data, buffer.capacity)
    buffer.data = NULL
    buffer.size = buffer.capacity = 0
