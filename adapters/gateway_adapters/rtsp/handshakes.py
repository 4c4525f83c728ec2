"""How many cameras are asked at a time, so that hundreds that come back at once are all asked quickly.

A handshake takes the event loop a few milliseconds. Hundreds at once would each take as long as all of them, and time
out together; one after the other, each is quick. A place is taken once a camera's connection stands, so that an address
that takes none costs nothing, and is given back after a moment, so that a camera that takes the connection and says
nothing holds up nobody: it goes on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

HANDSHAKES_MAX = 64
# A camera answers within milliseconds. A thousand that do not are through in four seconds.
LEASE_S = 0.25


class Handshakes:
    """The places of one gateway's cameras; who waits longest is next."""

    def __init__(self, places: int = HANDSHAKES_MAX, lease_s: float = LEASE_S) -> None:
        self._free = asyncio.Semaphore(places)
        self._lease_s = lease_s

    @asynccontextmanager
    async def place(self, limit: asyncio.Timeout) -> AsyncIterator[None]:
        """Have a place for the block, or for the first moment of it. What `limit` has left does not run out before."""
        loop = asyncio.get_running_loop()
        until = limit.when()
        waits_since = loop.time()
        limit.reschedule(None)
        await self._free.acquire()
        lease = _Lease(self._free)
        timer = loop.call_later(self._lease_s, lease.end)
        try:
            if until is not None:
                limit.reschedule(until + loop.time() - waits_since)
            yield
        finally:
            timer.cancel()
            lease.end()


class _Lease:
    """A place that is given back once."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free: asyncio.Semaphore | None = free

    def end(self) -> None:
        free, self._free = self._free, None
        if free is not None:
            free.release()
