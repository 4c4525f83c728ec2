"""What a connection keeps of a buffer that was not parsed to its end: a packet that is not whole yet, or all that came
after the ring was full.

Inline functions only. Connections receive into a buffer that all of them share, so what is kept is copied, in as little
memory as will do; only a large packet is received into a buffer of its connection's own. Sizes are bytes.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

cdef enum:
    DIRECT_BYTES = 65536            # a larger packet is received into a buffer of its connection's own

cdef struct MqttBudget:             # of all connections of a group
    uint64_t kept                   # in buffers of connections' own
    uint64_t kept_max

cdef struct MqttKept:
    uint8_t* block                  # NULL: nothing is kept
    size_t capacity
    size_t start                    # what is kept begins here …
    size_t size                     # … and has so many bytes
    bint direct                     # receive behind it, into `block` itself: the packet is large


cdef inline void kept_drop(MqttKept* kept, MqttBudget* budget) noexcept nogil:
    budget.kept -= kept.capacity
    free(kept.block)
    kept.block = NULL
    kept.capacity = kept.start = kept.size = 0


cdef inline bint kept_move(
    MqttKept* kept, MqttBudget* budget, const uint8_t* rest, size_t left, size_t capacity,
) noexcept nogil:
    """Move `left` bytes into a block of `capacity`; they may lie in the present one. False: no memory, nothing changed."""
    cdef uint8_t* block = NULL
    if kept.capacity >= capacity and kept.capacity // 4 <= capacity:
        memmove(kept.block, rest, left)
    else:
        if budget.kept - kept.capacity + capacity <= budget.kept_max:
            block = <uint8_t*>malloc(capacity)
        if block == NULL:
            return False
        memcpy(block, rest, left)
        kept_drop(kept, budget)
        kept.block = block
        kept.capacity = capacity
        budget.kept += capacity
    kept.start = 0
    kept.size = left
    return True


cdef inline bint kept_put(
    MqttKept* kept, MqttBudget* budget, const uint8_t* data, size_t size, size_t position, uint64_t need,
) noexcept nogil:
    """Keep data[position : size]. need: of the packet there that is not whole, 0: more may be whole. False: no memory."""
    cdef const uint8_t* rest = data + position
    cdef size_t left = size - position
    cdef bint own = kept.block != NULL and data == kept.block + kept.start
    kept.direct = False
    if left == 0:
        kept_drop(kept, budget)
        return True
    if need > DIRECT_BYTES:
        # Grows with what has really arrived: a length alone must not cost memory.
        kept.direct = True
        return kept_move(kept, budget, rest, left, min(need, max(2 * left, <size_t>DIRECT_BYTES)))
    if own and left >= kept.capacity // 4:
        kept.start += position
        kept.size = left
        return True
    return kept_move(kept, budget, rest, left, left)
