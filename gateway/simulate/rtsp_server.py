"""A small RTSP 1.0 server (RFC 2326) that plays feeds as cameras do: TCP interleaved, one video track each.

Everything is bounded: connections, request sizes, and what may wait for a slow client (who is dropped, as a camera
would). Transport over UDP is refused with 461, so nothing leaves the connections that clients opened.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import deque
from collections.abc import Mapping

from gateway.errors import SourceError
from gateway.simulate.feeds import Feed
from gateway.simulate.journal import JournalFile, Sent
from gateway.simulate.rtsp_connection import Connection
from gateway.simulate.rtsp_messages import Authentication

# asyncio's own sentence has the address once more.
_TAKEN = "another program listens there; choose another port, or 0 for a free one"
_BACKLOG = 1024  # hundreds of clients may connect at once


def _reason(error: OSError) -> str:
    return _TAKEN if error.errno == errno.EADDRINUSE else error.strerror or str(error)


class RtspServer:
    """Serves each feed at its path until `stop`.

    host, port: where to listen; port 0 takes a free one, then see `port`. authentication: what clients must know, None
    for everybody. nonce_uses_max: requests after which a digest's nonce is stale. session_timeout_s: a client that says
    nothing for so long is dropped. journal: how many of the access units sent last are remembered in `journal`, for
    tests. journal_file: where all are written down.
    """

    def __init__(
        self,
        feeds: Mapping[str, Feed],
        *,
        host: str = "127.0.0.1",
        port: int = 8554,
        authentication: Authentication | None = None,
        nonce_uses_max: int | None = None,
        session_timeout_s: int = 60,
        connections_max: int = 1024,
        write_buffer_bytes_max: int = 4 << 20,
        journal: int = 0,
        journal_file: JournalFile | None = None,
    ) -> None:
        self.feeds = dict(feeds)
        self.host = host
        self.port = port
        self.authentication = authentication
        self.nonce_uses_max = nonce_uses_max
        self.session_timeout_s = session_timeout_s
        self.write_buffer_bytes_max = write_buffer_bytes_max
        self.journal: deque[Sent] = deque(maxlen=journal)
        self.journals = bool(journal or journal_file)
        self._journal_file = journal_file
        self.requests: deque[str] = deque(maxlen=1000)
        self.counters = dict.fromkeys(
            ("connections_total", "connections_refused", "unauthorized", "access_units_sent", "bytes_sent",
             "packets_lost", "slow_clients_dropped", "sessions_timed_out", "interleaved_received",
             "answers_received"), 0
        )  # fmt: skip
        self._connections_max = connections_max
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._housekeeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the feeds and listen. Raises SourceError when the port is taken."""
        loop = asyncio.get_running_loop()
        try:
            for feed in self.feeds.values():
                await feed.start()
            self._server = await loop.create_server(lambda: Connection(self), self.host, self.port, backlog=_BACKLOG)
        except BaseException as error:
            await self._stop_feeds()
            if not isinstance(error, OSError):
                raise
            raise SourceError(
                f"The simulated camera cannot listen on {self.host}:{self.port}: {_reason(error)}."
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        self._housekeeping = loop.create_task(self._keep_house())

    async def stop(self) -> None:
        """Say goodbye to who is watching, close everything, stop the feeds."""
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            self._housekeeping = None
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.ended()
        await self._stop_feeds()
        if self._journal_file is not None:
            self._journal_file.close()

    def drop_clients(self) -> int:
        """Break every connection at once, without goodbye; returns how many there were."""
        dropped = len(self._connections)
        for connection in list(self._connections):
            connection.abort()
        return dropped

    def url(self, path: str) -> str:
        """Where a camera is to be found; without user name and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rtsp://{host}:{self.port}/{path}"

    def statistics(self) -> dict[str, int]:
        """Counters since the start; `watchers`, `frames_…` are summed over the feeds."""
        totals = {**self.counters, "connections": len(self._connections)}
        for feed in self.feeds.values():
            for name, value in feed.statistics().items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def admit(self, connection: Connection) -> bool:
        self.counters["connections_total"] += 1
        if len(self._connections) >= self._connections_max:
            self.counters["connections_refused"] += 1
            return False
        self._connections.add(connection)
        connection.number = self.counters["connections_total"]
        return True

    def forget(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def remember(self, sent: Sent) -> None:
        """An access unit went out."""
        self.journal.append(sent)
        if self._journal_file is not None:
            self._journal_file.add(sent)

    async def _stop_feeds(self) -> None:
        await asyncio.gather(*(feed.stop() for feed in self.feeds.values()))

    async def _keep_house(self) -> None:
        """Sender reports and session time-outs."""
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for connection in list(self._connections):
                connection.tick(now)
            if self._journal_file is not None:
                self._journal_file.flush()
