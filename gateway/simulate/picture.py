"""What a simulated camera sees: a moving picture with a burnt-in clock and frame number, and its live encoder.

Needs NumPy, OpenCV and PyAV. `Picture` draws, `Encoder` encodes; neither knows of time passing or of a network.
"""

from __future__ import annotations

import math
import zlib
from datetime import UTC, datetime, tzinfo
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from gateway import nal
from gateway.errors import SourceError
from gateway.simulate import jpeg
from gateway.simulate.coded import Coded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EXTRA_HINT = "A simulated camera draws with NumPy and OpenCV: pip install 'gateway[replay]'."


def _libraries() -> tuple[Any, Any]:
    """(cv2, numpy), imported when the first picture is drawn so that `gateway` itself starts without them."""
    try:
        import cv2
        import numpy as np
    except ImportError as error:
        raise SourceError(_EXTRA_HINT) from error
    return cv2, np


def check_size(width: int, height: int, codec: str = "h264") -> None:
    """Raises ValueError for a size in pixels that cannot be drawn, encoded and sent."""
    if codec == "jpeg" and (width % 8 or height % 8 or width > jpeg.WIDTH_MAX or height > jpeg.HEIGHT_MAX):
        raise ValueError(
            f"{width}x{height} pixels cannot be sent as JPEG: multiples of 8 up to {jpeg.WIDTH_MAX}x{jpeg.HEIGHT_MAX}"
        )
    if width % 2 or height % 2 or not (160 <= width <= 7680 and 120 <= height <= 4320):
        raise ValueError(f"{width}x{height} pixels cannot be simulated: even numbers from 160x120 to 7680x4320")


