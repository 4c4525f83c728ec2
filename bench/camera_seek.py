"""What does a picture out of a day of footage cost beyond decoding it, also with a minute between two key frames?

`at()` at random instants of a day beside PyAV decoding just the access units from the key frame to the picture, which
lie in memory already; `at(nearest_key=True)` beside decoding that one; with an index of key frames beside each sealed
segment, and without. Of each picture the best of three turns counts, taken in turns with the peer's. Every picture
shows its number, which is compared: right to the frame. The bounds: 1.2 times the peer and 10 ms, and 60 ms. CPU time
is told besides, which says more than the clock where other programs are at work.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
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
    """Of one picture, ms by the clock or of CPU time."""

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


def timed(work: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """How long it takes, ms by the clock and of CPU time of all threads; and what it gives."""
    start, start_cpu = time.perf_counter(), time.process_time()
    made = work()
    return ((time.perf_counter() - start) * 1e3, (time.process_time() - start_cpu) * 1e3), made


def measure(stream: gateway.Stream, gop_s: int, block: int, number: int) -> tuple[Cost, Cost]:
    """One picture, the `number`th of a minute: by the clock, and in CPU time."""
    per_gop = gop_s * footage.FPS
    when = moment(footage.T0_MS + block * footage.EVERY_S * 1000 + number * 1000 // footage.FPS)
    offset = block * footage.BLOCK_S * footage.FPS + number
    key = offset - number % per_gop
    values = [record.value or b"" for record in stream.read(offsets=(key, offset + 1))]
    turns: list[tuple[tuple[float, float], ...]] = []
    for _ in range(TURNS):
        peer, _ = timed(lambda: decode(values))
        ours, frame = timed(lambda: stream.at(when + timedelta(milliseconds=1)))
        nearest_peer, _ = timed(lambda: decode(values[:1]))
        nearest, found = timed(lambda: stream.at(when, nearest_key=True, max_age=f"{gop_s}s"))
        if (frame.offset, footage.number_shown(frame.bgr)) != (offset, number) or not found.keyframe:
            raise RuntimeError(f"the picture of {when} is not number {number} of its minute")
        turns.append((ours, peer, nearest, nearest_peer))
    wall, cpu = (Cost(*(min(turn[part][kind] for turn in turns) for part in range(4))) for kind in (0, 1))
    return wall, cpu


def index_all(data: Path) -> None:
    """As a running gateway does some seconds after a segment was sealed."""
    indexer = KeyFrameIndexer(data, lambda: [footage.STREAM])
    while indexer.round():
        pass


def row(costs: Sequence[Cost]) -> tuple[str, ...]:
    """Medians, and the worst of what has a bound."""
    figures = (
        median([cost.at for cost in costs]),
        median([cost.peer for cost in costs]),
        max(cost.over for cost in costs),
        median([cost.nearest for cost in costs]),
        max(cost.nearest for cost in costs),
        median([cost.nearest_peer for cost in costs]),
    )
    return tuple(f"{figure:.1f}" for figure in figures)


def run(rounds: int) -> Result:
    """rounds: how often so many pictures are drawn; all of them count."""
    result = Result(
        (
            *("key frame every", "index", "time", "at ms", "PyAV ms", "beyond 1.2 x, worst ms"),
            *("nearest key ms", "worst ms", "PyAV ms"),
        )
    )
    count = PICTURES_QUICK if os.environ.get(QUICK_VARIABLE) else PICTURES
    blocks = footage.DAY_S // footage.EVERY_S
    worst: dict[str, tuple[float, float]] = {}
    for gop_s in GOPS_S:
        units = footage.encode_minute(gop_s)
        with scratch() as directory:
            footage.write_day(directory / "data", units)
            for indexed in (False, True):
                if indexed:
                    index_all(directory / "data")
                stream = gateway.open(directory / "data")[footage.STREAM]
                chosen = random.Random(7)
                both = [
                    measure(stream, gop_s, chosen.randrange(blocks), chosen.randrange(len(units)))
                    for _ in range(count * rounds)
                ]
                for kind, costs in zip(("wall", "CPU"), zip(*both, strict=True), strict=True):
                    result.rows.append((f"{gop_s} s", "yes" if indexed else "no", kind, *row(costs)))
                    over, nearest = worst.get(kind, (-1e9, 0.0))
                    worst[kind] = max(over, *(cost.over for cost in costs)), max(nearest, *(c.nearest for c in costs))
    for kind, (over, nearest) in worst.items():
        result.facts[f"worst_beyond_1.2_times_PyAV_ms_{kind}"] = f"{over:.1f} (bound {OVER_MS_MAX:g})"
        result.facts[f"worst_nearest_key_ms_{kind}"] = f"{nearest:.1f} (bound {NEAREST_MS_MAX:g})"
    result.facts["footage"] = f"{footage.WIDTH}x{footage.HEIGHT}, {footage.FPS} frames/s, a minute in every half hour"
    return result
