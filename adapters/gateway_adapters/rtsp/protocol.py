"""A client's side of one RTSP connection (RFC 2326), from the first request to the last keep-alive. No I/O.

    OPTIONS ─► DESCRIBE ─► SETUP (video, TCP interleaved) ─► PLAY ─► keep-alive … TEARDOWN
       any of them answered 401: once more with credentials; DESCRIBE answered 3xx: the address to go to instead

The caller sends what `begin` and `receive` give, feeds what arrives, and has no more to do with it once `playing` is
set: then the bytes are the depacketizer's, and only texts between the frames come back, to `heard`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway_adapters.rtsp import messages, sdp
from gateway_adapters.rtsp.authentication import Authenticator
from gateway_adapters.rtsp.failures import Failure, RemoteFault, shown
from gateway_adapters.rtsp.messages import MessageParser, Reply, ServerRequest
from gateway_adapters.rtsp.sdp import Description, Track

# RFC 2326, section 12.37: what a session's time-out is when the camera does not say.
SESSION_TIMEOUT_S = 60
SESSION_TIMEOUT_S_MIN, SESSION_TIMEOUT_S_MAX = 2, 3_600
SESSION_CHARACTERS_MAX = 256
# Replies and requests of the camera until it plays. An honest handshake has 4 to 10.
MESSAGES_MAX = 64
SDP_TYPE = "application/sdp"

_REDIRECTS = (301, 302, 303, 305, 307, 308)
_INTERLEAVED = re.compile(r"interleaved\s*=\s*([0-9]{1,3})(?:\s*-\s*([0-9]{1,3}))?", re.IGNORECASE)
_SSRC = re.compile(r"ssrc\s*=\s*\"?(?:0x)?([0-9a-f]{1,8})\b", re.IGNORECASE)
_TIMEOUT = re.compile(r"timeout\s*=\s*\"?([0-9]{1,6})", re.IGNORECASE)
# An answer to a request of ours that says our session, or our right to it, has ended.
_SESSION_GONE = 454


@dataclass(frozen=True, slots=True)
class Playing:
    """A camera that has been told to play.

    rtp_channel, rtcp_channel: of the interleaved frames. ssrc: as the camera announced it, None if it did not.
    skipped: the tracks that are not recorded, for people.
    """

    track: Track
    rtp_channel: int
    rtcp_channel: int
    ssrc: int | None
    session_timeout_s: int
    skipped: tuple[str, ...]


class Redirected(Exception):  # not an error: what the camera answered
    """The camera is to be asked at another address. ``url`` is a well-formed rtsp:// URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__(shown(url))


