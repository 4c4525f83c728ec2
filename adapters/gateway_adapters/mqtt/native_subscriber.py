"""The MQTT subscriber with `engine = "native"`: records what an existing broker has.

A QoS 1 message is acknowledged to the broker when its record is on disk, in the order of arrival, and the session is
lasting: what the broker had is delivered again after a kill -9 of the gateway. A QoS 2 message is then not recorded
again (broker_session.py). When the ring to the writer is full the subscriber stops reading; nothing is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
import time
from typing import Any

from gateway_native import mqtt

from gateway.backoff import Backoff
from gateway.broker_tls import broker_tls
from gateway.clock import NS_PER_S
from gateway.config import SubscriberConfig
from gateway.errors import GatewayError
from gateway.ingest.source import SourceContext
from gateway_adapters.mqtt import client_protocol
from gateway_adapters.mqtt.broker_link import BrokerLink, LinkEnded
from gateway_adapters.mqtt.broker_session import BrokerSession
from gateway_adapters.mqtt.client_protocol import FAILURE, Connack, PublishHead, publishes_qos_0, reason_text
from gateway_adapters.mqtt.protocol import MQTT_3_1_1, MQTT_5, Reason
from gateway_adapters.mqtt.routes import RoutedStreams
from gateway_adapters.mqtt.shown import shown
from gateway_adapters.mqtt.subscriptions import (
    DIRECTORY,
    SESSION_EXPIRY_S,
    Difference,
    Subscriptions,
    client_id_of,
    wanted_filters,
)

# QoS 1 and 2 messages that an MQTT 5 broker is asked to have under way at most. MQTT 3.1.1 has no such limit.
INFLIGHT_MAX = 1_024
# What is put up with. Mosquitto (2.0.11) exceeds the limit when it resumes a session, and would do so for ever if that
# were taken for a fault; there are no more packet identifiers.
INFLIGHT_TOLERATED = 65_535
# A packet that has only partly arrived, or what had arrived when the ring turned out full.
KEPT_BYTES_MAX = 2**20
# From the TCP connection to CONNACK.
CONNECT_TIMEOUT_S = 10.0
# One SUBSCRIBE or UNSUBSCRIBE: brokers limit both their number of filters and their size.
FILTERS_MAX = 64
REQUEST_BYTES_MAX = 2**16
PAUSE_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0
# How often a wait for room, or for the end of a pause, is looked at.
LOOK_S = 0.05


class Refused(GatewayError):
    """The broker's CONNACK says no."""

    def __init__(self, reason: int) -> None:
        super().__init__(f"the broker refuses the connection: {reason_text(reason)}")
        self.reason = reason


