"""RTSP 1.0 as a server reads and writes it (RFC 2326): requests, replies, digest authentication, SDP. No I/O."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gateway import nal
from gateway.simulate.rtp import CLOCK_HZ, PAYLOAD_TYPE

HEAD_BYTES_MAX = 16_384
BODY_BYTES_MAX = 65_536

REASONS = {
    200: "OK",
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


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A binary frame from the client: its receiver reports (RFC 2326, 10.12)."""

    channel: int
    data: bytes


class RequestParser:
    """Cuts a byte stream into requests and interleaved frames. Memory is bounded by the two limits above."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Request | Interleaved]:
        """Everything that ``data`` completes. Raises MalformedRequest, after which nothing more can be read."""
        self._buffer += data
        items: list[Request | Interleaved] = []
        while (item := self._next()) is not None:
            items.append(item)
        return items

    def _next(self) -> Request | Interleaved | None:
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
        request = Request(method, url, headers, bytes(buffer[end + 4 : body_end]))
        del buffer[:body_end]
        return request


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("utf-8", "replace").split("\r\n")
    words = first.split()
    if len(words) != 3 or not words[2].startswith("RTSP/"):
        raise MalformedRequest(400, "the first line is not 'METHOD url RTSP/1.0'")
    if words[2] != "RTSP/1.0":
        raise MalformedRequest(505, f"{words[2]} instead of RTSP/1.0")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise MalformedRequest(400, "a header line without a colon")
        headers[name.strip().lower()] = value.strip()
    return words[0], words[1], headers


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


@dataclass(frozen=True, slots=True)
class Digest:
    """Digest authentication with MD5 and without qop (RFC 2617), which is what nearly every camera does."""

    username: str
    password: str = field(repr=False)
    realm: str = "Gateway simulated camera"

    def challenge(self, nonce: str) -> str:
        return f'Digest realm="{self.realm}", nonce="{nonce}", algorithm=MD5'

    def accepts(self, request: Request, nonce: str) -> bool:
        """Whether the request carries the right answer to ``nonce`` for its method and URL."""
        scheme, _, rest = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "digest":
            return False
        given = {name.lower(): quoted or plain for name, quoted, plain in _DIGEST_PART.findall(rest)}
        if given.get("nonce") != nonce or given.get("username") != self.username or given.get("realm") != self.realm:
            return False
        ha1 = _md5(f"{self.username}:{self.realm}:{self.password}")
        ha2 = _md5(f"{request.method}:{given.get('uri', '')}")
        if urlsplit(given.get("uri", "")).path.strip("/") != request.path:
            return False
        return hmac.compare_digest(_md5(f"{ha1}:{nonce}:{ha2}"), given.get("response", ""))


_DIGEST_PART = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,]+))')


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def describe(name: str, host: str, fps: float, parameter_sets: Sequence[bytes]) -> bytes:
    """The SDP of one H.264 camera (RFC 8866; the format parameters are RFC 6184, 8.1)."""
    parameters = ["packetization-mode=1"]
    sps = next((each for each in parameter_sets if nal.H264.type_of(each) == 7), None)
    if sps is not None:
        parameters.append(f"profile-level-id={sps[1:4].hex()}")
        parameters.append("sprop-parameter-sets=" + ",".join(base64.b64encode(s).decode() for s in parameter_sets))
    family = "IP6" if ":" in host else "IP4"
    lines = [
        "v=0",
        f"o=- 1 1 IN {family} {host}",
        f"s={name}",
        f"c=IN {family} {host}",
        "t=0 0",
        "a=control:*",
        "a=range:npt=now-",
        f"m=video 0 RTP/AVP {PAYLOAD_TYPE}",
        f"a=rtpmap:{PAYLOAD_TYPE} H264/{CLOCK_HZ}",
        f"a=fmtp:{PAYLOAD_TYPE} {';'.join(parameters)}",
        f"a=framerate:{fps:g}",
        "a=control:trackID=0",
    ]
    return ("\r\n".join(lines) + "\r\n").encode()
