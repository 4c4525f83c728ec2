"""RTSP 1.0 as a client reads and writes it (RFC 2326): requests, replies, what a camera asks by itself. No I/O.

Cameras are read leniently where nothing can be mistaken: bare line feeds, header names in any case, folded lines, a
missing reason. Everything has a bound, and whatever a camera sends, only RemoteFault is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway_adapters.rtsp.failures import RemoteFault, shown

# A reply's status line and headers; its body, which is an SDP of a few hundred bytes.
HEAD_BYTES_MAX = 16_384
BODY_BYTES_MAX = 65_536
HEADERS_MAX = 100
# Frames that came before the reply to PLAY and are kept for the depacketizer, which takes twice as much.
FRAMES_BYTES_MAX = 2**19

_STATUS_LINE = re.compile(r"RTSP/1\.[0-9] +([1-5][0-9][0-9])(?: +(.*))?")
_REQUEST_LINE = re.compile(r"([A-Z_]{1,32}) +(\S+) +RTSP/1\.[0-9]")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LINE_END = re.compile(rb"\r|\n")
# Digits only: int() would also take '+1', '1_0' and digits of other scripts.
_LENGTH = re.compile(r"[0-9]{1,9}")
_USER_AGENT = "Gateway"


@dataclass(frozen=True, slots=True)
class Headers:
    """Header fields in their order; looked up without regard to case."""

    fields: tuple[tuple[str, str], ...] = ()

    def get(self, name: str, default: str = "") -> str:
        """The first of that name."""
        return next((value for known, value in self.fields if known == name.lower()), default)

    def all(self, name: str) -> list[str]:
        """Every one of that name."""
        return [value for known, value in self.fields if known == name.lower()]

    def __contains__(self, name: str) -> bool:
        return any(known == name.lower() for known, _ in self.fields)


@dataclass(frozen=True, slots=True)
class Reply:
    """A camera's answer. cseq: which request it answers; None if it does not say."""

    status: int
    reason: str = ""
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""
    cseq: int | None = None

    @property
    def status_text(self) -> str:
        """Number and reason, fit for a sentence."""
        return f"{self.status} {shown(self.reason)}".rstrip()


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """What a camera asks by itself (RFC 2326, section 10: OPTIONS, GET_PARAMETER, ANNOUNCE, REDIRECT…)."""

    method: str
    url: str
    headers: Headers
    cseq: int | None = None


Message = Reply | ServerRequest


class MessageParser:
    """Cuts what a camera sends during the handshake into messages and keeps the interleaved frames in between.

    Memory is bounded by the limits above. After the reply to PLAY `take_rest` gives all bytes that are not messages:
    whole frames in their order and whatever follows; they belong to the depacketizer.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frames = bytearray()

    def feed(self, data: bytes) -> None:
        """Bytes as they arrived. Call `next` until it gives None."""
        self._buffer += data

    def next(self) -> Message | None:
        """The next whole message; None when more bytes are needed. Raises RemoteFault."""
        buffer = self._buffer
        while self._take_frame():
            if len(self._frames) > FRAMES_BYTES_MAX:
                raise RemoteFault("the camera sends pictures, but does not answer requests")
        if not buffer or buffer.startswith(b"$"):
            return None
        _refuse_early(bytes(buffer[:HEAD_BYTES_MAX]))
        end = _HEAD_END.search(buffer, 0, HEAD_BYTES_MAX)
        if end is None:
            if len(buffer) >= HEAD_BYTES_MAX:
                raise RemoteFault(f"the camera's answer has a head of over {HEAD_BYTES_MAX} bytes")
            return None
        head = bytes(buffer[: end.start()])
        first, headers = _parse_head(head)
        length = _body_length(headers)
        if len(buffer) < end.end() + length:
            return None
        body = bytes(buffer[end.end() : end.end() + length])
        del buffer[: end.end() + length]
        return _message(first, headers, body)

    @property
    def held_bytes(self) -> int:
        """What it keeps of what it was fed."""
        return len(self._buffer) + len(self._frames)

    def take_rest(self) -> bytes:
        """All that is left: frames, and bytes after the last message."""
        rest = bytes(self._frames + self._buffer)
        self._frames.clear()
        self._buffer.clear()
        return rest

    def _take_frame(self) -> bool:
        """Move one whole interleaved frame (section 10.12), or a stray line end, out of the way."""
        buffer = self._buffer
        if buffer.startswith((b"\r", b"\n")):
            del buffer[:1]
            return True
        if not buffer.startswith(b"$") or len(buffer) < 4:
            return False
        end = 4 + int.from_bytes(buffer[2:4], "big")
        if len(buffer) < end:
            return False
        self._frames += buffer[:end]
        del buffer[:end]
        return True


def parse_message(text: bytes) -> Message:
    """One whole message, as it came between frames; what follows its body is ignored. Raises RemoteFault."""
    parser = MessageParser()
    parser.feed(text[: HEAD_BYTES_MAX + BODY_BYTES_MAX])
    message = parser.next()
    if message is None:
        raise RemoteFault("the camera sent half a message between its pictures")
    return message


def request(method: str, url: str, cseq: int, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A request without a body. Values hold no line ends: they come from our own code or from parsed lines."""
    lines = [f"{method} {url} RTSP/1.0", f"CSeq: {cseq}", f"User-Agent: {_USER_AGENT}"]
    lines += [f"{name}: {value}" for name, value in headers]
    assert not any("\r" in line or "\n" in line for line in lines), "a header would begin a line of its own"
    return "\r\n".join([*lines, "", ""]).encode()


