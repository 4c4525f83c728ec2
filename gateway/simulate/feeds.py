"""Where the access units of a simulated camera come from: a picture drawn and encoded live, or a given list.

A feed hands `AccessUnit`s to its watchers on the event loop. A watcher is whoever plays: see `Watcher`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Protocol

from gateway import nal
from gateway.errors import SourceError
from gateway.simulate.picture import Encoder, Picture, check_size
from gateway.simulate.rtp import CLOCK_HZ, packetize

_log = logging.getLogger(__name__)

# A loop that is this far behind gets no more frames until it has caught up.
_UNDELIVERED_MAX = 30


@dataclass(frozen=True, slots=True)
class AccessUnit:
    """One coded picture on its way to the watchers.

    index: its place in the feed, or the frame number of a live one. ticks: 90 kHz, unwrapped, from the feed's start.
    wall_ns: when it was taken, ns since 1970.
    """

    index: int
    nals: tuple[bytes, ...]
    key: bool
    ticks: int
    wall_ns: int
    payloads: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def of(cls, index: int, nals: Sequence[bytes], ticks: int, wall_ns: int) -> AccessUnit:
        return cls(index, tuple(nals), nal.H264.is_key(nals), ticks, wall_ns, tuple(packetize(nals)))


class Watcher(Protocol):
    """Whoever plays a feed. Both methods are called on the event loop and must not block."""

    def deliver(self, unit: AccessUnit) -> None: ...

    def ended(self) -> None: ...


class Feed(Protocol):
    """What the RTSP server asks of a camera's pictures."""

    fps: float

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def parameter_sets(self) -> list[bytes]:
        """SPS and PPS for the SDP; empty when they are only sent in-band."""

    def watch(self, watcher: Watcher) -> None: ...

    def unwatch(self, watcher: Watcher) -> None: ...

    def ticks_now(self) -> int:
        """Where the feed's 90 kHz clock stands."""

    def statistics(self) -> dict[str, int]: ...


class LiveFeed:
    """A picture drawn and encoded live in a thread of its own, once for all watchers and only while there are any.

    A frame that cannot be encoded in time is left out and counted (`frames_skipped`); frame numbers go on with the
    clock, so what a watcher sees is always the time. A new watcher gets a key frame with the next frame.
    """

    def __init__(
        self,
        name: str,
        *,
        width: int = 640,
        height: int = 360,
        fps: int = 15,
        gop_s: float = 2.0,
        bit_rate: int = 0,
        zone: tzinfo = UTC,
    ) -> None:
        """fps: 1 to 120. gop_s: seconds between key frames. bit_rate: bits per second, 0: one that suits the size."""
        if not 1 <= fps <= 120:
            raise ValueError(f"{fps} frames per second cannot be simulated: 1 to 120")
        check_size(width, height)
        self.name = name
        self.fps: float = fps
        self._size = (width, height)
        self._gop = max(1, round(gop_s * fps))
        self._bit_rate = bit_rate or max(100_000, int(width * height * fps * 0.18))
        self._zone = zone
        self._parameter_sets: list[bytes] = []
        self._watchers: list[Watcher] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._key_wanted = False
        self._undelivered = 0
        self._encoded = 0
        self._skipped = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._epoch_ns = 0
        self._epoch_wall_ns = 0

    async def start(self) -> None:
        """Make the picture and the encoder, and encode one frame to know the parameter sets."""
        self._loop = asyncio.get_running_loop()
        picture, encoder = await asyncio.to_thread(self._prepare)
        self._stopping = False
        self._epoch_ns = time.monotonic_ns()
        self._epoch_wall_ns = time.time_ns()
        self._thread = threading.Thread(
            target=self._run, args=(picture, encoder), name=f"simulate {self.name}", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; watchers are left alone, the server closes them."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def parameter_sets(self) -> list[bytes]:
        return self._parameter_sets

    def watch(self, watcher: Watcher) -> None:
        with self._wake:
            self._watchers.append(watcher)
            self._key_wanted = True
            self._wake.notify()

    def unwatch(self, watcher: Watcher) -> None:
        with self._wake:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

    def ticks_now(self) -> int:
        return (time.monotonic_ns() - self._epoch_ns) * CLOCK_HZ // 1_000_000_000

    def statistics(self) -> dict[str, int]:
        return {
            "watchers": len(self._watchers),
            "frames_encoded": self._encoded,
            "frames_skipped": self._skipped,
        }

    def _prepare(self) -> tuple[Picture, Encoder]:
        picture = Picture(self.name, *self._size, zone=self._zone)
        encoder = Encoder(*self._size, int(self.fps), self._gop, self._bit_rate)
        self._parameter_sets = nal.H264.parameter_sets(encoder.encode(picture.draw(0, time.time_ns()), key=True))
        return picture, encoder

    def _run(self, picture: Picture, encoder: Encoder) -> None:
        """The thread: wait for a watcher, then one frame each 1/fps of the feed's clock."""
        number = 0
        while True:
            with self._wake:
                while not (self._watchers or self._stopping):
                    self._wake.wait()
            due = math.ceil((time.monotonic_ns() - self._epoch_ns) * self.fps / 1_000_000_000)
            if number and due > number + 1:
                self._skipped += due - number - 1
            number = max(due, number + 1)
            if not self._wait_until(self._epoch_ns + int(number * 1_000_000_000 / self.fps)):
                return
            with self._wake:
                key, self._key_wanted = self._key_wanted, False
                if not self._watchers:
                    number = 0
                    continue
                if self._undelivered >= _UNDELIVERED_MAX:
                    self._skipped += 1
                    self._key_wanted = key
                    continue
                self._undelivered += 1
            wall_ns = self._epoch_wall_ns + int(number * 1_000_000_000 / self.fps)
            nals = encoder.encode(picture.draw(number, wall_ns), key)
            self._encoded += 1
            self._hand_over(AccessUnit.of(number, nals, int(number * CLOCK_HZ / self.fps), wall_ns))

    def _wait_until(self, due_ns: int) -> bool:
        """Wait for the feed's clock; false when the feed is stopped meanwhile."""
        with self._wake:
            while not self._stopping:
                left_ns = due_ns - time.monotonic_ns()
                if left_ns <= 0:
                    return True
                self._wake.wait(left_ns / 1e9)
            return False

    def _hand_over(self, unit: AccessUnit) -> None:
        # Closed only when the program ends without stop(); there is nobody left to play to.
        with contextlib.suppress(RuntimeError):
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._deliver, unit)

    def _deliver(self, unit: AccessUnit) -> None:
        with self._wake:
            self._undelivered -= 1
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.deliver(unit)


