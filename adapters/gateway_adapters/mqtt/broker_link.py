"""One connection of the native subscriber to its broker: a client's side of MQTT on asyncio's buffered protocol.

PUBLISH with all that answers it and PINGRESP stay native (`gateway_native.mqtt.Connection`); here are the packets that
need a decision, keep-alive, and the end. Everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from gateway_native import mqtt

from gateway.errors import GatewayError
from gateway_adapters.mqtt import client_protocol
from gateway_adapters.mqtt.client_protocol import Connack, PublishHead
from gateway_adapters.mqtt.protocol import Packet, Reason

Answer = TypeVar("Answer")

# MQTT allows the other side one and a half keep-alive intervals (section 3.1.2.10).
KEEPALIVE_GRACE = 1.5
# A broker that reads nothing for so long while acknowledgements wait for it is gone.
STALLED_S = 60
# How long a broker may take for an answer, while it is being read from.
ANSWER_TIMEOUT_S = 30.0


class LinkEnded(GatewayError):
    """The connection to the broker has ended; the text says why."""


class LinkOwner(Protocol):
    """What a link asks its subscriber."""

    @property
    def native(self) -> mqtt.Group:
        """What the links of one subscriber share."""

    @property
    def paused(self) -> bool:
        """Nothing may be read now."""

    def session(self, *, present: bool) -> mqtt.Session:
        """What was received on earlier connections; nothing if the broker has no session."""

    def not_recorded(self, head: PublishHead, size: int) -> None:
        """A publish of so many bytes is larger than the largest record."""


class BrokerLink(mqtt.Connection, asyncio.BufferedProtocol):
    """From the TCP connection to its end. `ended` fails with LinkEnded; afterwards `closed` comes, at once or when
    what had arrived is in the ring."""

    def __new__(cls, owner: LinkOwner, _version: int, _inflight_max: int, _keepalive_s: int) -> BrokerLink:
        return super().__new__(cls, owner.native)

    def __init__(self, owner: LinkOwner, version: int, inflight_max: int, keepalive_s: int) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.connack: asyncio.Future[Connack] = loop.create_future()
        self.gone = asyncio.Event()  # the socket is closed
        self._owner = owner
        self._asked_version = version
        self._inflight_max = inflight_max
        self._keepalive_s = keepalive_s
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._stalled_at: int | None = None  # tick
        self._reading_since = self._pinged_at = 0  # tick
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._packet_id = 0

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own does not inherit from asyncio's
        self.write = self._transport.write

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self.gone.set()
        cause = (getattr(exc, "strerror", None) or str(exc)) if exc is not None else "the broker closed it"
        self.end(f"the connection broke: {cause}")

    def pause_writing(self) -> None:
        """The broker does not read its acknowledgements: take nothing more from it meanwhile."""
        self._stalled_at = self.group.tick
        self.update_reading()

    def resume_writing(self) -> None:
        self._stalled_at = None
        self.update_reading()

    def update_reading(self) -> None:
        """Read exactly when something can be done with it."""
        if self._transport is None or self._transport.is_closing():
            return
        wanted = not (self.blocked or self._stalled_at is not None or self._owner.paused)
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._reading_since = self.group.tick
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- packets

    def attend(self) -> None:
        """The parser stopped: look at packets, end at a fault, wait when the ring is full."""
        try:
            while (packet := self.take()) is not None:
                if not self.ended.done():
                    self._decide(*packet)
        except mqtt.RemoteFault as fault:
            self.end(f"the broker broke the protocol: {fault.cause}", fault.reason)
            self.close()
        except MemoryError:
            self.end("no memory is left")
        if self.ended.done() and not self.blocked:
            self.close()
        self.update_reading()

    def _decide(self, kind: int, flags: int, body: bytes) -> None:
        if kind == Packet.CONNACK:
            self._connected(client_protocol.decode_connack(body, self._asked_version))
        elif kind == Packet.PUBLISH:
            self._pass_over(client_protocol.decode_publish_head(flags, body), len(body) + self.passed_over)
        elif kind == Packet.SUBACK:
            self._answered(*client_protocol.decode_suback(body, self.version))
        elif kind == Packet.UNSUBACK:
            self._answered(*client_protocol.decode_unsuback(body, self.version))
        elif kind == Packet.DISCONNECT:
            reason = client_protocol.decode_disconnect(body)
            self.end(f"the broker closed it: {client_protocol.reason_text(reason)}")
        else:
            raise mqtt.RemoteFault(Reason.PROTOCOL_ERROR, f"it sent {Packet(kind).name}, which answers nothing of ours")

    def _connected(self, connack: Connack) -> None:
        if connack.reason == 0:
            # What of a resumed session comes right behind is for the parser again.
            session = self._owner.session(present=connack.session_present)
            self.open(version=self._asked_version, inflight_max=self._inflight_max, session=session)
            self._keepalive_s = connack.number("server_keepalive", self._keepalive_s)
            self._reading_since = self._pinged_at = self.group.tick
        if not self.connack.done():
            self.connack.set_result(connack)

    def _pass_over(self, head: PublishHead, size: int) -> None:
        if not head.qos or self.acknowledge(
            head.packet_id, head.qos, dup=head.dup
        ):  # else it was told when it first came
            self._owner.not_recorded(head, size)

    def _answered(self, packet_id: int, codes: bytes) -> None:
        answer = self._answers.pop(packet_id, None)
        if answer is None:
            raise mqtt.RemoteFault(Reason.PROTOCOL_ERROR, "it answered a request that was never made")
        if not answer.done():
            answer.set_result(codes)

    # -- what the subscriber asks for

    async def connect(self, packet: bytes, timeout_s: float) -> Connack:
        """Send CONNECT and return the answer, also a refusal. Raises LinkEnded."""
        self._send(packet)
        return await self._first(self.connack, "CONNECT", timeout_s)

    async def subscribe(self, filters: list[tuple[str, int]]) -> bytes:
        """Ask for filters, in one packet; the broker's codes, FAILURE and above meaning no. Raises LinkEnded."""
        codes = await self._ask(lambda packet_id: client_protocol.subscribe(self.version, packet_id, filters))
        if len(codes) != len(filters):
            self.end(
                "the broker broke the protocol: SUBACK does not have a code for each filter", Reason.PROTOCOL_ERROR
            )
            self.ended.result()
        return codes

    async def unsubscribe(self, filters: list[str]) -> bytes:
        """Give filters back, in one packet. Raises LinkEnded."""
        return await self._ask(lambda packet_id: client_protocol.unsubscribe(self.version, packet_id, filters))

    async def _ask(self, packet: Callable[[int], bytes]) -> bytes:
        self._packet_id = self._packet_id % 65_535 + 1
        answer = self._answers[self._packet_id] = asyncio.get_running_loop().create_future()
        self._send(packet(self._packet_id))
        return await self._first(answer, "a subscription", ANSWER_TIMEOUT_S)

    async def _first(self, answer: asyncio.Future[Answer], what: str, timeout_s: float) -> Answer:
        """The answer, unless the connection ends first. Time in which nothing may be read does not count."""
        while not answer.done():
            since = self._reading_since
            waiting: set[asyncio.Future[Any]] = {answer, self.ended}
            done, _ = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done and self._reading and since == self._reading_since:
                self.end(f"the broker does not answer {what}")
            if self.ended.done() and not answer.done():
                self.ended.result()
        return answer.result()

    def tick(self) -> None:
        """Once a second: keep the connection alive, also while nothing is read, and notice when it is not."""
        now = self.group.tick
        if self.ended.done() or not self.version:
            return
        if self._stalled_at is not None:
            if now - self._stalled_at > STALLED_S:
                self.end("the broker does not read its acknowledgements", at_once=True)
            return
        if not self._keepalive_s:
            return
        silent_s = now - max(self.seen, self._reading_since)
        if self._reading and silent_s > math.ceil(self._keepalive_s * KEEPALIVE_GRACE):
            self.end("the broker does not answer: nothing came within the keep-alive time", at_once=True)
        elif now - self._pinged_at >= self._keepalive_s / 2:
            self._pinged_at = now
            self._send(client_protocol.PINGREQ)

    # -- the end

    def end(self, cause: str, reason: int | None = None, *, at_once: bool = False) -> None:
        """Say no more, hear no more. The first cause counts. What has arrived and waits for room is still recorded.

        reason: of the DISCONNECT that the broker gets. at_once: whatever is still on its way to it.
        """
        if not self.ended.done():
            self.ended.set_exception(LinkEnded(cause))
            self.ended.exception()  # looked at, so that nobody complains that it never was
            if reason is not None and self.version and self.write is not None:
                self._send(client_protocol.disconnect(self.version, reason))
        self.write = None
        if self._transport is not None:
            if at_once:
                self._transport.abort()
            elif not self._transport.is_closing():
                self._transport.close()
        if not self.blocked:
            self.close()

    def abandon(self) -> None:
        """Close it, whatever has arrived."""
        self.end("it was given up", at_once=True)
        self.close()

    def _send(self, packet: bytes) -> None:
        if packet and self.write is not None:
            self.write(packet)
