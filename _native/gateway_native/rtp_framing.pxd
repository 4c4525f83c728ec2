"""Interleaved frames and RTSP text on one connection (RFC 2326 §10.12, §4). Inline functions only.

A frame is `$`, its channel, its length in two bytes, and that many bytes. Between frames may stand RTSP messages: replies to
what we sent, requests of the camera's. Anything else means that sender and receiver disagree on where they are.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.stddef cimport size_t

from gateway_native.rtp cimport FAULT_LONG_TEXT, FAULT_NO_FRAME, HEAD_MAX, RtpSession, TEXT_MAX
from gateway_native.rtp_stream cimport control_packet, stream_packet
from gateway_native.state cimport bump

cdef extern from "wire.h" nogil:
    uint16_t get_be16(const uint8_t*)

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char*, const char*, size_t)

cdef enum:
    FRAME_FRONT_BYTES = 4
    LENGTH_NAME_BYTES = 15          # of "content-length:"
    LENGTH_DIGITS_MAX = 7


cdef inline bint is_text(uint8_t byte) noexcept nogil:
    """What RTSP messages' heads are made of (RFC 2326 §4, §15.1); UTF-8 in a reason phrase is let through."""
    return byte >= 0x20 and byte != 0x7F or byte == c'\t' or byte == c'\r' or byte == c'\n'


cdef inline size_t head_bytes(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    """Of a message with the empty line at its end; 0: not there yet, or a fault."""
    cdef size_t at
    cdef size_t line = 0            # where the line begins
    if not c'A' <= data[0] <= c'Z':
        s.fault = FAULT_NO_FRAME
        return 0
    for at in range(min(size, <size_t>HEAD_MAX)):
        if not is_text(data[at]):
            s.fault = FAULT_NO_FRAME
            return 0
        if data[at] == c'\n':
            if at == line or (at == line + 1 and data[line] == c'\r'):
                return at + 1
            line = at + 1
    if size >= HEAD_MAX:
        s.fault = FAULT_LONG_TEXT
    return 0


cdef inline size_t body_bytes(const uint8_t* head, size_t size) noexcept nogil:
    """What Content-Length says (RFC 2326 §12.14); 0 without one."""
    cdef size_t at = 0
    cdef size_t value = 0
    cdef int digits = 0
    while at < size:
        if size - at > LENGTH_NAME_BYTES and strncasecmp(<const char*>head + at, "content-length:", LENGTH_NAME_BYTES) == 0:
            at += LENGTH_NAME_BYTES
            while at < size and (head[at] == c' ' or head[at] == c'\t'):
                at += 1
            while at < size and c'0' <= head[at] <= c'9' and digits < LENGTH_DIGITS_MAX:
                value = 10 * value + head[at] - c'0'
                digits += 1
                at += 1
            return value
        while at < size and head[at] != c'\n':
            at += 1
        at += 1
    return 0


cdef inline size_t take_text(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    """A message; 0: not whole yet, or a fault."""
    cdef size_t whole = head_bytes(s, data, size)
    if whole == 0:
        return 0
    whole += body_bytes(data, whole)
    if whole > TEXT_MAX:
        s.fault = FAULT_LONG_TEXT
        return 0
    if whole > size:
        return 0
    s.text_sink(s.context, data, whole)
    return whole


cdef inline size_t take_frame(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    """An interleaved frame; 0: not whole yet."""
    cdef size_t length
    if size < FRAME_FRONT_BYTES:
        return 0
    length = get_be16(data + 2)
    if size - FRAME_FRONT_BYTES < length:
        return 0
    if data[1] == s.rtp_channel:
        stream_packet(s, data + FRAME_FRONT_BYTES, length)
    elif data[1] == s.rtcp_channel:
        control_packet(s, data + FRAME_FRONT_BYTES, length)
    else:
        bump(&s.counters.other_packets, 1)
    return FRAME_FRONT_BYTES + length


cdef inline size_t take_all(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    """Everything that is whole; how many bytes that were."""
    cdef size_t at = 0
    cdef size_t taken
    while at < size:
        if data[at] == c'$':
            taken = take_frame(s, data + at, size - at)
        elif data[at] == c'\r' or data[at] == c'\n':
            taken = 1                   # between messages (RFC 2326 §4)
        else:
            taken = take_text(s, data + at, size - at)
        if taken == 0 or s.fault:
            break
        at += taken
    return at
