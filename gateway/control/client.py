"""aiomqtt's client as the control plane uses it: what the broker allows is kept, what arrives is bounded."""

from __future__ import annotations

import logging
import ssl
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from gateway.clock import NS_PER_S
from gateway.config import BrokerConfig
from gateway.control.commands import REQUEST_BYTES_MAX
from gateway.control.outbox import Outgoing

# Until the broker has answered, or taken what we send.
ANSWER_TIMEOUT_S = 10.0
# Packets of the broker that are larger are not sent to us (MQTT 5), so that a request can be told it is too large.
PACKET_BYTES_MAX = 16 * REQUEST_BYTES_MAX
ARRIVED_MAX = 64
# Refusals that mean "not this version": MQTT 5's reason code and MQTT 3.1.1's return code.
_UNSUPPORTED_VERSION = (0x84, 1)


class ControlClient(aiomqtt.Client):
    """One connection to the broker, which publishes the will if it breaks; make a new one for the next."""

    def __init__(
        self,
        config: BrokerConfig,
        *,
        version: aiomqtt.ProtocolVersion,
        client_id: str,
        will: aiomqtt.Will,
        tls: ssl.SSLContext | None,
        logger: logging.Logger,
    ) -> None:
        self.is_v5 = version is aiomqtt.ProtocolVersion.V5
        self.packet_bytes_max: int | None = None  # what the broker takes
        self._closed = False
        properties = None
        if self.is_v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = PACKET_BYTES_MAX
        super().__init__(
            config.host,
            config.port,
            identifier=client_id,
            protocol=version,
            clean_session=None if self.is_v5 else True,
            clean_start=True if self.is_v5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=config.keepalive_ns // NS_PER_S,
            username=config.username,
            password=config.password.get_secret_value() if config.password is not None else None,
            will=will,
            tls_context=tls,
            timeout=ANSWER_TIMEOUT_S,
            max_queued_incoming_messages=ARRIVED_MAX,
            properties=properties,
            logger=logger,
        )

    def fits(self, message: Outgoing) -> bool:
        """Whether the broker takes packets of this size (section 3.2.2.3.6), with room for what surrounds it."""
        return self.packet_bytes_max is None or message.size + 64 + len(message.content_type) <= self.packet_bytes_max

    async def send(self, message: Outgoing) -> None:
        """Publish it; returns when it has left, with QoS 1 when the broker has it. Raises MqttError."""
        properties = None
        if self.is_v5 and (message.content_type or message.correlation is not None):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if message.content_type:
                properties.ContentType = message.content_type
            if message.correlation is not None:
                properties.CorrelationData = message.correlation
        await self.publish(message.topic, message.payload, message.qos, message.retain, properties)

    def close(self) -> None:
        """Close the socket whatever state it is in, without DISCONNECT: unless that was sent, the will is published.

        aiomqtt leaves it open when a broker does not answer any more.
        """
        self._closed = True
        if not self._disconnected.done():
            self._disconnected.set_result(None)
        self._client._sock_close()
        for future in (self._connected, self._disconnected):
            if future.done() and not future.cancelled():
                future.exception()  # looked at, so that nobody complains that it never was

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """Called in the thread that connects, which may be late."""
        if self._closed:
            sock.close()
        else:
            super()._on_socket_open(client, userdata, sock)

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.packet_bytes_max = getattr(properties, "MaximumPacketSize", None)
        super()._on_connect(client, userdata, flags, reason_code, properties)


def refuses_version(error: Exception) -> bool:
    """Is this a broker that does not speak MQTT 5?"""
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    return getattr(code, "value", code) in _UNSUPPORTED_VERSION