class Picture:
    """Draws the frames of one camera; the camera's name decides its colours, so that two can be told apart.

    width, height: pixels, both even (the encoder halves the chroma) and at least 160x120.
    """

    def __init__(self, name: str, width: int = 640, height: int = 360, *, zone: tzinfo = UTC) -> None:
        check_size(width, height)
        self.name = name
        self.width = width
        self.height = height
        self._zone = zone
        self._cv2, self._np = _libraries()
        self._scale = height / 360
        self._hue = zlib.crc32(name.encode()) % 180
        self._background = self._draw_background()

    def draw(self, frame_number: int, time_ns: int) -> NDArray[np.uint8]:
        """The frame (height x width x 3, BGR) that shows ``frame_number`` and ``time_ns`` (ns since 1970)."""
        image: NDArray[np.uint8] = self._background.copy()
        self._draw_conveyor(image, frame_number)
        self._draw_gauge(image, frame_number)
        self._draw_texts(image, frame_number, time_ns)
        return image

    def _draw_background(self) -> NDArray[np.uint8]:
        """A wall lit from above and a floor: still, so that it costs the encoder next to nothing."""
        cv2, np_ = self._cv2, self._np
        hsv = np_.zeros((self.height, self.width, 3), np_.uint8)
        hsv[..., 0] = self._hue
        hsv[..., 1] = 70
        hsv[..., 2] = np_.linspace(150, 60, self.height).astype(np_.uint8)[:, None]
        floor = int(self.height * 0.72)
        hsv[floor:, :, 1] = 30
        hsv[floor:, :, 2] = np_.linspace(70, 110, self.height - floor).astype(np_.uint8)[:, None]
        image: NDArray[np.uint8] = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        for column in range(0, self.width, max(self.width // 8, 1)):
            cv2.line(image, (column, floor), (2 * column - self.width // 2, self.height), (60, 60, 60), 1, cv2.LINE_AA)
        return image

    def _draw_conveyor(self, image: NDArray[np.uint8], frame_number: int) -> None:
        """Three boxes that travel to the right, one full width in 120 frames."""
        cv2 = self._cv2
        size = int(56 * self._scale)
        belt = int(self.height * 0.72)
        for index in range(3):
            left = (frame_number * self.width // 120 + index * self.width // 3) % (self.width + size) - size
            colour = self._colour((self._hue + 60 + 40 * index) % 180)
            cv2.rectangle(image, (left, belt - size), (left + size, belt), colour, -1)
            cv2.rectangle(image, (left, belt - size), (left + size, belt), (30, 30, 30), 2)
        cv2.rectangle(image, (0, belt), (self.width, belt + int(10 * self._scale)), (50, 50, 50), -1)

    def _draw_gauge(self, image: NDArray[np.uint8], frame_number: int) -> None:
        """A dial whose hand goes round once in 60 frames: the eye sees at once when frames are missing or doubled."""
        cv2 = self._cv2
        radius = int(52 * self._scale)
        centre = (self.width - radius - int(24 * self._scale), radius + int(24 * self._scale))
        cv2.circle(image, centre, radius, (235, 235, 235), -1, cv2.LINE_AA)
        cv2.circle(image, centre, radius, (40, 40, 40), 2, cv2.LINE_AA)
        for tick in range(12):
            angle = tick * math.pi / 6
            outer = self._on_circle(centre, radius * 0.94, angle)
            cv2.line(image, self._on_circle(centre, radius * 0.82, angle), outer, (40, 40, 40), 2, cv2.LINE_AA)
        hand = self._on_circle(centre, radius * 0.75, frame_number % 60 * math.pi / 30)
        cv2.line(image, centre, hand, (30, 30, 200), max(2, int(3 * self._scale)), cv2.LINE_AA)

    def _draw_texts(self, image: NDArray[np.uint8], frame_number: int, time_ns: int) -> None:
        moment = datetime.fromtimestamp(time_ns // 1_000_000_000, self._zone)
        milliseconds = time_ns % 1_000_000_000 // 1_000_000
        offset = moment.strftime("%z")
        clock = f"{moment:%Y-%m-%d %H:%M:%S}.{milliseconds:03d} {offset[:3]}:{offset[3:]}"
        left = int(16 * self._scale)
        self._text(image, self.name, (left, int(38 * self._scale)), 0.8)
        self._text(image, f"frame {frame_number}", (left, int(72 * self._scale)), 0.7)
        self._text(image, clock, (left, self.height - int(18 * self._scale)), 0.7)

    def _text(self, image: NDArray[np.uint8], text: str, at: tuple[int, int], size: float) -> None:
        """White on a dark rim, readable on any background."""
        cv2 = self._cv2
        font, size = cv2.FONT_HERSHEY_DUPLEX, size * self._scale
        rim = max(1, round(self._scale))
        for right, down in ((-rim, 0), (rim, 0), (0, -rim), (0, rim), (rim, rim)):
            cv2.putText(image, text, (at[0] + right, at[1] + down), font, size, (0, 0, 0), 1)
        cv2.putText(image, text, at, font, size, (255, 255, 255), 1, cv2.LINE_AA)

    def _colour(self, hue: int) -> tuple[int, int, int]:
        pixel = self._np.array([[[hue, 170, 220]]], self._np.uint8)
        blue, green, red = self._cv2.cvtColor(pixel, self._cv2.COLOR_HSV2BGR)[0, 0]
        return int(blue), int(green), int(red)

    @staticmethod
    def _on_circle(centre: tuple[int, int], radius: float, angle: float) -> tuple[int, int]:
        return int(centre[0] + radius * math.sin(angle)), int(centre[1] - radius * math.cos(angle))


class Encoder:
    """H.264, H.265 or JPEG as a camera's encoder makes it: no look-ahead, parameter sets before every key frame.

    fps: frames per second. gop: frames from one key frame to the next. bit_rate: bits per second at most, on average;
    JPEG images are of one quality instead. b_frames: how many B-frames between two others; then pictures come out later
    than they go in, and in another order.
    """

    def __init__(
        self, width: int, height: int, fps: int, gop: int, bit_rate: int, *, codec: str = "h264", b_frames: int = 0
    ) -> None:
        self._codec = codec
        self._count = 0
        self._context: Any = None
        if codec == "jpeg":
            self._cv2, _ = _libraries()
            return
        try:
            import av
        except ImportError as error:
            raise SourceError("A simulated camera encodes with PyAV: pip install av.") from error
        self._av = av
        name = {"h264": "libx264", "h265": "libx265"}[codec]
        context: Any = av.CodecContext.create(name, "w")
        context.width = width
        context.height = height
        context.pix_fmt = "yuv420p"
        context.framerate = Fraction(fps)
        context.time_base = Fraction(1, fps)
        context.gop_size = gop
        context.bit_rate = bit_rate
        context.thread_count = 1
        kilobits = max(bit_rate // 1000, 1)
        parameters = (
            f"keyint={gop}:scenecut=0:repeat-headers=1:bframes={b_frames}:b-adapt=0"
            f":vbv-maxrate={kilobits}:vbv-bufsize={kilobits}"
        )
        if codec == "h265":
            parameters += ":min-keyint=1:pools=none:frame-threads=1:log-level=none"
        context.options = {
            "preset": "ultrafast",
            "forced-idr": "1",
            f"{name.removeprefix('lib')}-params": parameters,
            **({} if b_frames else {"tune": "zerolatency"}),
        }
        self._context = context

    def encode(self, image: NDArray[np.uint8], key: bool = False) -> list[Coded]:
        """What comes out when ``image`` goes in, without B-frames its access unit; ``key`` asks for a key frame now."""
        return [coded for coded, _ in self.encode_timed(image, key)]

    def encode_timed(self, image: NDArray[np.uint8] | None, key: bool = False) -> list[tuple[Coded, int]]:
        """The same, each with its place in the order of showing. Without an image: what is still in the encoder."""
        if self._codec == "jpeg":
            return [] if image is None else [(self._jpeg(image), self._place())]
        frame = None
        if image is not None:
            frame = self._av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = self._place()
            if key:
                frame.pict_type = self._av.video.frame.PictureType.I
        return [(Coded.of(nal.split(bytes(packet)), self._codec), packet.pts) for packet in self._context.encode(frame)]

    def _place(self) -> int:
        self._count += 1
        return self._count - 1

    def _jpeg(self, image: NDArray[np.uint8]) -> Coded:
        cv2 = self._cv2
        options = [cv2.IMWRITE_JPEG_QUALITY, 70, cv2.IMWRITE_JPEG_OPTIMIZE, 0]
        done, data = cv2.imencode(".jpg", image, options)
        assert done, "OpenCV encodes any image"
        return Coded.of([data.tobytes()], "jpeg")
