"""One device connected to a listener: what the gateway decides about it, whatever carries its bytes.

PUBLISH, PINGREQ and acknowledgements stay native; here are the packets that need a decision, refusals, and the end of
a connection. A `Link` is how decisions get to the wire.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from typing import TYPE_CHECKING, Protocol

from gateway_native import mqtt
from gateway_native.mqtt import RemoteFault

from gateway_adapters.mqtt import protocol
from gateway_adapters.mqtt.door import Guest, LoginRefused
from gateway_adapters.mqtt.protocol import Packet, Reason
from gateway_adapters.mqtt.session_journal import CLIENT_ID_BYTES_MAX
from gateway_adapters.mqtt.sessions import Session
from gateway_adapters.mqtt.shown import shown

if TYPE_CHECKING:
    from gateway_adapters.mqtt.listener import MqttListener

# MQTT allows one and a half keep-alive intervals (section 3.1.2.10).
KEEPALIVE_GRACE = 1.5
# Topics that an MQTT 5 client may give a number (section 3.3.2.3.4), each of up to 64 KiB.
TOPIC_ALIAS_MAX = 16


class Link(Protocol):
    """What carries a device's bytes: a socket on the event loop, or one of the intake thread's.

    It calls `Device.packet` with each packet that needs a decision and parses no further until that returned True, or
    `resume` was called. It calls one of `fault`, `overdue`, `stalled`, `failed` or `gone` when the connection should
    end or has ended; the device answers the first four with `end`.
    """

    peer: str
    host: str  # the peer's address; empty for a Unix socket

    @property
    def ssl_object(self) -> object | None:
        """Of a TLS connection, to look at the client's certificate."""
        ...

    @property
    def tick(self) -> int:
        """Seconds, counted."""
        ...

    def send(self, data: bytes) -> None:
        """Write whole packets; nothing happens when there is no way to the peer any more."""

    def accept(
        self, *, version: int, inflight_max: int, patience_s: int, session: mqtt.Session, topic_alias_max: int
    ) -> None:
        """CONNECT is accepted: how to parse on, and after how long a silence to call `overdue` (0: never).

        The session is the link's until `end`.
        """

    def resume(self) -> None:
        """The packet that `Device.packet` returned False for is decided on: parse on."""

    def end(self, last: bytes = b"") -> None:
        """Take and acknowledge nothing more; send the last word, give the peer time to read it, and close."""

    def abort(self) -> None:
        """Close the socket at once."""

    def detaching(self) -> asyncio.Future[None] | None:
        """After `end`: done once nothing of this connection touches its session any more. None: that is so already."""


