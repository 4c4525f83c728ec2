"""A camera that answers the handshake and then does what a test tells it to: play, freeze, talk, break the protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.support.rtp_packets import FRAME, Packet, packets

SETS = (bytes.fromhex("6742c01eda0280bfe5c044000003000400000300c83c58b920"), bytes.fromhex("68ce3c80"))
_SDP = "v=0\r\ns=cam\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:t\r\n"

Script = Callable[["Player"], Awaitable[None]]


class Player:
    """What a script has in hand: one connection that has been told to play."""

    def __init__(self, camera: ScriptedCamera, writer: asyncio.StreamWriter) -> None:
        self._camera = camera
        self._writer = writer

    def send(self, data: bytes) -> None:
        """Anything at all."""
        if not self._writer.is_closing():
            self._writer.write(data)

    def play(self, units: int = 1) -> None:
        """Access units of three packets each, all of them key frames."""
        for each in self.made(units):
            self.send(each.frame())

    def made(self, units: int) -> list[Packet]:
        """The packets of the next access units."""
        first = self._camera.units
        self._camera.units += units
        payloads = [[*SETS, b"\x65picture %d" % number] for number in range(first, first + units)]
        return packets(payloads, sequence=3 * first, timestamp=first * FRAME)


class ScriptedCamera:
    """`asked` are the methods of all requests, `replies` what was answered to requests of a script's own."""

    def __init__(self, script: Script, *, timeout_s: int = 60) -> None:
        self._script = script
        self._timeout_s = timeout_s
        self.units = 0
        self.keepalive_status = "200 OK"
        self.asked: list[str] = []
        self.replies: list[str] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        playing: asyncio.Task[None] | None = None
        try:
            while True:
                text = await self._message(reader)
                if text.startswith("RTSP/"):
                    self.replies.append(text)
                    continue
                method = text.partition(" ")[0]
                self.asked.append(method)
                writer.write(self._reply(method, text))
                if method == "PLAY":
                    playing = asyncio.create_task(self._run(writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if playing is not None:
                playing.cancel()
            writer.close()

    async def _message(self, reader: asyncio.StreamReader) -> str:
        """The next text; receiver reports are passed over."""
        while (first := await reader.readexactly(1)) == b"$":
            head = await reader.readexactly(3)
            await reader.readexactly(int.from_bytes(head[1:], "big"))
        return (first + await reader.readuntil(b"\r\n\r\n")).decode()

    def _reply(self, method: str, text: str) -> bytes:
        cseq = re.search(r"CSeq: (\d+)", text)
        assert cseq is not None
        body = _SDP if method == "DESCRIBE" else ""
        keeps_alive = method == "GET_PARAMETER"
        lines = [f"RTSP/1.0 {self.keepalive_status if keeps_alive else '200 OK'}", f"CSeq: {cseq[1]}"]
        if method == "SETUP":
            lines += [f"Session: 1;timeout={self._timeout_s}", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"]
        lines += [f"Content-Length: {len(body)}"] if body else []
        return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()

    async def _run(self, writer: asyncio.StreamWriter) -> None:
        await self._script(Player(self, writer))
        writer.close()


@asynccontextmanager
async def scripted(script: Script, *, timeout_s: int = 60) -> AsyncIterator[ScriptedCamera]:
    """A camera whose every connection runs the script once it plays, and closes when the script ends."""
    camera = ScriptedCamera(script, timeout_s=timeout_s)
    server = await asyncio.start_server(camera.serve, "127.0.0.1", 0)
    camera.url = f"rtsp://127.0.0.1:{server.sockets[0].getsockname()[1]}/cam"
    try:
        yield camera
    finally:
        server.close()
