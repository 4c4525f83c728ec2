"""One camera's RTSP connection after PLAY. See rtp.pxd for the contract, the rtp_*.pxd it names for the work."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from gateway_native.rtp_blocks cimport BlockPool, buffer_drop, buffer_room, pool_free
from gateway_native.rtp_control cimport report_write
from gateway_native.rtp_framing cimport take_all
from gateway_native.rtp_sets cimport ParameterSet, sets_free, sets_newest, sets_take
from gateway_native.rtp_stream cimport run_end
from gateway_native.rtp_unit cimport KIND_NONE, missing_bytes, nal_kind, put_completed, put_kind, unit_reset

import os
from typing import NamedTuple

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_relaxed(const uint64_t*)

CODECS = ("h264", "h265", "jpeg")
UNIT_BYTES_MAX = UNIT_MAX
TEXT_BYTES_MAX = TEXT_MAX
FAULT_GARBAGE, FAULT_TEXT, FAULT_MEMORY = FAULT_NO_FRAME, FAULT_LONG_TEXT, FAULT_NO_MEMORY
FAULTS = {
    FAULT_GARBAGE: "what it sends is neither an interleaved frame nor an RTSP message",
    FAULT_TEXT: f"it sent an RTSP message of more than {TEXT_MAX} bytes, or a head of more than {HEAD_MAX}",
    FAULT_MEMORY: "there is no memory for what it sends",
}

cdef enum:
    EVERY_KIND = KIND_NONE + 1      # of NAL unit
    RECEIVER_BYTES_MAX = 268435456  # that a Receiver uses


class RemoteFault(Exception):
    """The camera sent what no RTSP connection may carry."""

    def __init__(self, number):
        super().__init__(FAULTS[number])
        self.number = number


class Unit(NamedTuple):
    """One access unit, as it is recorded."""

    value: bytes
    key: bool
    pts: int
    received_ns: int
    source_time_ns: int | None
    run_begins: bool
    lost: int
    lost_packets: int
    damaged: bool


cdef void session_init(RtpSession* s) noexcept nogil:
    s.run_begins = True
    s.picture_changed = True


cdef void session_set(RtpSession* s, const uint8_t* nal, size_t size) noexcept nogil:
    cdef uint8_t kind = KIND_NONE
    if size and s.codec != CODEC_JPEG:
        kind = nal_kind(s.codec, nal)
    if kind != KIND_NONE:
        sets_take(&s.sets, s.codec, kind, nal, size)


cdef int session_configure(
    RtpSession* s, str codec, int rtp_channel, int rtcp_channel, int payload_type, parameter_sets, tuple jpeg_size
) except -1:
    if codec not in CODECS:
        raise ValueError(f"codec {codec!r}; known are {', '.join(CODECS)}")
    for channel in (rtp_channel, rtcp_channel):
        if not 0 <= channel <= 255:
            raise ValueError(f"an interleaved channel is 0 to 255, not {channel}")
    if rtp_channel == rtcp_channel:
        raise ValueError(f"RTP and RTCP cannot share the channel {rtp_channel}")
    if not -1 <= payload_type <= 127:
        raise ValueError(f"a payload type is 0 to 127, or -1 for any, not {payload_type}")
    width, height = jpeg_size
    if not (0 <= width <= 65535 and 0 <= height <= 65535):
        raise ValueError(f"an image of {width} x {height} pixels")
    s.codec = <uint8_t>(CODECS.index(codec) + 1)
    s.rtp_channel, s.rtcp_channel, s.payload_type = <uint8_t>rtp_channel, <uint8_t>rtcp_channel, payload_type
    s.jpeg_width, s.jpeg_height = width, height
    s.own_ssrc = <uint32_t>int.from_bytes(os.urandom(4), "big")
    for nal in parameter_sets:
        session_set(s, <const uint8_t*>PyBytes_AS_STRING(nal), len(<bytes?>nal))
    session_init(s)
    return 0


cdef size_t session_front(RtpSession* s, uint8_t* to) noexcept nogil:
    cdef size_t size = s.left.size
    if size:
        memcpy(to, s.left.data, size)
        buffer_drop(s.pool, &s.left)
    return size


cdef void session_feed(RtpSession* s, const uint8_t* data, size_t size, int64_t now_ns, uint64_t mono_ns) noexcept nogil:
    cdef size_t taken
    if s.fault:
        return
    s.now_ns, s.now_mono_ns = now_ns, mono_ns
    taken = take_all(s, data, size)
    if s.fault or taken == size:
        return
    if not buffer_room(s.pool, &s.left, size - taken):
        s.fault = FAULT_NO_MEMORY
        return
    memcpy(s.left.data, data + taken, size - taken)
    s.left.size = size - taken


cdef void session_end(RtpSession* s) noexcept nogil:
    run_end(s)


cdef void session_free(RtpSession* s) noexcept nogil:
    unit_reset(s)
    buffer_drop(s.pool, &s.left)
    sets_free(&s.sets)


cdef size_t session_report(RtpSession* s, uint8_t* to, uint64_t mono_ns) noexcept nogil:
    return report_write(s, to, mono_ns)


cdef size_t unit_value_bytes(const RtpSession* s) noexcept nogil:
    return s.unit.bytes.size + missing_bytes(s)


cdef void unit_write(const RtpSession* s, uint8_t* to) noexcept nogil:
    if s.codec == CODEC_JPEG:
        memcpy(to, s.unit.bytes.data, s.unit.bytes.size)
    elif missing_bytes(s):
        put_completed(s, to)
    else:
        put_kind(s, 0, EVERY_KIND, to)


cdef const uint8_t* session_picture(const RtpSession* s, size_t* size) noexcept nogil:
    cdef const ParameterSet* found = sets_newest(&s.sets, 1)
    size[0] = 0 if found == NULL else found.size
    return NULL if found == NULL else found.data


cdef dict counters_of(const RtpCounters* counters):
    return {
        "packets": gw_load_relaxed(&counters.packets),
        "packet_bytes": gw_load_relaxed(&counters.packet_bytes),
        "lost_packets": gw_load_relaxed(&counters.lost_packets),
        "duplicate_packets": gw_load_relaxed(&counters.duplicate_packets),
        "late_packets": gw_load_relaxed(&counters.late_packets),
        "other_packets": gw_load_relaxed(&counters.other_packets),
        "unsupported_packets": gw_load_relaxed(&counters.unsupported_packets),
        "damaged_units": gw_load_relaxed(&counters.damaged_units),
        "lost_units": gw_load_relaxed(&counters.lost_units),
        "skipped_before_key": gw_load_relaxed(&counters.skipped_before_key),
        "clock_jumps": gw_load_relaxed(&counters.clock_jumps),
        "ssrc_changes": gw_load_relaxed(&counters.ssrc_changes),
        "restarts": gw_load_relaxed(&counters.restarts),
        "parameter_changes": gw_load_relaxed(&counters.parameter_changes),
        "goodbyes": gw_load_relaxed(&counters.goodbyes),
        "reports": gw_load_relaxed(&counters.reports),
        "wrong_markers": gw_load_relaxed(&counters.wrong_markers),
        "jitter_ns": gw_load_relaxed(&counters.jitter_ns),
    }


# -- the Receiver -----------------------------------------------------------------------------------------------------

cdef void keep_unit(void* context, RtpSession* s, const RtpUnit* unit) noexcept with gil:
    (<Receiver>context).keep(unit)


cdef void keep_text(void* context, const uint8_t* text, size_t size) noexcept with gil:
    (<Receiver>context).found_texts.append(PyBytes_FromStringAndSize(<const char*>text, size))


cdef class Receiver:
    """A camera's connection, to be fed in any pieces."""

    cdef RtpSession session
    cdef RtpCounters counters
    cdef BlockPool pool
    cdef list found
    cdef list found_texts
    cdef uint32_t lost

    def __cinit__(self, str codec not None, *, int rtp_channel=0, int rtcp_channel=1, int payload_type=-1,
                  parameter_sets=(), tuple jpeg_size=(0, 0), size_t unit_bytes_max=UNIT_MAX):
        cdef RtpSession* s = &self.session
        if not 1 <= unit_bytes_max <= UNIT_MAX:
            raise ValueError(f"unit_bytes_max is 1 to {UNIT_MAX}, not {unit_bytes_max}")
        self.found, self.found_texts = [], []
        self.pool.used_max = RECEIVER_BYTES_MAX
        s.pool, s.counters, s.context = &self.pool, &self.counters, <void*>self
        s.unit_sink, s.text_sink = keep_unit, keep_text
        s.unit_bytes_max = unit_bytes_max
        session_configure(s, codec, rtp_channel, rtcp_channel, payload_type, parameter_sets, jpeg_size)

    def __dealloc__(self):
        if self.session.pool != NULL:
            session_free(&self.session)
        pool_free(&self.pool)

    cdef int keep(self, const RtpUnit* unit) except -1:
        cdef bytes value
        self.lost += unit.lost
        if unit.fate != FATE_WHOLE:
            self.lost += 1
            return 0
        value = PyBytes_FromStringAndSize(NULL, unit_value_bytes(&self.session))
        unit_write(&self.session, <uint8_t*>PyBytes_AS_STRING(value))
        self.found.append(Unit(value, bool(unit.key), unit.pts, unit.received_ns,
                               unit.source_time_ns if unit.has_source_time else None, bool(unit.run_begins), self.lost,
                               unit.lost_packets, bool(unit.damaged)))
        self.lost = 0
        return 0

    cdef list take(self):
        found, self.found = self.found, []
        return found

    def feed(self, bytes data not None, int64_t now_ns) -> list:
        """What became whole with these bytes, which were received at that time. Raises RemoteFault."""
        cdef RtpSession* s = &self.session
        cdef size_t front = s.left.size
        cdef uint8_t* buffer = <uint8_t*>malloc(front + len(data) + 1)
        if buffer == NULL:
            raise MemoryError(f"no memory for {front + len(data)} bytes of a connection")
        session_front(s, buffer)
        memcpy(buffer + front, PyBytes_AS_STRING(data), len(data))
        session_feed(s, buffer, front + len(data), now_ns, <uint64_t>now_ns)
        free(buffer)
        if s.fault:
            raise RemoteFault(s.fault)
        return self.take()

    def end(self) -> list:
        """The connection is over: what is left."""
        session_end(&self.session)
        return self.take()

    def texts(self) -> list:
        """RTSP messages between frames since the last call."""
        found, self.found_texts = self.found_texts, []
        return found

    def report(self, int64_t now_ns) -> bytes:
        """A receiver report to send."""
        cdef uint8_t[REPORT_BYTES] to
        return PyBytes_FromStringAndSize(<const char*>to, session_report(&self.session, to, <uint64_t>now_ns))

    @property
    def memory_bytes(self) -> int:
        """Of blocks in use."""
        return self.pool.used_bytes

    @property
    def statistics(self) -> dict:
        return counters_of(&self.counters)
