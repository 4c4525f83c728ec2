"""Loops of a moving picture, encoded once and played by any number of cameras: what makes hundreds of them cheap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.simulate.coded import Coded
from gateway.simulate.feeds import Clip, suitable_bit_rate
from gateway.simulate.picture import Encoder, Picture, check_size
from gateway.simulate.rtp import CLOCK_HZ

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Noise of so many grey levels keeps the encoder at its bit rate, as a real sensor's does.
_NOISE_LEVELS = 24


def make_clip(
    name: str,
    *,
    width: int = 640,
    height: int = 360,
    fps: int = 15,
    gop_s: float = 2.0,
    seconds: float = 2.0,
    bit_rate: int = 0,
    codec: str = "h264",
    b_frames: int = 0,
    alternative: bool = False,
) -> Clip:
    """Draw and encode a loop; takes some seconds for a large picture. The burnt-in clock is the loop's own.

    bit_rate: bits per second, 0 for one that suits the size. b_frames: between two other frames, H.264 and H.265 only.
    alternative: also half the size, for cameras that change their parameter sets. Raises ValueError for a size that
    cannot be.
    """
    gop = max(1, round(gop_s * fps))
    count = max(1, round(seconds * fps))

    def encoded(width: int, height: int, bit_rate: int) -> list[tuple[Coded, int]]:
        check_size(width, height, codec)
        picture = Picture(name, width, height)
        encoder = Encoder(width, height, fps, gop, bit_rate, codec=codec, b_frames=b_frames)
        pictures: list[tuple[Coded, int]] = []
        for number in range(count):
            image = _noisy(picture.draw(number, number * 1_000_000_000 // fps), number)
            pictures += encoder.encode_timed(image, key=number % gop == 0)
        return pictures + encoder.encode_timed(None)

    rate = bit_rate or suitable_bit_rate(width, height, fps)
    pictures = encoded(width, height, rate)
    other = encoded(*_half(width, height, codec), max(100_000, rate // 4)) if alternative else []
    return Clip(
        tuple(coded for coded, _ in pictures),
        tuple(place * CLOCK_HZ // fps for _, place in pictures),
        fps,
        tuple(coded for coded, _ in other),
    )


def _half(width: int, height: int, codec: str) -> tuple[int, int]:
    step = 8 if codec == "jpeg" else 2
    return max(160, width // 2 // step * step), max(120, height // 2 // step * step)


def _noisy(image: NDArray[np.uint8], number: int) -> NDArray[Any]:
    import numpy as np

    noise = np.random.default_rng(number).integers(0, _NOISE_LEVELS, image.shape[:2], np.uint8)
    noisy: NDArray[Any] = np.maximum(image, _NOISE_LEVELS) - noise[..., None]
    return noisy
