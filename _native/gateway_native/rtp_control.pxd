"""RTCP (RFC 3550 §6): sender reports and BYE read, receiver reports written. Inline functions only.

A sender report says what the camera's wall clock showed at an RTP time stamp. NTP seconds count from 1900 in 32 bits:
those below 1970 are of cameras that only know how long they run, and say nothing; from 2036 on they are of the next era.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gateway_native.rtp cimport REPORT_TICKS, RtpSession
from gateway_native.state cimport bump

cdef extern from "wire.h" nogil:
    uint16_t get_be16(const uint8_t*)
    uint32_t get_be32(const uint8_t*)
    void put_be16(uint8_t*, uint16_t)
    void put_be32(uint8_t*, uint32_t)

cdef enum:
    RTCP_SENDER_REPORT = 200
    RTCP_RECEIVER_REPORT = 201
    RTCP_DESCRIPTION = 202
    RTCP_GOODBYE = 203
    RTCP_CNAME = 1
    SENDER_REPORT_BYTES = 28        # without report blocks
    RECEIVER_REPORT_BYTES = 32      # with one
    CNAME_BYTES = 7
    DESCRIPTION_BYTES = 20          # header, SSRC, CNAME with type and size, and zeros up to a multiple of 4
    LOST_MAX = 0x7FFFFF             # 24 bits, signed

cdef extern from *:
    """
    #define GW_NTP_1970 2208988800LL            /* seconds from 1900 to 1970 */
    #define GW_NTP_ERA 4294967296LL
    #define GW_2035_NS 2051222400000000000LL
    """
    const int64_t GW_NTP_1970
    const int64_t GW_NTP_ERA
    const int64_t GW_2035_NS


cdef inline bint ntp_time(uint32_t seconds, uint32_t fraction, int64_t now_ns, int64_t* time_ns) noexcept nogil:
    """ns since 1970. False: it is no wall clock's."""
    cdef int64_t since_1900 = seconds
    if since_1900 < GW_NTP_1970:
        if now_ns < GW_2035_NS:
            return False
        since_1900 += GW_NTP_ERA
    time_ns[0] = (since_1900 - GW_NTP_1970) * 1000000000 + <int64_t>((<uint64_t>fraction * 1000000000) >> 32)
    return True


cdef inline void map_place(RtpSession* s, uint32_t timestamp) noexcept nogil:
    """`map_ns` was at this time stamp, whose place in the run is known now."""
    cdef int32_t step = <int32_t>(timestamp - s.timestamp)
    s.map_pending = False
    if -REPORT_TICKS < step < REPORT_TICKS:
        s.map_pts = s.pts + step
        s.mapped = True


cdef inline void sender_report(RtpSession* s, const uint8_t* at) noexcept nogil:
    cdef uint32_t seconds = get_be32(at + 8)
    cdef uint32_t fraction = get_be32(at + 12)
    cdef int64_t time_ns
    if s.started and get_be32(at + 4) != s.ssrc:
        return                          # another stream's
    bump(&s.counters.reports, 1)
    s.report_middle = seconds << 16 | fraction >> 16
    s.report_mono_ns = s.now_mono_ns
    if not ntp_time(seconds, fraction, s.now_ns, &time_ns):
        return
    s.map_ns = time_ns
    s.map_timestamp = get_be32(at + 16)
    s.map_pending = True
    s.mapped = False
    if s.placed:
        map_place(s, s.map_timestamp)


cdef inline bint goodbye_is_ours(const RtpSession* s, const uint8_t* at, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(min(<size_t>at[0] & 0x1F, (size - 4) // 4)):
        if get_be32(at + 4 + 4 * i) == s.ssrc:
            return s.started
    return False


# -- receiver reports -------------------------------------------------------------------------------------------------

cdef inline uint8_t fraction_lost(RtpSession* s, uint32_t expected) noexcept nogil:
    """Since the last report, of 256 (RFC 3550 A.3)."""
    cdef int64_t due = expected - s.expected_before
    cdef int64_t lost = due - <int64_t>(s.received - s.received_before)
    s.expected_before, s.received_before = expected, s.received
    return 0 if due <= 0 or lost <= 0 else <uint8_t>min(<int64_t>255, (lost << 8) // due)


cdef inline void report_block(RtpSession* s, uint8_t* to, uint64_t mono_ns) noexcept nogil:
    """RFC 3550 §6.4.1."""
    cdef uint32_t expected = s.extended - s.base_sequence + 1
    cdef int64_t lost = max(-<int64_t>LOST_MAX, min(<int64_t>LOST_MAX, <int64_t>expected - <int64_t>s.received))
    put_be32(to, s.ssrc)
    put_be32(to + 4, <uint32_t>fraction_lost(s, expected) << 24 | <uint32_t>lost & 0xFFFFFF)
    put_be32(to + 8, s.extended)
    put_be32(to + 12, <uint32_t>s.jitter)
    put_be32(to + 16, s.report_middle)
    put_be32(to + 20, <uint32_t>(((mono_ns - s.report_mono_ns) // 1000 << 16) // 1000000) if s.report_mono_ns else 0)


cdef inline size_t report_write(RtpSession* s, uint8_t* to, uint64_t mono_ns) noexcept nogil:
    """Interleaved: a receiver report, and the CNAME that every compound packet must have."""
    cdef size_t size = RECEIVER_REPORT_BYTES + DESCRIPTION_BYTES
    if not s.started:
        return 0
    to[0], to[1] = c'$', s.rtcp_channel
    put_be16(to + 2, <uint16_t>size)
    to += 4
    to[0], to[1] = 0x81, RTCP_RECEIVER_REPORT
    put_be16(to + 2, RECEIVER_REPORT_BYTES // 4 - 1)
    put_be32(to + 4, s.own_ssrc)
    report_block(s, to + 8, mono_ns)
    to += RECEIVER_REPORT_BYTES
    to[0], to[1] = 0x81, RTCP_DESCRIPTION
    put_be16(to + 2, DESCRIPTION_BYTES // 4 - 1)
    put_be32(to + 4, s.own_ssrc)
    to[8], to[9] = RTCP_CNAME, CNAME_BYTES
    memcpy(to + 10, b"gateway", CNAME_BYTES)
    to[17] = to[18] = to[19] = 0
    return 4 + size
