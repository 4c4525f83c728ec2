"""The MQTT listener: devices connect straight to the gateway and publish.

It is not a broker: it records and delivers nothing. A QoS 1 publish is acknowledged when its record is on disk, in
the order of the publishes. When the ring to the writer is full the listener stops reading, so that TCP holds the
senders back; nothing is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from gateway_native import mqtt

from gateway.clock import NS_PER_S
from gateway.config import ListenerConfig
from gateway.errors import SourceError
from gateway.ingest.source import SourceContext
from gateway_adapters.mqtt.connection import SocketLink
from gateway_adapters.mqtt.device import Device
from gateway_adapters.mqtt.door import Door
from gateway_adapters.mqtt.entrance import Handshake, TlsServer
from gateway_adapters.mqtt.intake import IntakeLink, IntakePort, open_port
from gateway_adapters.mqtt.routes import RoutedStreams
from gateway_adapters.mqtt.sessions import Sessions
from gateway_adapters.mqtt.shown import shown
from gateway_adapters.mqtt.transports import BACKLOG, listening_sockets, remove_unix_socket
from gateway_adapters.mqtt.wills import Wills

# Which threads can carry a listener's plain sockets: the intake thread, or the event loop.
CARRIERS = ("intake", "loop")
CARRIER = "intake"
# Packets that have only partly arrived, all connections together.
KEPT_BYTES_MAX = 64 * 2**20
# Sockets beyond connections_max that may at least hear why they are refused.
REFUSALS_MAX = 64
# How long stopping waits for records that had arrived, and for acknowledgements to be taken.
PAUSE_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 2.0
# Counters of messages that were dropped or refused, and why.
_UNRECORDED = {
    "unrouted": "no route takes their topic",
    "forbidden": "their senders may not publish to their topic (access_file)",
}


class MqttListener:
    """A source: one listening socket, its connections, one ring."""

    kind = "mqtt.listener"

    def __init__(self, name: str, config: ListenerConfig, context: SourceContext) -> None:
        self.name = name
        self.config = config
        self.paused = False
        self.held = False
        self.connect_timeout_s = max(1, config.connect_timeout_ns // NS_PER_S)
        self.keepalive_max_s = max(1, config.keepalive_max_ns // NS_PER_S)
        self._logger = context.logger
        self._ring = context.engine.ring(name)
        self._routed = RoutedStreams(name, config.routes, context.engine)
        record_bytes_max = min(context.config.limits.record_bytes_max, self._ring.largest_record)
        self.packet_bytes_max = min(config.max_packet_bytes, record_bytes_max)
        self.native = mqtt.Group(
            self._ring,
            self._routed.table,
            packet_bytes_max=self.packet_bytes_max,
            record_bytes_max=record_bytes_max,
            kept_bytes_max=max(KEPT_BYTES_MAX, 2 * self.packet_bytes_max),
        )
        self.native.resolve = self._routed.resolve
        self.packet_timeout_s = max(1, config.packet_timeout_ns // NS_PER_S)
        self.native.set_rate(config.messages_per_second_total)
        self.door = Door(config, time.monotonic)
        self._make_protocol = _protocol_factory(self)
        plain = not config.tls and config.transport == "tcp"
        self._carrier = CARRIER if plain else "loop"  # TLS and WebSocket need Python
        self._port: IntakePort | None = None
        self._servers: list[asyncio.Server | TlsServer] = []
        self._unix_inode = 0
        self._entering: set[Handshake] = set()  # their TLS handshake is under way
        self._ticking: asyncio.Task[None] | None = None
        self._connections: set[SocketLink | IntakeLink] = set()
        self._emptied = asyncio.Event()
        self._clients: dict[str, Device] = {}
        self._detaching: dict[str, asyncio.Future[None]] = {}  # by client id: see `Link.detaching`
        self._waiting: deque[SocketLink] = deque()  # for room in the ring, first come first served
        engine = context.engine
        self._gaps = engine.gaps
        self._wills = Wills(self, self.native, engine.gaps, lambda: {at: name for name, at in engine.streams.items()})
        self.sessions = Sessions(
            self,
            engine,
            self.native,
            expiry_max_s=config.session_expiry_max_ns // NS_PER_S,
            sessions_max=config.sessions_max,
            wills=self._wills,
        )
        self._said = dict.fromkeys(_UNRECORDED, 0)
        self._counters = dict.fromkeys(
            ("accepted", "refused", "faults", "failed", "timeouts", "taken_over", "unanswered", "wills", "lost",
             "subscriptions_refused", "sessions_evicted", "logins_refused", "handshakes_failed", "cut_off"), 0,
        )  # fmt: skip

    # -- the source's life

    async def start(self) -> None:
        """Listen. Raises SourceError when the address cannot be bound."""
        await self.sessions.start()
        try:
            await self._open(listening_sockets(self.config))
        except OSError as error:
            raise SourceError(
                f"cannot listen on {self.config.bind}: {error.strerror or error}. Choose another 'bind', or end the "
                "program that uses it.",
                source=self.name,
            ) from error
        self._ticking = asyncio.create_task(self._tick(), name=f"mqtt-listener-{self.name}")
        path = self.config.unix_path
        if path is not None:
            self._unix_inode = path.stat().st_ino
        host, port = self.address
        self.say(logging.INFO, "listening", address=str(path or f"{host}:{port}"))

    async def _open(self, sockets: list[socket.socket]) -> None:
        """Accept from these sockets."""
        loop = asyncio.get_running_loop()
        if self._carrier == "intake":
            self._port = open_port(self, sockets)
            self._wills.record = self._port.record
            return
        for listening in sockets:
            if self.config.tls:
                self._servers.append(TlsServer(self, listening))
            else:
                self._servers.append(await loop.create_server(self.protocol, sock=listening, backlog=BACKLOG))
        loop.add_reader(self._ring.event_fd, self._ring_event)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are bound; the port is the system's choice if the configuration says 0."""
        if self.config.unix_path is not None:
            return str(self.config.unix_path), 0
        sockets = self._servers[0].sockets if self._port is None else self._port.sockets
        host, port = sockets[0].getsockname()[:2]
        return host, port

    @property
    def sockets_max(self) -> int:
        """More are closed at once."""
        return self.config.connections_max + REFUSALS_MAX

    def protocol(self) -> asyncio.BaseProtocol:
        """What takes the bytes of a new connection, after TLS if there is any."""
        return self._make_protocol()

    def refresh(self) -> None:
        """Read users, rules and certificates again, for connections to come. After a ConfigError all is as before."""
        self.door.reload()

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        if self._unix_inode and self.config.unix_path is not None:
            remove_unix_socket(self.config.unix_path, self._unix_inode)
            self._unix_inode = 0
        for entrance in tuple(self._entering):
            entrance.abort()

    async def pause(self) -> None:
        """Accept and read nothing more; wait until what had been read is in the ring."""
        self.paused = True
        if self._port is not None:
            self._port.leave()
        self._close_servers()
        self._update_reading()
        self._wills.advance(all_of_them=True)  # whoever left them is dead already
        if not await self._settle():
            self.say(logging.ERROR, "the ring stayed full: messages that had arrived are not recorded")
        self._wills.lose_all()

    async def _settle(self) -> bool:
        """Wait until what had been read, and all wills, are in the ring. False: it stayed full."""
        if self._port is not None:
            return await self._port.settle(PAUSE_TIMEOUT_S)
        deadline = time.monotonic() + PAUSE_TIMEOUT_S
        while (self._waiting or self._wills) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            self._reopen()
        return not self._waiting and not self._wills

    def _update_reading(self) -> None:
        for connection in tuple(self._connections):
            if isinstance(connection, SocketLink):
                connection.update_reading()

    async def drain(self) -> None:
        """Send the acknowledgements that have become due, say goodbye, and let both leave."""
        if self._port is None:
            self._ring_event()
        self._say_dropped()
        for connection in tuple(self._connections):
            connection.device.shut_down()
        if self._connections:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):  # what is left then is cut off by `stop`
                await asyncio.wait_for(self._emptied.wait(), DRAIN_TIMEOUT_S)

    async def stop(self) -> None:
        """Close every socket. Safe after any of the others."""
        self.paused = True
        self._close_servers()
        if self._servers:
            asyncio.get_running_loop().remove_reader(self._ring.event_fd)
        self.door.close()
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        for connection in tuple(self._connections):
            connection.device.shut_down()
            connection.abort()
        if self._port is not None:
            await self._port.close()
            self._port = None
        await asyncio.sleep(0)  # the transports tell their connections
        self._waiting.clear()
        await self.sessions.stop()

    async def hold(self) -> None:
        """Read nothing for a while. Connections stay, new ones wait; no time-out counts what we do not read."""
        self.held = True
        if self._port is not None:
            self._port.hold()
        self._update_reading()

    async def release(self) -> None:
        """Read on."""
        self.held = False
        if self._port is not None:
            self._port.release()
        self._update_reading()

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and the present state."""
        started = bool(self._servers) or self._port is not None
        state = "starting" if not started else "paused" if self.paused or self.held else "listening"
        return {
            "state": state,
            "connections": len(self._clients),
            "waiting_for_room": len(self._waiting),
            **self.native.counters,
            **({} if self._port is None else self._port.counters),
            **self._counters,
            **self._routed.statistics(),
            **self.sessions.statistics(),
            "wills_delayed": self._wills.delayed,
        }

    # -- what connections ask for

    def count(self, counter: str, more: int = 1) -> None:
        """Add to one of the counters of `statistics`."""
        self._counters[counter] += more

    def say(self, level: int, event: str, **fields: object) -> None:
        """Log an event. Its fields hold no payload and no secret; the log itself limits repeats and counts them."""
        self._logger.log(level, event, extra={"fields": {"source": self.name, **fields}})

    def admit(self, connection: SocketLink | IntakeLink | Handshake) -> bool:
        """May this socket stay until its handshake is over, or its CONNECT has been read?"""
        cause = None
        if len(self._connections) + len(self._entering) >= self.sockets_max:
            cause = "too many sockets"
        elif isinstance(connection, Handshake) or connection.ssl_object is None:
            cause = self.door.admission.enter(connection.host)
        else:
            self.door.admission.go_on(connection.host)  # its entrance was let in, and is removed now
        if cause is None and self.paused:
            self.door.admission.leave(connection.host)
        if cause is not None or self.paused:
            self.refuse(connection.peer, cause or "the listener is paused")
            return False
        if isinstance(connection, Handshake):
            self._entering.add(connection)
        else:
            self._connections.add(connection)
        return True

    def refuse(self, peer: str, cause: str) -> None:
        """A socket is closed before anything was read from it."""
        self.count("refused")
        if not self.paused:
            self.say(logging.WARNING, f"connection refused: {cause}", peer=peer)

    def is_full(self, client_id: str) -> bool:
        """Are connections_max clients connected, none of which this one would replace?"""
        return client_id not in self._clients and len(self._clients) >= self.config.connections_max

    def register(self, device: Device) -> None:
        """A CONNECT was accepted. An older connection with this client id ends (section 3.1.4)."""
        older = self._clients.get(device.client_id)
        if older is not None:
            self.count("taken_over")
            older.yield_to(device)
        self._clients[device.client_id] = device
        self.count("accepted")

    def leave(self, device: Device) -> None:
        """This device is no client any more, though its socket may still be there."""
        client_id, detaching = device.client_id, device.detaching()
        if self._clients.get(client_id) is device:
            del self._clients[client_id]
        if detaching is not None:
            self._detaching[client_id] = detaching
            detaching.add_done_callback(lambda _: self._forget_detaching(client_id, detaching))

    def _forget_detaching(self, client_id: str, detaching: asyncio.Future[None]) -> None:
        if self._detaching.get(client_id) is detaching:
            del self._detaching[client_id]

    def detaching(self, client_id: str) -> asyncio.Future[None] | None:
        """Done once the last connection of this client has let go of its session; None: it has."""
        return self._detaching.get(client_id)

    def remove(self, connection: SocketLink | IntakeLink | Handshake) -> None:
        """Its socket is gone, or it has come through the entrance."""
        if connection in self._connections or connection in self._entering:
            self.door.admission.leave(connection.host)
        self._connections.discard(connection)
        self._entering.discard(connection)
        if not self._connections:
            self._emptied.set()

    def wait_for_room(self, connection: SocketLink) -> None:
        """It found the ring full; it is called again in its turn."""
        self._waiting.append(connection)

    def recorded(self) -> None:
        """The intake thread has put the first of the wills that wait into the ring."""
        self._wills.recorded()

    # -- the ring's calls

    def _ring_event(self) -> None:
        """Acknowledgements may leave, a stream failed, or there is room again."""
        self._ring.clear_event()
        for connection in cast("list[SocketLink]", self.native.release()):
            connection.fail()
        if self.native.crowded and self.native.has_room():
            self._reopen()

    def _reopen(self) -> None:
        """Let those who wait try again, each once, until the ring is full again."""
        self.native.reopen()
        self._wills.put()
        for _ in range(len(self._waiting)):
            if self.native.crowded:
                break
            self._waiting.popleft().retry()

    # -- once a second

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.native.advance()
            self._wills.advance()
            self.sessions.advance()
            self._say_dropped()
            if self._port is not None:
                continue  # the thread looks after its connections
            for connection in tuple(self._connections):
                if isinstance(connection, SocketLink):
                    connection.look_after()
            self._say_unrecorded()
            if self.native.crowded:  # the ring's event does this; once more costs nothing
                self._reopen()

    def _say_dropped(self) -> None:
        """What was dropped because the disk could not follow becomes gap records."""
        for partition, count, size, first_ns, last_ns in self.native.take_drops():
            self._gaps.add(
                self._routed.name(partition), self.name, "overload",
                count=count, bytes=size, first_ns=first_ns, last_ns=last_ns,
            )  # fmt: skip

    def _say_unrecorded(self) -> None:
        """Messages that no route takes, or that their senders may not publish: how many more, and one topic of them."""
        for counter in _UNRECORDED:
            count = self.native.counters[counter]
            if count > self._said[counter]:
                topic: bytes = getattr(self.native, f"{counter}_topic")
                self.say_unrecorded(counter, topic, count - self._said[counter])
                self._said[counter] = count

    def say_unrecorded(self, counter: str, topic: bytes, messages: int) -> None:
        """So many messages since the last time, the last of them with this topic."""
        self.say(
            logging.WARNING,
            f"messages not recorded: {_UNRECORDED[counter]}",
            topic=shown(topic.decode(errors="replace")),
            messages=messages,
        )


def _protocol_factory(listener: MqttListener) -> Callable[[], asyncio.BaseProtocol]:
    """What each connection is given: the link itself, or WebSocket around it, which needs its library."""
    if listener.config.transport == "tcp":
        return lambda: SocketLink(listener)
    try:
        from gateway_adapters.mqtt.websocket import Budget, WebSocketProtocol
    except ModuleNotFoundError:
        raise SourceError(
            "transport = \"websocket\" needs the package 'websockets'; install the gateway with 'pip install "
            "gateway[websocket]'.",
            source=listener.name,
        ) from None
    budget = Budget(max(KEPT_BYTES_MAX, 2 * listener.packet_bytes_max))

    def fault(peer: str, cause: str) -> None:
        listener.count("faults")
        listener.say(logging.WARNING, f"connection closed: {cause}", peer=peer)

    return lambda: WebSocketProtocol(
        lambda: SocketLink(listener),
        packet_bytes_max=listener.packet_bytes_max,
        budget=budget,
        origins=listener.config.websocket_origins,
        fault=fault,
    )


def create(name: str, config: ListenerConfig, context: SourceContext) -> MqttListener:
    """Entry point of kind "mqtt.listener"."""
    return MqttListener(name, config, context)
