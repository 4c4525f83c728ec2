"""Plain sockets of all listeners on one native thread, and what the event loop has to say to it.

The thread (`gateway_native.intake`) moves bytes whatever Python is busy with; here its events become calls of `Device`,
and a device's decisions become commands on a handle.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from gateway_native import intake as native
from gateway_native import mqtt
from gateway_native.mqtt import RemoteFault

from gateway_adapters.mqtt.device import Device
from gateway_adapters.mqtt.protocol import Reason

if TYPE_CHECKING:
    from gateway_adapters.mqtt.listener import MqttListener

# Events handled before the event loop's other work has its turn.
EVENTS_AT_ONCE = 256
# Two looks at whether the thread has done what it was told.
SETTLE_STEP_S = 0.002
# The thread takes a command within one turn; nothing that it does can block.
CLOSE_TIMEOUT_S = 30.0


class IntakeLink:
    """One device's socket on the intake thread. Everything here runs on the event loop. See `device.Link`."""

    def __init__(self, port: IntakePort, handle: int, peer: str) -> None:
        self._port = port
        self._handle = handle
        self._parked = False
        self._ended = False
        self._detached: asyncio.Future[None] | None = None
        self.peer = peer
        self.host = peer.rpartition(":")[0].strip("[]")  # empty for a Unix socket
        self.device = Device(port.listener, self)

    # -- what the device decides

    @property
    def tick(self) -> int:
        return self._port.listener.native.tick

    @property
    def ssl_object(self) -> None:
        return None  # TLS is the event loop's

    def send(self, data: bytes) -> None:
        if data and not self._ended:
            self._port.native.send(self._handle, data)

    def accept(
        self, *, version: int, inflight_max: int, patience_s: int, session: mqtt.Session, topic_alias_max: int
    ) -> None:
        self._port.open(
            self._handle,
            version=version,
            inflight_max=inflight_max,
            patience_s=patience_s,
            session=session,
            topic_alias_max=topic_alias_max,
            allow=self.device.allow,
        )

    def resume(self) -> None:
        if self._parked:
            self._parked = False
            self._port.native.resume(self._handle)

    def end(self, last: bytes = b"") -> None:
        if not self._ended:
            self._ended, self._parked = True, False
            self._detached = asyncio.get_running_loop().create_future()
            self._port.native.end(self._handle, last)

    def abort(self) -> None:
        self._port.native.abort(self._handle)

    def detaching(self) -> asyncio.Future[None] | None:
        return self._detached

    # -- what the thread tells

    def event(self, kind: int, number: int, data: bytes) -> None:
        """Something happened on this connection."""
        if kind == native.CLOSED:
            self._let_go()
            self._closed(number)
        elif kind == native.DETACHED:
            self._let_go()
        elif self._ended:
            return  # it crossed with our last word
        elif kind == native.PACKET:
            self._packet(number, data)
        elif kind == native.FAULT:
            reason, cause = native.fault_text(number)
            of_topic = reason in (Reason.TOPIC_NAME_INVALID, Reason.NOT_AUTHORIZED)
            self.device.fault(RemoteFault(reason, cause), data if of_topic else b"")
        elif kind == native.STREAM:
            self._port.add_stream(self._handle, data)
        elif kind == native.FAILED:
            self.device.failed(refused=bool(number))
        else:
            self._timed_out(kind)

    def _timed_out(self, kind: int) -> None:
        if kind == native.OVERDUE:
            self.device.overdue()
        elif kind == native.DAWDLED:
            self.device.dawdled()
        elif kind == native.STALLED:
            self.device.stalled()
            self.abort()

    def _packet(self, first_byte: int, body: bytes) -> None:
        self._parked = True
        try:
            if self.device.packet(first_byte, body):
                self.resume()
        except RemoteFault as fault:
            self.device.fault(fault)

    def _let_go(self) -> None:
        """The thread touches the session no more."""
        if self._detached is not None:
            self._detached.set_result(None)
            self._detached = None

    def _closed(self, unanswered: int) -> None:
        self._ended = True
        self._port.listener.count("unanswered", unanswered)
        self.device.gone()


