"""One RTSP connection after PLAY, without its socket: interleaved frames in, access units out.

RFC 2326 §10.12 (interleaving), RFC 3550 (RTP, RTCP), RFC 6184 (H.264), RFC 7798 (H.265), RFC 2435 (JPEG). What is done
with loss, markers, runs and both clocks is said in rtp_stream.pxd, and for readers of the log in gateway/log/FORMAT.md.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple, Self

CODECS: Final[tuple[str, ...]]
"""What `codec` may be: "h264", "h265", "jpeg"."""

UNIT_BYTES_MAX: Final[int]
"""The largest access unit that is put together: 16 MiB. A larger one is lost, and counted."""

TEXT_BYTES_MAX: Final[int]
"""The longest RTSP message between frames, head and body: 64 KiB. A longer one is a fault."""

FAULT_GARBAGE: Final[int]
FAULT_TEXT: Final[int]
FAULT_MEMORY: Final[int]
FAULTS: Final[dict[int, str]]
"""What a log line says of each fault."""

class RemoteFault(Exception):
    """The camera sent what no RTSP connection may carry; nothing after it can be understood.

    ``number`` is one of FAULT_*; the text says what it was.
    """

    number: int
    def __init__(self, number: int) -> None: ...

class Unit(NamedTuple):
    """One access unit, as it is recorded."""

    value: bytes
    """Annex B with four-byte start codes, parameter sets before each key frame; or one JPEG image."""
    key: bool
    pts: int
    """90 kHz ticks, unwrapped, of its run."""
    received_ns: int
    """When the first of its packets was received, ns since 1970."""
    source_time_ns: int | None
    """The camera's clock; None before the first sender report of the run."""
    run_begins: bool
    """Its ``pts`` has no relation to its predecessor's."""
    lost: int
    """Access units lost directly before it, of which no part is left."""
    lost_packets: int
    """RTP packets missing in it or directly before it."""
    damaged: bool
    """Packets are or may be missing in it. What is there of it is as the camera sent it."""

class Receiver:
    """A camera's connection, to be fed in any pieces. For tests and tools: `camera_thread` runs the same natively.

    parameter_sets: NAL units from the SDP (sprop-…). payload_type: RTP's, others are counted and left out; -1: any.
    jpeg_size: (width, height) in pixels if the SDP says so, which images beyond 2040 pixels need. Raises ValueError for
    what cannot be.
    """

    def __new__(
        cls,
        codec: str,
        *,
        rtp_channel: int = 0,
        rtcp_channel: int = 1,
        payload_type: int = -1,
        parameter_sets: Iterable[bytes] = (),
        jpeg_size: tuple[int, int] = (0, 0),
        unit_bytes_max: int = ...,
    ) -> Self: ...
    def feed(self, data: bytes, now_ns: int) -> list[Unit]:
        """Take what the socket gave at that time (ns since 1970); what became whole. Raises RemoteFault."""

    def end(self) -> list[Unit]:
        """The connection is over: what is left, flagged as damaged unless it was whole."""

    def texts(self) -> list[bytes]:
        """RTSP messages that came between frames since the last call, each whole."""

    def report(self, now_ns: int) -> bytes:
        """A receiver report to send, interleaved (RFC 3550 §6.4.2, with a CNAME); b"" before the first packet."""

    @property
    def memory_bytes(self) -> int:
        """Of blocks in use: a frame that is not whole, an access unit that is open."""

    @property
    def statistics(self) -> dict[str, int]:
        """As `camera_thread.Camera.statistics`, as far as it is of the connection."""
