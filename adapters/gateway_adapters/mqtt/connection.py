"""One device's TCP connection on the event loop: a link between the parser and what is decided about the device.

Bytes stay native (`gateway_native.mqtt.Connection`), decisions are `device.Device`'s; here is how a socket is read,
written, and closed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from gateway_native import mqtt

from gateway_adapters.mqtt.device import Device

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
        self._stalled_at: int | None = None  # tick
        self._ended_at: int | None = None  # tick
        self.peer = "?"
        self.patience = listener.connect_timeout_s
        self.device = Device(listener, self)

    def __new__(cls, listener: MqttListener) -> SocketLink:
        return super().__new__(cls, listener.native)

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own does not inherit from asyncio's
        self.peer = address_of(transport.get_extra_info("peername"))
        if self._listener.admit(self):
            self.write = self._transport.write
        else:
            super().close()
            self._transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self.write = None
        self._transport = None
        # Packets that had arrived when the ring was full are still to be recorded.
        if not self.blocked or self._parked:
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
        wanted = self.closed or not (self.blocked or self._stalled_at is not None or self._listener.paused)
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
            self._listener.unrouted_topic = self.group.unrouted_topic
            self.device.fault(fault)
        if self.blocked and not self._parked:
            self._listener.wait_for_room(self)
        elif self._transport is None and not self.closed:
            self._gone()
        self.update_reading()

    # -- what the device decides

    @property
    def tick(self) -> int:
        return self.group.tick

    def send(self, data: bytes) -> None:
        if data and self.write is not None:
            self.write(data)

    def accept(self, *, version: int, inflight_max: int, patience_s: int) -> None:
        self.patience = patience_s
        self.open(version=version, inflight_max=inflight_max)

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
        elif self.overdue:
            self.device.overdue()
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


def address_of(peername: Any) -> str:
    """host:port, with brackets around IPv6."""
    if not isinstance(peername, tuple) or len(peername) < 2:
        return str(peername)
    host, port = peername[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
