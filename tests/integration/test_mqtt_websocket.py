"""MQTT over WebSocket by hand: frames need not be packets, and what is no MQTT over WebSocket is refused politely."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gateway_adapters.mqtt import websocket
from gateway_adapters.mqtt.listener import _protocol_factory, create
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from gateway.errors import SourceError
from tests.support.gateway import Running, on_uvloop, running, until
from tests.support.mqtt import PINGREQ, PINGRESP, connect, publish

OP_BINARY, OP_CONT, OP_TEXT = Opcode.BINARY, Opcode.CONT, Opcode.TEXT
ROUTES = [{"filter": "plant/#", "stream": "telemetry"}]
CONNACK = b"\x20\x02\x00\x00"


def listening(tmp_path: Path, **settings: Any) -> Any:
    wanted = {"bind": "127.0.0.1:0", "routes": ROUTES, "transport": "websocket", **settings}
    return running(tmp_path / "data", create, "listeners", wanted)


class Browser:
    """A WebSocket client of another implementation's protocol class: `websockets`, in the client's role."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: ClientProtocol) -> None:
        self._reader, self._writer, self._protocol = reader, writer, protocol
        self.received = b""
        self.response: Response | None = None
        self.closed: Close | None = None

    async def frames(self, *frames: tuple[int, bytes, bool]) -> None:
        """Send frames as (opcode, data, fin), in one write."""
        self._flush(b"".join(Frame(op, data, fin).serialize(mask=True) for op, data, fin in frames))
        await self._writer.drain()

    async def send(self, data: bytes) -> None:
        await self.frames((OP_BINARY, data, True))

    async def read(self, count: int) -> bytes:
        """So many bytes of MQTT, or less when the connection ended."""
        while len(self.received) < count and await self.step():
            pass
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    async def step(self) -> bool:
        """Read once. False: the other side has closed."""
        data = await self._reader.read(65_536)
        self._protocol.receive_data(data) if data else self._protocol.receive_eof()
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self.response = event
            elif event.opcode in (OP_BINARY, OP_CONT):
                self.received += event.data
        self.closed = self._protocol.close_rcvd
        return bool(data)

    def shake_hands(self) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._flush(b"")

    def _flush(self, data: bytes) -> None:
        self._writer.write(b"".join(self._protocol.data_to_send()) + data)


@contextlib.asynccontextmanager
async def browser(gateway: Running, subprotocols: Any = ("mqtt",), **options: Any) -> AsyncIterator[Browser]:
    """A connection whose handshake was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    uri = parse_uri(f"ws://127.0.0.1:{gateway.port}/any/path")
    found = Browser(reader, writer, ClientProtocol(uri, subprotocols=list(subprotocols) or None, **options))
    try:
        found.shake_hands()
        while found.response is None and await found.step():
            pass
        yield found
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@on_uvloop
async def test_frames_are_no_packets(tmp_path):
    """Packets split over frames, several in one, fragmented messages, empty frames: only the bytes count."""
    async with listening(tmp_path) as gateway, browser(gateway) as client:
        stream = connect(4, "c") + publish("plant/a", b"1") + publish("plant/a", b"2", qos=1, packet_id=7) + PINGREQ
        parts = [(OP_BINARY, stream[at : at + 1], True) for at in range(30)]
        parts += [(OP_BINARY, b"", True), (OP_BINARY, stream[30:40], False), (OP_CONT, stream[40:], True)]
        await client.frames(*parts)
        assert await client.read(4) == CONNACK
        answers = await client.read(6)
        assert answers in (b"\x40\x02\x00\x07" + PINGRESP, PINGRESP + b"\x40\x02\x00\x07"), "in either order"
        assert [value for _, value in await gateway.contents()] == [b"1", b"2"]


def test_library_is_missing(tmp_path, monkeypatch):
    """Without the extra a sentence says what to install."""
    monkeypatch.delitem(sys.modules, "gateway_adapters.mqtt.websocket")
    monkeypatch.setitem(sys.modules, "websockets.exceptions", None)
    listener = types.SimpleNamespace(config=types.SimpleNamespace(transport="websocket"), name="devices")
    with pytest.raises(SourceError, match=r"devices: .*pip install gateway\[websocket\]"):
        _protocol_factory(listener)


@on_uvloop
async def test_large_packets(tmp_path):
    """A packet larger than any buffer arrives whole; what the client sends is masked, and frames are large, too."""
    payload = bytes(range(256)) * 8_192  # 2 MiB
    async with listening(tmp_path) as gateway, browser(gateway) as client:
        await client.send(connect(4, "c"))
        assert await client.read(4) == CONNACK
        await client.send(publish("plant/a", payload, qos=1, packet_id=1))
        assert await client.read(4) == b"\x40\x02\x00\x01"
        assert await gateway.contents() == [(b"plant/a", payload)]


@pytest.mark.parametrize(
    ("subprotocols", "origin", "status"),
    [
        (("mqtt",), None, 101),
        (("mqtt",), "https://panel.local", 101),
        (("mqtt",), "https://elsewhere.local", 403),
        ((), None, 400),
        (("mqttv3.1",), None, 400),
    ],
)
@on_uvloop
async def test_handshake(tmp_path, subprotocols, origin, status):
    """Subprotocol `mqtt` is needed; a browser's page must be one that is named."""
    async with listening(tmp_path, websocket_origins=["https://panel.local"]) as gateway:
        async with browser(gateway, subprotocols, **({"origin": origin} if origin else {})) as client:
            assert client.response is not None
            assert client.response.status_code == status
            if status != 101:
                await client.read(1)
        await until(lambda: not gateway.source._connections, "it is gone")
        assert gateway.source.statistics()["faults"] == (status != 101)
        assert len(gateway.events.named("handshake was refused")) == (status != 101)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([(OP_TEXT, b"hello", True)], 1003),
        ([(OP_CONT, b"x", True)], 1002),
        ([(OP_BINARY, b"x" * 2_000, True)], 1009),
        ([(OP_BINARY, b"x" * 900, False), (OP_CONT, b"x" * 900, True)], 1009),
        ([(0x3, b"x", True)], 1002),
    ],
)
@on_uvloop
async def test_frames_that_are_refused(tmp_path, frames, code):
    """Text, broken framing and too much: a close frame with the right code, one line in the log, others unaffected."""
    async with listening(tmp_path, max_packet="1KiB") as gateway, browser(gateway) as calm, browser(gateway) as client:
        await calm.send(connect(4, "calm"))
        assert await calm.read(4) == CONNACK
        await client.send(connect(4, "c"))
        assert await client.read(4) == CONNACK
        bad = b"".join(
            bytes([(0x80 if fin else 0) | op]) + Frame(OP_BINARY, data, fin).serialize(mask=True)[1:]
            for op, data, fin in frames
        )
        client._writer.write(bad)
        while await client.step():
            pass
        assert client.closed is not None
        assert client.closed.code == code
        assert len(gateway.events.named("connection closed")) == 1
        await calm.send(PINGREQ)
        assert await calm.read(2) == PINGRESP


