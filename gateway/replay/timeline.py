"""Where the access units of a clip lie on its time line: exact 90 kHz stamps, gaps kept by the wall clock. No I/O.

Within a run the camera's own time stamps decide, to the tick. A new run begins where the gateway's receive time says,
so the time the camera was away is in the clip, as a picture that stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.replay.camera_records import CLOCK_HZ, CameraRecord

_TICKS_PER_MS = CLOCK_HZ // 1000
# How many access units later a picture may be sent that is shown earlier (H.264 and H.265 allow 16 reordered pictures).
_REORDERED_MAX = 16
# A gap worth telling: longer than any sensible interval between two pictures.
GAP_TICKS = 2 * CLOCK_HZ


@dataclass(slots=True)
class Placed:
    """An access unit with its stamps, 90 kHz ticks from the clip's beginning."""

    record: CameraRecord
    pts: int
    dts: int = 0
    duration: int = 0


class Timeline:
    """Gives every access unit of a clip its presentation time, in the order they were received."""

    def __init__(self) -> None:
        self._begin_ms = 0
        self._run: str | None = None
        self._run_pts = 0  # the camera's ticks at the run's first access unit
        self._run_ms = 0
        self._run_at = 0  # where that one lies in the clip
        self._latest = -1
        self.runs = 0
        self.gaps = 0
        self.left_out = 0

    def place(self, record: CameraRecord) -> Placed | None:
        """The access unit's place; None for one that is shown before the key frame its run begins with.

        Such leading pictures of an open group build on pictures that are not in the clip.
        """
        if record.run != self._run:
            self._begin_run(record)
        if record.pts is not None:
            pts = self._run_at + record.pts - self._run_pts
        else:
            pts = max(self._run_at + (record.timestamp_ms - self._run_ms) * _TICKS_PER_MS, self._latest + 1)
        if pts < self._run_at:
            self.left_out += 1
            return None
        if self._latest >= 0 and pts - self._latest > GAP_TICKS:
            self.gaps += 1
        self._latest = max(self._latest, pts)
        return Placed(record, pts)

    def _begin_run(self, record: CameraRecord) -> None:
        if self._run is None:
            self._begin_ms = record.timestamp_ms
        self._run = record.run
        self._run_ms = record.timestamp_ms
        self._run_pts = record.pts or 0
        self._run_at = max((record.timestamp_ms - self._begin_ms) * _TICKS_PER_MS, self._latest + 1)
        self.runs += 1


def with_decode_times(placed: Iterator[Placed]) -> Iterator[Placed]:
    """The same access units with decode times and durations, a few later.

    A decode time is the earliest presentation time still to come, so it never exceeds its own; several that would be
    equal are spread evenly behind their predecessor. Without reordered pictures it is the presentation time itself. A
    camera's stamp that allows no such order (two equal ones, a picture far too late) gives way to its decode time.
    """
    window: deque[Placed] = deque()
    last_dts = -1
    for each in placed:
        window.append(each)
        if len(window) > _REORDERED_MAX:
            last_dts = _set_decode_time(window, last_dts)
            yield window.popleft()
    while window:
        last_dts = _set_decode_time(window, last_dts)
        yield window.popleft()


def _set_decode_time(window: deque[Placed], last_dts: int) -> int:
    """Set the decode time of the window's first access unit and return it."""
    # From the back: how many access units from the first on wait for the same earliest picture?
    earliest = min(each.pts for each in window)
    waiting = 1
    for index, each in enumerate(window):
        if each.pts == earliest:
            waiting = index + 1
    first = window[0]
    first.dts = max(last_dts + 1, last_dts + (earliest - last_dts) // waiting)
    first.pts = max(first.pts, first.dts)
    return first.dts


def with_durations(placed: Iterator[Placed]) -> Iterator[Placed]:
    """The same access units with the time to the next one; the last one's is that of the one before it."""
    previous: Placed | None = None
    duration = CLOCK_HZ // 25
    for each in placed:
        if previous is not None:
            previous.duration = duration = each.dts - previous.dts
            yield previous
        previous = each
    if previous is not None:
        previous.duration = duration
        yield previous
