"""The access unit that is being put together, and its value once it is whole. Inline functions only."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from gateway_native.rtp cimport (
    CODEC_H264, CODEC_JPEG, FATE_NO_MEMORY, FATE_OVERSIZED, FATE_WHOLE, RtpAssembly, RtpSession)
from gateway_native.rtp_blocks cimport buffer_drop, buffer_room
from gateway_native.rtp_sets cimport ParameterSet, SET_KINDS

cdef extern from "wire.h" nogil:
    void put_be32(uint8_t*, uint32_t)
    uint32_t get_be32(const uint8_t*)

cdef enum:
    SIZE_BYTES = 4                  # before each NAL unit: its size here, a start code in the value
    KIND_NONE = 3                   # of a NAL unit that is no parameter set; kinds are those of rtp_sets
    NEEDED_KINDS = 0x06             # bits of kinds: SPS and PPS
    USUAL_BYTES_MAX = 65536         # of the block that a unit begins with

    H264_DELIMITER = 9
    H265_DELIMITER = 35


cdef inline int nal_type(int codec, const uint8_t* nal) noexcept nogil:
    """H.264 7.3.1, H.265 7.3.1.2."""
    return nal[0] & 0x1F if codec == CODEC_H264 else nal[0] >> 1 & 0x3F


cdef inline uint8_t nal_kind(int codec, const uint8_t* nal) noexcept nogil:
    """Which kind of parameter set it is: 0 VPS, 1 SPS, 2 PPS, or KIND_NONE."""
    cdef int number = nal_type(codec, nal) - (6 if codec == CODEC_H264 else 32)
    if number < (1 if codec == CODEC_H264 else 0) or number > 2:
        return KIND_NONE
    return <uint8_t>number


cdef inline bint nal_is_delimiter(int codec, const uint8_t* nal) noexcept nogil:
    return nal_type(codec, nal) == (H264_DELIMITER if codec == CODEC_H264 else H265_DELIMITER)


# -- putting together -------------------------------------------------------------------------------------------------

cdef inline void unit_spoil(RtpSession* s, uint8_t fate) noexcept nogil:
    """It cannot be recorded; its packets are still looked at, to find its end."""
    s.unit.fate = fate
    s.unit.fragment = False
    buffer_drop(s.pool, &s.unit.bytes)


cdef inline bint unit_append(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    """False: it is spoilt."""
    cdef RtpAssembly* u = &s.unit
    cdef size_t more = size
    if u.fate != FATE_WHOLE:
        return False
    if u.bytes.size + size > s.unit_bytes_max:
        unit_spoil(s, FATE_OVERSIZED)
        return False
    if u.bytes.data == NULL:
        more = max(size, min(s.usual_bytes, <size_t>USUAL_BYTES_MAX))
    if not buffer_room(s.pool, &u.bytes, more):
        unit_spoil(s, FATE_NO_MEMORY)
        return False
    memcpy(u.bytes.data + u.bytes.size, data, size)
    u.bytes.size += size
    return True


cdef inline void unit_reset(RtpSession* s) noexcept nogil:
    """None is open."""
    buffer_drop(s.pool, &s.unit.bytes)
    memset(&s.unit, 0, sizeof(RtpAssembly))


# -- its value --------------------------------------------------------------------------------------------------------

cdef inline bint set_is_missing(const RtpSession* s, const ParameterSet* found) noexcept nogil:
    """A key frame that brings no set of a kind at all gets those that are known."""
    return not s.unit.kinds >> found.kind & 1


cdef inline bint has_needed_sets(const RtpSession* s) noexcept nogil:
    """Is a sequence and a picture parameter set there or known? Nothing decodes without."""
    cdef uint8_t kinds = s.unit.kinds
    cdef uint32_t i
    for i in range(s.sets.count):
        kinds |= <uint8_t>(1 << s.sets.sets[i].kind)
    return kinds & NEEDED_KINDS == NEEDED_KINDS


cdef inline size_t missing_bytes(const RtpSession* s) noexcept nogil:
    cdef size_t size = 0
    cdef uint32_t i
    if s.codec == CODEC_JPEG or not s.unit.key:
        return 0
    for i in range(s.sets.count):
        if set_is_missing(s, &s.sets.sets[i]):
            size += SIZE_BYTES + s.sets.sets[i].size
    return size


cdef inline uint8_t* put_nal(uint8_t* to, const uint8_t* nal, size_t size) noexcept nogil:
    """Behind a start code (B.1.1). Returns the address after it."""
    to[0] = to[1] = to[2] = 0
    to[3] = 1
    memcpy(to + SIZE_BYTES, nal, size)
    return to + SIZE_BYTES + size


cdef inline uint8_t* put_missing(const RtpSession* s, uint8_t kind, uint8_t* to) noexcept nogil:
    cdef uint32_t i
    for i in range(s.sets.count):
        if s.sets.sets[i].kind == kind and set_is_missing(s, &s.sets.sets[i]):
            to = put_nal(to, s.sets.sets[i].data, s.sets.sets[i].size)
    return to


cdef inline uint8_t* put_kind(const RtpSession* s, size_t lead, uint8_t kind, uint8_t* to) noexcept nogil:
    """Those of its NAL units from `lead` on that are of a kind, in their order."""
    cdef const uint8_t* at = s.unit.bytes.data + lead
    cdef const uint8_t* end = s.unit.bytes.data + s.unit.bytes.size
    cdef uint32_t size
    while at < end:
        size = get_be32(at)
        at += SIZE_BYTES
        if kind > KIND_NONE or nal_kind(s.codec, at) == kind:
            to = put_nal(to, at, size)
        at += size
    return to


cdef inline void put_completed(const RtpSession* s, uint8_t* to) noexcept nogil:
    """A key frame with the sets it lacks in front of it, behind a delimiter if it begins with one."""
    cdef const uint8_t* data = s.unit.bytes.data
    cdef size_t lead = 0
    cdef uint8_t kind
    if nal_is_delimiter(s.codec, data + SIZE_BYTES):
        lead = SIZE_BYTES + get_be32(data)
        to = put_nal(to, data + SIZE_BYTES, lead - SIZE_BYTES)
    for kind in range(SET_KINDS):
        to = put_missing(s, kind, to)
        to = put_kind(s, lead, kind, to)
    put_kind(s, lead, KIND_NONE, to)
