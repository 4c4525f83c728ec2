"""One RTP stream (RFC 3550): sequence numbers, time stamps, runs, and where an access unit ends. Inline functions only."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gateway_native.rtp cimport (
    AHEAD_TICKS, BACKWARD_TICKS, CODEC_H264, CODEC_JPEG, FATE_WHOLE, LATE_MAX, RtpAssembly, RtpSession, RtpUnit)
from gateway_native.rtp_control cimport (
    RTCP_GOODBYE, RTCP_SENDER_REPORT, SENDER_REPORT_BYTES, goodbye_is_ours, map_place, sender_report)
from gateway_native.rtp_jpeg cimport image_end, payload_jpeg
from gateway_native.rtp_nal cimport nal_abandon, nal_unended, payload_h264, payload_h265
from gateway_native.rtp_unit cimport has_needed_sets, unit_reset
from gateway_native.state cimport bump

cdef extern from "wire.h" nogil:
    uint16_t get_be16(const uint8_t*)
    uint32_t get_be32(const uint8_t*)

cdef extern from "atomics.h" nogil:
    void gw_store_relaxed(uint64_t*, uint64_t)

cdef enum:
    RTP_HEADER_BYTES = 12
    SEEN_BITS = 64
    # Ticks are 90 kHz: 9 of them are 100,000 ns.
    TICKS_STEP = 9
    TICKS_STEP_NS = 100000

cdef struct RtpPacket:
    const uint8_t* payload
    size_t size
    uint32_t timestamp
    uint32_t ssrc
    uint16_t sequence
    uint8_t payload_type
    bint marker


cdef inline bint packet_read(RtpPacket* p, const uint8_t* data, size_t size) noexcept nogil:
    """RFC 3550 §5.1, §5.3.1. False: it is none."""
    cdef size_t front
    if size < RTP_HEADER_BYTES or data[0] >> 6 != 2:
        return False
    front = RTP_HEADER_BYTES + 4 * (data[0] & 0x0F)
    if data[0] & 0x10:
        if size < front + 4:
            return False
        front += 4 + 4 * <size_t>get_be16(data + front + 2)
    if data[0] & 0x20:
        if data[size - 1] == 0 or size < front + data[size - 1]:
            return False
        size -= data[size - 1]
    if size < front:
        return False
    p.payload, p.size = data + front, size - front
    p.marker, p.payload_type = data[1] >> 7, data[1] & 0x7F
    p.sequence, p.timestamp, p.ssrc = get_be16(data + 2), get_be32(data + 4), get_be32(data + 8)
    return True


# -- the end of an access unit ----------------------------------------------------------------------------------------

cdef inline bint clock_jumped(const RtpSession* s, int32_t step) noexcept nogil:
    """Was the camera's clock set? B-frames step back by some pictures; what a network held up is behind, never ahead."""
    cdef int64_t passed = <int64_t>(s.unit.arrived_ns - s.arrived_ns) // TICKS_STEP_NS * TICKS_STEP
    return step < -BACKWARD_TICKS or step - passed > AHEAD_TICKS


cdef inline void unit_place(RtpSession* s) noexcept nogil:
    """Its time stamp, unwrapped."""
    cdef int32_t step = <int32_t>(s.unit.timestamp - s.timestamp)
    if s.placed and not clock_jumped(s, step):
        s.pts += step
    else:
        if s.placed:
            # Camera time that is derived from the report before the jump would be wrong by the jump.
            bump(&s.counters.clock_jumps, 1)
            s.mapped = s.map_pending = False
            s.run_begins = True
        s.pts = s.unit.timestamp
    s.timestamp = s.unit.timestamp
    s.ended_by_marker = False
    s.arrived_ns = s.unit.arrived_ns
    s.placed = True
    if s.map_pending:
        map_place(s, s.map_timestamp)


cdef inline void unit_lose(RtpSession* s) noexcept nogil:
    """Nothing is left of it that could be shown; the next one says so."""
    bump(&s.counters.lost_units, 1)
    s.lost += 1
    s.carried_packets += s.unit.lost_packets


