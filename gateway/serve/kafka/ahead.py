"""Reading ahead: what a consumer that reads on will ask for is looked up and checked while it takes what it has got.

So it need not wait for the disk and for the checksums, whose time counts as much as that of the way to the client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from gateway.serve.kafka.slices import Slice
from gateway.serve.kafka.waiting import Disk

# Consumers for which this is done; with more, some do without. To push one out whose turn it is would double the work.
CONSUMERS_MAX = 16
# Fetches of a consumer that are looked up in one go, as soon as so few are left. Each holds a descriptor.
FETCHES, FETCHES_LEFT = 4, 2
# A consumer that does not come is forgotten: a file that retention deletes must not be held open for long.
AGE_S = 1.0


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

    @property
    def goes_on(self) -> int | None:
        """The offset behind it, if there are records there already."""
        records = self.records
        return records.next_offset if records is not None and records.next_offset < self.high_watermark else None

    def close(self) -> None:
        """It is not needed."""
        if self.records is not None:
            self.records.file.close()


class _Consumer:
    """What one consumer will ask for, in order. A thread adds to `found`, the event loop takes from it."""

    def __init__(self, wanted: Wanted, until: float) -> None:
        self.found: deque[Found] = deque()
        self.behind = wanted  # what follows all that was found; for the thread while it looks
        self.looking: Future[None] | None = None
        self.is_over = False  # there is no more, or nobody wants it
        self.until = until

    def look(self, find: Callable[[Wanted], Found]) -> None:
        """On a thread that may wait for the disk."""
        for _ in range(FETCHES):
            found = find(self.behind)
            self.found.append(found)
            if found.goes_on is None or self.is_over:
                self.is_over = True
                return
            self.behind = self.behind._replace(offset=found.goes_on)

    def drop(self, _future: Future[None] | None = None) -> None:
        """Nobody comes for it, and no thread looks any more."""
        while self.found:
            self.found.popleft().close()


class Ahead:
    """On the endpoint's event loop; `find` runs on threads that may wait for the disk."""

    def __init__(self, find: Callable[[Wanted], Found], disk: Disk) -> None:
        self._find = find
        self._disk = disk
        self._consumers: dict[Wanted, _Consumer] = {}  # by what they will ask for next
        self._clearing: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Consumers."""
        return len(self._consumers)

    def begin(self, wanted: Wanted) -> None:
        """Somebody reads on there. Nothing is done for it while there is no room."""
        if wanted in self._consumers or len(self._consumers) >= CONSUMERS_MAX:
            return
        loop = asyncio.get_running_loop()
        consumer = self._consumers[wanted] = _Consumer(wanted, loop.time() + AGE_S)
        consumer.looking = self._disk.submit(consumer.look, self._find)
        if self._clearing is None:
            self._clearing = loop.call_later(AGE_S, self._clear)

    async def take(self, wanted: Wanted) -> Found | None:
        """What was found, which the caller closes. None: nothing was looked up, or there is nothing to send."""
        consumer = self._consumers.pop(wanted, None)
        if consumer is None:
            return None
        looking = consumer.looking
        if not consumer.found and looking is not None:
            try:
                await asyncio.wrap_future(looking)
            except asyncio.CancelledError:
                _drop(consumer)
                raise
        found = consumer.found.popleft() if consumer.found else Found()
        if found.goes_on is None:
            _drop(consumer)
        else:
            self._go_on(consumer, wanted._replace(offset=found.goes_on))
        return found if found.records is not None else None

    def _go_on(self, consumer: _Consumer, following: Wanted) -> None:
        is_looking = consumer.looking is not None and not consumer.looking.done()
        if following in self._consumers:  # two that read the same
            _drop(consumer)
            return
        consumer.until = asyncio.get_running_loop().time() + AGE_S
        self._consumers[following] = consumer
        if not is_looking and not consumer.is_over and len(consumer.found) <= FETCHES_LEFT:
            consumer.looking = self._disk.submit(consumer.look, self._find)

    def stop(self) -> None:
        """Nobody comes any more."""
        if self._clearing is not None:
            self._clearing.cancel()
        for consumer in self._consumers.values():
            _drop(consumer)
        self._consumers.clear()

    def _clear(self) -> None:
        """Forget those who did not come."""
        loop = asyncio.get_running_loop()
        self._clearing = None
        now = loop.time()
        for wanted in [wanted for wanted, consumer in self._consumers.items() if consumer.until <= now]:
            _drop(self._consumers.pop(wanted))
        if self._consumers:
            self._clearing = loop.call_later(AGE_S, self._clear)


def _drop(consumer: _Consumer) -> None:
    consumer.is_over = True
    if consumer.looking is None or consumer.looking.cancel():
        consumer.drop()
    else:
        consumer.looking.add_done_callback(consumer.drop)
