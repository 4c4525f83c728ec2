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
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Protocol

from gateway import nal
from gateway.errors import SourceError
from gateway.simulate.coded import Coded
from gateway.simulate.picture import Encoder, Picture, check_size
from gateway.simulate.rtp import CLOCK_HZ

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
    coded: Coded
    ticks: int
    wall_ns: int

    @property
    def key(self) -> bool:
        return self.coded.key


class Watcher(Protocol):
    """Whoever plays a feed. Both methods are called on the event loop and must not block."""

    def deliver(self, unit: AccessUnit) -> None: ...

    def ended(self) -> None: ...


class Feed(Protocol):
    """What the RTSP server asks of a camera's pictures. codec: "h264", "h265" or "jpeg"."""

    fps: float
    codec: str

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def parameter_sets(self) -> list[bytes]:
        """Parameter sets for the SDP; empty when they are only sent in-band."""

    def alternative(self, index: int) -> Coded | None:
        """The picture of this index with other parameter sets, where the feed has one."""

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
        codec: str = "h264",
    ) -> None:
        """fps: 1 to 120. gop_s: seconds between key frames. bit_rate: bits per second, 0: one that suits the size."""
        if not 1 <= fps <= 120:
            raise ValueError(f"{fps} frames per second cannot be simulated: 1 to 120")
        check_size(width, height, codec)
        self.name = name
        self.fps: float = fps
        self.codec = codec
        self._size = (width, height)
        self._gop = max(1, round(gop_s * fps))
        self._bit_rate = bit_rate or suitable_bit_rate(width, height, fps)
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

    def alternative(self, index: int) -> Coded | None:
        """There is one encoder only."""
        return None

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
        encoder = Encoder(*self._size, int(self.fps), self._gop, self._bit_rate, codec=self.codec)
        first = encoder.encode(picture.draw(0, time.time_ns()), key=True)
        self._parameter_sets = parameter_sets_of(self.codec, first[0].nals) if first else []
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
            for coded in encoder.encode(picture.draw(number, wall_ns), key):
                self._encoded += 1
                coded.shaped()  # packets are made here rather than on the event loop
                self._hand_over(AccessUnit(number, coded, int(number * CLOCK_HZ / self.fps), wall_ns))

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


@dataclass(frozen=True, slots=True)
class Clip:
    """Coded pictures in sending order that can be played over and over; the first one is a key frame.

    ticks: 90 kHz, one each, in the order of sending (with B-frames they do not rise). alternative: the same pictures
    with other parameter sets, of which the key frames are at the same places.
    """

    pictures: tuple[Coded, ...]
    ticks: tuple[int, ...]
    fps: float
    alternative: tuple[Coded, ...] = ()

    @property
    def codec(self) -> str:
        return self.pictures[0].codec


class ListFeed:
    """Given access units, played to every watcher from the first one on, at a given pace.

    units: a clip, or the NAL units of each access unit (of codec, the JPEG image alone), in sending order; the first
    should be a key frame. Any number of feeds can share a clip. ticks: 90 kHz, one each; without it they are 1/fps
    apart. repeat: how often the list is played, 0 for ever. at_end: "hold" keeps the connection open and silent,
    "close" says goodbye and closes it. delay_s: how long a watcher waits for the first one: not all cameras of a site
    send their key frames at one instant.
    """

    def __init__(
        self,
        units: Sequence[Sequence[bytes]] | Clip,
        fps: float = 25.0,
        *,
        ticks: Sequence[int] | None = None,
        repeat: int = 1,
        at_end: str = "hold",
        parameter_sets: Sequence[bytes] | None = None,
        codec: str = "h264",
        delay_s: float = 0.0,
    ) -> None:
        """parameter_sets: what the SDP announces; those of the first access unit when None."""
        if not isinstance(units, Clip):
            units = _clip(units, fps, ticks, codec)
        if at_end not in ("hold", "close"):
            raise ValueError("at the end a list feed can 'hold' or 'close'")
        self.clip = units
        self.fps = units.fps
        self.codec = units.codec
        self._repeat = repeat
        self._at_end = at_end
        self._delay_s = delay_s
        if parameter_sets is None:
            parameter_sets = parameter_sets_of(self.codec, self.clip.pictures[0].nals)
        self._parameter_sets = list(parameter_sets)
        self._players: dict[int, _Player] = {}
        self.played = 0

    async def start(self) -> None:
        """Nothing to prepare."""

    async def stop(self) -> None:
        for player in list(self._players.values()):
            player.stop()
        self._players.clear()

    def parameter_sets(self) -> list[bytes]:
        return self._parameter_sets

    def alternative(self, index: int) -> Coded | None:
        return self.clip.alternative[index] if self.clip.alternative else None

    def watch(self, watcher: Watcher) -> None:
        self._players[id(watcher)] = _Player(self, watcher, self._repeat, self._at_end, self._delay_s)

    def unwatch(self, watcher: Watcher) -> None:
        player = self._players.pop(id(watcher), None)
        if player is not None:
            player.stop()

    def ticks_now(self) -> int:
        """Every watcher's clock starts with its first access unit."""
        return self.clip.ticks[0]

    def statistics(self) -> dict[str, int]:
        return {"watchers": len(self._players), "frames_played": self.played}


