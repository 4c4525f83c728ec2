"""Access units of one camera into records, and whole groups of pictures given up when there is no room for one.

Inline functions only; all run on the thread. What finds no room, or is larger than a record may be, is lost, and so is
everything up to the next key frame, since it could not be decoded. The next record says in its headers what went before it.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strlen

from gateway_native.batch cimport put_header, put_headers_count
from gateway_native.camera_thread cimport *
from gateway_native.ring cimport RingState, SLOT_KEYFRAME, ring_publish, ring_put
from gateway_native.rtp cimport (
    CODEC_H264, CODEC_H265, FATE_OVERSIZED, FATE_WHOLE, RtpSession, RtpUnit, unit_value_bytes, unit_write)
from gateway_native.state cimport bump

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_relaxed(const uint64_t*)
    void gw_store_relaxed(uint64_t*, uint64_t)

cdef enum:
    HEADERS_BYTES_MAX = 320         # of all there are: eight names, their numbers of 20 digits at most
    NUMBER_BYTES = 24
    NS_PER_MS = 1000000
    INTERVAL_SHARE = 16             # of a new interval in what is usual

cdef struct HeaderBlock:
    uint8_t[HEADERS_BYTES_MAX] data # the count first, in one byte
    size_t size
    uint32_t count


cdef inline void header_text(HeaderBlock* block, const char* name, const char* value) noexcept nogil:
    cdef uint8_t* to = block.data + block.size
    block.size = put_header(to, name, strlen(name), <const uint8_t*>value, strlen(value)) - block.data
    block.count += 1


cdef inline void header_number(HeaderBlock* block, const char* name, int64_t value) noexcept nogil:
    cdef char[NUMBER_BYTES] digits
    snprintf(digits, NUMBER_BYTES, "%lld", <long long>value)
    header_text(block, name, digits)


cdef inline void headers_of(
    HeaderBlock* block, const CameraState* camera, const RtpSession* s, const RtpUnit* unit
) noexcept nogil:
    """gateway/log/FORMAT.md, "Records of cameras"."""
    block.size, block.count = 1, 0
    header_text(block, "codec", "h264" if s.codec == CODEC_H264 else "h265" if s.codec == CODEC_H265 else "jpeg")
    if unit.key:
        header_text(block, "keyframe", "1")
    header_number(block, "pts", unit.pts)
    header_number(block, "run", camera.run)
    if unit.has_source_time:
        header_number(block, "source_time", unit.source_time_ns)
    if camera.lost:
        header_number(block, "lost", camera.lost)
    if camera.lost_packets:
        header_number(block, "lost_packets", <int64_t>camera.lost_packets)
    if unit.damaged:
        header_text(block, "damaged", "1")
    put_headers_count(block.data, block.count)


# -- losses -----------------------------------------------------------------------------------------------------------

cdef inline void loss_add(Loss* loss, uint64_t size, int64_t received_ns) noexcept nogil:
    if loss.count == 0:
        loss.first_ns = received_ns
    loss.last_ns = received_ns
    loss.count += 1
    loss.bytes += size


cdef inline void unit_give_up(Connection* c, int reason, const RtpUnit* unit) noexcept nogil:
    cdef CameraState* camera = c.camera
    loss_add(&c.losses[reason], unit_value_bytes(&c.rtp) if unit.fate == FATE_WHOLE else 0, unit.received_ns)
    camera.until_key = True
    camera.lost += 1
    bump(&camera.lost_units, 1)


cdef inline void look_for_refused(CameraState* camera) noexcept nogil:
    """What a full disk refused was in the ring already; what came after it cannot be decoded."""
    cdef uint64_t refused = gw_load_relaxed(camera.writer_refused)
    if refused > camera.refused_seen:
        camera.until_key = True
        camera.lost += <uint32_t>(refused - camera.refused_seen)
        bump(&camera.refused, refused - camera.refused_seen)
        camera.refused_seen = refused


# -- records ----------------------------------------------------------------------------------------------------------

cdef inline void run_begin(Connection* c, int64_t received_ns) noexcept nogil:
    """Its id is the receive time of its first unit in ms, made larger where needed so that ids of a camera grow."""
    cdef int64_t number = max(received_ns // NS_PER_MS, c.camera.run + 1)
    gw_store_relaxed(<uint64_t*>&c.camera.run, <uint64_t>number)
    c.say_run = True


cdef inline void unit_came(Connection* c, int64_t received_ns) noexcept nogil:
    """Whatever becomes of it: the camera is alive."""
    cdef uint64_t now = c.rtp.now_mono_ns
    cdef int64_t interval
    if c.unit_ns:
        interval = <int64_t>min(now - c.unit_ns, <uint64_t>INTERVAL_MAX_NS)
        if c.camera.interval_ns:
            interval = <int64_t>c.camera.interval_ns + (interval - <int64_t>c.camera.interval_ns) // INTERVAL_SHARE
        gw_store_relaxed(&c.camera.interval_ns, <uint64_t>max(<int64_t>1, interval))
    c.unit_ns = now
    gw_store_relaxed(&c.camera.last_unit_ns, <uint64_t>received_ns)
    if c.stalled:
        c.stalled = False
        c.say_resumed = True


cdef inline bint unit_put(Connection* c, const RtpUnit* unit, const HeaderBlock* headers, size_t value) noexcept nogil:
    """False: the ring has no room."""
    cdef CameraState* camera = c.camera
    cdef RingState* ring = camera.ring
    cdef uint64_t sequence
    cdef uint8_t* to = ring_put(ring, camera.partition, SLOT_KEYFRAME if unit.key else 0, unit.received_ns,
                                camera.key_bytes, <uint32_t>value, <uint32_t>headers.size, &sequence)
    if to == NULL:
        ring_publish(ring)
        return False
    memcpy(to, camera.key, camera.key_bytes)
    unit_write(&c.rtp, to + camera.key_bytes)
    memcpy(to + camera.key_bytes + value, headers.data, headers.size)
    return True


cdef inline void unit_recorded(Connection* c, const RtpUnit* unit, size_t value) noexcept nogil:
    cdef CameraState* camera = c.camera
    camera.until_key = False
    camera.lost = 0
    camera.lost_packets = 0
    bump(&camera.units, 1)
    bump(&camera.bytes, value)
    if unit.key:
        bump(&camera.keyframes, 1)
        gw_store_relaxed(&camera.last_key_ns, <uint64_t>unit.received_ns)


cdef inline void record_unit(void* context, RtpSession* s, const RtpUnit* unit) noexcept nogil:
    """The session's sink."""
    cdef Connection* c = <Connection*>context
    cdef CameraState* camera = c.camera
    cdef HeaderBlock headers
    cdef size_t value
    look_for_refused(camera)
    unit_came(c, unit.received_ns)
    if unit.run_begins:
        run_begin(c, unit.received_ns)
    camera.lost += unit.lost
    camera.lost_packets += unit.lost_packets
    if unit.fate != FATE_WHOLE:
        if unit.fate == FATE_OVERSIZED:
            bump(&camera.oversized, 1)
        unit_give_up(c, LOSS_OVERSIZED if unit.fate == FATE_OVERSIZED else LOSS_ROOM, unit)
        return
    if camera.until_key and not unit.key:
        unit_give_up(c, LOSS_ROOM, unit)
        return
    value = unit_value_bytes(s)
    headers_of(&headers, camera, s, unit)
    if camera.key_bytes + value + headers.size > camera.record_bytes_max:
        bump(&camera.oversized, 1)
        unit_give_up(c, LOSS_OVERSIZED, unit)
    elif not unit_put(c, unit, &headers, value):
        unit_give_up(c, LOSS_ROOM, unit)
    else:
        unit_recorded(c, unit, value)
