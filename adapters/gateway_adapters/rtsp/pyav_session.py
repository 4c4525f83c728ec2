"""One connection to a camera, or one pass through a file, with PyAV (libav).

Everything here blocks: it runs in the camera's own thread.

What libav cannot do is stated where it matters: it hides packet loss, gives no way to interrupt a read (so every read
has a time-out), and gives back what it holds when a connection breaks, so the last access unit of a run that ended so
may be cut short.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import av
import av.bitstream
import av.error
import av.logging

from gateway_adapters.rtsp.access_units import CODEC_NAMES, Packet
from gateway_adapters.rtsp.failures import Failure
from gateway_adapters.rtsp.libav_errors import classify

# libav's own messages quote URLs with passwords and name no camera; every failure reaches the log through `Failure`.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.PANIC)

# Open as soon as the SDP is known instead of watching the stream for seconds first.
_LOW_PROBE = {"analyzeduration": "0", "probesize": "32"}
# Options of a device in our URLs (gateway.config.values), and libav's.
_DEVICE_OPTIONS = {"format": "input_format", "size": "video_size", "fps": "framerate"}
_TO_ANNEX_B = {"h264": "h264_mp4toannexb", "h265": "hevc_mp4toannexb"}
# AVProducerReferenceTime: wall clock in µs, flags.
_PRFT = struct.Struct("=qi")


class PyavSession:
    """A connected camera: `codec`, `extradata`, and the packets of its video track.

    url carries the credentials percent-encoded and goes to libav only. video_only leaves other tracks out of the
    session; without it, tracks that come along are seen in `other_tracks` (and disturb libav's time stamps).
    """

    def __init__(
        self, url: str, *, transport: str, open_timeout_s: float, read_timeout_s: float, video_only: bool
    ) -> None:
        """Connect. Raises Failure."""
        opened, kind, options = _source(url, transport, video_only=video_only)
        self._read_timeout_s = read_timeout_s
        began = time.monotonic()
        self._container: Any = None
        try:
            self._container = av.open(opened, format=kind, options=options, timeout=(open_timeout_s, read_timeout_s))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            # `from None`: libav's own texts contain the URL with the password.
            elapsed_s = time.monotonic() - began
            raise classify(error, opening=True, timeout_s=open_timeout_s, elapsed_s=elapsed_s) from None
        self._paced = url.startswith("file:")
        # A stream of images over HTTP has no stamps; libav makes up some, as if there were 25 a second.
        self._stamped = self._container.format.name != "mpjpeg"
        try:
            self._choose_track()
        except Failure:
            self.close()
            raise

    def _choose_track(self) -> None:
        streams = self._container.streams
        self.other_tracks = [stream.type for stream in streams if stream.type != "video"]
        if not streams.video:
            raise Failure("unsupported", f"the camera offers no video track ({', '.join(self.other_tracks) or 'none'})")
        self._stream = streams.video[0]
        context = self._stream.codec_context
        name = context.name if context is not None else "unknown"
        if name not in CODEC_NAMES:
            raise Failure("unsupported", f"its codec {name} cannot be recorded (H.264, H.265 and MJPEG can)")
        self.codec = CODEC_NAMES[name]
        self.extradata = bytes(context.extradata or b"")
        self._to_annex_b: Any = None
        if self.extradata[:1] == b"\x01" and self.codec in _TO_ANNEX_B:  # MP4's form: lengths instead of start codes
            self._to_annex_b = av.bitstream.BitStreamFilterContext(_TO_ANNEX_B[self.codec], self._stream)
            self.extradata = b""  # the filter puts the parameter sets in front of key frames
        self.size = (int(context.width), int(context.height))

    def packets(self) -> Iterator[Packet]:
        """Packets until the camera closes (the iteration ends) or fails (raises Failure)."""
        try:
            for packet in self._demuxed():
                returned_ns = time.time_ns()
                if packet.size:
                    yield Packet(
                        data=bytes(packet),
                        key=packet.is_keyframe,
                        pts=packet.pts if self._stamped else None,
                        time_base=packet.time_base,
                        camera_ns=_camera_ns(packet),
                        sender_report=packet.has_sidedata("rtcp_sr"),
                        returned_ns=returned_ns,
                    )
        except (av.error.FFmpegError, OSError) as error:
            raise classify(error, opening=False, timeout_s=self._read_timeout_s) from None

    def _demuxed(self) -> Iterator[Any]:
        """libav's packets; a file's not before their time."""
        began, first_s = time.monotonic(), None
        for packet in self._container.demux(self._stream):
            if self._paced and packet.dts is not None:
                at_s = float(packet.dts * packet.time_base)
                first_s = at_s if first_s is None else first_s
                time.sleep(max(0.0, began + at_s - first_s - time.monotonic()))
            if self._to_annex_b is None or not packet.size:
                yield packet
            else:
                yield from self._to_annex_b.filter(packet)

    def close(self) -> None:
        """TEARDOWN and close; the peer may be gone already."""
        if self._container is not None:
            with contextlib.suppress(av.error.FFmpegError, OSError):
                self._container.close()
            self._container = None


def _source(url: str, transport: str, *, video_only: bool) -> tuple[str, str | None, dict[str, str]]:
    """What libav opens, as what, with which options."""
    if url.startswith("v4l2:"):
        parts = urlsplit(url)
        asked = dict(parse_qsl(parts.query))
        options = {_DEVICE_OPTIONS[name]: value for name, value in asked.items()}
        return parts.path, "v4l2", {"input_format": "mjpeg", **options}  # else it may choose raw pictures
    options = {} if url.startswith("file:") else {"rtsp_transport": transport, **_LOW_PROBE}
    if video_only:
        options["allowed_media_types"] = "video"
    return url, None, options


def _camera_ns(packet: Any) -> int | None:
    """The producer's reference time that came with a packet, ns since 1970."""
    if not packet.has_sidedata("prft"):
        return None
    data = bytes(packet.get_sidedata("prft"))
    return int(_PRFT.unpack_from(data)[0]) * 1_000 if len(data) >= _PRFT.size else None