def _clip(units: Sequence[Sequence[bytes]], fps: float, ticks: Sequence[int] | None, codec: str) -> Clip:
    if not units or fps <= 0:
        raise ValueError("a list feed needs access units and a positive frame rate")
    if ticks is None:
        ticks = [round(index * CLOCK_HZ / fps) for index in range(len(units))]
    if len(ticks) != len(units):
        raise ValueError(f"{len(ticks)} time stamps for {len(units)} access units")
    return Clip(tuple(Coded.of(unit, codec) for unit in units), tuple(ticks), fps)


class _Player:
    """Plays a list to one watcher, an access unit at a time, by timers of the event loop."""

    def __init__(self, feed: ListFeed, watcher: Watcher, repeat: int, at_end: str, delay_s: float) -> None:
        self._feed = feed
        self._watcher = watcher
        self._repeat = repeat
        self._at_end = at_end
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time() + delay_s
        self._began_wall_ns = time.time_ns() + int(delay_s * 1e9)
        clip = feed.clip
        self._turn_ticks = max(clip.ticks) - min(clip.ticks) + round(CLOCK_HZ / clip.fps)
        self._turn = 0
        self._index = 0
        self._timer: asyncio.Handle = self._loop.call_at(self._began_s, self._step)

    def stop(self) -> None:
        self._timer.cancel()

    def _step(self) -> None:
        clip, index = self._feed.clip, self._index
        ticks = clip.ticks[index] + self._turn * self._turn_ticks
        wall_ns = self._began_wall_ns + (ticks - clip.ticks[0]) * 1_000_000_000 // CLOCK_HZ
        self._index += 1
        if self._index == len(clip.pictures):
            self._index = 0
            self._turn += 1
        if self._turn != self._repeat or not self._repeat:
            elapsed_s = (self._turn * len(clip.pictures) + self._index) / clip.fps
            self._timer = self._loop.call_at(self._began_s + elapsed_s, self._step)
        elif self._at_end == "close":
            self._timer = self._loop.call_soon(self._watcher.ended)
        self._feed.played += 1
        # Last, since the watcher may end this player.
        self._watcher.deliver(AccessUnit(index, clip.pictures[index], ticks, wall_ns))


def parameter_sets_of(codec: str, nals: Sequence[bytes]) -> list[bytes]:
    """Those among an access unit's NAL units; a JPEG image has none."""
    return nal.CODECS[codec].parameter_sets(nals) if codec in nal.CODECS else []


def suitable_bit_rate(width: int, height: int, fps: float) -> int:
    """Bits per second that a picture of this size needs to look well."""
    return max(100_000, int(width * height * fps * 0.18))


def check_name(name: str) -> str:
    """A camera's name becomes its RTSP path: raises SourceError when it could not."""
    if not name or len(name) > 100 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise SourceError(f"{name!r} cannot name a simulated camera: letters, digits, '.', '_' and '-', 100 at most.")
    return name