cdef inline void unit_deliver(RtpSession* s) noexcept nogil:
    cdef RtpAssembly* u = &s.unit
    cdef RtpUnit unit
    unit.fate, unit.key, unit.damaged = u.fate, u.key, u.damaged
    unit.run_begins = s.run_begins
    unit.pts, unit.received_ns = s.pts, u.received_ns
    unit.has_source_time = s.mapped
    unit.source_time_ns = s.map_ns + (s.pts - s.map_pts) * TICKS_STEP_NS // TICKS_STEP if s.mapped else 0
    unit.lost, unit.lost_packets = s.lost, s.carried_packets + u.lost_packets
    s.run_begins = False
    s.lost = s.carried_packets = 0
    if u.damaged:
        bump(&s.counters.damaged_units, 1)
    if not u.key and u.fate == FATE_WHOLE:
        s.usual_bytes = u.bytes.size
    s.unit_sink(s.context, s, &unit)


cdef inline void unit_end(RtpSession* s) noexcept nogil:
    """It is all there that will ever be."""
    cdef RtpAssembly* u = &s.unit
    if s.codec == CODEC_JPEG and u.picture:
        image_end(s)
    elif u.key and not has_needed_sets(s):
        u.damaged = True                # they were lost before the first packet that came
    unit_place(s)
    if u.sets_changed:
        s.picture_changed = True
        if s.seen_key:
            bump(&s.counters.parameter_changes, 1)
    if u.fate == FATE_WHOLE and not u.picture:
        unit_lose(s)
    elif u.fate == FATE_WHOLE and not (u.key or s.seen_key):
        bump(&s.counters.skipped_before_key, 1)
        s.carried_packets += u.lost_packets
    else:
        s.seen_key |= u.fate == FATE_WHOLE     # whoever has no memory or limit for its key frames has to hear of it
        unit_deliver(s)
    unit_reset(s)


cdef inline void unit_turn(RtpSession* s, uint32_t timestamp) noexcept nogil:
    """The time stamp changes."""
    nal_unended(s)
    if s.unit.picture or s.unit.damaged or s.unit.fate != FATE_WHOLE:
        unit_end(s)
    else:
        s.unit.timestamp = timestamp    # no picture yet: it belongs to the one that comes


cdef inline void unit_break(RtpSession* s) noexcept nogil:
    """The stream ends or begins anew: what is open is not known to be whole."""
    if s.unit.open:
        nal_abandon(s)
        if s.unit.picture or s.unit.damaged or s.unit.fate != FATE_WHOLE:
            s.unit.damaged = True
            unit_end(s)
        else:
            s.carried_packets += s.unit.lost_packets
            unit_reset(s)


cdef inline void run_end(RtpSession* s) noexcept nogil:
    """What comes next has nothing to do with what came."""
    unit_break(s)
    s.started = s.placed = s.mapped = s.map_pending = s.seen_key = False
    s.uncertain = s.jitter_known = s.ended_by_marker = s.markers_lie = False
    s.report_mono_ns = s.report_middle = 0
    s.carried_packets += s.hole
    s.hole = 0
    s.run_begins = True


# -- sequence numbers -------------------------------------------------------------------------------------------------

cdef inline void stream_begin(RtpSession* s, const RtpPacket* p) noexcept nogil:
    """The first packet, or another SSRC's."""
    if s.started:
        bump(&s.counters.ssrc_changes, 1)
        run_end(s)
    s.started = True
    s.ssrc = p.ssrc
    s.next_sequence = p.sequence
    s.seen = 0
    s.received = s.received_before = 0
    s.base_sequence = s.extended = p.sequence
    s.expected_before = 0
    s.jitter = 0


cdef inline void sequence_restart(RtpSession* s, const RtpPacket* p) noexcept nogil:
    """It counts anew; how many packets that cost, if any, nobody knows."""
    bump(&s.counters.restarts, 1)
    unit_break(s)
    s.uncertain = True
    s.next_sequence = p.sequence
    s.seen = 0
    s.received = s.received_before = 0
    s.base_sequence = s.extended = p.sequence
    s.expected_before = 0


cdef inline void count_hole(RtpSession* s, uint32_t packets) noexcept nogil:
    bump(&s.counters.lost_packets, packets)
    s.hole += packets
    s.hole_last_ns = s.now_ns
    if s.hole_first_ns == 0:
        s.hole_first_ns = s.now_ns


