"""What does a picture out of a day of footage cost beyond decoding it, also with a minute between two key frames?

`at()` at random instants of a day beside PyAV decoding just the access units from the key frame to the picture, which
lie in memory already; `at(nearest_key=True)` beside decoding that one; with an index of key frames beside each sealed
segment, and without. Of each picture the best of three turns counts, taken in turns with the peer's. Every picture
shows its number, which is compared: right to the frame. The bounds: 1.2 times the peer and 10 ms, and 60 ms.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import gateway
from bench import footage
from bench.common import QUICK_VARIABLE, Result, median, scratch
from gateway.ingest.key_frames import KeyFrameIndexer
from gateway.replay.camera_records import moment

PICTURES, PICTURES_QUICK = 8, 3
TURNS = 3
GOPS_S = (2, 60)
OVER_MS_MAX, NEAREST_MS_MAX = 10.0, 60.0


class Cost(NamedTuple):
    """Of one picture, ms."""

    at: float
    peer: float
    nearest: float
    nearest_peer: float

    @property
    def over(self) -> float:
        """What `at` takes beyond 1.2 times the peer."""
        return self.at - 1.2 * self.peer


def decode(values: list[bytes]) -> Any:
    """As PyAV does it by itself: the last picture of these access units."""
    import av

    context: Any = av.CodecContext.create("h264", "r")
    last = None
    for value in values:
        for last in context.decode(av.Packet(value)):  # noqa: B007 - the last one is wanted
            pass
    for last in context.decode(None):  # noqa: B007
        pass
    return last


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long it takes, ms, and what it gives."""
    start = time.perf_counter()
    made = work()
    return (time.perf_counter() - start) * 1e3, made


def measure(stream: gateway.Stream, gop_s: int, block: int, number: int) -> Cost:
    """One picture: the `number`th of a minute."""
    per_gop = gop_s * footage.FPS
    when = moment(footage.T0_MS + block * footage.EVERY_S * 1000 + number * 1000 // footage.FPS)
    offset = block * footage.BLOCK_S * footage.FPS + number
    key = offset - number % per_gop
    values = [record.value or b"" for record in stream.read(offsets=(key, offset + 1))]
    costs: list[Cost] = []
    for _ in range(TURNS):
        peer, _ = timed(lambda: decode(values))
        ours, frame = timed(lambda: stream.at(when + timedelta(milliseconds=1)))
        nearest_peer, _ = timed(lambda: decode(values[:1]))
        nearest, found = timed(lambda: stream.at(when, nearest_key=True, max_age=f"{gop_s}s"))
        if (frame.offset, footage.number_shown(frame.bgr)) != (offset, number) or not found.keyframe:
            raise RuntimeError(f"the picture of {when} is not number {number} of its minute")
        costs.append(Cost(ours, peer, nearest, nearest_peer))
    return Cost(*map(min, zip(*costs, strict=True)))


def index_all(data: Path) -> None:
    """As a running gateway does some seconds after a segment was sealed."""
    indexer = KeyFrameIndexer(data, lambda: [footage.STREAM])
    while indexer.round():
        pass


def run(rounds: int) -> Result:
    """rounds: how often so many pictures are drawn; all of them count."""
    result = Result(
        ("key frame every", "index", "at ms", "PyAV ms", "beyond 1.2 x, worst ms", "nearest key ms", "worst", "PyAV ms")
    )
    count = PICTURES_QUICK if os.environ.get(QUICK_VARIABLE) else PICTURES
    blocks = footage.DAY_S // footage.EVERY_S
    worst_over = worst_nearest = 0.0
    for gop_s in GOPS_S:
        units = footage.encode_minute(gop_s)
        with scratch() as directory:
            footage.write_day(directory / "data", units)
            for indexed in (False, True):
                if indexed:
                    index_all(directory / "data")
                stream = gateway.open(directory / "data")[footage.STREAM]
                chosen = random.Random(7)
                costs = [
                    measure(stream, gop_s, chosen.randrange(blocks), chosen.randrange(len(units)))
                    for _ in range(count * rounds)
                ]
                over, nearest = max(cost.over for cost in costs), max(cost.nearest for cost in costs)
                worst_over, worst_nearest = max(worst_over, over), max(worst_nearest, nearest)
                result.rows.append(
                    (
                        f"{gop_s} s",
                        "yes" if indexed else "no",
                        f"{median([cost.at for cost in costs]):.1f}",
                        f"{median([cost.peer for cost in costs]):.1f}",
                        f"{over:.1f}",
                        f"{median([cost.nearest for cost in costs]):.1f}",
                        f"{nearest:.1f}",
                        f"{median([cost.nearest_peer for cost in costs]):.1f}",
                    )
                )
    result.facts["worst_beyond_1.2_times_PyAV_ms"] = f"{worst_over:.1f} (bound {OVER_MS_MAX:g})"
    result.facts["worst_nearest_key_ms"] = f"{worst_nearest:.1f} (bound {NEAREST_MS_MAX:g})"
    result.facts["footage"] = f"{footage.WIDTH}x{footage.HEIGHT}, {footage.FPS} frames/s, a minute in every half hour"
    return result