class Device:
    """The policy for one connection. Everything runs on the event loop."""

    def __init__(self, listener: MqttListener, link: Link) -> None:
        self._listener = listener
        self._link = link
        self._will: protocol.Will | None = None
        self._packet_bytes_max: int | None = None  # what the client takes
        self.version = 0  # 4 or 5 once CONNECT was accepted
        self.client_id = ""
        self.user: str | None = None  # who it has proved to be
        self.allow: mqtt.Routes | None = None  # what it may publish; None: everything
        self.ended = False
        self._session: Session | None = None
        self._deciding: asyncio.Task[None] | None = None

    @property
    def peer(self) -> str:
        """Where the connection comes from, for log lines."""
        return self._link.peer

    def detaching(self) -> asyncio.Future[None] | None:
        """See `Link.detaching`; None before a session was begun."""
        return self._link.detaching() if self._session is not None else None

    # -- packets

    def packet(self, first_byte: int, body: bytes) -> bool:
        """Decide on a packet. False: that takes time, and the link is told later, by `resume` or `end`.

        Raises RemoteFault, which the link hands to `fault`.
        """
        kind = first_byte >> 4
        if kind == Packet.CONNECT:
            return self._connect(body)
        if kind == Packet.SUBSCRIBE:
            self._subscribe(protocol.decode_subscribe(body, self.version))
        elif kind == Packet.UNSUBSCRIBE:
            self._unsubscribe(protocol.decode_unsubscribe(body, self.version))
        elif kind == Packet.DISCONNECT:
            self._disconnect(protocol.decode_disconnect(body, self.version))
        else:
            name = Packet(kind).name
            raise RemoteFault(Reason.PROTOCOL_ERROR, f"the client sent {name}, which answers nothing of ours")
        return True

    def _connect(self, body: bytes) -> bool:
        if self.version:
            raise RemoteFault(Reason.PROTOCOL_ERROR, "the client sent a second CONNECT")
        connect = protocol.decode_connect(body)
        self.client_id = connect.client_id
        self._packet_bytes_max = connect.number("maximum_packet_size", 0) or None
        try:
            self._check(connect)
        except RemoteFault as fault:
            raise protocol.ConnectRefused(connect.version, fault.reason, fault.cause) from None
        assigned = "" if self.client_id else f"gateway-{secrets.token_hex(8)}"
        self.client_id = self.client_id or assigned
        door, link = self._listener.door, self._link
        if door.takes_time(connect, link.ssl_object):
            self._deciding = asyncio.create_task(self._log_in(connect, assigned))
            self._deciding.add_done_callback(self._decided)
            return False
        return self._accept(connect, assigned, door.admit(self.client_id, link.host, link.ssl_object))

    async def _log_in(self, connect: protocol.Connect, assigned: str) -> None:
        """Decide on a CONNECT whose password takes a while to check, or whose refusal is held back."""
        link = self._link
        try:
            guest = await self._listener.door.check(connect, self.client_id, link.host, link.ssl_object)
            if not self.ended and self._accept(connect, assigned, guest):
                link.resume()
        except RemoteFault as fault:
            self._listener.count("logins_refused")
            await asyncio.sleep(fault.delay_s if isinstance(fault, LoginRefused) else 0)
            if not self.ended:
                self.fault(protocol.ConnectRefused(connect.version, fault.reason, fault.cause))

    def _decided(self, task: asyncio.Task[None]) -> None:
        """A fault of ours must not leave a client waiting for ever."""
        if not task.cancelled() and task.exception() is not None:
            self._listener.say(logging.ERROR, "a login failed by a fault of the gateway", error=repr(task.exception()))
            self._end()

    def _accept(self, connect: protocol.Connect, assigned: str, guest: Guest) -> bool:
        """Give it its session, and welcome it when all of that is on disk. False: that takes time."""
        self.user, self.allow = guest.user, guest.allow
        self._listener.register(self)
        detaching = self._listener.detaching(self.client_id)
        if detaching is None:
            return self._begin(connect, assigned)
        detaching.add_done_callback(lambda _: self._detached(connect, assigned))
        return False

    def _detached(self, connect: protocol.Connect, assigned: str) -> None:
        """The connection that had this client id before has let go of the session."""
        if self.ended:
            return
        try:
            if self._begin(connect, assigned):
                self._link.resume()
        except RemoteFault as fault:
            self.fault(fault)

    def _begin(self, connect: protocol.Connect, assigned: str) -> bool:
        """See `_accept`."""
        session, present, written = self._listener.sessions.begin(
            self.client_id, clean_start=connect.clean_start, expiry_s=self._session_expiry(connect)
        )
        self._session = session
        if written is None:
            self._welcome(connect, assigned, session, present)
            return True
        written.add_done_callback(lambda done: self._written(done, connect, assigned, present))
        return False

    def _written(self, done: asyncio.Future[bool], connect: protocol.Connect, assigned: str, present: bool) -> None:
        """The session is on disk, or never will be."""
        session = self._session
        if self.ended or session is None:
            return
        try:
            if not done.result():
                self._listener.sessions.remove(session)
                cause = "the session could not be written to the disk"
                raise protocol.ConnectRefused(connect.version, Reason.SERVER_UNAVAILABLE, cause)
            self._welcome(connect, assigned, session, present)
        except RemoteFault as fault:
            self.fault(fault)
        else:
            self._link.resume()

    def _welcome(self, connect: protocol.Connect, assigned: str, session: Session, present: bool) -> None:
        is_v5 = connect.version == protocol.MQTT_5
        keepalive_s = self._keepalive(connect)
        offer = self._offer(connect, assigned, keepalive_s)
        self._send(protocol.connack(connect.version, Reason.SUCCESS, offer, session_present=present))
        self._will = connect.will
        self.version = connect.version
        self._link.accept(
            version=connect.version,
            inflight_max=self._listener.config.receive_maximum if is_v5 else 65_535,
            patience_s=math.ceil(keepalive_s * KEEPALIVE_GRACE),
            session=session.native,
            topic_alias_max=TOPIC_ALIAS_MAX if is_v5 else 0,
        )

    def _session_expiry(self, connect: protocol.Connect) -> int:
        """Seconds that the session outlives the connection; 3.1.1 clients can only say that it should."""
        longest_s = self._listener.sessions.expiry_max_s
        if connect.version == protocol.MQTT_5:
            return min(connect.number("session_expiry", 0), longest_s)
        return 0 if connect.clean_start else longest_s

    def _check(self, connect: protocol.Connect) -> None:
        if "authentication_method" in connect.properties:
            raise RemoteFault(
                Reason.BAD_AUTHENTICATION_METHOD, "the client asks for an authentication method; there is none"
            )
        if not connect.client_id and connect.version == protocol.MQTT_3_1_1 and not connect.clean_start:
            raise RemoteFault(
                Reason.CLIENT_ID_NOT_VALID, "the client asks for a lasting session but gives no client id"
            )
        if self._session_expiry(connect) and len(connect.client_id.encode()) > CLIENT_ID_BYTES_MAX:
            raise RemoteFault(
                Reason.CLIENT_ID_NOT_VALID, f"a lasting session has a client id of at most {CLIENT_ID_BYTES_MAX} bytes"
            )
        if self._listener.is_full(connect.client_id):
            self._listener.count("refused")
            limit = self._listener.config.connections_max
            raise RemoteFault(Reason.QUOTA_EXCEEDED, f"{limit} clients are connected already (connections_max)")

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
            "topic_alias_maximum": TOPIC_ALIAS_MAX,
            "maximum_packet_size": self._listener.packet_bytes_max,
        }
        if assigned:
            offer["assigned_client_id"] = assigned
        if keepalive_s != connect.keepalive_s:
            offer["server_keepalive"] = keepalive_s
        if connect.number("session_expiry", 0) != self._session_expiry(connect):
            offer["session_expiry"] = self._session_expiry(connect)
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
        session, expiry_s = self._session, packet.session_expiry_s
        if session is not None and expiry_s is not None:
            if expiry_s and not session.expiry_s:
                raise RemoteFault(Reason.PROTOCOL_ERROR, "DISCONNECT asks for a lasting session that CONNECT did not")
            self._listener.sessions.change_expiry(session, min(expiry_s, self._listener.sessions.expiry_max_s))
        if packet.reason != Reason.DISCONNECT_WITH_WILL:
            self._will = None
        self._end()

    # -- the end

    def fault(self, fault: RemoteFault, topic: bytes = b"") -> None:
        """One line in the log, the right reason code to the peer, and the end of this connection only.

        topic: of the publish that is at fault, where that is its topic's.
        """
        self._listener.count("faults")
        more = {"topic": shown(topic.decode(errors="replace"))} if topic else {}
        self._say(logging.WARNING, f"connection closed: {fault.cause}", reason=f"0x{fault.reason:02X}", **more)
        if isinstance(fault, protocol.ConnectRefused):
            self._end(protocol.connack(fault.version, fault.reason) if fault.version else b"")
        else:
            self._end_with(fault.reason, fault.cause)

    def failed(self, *, refused: bool) -> None:
        """What this client waits for will never be acknowledged: the stream has failed, or the disk is full (refused).

        Of a full disk MQTT 5 clients are told publish by publish; MQTT 3.1.1 knows no way but this.
        """
        if refused:
            self._say(logging.WARNING, "connection closed: the disk is full, and the stream refuses records")
            self._end()
            return
        self._listener.count("failed")
        self._say(logging.ERROR, "connection closed: the stream of an unacknowledged publish has failed")
        self._end_with(Reason.IMPLEMENTATION_ERROR, "the record could not be stored")

    def overdue(self) -> None:
        """Nothing came for longer than the link was told to wait."""
        self._listener.count("timeouts")
        if self.version:
            self._say(logging.INFO, "connection closed: nothing came within the keep-alive time")
        else:
            self._say(logging.INFO, "connection closed: no CONNECT came in time")
        self._end_with(Reason.KEEP_ALIVE_TIMEOUT, "nothing came within the keep-alive time")

    def dawdled(self) -> None:
        """A packet has begun that is still not whole after `packet_timeout`."""
        self._listener.count("timeouts")
        self._say(logging.WARNING, "connection closed: a packet was not whole in time (packet_timeout)")
        self._end_with(Reason.UNSPECIFIED, "a packet was not whole in time")

    def stalled(self) -> None:
        """The client has not read for too long; the link aborts after this."""
        self._listener.count("timeouts")
        self._say(logging.WARNING, "connection closed: the client does not read its acknowledgements")
        self._end()

    def gone(self) -> None:
        """The socket is lost."""
        self._end()

    def yield_to(self, other: Device) -> None:
        """Another connection has brought the same client id (section 4.13, reason 0x8E)."""
        self._say(logging.INFO, "connection taken over by another with the same client id", by=other.peer)
        self._end_with(Reason.SESSION_TAKEN_OVER, "another connection uses this client id")

    def shut_down(self) -> None:
        """The gateway stops. The device has not died, so its will is not published."""
        self._will = None
        self._end_with(Reason.SERVER_SHUTTING_DOWN, "the gateway stops")

    def _end_with(self, reason: int, text: str) -> None:
        self._end(protocol.disconnect(self.version, reason, text, self._packet_bytes_max))

    def _end(self, last: bytes = b"") -> None:
        """Leave the listener's books, and publish the will that nothing has revoked."""
        if self.ended:
            return
        self.ended = True
        if self._deciding is not None and not self._deciding.done() and self._deciding is not asyncio.current_task():
            self._deciding.cancel()
        fits = len(last) <= (self._packet_bytes_max or len(last))
        self._link.end(last if fits else b"")  # what the client could not take is left out
        self._listener.leave(self)
        will, self._will = self._will, None
        if self._session is not None:
            self._listener.sessions.leave(self._session, will)

    def _send(self, packet: bytes) -> None:
        if self._packet_bytes_max is not None and len(packet) > self._packet_bytes_max:
            raise RemoteFault(Reason.PACKET_TOO_LARGE, "the client's maximum packet size is too small for our answer")
        self._link.send(packet)

    def _say(self, level: int, event: str, **fields: object) -> None:
        self._listener.say(level, event, peer=self.peer, client=shown(self.client_id), **fields)
