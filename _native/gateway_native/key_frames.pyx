"""Find key frames in a segment by reading the heads and the headers of its records only; key_frames.pyi is the table.

A record is a few bytes of head, the picture, and its headers. The headers of one record are followed by the head of the
next one, or by the next batch's header and its first record's head: so one read for each picture sees all there is.
"""

from typing import NamedTuple

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport INT64_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp

from gateway_native.batch cimport (
    AT_ATTRIBUTES,
    AT_BASE_OFFSET,
    AT_BASE_TIMESTAMP,
    AT_COUNT,
    AT_LAST_OFFSET_DELTA,
    AT_LEADER_EPOCH,
    AT_LENGTH,
    AT_MAGIC,
    AT_MAX_TIMESTAMP,
    ATTRIBUTE_CODEC,
    ATTRIBUTE_CONTROL,
    ATTRIBUTE_LOG_APPEND_TIME,
    BATCH_HEADER_BYTES,
    BATCH_LENGTH_PREFIX_BYTES,
    BATCH_MAGIC,
    crc32c_update,
    get_be16,
    get_be32,
    get_be64,
    get_uvarint,
    unzigzag,
)

cdef extern from "wire.h" nogil:
    void put_le32(uint8_t* to, uint32_t v)
    void put_le64(uint8_t* to, uint64_t v)

cdef extern from "read_at.h" nogil:
    int64_t gw_read_at(int fd, void* to, size_t bytes, int64_t position)

cdef enum:
    ENTRY = 24
    HEAD_BYTES = 320                # a batch's header, a record's head and a camera's name; longer keys are no camera's
    HEADERS_BYTES = 256             # read together with the head that follows; usual are 60 to 120
    HEADERS_BYTES_MAX = 8192        # a record with more headers is no camera's
    WINDOW_BYTES = HEADERS_BYTES_MAX + HEAD_BYTES
    FIRST_ENTRIES = 64

cdef enum Stopped:
    AT_END = 0
    AT_NOT_A_BATCH = 1
    AT_TOO_MANY = 2
    AT_UNREADABLE = 3

ENTRY_BYTES = ENTRY
END = AT_END
NOT_A_BATCH = AT_NOT_A_BATCH
TOO_MANY = AT_TOO_MANY
UNREADABLE = AT_UNREADABLE


class Scan(NamedTuple):
    """What one call of `scan` found: entries, where it stopped (a batch begins there), and why."""

    entries: bytes
    position: int
    next_offset: int
    stopped: int
    errno: int


cdef struct Window:                 # some bytes of the file
    int fd
    int64_t position                # of the first
    int64_t bytes
    int64_t end                     # nothing at or above it is read
    int error
    uint8_t data[WINDOW_BYTES]

cdef struct Found:
    uint8_t* entries
    size_t count
    size_t room
    size_t most

cdef struct Head:                   # of a record
    int64_t end                     # where the record ends
    int64_t headers                 # where its headers begin
    int64_t timestamp_delta
    int64_t offset_delta
    uint32_t key_crc
    bint may_be_picture


cdef const uint8_t* window_at(Window* w, int64_t position, int64_t bytes) noexcept nogil:
    """The bytes at `position`: at least `bytes` of them, or NULL when they are not there or cannot be read."""
    cdef int64_t most
    if position < w.position or position + bytes > w.position + w.bytes:
        if position + bytes > w.end:
            return NULL
        most = HEADERS_BYTES + HEAD_BYTES if bytes < HEADERS_BYTES + HEAD_BYTES else bytes
        if position + most > w.end:
            most = w.end - position
        w.position = position
        w.bytes = gw_read_at(w.fd, w.data, <size_t>most, position)
        if w.bytes < 0:
            w.error = errno
            w.bytes = 0
        if w.bytes < bytes:
            return NULL
    return w.data + (position - w.position)



cdef const uint8_t* get_signed(const uint8_t* at, const uint8_t* end, int64_t* v) noexcept nogil:
    cdef uint64_t raw = 0
    at = get_uvarint(at, end, &raw)
    v[0] = unzigzag(raw)
    return at


