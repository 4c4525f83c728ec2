"""The MQTT subscriber with `engine = "aiomqtt"`: records what an existing broker has, through aiomqtt and paho.

A QoS 1 message is acknowledged to the broker when its record is on disk, in the order of arrival, and the session is
persistent: what the broker had is delivered again after a kill -9 of the gateway. When the ring to the writer is full
the subscriber stops reading; nothing is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
from gateway_native import ring as native_ring
from gateway_native.batch import encode_headers

from gateway.backoff import Backoff
from gateway.broker_tls import broker_tls
from gateway.clock import NS_PER_S
from gateway.config import SubscriberConfig
from gateway.ingest.source import SourceContext
from gateway_adapters.mqtt.broker import BrokerClient
from gateway_adapters.mqtt.headers import message_headers
from gateway_adapters.mqtt.routes import RoutedStreams
from gateway_adapters.mqtt.shown import shown
from gateway_adapters.mqtt.subscriptions import client_id_of, wanted_filters

# QoS 1 messages that an MQTT 5 broker may send before the first is acknowledged.
INFLIGHT_MAX = 1_024
# Messages that had arrived when the ring turned out full; at these numbers reading stops.
HELD_MESSAGES_MAX = 1_000
HELD_BYTES_MAX = 4 * 2**20
PAUSE_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 2.0

# Refusals that mean "not this version": MQTT 5's reason code and MQTT 3.1.1's return code.
_UNSUPPORTED_VERSION = (0x84, 1)


@dataclass(frozen=True, slots=True)
class _Held:
    """A message on its way into the ring. message_id is 0 with QoS 0."""

    partition: int
    key: bytes
    value: bytes
    headers: bytes
    time_ns: int
    message_id: int

    @property
    def size(self) -> int:
        return len(self.key) + len(self.value) + len(self.headers)


class AiomqttSubscriber:
    """A source: one broker, one session, one ring."""

    kind = "mqtt.subscriber"

    def __init__(self, name: str, config: SubscriberConfig, context: SourceContext) -> None:
        self.name = name
        self.config = config
        self._logger = context.logger
        self._paho_logger = context.logger.getChild("paho")
        self._paho_logger.setLevel(logging.WARNING)  # below that it describes every message
        self._ring = context.engine.ring(name)
        self._gaps = context.engine.gaps
        self._routed = RoutedStreams(name, config.routes, context.engine)
        self._record_bytes_max = min(context.config.limits.record_bytes_max, self._ring.largest_record)
        self._client_id = client_id_of(name, config, context.config.site)
        self._version = aiomqtt.ProtocolVersion.V5
        self._tls: ssl.SSLContext | None = None
        self._client: BrokerClient | None = None
        self._running: asyncio.Task[None] | None = None
        self._state, self._cause = "starting", ""
        self._paused = False  # for good: the source stops
        self._standing = False  # for a while: see `hold`
        self._ever_subscribed = False
        # Of the present connection, in the order of arrival: partition, sequence (0: it waits for no disk), message id.
        self._unacknowledged: deque[tuple[int, int, int]] = deque()
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._counters = dict.fromkeys(
            ("records", "bytes", "acknowledged", "retained", "unrouted", "lost", "refused_full_disk", "connects",
             "failures", "paused"), 0,
        )  # fmt: skip

    # -- the source's life

    async def start(self) -> None:
        """Begin connecting, for as long as it takes. Raises SourceError when the TLS files cannot be used."""
        self._tls = broker_tls(self.config, self.name)
        asyncio.get_running_loop().add_reader(self._ring.event_fd, self._ring_event)
        self._running = asyncio.create_task(self._run(), name=f"mqtt-subscriber-{self.name}")

    async def pause(self) -> None:
        """Read nothing more; wait until what had been read is in the ring."""
        self._paused = True
        if self._client is not None:
            self._client.pause()
        deadline = time.monotonic() + PAUSE_TIMEOUT_S
        while self._held and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            self._put_held()
        if self._held:
            lost = [held for held in self._held if held.message_id == 0]  # the broker sends the others again
            for held in lost:
                self._lose(held)
            self._say(logging.ERROR, "the ring stayed full: messages that had arrived are not recorded", lost=len(lost))

    async def drain(self) -> None:
        """Acknowledge what has become durable."""
        self._ring_event()

    async def stop(self) -> None:
        """Disconnect; the session stays at the broker. Safe after any of the others."""
        self._paused = True
        asyncio.get_running_loop().remove_reader(self._ring.event_fd)
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running], timeout=STOP_TIMEOUT_S)
            self._running = None
        self._held.clear()
        self._state = "stopped"

    async def hold(self) -> None:
        """Read nothing for a while; the connection is kept alive, and the broker queues as far as it does."""
        self._standing = True
        if self._client is not None:
            self._client.pause()

    async def release(self) -> None:
        """Read on, as soon as what had been read is in the ring."""
        self._standing = False
        self._put_held()

    def statistics(self) -> dict[str, Any]:
        """Counters since the start, and the present state with its cause."""
        return {
            "state": "paused" if self._standing and self._state == "connected" else self._state,
            "cause": self._cause,
            **self._counters,
            **self._routed.statistics(),
            "unacknowledged": len(self._unacknowledged),
            "waiting_for_room": len(self._held),
        }

    # -- the connection

    async def _run(self) -> None:
        """Connect, and connect again, until cancelled."""
        backoff = Backoff(self.config.reconnect_min_ns, self.config.reconnect_max_ns)
        while True:
            connected_s = time.monotonic()
            try:
                await self._session()
            except Exception as error:  # noqa: BLE001  # a source must not die of a broker, whatever it sends
                cause = _cause_of(error)
                if self._other_version(error):
                    continue
            delay_s = backoff.after(time.monotonic() - connected_s if self._state == "connected" else 0)
            self._counters["failures"] += 1
            event = "broker connection lost" if self._state == "connected" else "broker not reached"
            self._enter("waiting", cause)
            self._say(logging.WARNING, event, cause=cause, retry_in_s=round(delay_s, 1))
            await asyncio.sleep(delay_s)

    async def _session(self) -> None:
        """One connection, from CONNECT to its end, which is always an error."""
        # A client that may not read cannot connect either.
        while self._held or self._paused or self._standing:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        self._enter("connecting", "")
        client = self._client = self._make_client()
        try:
            async with client:
                await client.until_ended(self._subscribe(client))
                self._enter("connected", "")
                self._counters["connects"] += 1
                self._say(
                    logging.INFO,
                    "connected to the broker",
                    version="5" if client.is_v5 else "3.1.1",
                    session="resumed" if client.session_present else "new",
                )
                await client.until_ended()
        finally:
            client.dispose()
            self._client = None
            # The broker delivers again, on the next connection, what was not acknowledged on this one. What is held
            # is recorded all the same: rather twice than never.
            self._unacknowledged.clear()
            self._held = deque(replace(held, message_id=0) for held in self._held)
            self._ring.set_ack_interest(False)

    def _make_client(self) -> BrokerClient:
        config = self.config
        return BrokerClient(
            config.host,
            config.port,
            version=self._version,
            client_id=self._client_id,
            clean_session=config.clean_session,
            keepalive_s=config.keepalive_ns // NS_PER_S,
            packet_bytes_max=self._record_bytes_max,
            inflight_max=INFLIGHT_MAX,
            on_message=self._take,
            username=config.username,
            password=config.password.get_secret_value() if config.password is not None else None,
            tls=self._tls,
            logger=self._paho_logger,
        )

    async def _subscribe(self, client: BrokerClient) -> None:
        """MQTT 3.1.1 repeats retained messages at every SUBSCRIBE, so a session that is there is not asked again."""
        if not client.is_v5 and client.session_present and self._ever_subscribed:
            return
        filters = list(wanted_filters(self.config).items())
        for (topic_filter, qos), code in zip(filters, await client.subscribe_to(filters), strict=True):
            if code >= 0x80:
                self._say(
                    logging.ERROR, "the broker refuses a subscription", filter=topic_filter, reason=f"0x{code:02X}"
                )
            elif code < qos:
                self._say(
                    logging.WARNING,
                    "the broker grants less than asked: messages in flight are lost when a connection breaks",
                    filter=topic_filter,
                    qos=code,
                )
        self._ever_subscribed = True

    def _other_version(self, error: Exception) -> bool:
        """Try the other MQTT version at once, if that is what the broker objects to."""
        code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
        if self._version is not aiomqtt.ProtocolVersion.V5 or getattr(code, "value", code) not in _UNSUPPORTED_VERSION:
            return False
        self._say(logging.INFO, "the broker does not speak MQTT 5; using 3.1.1")
        self._version = aiomqtt.ProtocolVersion.V311
        return True

    # -- messages

    def _take(self, message: paho.MQTTMessage) -> None:
        """A message has arrived: into the ring, or behind those that wait for room."""
        time_ns = time.time_ns()
        topic = message.topic.encode()
        target = self._routed.find(topic)
        message_id = message.mid if message.qos else 0
        if target is None:
            self._counters["unrouted"] += 1
            self._say(logging.WARNING, "message not recorded: no route takes its topic", topic=shown(message.topic))
            self._acknowledge_later(0, 0, message_id)
            return
        headers = encode_headers(
            message_headers(qos=message.qos, retain=message.retain, dup=message.dup, **_properties(message))
        )
        partition, key = target
        held = _Held(partition, key, bytes(message.payload), headers, time_ns, message_id)
        if held.size > self._record_bytes_max:
            self._lose(held)
            self._say(
                logging.ERROR,
                "message not recorded: it is larger than the largest record",
                topic=shown(message.topic),
                bytes=held.size,
            )
            self._acknowledge_later(0, 0, message_id)
            return
        self._counters["retained"] += message.retain
        if self._held or not self._put(held):
            self._hold(held)

    def _put(self, held: _Held) -> bool:
        """Into the ring; False when it is full."""
        flags = native_ring.WANTS_ACK if held.message_id else 0
        if held.message_id and not self._unacknowledged:
            self._ring.set_ack_interest(True)  # before the record can become durable
        sequence = self._ring.append(held.partition, held.key, held.value, held.headers, held.time_ns, flags)
        if not sequence:
            return False
        self._counters["records"] += 1
        self._counters["bytes"] += len(held.value)
        self._acknowledge_later(held.partition, sequence, held.message_id)
        return True

    def _lose(self, held: _Held) -> None:
        """It will not be recorded, and nobody sends it again."""
        self._counters["lost"] += 1
        stream = self._routed.name(held.partition)
        self._gaps.add(stream, self.name, "overload", count=1, bytes=held.size, first_ns=held.time_ns)

    def _hold(self, held: _Held) -> None:
        self._held.append(held)
        self._held_bytes += held.size
        too_much = len(self._held) >= HELD_MESSAGES_MAX or self._held_bytes >= HELD_BYTES_MAX
        if too_much and self._client is not None:
            self._counters["paused"] += 1
            self._client.pause()

    def _put_held(self) -> None:
        while self._held and self._put(self._held[0]):
            self._held_bytes -= self._held.popleft().size
        if not (self._held or self._paused or self._standing) and self._client is not None:
            self._client.resume()

    # -- acknowledgements

    def _acknowledge_later(self, partition: int, sequence: int, message_id: int) -> None:
        """In the order of arrival; sequence 0 waits for nothing but its turn."""
        if message_id == 0 or self._client is None:
            return
        self._unacknowledged.append((partition, sequence, message_id))
        if sequence == 0:
            self._release()

    def _release(self) -> None:
        while self._unacknowledged and self._client is not None:
            partition, sequence, message_id = self._unacknowledged[0]
            verdict = self._ring.verdict(partition, sequence) if sequence else native_ring.ACKED
            if verdict == native_ring.FAILED:
                self._give_up("the stream of an unacknowledged message has failed")
                return
            if verdict != native_ring.ACKED:
                return
            self._unacknowledged.popleft()
            self._client.acknowledge(message_id)
            self._counters["acknowledged"] += 1
        self._ring.set_ack_interest(False)

    def _give_up(self, cause: str) -> None:
        """Stop taking messages that could not be acknowledged: the broker keeps them and sends them again."""
        self._say(logging.ERROR, f"disconnecting: {cause}")
        self._unacknowledged.clear()
        if self._client is not None:
            self._client.pause()
            self._client.end(aiomqtt.MqttError(f"{cause}; the log names the stream"))

    def _settle_refusals(self) -> None:
        """A full disk: what was refused must not be acknowledged, so the connection is given up."""
        if not self._ring.refusals_pending:
            return
        refused = sum(
            self._ring.verdict(partition, sequence) == native_ring.REFUSED
            for partition, sequence, _ in self._unacknowledged
            if sequence
        )
        if refused:
            self._counters["refused_full_disk"] += refused
            self._give_up("the disk is full")
        self._ring.confirm_refusals()

    def _ring_event(self) -> None:
        self._ring.clear_event()
        self._settle_refusals()
        self._release()
        if self._held:
            self._put_held()

    # -- words

    def _enter(self, state: str, cause: str) -> None:
        self._state, self._cause = state, cause

    def _say(self, level: int, event: str, **fields: object) -> None:
        """Log an event; no payload, no secret. The log itself limits repeats and counts them."""
        broker = f"{self.config.host}:{self.config.port}"
        self._logger.log(level, event, extra={"fields": {"source": self.name, "broker": broker, **fields}})


def _cause_of(error: Exception) -> str:
    """What a person should read: aiomqtt hides the real cause of a lost connection behind its own."""
    cause = str(error.__cause__ or error) or type(error).__name__
    return "it does not answer" if cause == "Operation timed out" else cause


def _properties(message: paho.MQTTMessage) -> dict[str, Any]:
    """MQTT 5 properties as `message_headers` takes them."""
    found = getattr(message, "properties", None)
    if found is None:
        return {}
    names = {
        "payload_format": "PayloadFormatIndicator",
        "message_expiry": "MessageExpiryInterval",
        "content_type": "ContentType",
        "response_topic": "ResponseTopic",
        "correlation_data": "CorrelationData",
        "user_properties": "UserProperty",
    }
    return {ours: getattr(found, theirs) for ours, theirs in names.items() if hasattr(found, theirs)}