class ListFeed:
    """Given access units, played to every watcher from the first one on, at a given pace.

    units: the NAL units of each access unit, in sending order; the first should be a key frame. ticks: 90 kHz, one
    each, rising; without it they are 1/fps apart. repeat: how often the list is played, 0 for ever. at_end: "hold"
    keeps the connection open and silent, "close" says goodbye and closes it.
    """

    def __init__(
        self,
        units: Sequence[Sequence[bytes]],
        fps: float = 25.0,
        *,
        ticks: Sequence[int] | None = None,
        repeat: int = 1,
        at_end: str = "hold",
        parameter_sets: Sequence[bytes] | None = None,
    ) -> None:
        """parameter_sets: what the SDP announces; those of the first access unit when None."""
        if not units or fps <= 0 or at_end not in ("hold", "close"):
            raise ValueError("a list feed needs access units, a positive frame rate and at_end 'hold' or 'close'")
        if ticks is not None and len(ticks) != len(units):
            raise ValueError(f"{len(ticks)} time stamps for {len(units)} access units")
        self.fps = fps
        self._units = [tuple(unit) for unit in units]
        self._ticks = list(ticks) if ticks is not None else [round(i * CLOCK_HZ / fps) for i in range(len(units))]
        self._repeat = repeat
        self._at_end = at_end
        announced = nal.H264.parameter_sets(self._units[0]) if parameter_sets is None else parameter_sets
        self._parameter_sets = list(announced)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._played = 0

    async def start(self) -> None:
        """Nothing to prepare."""

    async def stop(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def parameter_sets(self) -> list[bytes]:
        return self._parameter_sets

    def watch(self, watcher: Watcher) -> None:
        self._tasks[id(watcher)] = asyncio.get_running_loop().create_task(self._play(watcher))

    def unwatch(self, watcher: Watcher) -> None:
        task = self._tasks.pop(id(watcher), None)
        if task is not None:
            task.cancel()

    def ticks_now(self) -> int:
        """Every watcher's clock starts with its first access unit."""
        return self._ticks[0]

    def statistics(self) -> dict[str, int]:
        return {"watchers": len(self._tasks), "frames_played": self._played}

    async def _play(self, watcher: Watcher) -> None:
        loop = asyncio.get_running_loop()
        started, started_wall_ns = loop.time(), time.time_ns()
        round_ticks = self._ticks[-1] - self._ticks[0] + round(CLOCK_HZ / self.fps)
        turn = 0
        while self._repeat == 0 or turn < self._repeat:
            for index, nals in enumerate(self._units):
                elapsed_s = (turn * len(self._units) + index) / self.fps
                await asyncio.sleep(max(0.0, started + elapsed_s - loop.time()))
                ticks = self._ticks[index] + turn * round_ticks
                played_ns = (ticks - self._ticks[0]) * 1_000_000_000 // CLOCK_HZ
                watcher.deliver(AccessUnit.of(index, nals, ticks, started_wall_ns + played_ns))
                self._played += 1
            turn += 1
        if self._at_end == "close":
            watcher.ended()


def check_name(name: str) -> str:
    """A camera's name becomes its RTSP path: raises SourceError when it could not."""
    if not name or len(name) > 100 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise SourceError(f"{name!r} cannot name a simulated camera: letters, digits, '.', '_' and '-', 100 at most.")
    return name