class IntakePort:
    """One listener's sockets on the thread."""

    def __init__(self, thread: IntakeThread, listener: MqttListener, sockets: list[socket.socket]) -> None:
        self.listener = listener
        self.native = thread.native
        self._thread = thread
        self._sockets = sockets
        self._links: dict[int, IntakeLink] = {}
        self._number = self.native.add_listener(
            [each.fileno() for each in sockets],
            listener.native,
            sockets_max=listener.sockets_max,
            patience_s=listener.connect_timeout_s,
            packet_patience_s=listener.packet_timeout_s,
        )
        thread.ports[self._number] = self

    @property
    def sockets(self) -> list[socket.socket]:
        """That it listens on."""
        return self._sockets

    @property
    def counters(self) -> dict[str, int]:
        """As `mqtt.Group.counters`, and sockets and those waiting; as of the thread's last turn."""
        return self.native.counters(self._number)

    def open(
        self,
        handle: int,
        *,
        version: int,
        inflight_max: int,
        patience_s: int,
        session: mqtt.Session,
        topic_alias_max: int,
        allow: mqtt.Routes | None,
    ) -> None:
        """A connection's CONNECT is accepted."""
        self.native.open(
            self._number,
            handle,
            version=version,
            inflight_max=inflight_max,
            patience_s=patience_s,
            session=session,
            topic_alias_max=topic_alias_max,
            allow=allow,
            client_header=self.listener.config.client_header,
            rate_messages=self.listener.config.messages_per_second,
        )

    def add_stream(self, handle: int, name: bytes) -> None:
        """A connection waits for a stream that a route's template named."""
        resolve = self.listener.native.resolve
        assert resolve is not None, "routes with templates need Group.resolve"
        self.native.add_stream(self._number, handle, name, resolve(name))

    def record(self, partition: int, key: bytes, value: bytes, headers: bytes) -> None:
        """A record of the listener's own, before those of connections that wait; `listener.recorded` follows."""
        self.native.record(self._number, partition, key, value, headers, time.time_ns())

    def hold(self) -> None:
        """Accept no more, read no more, until `release`; connections stay."""
        self.native.pause(self._number)

    def release(self) -> None:
        """Accept and read on."""
        self.native.unpause(self._number)

    def leave(self) -> None:
        """Accept no more, read no more."""
        self.native.pause(self._number)
        self.native.leave(self._number)

    async def settle(self, timeout_s: float) -> bool:
        """Wait until what had been read is in the ring. False: not in time."""
        deadline = time.monotonic() + timeout_s
        while not self.native.settled or self.counters["waiting_for_room"]:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(SETTLE_STEP_S)
        self._thread.take_all()
        return True

    async def close(self) -> None:
        """Every socket goes."""
        self.native.leave(self._number)
        self.native.remove_listener(self._number)
        if not await self.settle(CLOSE_TIMEOUT_S):
            raise RuntimeError("the intake thread does not take its commands")
        self.native.forget_listener(self._number)
        for each in self._sockets:
            each.close()
        self._thread.drop(self._number)

    def event(self, kind: int, handle: int, number: int, data: bytes) -> None:
        """From the thread."""
        link = self._links.get(handle)
        if link is not None:
            link.event(kind, number, data)
            if kind == native.CLOSED:
                del self._links[handle]
                self.listener.remove(link)
        elif kind == native.CONNECTED:
            self._connected(handle, data.decode("ascii"))
        elif kind == native.RECORDED:
            self.listener.recorded()
        elif kind == native.UNROUTED:
            self.listener.say_unrecorded("unrouted", data, number)
        elif kind == native.FORBIDDEN:
            self.listener.say_unrecorded("forbidden", data, number)
        elif kind == native.REFUSED:
            self.listener.refuse("?", "too many sockets")
        elif kind == native.ACCEPT:
            self._cannot_accept(number)

    def _connected(self, handle: int, peer: str) -> None:
        link = IntakeLink(self, handle, peer)
        if self.listener.admit(link):
            self._links[handle] = link
        else:
            link.abort()

    def _cannot_accept(self, number: int) -> None:
        hint = "; raise the limit of open files" if number in (errno.EMFILE, errno.ENFILE) else ""
        self.listener.say(
            logging.ERROR,
            f"cannot accept connections: {os.strerror(number)}{hint}. It is tried again every second",
        )


class IntakeThread:
    """The one of the process. It begins with its first listener and ends with its last."""

    def __init__(self) -> None:
        self.native = native.Intake()
        self.ports: dict[int, IntakePort] = {}
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[int, int, int, int, bytes]] = deque()
        self._thread = threading.Thread(target=self.native.run, name="gateway-intake", daemon=True)
        self._loop.add_reader(self.native.event_fd, self._look)
        self._thread.start()

    def drop(self, number: int) -> None:
        """A listener is gone."""
        global _thread  # the process has one
        del self.ports[number]
        if self.ports:
            return
        self._loop.remove_reader(self.native.event_fd)
        self.native.stop()
        self._thread.join()
        if _thread is self:
            _thread = None

    def _look(self) -> None:
        """There are events: a part of them now, the rest when others had their turn."""
        was_empty = not self._events
        self._events.extend(self.native.events())
        if was_empty:
            self._handle()

    def _handle(self) -> None:
        for _ in range(min(EVENTS_AT_ONCE, len(self._events))):
            kind, number, handle, value, data = self._events.popleft()
            if (port := self.ports.get(number)) is not None:
                port.event(kind, handle, value, data)
        if self._events:
            self._loop.call_soon(self._handle)

    def take_all(self) -> None:
        """Handle everything that has happened so far."""
        self._events.extend(self.native.events())
        while self._events:
            kind, number, handle, value, data = self._events.popleft()
            if (port := self.ports.get(number)) is not None:
                port.event(kind, handle, value, data)


_thread: IntakeThread | None = None


def open_port(listener: MqttListener, sockets: list[socket.socket]) -> IntakePort:
    """Accept from these on the thread; they become the port's."""
    global _thread  # the process has one
    if _thread is None:
        _thread = IntakeThread()
    return IntakePort(_thread, listener, sockets)