cdef inline bint sequence_take(RtpSession* s, const RtpPacket* p) noexcept nogil:
    """False: the packet came before, or is too late to be used."""
    cdef int step = <int>(<uint16_t>(p.sequence - s.next_sequence))
    cdef uint64_t bit
    if step >= 0x8000:
        step -= 0x10000
    if step < -LATE_MAX:
        sequence_restart(s, p)
        step = 0
    if step < 0:
        bit = <uint64_t>1 << (-step - 1) if -step <= SEEN_BITS else 0
        if s.seen & bit:
            bump(&s.counters.duplicate_packets, 1)
        else:
            bump(&s.counters.late_packets, 1)
            s.seen |= bit
            s.received += 1
        return False
    if step > 0:
        count_hole(s, step)
    s.seen = (s.seen << (step + 1) if step + 1 < SEEN_BITS else 0) | 1
    s.extended += <uint16_t>(p.sequence - <uint16_t>s.extended)
    s.next_sequence = p.sequence + 1
    s.received += 1
    return True


# -- packets ----------------------------------------------------------------------------------------------------------

cdef inline void jitter_take(RtpSession* s, uint32_t timestamp) noexcept nogil:
    """RFC 3550 A.8, of the first packet of each time stamp: the others wait behind it in the same connection."""
    cdef int64_t transit = <int64_t>(s.now_mono_ns // TICKS_STEP_NS * TICKS_STEP) - timestamp
    cdef int32_t difference = <int32_t>(transit - s.jitter_transit)
    if s.jitter_known and -AHEAD_TICKS < difference < AHEAD_TICKS:
        s.jitter += ((difference if difference >= 0 else -difference) - s.jitter) / 16
        gw_store_relaxed(&s.counters.jitter_ns, <uint64_t>(s.jitter * TICKS_STEP_NS / TICKS_STEP))
    s.jitter_transit = transit
    s.jitter_known = True


cdef inline void unit_open(RtpSession* s, uint32_t timestamp) noexcept nogil:
    s.unit.open = True
    s.unit.timestamp = timestamp
    s.unit.received_ns = s.now_ns
    s.unit.arrived_ns = s.now_mono_ns
    jitter_take(s, timestamp)


cdef inline void payload_take(RtpSession* s, const RtpPacket* p) noexcept nogil:
    """One that belongs to the stream, in order."""
    cdef RtpAssembly* u = &s.unit
    if u.open and u.timestamp != p.timestamp:
        unit_turn(s, p.timestamp)
    if not u.open:
        unit_open(s, p.timestamp)
    if s.hole or s.uncertain:
        u.damaged = True
        u.lost_packets += s.hole
        s.hole = 0
        s.uncertain = False
    if p.size:
        if s.codec == CODEC_H264:
            payload_h264(s, p.payload, p.size)
        elif s.codec == CODEC_JPEG:
            payload_jpeg(s, p.payload, p.size)
        else:
            payload_h265(s, p.payload, p.size)
    if p.marker and not s.markers_lie and not u.fragment and (u.picture or u.fate != FATE_WHOLE):
        unit_end(s)
        s.ended_by_marker = True


cdef inline void stream_packet(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    cdef RtpPacket p
    cdef bint ours
    if not packet_read(&p, data, size):
        bump(&s.counters.other_packets, 1)
        return
    ours = s.payload_type < 0 or p.payload_type == s.payload_type
    if not s.started or p.ssrc != s.ssrc:
        if not ours:
            bump(&s.counters.other_packets, 1)
            return
        stream_begin(s, &p)
    bump(&s.counters.packets, 1)
    bump(&s.counters.packet_bytes, size)
    if not sequence_take(s, &p):
        return
    if s.hole and s.unit.open:
        nal_abandon(s)
        s.unit.damaged = True       # the hole may be its tail
    if ours:
        payload_take(s, &p)
    else:
        bump(&s.counters.other_packets, 1)


cdef inline void control_packet(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    """A compound packet (RFC 3550 §6.1); what is malformed in it is left out."""
    cdef size_t length
    while size >= 4 and data[0] >> 6 == 2:
        length = 4 + 4 * <size_t>get_be16(data + 2)
        if length > size:
            return
        if data[1] == RTCP_SENDER_REPORT and length >= SENDER_REPORT_BYTES:
            sender_report(s, data)
        elif data[1] == RTCP_GOODBYE and goodbye_is_ours(s, data, length):
            bump(&s.counters.goodbyes, 1)
            run_end(s)
            s.goodbye = True
        data += length
        size -= length
