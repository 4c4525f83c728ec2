"""Memory that columns grow in, and how byte strings are laid out in it.

Inline functions only; there is no module of this name at run time. Nothing here needs the GIL. Who owns a Room frees it.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from gateway_native.mqtt_text cimport utf8_sequence

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void* address, size_t size, int advice)
    int MADV_HUGEPAGE

cdef enum:
    VIEW_BYTES = 16
    INLINE_BYTES_MAX = 12               # a shorter string is in its view itself
    ROOM_BYTES_MIN = 4096
    HUGE_PAGE_BYTES = 2097152
    SLOTS_MIN = 1024
    NO_MEMORY = -1                      # beside Problem

cdef struct Room:                       # bytes that grow; malloc's
    uint8_t* data
    size_t used
    size_t capacity
    size_t expected                     # how many the next one will take, by the last one

cdef enum ColumnForm:                   # of a column of byte strings
    FORM_NONE = 0                       # left out
    FORM_COPY = 1                       # large_binary: offsets, then the bytes, copied
    FORM_VIEW = 2                       # binary_view: 16 bytes each, which point into the buffers that were decoded
    FORM_CODES = 3                      # dictionary: int32 into the distinct ones, in the order in which they came

cdef struct ByteColumn:                 # one column of byte strings
    int form                            # ColumnForm
    Room items                          # int64 ends (FORM_COPY), views (FORM_VIEW) or int32 codes (FORM_CODES)
    Room bytes                          # FORM_COPY: the strings one after the other; FORM_CODES: the distinct ones
    Room ends                           # FORM_CODES: int64 ends of the distinct ones
    Room nulls                          # int64 row numbers of nulls, which are few

cdef struct Dictionary:                 # finds the code of a byte string: open addressing, at most half full
    uint32_t* slots                     # code + 1; 0 is free
    size_t slot_count                   # a power of two
    Room hashes                         # uint64 of each code
    uint64_t seed                       # so that nobody can choose keys that collide


# -- room -----------------------------------------------------------------------------------------------------------------

cdef inline bint room_for(Room* room, size_t more) noexcept nogil:
    """Have `more` bytes of room behind what is used. False: there is no memory, and nothing changed."""
    if room.capacity - room.used >= more:
        return True
    return room_grow(room, more)


cdef inline bint room_grow(Room* room, size_t more) noexcept nogil:
    """Half as much again, or what the last one needed: growing copies."""
    cdef size_t capacity = max(room.used + more, room.capacity + (room.capacity >> 1), room.expected, ROOM_BYTES_MIN)
    cdef uint8_t* data
    if capacity < HUGE_PAGE_BYTES:
        data = <uint8_t*>realloc(room.data, capacity)
        if data == NULL:
            return False
    else:
        # Page faults would cost more than all the decoding: huge pages have 512 times fewer. It is a wish only.
        capacity = (capacity + HUGE_PAGE_BYTES - 1) & ~<size_t>(HUGE_PAGE_BYTES - 1)
        data = <uint8_t*>aligned_alloc(HUGE_PAGE_BYTES, capacity)
        if data == NULL:
            return False
        madvise(data, capacity, MADV_HUGEPAGE)
        if room.used:
            memcpy(data, room.data, room.used)
        free(room.data)
    room.data = data
    room.capacity = capacity
    return True


cdef inline void put_int64(Room* room, int64_t v) noexcept nogil:
    (<int64_t*>(room.data + room.used))[0] = v
    room.used += sizeof(int64_t)


cdef inline void room_free(Room* room) noexcept nogil:
    free(room.data)
    room.data = NULL
    room.used = room.capacity = 0


# -- the dictionary of keys -------------------------------------------------------------------------------------------------

cdef inline uint64_t mix(uint64_t v) noexcept nogil:
    """Every bit of the result depends on every bit given (the finalizer of SplitMix64)."""
    v = (v ^ (v >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    v = (v ^ (v >> 27)) * <uint64_t>0x94D049BB133111EB
    return v ^ (v >> 31)


cdef inline uint64_t hash_of(const uint8_t* data, size_t n, uint64_t seed) noexcept nogil:
    cdef uint64_t result = seed ^ n
    cdef uint64_t word
    while n >= 8:
        memcpy(&word, data, 8)
        result = mix(result ^ word)
        data += 8
        n -= 8
    word = 0
    memcpy(&word, data, n)
    return mix(result ^ word)


cdef inline bint dictionary_grow(Dictionary* d) noexcept nogil:
    cdef size_t count = d.slot_count * 2 if d.slot_count else SLOTS_MIN
    cdef uint32_t* slots = <uint32_t*>calloc(count, sizeof(uint32_t))
    cdef uint64_t* hashes = <uint64_t*>d.hashes.data
    cdef size_t codes = d.hashes.used // sizeof(uint64_t)
    cdef size_t code, at
    if slots == NULL:
        return False
    for code in range(codes):
        at = hashes[code] & (count - 1)
        while slots[at]:
            at = (at + 1) & (count - 1)
        slots[at] = <uint32_t>code + 1
    free(d.slots)
    d.slots = slots
    d.slot_count = count
    return True


cdef inline int64_t dictionary_code(Dictionary* d, ByteColumn* s, const uint8_t* data, size_t n) noexcept nogil:
    """The code of the string, which is added if it is new. NO_MEMORY if there is none."""
    cdef uint64_t found = hash_of(data, n, d.seed)
    cdef size_t codes = d.hashes.used // sizeof(uint64_t)
    cdef int64_t* ends
    cdef size_t at, code, begin
    if (codes + 1) * 2 > d.slot_count and not dictionary_grow(d):
        return NO_MEMORY
    at = found & (d.slot_count - 1)
    ends = <int64_t*>s.ends.data
    while d.slots[at]:
        code = d.slots[at] - 1
        begin = <size_t>ends[code]
        if (<uint64_t*>d.hashes.data)[code] == found and <size_t>ends[code + 1] - begin == n \
                and (n == 0 or memcmp(s.bytes.data + begin, data, n) == 0):
            return <int64_t>code
        at = (at + 1) & (d.slot_count - 1)
    if not room_for(&d.hashes, sizeof(uint64_t)) or not room_for(&s.ends, sizeof(int64_t)) \
            or not room_for(&s.bytes, n):
        return NO_MEMORY
    if n:
        memcpy(s.bytes.data + s.bytes.used, data, n)
        s.bytes.used += n
    put_int64(&s.ends, <int64_t>s.bytes.used)
    (<uint64_t*>(d.hashes.data + d.hashes.used))[0] = found
    d.hashes.used += sizeof(uint64_t)
    d.slots[at] = <uint32_t>codes + 1
    return <int64_t>codes


# -- byte strings -----------------------------------------------------------------------------------------------------------

cdef inline bint strings_begin(ByteColumn* s) noexcept nogil:
    """An empty column: offsets begin with a zero."""
    cdef Room* ends = &s.items if s.form == FORM_COPY else &s.ends
    if s.form != FORM_COPY and s.form != FORM_CODES:
        return True
    if not room_for(ends, sizeof(int64_t)):
        return False
    put_int64(ends, 0)
    return True


cdef inline bint strings_reserve(ByteColumn* s, size_t rows, size_t size) noexcept nogil:
    """Room for so many more strings of so many bytes together, so that adding them need not ask."""
    if s.form == FORM_COPY:
        return room_for(&s.items, rows * sizeof(int64_t)) and room_for(&s.bytes, size)
    if s.form == FORM_VIEW:
        return room_for(&s.items, rows * VIEW_BYTES)
    if s.form == FORM_CODES:
        return room_for(&s.items, rows * sizeof(int32_t))
    return True


cdef inline void put_copy(ByteColumn* s, const uint8_t* data, int32_t n) noexcept nogil:
    cdef uint8_t* to = s.bytes.data + s.bytes.used
    if n > 0:
        memcpy(to, data, n)
        s.bytes.used += n
    put_int64(&s.items, <int64_t>s.bytes.used)


cdef inline void put_view(ByteColumn* s, const uint8_t* data, int32_t n, int32_t source, int32_t at) noexcept nogil:
    cdef uint8_t* to = s.items.data + s.items.used
    if n > INLINE_BYTES_MAX:
        (<int32_t*>to)[0] = n
        memcpy(to + 4, data, 4)
        (<int32_t*>to)[2] = source
        (<int32_t*>to)[3] = at
    else:
        memset(to, 0, VIEW_BYTES)
        if n > 0:
            (<int32_t*>to)[0] = n
            memcpy(to + 4, data, n)
    s.items.used += VIEW_BYTES


cdef inline void put_code(ByteColumn* s, int32_t code) noexcept nogil:
    (<int32_t*>(s.items.data + s.items.used))[0] = code
    s.items.used += sizeof(int32_t)


cdef inline bint put_null(ByteColumn* s, int64_t row) noexcept nogil:
    if not room_for(&s.nulls, sizeof(int64_t)):
        return False
    put_int64(&s.nulls, row)
    return True


cdef inline void strings_free(ByteColumn* s) noexcept nogil:
    room_free(&s.items)
    room_free(&s.bytes)
    room_free(&s.ends)
    room_free(&s.nulls)


cdef inline bint is_text(const uint8_t* text, size_t size) noexcept nogil:
    """Is it UTF-8? Nearly always ASCII: eight bytes at a time."""
    cdef uint64_t word
    cdef size_t at = 0
    cdef size_t length
    while at < size:
        if at + 8 <= size:
            memcpy(&word, text + at, 8)
            if not word & <uint64_t>0x8080808080808080:
                at += 8
                continue
        if text[at] < 0x80:
            at += 1
            continue
        length = utf8_sequence(text + at, size - at)
        if length == 0:
            return False
        at += length
    return True
