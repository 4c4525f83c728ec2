"""aiomqtt's client as the subscriber needs it: acknowledgements by hand, back-pressure, and no queue.

aiomqtt acknowledges as soon as it has received and drops what its queue cannot hold. A recorder may do neither, so
this subclass takes each message at once and lets the caller acknowledge it later, and pause reading. All knowledge of
aiomqtt's and paho's inner workings (aiomqtt 2.5, paho-mqtt 2.1) stands in this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway_adapters.mqtt.client_protocol import RETAIN_IF_NEW
from gateway_adapters.mqtt.subscriptions import SESSION_EXPIRY_S

# Packets read at one go, before others have their turn.
READS_MAX = 100


class BrokerClient(aiomqtt.Client):
    """One connection to a broker; make a new one for the next.

    on_message gets paho's message, which has topic (bytes, `_topic`), payload, qos, retain, dup, mid and properties.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        version: aiomqtt.ProtocolVersion,
        client_id: str,
        clean_session: bool,
        keepalive_s: int,
        packet_bytes_max: int,
        inflight_max: int,
        on_message: Callable[[paho.MQTTMessage], None],
        username: str | None,
        password: str | None,
        tls: ssl.SSLContext | None,
        logger: logging.Logger,
    ) -> None:
        self.is_v5 = version is aiomqtt.ProtocolVersion.V5
        self.session_present = False
        self._take = on_message
        self._paused = False
        self._disposed = False
        self._socket_fd = -1
        self._messages_taken = 0
        self._pinged_s = 0.0
        self._read_scheduled = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = threading.get_ident()
        super().__init__(
            host,
            port,
            identifier=client_id,
            protocol=version,
            clean_session=None if self.is_v5 else clean_session,
            clean_start=clean_session if self.is_v5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            keepalive=keepalive_s,
            username=username,
            password=password,
            tls_context=tls,
            logger=logger,
            properties=_connect_properties(clean_session, packet_bytes_max, inflight_max) if self.is_v5 else None,
        )
        self._client.manual_ack_set(True)

    async def until_ended(self, work: Coroutine[Any, Any, None] | None = None) -> None:
        """Wait for the end of the connection and raise it, or for the work to be done if that comes first."""
        task = asyncio.ensure_future(work) if work is not None else None
        try:
            await asyncio.wait([self._ended, task] if task else [self._ended], return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                raise aiomqtt.MqttError("the connection has ended") from self._ended.exception()
            if task is not None:
                task.result()
        finally:
            if task is not None:
                task.cancel()

    def end(self, cause: Exception | None) -> None:
        """Take this connection for ended; `until_ended` raises. The first cause counts."""
        if not self._ended.done():
            if cause is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(cause)

    async def subscribe_to(self, filters: list[tuple[str, int]]) -> list[int]:
        """Subscribe to (filter, QoS) pairs with one packet; the broker's codes, 0x80 and more meaning failure."""
        if self.is_v5:
            options = [
                (topic_filter, SubscribeOptions(qos=qos, retainHandling=RETAIN_IF_NEW)) for topic_filter, qos in filters
            ]
            codes = await self.subscribe(options)
        else:
            codes = await self.subscribe(filters)
        return [code.value if isinstance(code, ReasonCode) else int(code) for code in codes]

    def acknowledge(self, message_id: int) -> None:
        """Send PUBACK for a QoS 1 message."""
        self._client.ack(message_id, 1)

    def pause(self) -> None:
        """Read nothing more; TCP holds the broker back. The connection is kept alive meanwhile."""
        if not self._paused:
            self._paused = True
            if self._socket_fd >= 0:
                self._loop.remove_reader(self._socket_fd)

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if self._socket_fd >= 0:
                self._loop.add_reader(self._socket_fd, self._read)
                self._loop.call_soon(self._read)

    def dispose(self) -> None:
        """Close the socket whatever state it is in. Also ends a connection that is only just being made."""
        self._disposed = True
        if self._misc_task is not None:
            self._misc_task.cancel()
        self._detach()
        self._client.disconnect()  # closes the socket, if there is one
        for future in (self._ended, self._disconnected):
            if future.done() and not future.cancelled():
                future.exception()  # looked at, so that nobody complains that it never was

    # -- aiomqtt's callbacks

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.session_present = flags.session_present
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        who = "the broker closes the connection" if flags.is_disconnect_packet_from_server else "the connection broke"
        self.end(aiomqtt.MqttError(f"{who}: {reason_code}"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self._messages_taken += 1
        self._take(message)

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """Called in the thread that connects."""
        self._loop.call_soon_threadsafe(self._attach, sock.fileno())

    def _on_socket_close(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        """Called before the socket is closed, in the loop's thread or, while connecting, in another."""
        if threading.get_ident() == self._thread:
            self._detach()
        else:
            self._loop.call_soon_threadsafe(self._detach)

    def _attach(self, fd: int) -> None:
        if self._disposed:
            self._client.disconnect()
            return
        self._socket_fd = fd
        if not self._paused:
            self._loop.add_reader(fd, self._read)
        self._misc_task = self._loop.create_task(self._misc_loop())

    def _detach(self) -> None:
        if self._socket_fd >= 0:
            self._loop.remove_reader(self._socket_fd)
            self._socket_fd = -1
            if self._misc_task is not None:
                self._misc_task.cancel()
            # aiomqtt forgets an end that comes right after CONNACK. Later, so that paho can say the cause first.
            self._loop.call_soon(self.end, None)

    def _read(self) -> None:
        """Take what the socket has, a bounded number of packets at a time."""
        try:
            for _ in range(READS_MAX):
                if self._paused or self._socket_fd < 0:
                    return
                taken = self._messages_taken
                self._client.loop_read()
                if self._messages_taken == taken and not self._has_decrypted():
                    return
            if self._has_decrypted() and not self._read_scheduled:
                self._read_scheduled = True
                self._loop.call_soon(self._read_scheduled_part)
        except Exception as error:  # noqa: BLE001  # whatever paho raises, the connection is broken
            self.end(error)

    def _read_scheduled_part(self) -> None:
        self._read_scheduled = False
        self._read()

    def _has_decrypted(self) -> bool:
        """What TLS has decrypted already makes no socket readable."""
        pending = getattr(self._client.socket(), "pending", None)
        return bool(pending and pending())

    async def _misc_loop(self) -> None:
        """Keep-alive. While paused no PINGRESP is read, so paho would give up; the broker still has to hear from us."""
        while True:
            if not self._paused:
                if self._client.loop_misc() != paho.MQTT_ERR_SUCCESS:
                    return
            elif time.monotonic() - self._pinged_s > self._keepalive / 2:
                self._pinged_s = time.monotonic()
                with contextlib.suppress(OSError, ValueError):  # a broken connection is found when reading goes on
                    self._client._send_pingreq()
            await asyncio.sleep(1)


def _connect_properties(clean_session: bool, packet_bytes_max: int, inflight_max: int) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 0 if clean_session else SESSION_EXPIRY_S
    properties.MaximumPacketSize = packet_bytes_max
    properties.ReceiveMaximum = inflight_max
    return properties
