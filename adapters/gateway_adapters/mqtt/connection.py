"""One device connected to a listener: what the gateway decides about it.

PUBLISH, PINGREQ and acknowledgements stay native (`gateway_native.mqtt.Connection`); here are the packets that need a
decision, refusals, and the end of a connection.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from typing import TYPE_CHECKING, Any, cast

from gateway_native import mqtt

from gateway_adapters.mqtt import protocol
from gateway_adapters.mqtt.protocol import Packet, Reason

if TYPE_CHECKING:
    from gateway_adapters.mqtt.listener import MqttListener

# Of all connections: after our last word, how long a peer may take to close its end.
LINGER_S = 2
# A peer that reads nothing for so long while acknowledgements wait for it is gone.
STALLED_S = 60
# MQTT allows one and a half keep-alive intervals (section 3.1.2.10).
KEEPALIVE_GRACE = 1.5
# What a peer calls itself is cut to this length in a log line: a client id may have 65,535 bytes.
SHOWN_CHARACTERS_MAX = 120


def shown(text: str) -> str:
    """Text from a peer for a log line: printable, on one line, not too long."""
    safe = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return safe if len(safe) <= SHOWN_CHARACTERS_MAX else f"{safe[:SHOWN_CHARACTERS_MAX]}…"


class DeviceConnection(mqtt.Connection, asyncio.BufferedProtocol):
    """The protocol object of one TCP connection. Everything runs on the event loop."""

    def __init__(self, listener: MqttListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._stalled_at: int | None = None  # tick
        self._ended_at: int | None = None  # tick
        self._will: protocol.Will | None = None
        self._packet_bytes_max: int | None = None  # what the client takes
        self.peer = "?"
        self.client_id = ""
        self.patience = listener.connect_timeout_s

    def __new__(cls, listener: MqttListener) -> DeviceConnection:
        return super().__new__(cls, listener.native)

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own does not inherit from asyncio's
        self.peer = _address(transport.get_extra_info("peername"))
        if self._listener.admit(self):
            self.write = self._transport.write
        else:
            self.close()
            self._transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self.write = None
        self._transport = None
        if self.blocked:  # packets that had arrived are still to be recorded
            return
        self._forget()

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
        """The parser stopped: decide on packets, close on a fault, wait when the ring is full."""
        try:
            while (packet := self.take()) is not None:
                self._decide(*packet)
        except mqtt.RemoteFault as fault:
            self._refuse(fault)
        if self.blocked:
            self._listener.wait_for_room(self)
        elif self._transport is None and not self.closed:
            self._forget()
        self.update_reading()

    def _decide(self, kind: int, _flags: int, body: bytes) -> None:
        if kind == Packet.CONNECT:
            self._connect(body)
        elif kind == Packet.SUBSCRIBE:
            self._subscribe(protocol.decode_subscribe(body, self.version))
        elif kind == Packet.UNSUBSCRIBE:
            self._unsubscribe(protocol.decode_unsubscribe(body, self.version))
        elif kind == Packet.DISCONNECT:
            self._disconnect(protocol.decode_disconnect(body, self.version))
        else:
            name = Packet(kind).name
            raise mqtt.RemoteFault(Reason.PROTOCOL_ERROR, f"the client sent {name}, which answers nothing of ours")

    def _connect(self, body: bytes) -> None:
        if self.version:
            raise mqtt.RemoteFault(Reason.PROTOCOL_ERROR, "the client sent a second CONNECT")
        connect = protocol.decode_connect(body)
        self.client_id = connect.client_id
        self._packet_bytes_max = connect.number("maximum_packet_size", 0) or None
        try:
            self._check(connect)
        except mqtt.RemoteFault as fault:
            raise protocol.ConnectRefused(connect.version, fault.reason, fault.cause) from None
        assigned = "" if self.client_id else f"gateway-{secrets.token_hex(8)}"
        self.client_id = self.client_id or assigned
        keepalive_s = self._keepalive(connect)
        self._send(protocol.connack(connect.version, Reason.SUCCESS, self._offer(connect, assigned, keepalive_s)))
        self._listener.register(self)
        self._will = connect.will
        self.patience = math.ceil(keepalive_s * KEEPALIVE_GRACE)
        receive_maximum = self._listener.config.receive_maximum
        self.open(version=connect.version, inflight_max=receive_maximum if connect.version == 5 else 65_535)

    def _check(self, connect: protocol.Connect) -> None:
        if "authentication_method" in connect.properties:
            raise mqtt.RemoteFault(
                Reason.BAD_AUTHENTICATION_METHOD, "the client asks for an authentication method; there is none"
            )
        if not connect.client_id and connect.version == protocol.MQTT_3_1_1 and not connect.clean_start:
            raise mqtt.RemoteFault(
                Reason.CLIENT_ID_NOT_VALID, "the client asks for a lasting session but gives no client id"
            )
        if connect.will is not None and connect.will.qos > 1:
            raise mqtt.RemoteFault(Reason.QOS_NOT_SUPPORTED, "the will has QoS 2; this gateway takes 0 and 1")
        if self._listener.is_full(connect.client_id):
            self._listener.count("refused")
            limit = self._listener.config.connections_max
            raise mqtt.RemoteFault(Reason.QUOTA_EXCEEDED, f"{limit} clients are connected already (connections_max)")

    def _keepalive(self, connect: protocol.Connect) -> int:
        """Seconds, 0 for none. Only MQTT 5 clients can be told to use another than they asked for."""
        keepalive_s, longest_s = connect.keepalive_s, self._listener.keepalive_max_s
        if connect.version == protocol.MQTT_5 and (keepalive_s == 0 or keepalive_s > longest_s):
            return longest_s
        return keepalive_s

    def _offer(self, connect: protocol.Connect, assigned: str, keepalive_s: int) -> dict[str, int | str]:
        """CONNACK's properties: everything in which this is less than a full broker (section 3.2.2.3)."""
        config = self._listener.config
        offer: dict[str, int | str] = {
            "receive_maximum": config.receive_maximum,
            "maximum_qos": 1,
            "maximum_packet_size": self._listener.packet_bytes_max,
        }
        if assigned:
            offer["assigned_client_id"] = assigned
        if keepalive_s != connect.keepalive_s:
            offer["server_keepalive"] = keepalive_s
        if connect.number("session_expiry", 0):
            offer["session_expiry"] = 0
        if config.subscribe == "refuse":
            offer["wildcard_subscription_available"] = 0
            offer["subscription_identifiers_available"] = 0
        offer["shared_subscription_available"] = 0
        return offer

    def _subscribe(self, packet: protocol.Subscribe) -> None:
        accept = self._listener.config.subscribe == "accept"
        codes = []
        for topic_filter, qos in packet.filters:
            if not protocol.is_filter(topic_filter):
                codes.append(int(Reason.TOPIC_FILTER_INVALID))
            else:
                codes.append(min(qos, 1) if accept else int(Reason.IMPLEMENTATION_ERROR))
        if not accept:
            self._listener.count("subscriptions_refused", len(codes))
            self._say(logging.INFO, "subscription refused: this gateway records, it delivers nothing")
        self._send(protocol.suback(self.version, packet.packet_id, codes))

    def _unsubscribe(self, packet: protocol.Unsubscribe) -> None:
        accept = self._listener.config.subscribe == "accept"
        code = Reason.SUCCESS if accept else Reason.NO_SUBSCRIPTION_EXISTED
        self._send(protocol.unsuback(self.version, packet.packet_id, [code] * len(packet.filters)))

    def _disconnect(self, packet: protocol.Disconnect) -> None:
        if packet.reason != Reason.DISCONNECT_WITH_WILL:
            self._will = None
        self._end()

    # -- the end

    def _refuse(self, fault: mqtt.RemoteFault) -> None:
        """One line in the log, the right reason code to the peer, and the end of this connection only."""
        self._listener.count("faults")
        topic: dict[str, object] = {}
        if fault.reason == Reason.TOPIC_NAME_INVALID:
            topic["topic"] = shown(self.group.unrouted_topic.decode(errors="replace"))
        self._say(logging.WARNING, f"connection closed: {fault.cause}", reason=f"0x{fault.reason:02X}", **topic)
        if isinstance(fault, protocol.ConnectRefused):
            self._send_last(protocol.connack(fault.version, fault.reason) if fault.version else b"")
        else:
            self._send_disconnect(fault.reason, fault.cause)
        self._end()

    def fail(self) -> None:
        """What this client waits for will never be acknowledged: the stream has failed, or the disk is full.

        Of a full disk MQTT 5 clients are told publish by publish; MQTT 3.1.1 knows no way but this.
        """
        if self.refused:
            self._say(logging.WARNING, "connection closed: the disk is full, and the stream refuses records")
            self._end()
            return
        self._listener.count("failed")
        self._say(logging.ERROR, "connection closed: the stream of an unacknowledged publish has failed")
        self._send_disconnect(Reason.IMPLEMENTATION_ERROR, "the record could not be stored")
        self._end()

    def yield_to(self, other: DeviceConnection) -> None:
        """Another connection has brought the same client id (section 4.13, reason 0x8E)."""
        self._say(logging.INFO, "connection taken over by another with the same client id", by=other.peer)
        self._send_disconnect(Reason.SESSION_TAKEN_OVER, "another connection uses this client id")
        self._end()

    def shut_down(self) -> None:
        """The gateway stops. The device has not died, so its will is not published."""
        self._will = None
        if not self.closed:
            self._send_disconnect(Reason.SERVER_SHUTTING_DOWN, "the gateway stops")
            self._end()

    def abort(self) -> None:
        """Close at once, whatever is still on its way."""
        if self._transport is not None:
            self._transport.abort()

    def look_after(self) -> None:
        """Once a second: time-outs."""
        tick = self.group.tick
        if self._ended_at is not None:
            if tick - self._ended_at > LINGER_S:
                self.abort()
        elif self.overdue:
            self._listener.count("timeouts")
            if self.version:
                self._say(logging.INFO, "connection closed: nothing came within the keep-alive time")
            else:
                self._say(logging.INFO, "connection closed: no CONNECT came in time")
            self._send_disconnect(Reason.KEEP_ALIVE_TIMEOUT, "nothing came within the keep-alive time")
            self._end()
        elif self._stalled_at is not None and tick - self._stalled_at > STALLED_S:
            self._listener.count("timeouts")
            self._say(logging.WARNING, "connection closed: the client does not read its acknowledgements")
            self._end()
            self.abort()
        else:
            self.trim()

    def _end(self) -> None:
        """Say no more, hear no more. The peer is given time to read our last word before the socket goes."""
        self._forget()
        self._ended_at = self.group.tick
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            # Closing now, with bytes of the peer unread, would reset the connection and destroy that last word.
            self._transport.write_eof()
            self.update_reading()
        else:
            self._transport.close()

    def _forget(self) -> None:
        """Leave the listener's books, and publish the will that nothing has revoked."""
        if not self.closed:
            self._listener.count("unanswered", self.close())
            self._listener.leave(self)
            will, self._will = self._will, None
            if will is not None:
                self._listener.publish_will(will)
        if self._transport is None:
            self._listener.remove(self)

    def _send(self, packet: bytes) -> None:
        if not packet or self.write is None:
            return
        if self._packet_bytes_max is not None and len(packet) > self._packet_bytes_max:
            raise mqtt.RemoteFault(
                Reason.PACKET_TOO_LARGE, "the client's maximum packet size is too small for our answer"
            )
        self.write(packet)

    def _send_disconnect(self, reason: int, text: str) -> None:
        self._send_last(protocol.disconnect(self.version, reason, text, self._packet_bytes_max))

    def _send_last(self, packet: bytes) -> None:
        """Before the end: what the client could not take is left out."""
        if packet and self.write is not None and len(packet) <= (self._packet_bytes_max or len(packet)):
            self.write(packet)

    def _say(self, level: int, event: str, **fields: object) -> None:
        self._listener.say(level, event, peer=self.peer, client=shown(self.client_id), **fields)


def _address(peername: Any) -> str:
    """host:port, with brackets around IPv6."""
    if not isinstance(peername, tuple) or len(peername) < 2:
        return str(peername)
    host, port = peername[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
