"""Waiting without asking again and again: for the disk, on threads, and for streams to grow, through an eventfd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Threads that read segments and indexes, for one request of a connection at a time.
DISK_THREADS = 4
# After commits the waiting are looked through at most so often …
SWEEP_INTERVAL_S = 0.001
# … and looking takes at most this part of the time, however many wait, but one that stood still does not count for more
# than this.
SWEEP_SHARE = 10
SWEEP_PAUSE_MAX_S = 0.1
# A consumer that has what it waited for comes again soon: so long its streams still count as waited for.
FOLLOWED_S = 1.0


class Disk:
    """Threads for calls that may wait for the disk."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="gateway-kafka-disk")

    def submit(
        self, call: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Future[Result]:
        """Begin it; nobody waits yet."""
        return self._threads.submit(call, *arguments, **named)

    async def run(
        self, call: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        """Its result. When the caller is cancelled, a call that has begun still runs to its end before this returns.

        What it opened can be closed then, as nothing else happens to it.
        """
        future = self.submit(call, *arguments, **named)
        waiting = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not future.cancel():
                await asyncio.wait([waiting])
            raise

    def close(self) -> None:
        """Wait for what has begun; the rest is dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)


class Streams(Protocol):
    """What is asked of the catalog; both take no time."""

    def durable_offset(self, name: str) -> int | None: ...
    def follow(self, name: str, *, followed: bool) -> None: ...


class Waiter:
    """One fetch that waits: for any of these topics to grow beyond the end it has seen.

    `ends` becomes what woke it, so that it is not woken by the same again where readers cannot see it yet.
    """

    def __init__(self, ends: Mapping[str, int]) -> None:
        self.ends = dict(ends)
        self.grown: set[str] = set()
        self.event = asyncio.Event()


class Waiting:
    """All fetches that wait. `commit` is called when something has become durable."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._followed: dict[str, float] = {}  # until when
        self._ending: asyncio.TimerHandle | None = None
        self._waiters: set[Waiter] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, waiter: Waiter, deadline: float) -> None:
        """Until `waiter.grown` holds something, or `time.monotonic()` reaches the deadline."""
        self._waiters.add(waiter)
        self._follow(waiter)
        try:
            self._look(waiter, {})  # at what happened before it was known to wait
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                await waiter.event.wait()
        except TimeoutError:
            # An answer is of the moment in which it leaves: DelayedFetch.onComplete of Kafka.
            self._look(waiter, {})
        finally:
            self._waiters.discard(waiter)

    def _follow(self, waiter: Waiter) -> None:
        """Records that nobody else waits for are committed at leisure, but not where a consumer waits for them."""
        until = time.monotonic() + FOLLOWED_S
        for topic in waiter.ends:
            if topic not in self._followed:
                self._streams.follow(topic, followed=True)
            self._followed[topic] = until
        if self._ending is None and self._followed:
            self._ending = asyncio.get_running_loop().call_later(FOLLOWED_S, self._end_following)

    def _end_following(self) -> None:
        self._ending = None
        now = time.monotonic()
        waited_for = {topic for waiter in self._waiters for topic in waiter.ends}
        for topic in [topic for topic, until in self._followed.items() if until <= now and topic not in waited_for]:
            self._streams.follow(topic, followed=False)
            del self._followed[topic]
        if self._followed:
            self._ending = asyncio.get_running_loop().call_later(FOLLOWED_S, self._end_following)

    def commit(self) -> None:
        """On the event loop: streams may have grown."""
        if self._waiters and self._sweeping is None:
            delay = max(0.0, self._next_sweep - time.monotonic())
            self._sweeping = asyncio.get_running_loop().call_later(delay, self._sweep)

    def stop(self) -> None:
        """Nobody is woken any more."""
        for timer in (self._sweeping, self._ending):
            if timer is not None:
                timer.cancel()
        for topic in self._followed:
            self._streams.follow(topic, followed=False)
        self._followed.clear()

    def _sweep(self) -> None:
        self._sweeping = None
        started = time.monotonic()
        known: dict[str, int | None] = {}
        for waiter in self._waiters:
            self._look(waiter, known)
        ended = time.monotonic()
        pause = (ended - started) * (SWEEP_SHARE - 1)
        self._next_sweep = ended + min(max(SWEEP_INTERVAL_S, pause), SWEEP_PAUSE_MAX_S)

    def _look(self, waiter: Waiter, known: dict[str, int | None]) -> None:
        for topic, end in tuple(waiter.ends.items()):
            if topic not in known:
                known[topic] = self._streams.durable_offset(topic)
            durable = known[topic]
            if durable is not None and durable > end:
                waiter.grown.add(topic)
                waiter.ends[topic] = durable
        if waiter.grown:
            waiter.event.set()
