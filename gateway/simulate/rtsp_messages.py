"""RTSP 1.0 as a server reads and writes it (RFC 2326): requests, replies, authentication, SDP. No I/O."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 16_384
BODY_BYTES_MAX = 65_536

REASONS = {
    200: "OK",
    302: "Moved Temporarily",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Request Entity Too Large",
    454: "Session Not Found",
    455: "Method Not Valid in This State",
    459: "Aggregate Operation Not Allowed",
    461: "Unsupported Transport",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "RTSP Version Not Supported",
}


class MalformedRequest(Exception):
    """The client sent what is no RTSP; ``status`` is what to answer before closing."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are in lower case."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        """The URL's path without slashes around it; "*" stays."""
        return urlsplit(self.url).path.strip("/") if self.url != "*" else "*"

    @property
    def query(self) -> str:
        """The URL's query without a slash and what follows: clients append a track's name to the whole URL."""
        return urlsplit(self.url).query.partition("/")[0]

    @property
    def track(self) -> str:
        """The last part of the URL, behind the query too."""
        return self.url.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A binary frame from the client: its receiver reports (RFC 2326, 10.12)."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's reply to a request of the server's."""

    status: int


class RequestParser:
    """Cuts a byte stream into requests, answers and interleaved frames. Memory is bounded by the two limits above."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Request | Interleaved | Answer]:
        """Everything that ``data`` completes. Raises MalformedRequest, after which nothing more can be read."""
        self._buffer += data
        items: list[Request | Interleaved | Answer] = []
        while (item := self._next()) is not None:
            items.append(item)
        return items

    def _next(self) -> Request | Interleaved | Answer | None:
        buffer = self._buffer
        while buffer.startswith((b"\r", b"\n")):
            del buffer[:1]
        if buffer.startswith(b"$"):
            if len(buffer) < 4 or len(buffer) < 4 + int.from_bytes(buffer[2:4], "big"):
                return None
            end = 4 + int.from_bytes(buffer[2:4], "big")
            frame = Interleaved(buffer[1], bytes(buffer[4:end]))
            del buffer[:end]
            return frame
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end > HEAD_BYTES_MAX:
            if len(buffer) > HEAD_BYTES_MAX:
                raise MalformedRequest(413, f"a request head of over {HEAD_BYTES_MAX} bytes")
            return None
        method, url, headers = _parse_head(bytes(buffer[:end]))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            raise MalformedRequest(413, f"a body of {length} bytes, {BODY_BYTES_MAX} at most")
        body_end = end + 4 + int(length)
        if len(buffer) < body_end:
            return None
        body = bytes(buffer[end + 4 : body_end])
        del buffer[:body_end]
        return Request(method, url, headers, body) if method != _ANSWERED else Answer(int(url))


# What stands where a request has its method; no request has such a one.
_ANSWERED = "RTSP/1.0"


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """(method, URL, headers), or (_ANSWERED, status, headers)."""
    first, *lines = head.decode("utf-8", "replace").split("\r\n")
    words = first.split()
    if words[:1] == [_ANSWERED] and len(words) > 1 and re.fullmatch("[1-5][0-9][0-9]", words[1]):
        return _ANSWERED, words[1], _parse_headers(lines)
    if len(words) != 3 or not words[2].startswith("RTSP/"):
        raise MalformedRequest(400, "the first line is not 'METHOD url RTSP/1.0'")
    if words[2] != "RTSP/1.0":
        raise MalformedRequest(505, f"{words[2]} instead of RTSP/1.0")
    if words[0] == _ANSWERED:
        raise MalformedRequest(400, "a status line that has no status")
    return words[0], words[1], _parse_headers(lines)


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise MalformedRequest(400, "a header line without a colon")
        headers[name.strip().lower()] = value.strip()
    return headers


def reply(status: int, headers: Iterable[tuple[str, str]], body: bytes = b"") -> bytes:
    """A whole reply."""
    lines = [f"RTSP/1.0 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def interleaved_channels(transport: str) -> tuple[int, int] | None:
    """(RTP, RTCP) channels of the first RTP over TCP transport a client offers in its Transport header, or None."""
    for offer in transport.split(","):
        first, *parameters = (part.strip() for part in offer.split(";"))
        if first.upper() != "RTP/AVP/TCP":
            continue
        for parameter in parameters:
            if match := re.fullmatch(r"interleaved=(\d{1,3})(?:-(\d{1,3}))?", parameter):
                rtp = int(match[1])
                rtcp = int(match[2]) if match[2] else rtp + 1
                return (rtp, rtcp) if rtp < 256 and rtcp < 256 and rtp != rtcp else None
        return 0, 1
    return None


class Authentication(Protocol):
    """What clients must know. `nonce` is the connection's, and `stale` an older one of it."""

    def challenge(self, nonce: str, *, stale: bool = False) -> str:
        """The value of WWW-Authenticate."""

    def accepts(self, request: Request, nonce: str) -> bool:
        """Whether the request may be served."""


