"""An RTSP client that knows nothing of the server's code: requests as text, interleaved frames as bytes."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass, field


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class RtspClient:
    """One connection. RTP and RTCP frames that arrive between replies are kept in `frames`: (channel, bytes)."""

    url: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    username: str = ""
    password: str = ""
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    session: str = ""
    _sequence: int = 0
    _challenge: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def connect(cls, url: str, username: str = "", password: str = "") -> RtspClient:
        host, port = url.removeprefix("rtsp://").partition("/")[0].rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        return cls(url, reader, writer, username, password)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def ask(self, method: str, url: str = "", **headers: str) -> Reply:
        """Send one request, answering a digest challenge once, and wait for its reply."""
        reply = await self._ask(method, url or self.url, headers)
        if reply.status == 401 and self.username and "www-authenticate" in reply.headers:
            self._challenge = dict(re.findall(r'(\w+)="([^"]*)"', reply.headers["www-authenticate"]))
            reply = await self._ask(method, url or self.url, headers)
        return reply

    async def setup_and_play(self) -> None:
        """DESCRIBE, SETUP, PLAY."""
        assert (await self.ask("DESCRIBE")).status == 200
        reply = await self.ask("SETUP", f"{self.url}/trackID=0", Transport="RTP/AVP/TCP;unicast;interleaved=0-1")
        assert reply.status == 200, reply
        self.session = reply.headers["session"].partition(";")[0]
        assert (await self.ask("PLAY", Session=self.session)).status == 200

    async def next_frame(self) -> tuple[int, bytes]:
        """The next interleaved frame."""
        if self.frames:
            return self.frames.pop(0)
        head = await self.reader.readexactly(4)
        assert head[:1] == b"$", head
        return head[1], await self.reader.readexactly(int.from_bytes(head[2:], "big"))

    async def _ask(self, method: str, url: str, headers: dict[str, str]) -> Reply:
        self._sequence += 1
        lines = [f"{method} {url} RTSP/1.0", f"CSeq: {self._sequence}", *(f"{k}: {v}" for k, v in headers.items())]
        if self._challenge:
            realm, nonce = self._challenge["realm"], self._challenge["nonce"]
            ha1, ha2 = _md5(f"{self.username}:{realm}:{self.password}"), _md5(f"{method}:{url}")
            lines.append(
                f'Authorization: Digest username="{self.username}", realm="{realm}", nonce="{nonce}", uri="{url}", '
                f'response="{_md5(f"{ha1}:{nonce}:{ha2}")}"'
            )
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        while (first := await self.reader.readexactly(1)) == b"$":
            head = await self.reader.readexactly(3)
            self.frames.append((head[0], await self.reader.readexactly(int.from_bytes(head[1:], "big"))))
        head = first + await self.reader.readuntil(b"\r\n\r\n")
        status_line, *rest = head.decode().rstrip().split("\r\n")
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        assert found["cseq"] == str(self._sequence)
        body = await self.reader.readexactly(int(found.get("content-length", 0)))
        return Reply(int(status_line.split()[1]), found, body)
