"""A day of one 1080p25 camera at 4 Mbit/s, written as the gateway writes it: a minute in every half hour.

The pictures between would cost room and prove nothing: what is looked for lies on the time line of a whole day, in
several segments. Every picture shows its number within the minute, in a row of black and white squares.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway_native.batch import encode_headers
from gateway_native.ring import KEYFRAME

import gateway
from bench.recorder import recording
from gateway import nal
from gateway.clock import NS_PER_MS
from gateway.log import layout
from gateway.simulate.picture import Encoder, Picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STREAM = "gate-1"
WIDTH, HEIGHT, FPS = 1920, 1080, 25
BITS_PER_S = 4_000_000
BLOCK_S, EVERY_S = 60, 1800
DAY_S = 86_400
SEGMENT_BYTES = 256 << 20
LINGER_NS = 40 * NS_PER_MS
T0_MS = 1_790_000_000_000
_SQUARE, _SQUARES = 32, 12


class Unit(NamedTuple):
    """One access unit of the minute, in Annex B."""

    value: bytes
    key: bool


def encode_minute(gop_s: int) -> list[Unit]:
    """A minute of the simulated camera with a key frame every `gop_s` seconds."""
    picture = Picture(STREAM, WIDTH, HEIGHT)
    encoder = Encoder(WIDTH, HEIGHT, FPS, gop_s * FPS, BITS_PER_S)
    units: list[Unit] = []
    for number in range(BLOCK_S * FPS):
        image = picture.draw(number, T0_MS * 1_000_000 + number * 1_000_000_000 // FPS)
        for bit in range(_SQUARES):
            column = WIDTH // 2 + bit * _SQUARE
            image[:_SQUARE, column : column + _SQUARE] = 255 if number >> bit & 1 else 0
        made = encoder.encode(image, key=number % (gop_s * FPS) == 0)
        units += [Unit(nal.join(coded.nals), coded.key) for coded in made]
    return units


def number_shown(image: NDArray[np.uint8]) -> int:
    """The number that a picture shows."""
    half = _SQUARE // 2
    return sum((int(image[half, WIDTH // 2 + bit * _SQUARE + half, 1]) > 127) << bit for bit in range(_SQUARES))


def write_day(data: Path, units: list[Unit], day_s: int = DAY_S) -> int:
    """Make `data` a data directory with that day in the stream STREAM; returns the number of records."""
    layout.prepare(data, "bench", "UTC")
    written = 0
    with recording(data, "pwrite", stream=STREAM, linger_ns=LINGER_NS, segment_bytes=SEGMENT_BYTES) as recorder:
        for run, begin_s in enumerate(range(0, day_s, EVERY_S), 1):
            for number, unit in enumerate(units):
                time_ms = T0_MS + begin_s * 1000 + number * 1000 // FPS
                headers = [("codec", b"h264")]
                headers += [("keyframe", b"1")] if unit.key else []
                headers += [("pts", b"%d" % (number * 90_000 // FPS)), ("run", b"%d" % run)]
                flags = KEYFRAME if unit.key else 0
                encoded = encode_headers(headers)
                while not recorder.ring.append(0, STREAM.encode(), unit.value, encoded, time_ms * NS_PER_MS, flags):
                    recorder.flush()
                written += 1
        recorder.flush()
    if len(gateway.open(data)[STREAM]) != written:
        raise RuntimeError("not everything was recorded")
    return written
