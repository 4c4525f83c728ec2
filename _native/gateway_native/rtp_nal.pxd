"""Payloads of H.264 (RFC 6184 §5) and H.265 (RFC 7798 §4.4) into NAL units. Inline functions only.

Understood: single NAL units, aggregates (STAP-A, AP) and fragments (FU-A, FU), without decoding order numbers: what cameras
send. Others (STAP-B, MTAP, FU-B, PACI) are counted as unsupported, and what they were part of is damaged.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from gateway_native.rtp cimport CODEC_H264, FATE_WHOLE, RtpAssembly, RtpSession
from gateway_native.rtp_sets cimport sets_take
from gateway_native.rtp_unit cimport KIND_NONE, SIZE_BYTES, nal_kind, nal_type, unit_append
from gateway_native.state cimport bump

cdef extern from "wire.h" nogil:
    uint16_t get_be16(const uint8_t*)
    void put_be32(uint8_t*, uint32_t)

cdef enum:
    # RFC 6184 table 1
    H264_STAP_A = 24
    H264_FU_A = 28
    # RFC 7798 §4.4.2, §4.4.3, §4.4.4
    H265_AP = 48
    H265_FU = 49
    H265_PACI = 50
    FU_START = 0x80
    FU_END = 0x40

    # H.264 table 7-1
    H264_SLICE = 1
    H264_IDR = 5
    H264_SEI = 6
    SEI_RECOVERY_POINT = 6          # D.1.8
    # H.265 table 7-1: 0 to 31 are slices, 16 to 21 those where decoding can begin (IRAP)
    H265_VCL_END = 32
    H265_IRAP = 16
    H265_IRAP_END = 22


cdef inline void unit_unsupported(RtpSession* s) noexcept nogil:
    bump(&s.counters.unsupported_packets, 1)
    s.unit.damaged = True


# -- NAL units --------------------------------------------------------------------------------------------------------

cdef inline bint has_recovery_point(const uint8_t* sei, size_t size) noexcept nogil:
    """Streams without IDR pictures have no other way in (H.264 7.3.2.3.1)."""
    cdef size_t at = 1
    cdef size_t kind, length
    while at + 2 <= size and sei[at] != 0x80:
        kind = length = 0
        while at < size and sei[at] == 0xFF:
            kind += 255
            at += 1
        if at < size:
            kind += sei[at]
            at += 1
        while at < size and sei[at] == 0xFF:
            length += 255
            at += 1
        if at < size:
            length += sei[at]
            at += 1
        if kind == SEI_RECOVERY_POINT:
            return True
        at += length
    return False


cdef inline void picture_begins(RtpSession* s, bint first_slice) noexcept nogil:
    if not s.unit.picture and not first_slice:
        if s.ended_by_marker and s.timestamp == s.unit.timestamp and not s.unit.damaged:
            s.markers_lie = True
            bump(&s.counters.wrong_markers, 1)
        s.unit.damaged = True       # its head is not there, though no number was missing
    s.unit.picture = True


cdef inline void nal_classify(RtpSession* s, const uint8_t* nal, size_t size) noexcept nogil:
    cdef RtpAssembly* u = &s.unit
    cdef int number = nal_type(s.codec, nal)
    cdef uint8_t kind = nal_kind(s.codec, nal)
    if kind != KIND_NONE:
        u.kinds |= <uint8_t>(1 << kind)
        if sets_take(&s.sets, s.codec, kind, nal, size):
            u.sets_changed = True
    elif s.codec != CODEC_H264:
        if number < H265_VCL_END:
            picture_begins(s, size > 2 and nal[2] & 0x80)       # first_slice_segment_in_pic_flag
            u.key |= H265_IRAP <= number < H265_IRAP_END
    elif H264_SLICE <= number <= H264_IDR:
        # first_mb_in_slice, Exp-Golomb: 0 is a 1. Data partitions B and C begin otherwise, but never a picture.
        picture_begins(s, size > 1 and nal[1] & 0x80)
        u.key |= number == H264_IDR
    elif number == H264_SEI and has_recovery_point(nal, size):
        u.key = True


cdef inline void nal_begin(RtpSession* s, const uint8_t* header, size_t size) noexcept nogil:
    cdef uint8_t[SIZE_BYTES] room
    put_be32(room, 0)
    s.unit.nal_start = s.unit.bytes.size
    s.unit.fragment = unit_append(s, room, SIZE_BYTES) and unit_append(s, header, size)


cdef inline void nal_finish(RtpSession* s) noexcept nogil:
    """All of it is there."""
    cdef RtpAssembly* u = &s.unit
    cdef size_t size = u.bytes.size - u.nal_start - SIZE_BYTES
    u.fragment = False
    put_be32(u.bytes.data + u.nal_start, <uint32_t>size)
    nal_classify(s, u.bytes.data + u.nal_start + SIZE_BYTES, size)


cdef inline void nal_abandon(RtpSession* s) noexcept nogil:
    """A part of it is missing: it is left out."""
    if s.unit.fragment:
        s.unit.fragment = False
        s.unit.damaged = True
        s.unit.bytes.size = s.unit.nal_start


cdef inline void nal_unended(RtpSession* s) noexcept nogil:
    """The next one begins, no packet is missing, but the last fragment was not marked: kept, but perhaps not all of it."""
    if s.unit.fragment:
        s.unit.damaged = True
        nal_finish(s)


cdef inline void nal_whole(RtpSession* s, const uint8_t* nal, size_t size) noexcept nogil:
    if size < <size_t>(1 if s.codec == CODEC_H264 else 2):
        unit_unsupported(s)
        return
    nal_begin(s, nal, size)
    if s.unit.fragment:
        nal_finish(s)


# -- payloads ---------------------------------------------------------------------------------------------------------

cdef inline void payload_aggregate(RtpSession* s, const uint8_t* at, const uint8_t* end) noexcept nogil:
    """RFC 6184 §5.7.1, RFC 7798 §4.4.2: each NAL unit behind its size in two bytes."""
    cdef size_t size
    while end - at > 2:
        size = get_be16(at)
        if size == 0 or <size_t>(end - at) - 2 < size:
            unit_unsupported(s)
            return
        nal_whole(s, at + 2, size)
        at += 2 + size


cdef inline void payload_fragment(
    RtpSession* s, const uint8_t* header, size_t header_bytes, uint8_t fu, const uint8_t* data, size_t size
) noexcept nogil:
    """RFC 6184 §5.8, RFC 7798 §4.4.3. header: the NAL unit's, put together from the payload's and the fragment's."""
    cdef RtpAssembly* u = &s.unit
    if fu & FU_START:
        nal_unended(s)
        nal_begin(s, header, header_bytes)
        u.header = [header[0], header[header_bytes - 1]]
    elif u.fragment and (u.header[0] != header[0] or u.header[1] != header[header_bytes - 1]):
        nal_abandon(s)              # of another NAL unit, whose beginning is not there
    if not u.fragment:
        if u.fate == FATE_WHOLE:
            u.damaged = True        # its beginning is not there
        return
    if unit_append(s, data, size) and fu & FU_END:
        nal_finish(s)


