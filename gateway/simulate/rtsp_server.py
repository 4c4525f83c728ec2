"""A small RTSP 1.0 server (RFC 2326) that plays feeds as cameras do: TCP interleaved, one H.264 track each.

Everything is bounded: connections, request sizes, and what may wait for a slow client (who is dropped, as a camera
would). Transport over UDP is refused with 461, so nothing leaves the connections that clients opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

from gateway.errors import SourceError
from gateway.simulate.feeds import AccessUnit, Feed
from gateway.simulate.rtp import RtpSender
from gateway.simulate.rtsp_messages import (
    Digest,
    Interleaved,
    MalformedRequest,
    Request,
    RequestParser,
    describe,
    interleaved_channels,
    reply,
)

_log = logging.getLogger(__name__)

METHODS = "OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, SET_PARAMETER, TEARDOWN"
SENDER_REPORT_S = 2.0
_TRACK = "trackID=0"


@dataclass(frozen=True, slots=True)
class Sent:
    """One access unit as it was handed to one client's connection; see `RtspServer.journal`."""

    path: str
    connection: int
    index: int
    nals: tuple[bytes, ...]
    ticks: int
    wall_ns: int


class RtspServer:
    """Serves each feed at its path until `stop`.

    host, port: where to listen; port 0 takes a free one, then see `port`. digest: what clients must know, None for
    everybody. session_timeout_s: a client that says nothing for so long is dropped. journal: how many of the access
    units sent last are remembered in `journal`, for tests.
    """

    def __init__(
        self,
        feeds: Mapping[str, Feed],
        *,
        host: str = "127.0.0.1",
        port: int = 8554,
        digest: Digest | None = None,
        session_timeout_s: int = 60,
        connections_max: int = 256,
        write_buffer_bytes_max: int = 4 << 20,
        journal: int = 0,
    ) -> None:
        self.feeds = dict(feeds)
        self.host = host
        self.port = port
        self.digest = digest
        self.session_timeout_s = session_timeout_s
        self.write_buffer_bytes_max = write_buffer_bytes_max
        self.journal: deque[Sent] = deque(maxlen=journal)
        self.requests: deque[str] = deque(maxlen=1000)
        self.counters = dict.fromkeys(
            ("connections_total", "connections_refused", "unauthorized", "access_units_sent", "bytes_sent",
             "slow_clients_dropped", "sessions_timed_out"), 0
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
            self._server = await loop.create_server(lambda: Connection(self), self.host, self.port)
        except BaseException as error:
            await self._stop_feeds()
            if not isinstance(error, OSError):
                raise
            raise SourceError(
                f"The simulated camera cannot listen on {self.host}:{self.port}: {error.strerror or error}."
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
        return True

    def forget(self, connection: Connection) -> None:
        self._connections.discard(connection)

    async def _stop_feeds(self) -> None:
        await asyncio.gather(*(feed.stop() for feed in self.feeds.values()))

    async def _keep_house(self) -> None:
        """Sender reports and session time-outs."""
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for connection in list(self._connections):
                connection.tick(now)


class Connection(asyncio.Protocol):
    """One client: its requests, and at most one session that plays one feed."""

    def __init__(self, server: RtspServer) -> None:
        self._server = server
        self._parser = RequestParser()
        self._nonce = secrets.token_hex(16)
        self._transport: asyncio.Transport | None = None
        self._session = ""
        self._path = ""
        self._feed: Feed | None = None
        self._sender: RtpSender | None = None
        self._playing = False
        self._begun = False  # the first key frame has been sent
        self._ticks_offset = secrets.randbits(32)
        self._heard_at = time.monotonic()
        self._reported_at = 0.0
        self._last_unit: AccessUnit | None = None
        self.number = server.counters["connections_total"]

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._server.write_buffer_bytes_max)
        if not self._server.admit(self):
            self._transport.write(reply(503, []))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_session()
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        self._heard_at = time.monotonic()
        try:
            items = self._parser.feed(data)
        except MalformedRequest as error:
            _log.warning("malformed RTSP request", extra={"fields": {"cause": str(error)}})
            self._write(reply(error.status, []))
            self._close()
            return
        for item in items:
            if not isinstance(item, Interleaved):
                self._answer(item)

    # the watcher's side

    def deliver(self, unit: AccessUnit) -> None:
        """Send one access unit; everything before the first key frame is left out, as nobody could decode it."""
        if not self._playing or self._sender is None or self._transport is None:
            return
        if not self._begun and not unit.key:
            return
        if self._transport.get_write_buffer_size() > self._server.write_buffer_bytes_max:
            self._server.counters["slow_clients_dropped"] += 1
            _log.warning("slow client dropped", extra={"fields": {"camera": self._path}})
            self.abort()
            return
        parts = self._sender.access_unit(unit.payloads, unit.ticks + self._ticks_offset)
        self._last_unit = unit
        if not self._begun:
            self._begun = True
            self._report(parts)
        data = b"".join(parts)
        self._transport.write(data)
        self._server.counters["access_units_sent"] += 1
        self._server.counters["bytes_sent"] += len(data)
        self._server.journal.append(Sent(self._path, self.number, unit.index, unit.nals, unit.ticks, unit.wall_ns))

    def ended(self) -> None:
        """The feed is over, or the server stops: RTCP goodbye, then close."""
        if self._sender is not None and self._playing:
            self._write(self._sender.goodbye())
        self._end_session()
        self._close()

    # the server's side

    def tick(self, now: float) -> None:
        """Twice a second: sender report when one is due, session time-out when nothing was heard for too long."""
        if now - self._heard_at > self._server.session_timeout_s:
            self._server.counters["sessions_timed_out"] += 1
            self._close()
            return
        if self._playing and self._begun and now - self._reported_at >= SENDER_REPORT_S:
            parts: list[bytes] = []
            self._report(parts)
            self._write(b"".join(parts))

    def abort(self) -> None:
        self._end_session()
        if self._transport is not None:
            self._transport.abort()

    # requests

    def _answer(self, request: Request) -> None:
        self._server.requests.append(request.method)
        handler = self._handlers.get(request.method)
        digest = self._server.digest
        if handler is None:
            self._reply(request, 501, ("Public", METHODS))
        elif digest is not None and request.method != "OPTIONS" and not digest.accepts(request, self._nonce):
            if "authorization" in request.headers:
                self._server.counters["unauthorized"] += 1
            self._reply(request, 401, ("WWW-Authenticate", digest.challenge(self._nonce)))
        else:
            handler(self, request)

    def _options(self, request: Request) -> None:
        self._reply(request, 200, ("Public", METHODS))

    def _describe(self, request: Request) -> None:
        feed = self._server.feeds.get(request.path)
        if feed is None:
            self._reply(request, 404)
            return
        sdp = describe(request.path, self._server.host, feed.fps, feed.parameter_sets())
        headers = (("Content-Base", self._server.url(request.path) + "/"), ("Content-Type", "application/sdp"))
        self._reply(request, 200, *headers, body=sdp)

    def _setup(self, request: Request) -> None:
        path, _, track = request.path.partition("/")
        channels = interleaved_channels(request.headers.get("transport", ""))
        feed = self._server.feeds.get(path)
        if feed is None or track not in ("", _TRACK):
            self._reply(request, 404)
        elif channels is None:
            self._reply(request, 461)
        elif self._playing:
            self._reply(request, 455)
        elif self._sender is not None:
            self._reply(request, 459)
        else:
            self._feed, self._path = feed, path
            self._session = secrets.token_hex(8)
            self._sender = RtpSender(secrets.randbits(32), secrets.randbits(16), *channels)
            transport = (
                f'RTP/AVP/TCP;unicast;interleaved={channels[0]}-{channels[1]};ssrc={self._sender.ssrc:08X};mode="PLAY"'
            )
            self._reply(request, 200, ("Transport", transport))

    def _play(self, request: Request) -> None:
        if not self._knows_session(request):
            return
        assert self._feed is not None
        assert self._sender is not None
        if self._playing:
            self._reply(request, 200)
            return
        ticks = (self._feed.ticks_now() + self._ticks_offset) & 0xFFFFFFFF
        info = f"url={self._server.url(self._path)}/{_TRACK};seq={self._sender.sequence};rtptime={ticks}"
        self._reply(request, 200, ("Range", "npt=now-"), ("RTP-Info", info))
        self._playing = True
        self._feed.watch(self)

    def _parameter(self, request: Request) -> None:
        """Keep-alive; this server has no parameters to get or set."""
        if "session" not in request.headers or self._knows_session(request):
            self._reply(request, 200)

    def _teardown(self, request: Request) -> None:
        if self._knows_session(request):
            self._reply(request, 200)
            self._end_session()

    _handlers: ClassVar = {
        "OPTIONS": _options,
        "DESCRIBE": _describe,
        "SETUP": _setup,
        "PLAY": _play,
        "GET_PARAMETER": _parameter,
        "SET_PARAMETER": _parameter,
        "TEARDOWN": _teardown,
    }

    def _knows_session(self, request: Request) -> bool:
        given = request.headers.get("session", "").partition(";")[0].strip()
        if self._sender is not None and given == self._session:
            return True
        self._reply(request, 454 if given else 455)
        return False

    def _reply(self, request: Request, status: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        own = [("CSeq", request.headers.get("cseq", "0")), ("Server", "Gateway simulated camera")]
        if self._session and status == 200:
            own.append(("Session", f"{self._session};timeout={self._server.session_timeout_s}"))
        self._write(reply(status, [*own, *headers], body))

    def _report(self, parts: list[bytes]) -> None:
        assert self._sender is not None
        assert self._last_unit is not None
        unit = self._last_unit
        parts.append(self._sender.sender_report(unit.ticks + self._ticks_offset, unit.wall_ns))
        self._reported_at = time.monotonic()

    def _end_session(self) -> None:
        if self._feed is not None and self._playing:
            self._feed.unwatch(self)
        self._playing = False
        self._begun = False
        self._session = ""
        self._feed = None
        self._sender = None

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(OSError):
                self._transport.close()