@on_uvloop
async def test_garbage_instead_of_a_handshake(tmp_path):
    """Plain MQTT, or anything else, ends the connection with one line."""
    async with listening(tmp_path) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(connect(4, "c") + b"\r\n\r\n")
        await reader.read()
        writer.close()
        await until(lambda: not gateway.source._connections, "it is gone")
        assert gateway.source.statistics()["faults"] == 1


@on_uvloop
async def test_frames_of_all_that_have_only_partly_arrived(tmp_path, monkeypatch):
    """Together they take no more than a bound: who goes beyond is closed, and what it held is given back."""
    async with listening(tmp_path, max_packet="64KiB") as gateway:
        budget = _budget(gateway)
        monkeypatch.setattr(budget, "bytes_max", 100_000)
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(browser(gateway)) for _ in range(3)]
            whole = Frame(OP_BINARY, b"x" * 60_000).serialize(mask=True)
            for client in clients:
                client._writer.write(whole[:45_000])
            await until(lambda: gateway.source.statistics()["faults"] == 1, "one is closed")
            assert budget.bytes <= 100_000
        await until(lambda: not gateway.source._connections, "all are gone")
        assert budget.bytes == 0


def _budget(gateway: Running) -> websocket.Budget:
    protocol = gateway.source.protocol()
    assert isinstance(protocol, websocket.WebSocketProtocol)
    return protocol._budget


@on_uvloop
async def test_full_ring(tmp_path):
    """While the ring is full nothing more is taken from the frames that came; afterwards nothing is missing."""
    settings = {"bind": "127.0.0.1:0", "routes": ROUTES, "transport": "websocket"}
    small = {"ring": "1MiB", "largest_record": "64KiB"}
    arguments: dict[str, Any] = {"engine_starts": False, "limits": small}
    async with running(tmp_path / "data", create, "listeners", settings, **arguments) as gateway:
        async with browser(gateway) as client:
            await client.send(connect(4, "c"))
            assert await client.read(4) == CONNACK
            many = [publish("plant/a", b"%06d" % number + b"." * 1_000) for number in range(4_000)]

            async def flood() -> None:
                for at in range(0, len(many), 40):
                    await client.send(b"".join(many[at : at + 40]))
                await client.send(PINGREQ)

            flooding = asyncio.create_task(flood())
            await until(lambda: gateway.source.statistics()["waiting_for_room"] == 1, "it waits")
            gateway.engine.start()
            await flooding
            assert await client.read(2) == PINGRESP
        numbers = [int((value or b"")[:6]) for _, value in await gateway.contents()]
        assert numbers == list(range(4_000))