cdef inline void payload_h264(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    cdef int number = data[0] & 0x1F
    cdef uint8_t[1] header
    if number == H264_FU_A:
        if size < 2:
            unit_unsupported(s)
            return
        header[0] = (data[0] & 0xE0) | (data[1] & 0x1F)
        payload_fragment(s, header, 1, data[1], data + 2, size - 2)
    elif number == H264_STAP_A:
        nal_unended(s)
        payload_aggregate(s, data + 1, data + size)
    elif 0 < number < H264_STAP_A:
        nal_unended(s)
        nal_whole(s, data, size)
    else:
        unit_unsupported(s)


cdef inline void payload_h265(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    cdef int number = data[0] >> 1 & 0x3F
    cdef uint8_t[2] header
    if size < 2 or (size < 3 and number == H265_FU):
        unit_unsupported(s)
    elif number == H265_FU:
        header[0] = (data[0] & 0x81) | <uint8_t>((data[2] & 0x3F) << 1)
        header[1] = data[1]
        payload_fragment(s, header, 2, data[2], data + 3, size - 3)
    elif number == H265_AP:
        nal_unended(s)
        payload_aggregate(s, data + 2, data + size)
    elif number < H265_AP:
        nal_unended(s)
        nal_whole(s, data, size)
    else:
        unit_unsupported(s)
