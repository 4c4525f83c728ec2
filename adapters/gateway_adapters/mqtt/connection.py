"""One device's TCP connection on the event loop: a link between the parser and what is decided about the device.

Bytes stay native (`gateway_native.mqtt.Connection`), decisions are `device.Device`'s; here is how a socket is read,
written, and closed.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

from gateway_native import mqtt

from gateway.clock import NS_PER_S
from gateway_adapters.mqtt.device import Device
from gateway_adapters.mqtt.protocol import Reason

if TYPE_CHECKING:
    from gateway_adapters.mqtt.listener import MqttListener

# Of all connections: after our last word, how long a peer may take to close its end.
LINGER_S = 2
# A peer that reads nothing for so long while acknowledgements wait for it is gone.
STALLED_S = 60


class SocketLink(mqtt.Connection, asyncio.BufferedProtocol):
    """The protocol object of one TCP connection. Everything runs on the event loop. See `device.Link`."""

    def __init__(self, listener: MqttListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._parked = False
        self._resting: asyncio.TimerHandle | None = None
        self._stalled_at: int | None = None  # tick
        self._ended_at: int | None = None  # tick
        self.peer = "?"
        self.host = ""
        self.patience = listener.connect_timeout_s
        self.device = Device(listener, self)

    def __new__(cls, listener: MqttListener) -> SocketLink:
        return super().__new__(cls, listener.native)

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own does not inherit from asyncio's
        self.peer = address_of(transport.get_extra_info("peername"))
        self.host = host_of(transport.get_extra_info("peername"))
        if self._listener.admit(self):
            self.write = self._transport.write
            self.update_reading()
        else:
            super().close()
            self._transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self.write = None
        self._transport = None
        # Packets that had arrived when the ring was full are still to be recorded.
        if not (self.blocked or self.limited) or self._parked:
            self._gone()

    def pause_writing(self) -> None:
        """The peer does not read its acknowledgements: take nothing more from it meanwhile."""
        self._stalled_at = self._listener.native.tick
        self.update_reading()

    def resume_writing(self) -> None:
        self._stalled_at = None
        self.update_reading()

    def update_reading(self) -> None:
        """Read exactly when something can be done with it; after the end only to see the peer's."""
        if self._transport is None or self._transport.is_closing():
            return
        waits = self.blocked or self.limited or self._stalled_at is not None
        waits = waits or self._listener.paused or self._listener.held
        wanted = self.closed or not waits
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # -- packets

    def attend(self) -> None:
        """The parser stopped: ask the device about packets and faults, wait when the ring is full."""
        try:
            while (packet := self.take()) is not None:
                kind, flags, body = packet
                if not self.device.packet(kind << 4 | flags, body):
                    self.park()
                    self._parked = True
                    break
        except mqtt.RemoteFault as fault:
            self.device.fault(fault, self._topic_of(fault))
        if self.blocked and not self._parked:
            self._listener.wait_for_room(self)
        elif self.limited:
            self._rest()
        elif self._transport is None and not self.closed:
            self._gone()
        self.update_reading()

    def _topic_of(self, fault: mqtt.RemoteFault) -> bytes:
        """What is at fault, where that is a publish's topic."""
        if fault.reason == Reason.TOPIC_NAME_INVALID:
            return self.group.unrouted_topic
        return self.group.forbidden_topic if fault.reason == Reason.NOT_AUTHORIZED and self.version else b""

    def _rest(self) -> None:
        """It has published as fast as it may: nothing is read until it may again, so that TCP holds it back."""
        rest_s = (self.resume_ns - time.monotonic_ns()) / NS_PER_S
        self._resting = asyncio.get_running_loop().call_later(max(0.0, rest_s), self._rested)

    def _rested(self) -> None:
        self._resting = None
        self.retry()
        self.update_reading()

    # -- what the device decides

    @property
    def ssl_object(self) -> object | None:
        return None if self._transport is None else self._transport.get_extra_info("ssl_object")

    @property
    def tick(self) -> int:
        return self.group.tick

    def send(self, data: bytes) -> None:
        if data and self.write is not None:
            self.write(data)

    def accept(
        self, *, version: int, inflight_max: int, patience_s: int, session: mqtt.Session, topic_alias_max: int
    ) -> None:
        self.patience = patience_s
        self.open(
            version=version,
            inflight_max=inflight_max,
            session=session,
            topic_alias_max=topic_alias_max,
            allow=self.device.allow,
            client_header=self._listener.config.client_header,
            rate_messages=self._listener.config.messages_per_second,
        )

    def resume(self) -> None:
        if self._parked:
            self._parked = False
            self.retry()
            self.update_reading()

    def end(self, last: bytes = b"") -> None:
        """Say no more, hear no more. The peer is given time to read our last word before the socket goes."""
        if self.closed:
            return
        self.send(last)
        self._parked = False
        self._listener.count("unanswered", self.close())
        self._ended_at = self.group.tick
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._transport is None:
            self._listener.remove(self)
        elif not self._transport.is_closing():
            if self._transport.can_write_eof():
                # Closing now, with bytes of the peer unread, would reset the connection and destroy that last word.
                self._transport.write_eof()
                self.update_reading()
            else:
                self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is still on its way."""
        if self._transport is not None:
            self._transport.abort()

    def detaching(self) -> None:
        return None

    # -- what the listener asks for

    def fail(self) -> None:
        """What this client waits for will never be acknowledged: the stream has failed, or the disk is full."""
        self.device.failed(refused=self.refused)

    def look_after(self) -> None:
        """Once a second: time-outs."""
        tick = self.group.tick
        if self._ended_at is not None:
            if tick - self._ended_at > LINGER_S:
                self.abort()
        elif self.overdue and not self._listener.held:
            self.device.overdue()
        elif self.partial_ticks > self._listener.packet_timeout_s:
            self.device.dawdled()
        elif self._stalled_at is not None and tick - self._stalled_at > STALLED_S:
            self.device.stalled()
            self.abort()
        else:
            self.trim()

    def _gone(self) -> None:
        """The socket is lost, and all that it brought has been looked at."""
        if not self.closed:
            self.device.gone()
        self._listener.remove(self)


def host_of(peername: Any) -> str:
    """The address alone; empty for a Unix socket."""
    return str(peername[0]) if isinstance(peername, tuple) and peername else ""


def address_of(peername: Any) -> str:
    """host:port, with brackets around IPv6."""
    if not isinstance(peername, tuple) or len(peername) < 2:
        return "a Unix socket"
    host, port = peername[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
