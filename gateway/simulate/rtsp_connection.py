"""One client of the simulated cameras: its requests, and at most one session that plays one camera."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from typing import TYPE_CHECKING, ClassVar, cast

from gateway.simulate.faults import Faults
from gateway.simulate.feeds import AccessUnit, Feed
from gateway.simulate.journal import Sent
from gateway.simulate.rtsp_messages import (
    Digest,
    Interleaved,
    MalformedRequest,
    Request,
    RequestParser,
    digest_parts,
    interleaved_channels,
    reply,
)
from gateway.simulate.sdp import AUDIO_TRACK, VIDEO_TRACK, describe
from gateway.simulate.sending import Sending, Then

if TYPE_CHECKING:
    from gateway.simulate.rtsp_server import RtspServer

_log = logging.getLogger(__name__)

METHODS = "OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, SET_PARAMETER, TEARDOWN"


class Connection(asyncio.Protocol):
    """See the module. Faults are those of the URL that the client asked for last."""

    def __init__(self, server: RtspServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser()
        self._nonce = secrets.token_hex(16)
        self._nonce_uses = 0
        self._transport: asyncio.Transport | None = None
        self._query = ""
        self._faults = Faults()
        self._session = ""
        self._path = ""
        self._feed: Feed | None = None
        self._sending: Sending | None = None
        self._audio: tuple[int, int] | None = None
        self._playing = False
        self._frozen = False
        self._heard_at = time.monotonic()
        self._pending = bytearray()  # what is still to be sent in small pieces
        self.number = 0

    # -- asyncio's side -----------------------------------------------------------------------------------------------

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
            if isinstance(item, Request):
                self._take(item)
            elif isinstance(item, Interleaved):
                self._server.counters["interleaved_received"] += 1
            else:
                self._server.counters["answers_received"] += 1

    # -- the watcher's side -------------------------------------------------------------------------------------------

    def deliver(self, unit: AccessUnit) -> None:
        """Send one access unit; everything before the first key frame is left out, as nobody could decode it."""
        sending, transport, server = self._sending, self._transport, self._server
        if not self._playing or sending is None or transport is None:
            return
        if not sending.begun and not unit.key:
            return
        if transport.get_write_buffer_size() + len(self._pending) > server.write_buffer_bytes_max:
            server.counters["slow_clients_dropped"] += 1
            _log.warning("slow client dropped", extra={"fields": {"camera": self._path}})
            self.abort()
            return
        sent = sending.unit(unit)
        if sent.data:
            self._write(sent.data)
        if sent.shaped is not None:
            server.counters["access_units_sent"] += 1
            server.counters["bytes_sent"] += len(sent.data)
            server.counters["packets_lost"] += sent.lost
            if server.journals:
                server.remember(
                    Sent(
                        path=self._path,
                        connection=self.number,
                        index=unit.index,
                        shaped=sent.shaped,
                        key=unit.key,
                        ticks=unit.ticks,
                        timestamp=sent.timestamp,
                        wall_ns=unit.wall_ns,
                        sent_ns=time.time_ns(),
                        packets=sent.packets,
                        lost=sent.lost,
                    )
                )
        if sent.then is not Then.GO_ON:
            self._end(sent.then)

    def ended(self) -> None:
        """The feed is over, or the server stops: RTCP goodbye, then close."""
        if self._sending is not None and self._playing and not self._sending.silent:
            self._write(self._sending.sender.goodbye())
        self._end_session()
        self._close()

    # -- the server's side --------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Twice a second: sender report when one is due, session time-out when nothing was heard for too long."""
        if self._frozen:
            return
        if now - self._heard_at > self._timeout_s:
            self._server.counters["sessions_timed_out"] += 1
            self._close()
        elif self._playing and self._sending is not None:
            self._write(self._sending.report(now))

    def abort(self) -> None:
        self._end_session()
        if self._transport is not None:
            self._transport.abort()

    # -- requests -----------------------------------------------------------------------------------------------------

    def _take(self, request: Request) -> None:
        """Look at the faults that the URL asks for, then answer, late if they say so."""
        self._server.requests.append(request.method)
        if request.query and request.query != self._query and self._sending is None:
            try:
                self._faults = Faults.parse(request.query)
            except ValueError as error:
                self._refuse(request, str(error))
                return
            self._query = request.query
        if self._faults.delay:
            self._loop.call_later(self._faults.delay, self._answer, request)
        else:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        if self._frozen:
            return
        handler = self._handlers.get(request.method)
        if handler is None:
            self._reply(request, 501, ("Public", METHODS))
        elif request.method == "OPTIONS" or self._authenticated(request):
            handler(self, request)

    def _authenticated(self, request: Request) -> bool:
        authentication = self._server.authentication
        if authentication is None:
            return True
        right = authentication.accepts(request, self._nonce)
        digest = isinstance(authentication, Digest)
        stale = right and digest and self._nonce_uses == self._server.nonce_uses_max
        if right and not stale:
            self._nonce_uses += 1
            return True
        if "authorization" in request.headers and not stale:
            # A nonce that was replaced is no wrong password.
            stale = digest_parts(request).get("nonce", self._nonce) != self._nonce
            self._server.counters["unauthorized"] += not stale
        if stale:
            self._nonce, self._nonce_uses = secrets.token_hex(16), 0
        self._reply(request, 401, ("WWW-Authenticate", authentication.challenge(self._nonce, stale=stale)))
        return False

    def _options(self, request: Request) -> None:
        self._reply(request, 200, ("Public", METHODS))

    def _describe(self, request: Request) -> None:
        feed, faults = self._server.feeds.get(request.path), self._faults
        if feed is None:
            self._reply(request, 404)
            return
        if faults.redirect:
            left = self._query.replace(f"redirect={faults.redirect}", f"redirect={faults.redirect - 1}")
            self._reply(request, 302, ("Location", f"{self._server.url(request.path)}?{left}"))
            return
        if faults.switch is not None and feed.alternative(0) is None:
            self._refuse(request, "switch= needs a camera that plays a loop; this one has one encoder.")
            return
        base = self._server.url(request.path) + "/"
        sdp = describe(
            request.path,
            self._server.host,
            faults.fps or feed.fps,
            feed.parameter_sets() if faults.sprop else [],
            codec=feed.codec,
            audio=faults.audio,
            control=base if faults.control == "absolute" else "",
        )
        headers = [("Content-Type", "application/sdp")]
        if faults.control != "query":
            headers.insert(0, ("Content-Base", base))
        self._reply(request, 200, *headers, body=sdp)

    def _setup(self, request: Request) -> None:
        path = request.path.partition("/")[0]
        track = request.track if request.track.startswith("trackID=") else VIDEO_TRACK
        channels = interleaved_channels(request.headers.get("transport", ""))
        feed = self._server.feeds.get(path)
        if feed is None or not (track == VIDEO_TRACK or (track == AUDIO_TRACK and self._faults.audio)):
            self._reply(request, 404)
        elif channels is None:
            self._reply(request, 461)
        elif self._playing:
            self._reply(request, 455)
        elif self._audio is not None if track == AUDIO_TRACK else self._sending is not None:
            self._reply(request, 459)
        else:
            self._session = self._session or secrets.token_hex(8)
            transport = f"RTP/AVP/TCP;unicast;interleaved={channels[0]}-{channels[1]}"
            if track == AUDIO_TRACK:
                self._audio = channels
            else:
                self._feed, self._path = feed, path
                self._sending = Sending(self._faults, channels, alternative=feed.alternative)
                transport += f';ssrc={self._sending.sender.ssrc:08X};mode="PLAY"'
            self._reply(request, 200, ("Transport", transport))

    def _play(self, request: Request) -> None:
        if not self._knows_session(request):
            return
        assert self._feed is not None
        assert self._sending is not None
        if self._playing:
            self._reply(request, 200)
            return
        if self._audio is not None:
            self._sending.add_audio(self._audio)
        ticks = self._sending.first_timestamp(self._feed.ticks_now())
        url = f"{self._server.url(self._path)}/{VIDEO_TRACK}"
        info = f"url={url};seq={self._sending.sender.sequence};rtptime={ticks}"
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

    @property
    def _timeout_s(self) -> int:
        return self._faults.timeout or self._server.session_timeout_s

    def _knows_session(self, request: Request) -> bool:
        given = request.headers.get("session", "").partition(";")[0].strip()
        if self._sending is not None and given == self._session:
            return True
        self._reply(request, 454 if given else 455)
        return False

    def _refuse(self, request: Request, sentence: str) -> None:
        self._reply(request, 400, ("Content-Type", "text/plain"), body=f"{sentence}\n".encode())

    def _reply(self, request: Request, status: int, *headers: tuple[str, str], body: bytes = b"") -> None:
        own = [("CSeq", request.headers.get("cseq", "0")), ("Server", "Gateway simulated camera")]
        if self._session and status == 200:
            own.append(("Session", f"{self._session};timeout={self._timeout_s}"))
        self._write(reply(status, [*own, *headers], body))

    # -- the connection -----------------------------------------------------------------------------------------------

    def _end(self, then: Then) -> None:
        if then is Then.CLOSE:
            self._end_session()
            self._close()
            return
        self._frozen = True
        if self._transport is not None:
            self._transport.pause_reading()

    def _end_session(self) -> None:
        if self._feed is not None and self._playing:
            self._feed.unwatch(self)
        self._playing = False
        self._session = ""
        self._feed = None
        self._sending = None
        self._audio = None

    def _write(self, data: bytes | bytearray) -> None:
        if not data or self._transport is None or self._transport.is_closing():
            return
        if self._faults.chunk is None:
            self._transport.write(data)
            return
        idle = not self._pending
        self._pending += data
        if idle:
            self._send_piece()

    def _send_piece(self) -> None:
        """One piece for each turn of the event loop, so that each is a send of its own."""
        if self._transport is None or self._transport.is_closing() or not self._pending:
            return
        size = self._faults.chunk or len(self._pending)
        self._transport.write(bytes(self._pending[:size]))
        del self._pending[:size]
        if self._pending:
            self._loop.call_soon(self._send_piece)

    def _close(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(bytes(self._pending))
        self._pending.clear()
        with contextlib.suppress(OSError):
            self._transport.close()
