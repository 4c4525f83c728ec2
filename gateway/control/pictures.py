"""The last key frame of a camera as a small JPEG: enough to see whether a camera looks where it should."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from gateway.errors import GatewayError, NoFrame, StreamNotFound
from gateway.replay.log import Log

WIDTH_MAX, HEIGHT_MAX = 640, 640  # pixels
PICTURE_BYTES_MAX = 128 * 2**10
# A picture older than that says nothing about a camera.
AGE_MAX = "1d"
# libav's scale for JPEG, 2 is best: the first that makes the picture small enough is taken.
_QUALITIES = (4, 8, 16, 31)


@dataclass(frozen=True, slots=True)
class Picture:
    """jpeg: the file's content. timestamp: when the gateway received it. offset: of its record."""

    jpeg: bytes
    width: int
    height: int
    timestamp: datetime
    offset: int


def last_picture(data: Path, stream: str, camera: str) -> Picture:
    """The newest durable key frame, scaled down. Reads and decodes one group of pictures at most; for a thread.

    Raises NoFrame, also when nothing is recorded yet, or GatewayError when it cannot be encoded.
    """
    try:
        frame = Log(data)[stream].at("now", max_age=AGE_MAX, nearest_key=True, camera=camera)
    except StreamNotFound:
        raise NoFrame(f"The stream {stream!r} holds no pictures of {camera!r} yet.") from None
    jpeg, width, height = encode(frame._picture, camera)  # its pixels as libav has them
    return Picture(jpeg, width, height, frame.timestamp, frame.offset)


def encode(picture: Any, camera: str) -> tuple[bytes, int, int]:
    """A decoded picture (av.VideoFrame) as JPEG of at most PICTURE_BYTES_MAX, with width and height in pixels."""
    width, height = fitted(picture.width, picture.height)
    scaled = picture.reformat(width=width, height=height, format="yuvj420p")
    for quality in _QUALITIES:
        jpeg = _encoded(scaled, quality)
        if len(jpeg) <= PICTURE_BYTES_MAX:
            return jpeg, width, height
    raise GatewayError(f"The picture of {camera!r} does not become smaller than {PICTURE_BYTES_MAX} bytes.")


def fitted(width: int, height: int) -> tuple[int, int]:
    """The size that fits, in the same proportion, in even numbers of at least 2."""
    shrink = max(width / WIDTH_MAX, height / HEIGHT_MAX, 1.0)
    return max(2, round(width / shrink) // 2 * 2), max(2, round(height / shrink) // 2 * 2)


def _encoded(picture: Any, quality: int) -> bytes:
    import av

    context: Any = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt = picture.width, picture.height, "yuvj420p"
    context.time_base = Fraction(1, 25)
    context.qmin = context.qmax = quality
    picture.pts, picture.time_base = 0, Fraction(1, 25)
    return b"".join(bytes(packet) for packet in [*context.encode(picture), *context.encode(None)])