def answer(asked: ServerRequest) -> bytes:
    """What the client says to a camera's own request: yes to harmless ones, 501 to others."""
    harmless = asked.method in ("OPTIONS", "GET_PARAMETER", "SET_PARAMETER", "REDIRECT")
    lines = ["RTSP/1.0 200 OK" if harmless else "RTSP/1.0 501 Not Implemented"]
    if asked.cseq is not None:
        lines.append(f"CSeq: {asked.cseq}")
    if asked.method == "OPTIONS":
        lines.append("Public: OPTIONS, GET_PARAMETER, SET_PARAMETER")
    return "\r\n".join([*lines, "", ""]).encode()


def _refuse_early(begins: bytes) -> None:
    """What cannot become RTSP is refused at once instead of waiting for the end of a head that never comes."""
    first = begins[:1]
    if first in (b"\x15", b"\x16"):
        raise RemoteFault('the camera speaks TLS at this port; use rtsps:// (engine = "pyav")')
    if not first.isalpha():
        raise RemoteFault("what listens at this address does not speak RTSP")
    line = _LINE_END.split(begins, maxsplit=1)
    if len(line) > 1 and not _is_rtsp(text := _decoded(line[0]).strip()):
        if text.startswith("HTTP/"):
            raise RemoteFault("what listens at this address speaks HTTP, not RTSP")
        raise RemoteFault(f"what listens at this address begins with {shown(text)!r}, which is no RTSP/1.0")


def _is_rtsp(first: str) -> bool:
    return bool(_STATUS_LINE.fullmatch(first) or _REQUEST_LINE.fullmatch(first))


def _parse_head(head: bytes) -> tuple[str, Headers]:
    """First line and headers. Raises RemoteFault."""
    # Latin-1 gives every byte a character, so that nothing of a camera's odd encoding is lost or refused.
    lines = re.split(r"\r\n|\n|\r", _decoded(head))
    first = lines[0].strip()
    fields: list[tuple[str, str]] = []
    for line in lines[1:]:
        if line[:1] in (" ", "\t") and fields:  # folded: goes on from the line before
            name, value = fields.pop()
            fields.append((name, f"{value} {line.strip()}"))
            continue
        name, colon, value = line.partition(":")
        if colon:  # a line without one is skipped: some cameras put their name there
            fields.append((name.strip().lower(), value.strip()))
    if len(fields) > HEADERS_MAX:
        raise RemoteFault(f"the camera's answer has over {HEADERS_MAX} headers")
    return first, Headers(tuple(fields))


def _decoded(head: bytes) -> str:
    try:
        return head.decode()
    except UnicodeDecodeError:
        return head.decode("latin-1")


def _body_length(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(text) or int(text) > BODY_BYTES_MAX:
        raise RemoteFault(f"the camera's answer has a body of {shown(text)} bytes; {BODY_BYTES_MAX} are the most")
    return int(text)


def _message(first: str, headers: Headers, body: bytes) -> Message:
    number = headers.get("cseq")
    cseq = int(number) if _LENGTH.fullmatch(number) else None
    if status := _STATUS_LINE.fullmatch(first):
        return Reply(int(status[1]), (status[2] or "").strip(), headers, body, cseq)
    if asked := _REQUEST_LINE.fullmatch(first):
        return ServerRequest(asked[1], asked[2], headers, cseq)
    raise RemoteFault(f"the camera's answer begins with {shown(first)!r}, which is no RTSP/1.0")
