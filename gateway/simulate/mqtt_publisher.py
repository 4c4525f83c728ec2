"""A small MQTT 3.1.1 publisher for simulated sensors: QoS 0 and 1, batches, back-pressure, reconnecting.

It is fast because it is told many messages at once and writes them at once, and because it knows only what a sensor
needs. Source of the packets: MQTT 3.1.1, chapters 2 and 3.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Sequence
from typing import cast

from gateway.errors import SourceError

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 60
RECONNECT_MIN_S = 0.2
RECONNECT_MAX_S = 10.0
# Unacknowledged publishes at once; MQTT allows 65,535.
WINDOW_MAX = 65_535

PUBACK_BYTES = 4
_CONNACK = 0x20
_PUBACK = 0x40
_PINGRESP = 0xD0
_REFUSALS = {
    1: "it does not speak MQTT 3.1.1",
    2: "it does not accept the client id",
    3: "it is unavailable or full",
    4: "user name or password are wrong",
    5: "the user may not connect",
}


def encode_length(length: int) -> bytes:
    """The remaining length of a packet: base 128, least significant first, at most four bytes."""
    out = bytearray()
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def encode_text(text: str) -> bytes:
    """A string as MQTT has it: its length in two bytes, then UTF-8."""
    encoded = text.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def encode_connect(client_id: str, username: str | None, password: str | None) -> bytes:
    """CONNECT with a clean session."""
    flags = 0x02 | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    body = encode_text("MQTT") + bytes((4, flags)) + KEEPALIVE_S.to_bytes(2, "big") + encode_text(client_id)
    for credential in (username, password):
        body += encode_text(credential) if credential is not None else b""
    return b"\x10" + encode_length(len(body)) + body


def encode_publish(topic: bytes, payload: bytes, packet_id: int = 0) -> bytes:
    """PUBLISH; topic with its length before it (`encode_text`). A packet id makes it QoS 1."""
    if packet_id:
        length = len(topic) + 2 + len(payload)
        return b"\x32" + encode_length(length) + topic + packet_id.to_bytes(2, "big") + payload
    length = len(topic) + len(payload)
    if length < 0x80:
        return b"\x30%c%b%b" % (length, topic, payload)
    return b"\x30" + encode_length(length) + topic + payload


class Publisher:
    """One client. `run` keeps it connected; `publish` sends a batch and waits as long as the other side is slow.

    With QoS 1, what was not acknowledged when a connection broke is sent again on the next, marked as a duplicate.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        *,
        qos: int = 0,
        window: int = 1_000,
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        if qos not in (0, 1) or not 1 <= window <= WINDOW_MAX:
            raise ValueError(f"QoS {qos} with a window of {window}; QoS is 0 or 1, the window 1 to {WINDOW_MAX}")
        self.published = 0  # messages, each counted once
        self.acknowledged = 0
        self.resent = 0
        self.bytes = 0
        self.reconnects = 0
        self._host, self._port = host, port
        self._connect = encode_connect(client_id, username, password)
        self._qos = qos
        self._window = window
        self._unacknowledged: deque[tuple[int, bytes]] = deque()  # packet id, packet
        self._packet_id = 0
        self._link: _Link | None = None
        self._ready = asyncio.Event()  # connected, and the other side takes more
        self._window_open = asyncio.Event()
        self._window_open.set()

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    async def open(self) -> None:
        """Connect once. Raises SourceError when nobody listens there or the client is refused."""
        where = f"{self._host}:{self._port}"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, link = await loop.create_connection(lambda: _Link(self, self._connect), self._host, self._port)
                code = await link.connack
        except TimeoutError:
            raise SourceError(f"{where} does not answer within {CONNECT_TIMEOUT_S:g} s.") from None
        except OSError as error:
            raise SourceError(
                f"There is no MQTT server at {where} ({error.strerror or error}). Is the gateway running?"
            ) from error
        if code:
            link.transport.close()
            raise SourceError(f"{where} refuses the connection: {_REFUSALS.get(code, f'return code {code}')}.")
        self._link = link
        self._ready.set()
        for _, packet in self._unacknowledged:
            link.transport.write(bytes((packet[0] | 0x08,)) + packet[1:])  # marked as a duplicate
            self.resent += 1

    async def run(self) -> None:
        """Stay connected until cancelled."""
        wait_s = RECONNECT_MIN_S
        while True:
            if self._link is not None:
                done, _ = await asyncio.wait([self._link.lost], timeout=KEEPALIVE_S / 2)
                if not done and self._link is not None:
                    self._link.transport.write(b"\xc0\x00")  # PINGREQ
                continue
            try:
                await self.open()
                self.reconnects += 1
                wait_s = RECONNECT_MIN_S
            except SourceError:
                wait_s = min(wait_s * 2, RECONNECT_MAX_S)
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))

    async def publish(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Send (topic with its length, payload) pairs. Returns when they were given to the connection.

        With QoS 1, waits while the window is full.
        """
        if self._qos == 0:
            await self._ready.wait()
            self._write(b"".join([encode_publish(topic, payload) for topic, payload in messages]), len(messages))
            return
        at = 0
        while at < len(messages):
            await self._ready.wait()
            await self._window_open.wait()
            part = messages[at : at + self._window - len(self._unacknowledged)]
            ids = [self._next_id() for _ in part]
            packets = [
                encode_publish(topic, payload, packet_id) for (topic, payload), packet_id in zip(part, ids, strict=True)
            ]
            self._unacknowledged.extend(zip(ids, packets, strict=True))
            if len(self._unacknowledged) >= self._window:
                self._window_open.clear()
            self._write(b"".join(packets), len(packets))
            at += len(packets)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Wait for the acknowledgements that are due, then disconnect."""
        if self._link is None:
            return
        if self._qos:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_acknowledged(), timeout_s)
        if self._link is not None:
            self._link.transport.write(b"\xe0\x00")  # DISCONNECT
            lost = self._link.lost
            self._link.transport.close()
            await asyncio.wait([lost], timeout=timeout_s)

    async def _all_acknowledged(self) -> None:
        while self._unacknowledged and self._link is not None:
            self._window_open.clear()
            await self._window_open.wait()

    def _next_id(self) -> int:
        self._packet_id = self._packet_id % 65_535 + 1
        return self._packet_id

    def _write(self, data: bytes, messages: int) -> None:
        self.published += messages
        self.bytes += len(data)
        if self._link is not None:
            self._link.transport.write(data)

    # -- the link's calls

    def on_writable(self, writable: bool) -> None:
        if writable:
            self._ready.set()
        else:
            self._ready.clear()

    def on_acks(self, packet_ids: Sequence[int]) -> None:
        for packet_id in packet_ids:
            if self._unacknowledged and self._unacknowledged[0][0] == packet_id:
                self._unacknowledged.popleft()
                self.acknowledged += 1
        if len(self._unacknowledged) < self._window:
            self._window_open.set()

    def on_lost(self, link: _Link) -> None:
        if self._link is link:
            self._link = None
            self._ready.clear()
            self._window_open.set()