class Client:
    """One connection. `begin`, then `receive` until `playing` or, with describe_only, `description` is set."""

    def __init__(self, url: str, authenticator: Authenticator, *, describe_only: bool = False) -> None:
        self._url = url
        self._authenticator = authenticator
        self._describe_only = describe_only
        self._parser = MessageParser()
        self._cseq = 0
        self._asked: tuple[str, str, tuple[tuple[str, str], ...]] | None = None
        self._answered_challenge = False
        self._session = ""
        self._session_timeout_s = SESSION_TIMEOUT_S
        self._methods: frozenset[str] = frozenset()
        self._keepalive = "GET_PARAMETER"
        self._messages = 0
        self._transport: tuple[int, int, int | None] = (0, 1, None)
        self._without_range = False
        self.description: Description | None = None
        self.playing: Playing | None = None
        self.server = ""

    @property
    def done(self) -> bool:
        """All that was wanted has been answered."""
        return self.description is not None if self._describe_only else self.playing is not None

    @property
    def authentication(self) -> str:
        """What the camera asked for: "", "basic", "digest MD5"…"""
        return self._authenticator.scheme

    @property
    def waits_for(self) -> str:
        """The request that is not answered yet."""
        return self._asked[0] if self._asked else ""

    @property
    def keepalive_interval_s(self) -> float:
        """Half the session's time-out."""
        return self._session_timeout_s / 2

    def begin(self) -> bytes:
        """The first request."""
        return self._ask("OPTIONS", self._url)

    def receive(self, data: bytes) -> bytes:
        """Take what arrived; gives what to send. Raises Failure, RemoteFault (which is one) or Redirected."""
        self._parser.feed(data)
        out = []
        while not self.done and (message := self._parser.next()) is not None:
            self._messages += 1
            if self._messages > MESSAGES_MAX:
                raise RemoteFault(f"the camera sent over {MESSAGES_MAX} messages and did not play")
            out.append(self._respond(message))
        return b"".join(out)

    @property
    def held_bytes(self) -> int:
        """Memory for what the camera sent and is not used up yet."""
        return self._parser.held_bytes

    def take_rest(self) -> bytes:
        """What came behind the last reply, and frames that came before it: for the depacketizer."""
        return self._parser.take_rest()

    # -- while it plays -----------------------------------------------------------------------------------------------

    def keepalive(self) -> bytes:
        """A request that keeps the session from timing out (section 12.37)."""
        headers = (("Session", self._session),) if self._session else ()
        return self._ask(self._keepalive, self._control_url, headers)

    def heard(self, text: bytes) -> bytes:
        """A message that came between frames; gives what to send. Raises Failure when the session has ended."""
        message = messages.parse_message(text)
        if isinstance(message, ServerRequest):
            if message.method in ("REDIRECT", "TEARDOWN"):
                raise Failure("closed", f"the camera ended the session ({message.method})")
            return messages.answer(message)
        if self._asked is None or not self._is_awaited(message):
            return b""
        method, url, headers = self._asked
        if message.status == 401:
            return self._authenticate(message, method, url, headers)
        self._asked = None
        self._answered_challenge = False
        if message.status == _SESSION_GONE:
            raise Failure("closed", "the camera has forgotten the session (454)")
        if message.status >= 400 and method == "GET_PARAMETER":
            self._keepalive = "OPTIONS"  # from the next time on
        return b""

    def teardown(self) -> bytes:
        """The last request; its answer is not awaited."""
        headers = (("Session", self._session),) if self._session else ()
        return self._ask("TEARDOWN", self._control_url, headers)

    # -- the handshake ------------------------------------------------------------------------------------------------

    @property
    def _control_url(self) -> str:
        return self.description.control if self.description is not None else self._url

    def _ask(self, method: str, url: str, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
        self._asked = (method, url, headers)
        self._cseq += 1
        credentials = self._authenticator.header(method, url)
        if credentials is not None:
            headers = (*headers, ("Authorization", credentials))
        return messages.request(method, url, self._cseq, headers)

    def _respond(self, message: messages.Message) -> bytes:
        if isinstance(message, ServerRequest):
            return messages.answer(message)
        if not self._is_awaited(message) or self._asked is None:
            return b""
        method, url, headers = self._asked
        if message.status < 200:
            return b""  # 100 Continue: the answer is still to come
        if message.status == 401:
            return self._authenticate(message, method, url, headers)
        if self._answered_challenge:
            self._authenticator.accepted()
        self._answered_challenge = False
        self._note_session(message)
        self.server = self.server or shown(message.headers.get("server"))
        return self._STEPS[method](self, message)

    def _is_awaited(self, reply: Reply) -> bool:
        """Some cameras do not say which request they answer. Those that do may still answer an earlier one."""
        if reply.cseq is None or reply.cseq == self._cseq:
            return True
        if reply.cseq < self._cseq:
            return False
        raise RemoteFault("the camera answers a request that was never made")

    def _authenticate(self, reply: Reply, method: str, url: str, headers: tuple[tuple[str, str], ...]) -> bytes:
        self._authenticator.challenged(reply.headers.all("www-authenticate"), answered=self._answered_challenge)
        self._answered_challenge = True
        return self._ask(method, url, headers)

    def _note_session(self, reply: Reply) -> None:
        """Section 12.37. An identifier is kept as it came; the time-out may stand in any reply."""
        value = reply.headers.get("session")
        if not value:
            return
        session, _, parameters = value.partition(";")
        session = session.strip()
        if not session or len(session) > SESSION_CHARACTERS_MAX:
            raise RemoteFault("the camera's session identifier is empty or too long")
        self._session = session
        if found := _TIMEOUT.search(parameters):
            self._session_timeout_s = min(max(int(found[1]), SESSION_TIMEOUT_S_MIN), SESSION_TIMEOUT_S_MAX)

    def _after_options(self, reply: Reply) -> bytes:
        """What it can do. A camera that refuses even that may well play."""
        self._redirect(reply)
        if reply.status == 200:
            listed = ",".join(reply.headers.all("public"))
            self._methods = frozenset(each.strip().upper() for each in listed.split(",") if each.strip())
        if self._methods and "GET_PARAMETER" not in self._methods:
            self._keepalive = "OPTIONS"
        return self._ask("DESCRIBE", self._url, (("Accept", SDP_TYPE),))

    def _after_describe(self, reply: Reply) -> bytes:
        self._redirect(reply)
        _expect_success(reply, "DESCRIBE")
        if not reply.body:
            raise RemoteFault("the camera describes its stream with nothing")
        self.description = sdp.parse(reply.body, self._base_of(reply))
        if self._describe_only:
            return b""
        track = self.description.video()
        return self._ask("SETUP", track.control, (("Transport", "RTP/AVP/TCP;unicast;interleaved=0-1"),))

    def _base_of(self, reply: Reply) -> str:
        """RFC 2326, C.1.1. What is no URL is passed over."""
        for name in ("content-base", "content-location"):
            if sdp.is_url(base := reply.headers.get(name)):
                return base
        return self._url

    def _after_setup(self, reply: Reply) -> bytes:
        if reply.status == 461:
            raise Failure(
                "unsupported", 'the camera does not send over TCP (461); set transport = "udp" and engine = "pyav"'
            )
        _expect_success(reply, "SETUP")
        self._transport = _transport(reply.headers.get("transport"))
        return self._play()

    def _play(self) -> bytes:
        headers = [("Session", self._session)] if self._session else []
        if not self._without_range:
            headers.append(("Range", "npt=0.000-"))
        return self._ask("PLAY", self._control_url, tuple(headers))

    def _after_play(self, reply: Reply) -> bytes:
        if reply.status == 457 and not self._without_range:
            self._without_range = True
            return self._play()
        _expect_success(reply, "PLAY")
        assert self.description is not None
        self._asked = None
        track = self.description.video()
        rtp, rtcp, ssrc = self._transport
        skipped = tuple(each.described for each in self.description.tracks if each is not track)
        self.playing = Playing(track, rtp, rtcp, ssrc, self._session_timeout_s, skipped)
        return b""

    def _redirect(self, reply: Reply) -> None:
        """Section 11.3. Raises Redirected, or Failure when there is no way to follow."""
        if reply.status not in _REDIRECTS:
            return
        location = reply.headers.get("location")
        if not sdp.is_url(location) or urlsplit(location).scheme.lower() != "rtsp":
            raise Failure("unsupported", f"the camera redirects ({reply.status}) to {shown(location) or 'nowhere'!r}")
        if urlsplit(location).username is not None:
            raise Failure("unsupported", f"the camera redirects ({reply.status}) to an address with a user name in it")
        raise Redirected(location)

    _STEPS = {  # noqa: RUF012  # never changed
        "OPTIONS": _after_options,
        "DESCRIBE": _after_describe,
        "SETUP": _after_setup,
        "PLAY": _after_play,
    }


def _transport(value: str) -> tuple[int, int, int | None]:
    """(RTP channel, RTCP channel, SSRC) of a reply to SETUP (section 12.39), as cameras write it. Raises Failure.

    Without the header, or without channels in it, they are those that were asked for; with one, RTCP's is the next.
    """
    if not value:
        return 0, 1, None
    first = value.split(",", maxsplit=1)[0]
    if "TCP" not in first.split(";")[0].upper() and not _INTERLEAVED.search(first):
        raise Failure("unsupported", f"the camera answers to TCP with the transport {shown(first)!r}")
    rtp, rtcp = 0, 1
    if found := _INTERLEAVED.search(first):
        rtp = int(found[1])
        rtcp = int(found[2]) if found[2] and found[2] != found[1] else rtp + 1
    if rtp > 255 or rtcp > 255:
        raise RemoteFault(f"the camera names channels that do not exist ({rtp}-{rtcp})")
    ssrc = _SSRC.search(first)
    return rtp, rtcp, int(ssrc[1], 16) if ssrc else None


# RFC 2326, section 11.3: the status codes that tell people something of their own.
_REFUSALS = {
    403: ("unauthorized", "the camera forbids this user the stream (403)"),
    404: ("not_found", "the camera has no stream at this path (404)"),
    405: ("unsupported", "the camera does not do {method} (405)"),
    406: ("unsupported", "the camera cannot describe its stream as SDP (406)"),
    410: ("not_found", "the camera's stream at this path is gone (410)"),
    451: ("unsupported", "the camera does not understand a parameter of {method} (451)"),
    453: ("refused", "the camera has not enough bandwidth for one more client (453)"),
    454: ("closed", "the camera has forgotten the session (454)"),
    455: ("unsupported", "the camera does not allow {method} now (455)"),
    503: ("refused", "the camera is busy, perhaps with as many clients as it serves (503)"),
    551: ("unsupported", "the camera does not support an option of {method} (551)"),
}


def _expect_success(reply: Reply, method: str) -> None:
    """Raises Failure unless the reply is a success."""
    if 200 <= reply.status < 300:
        return
    if reply.status in _REFUSALS:
        state, cause = _REFUSALS[reply.status]
        raise Failure(state, cause.format(method=method))
    state = "unsupported" if reply.status < 500 else "failed"
    raise Failure(state, f"the camera answers {method} with {reply.status_text}")