cdef bint head_parse(Window* w, int64_t position, int64_t batch_end, Head* head) noexcept nogil:
    """Read the record's head at `position`; false when no record that ends by `batch_end` is there."""
    cdef int64_t wanted = HEAD_BYTES if position + HEAD_BYTES <= batch_end else batch_end - position
    cdef const uint8_t* at = window_at(w, position, wanted) if wanted > 0 else NULL
    cdef const uint8_t* end
    cdef const uint8_t* start = at
    cdef int64_t length = 0
    cdef int64_t key_bytes = 0
    cdef int64_t value_bytes = 0
    if at == NULL:
        return False
    end = at + wanted
    at = get_signed(at, end, &length)
    if at == NULL or length < 1 or length > batch_end - position - (at - start):
        return False
    head.end = position + (at - start) + length
    at = get_signed(at + 1, end, &head.timestamp_delta)             # after the record's attributes byte
    if at != NULL:
        at = get_signed(at, end, &head.offset_delta)
    if at == NULL:
        return False
    at = get_signed(at, end, &key_bytes)
    head.may_be_picture = at != NULL and 0 <= key_bytes <= end - at
    if not head.may_be_picture:
        return True
    head.key_crc = crc32c_update(0, at, <size_t>key_bytes)
    at = get_signed(at + key_bytes, end, &value_bytes)
    head.may_be_picture = at != NULL and 0 < value_bytes < head.end - position - (at - start)
    if head.may_be_picture:
        head.headers = position + (at - start) + value_bytes
        head.may_be_picture = head.end - head.headers <= HEADERS_BYTES_MAX
    return True


cdef int is_key_frame(Window* w, Head* head) noexcept nogil:
    """Do the record's headers say that it is a key frame of a camera? -1: they cannot be read."""
    cdef int64_t bytes = head.end - head.headers
    cdef const uint8_t* at = window_at(w, head.headers, bytes)
    cdef const uint8_t* end
    cdef int64_t count = 0
    cdef int64_t name_bytes = 0
    cdef int64_t value_bytes = 0
    cdef const uint8_t* name
    cdef bint codec = False
    cdef bint key = False
    if at == NULL:
        return -1
    end = at + bytes
    at = get_signed(at, end, &count)
    while at != NULL and count > 0:
        at = get_signed(at, end, &name_bytes)
        if at == NULL or name_bytes < 0 or name_bytes > end - at:
            return False
        name = at
        at = get_signed(at + name_bytes, end, &value_bytes)
        if at == NULL or value_bytes > end - at:
            return False
        if value_bytes > 0:
            at += value_bytes
        codec = codec or (name_bytes == 5 and memcmp(name, b"codec", 5) == 0)
        key = key or (name_bytes == 8 and memcmp(name, b"keyframe", 8) == 0)
        count -= 1
    return codec and key


cdef int found_add(
    Found* found, int64_t position, int64_t offset_delta, int64_t timestamp, int64_t batch_bytes, uint32_t key_crc
) noexcept nogil:
    """0: added; AT_TOO_MANY: there is no room; -1: no memory."""
    cdef uint8_t* to
    cdef size_t room
    if found.count == found.most:
        return AT_TOO_MANY
    if found.count == found.room:
        room = found.room * 2 if found.room else FIRST_ENTRIES
        to = <uint8_t*>realloc(found.entries, room * ENTRY)
        if to == NULL:
            return -1
        found.entries = to
        found.room = room
    to = found.entries + found.count * ENTRY
    put_le32(to, <uint32_t>position)
    put_le32(to + 4, <uint32_t>offset_delta)
    put_le64(to + 8, <uint64_t>timestamp)
    put_le32(to + 16, <uint32_t>batch_bytes)
    put_le32(to + 20, key_crc)
    found.count += 1
    return 0