class _Link(asyncio.Protocol):
    """One TCP connection of a Publisher."""

    def __init__(self, publisher: Publisher, connect: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.connack: asyncio.Future[int] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport
        self._publisher = publisher
        self._connect = connect
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._connect)

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        if len(data) % PUBACK_BYTES == 0 and data[::PUBACK_BYTES] == b"\x40" * (len(data) // PUBACK_BYTES):
            self._received = b""  # nothing but PUBACKs, as nearly always
            self._publisher.on_acks([high << 8 | low for high, low in zip(data[2::4], data[3::4], strict=True)])
            return
        at = 0
        acks = []
        while len(data) - at >= 2 and len(data) - at >= 2 + data[at + 1]:
            kind, length = data[at], data[at + 1]
            if kind == _PUBACK:
                acks.append(data[at + 2] << 8 | data[at + 3])
            elif kind == _CONNACK and not self.connack.done():
                self.connack.set_result(data[at + 3])
            elif kind != _PINGRESP:
                self.transport.abort()  # a server that sends anything else to a publisher is none
                return
            at += 2 + length
        self._received = data[at:]
        self._publisher.on_acks(acks)

    def pause_writing(self) -> None:
        self._publisher.on_writable(False)

    def resume_writing(self) -> None:
        self._publisher.on_writable(True)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.connack.done():
            self.connack.set_exception(exc or ConnectionResetError("closed before CONNACK"))
            self.connack.exception()  # may have been asked for by nobody
        if not self.lost.done():
            self.lost.set_result(None)
        self._publisher.on_lost(self)
