"""A broker as the target of a replay, through paho: what is under way is bounded, what it refuses is counted."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Literal, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.broker_tls import broker_tls
from gateway.clock import NS_PER_S
from gateway.config import BrokerConfig
from gateway.errors import SourceError
from gateway.log.message_headers import MessageHeaders
from gateway.replay.republish import STEP_S, Message

Version = Literal["5", "3.1.1"]

CONNECT_TIMEOUT_S = 10.0
# Until the broker has taken the oldest message, reconnecting if need be.
PATIENCE_S = 60.0
# Messages, and bytes of payload, handed to the client and not yet taken by the broker.
WINDOW_MESSAGES, WINDOW_BYTES = 1_000, 16 << 20
INFLIGHT_MAX = 200
# MQTT 5 reason codes from here on are failures.
_FAILURE = 0x80


class _UnderWay(NamedTuple):
    """A message that was handed to paho, and on which connection."""

    info: paho.MQTTMessageInfo
    size: int
    qos: int
    connection: int


class MqttTarget:
    """One connection. It is made again when it breaks; then unacknowledged messages are sent again (QoS 1 and 2)."""

    def __init__(self, config: BrokerConfig, version: Version = "5") -> None:
        """Connect. SourceError if the broker cannot be reached, or refuses."""
        self._config = config
        self._is_v5 = version == "5"
        self._under_way: deque[_UnderWay] = deque()
        self._bytes = 0
        self._refused = self._lost = 0
        self._connection = 0
        self._window = 1
        self._answered = threading.Event()
        self._answer: ReasonCode | None = None
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id or "",
            protocol=paho.MQTTv5 if self._is_v5 else paho.MQTTv311,
        )
        self._client.max_inflight_messages_set(INFLIGHT_MAX)
        self._client.max_queued_messages_set(2 * WINDOW_MESSAGES)
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        if config.username is not None:
            password = config.password.get_secret_value() if config.password is not None else None
            self._client.username_pw_set(config.username, password)
        tls = broker_tls(config, self._name)
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        self._connect()

    @property
    def _name(self) -> str:
        return f"{self._config.host}:{self._config.port}"

    def publish(self, message: Message) -> None:
        """Hand it over; waits while too much is under way. SourceError if the broker takes nothing any more."""
        size = len(message.payload)
        most = self._window if message.headers.qos else WINDOW_MESSAGES
        while self._under_way and (len(self._under_way) >= most or self._bytes + size > WINDOW_BYTES):
            self._wait_for_oldest()
        info = self._send(message)
        self._under_way.append(_UnderWay(info, size, message.headers.qos, self._connection))
        self._bytes += size

    def _send(self, message: Message) -> paho.MQTTMessageInfo:
        headers = message.headers
        properties = _properties(headers) if self._is_v5 else None
        deadline = time.monotonic() + PATIENCE_S
        while True:
            while not self._client.is_connected():
                if time.monotonic() > deadline:
                    raise SourceError(
                        f"the broker is away, and did not come back within {PATIENCE_S:g} s.", source=self._name
                    )
                time.sleep(STEP_S)
            info = self._client.publish(message.topic, message.payload, headers.qos, headers.retain, properties)
            if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
                return info
            if info.rc != MQTTErrorCode.MQTT_ERR_NO_CONN:
                raise SourceError(f"the message cannot be sent: {paho.error_string(info.rc)}", source=self._name)
            if headers.qos:  # kept by paho, for the next connection
                info.rc = MQTTErrorCode.MQTT_ERR_SUCCESS
                return info

    def finish(self) -> tuple[int, int]:
        """Wait until the broker has everything: how many it refused (MQTT 5, QoS 1 and 2), and how many were lost.

        Lost are messages with QoS 0 that were under way when a connection broke.
        """
        while self._under_way:
            self._wait_for_oldest()
        return self._refused, self._lost

    def close(self) -> None:
        """Disconnect. What was not waited for may not have arrived."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connect(self) -> None:
        config = self._config
        try:
            keepalive_s = config.keepalive_ns // NS_PER_S
            self._client.connect(config.host, config.port, keepalive_s)
        except OSError as error:
            raise SourceError(
                f"the broker cannot be reached: {error.strerror or error}. Check address and port.", source=self._name
            ) from error
        self._client.loop_start()
        answered = self._answered.wait(CONNECT_TIMEOUT_S)
        refused = self._answer is not None and self._answer.is_failure
        if answered and not refused:
            return
        self._client.loop_stop()
        if not answered:
            raise SourceError(f"the broker does not answer within {CONNECT_TIMEOUT_S:g} s.", source=self._name)
        hint = " Try --mqtt 3.1.1." if self._is_v5 and "version" in str(self._answer).lower() else ""
        raise SourceError(f"the broker refuses the connection: {self._answer}.{hint}", source=self._name)

    def _wait_for_oldest(self) -> None:
        oldest = self._under_way[0]
        deadline = time.monotonic() + PATIENCE_S
        while not oldest.info.is_published():
            if oldest.qos == 0 and oldest.connection != self._connection:
                self._lost += 1
                break
            if time.monotonic() > deadline:
                raise SourceError(
                    f"the broker takes nothing for {PATIENCE_S:g} s, with {len(self._under_way):,} messages under way.",
                    source=self._name,
                )
            oldest.info.wait_for_publish(STEP_S)
        self._under_way.popleft()
        self._bytes -= oldest.size

    # Called on paho's thread.

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._answer = reason
        self._connection += 1
        # paho does not mind it, and brokers end connections that exceed it (MQTT 5.0, section 3.3.4).
        self._window = min(INFLIGHT_MAX, getattr(properties, "ReceiveMaximum", INFLIGHT_MAX))
        self._answered.set()

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        if reason.value >= _FAILURE:
            self._refused += 1


def _properties(headers: MessageHeaders) -> Properties:
    made = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    made.UserProperty = list(headers.user_properties)
    if headers.payload_format is not None:
        made.PayloadFormatIndicator = headers.payload_format
    if headers.message_expiry is not None:
        made.MessageExpiryInterval = headers.message_expiry
    if headers.content_type is not None:
        made.ContentType = headers.content_type
    if headers.response_topic is not None:
        made.ResponseTopic = headers.response_topic
    if headers.correlation_data is not None:
        made.CorrelationData = headers.correlation_data
    return made
