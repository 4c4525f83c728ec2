"""The newest parameter sets of one camera, so that each key frame can be stored with all of them.

Inline functions only. A set is known by its type and id: sent again it replaces its predecessor and leaves the others alone,
so a camera that flaps between two of them costs nothing. `gateway.nal.ParameterSets` says the same in Python.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove

cdef enum:
    H264 = 1                        # codecs, as in rtp.pxd
    H265 = 2

    SETS_MAX = 304                  # H.264 allows 32 SPS and 256 PPS; beyond that the oldest go, …
    SETS_BYTES_MAX = 262144         # … and beyond that many bytes
    SET_BYTES_MAX = 16384           # a larger one is recorded where it stands, but not remembered
    SET_ID_BYTES = 200              # of a set are looked at to find its id
    SET_KINDS = 3

cdef struct ParameterSet:
    uint8_t* data
    uint32_t size
    uint32_t id
    uint8_t kind                    # 0 VPS, 1 SPS, 2 PPS: in the order they must be sent

cdef struct ParameterSets:
    ParameterSet* sets              # in the order in which they came or changed
    uint32_t count
    uint32_t capacity
    uint32_t bytes

cdef struct Bits:                   # reads most significant bits first, passing over emulation prevention (7.3.1)
    const uint8_t* at
    const uint8_t* end
    uint32_t zeros                  # zero bytes just passed
    uint32_t left                   # bits of `byte` not yet read
    uint8_t byte
    bint short                      # it ended before what was looked for


cdef inline uint32_t bit(Bits* bits) noexcept nogil:
    if bits.left == 0:
        if bits.zeros >= 2 and bits.at < bits.end and bits.at[0] == 3:
            bits.at += 1
            bits.zeros = 0
        if bits.at == bits.end:
            bits.short = True
            return 0
        bits.byte = bits.at[0]
        bits.at += 1
        bits.zeros = bits.zeros + 1 if bits.byte == 0 else 0
        bits.left = 8
    bits.left -= 1
    return bits.byte >> bits.left & 1


cdef inline uint32_t bits_read(Bits* bits, uint32_t count) noexcept nogil:
    """The last 32 of so many bits."""
    cdef uint32_t value = 0
    cdef uint32_t i
    for i in range(count):
        value = value << 1 | bit(bits)
    return value


cdef inline uint32_t bits_ue(Bits* bits) noexcept nogil:
    """Exp-Golomb, unsigned (9.1)."""
    cdef uint32_t zeros = 0
    while not bit(bits):
        zeros += 1
        if zeros > 31 or bits.short:
            bits.short = True
            return 0
    return (<uint32_t>1 << zeros) - 1 + bits_read(bits, zeros)


cdef inline void skip_profile_tier_level(Bits* bits, uint32_t layers) noexcept nogil:
    """profile_tier_level(1, layers) of H.265 7.3.3."""
    cdef uint32_t present, i
    bits_read(bits, 96)
    present = bits_read(bits, 2 * layers)
    if layers:
        bits_read(bits, 2 * (8 - layers))
    for i in range(layers):
        bits_read(bits, 88 * (present >> (2 * (layers - i) - 1) & 1) + 8 * (present >> (2 * (layers - i) - 2) & 1))


cdef inline uint32_t set_id(int codec, uint8_t kind, const uint8_t* nal, size_t size) noexcept nogil:
    """The id a set is referred to by; 0 when it is cut short: a broken set must not stop the recording."""
    cdef Bits bits
    cdef uint32_t layers, found
    cdef size_t header = 1 if codec == H264 else 2
    bits.at = nal + min(header, size)
    bits.end = nal + min(size, <size_t>SET_ID_BYTES)
    bits.zeros = bits.left = 0
    bits.short = False
    if codec == H265 and kind == 0:
        found = bits_read(&bits, 4)
        return 0 if bits.short else found
    if kind == 1:
        if codec == H264:
            bits_read(&bits, 24)            # profile, constraints, level
        else:
            bits_read(&bits, 4)
            layers = bits_read(&bits, 3)
            bits_read(&bits, 1)
            skip_profile_tier_level(&bits, layers)
    found = bits_ue(&bits)
    return 0 if bits.short else found


cdef inline void sets_remove(ParameterSets* sets, uint32_t index) noexcept nogil:
    sets.bytes -= sets.sets[index].size
    free(sets.sets[index].data)
    sets.count -= 1
    memmove(&sets.sets[index], &sets.sets[index + 1], (sets.count - index) * sizeof(ParameterSet))


cdef inline bint sets_room(ParameterSets* sets) noexcept nogil:
    """Room for one more in the table. False: no memory."""
    cdef uint32_t capacity = max(<uint32_t>4, 2 * sets.capacity)
    cdef ParameterSet* larger
    if sets.count < sets.capacity:
        return True
    larger = <ParameterSet*>realloc(sets.sets, capacity * sizeof(ParameterSet))
    if larger == NULL:
        return False
    sets.sets = larger
    sets.capacity = capacity
    return True


cdef inline bint sets_take(ParameterSets* sets, int codec, uint8_t kind, const uint8_t* nal, size_t size) noexcept nogil:
    """Take note of a set. True: it is new, or differs from the one with its id.

    Without memory it is not remembered: the key frame that needs it has brought it along.
    """
    cdef uint32_t number = set_id(codec, kind, nal, size)
    cdef ParameterSet* each
    cdef uint32_t i
    cdef uint8_t* copy
    if size > SET_BYTES_MAX:
        return False
    for i in range(sets.count):
        each = &sets.sets[i]
        if each.kind == kind and each.id == number:
            if each.size == size and memcmp(each.data, nal, size) == 0:
                return False
            sets_remove(sets, i)
            break
    while sets.count and (sets.count >= SETS_MAX or sets.bytes + size > SETS_BYTES_MAX):
        sets_remove(sets, 0)
    copy = <uint8_t*>malloc(size + 1)       # of an empty one malloc may say NULL
    if copy == NULL or not sets_room(sets):
        free(copy)
        return False
    memcpy(copy, nal, size)
    each = &sets.sets[sets.count]
    each.data, each.size, each.id, each.kind = copy, <uint32_t>size, number, kind
    sets.count += 1
    sets.bytes += <uint32_t>size
    return True


cdef inline const ParameterSet* sets_newest(const ParameterSets* sets, uint8_t kind) noexcept nogil:
    """The one that came or changed last; NULL: none."""
    cdef uint32_t i = sets.count
    while i:
        i -= 1
        if sets.sets[i].kind == kind:
            return &sets.sets[i]
    return NULL


cdef inline void sets_free(ParameterSets* sets) noexcept nogil:
    while sets.count:
        sets_remove(sets, sets.count - 1)
    free(sets.sets)
    sets.sets = NULL
    sets.capacity = 0