cdef int scan_records(
    Window* w, Found* found, int64_t position, int64_t batch_end, int64_t delta, int32_t count, int64_t times[2],
) noexcept nogil:
    """Look at each record of a batch, whose records begin behind its header.

    delta: base offset - segment base. times: the base timestamp, and what stands for every record's, or -1. Returns 0,
    AT_TOO_MANY, AT_NOT_A_BATCH, or -1 without memory.
    """
    cdef int64_t at = position + BATCH_HEADER_BYTES
    cdef int64_t time
    cdef Head head
    cdef int32_t number
    cdef int key
    cdef int added
    for number in range(count):
        if not head_parse(w, at, batch_end, &head) or head.offset_delta != number:
            return AT_NOT_A_BATCH
        if head.may_be_picture:
            key = is_key_frame(w, &head)
            if key < 0:
                return AT_NOT_A_BATCH
            if key:
                time = times[1] if times[1] >= 0 else <int64_t>(<uint64_t>times[0] + <uint64_t>head.timestamp_delta)
                added = found_add(found, position, delta + number, time, batch_end - position, head.key_crc)
                if added:
                    return added
        at = head.end
    return 0 if at == batch_end else AT_NOT_A_BATCH


cdef int scan_batch(
    Window* w, Found* found, int64_t segment_base, int64_t* position, int64_t* next_offset
) noexcept nogil:
    """Look at the batch at `position` and go behind it; else as `scan_records`, and everything is as it was."""
    cdef const uint8_t* at = window_at(w, position[0], BATCH_HEADER_BYTES)
    cdef int64_t length
    cdef int64_t base_offset
    cdef int64_t last_delta
    cdef int64_t times[2]
    cdef int32_t count
    cdef int attributes
    cdef size_t before = found.count
    cdef int result
    if at == NULL or at[AT_MAGIC] != BATCH_MAGIC or get_be32(at + AT_LEADER_EPOCH) != 0:
        return AT_NOT_A_BATCH
    length = <int32_t>get_be32(at + AT_LENGTH)
    base_offset = <int64_t>get_be64(at + AT_BASE_OFFSET)
    last_delta = <int32_t>get_be32(at + AT_LAST_OFFSET_DELTA)
    count = <int32_t>get_be32(at + AT_COUNT)
    attributes = get_be16(at + AT_ATTRIBUTES)
    if (
        base_offset != next_offset[0] or last_delta < 0 or base_offset - segment_base + last_delta > UINT32_MAX
        or length < BATCH_HEADER_BYTES - BATCH_LENGTH_PREFIX_BYTES
        or length > w.end - position[0] - BATCH_LENGTH_PREFIX_BYTES
    ):
        return AT_NOT_A_BATCH
    if not attributes & (ATTRIBUTE_CODEC | ATTRIBUTE_CONTROL):
        times[0] = <int64_t>get_be64(at + AT_BASE_TIMESTAMP)
        times[1] = <int64_t>get_be64(at + AT_MAX_TIMESTAMP) if attributes & ATTRIBUTE_LOG_APPEND_TIME else -1
        result = scan_records(
            w, found, position[0], position[0] + BATCH_LENGTH_PREFIX_BYTES + length, base_offset - segment_base,
            count, times,
        )
        if result:
            found.count = before
            return result
    position[0] += BATCH_LENGTH_PREFIX_BYTES + length
    next_offset[0] = base_offset + last_delta + 1
    return 0


def scan(
    int fd, int64_t position, int64_t end, *, int64_t segment_base, int64_t next_offset, int64_t offset_end=INT64_MAX,
    int64_t step=UINT32_MAX, Py_ssize_t entries_max=262144,
) -> Scan:
    cdef Window window
    cdef Found found
    cdef int stopped = 0
    cdef int64_t last = position + step if step < end - position else end
    if position < 0 or end > UINT32_MAX or next_offset < segment_base or entries_max < 0:
        raise ValueError(f"no part of a segment: bytes {position} to {end}, offset {next_offset}")
    window.fd, window.position, window.bytes, window.end, window.error = fd, 0, 0, end, 0
    found.entries, found.count, found.room, found.most = NULL, 0, 0, <size_t>entries_max
    try:
        with nogil:
            while position < last and next_offset < offset_end and stopped == 0:
                stopped = scan_batch(&window, &found, segment_base, &position, &next_offset)
        if stopped < 0:
            raise MemoryError
        if window.error:
            stopped = AT_UNREADABLE
        entries = PyBytes_FromStringAndSize(<char*>found.entries, found.count * ENTRY) if found.count else b""
        return Scan(entries, position, next_offset, stopped, window.error)
    finally:
        free(found.entries)