class NativeSubscriber:
    """A source: one broker, one session, one ring."""

    kind = "mqtt.subscriber"

    def __init__(self, name: str, config: SubscriberConfig, context: SourceContext) -> None:
        self.name = name
        self.config = config
        self._stopping = False
        self._held = False
        self._logger = context.logger
        self._gaps = context.engine.gaps
        self._ring = context.engine.ring(name)
        record_bytes_max = min(context.config.limits.record_bytes_max, self._ring.largest_record)
        self._packet_bytes_max = record_bytes_max
        self._routed = RoutedStreams(name, config.routes, context.engine)
        self.native = mqtt.Group(
            self._ring,
            self._routed.table,
            packet_bytes_max=record_bytes_max,
            record_bytes_max=record_bytes_max,
            kept_bytes_max=max(KEPT_BYTES_MAX, 2 * record_bytes_max),
            client=True,
        )
        self.native.resolve = self._routed.resolve
        self._client_id = client_id_of(name, config, context.config.site)
        self._broker = f"{config.host}:{config.port}"
        self._subscriptions = self._remembered(context)
        self._received = BrokerSession(self, self._client_id, context.engine, self.native, config)
        self._version = MQTT_5
        self._tls: ssl.SSLContext | None = None
        self._link: BrokerLink | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._state, self._cause = "starting", ""
        self._unrouted_said = 0
        self._counters = dict.fromkeys(("lost", "unrouted", "connects", "failures", "sessions_evicted"), 0)

    def _remembered(self, context: SourceContext) -> Subscriptions | None:
        """What the lasting session at the broker has; a session that ends with its connection has nothing."""
        if self.config.clean_session:
            return None
        path = context.config.data / DIRECTORY / f"{self.name}.json"
        return Subscriptions(path, self._broker, self._client_id, self._logger)

    @property
    def paused(self) -> bool:
        """Nothing may be read: the source stops, or stands still for a while."""
        return self._stopping or self._held

    # -- the source's life

    async def start(self) -> None:
        """Begin connecting, for as long as it takes. Raises SourceError when TLS files or the disk cannot be used."""
        self._tls = broker_tls(self.config, self.name)
        await self._received.start()
        asyncio.get_running_loop().add_reader(self._ring.event_fd, self._ring_event)
        for number, body in enumerate((self._run, self._tick)):
            self._tasks.append(asyncio.create_task(body(), name=f"mqtt-subscriber-{self.name}-{number}"))

    async def pause(self) -> None:
        """Read nothing more; wait until what had been read is in the ring."""
        self._stopping = True
        link = self._link
        if link is None:
            return
        link.update_reading()
        deadline = time.monotonic() + PAUSE_TIMEOUT_S
        while link.blocked and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
            self._reopen()
        if link.blocked:
            self._lose_what_waits(link)

    async def drain(self) -> None:
        """Acknowledge what has become durable."""
        self._ring_event()
        self._tell_drops()

    async def stop(self) -> None:
        """Disconnect; the session stays at the broker. Safe after any of the others."""
        self._stopping = True
        asyncio.get_running_loop().remove_reader(self._ring.event_fd)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_TIMEOUT_S)
        self._tasks.clear()
        link, self._link = self._link, None
        if link is not None:
            link.end("the gateway stops", 0)
            with contextlib.suppress(TimeoutError):  # what is on its way then is cut off
                await asyncio.wait_for(link.gone.wait(), STOP_TIMEOUT_S)
            link.abandon()
        await self._received.stop()
        self._state = "stopped"

    async def hold(self) -> None:
        """Read nothing for a while; the connection is kept alive, and the broker queues as far as it does."""
        self._held = True
        if self._link is not None:
            self._link.update_reading()

    async def release(self) -> None:
        """Read on."""
        self._held = False
        if self._link is not None:
            self._link.update_reading()

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and the present state with its cause."""
        native = self.native.counters
        link = self._link
        return {
            "state": "paused" if self._held and self._state == "connected" else self._state,
            "cause": self._cause,
            **{name: native[name] for name in ("records", "bytes", "acknowledged", "retained", "refused_full_disk")},
            **self._counters,
            **self._routed.statistics(),
            "dropped": native["dropped"],
            "overflowed": native["overflowed"],
            "unrouted": self._counters["unrouted"] + native["unrouted"],
            "paused": native["stopped_for_room"],
            "duplicates": native["duplicates"],
            "unacknowledged": native["unacknowledged"],
            "unreleased": len(self._received),
            "waiting_for_room": int(link is not None and link.blocked),
        }

    # -- the connection

    async def _run(self) -> None:
        """Connect, and connect again, until cancelled."""
        backoff = Backoff(self.config.reconnect_min_ns, self.config.reconnect_max_ns)
        while True:
            begun_s = time.monotonic()
            try:
                await self._session()
            except Exception as error:  # noqa: BLE001  # a source must not die of a broker, whatever it sends
                cause = _cause_of(error)
                if self._other_version(error):
                    continue
            was_connected = self._state == "connected"
            delay_s = backoff.after(time.monotonic() - begun_s if was_connected else 0)
            self._counters["failures"] += 1
            event = "broker connection lost" if was_connected else "broker not reached"
            self._enter("waiting", cause)
            self.say(logging.WARNING, event, cause=cause, retry_in_s=round(delay_s, 1))
            await asyncio.sleep(delay_s)

    async def _session(self) -> None:
        """One connection, from CONNECT to its end, which is always an error."""
        while self.paused or (self._link is not None and not self._link.closed):  # noqa: ASYNC110  # seldom, and short
            await asyncio.sleep(LOOK_S)  # what the last one had brought goes first
        self._enter("connecting", "")
        link = await self._reach()
        try:
            connack, known = await self._connect(link)
            await self._subscribe(link, connack, known=known)
            self._enter("connected", "")
            self._counters["connects"] += 1
            self.say(
                logging.INFO,
                "connected to the broker",
                version="5" if link.version == MQTT_5 else "3.1.1",
                session="resumed" if connack.session_present else "new",
            )
            await asyncio.shield(link.ended)
        finally:
            # The broker delivers again, on the next connection, what was not acknowledged on this one.
            link.end("it is not wanted any more", 0)

    async def _reach(self) -> BrokerLink:
        """Connect, TLS included. Raises OSError."""
        make = functools.partial(
            BrokerLink,
            self,
            self._version,
            INFLIGHT_TOLERATED,
            self.config.keepalive_ns // NS_PER_S,
        )
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, self._link = await loop.create_connection(make, self.config.host, self.config.port, ssl=self._tls)
        return self._link

    async def _connect(self, link: BrokerLink) -> tuple[Connack, bool]:
        """CONNACK, and whether a session that it calls present is the one we remember. Raises LinkEnded or Refused."""
        config, remembered = self.config, self._subscriptions
        known = remembered is not None and await asyncio.to_thread(remembered.begin)
        await self._received.prepare()
        packet = client_protocol.connect(
            self._version,
            self._client_id,
            clean_start=config.clean_session,
            keepalive_s=config.keepalive_ns // NS_PER_S,
            username=config.username,
            password=config.password.get_secret_value() if config.password is not None else None,
            properties={
                "session_expiry": 0 if config.clean_session else SESSION_EXPIRY_S,
                "receive_maximum": INFLIGHT_MAX,
                "maximum_packet_size": self._packet_bytes_max,
            },
        )
        connack = await link.connect(packet, CONNECT_TIMEOUT_S)
        if connack.reason:
            if remembered is not None:
                remembered.restore()
            raise Refused(connack.reason)
        await self._received.settle()
        return connack, known

    def _other_version(self, error: Exception) -> bool:
        """Try the other MQTT version at once, if that is what the broker objects to."""
        if not isinstance(error, Refused) or error.reason != Reason.UNSUPPORTED_PROTOCOL or self._version == MQTT_3_1_1:
            return False
        self.say(logging.INFO, "the broker does not speak MQTT 5; using 3.1.1")
        self._version = MQTT_3_1_1
        return True

    # -- subscriptions

    async def _subscribe(self, link: BrokerLink, connack: Connack, *, known: bool) -> None:
        """Have the session subscribe to exactly what the routes say; a session that does is asked for nothing."""
        wanted, remembered = wanted_filters(self.config), self._subscriptions
        difference = Difference(wanted, [])
        if remembered is not None:
            difference = remembered.difference(
                wanted, present=connack.session_present, known=known, repeatable=link.version == MQTT_5
            )
        bytes_max = min(REQUEST_BYTES_MAX, connack.number("maximum_packet_size", REQUEST_BYTES_MAX))
        for names in _portions(difference.unsubscribe, bytes_max):
            await link.unsubscribe(names)
        refused: set[str] = set()
        for names in _portions(list(difference.subscribe), bytes_max):
            codes = await link.subscribe([(name, wanted[name]) for name in names])
            refused |= {name for name, code in zip(names, codes, strict=True) if not self._granted(name, code)}
        if remembered is not None:
            granted = {name: qos for name, qos in wanted.items() if name not in refused}
            confirm = functools.partial(remembered.confirm, granted, same_session=connack.session_present and known)
            await asyncio.to_thread(confirm)

    def _granted(self, topic_filter: str, code: int) -> bool:
        qos = wanted_filters(self.config)[topic_filter]
        if code >= FAILURE:
            self.say(logging.ERROR, "the broker refuses a subscription", filter=topic_filter, reason=reason_text(code))
        elif code < qos:
            then = "recorded twice" if code else "lost"
            event = f"the broker grants less than asked: messages in flight may be {then} when a connection breaks"
            self.say(logging.WARNING, event, filter=topic_filter, qos=code)
        return code < FAILURE

    # -- what its link and its session ask for

    def session(self, *, present: bool) -> mqtt.Session:
        """What a connection goes on with; present: the broker has its half of the session."""
        return self._received.attach(present=present)

    def count(self, counter: str, more: int = 1) -> None:
        """Add to one of the counters of `statistics`."""
        self._counters[counter] += more

    # -- what is not recorded

    def not_recorded(self, head: PublishHead, size: int) -> None:
        """A message is larger than the largest record: counted, and told by a gap record."""
        stream = self._stream_of(head.topic)
        if stream is None:
            self._counters["unrouted"] += 1
            return
        self._lose(stream, size)
        topic = shown(head.topic.decode(errors="replace"))
        self.say(logging.ERROR, "message not recorded: it is larger than the largest record", topic=topic, bytes=size)

    def _lose_what_waits(self, link: BrokerLink) -> None:
        """The ring stayed full. The broker sends again what has QoS 1 or 2; nobody sends the rest."""
        before = self._counters["lost"]
        for topic, size in publishes_qos_0(link.kept_data):
            stream = self._stream_of(topic)
            if stream is not None:
                self._lose(stream, size)
        lost = self._counters["lost"] - before
        self.say(logging.ERROR, "the ring stayed full: messages that had arrived are not recorded", lost=lost)
        link.abandon()

    def _tell_drops(self) -> None:
        """Gap records of what routes with overload = "drop-newest" could not take."""
        for partition, count, size, first_ns, last_ns in self.native.take_drops():
            stream = self._routed.name(partition)
            self._gaps.add(stream, self.name, "overload", count=count, bytes=size, first_ns=first_ns, last_ns=last_ns)

    def _lose(self, stream: str, size: int) -> None:
        self._counters["lost"] += 1
        self._gaps.add(stream, self.name, "overload", count=1, bytes=size, first_ns=time.time_ns())

    def _stream_of(self, topic: bytes) -> str | None:
        target = self._routed.find(topic)
        return None if target is None else self._routed.name(target[0])

    # -- the ring's calls

    def _ring_event(self) -> None:
        """Acknowledgements may leave, a stream failed, the disk is full, or there is room again."""
        self._ring.clear_event()
        self._release()
        if self.native.crowded and self.native.has_room():
            self._reopen()

    def _release(self) -> None:
        for link in self.native.release():
            assert isinstance(link, BrokerLink)
            self._give_up(link)

    def _give_up(self, link: BrokerLink) -> None:
        """Take nothing that could not be acknowledged: the broker keeps it and sends it again."""
        if link.ended.done():
            return
        cause = "the disk is full" if link.refused else "the stream of an unacknowledged message has failed"
        self.say(logging.ERROR, f"disconnecting: {cause}")
        link.end(f"{cause}; the log names the stream", Reason.IMPLEMENTATION_ERROR)

    def _reopen(self) -> None:
        self.native.reopen()
        if self._link is not None:
            self._link.retry()

    # -- once a second

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.native.advance()
            self._received.advance()
            if self._link is not None:
                self._link.tick()
                self._link.trim()
            self._say_unrouted()
            self._tell_drops()
            self._release()  # the ring's event does this, and the next, too; once more costs nothing
            if self.native.crowded:
                self._reopen()

    def _say_unrouted(self) -> None:
        unrouted = self.native.counters["unrouted"]
        if unrouted > self._unrouted_said:
            self.say(
                logging.WARNING,
                "messages not recorded: no route takes their topic",
                topic=shown(self.native.unrouted_topic.decode(errors="replace")),
                messages=unrouted - self._unrouted_said,
            )
            self._unrouted_said = unrouted

    # -- words

    def _enter(self, state: str, cause: str) -> None:
        self._state, self._cause = state, cause

    def say(self, level: int, event: str, **fields: object) -> None:
        """Log an event; no payload, no secret. The log itself limits repeats and counts them."""
        self._logger.log(level, event, extra={"fields": {"source": self.name, "broker": self._broker, **fields}})


def _portions(filters: list[str], bytes_max: int) -> list[list[str]]:
    """Filters in groups that fit into one packet each. One that fits into none stands alone: the broker judges it."""
    portions: list[list[str]] = []
    room = 0
    for name in filters:
        size = len(name.encode()) + 3
        if not portions or len(portions[-1]) == FILTERS_MAX or size > room:
            portions.append([])
            room = bytes_max - 8  # fixed header, packet identifier, no properties
        portions[-1].append(name)
        room -= size
    return portions


def _cause_of(error: Exception) -> str:
    """What a person should read."""
    if isinstance(error, LinkEnded | Refused):
        return str(error)
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return str(error) or type(error).__name__
