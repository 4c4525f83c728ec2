"""One camera's RTSP connection after PLAY, sans I/O: interleaved frames in, access units out, no Python object between.

    rtp_framing     `$` frames and RTSP text (RFC 2326 §10.12), cut anywhere
    rtp_stream      one RTP stream: sequence numbers, time stamps, runs, where an access unit ends (RFC 3550)
    rtp_unit        the access unit that is being put together
    rtp_nal         payloads of H.264 (RFC 6184) and H.265 (RFC 7798)
    rtp_jpeg        payloads of MJPEG (RFC 2435)
    rtp_control     sender and receiver reports, BYE (RFC 3550 §6)
    rtp_sets        parameter sets
    rtp_blocks      memory

What is decided here, and said to readers of the log in gateway/log/FORMAT.md:

* An access unit ends with the marker bit, or where the time stamp changes. Markers of cameras are often wrong on what is no
  picture, so a unit without picture data (parameter sets, SEI, delimiters) never ends: it goes in front of the picture that
  follows, and takes its time stamp.
* Some cameras mark every slice. Where a later slice of the same time stamp follows a marker, markers are not believed any
  more in this run; that one picture is in two records, the second of them flagged.
* A NAL unit with a hole is left out as a whole; a JPEG image ends at the hole. Never is anything joined across one.
* A hole between two packets may belong to the unit before it (if it is still open), to the one behind it, or be whole units
  between them: both are flagged, the one behind counts the packets.
* A unit whose picture data does not begin with a picture's first slice lacks its head, whatever sequence numbers say.
* A key frame without any SPS or PPS, of its own or known, is damaged likewise.
* What is late (TCP delivers in order, but servers reorder) is counted and left out; its hole was counted before.
* A new run begins with the connection, another SSRC, BYE, or a jump of the time stamps (BACKWARD_TICKS, AHEAD_TICKS).
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from gateway_native.rtp_blocks cimport BlockPool, Buffer
from gateway_native.rtp_sets cimport ParameterSets

cdef enum:
    CODEC_H264 = 1
    CODEC_H265 = 2
    CODEC_JPEG = 3

    UNIT_MAX = 16777216             # bytes of an access unit
    FRAME_BYTES_MAX = 65539         # an interleaved frame with its four bytes
    TEXT_MAX = 65536                # bytes of an RTSP message, …
    HEAD_MAX = 16384                # … and of its head

    BACKWARD_TICKS = 180000         # so far back, or …
    AHEAD_TICKS = 900000            # … so far ahead of the time that passed: the camera's clock was set
    REPORT_TICKS = 5400000          # a sender report whose stamp is further from the pictures' is of another clock
    LATE_MAX = 100                  # sequence numbers further back are no late packets: they were begun anew

    FAULT_NONE = 0
    FAULT_NO_FRAME = 1              # neither `$` nor RTSP text where a frame has to begin
    FAULT_LONG_TEXT = 2
    FAULT_NO_MEMORY = 3

    FATE_WHOLE = 0                  # the unit is there
    FATE_OVERSIZED = 1              # it is lost: larger than may be, …
    FATE_NO_MEMORY = 2              # … or there was no memory for it

cdef struct RtpCounters:            # published; they outlive the connection
    uint64_t packets
    uint64_t packet_bytes
    uint64_t lost_packets
    uint64_t duplicate_packets
    uint64_t late_packets
    uint64_t other_packets
    uint64_t unsupported_packets
    uint64_t damaged_units
    uint64_t lost_units             # nothing left of them
    uint64_t skipped_before_key
    uint64_t clock_jumps
    uint64_t ssrc_changes
    uint64_t restarts
    uint64_t parameter_changes
    uint64_t goodbyes
    uint64_t reports
    uint64_t wrong_markers
    uint64_t jitter_ns

# The access unit that is being put together. H.264 and H.265: each NAL unit behind its size in four bytes, which make room
# for the start code; JPEG: the image.
cdef struct RtpAssembly:
    bint open
    bint damaged
    bint picture                    # picture data is in it
    bint key
    bint sets_changed
    bint fragment                   # a NAL unit is not whole yet; it begins at `nal_start`
    bint cut                        # JPEG: nothing is added any more
    uint8_t fate                    # FATE_*
    uint8_t kinds                   # bits: of these kinds it brings parameter sets
    uint8_t[2] header               # of the NAL unit that is not whole
    uint32_t timestamp
    uint32_t lost_packets
    int64_t received_ns
    uint64_t arrived_ns             # the same, monotonic
    size_t nal_start
    Buffer bytes

# A finished one, as the sink gets it; `unit_value_bytes` and `unit_write` give the value.
cdef struct RtpUnit:
    uint8_t fate
    bint key
    bint damaged
    bint run_begins
    bint has_source_time
    int64_t pts
    int64_t received_ns
    int64_t source_time_ns
    uint32_t lost
    uint32_t lost_packets

ctypedef void (*UnitSink)(void* context, RtpSession* s, const RtpUnit* unit) noexcept nogil
ctypedef void (*TextSink)(void* context, const uint8_t* text, size_t size) noexcept nogil

cdef struct RtpSession:
    # Fixed after session_init.
    uint8_t codec
    uint8_t rtp_channel
    uint8_t rtcp_channel
    int payload_type                # -1: any
    uint32_t jpeg_width             # of the SDP; 0: unknown
    uint32_t jpeg_height
    uint32_t own_ssrc
    size_t unit_bytes_max
    BlockPool* pool
    RtpCounters* counters
    UnitSink unit_sink
    TextSink text_sink
    void* context
    # Framing.
    uint8_t fault                   # FAULT_*
    Buffer left                     # of a frame that is not whole
    int64_t now_ns                  # when what is being parsed was received
    uint64_t now_mono_ns
    # Sequence numbers.
    bint started                    # ssrc and what follows are known
    uint32_t ssrc
    uint16_t next_sequence
    uint64_t seen                   # bit i: next_sequence - 1 - i came
    uint64_t received               # these three for receiver reports (RFC 3550 A.3): packets since …
    uint32_t base_sequence          # … the first one's extended sequence number
    uint32_t extended               # the highest one's
    uint32_t expected_before        # at the last report
    uint64_t received_before
    uint32_t hole                   # packets lost before the one at hand
    bint uncertain                  # something unknown was lost before it
    int64_t hole_first_ns           # when the first and the last hole since somebody set it to 0 were noticed
    int64_t hole_last_ns
    int64_t jitter_transit          # RFC 3550 A.8, in ticks
    double jitter
    bint jitter_known
    # Time.
    bint placed                     # the next three are known
    int64_t pts
    uint32_t timestamp
    uint64_t arrived_ns
    bint run_begins                 # with the next unit
    bint seen_key
    bint ended_by_marker            # the last unit, whose time stamp is `timestamp`
    bint markers_lie                # a picture went on behind one: from then on time stamps alone tell
    bint mapped                     # at `map_pts` the camera's clock showed `map_ns`
    bint map_pending                # likewise, at the time stamp `map_timestamp`, before the first unit
    int64_t map_pts
    int64_t map_ns
    uint32_t map_timestamp
    uint32_t report_middle          # of the last sender report's NTP time, and when it came; 0: none
    uint64_t report_mono_ns
    uint32_t lost                   # units of which nothing is left, since the last one
    uint32_t carried_packets        # lost with units that were skipped
    # JPEG.
    uint8_t[256] quantizers         # of the last image that brought some, as DQT takes them
    uint32_t quantizers_size        # 0: none
    uint8_t quantizers_q
    uint8_t quantizers_precision
    uint32_t image_width
    uint32_t image_height
    size_t image_start              # bytes before the scan
    # What is put together.
    size_t usual_bytes              # of a unit that is no key frame
    bint picture_changed            # parameter sets or size, until somebody sets it to False
    bint goodbye                    # … likewise
    RtpAssembly unit
    ParameterSets sets


cdef enum:
    REPORT_BYTES = 64               # of an interleaved receiver report with its CNAME, at most

# Everything zero before; the fields under "Fixed" are the caller's to set before any other call.
cdef void session_init(RtpSession* s) noexcept nogil

# A parameter set of the SDP, a NAL unit.
cdef void session_set(RtpSession* s, const uint8_t* nal, size_t size) noexcept nogil

# A camera's arguments, as Receiver takes them. ValueError for what cannot be.
cdef int session_configure(
    RtpSession* s, str codec, int rtp_channel, int rtcp_channel, int payload_type, parameter_sets, tuple jpeg_size
) except -1

# "statistics" as Python has them.
cdef dict counters_of(const RtpCounters* counters)

# What a read has to go behind, at to[: FRAME_BYTES_MAX or TEXT_MAX]: how many bytes are kept of a frame that is not whole.
cdef size_t session_front(RtpSession* s, uint8_t* to) noexcept nogil

# Take what was received, with the front before it: whole frames are parsed, the rest is kept. Calls the sinks. s.fault says when that was all.
cdef void session_feed(RtpSession* s, const uint8_t* data, size_t size, int64_t now_ns, uint64_t mono_ns) noexcept nogil

# The connection is over: what is open ends.
cdef void session_end(RtpSession* s) noexcept nogil

# Give back all memory.
cdef void session_free(RtpSession* s) noexcept nogil

# A receiver report, interleaved, at to[: REPORT_BYTES]; how many bytes, 0 before the first packet.
cdef size_t session_report(RtpSession* s, uint8_t* to, uint64_t mono_ns) noexcept nogil

# In the sink: bytes of the unit's value, and the value itself.
cdef size_t unit_value_bytes(const RtpSession* s) noexcept nogil
cdef void unit_write(const RtpSession* s, uint8_t* to) noexcept nogil

# The newest sequence parameter set; NULL: none.
cdef const uint8_t* session_picture(const RtpSession* s, size_t* size) noexcept nogil
