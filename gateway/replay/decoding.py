"""One decoded picture, and the decoder that makes it out of access units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gateway.clock import NS_PER_MS
from gateway.errors import GatewayError, UsageError
from gateway.replay.camera_records import LIBAV_CODECS, CameraRecord, moment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Pixels of a picture, width and height; one may be None and follows from the other.
Size = tuple[int | None, int | None]
# Tells when a camera took a picture by its own clock, ns since 1970.
SourceClock = Callable[[CameraRecord], int | None]

_SIDE_MAX = 16_384


def check_size(size: Size | None) -> Size | None:
    """`size` itself; UsageError when nothing can be that large."""
    if size is None:
        return None
    given: object = size
    if not isinstance(given, tuple | list) or len(given) != 2 or all(side is None for side in given):
        raise UsageError(f"A size is (width, height) in pixels, of which one may be None, not {size!r}.")
    for side in size:
        if side is not None and not 1 <= side <= _SIDE_MAX:
            raise UsageError(f"A picture is 1 to {_SIDE_MAX:,} pixels wide and high, not {side!r}.")
    return size


def _missing(library: str) -> GatewayError:
    return GatewayError(f"Pictures need {library}, which is not installed: pip install 'gateway[replay]'.")


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture.

    offset: of its record. timestamp, timestamp_ms: when the gateway received it. keyframe: whether its record is a key
    frame. damaged: parts of it or of what it builds on are or may be missing, or the decoder found errors in it.
    """

    camera: str
    offset: int
    timestamp: datetime
    timestamp_ms: int
    keyframe: bool
    damaged: bool
    _picture: Any = field(repr=False)
    _record: CameraRecord = field(repr=False)
    _clock: SourceClock | None = field(repr=False, default=None)

    @classmethod
    def of(
        cls,
        record: CameraRecord,
        picture: Any,
        *,
        damaged: bool,
        size: Size | None = None,
        clock: SourceClock | None = None,
    ) -> Frame:
        """size: what the picture is scaled to. clock: is asked when `source_time_ns` is."""
        return cls(
            camera=record.camera,
            offset=record.offset,
            timestamp=record.timestamp,
            timestamp_ms=record.timestamp_ms,
            keyframe=record.key,
            damaged=damaged or bool(picture.is_corrupt),
            _picture=picture if size is None else _scaled(picture, size),
            _record=replace(record, value=b""),
            _clock=clock,
        )

    @cached_property
    def source_time_ns(self) -> int | None:
        """When the camera took it by its own clock, ns since 1970; None when it told none.

        Of a picture from before the camera's first report it is worked out from the next one, when this is asked first.
        """
        return self._record.source_time_ns if self._clock is None else self._clock(self._record)

    @property
    def source_time(self) -> datetime | None:
        """The camera's own time, to the microsecond, in the same zone as `timestamp`."""
        if self.source_time_ns is None:
            return None
        milliseconds, rest_ns = divmod(self.source_time_ns, NS_PER_MS)
        whole = moment(milliseconds)
        return whole.replace(microsecond=whole.microsecond + rest_ns // 1_000).astimezone(self.timestamp.tzinfo)

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self._picture.width)

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self._picture.height)

    @cached_property
    def bgr(self) -> NDArray[np.uint8]:
        """height x width x 3, uint8, blue first, as OpenCV takes it."""
        return self._pixels("bgr24")

    @cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """height x width x 3, uint8, red first, as Matplotlib and Pillow take it."""
        return self._pixels("rgb24")

    def png(self) -> bytes:
        """The picture as a PNG file's content."""
        try:
            import cv2
        except ImportError as error:
            raise _missing("OpenCV") from error
        done, encoded = cv2.imencode(".png", self.bgr)
        if not done:
            raise GatewayError(f"The picture of {self.camera!r} at {self.timestamp} could not be written as PNG.")
        return bytes(encoded)

    def _repr_png_(self) -> bytes:
        """How notebooks show it."""
        return self.png()

    def _pixels(self, layout: str) -> NDArray[np.uint8]:
        try:
            import numpy  # noqa: F401, ICN001 - PyAV needs it here, and says so less kindly
        except ImportError as error:
            raise _missing("NumPy") from error
        pixels: NDArray[np.uint8] = self._picture.to_ndarray(format=layout)
        return pixels


def _scaled(picture: Any, size: Size) -> Any:
    """The picture in another size, averaged rather than picked from: `picture` need not be kept."""
    width, height = size
    if width is None:
        assert height is not None
        width = max(1, round(picture.width * height / picture.height))
    if height is None:
        height = max(1, round(picture.height * width / picture.width))
    return picture.reformat(width=width, height=height, interpolation="AREA")


class Decoder:
    """Decodes access units in order and gives back the wanted ones as frames.

    size: what they are scaled to. clock: tells the camera's own time of each that is asked for it.
    """

    def __init__(self, size: Size | None = None, clock: SourceClock | None = None) -> None:
        self._size = size
        self._clock = clock
        self._context: Any = None
        self._codec = ""
        self._wanted: dict[int, CameraRecord] = {}
        self._damaged: set[int] = set()
        self._broken = False  # something is missing since the last key frame, or in it

    def decode(self, record: CameraRecord, *, wanted: bool) -> list[Frame]:
        """Take one access unit; the frames that are ready, of those wanted."""
        import av

        if self._context is None or record.codec != self._codec:
            ready = self.finish()
            self._open(record.codec)
        else:
            ready = []
        before = self._broken or record.lost > 0 or record.lost_packets > 0
        self._broken = record.damaged or (before and not record.key)
        if wanted:
            self._wanted[record.offset] = record
            if self._broken:
                self._damaged.add(record.offset)
        packet = av.Packet(record.value)
        packet.pts = packet.dts = record.offset  # comes back with the frame, whatever the order of display
        packet.is_keyframe = record.key
        return ready + self._take(packet)

    def finish(self) -> list[Frame]:
        """The frames that the decoder still holds back; it can go on with a key frame afterwards."""
        if self._context is None:
            return []
        ready = self._take(None)
        self._context.flush_buffers()
        self._wanted.clear()
        self._damaged.clear()
        return ready

    def _open(self, codec: str) -> None:
        import av

        self._context = av.CodecContext.create(LIBAV_CODECS[codec], "r")
        self._codec = codec

    def _take(self, packet: Any) -> list[Frame]:
        import av.error

        try:
            pictures = self._context.decode(packet)
        except av.error.FFmpegError:
            self._broken = True
            return []
        frames = []
        for picture in pictures:
            record = self._wanted.pop(picture.pts, None)
            if record is not None:
                damaged = record.offset in self._damaged
                self._damaged.discard(record.offset)
                frames.append(Frame.of(record, picture, damaged=damaged, size=self._size, clock=self._clock))
        return frames
