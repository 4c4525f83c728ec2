"""The MQTT listener: devices connect straight to the gateway and publish.

It is not a broker: it records and delivers nothing. A QoS 1 publish is acknowledged when its record is on disk, in
the order of the publishes. When the ring to the writer is full the listener stops reading, so that TCP holds the
senders back; nothing is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import Any, cast

from gateway_native import mqtt
from gateway_native.batch import encode_headers

from gateway.clock import NS_PER_S
from gateway.config import ListenerConfig
from gateway.errors import SourceError
from gateway.ingest.source import SourceContext
from gateway_adapters.mqtt.connection import SocketLink
from gateway_adapters.mqtt.device import Device
from gateway_adapters.mqtt.headers import message_headers
from gateway_adapters.mqtt.intake import IntakeLink, IntakePort, open_port
from gateway_adapters.mqtt.protocol import Will
from gateway_adapters.mqtt.routes import compile_routes
from gateway_adapters.mqtt.shown import shown

# Which threads can carry a listener's sockets: the intake thread, or the event loop.
CARRIERS = ("intake", "loop")
CARRIER = "intake"
# Packets that have only partly arrived, all connections together.
KEPT_BYTES_MAX = 64 * 2**20
# Sockets beyond connections_max that may at least hear why they are refused.
REFUSALS_MAX = 64
# Wills that wait for room in the ring.
WILL_BYTES_MAX = 4 * 2**20
# How long stopping waits for records that had arrived, and for acknowledgements to be taken.
PAUSE_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 2.0
BACKLOG = 1_024


class MqttListener:
    """A source: one listening socket, its connections, one ring."""

    kind = "mqtt.listener"

    def __init__(self, name: str, config: ListenerConfig, context: SourceContext) -> None:
        self.name = name
        self.config = config
        self.paused = False
        self.connect_timeout_s = max(1, config.connect_timeout_ns // NS_PER_S)
        self.sockets_max = config.connections_max + REFUSALS_MAX
        self.keepalive_max_s = max(1, config.keepalive_max_ns // NS_PER_S)
        self._logger = context.logger
        self._ring = context.engine.ring(name)
        routes = compile_routes(name, config.routes, context.engine)
        record_bytes_max = min(context.config.limits.record_bytes_max, self._ring.largest_record)
        self.packet_bytes_max = min(config.max_packet_bytes, record_bytes_max)
        self.native = mqtt.Group(
            self._ring,
            routes,
            packet_bytes_max=self.packet_bytes_max,
            record_bytes_max=record_bytes_max,
            kept_bytes_max=max(KEPT_BYTES_MAX, 2 * self.packet_bytes_max),
        )
        self._carrier = CARRIER
        self._server: asyncio.Server | None = None
        self._port: IntakePort | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._connections: set[SocketLink | IntakeLink] = set()
        self._emptied = asyncio.Event()
        self._clients: dict[str, Device] = {}
        self._waiting: deque[SocketLink] = deque()  # for room in the ring, first come first served
        self._gaps = context.engine.gaps
        self._streams = {context.engine.partition(route.stream): route.stream for route in config.routes}
        self._wills: deque[tuple[int, bytes, bytes, bytes]] = deque()  # partition, key, value, headers
        self._will_bytes = 0
        self._unrouted_said = 0
        self.unrouted_topic = b""
        self._counters = dict.fromkeys(
            ("accepted", "refused", "faults", "failed", "timeouts", "taken_over", "unanswered", "wills", "lost",
             "subscriptions_refused"), 0,
        )  # fmt: skip

    # -- the source's life

    async def start(self) -> None:
        """Listen. Raises SourceError when the address cannot be bound."""
        loop = asyncio.get_running_loop()
        try:
            if self._carrier == "intake":
                self._port = await open_port(self, self.config.host, self.config.port)
            else:
                self._server = await loop.create_server(
                    lambda: SocketLink(self), self.config.host, self.config.port, backlog=BACKLOG
                )
                loop.add_reader(self._ring.event_fd, self._ring_event)
        except OSError as error:
            raise SourceError(
                f"cannot listen on {self.config.bind}: {error.strerror or error}. Choose another 'bind', or end the "
                "program that uses it.",
                source=self.name,
            ) from error
        self._ticking = asyncio.create_task(self._tick(), name=f"mqtt-listener-{self.name}")
        host, port = self.address
        self.say(logging.INFO, "listening", address=f"{host}:{port}")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are bound; the port is the system's choice if the configuration says 0."""
        if self._port is not None:
            return self._port.address
        assert self._server is not None, "not started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def pause(self) -> None:
        """Accept and read nothing more; wait until what had been read is in the ring."""
        self.paused = True
        if self._port is not None:
            self._port.leave()
            complete = await self._port.settle(PAUSE_TIMEOUT_S)
        else:
            complete = await self._pause_server()
        if not complete:
            self.say(logging.ERROR, "the ring stayed full: messages that had arrived are not recorded")
        for partition, topic, payload, headers in self._wills:
            self._lose_will(partition, len(topic) + len(payload) + len(headers))
        self._wills.clear()
        self._will_bytes = 0

    async def _pause_server(self) -> bool:
        """False: what had been read does not fit into the ring."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            if isinstance(connection, SocketLink):
                connection.update_reading()
        deadline = time.monotonic() + PAUSE_TIMEOUT_S
        while (self._waiting or self._wills) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            self._reopen()
        return not self._waiting and not self._wills

    async def drain(self) -> None:
        """Send the acknowledgements that have become due, say goodbye, and let both leave."""
        if self._port is None:
            self._ring_event()
        for connection in tuple(self._connections):
            connection.device.shut_down()
        if self._connections:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):  # what is left then is cut off by `stop`
                await asyncio.wait_for(self._emptied.wait(), DRAIN_TIMEOUT_S)

    async def stop(self) -> None:
        """Close every socket. Safe after any of the others."""
        self.paused = True
        if self._server is not None:
            self._server.close()
            asyncio.get_running_loop().remove_reader(self._ring.event_fd)
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

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and the present state."""
        started = self._server is not None or self._port is not None
        state = "paused" if self.paused else "listening" if started else "starting"
        return {
            "state": state,
            "connections": len(self._clients),
            "waiting_for_room": len(self._waiting),
            **(self.native.counters if self._port is None else self._port.counters),
            **self._counters,
        }

    # -- what connections ask for

    def count(self, counter: str, more: int = 1) -> None:
        """Add to one of the counters of `statistics`."""
        self._counters[counter] += more

    def say(self, level: int, event: str, **fields: object) -> None:
        """Log an event. Its fields hold no payload and no secret; the log itself limits repeats and counts them."""
        self._logger.log(level, event, extra={"fields": {"source": self.name, **fields}})

    def admit(self, connection: SocketLink | IntakeLink) -> bool:
        """May this socket stay until its CONNECT has been read?"""
        if self.paused or len(self._connections) >= self.sockets_max:
            self.refuse(connection.peer)
            return False
        self._connections.add(connection)
        return True

    def refuse(self, peer: str) -> None:
        """A socket is closed before anything was read from it."""
        self.count("refused")
        if not self.paused:
            self.say(logging.WARNING, "connection refused: too many sockets", peer=peer)

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
        if self._clients.get(device.client_id) is device:
            del self._clients[device.client_id]

    def remove(self, connection: SocketLink | IntakeLink) -> None:
        """Its socket is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()

    def wait_for_room(self, connection: SocketLink) -> None:
        """It found the ring full; it is called again in its turn."""
        self._waiting.append(connection)

    def publish_will(self, will: Will) -> None:
        """Record the message that a client left for the case that it vanishes."""
        topic = will.topic.encode()
        index = self.native.routes.find(topic)
        if index is None:
            self.count("lost")
            self.say(logging.WARNING, "will not recorded: no route takes its topic", topic=shown(will.topic))
            return
        # Its delay is no property of the record: sessions end with their connection, so it is recorded at once.
        properties: dict[str, Any] = {name: value for name, value in will.properties.items() if name != "will_delay"}
        headers = encode_headers(message_headers(qos=will.qos, retain=will.retain, will=True, **properties))
        size = len(topic) + len(will.payload) + len(headers)
        if self._will_bytes + size > WILL_BYTES_MAX:
            self._lose_will(self.native.routes.partitions[index], size)
            self.say(logging.WARNING, "will not recorded: too many wait for room", topic=shown(will.topic))
            return
        if self._port is not None:
            self._will_bytes += size
            self._port.record(self.native.routes.partitions[index], topic, will.payload, headers)
            return
        self._wills.append((self.native.routes.partitions[index], topic, will.payload, headers))
        self._will_bytes += size
        if not self.native.crowded:
            self._put_wills()

    def recorded(self, size: int) -> None:
        """The intake thread has put a will of so many bytes into the ring."""
        self._will_bytes -= size
        self.count("wills")

    def _lose_will(self, partition: int, size: int) -> None:
        self.count("lost")
        self._gaps.add(self._streams[partition], self.name, "overload", count=1, bytes=size)

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
        self._put_wills()
        for _ in range(len(self._waiting)):
            if self.native.crowded:
                break
            self._waiting.popleft().retry()

    def _put_wills(self) -> None:
        while self._wills:
            partition, key, value, headers = self._wills[0]
            if not self._ring.append(partition, key, value, headers, time.time_ns()):
                self.native.crowd()
                return
            self._wills.popleft()
            self._will_bytes -= len(key) + len(value) + len(headers)
            self.count("wills")

    # -- once a second

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.native.advance()
            if self._port is not None:
                continue  # the thread looks after its connections
            for connection in tuple(self._connections):
                if isinstance(connection, SocketLink):
                    connection.look_after()
            unrouted = self.native.counters["unrouted"]
            if unrouted > self._unrouted_said:
                self.say_unrouted(self.native.unrouted_topic, unrouted - self._unrouted_said)
                self._unrouted_said = unrouted
            if self.native.crowded:  # the ring's event does this; once more costs nothing
                self._reopen()

    def say_unrouted(self, topic: bytes, messages: int) -> None:
        """So many messages since the last time, the last of them with this topic."""
        self.say(
            logging.WARNING,
            "messages not recorded: no route takes their topic",
            topic=shown(topic.decode(errors="replace")),
            messages=messages,
        )


def create(name: str, config: ListenerConfig, context: SourceContext) -> MqttListener:
    """Entry point of kind "mqtt.listener"."""
    return MqttListener(name, config, context)
