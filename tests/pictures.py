"""Coded pictures to test with, and a stream of records that needs no disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np

from gateway import nal
from gateway.clock import NS_PER_MS

T0_MS = 1_790_000_000_000  # 2026-09-21T13:33:20Z


@dataclass(frozen=True)
class Unit:
    """One access unit as an encoder made it; pts in 90 kHz ticks."""

    nals: tuple[bytes, ...]
    pts: int
    key: bool


@lru_cache(maxsize=16)
def encode(
    count: int,
    *,
    codec: str = "libx264",
    width: int = 160,
    height: int = 120,
    gop: int = 10,
    fps: int = 25,
    b_frames: int = 0,
) -> tuple[Unit, ...]:
    """`count` access units of a picture whose left `n` columns are white in frame n, in coding order."""
    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.framerate, context.time_base, context.gop_size = Fraction(fps), Fraction(1, 90_000), gop
    context.thread_count = 1
    if codec == "libx265":
        parameters = f"keyint={gop}:min-keyint={gop}:bframes={b_frames}:repeat-headers=1:log-level=none:pools=none"
        context.options = {"preset": "ultrafast", "x265-params": parameters}
    else:
        parameters = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={b_frames}:repeat-headers=1:b-adapt=0"
        context.options = {"preset": "ultrafast", "x264-params": parameters}
    of = nal.H265 if codec == "libx265" else nal.H264
    packets: list[Any] = []
    for number in range(count):
        image = np.full((height, width, 3), 40, np.uint8)
        image[:, : 2 * number % width] = 220
        frame = av.VideoFrame.from_ndarray(image, format="bgr24")
        frame.pts = number * 90_000 // fps
        packets += context.encode(frame)
    packets += context.encode(None)
    return tuple(
        Unit(tuple(nals), packet.pts, of.is_key(nals)) for packet in packets for nals in [nal.split(bytes(packet))]
    )


def white_columns(bgr: np.ndarray[Any, Any]) -> int:
    """How many columns of a picture made by `encode` are white: twice its frame number."""
    return int((bgr[:, :, 1].mean(axis=0) > 130).sum())


@dataclass(frozen=True)
class FakeRecord:
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def timestamp(self) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=self.timestamp_ms)


@dataclass
class FakeStream:
    """Looks like a stream of the log to replay; `values_read` counts the records handed out."""

    records: list[FakeRecord] = field(default_factory=list)
    name: str = "gate"
    zone: tzinfo = UTC
    records_read: int = 0

    def read(
        self, start: Any = None, end: Any = None, *, keys: Any = None, offsets: Any = None
    ) -> Iterator[FakeRecord]:
        first, stop = offsets or (None, None)
        for record in self.records:
            if (
                (start is None or record.timestamp >= start)
                and (end is None or record.timestamp < end)
                and (first is None or record.offset >= first)
                and (stop is None or record.offset < stop)
                and (keys is None or record.key in keys)
            ):
                self.records_read += 1
                yield record

    def add(
        self,
        units: Sequence[Unit],
        *,
        begin_ms: int = T0_MS,
        run: str = "1",
        codec: str = "h264",
        camera: str = "gate-1",
        lost: dict[int, int] | None = None,
        with_pts: bool = True,
    ) -> FakeStream:
        """Append access units as the recorder would have; `lost` says before which of them how many were lost."""
        first = min(unit.pts for unit in units)
        latest_ms = begin_ms
        for index, unit in enumerate(units):
            headers = [("codec", codec.encode())]
            if unit.key:
                headers.append(("keyframe", b"1"))
            if with_pts:
                headers.append(("pts", b"%d" % (unit.pts + 1_000_000)))
            headers.append(("run", run.encode()))
            if lost and index in lost:
                headers.append(("lost", b"%d" % lost[index]))
            latest_ms = max(latest_ms, begin_ms + (unit.pts - first) // 90)
            self.records.append(
                FakeRecord(len(self.records), latest_ms, camera.encode(), nal.join(unit.nals), tuple(headers))
            )
        return self

    def time_ns(self, index: int) -> int:
        """When a record was received."""
        return self.records[index].timestamp_ms * NS_PER_MS
