"""Reading ahead: what a consumer that reads on will ask for is looked up and checked while it takes what it has got.

So it need not wait for the disk and for the checksums, whose time counts as much as that of the way to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from gateway.serve.kafka.slices import Slice
from gateway.serve.kafka.waiting import Disk

# What is found or being looked up, of all consumers together: each holds a descriptor. With more consumers than these
# some do without; to push out what another one is about to take would double the work.
AHEAD_MAX = 32
# Nobody came for it: a file that retention deletes must not be held open for long.
AHEAD_AGE_S = 1.0


class Wanted(NamedTuple):
    """One partition of a request."""

    topic: str
    partition: int
    offset: int
    bytes_max: int


class Found(NamedTuple):
    """What there is for it."""

    error: int = 0
    log_start: int = -1
    high_watermark: int = -1
    records: Slice | None = None

    @property
    def length(self) -> int:
        return self.records.length if self.records is not None else 0

    def close(self) -> None:
        """It is not needed."""
        if self.records is not None:
            self.records.file.close()


class Ahead:
    """On the endpoint's event loop; `find` runs on threads that may wait for the disk."""

    def __init__(self, find: Callable[[Wanted], Found], disk: Disk) -> None:
        self._find = find
        self._disk = disk
        self._begun: dict[Wanted, tuple[Future[Found], float]] = {}  # and until when it is kept
        self._clearing: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._begun)

    def begin(self, wanted: Wanted) -> None:
        """Look it up, unless there is no room."""
        if wanted in self._begun or len(self._begun) >= AHEAD_MAX:
            return
        loop = asyncio.get_running_loop()
        self._begun[wanted] = self._disk.submit(self._find, wanted), loop.time() + AHEAD_AGE_S
        if self._clearing is None:
            self._clearing = loop.call_later(AHEAD_AGE_S, self._clear)

    async def take(self, wanted: Wanted) -> Found | None:
        """What was found, which the caller closes. None: nothing was looked up, or there is nothing to send."""
        future, _ = self._begun.pop(wanted, (None, 0.0))
        if future is None:
            return None
        try:
            found = future.result() if future.done() else await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            _drop(future)
            raise
        return found if found.records is not None else None

    def stop(self) -> None:
        """Nobody comes any more."""
        if self._clearing is not None:
            self._clearing.cancel()
        for future, _ in self._begun.values():
            _drop(future)
        self._begun.clear()

    def _clear(self) -> None:
        """Drop what nobody came for."""
        loop = asyncio.get_running_loop()
        self._clearing = None
        for wanted in [wanted for wanted, (_, until) in self._begun.items() if until <= loop.time()]:
            _drop(self._begun.pop(wanted)[0])
        if self._begun:
            self._clearing = loop.call_later(AHEAD_AGE_S, self._clear)


def _drop(future: Future[Found]) -> None:
    if not future.cancel():
        future.add_done_callback(_close)


def _close(future: Future[Found]) -> None:
    # What went wrong goes wrong again for whoever asks for it.
    with contextlib.suppress(Exception):
        future.result().close()