@dataclass(frozen=True, slots=True)
class Digest:
    """Digest authentication. As it is, with MD5 and without qop (RFC 2617), which is what nearly every camera does.

    algorithm: "MD5" or "SHA-256" (RFC 7616). qop: quality of protection "auth" is asked for.
    """

    username: str
    password: str = field(repr=False)
    realm: str = "Gateway simulated camera"
    algorithm: str = "MD5"
    qop: bool = False

    def challenge(self, nonce: str, *, stale: bool = False) -> str:
        parts = [f'Digest realm="{self.realm}", nonce="{nonce}", algorithm={self.algorithm}']
        if self.qop:
            parts.append('qop="auth"')
        if stale:
            parts.append("stale=true")
        return ", ".join(parts)

    def accepts(self, request: Request, nonce: str) -> bool:
        """Whether the request carries the right answer to ``nonce`` for its method and URL."""
        given = digest_parts(request)
        if given.get("nonce") != nonce or given.get("username") != self.username or given.get("realm") != self.realm:
            return False
        uri = given.get("uri", "")
        if urlsplit(uri).path.strip("/") != request.path or bool(given.get("qop")) != self.qop:
            return False
        ha1 = self._hash(f"{self.username}:{self.realm}:{self.password}")
        ha2 = self._hash(f"{request.method}:{uri}")
        middle = nonce
        if self.qop:
            middle = f"{nonce}:{given.get('nc', '')}:{given.get('cnonce', '')}:{given['qop']}"
        return hmac.compare_digest(self._hash(f"{ha1}:{middle}:{ha2}"), given.get("response", ""))

    def _hash(self, text: str) -> str:
        if self.algorithm == "SHA-256":
            return hashlib.sha256(text.encode()).hexdigest()
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Basic:
    """Basic authentication (RFC 7617)."""

    username: str
    password: str = field(repr=False)
    realm: str = "Gateway simulated camera"

    def challenge(self, nonce: str, *, stale: bool = False) -> str:
        return f'Basic realm="{self.realm}"'

    def accepts(self, request: Request, nonce: str) -> bool:
        """Whether the request carries user name and password."""
        right = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return hmac.compare_digest(request.headers.get("authorization", ""), f"Basic {right}")


def digest_parts(request: Request) -> dict[str, str]:
    """What the request's digest says, by name; empty if it carries none."""
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "digest":
        return {}
    return {name.lower(): quoted or plain for name, quoted, plain in _DIGEST_PART.findall(rest)}


_DIGEST_PART = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,]+))')

AUTHENTICATIONS = ("basic", "md5", "md5-qop", "sha-256")


def authentication(kind: str, username: str, password: str) -> Authentication:
    """One of AUTHENTICATIONS."""
    if kind == "basic":
        return Basic(username, password)
    algorithm = "SHA-256" if kind == "sha-256" else "MD5"
    return Digest(username, password, algorithm=algorithm, qop=kind != "md5")
