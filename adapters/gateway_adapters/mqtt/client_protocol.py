"""MQTT control packets as a client reads and writes them, sans I/O: all but PUBLISH and its answers, which stay native.

The other side of protocol.py, whose reader and property table it shares. Decoders take the body of a packet and raise
only RemoteFault; encoders give whole packets. Levels: 4 is MQTT 3.1.1, 5 is MQTT 5. Source: the two OASIS standards;
section numbers are those of MQTT 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gateway_native.mqtt import RemoteFault

from gateway_adapters.mqtt.protocol import (
    MQTT_5,
    Packet,
    Properties,
    Reason,
    _encode_properties,
    _packet,
    _Reader,
    _text,
)

PINGREQ = b"\xc0\x00"
# Section 3.8.3.1: retained messages only for a subscription that the session did not have.
RETAIN_IF_NEW = 1
# Failures in SUBACK (section 3.9.3) and UNSUBACK are this and above.
FAILURE = 0x80

# What a broker's codes mean, for a log line. MQTT 5 section 2.4; the text a broker adds itself is not repeated.
REASONS = {
    0x00: "a normal end",
    0x04: "a normal end",
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x83: "implementation specific error",
    0x84: "protocol version not supported",
    0x85: "client id not valid",
    0x86: "bad user name or password",
    0x87: "not authorized",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8B: "server shutting down",
    0x8C: "bad authentication method",
    0x8D: "keep alive timeout",
    0x8E: "session taken over by another client of this client id",
    0x8F: "topic filter invalid",
    0x91: "packet identifier in use",
    0x93: "receive maximum exceeded",
    0x94: "topic alias invalid",
    0x95: "packet too large",
    0x96: "message rate too high",
    0x97: "quota exceeded",
    0x98: "administrative action",
    0x99: "payload format invalid",
    0x9C: "use another server",
    0x9D: "server moved",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
    0xA0: "maximum connect time",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}
# MQTT 3.1.1, table 3.1, as the reason codes of MQTT 5.
_RETURN_CODES = {0: 0x00, 1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}


def reason_text(reason: int) -> str:
    """What a reason code means, with the code."""
    return f"{REASONS.get(reason, 'an unknown reason')} (0x{reason:02X})"


@dataclass(frozen=True)
class Connack:
    """A CONNACK packet (section 3.2). ``reason`` is MQTT 5's also when the broker answered in MQTT 3.1.1."""

    session_present: bool
    reason: int
    properties: Properties = field(default_factory=dict, repr=False)

    def number(self, name: str, default: int) -> int:
        """A numeric property, or what its absence means."""
        value = self.properties.get(name, default)
        return value if isinstance(value, int) else default


# -- decoding ----------------------------------------------------------------------------------------------------------


def decode_connack(body: bytes, version: int) -> Connack:
    """Decode CONNACK. A broker that knows only MQTT 3.1.1 answers in its own way to a CONNECT of MQTT 5 (two bytes)."""
    reader = _Reader(body, "CONNACK")
    flags, code = reader.byte(), reader.byte()
    if flags & 0xFE:
        raise RemoteFault(Reason.MALFORMED_PACKET, "the reserved flags of CONNACK are set")
    if version != MQTT_5 or len(body) == 2:
        reader.end()
        if version == MQTT_5 and code == 0:
            raise RemoteFault(Reason.MALFORMED_PACKET, "CONNACK has no properties, though MQTT 5 was asked for")
        return Connack(bool(flags), _RETURN_CODES.get(code, int(Reason.UNSPECIFIED)))
    properties = reader.properties("K")
    reader.end()
    if flags and code:
        raise RemoteFault(Reason.PROTOCOL_ERROR, "CONNACK refuses and says that a session is present")
    return Connack(bool(flags), code, properties)


def decode_suback(body: bytes, version: int) -> tuple[int, bytes]:
    """Decode SUBACK (section 3.9): packet identifier, and one code for each filter in its order."""
    reader = _Reader(body, "SUBACK")
    packet_id = reader.packet_id()
    if version == MQTT_5:
        reader.properties("B")
    return packet_id, reader.take(reader.left)


def decode_unsuback(body: bytes, version: int) -> tuple[int, bytes]:
    """Decode UNSUBACK (section 3.11): packet identifier and, in MQTT 5, a code for each filter."""
    reader = _Reader(body, "UNSUBACK")
    packet_id = reader.packet_id()
    if version == MQTT_5:
        reader.properties("B")
    return packet_id, reader.take(reader.left)


def decode_disconnect(body: bytes) -> int:
    """Decode a server's DISCONNECT (section 3.14), which only MQTT 5 has: the reason code."""
    reader = _Reader(body, "DISCONNECT")
    reason = reader.byte() if reader.left else 0
    if reader.left:
        reader.properties("E")
    reader.end()
    return reason


@dataclass(frozen=True)
class PublishHead:
    """The beginning of a PUBLISH that is not recorded; packet_id is 0 with QoS 0."""

    topic: bytes
    qos: int
    dup: bool
    packet_id: int


def decode_publish_head(flags: int, body: bytes) -> PublishHead:
    """Topic and packet identifier of a PUBLISH (section 3.3.2) of which the end may be missing."""
    reader = _Reader(body, "PUBLISH")
    qos = flags >> 1 & 3
    if qos == 3:
        raise RemoteFault(Reason.MALFORMED_PACKET, "a publish has QoS 3")
    topic = reader.binary()
    return PublishHead(topic, qos, bool(flags & 8), reader.packet_id() if qos else 0)


def publishes_qos_0(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Topic and bytes of the whole QoS 0 publishes in a piece of a connection that was not parsed."""
    at = 0
    while at < len(data):
        reader = _Reader(data[at + 1 : at + 5], "a packet")
        length_bytes = reader.left
        try:
            body = reader.varint()
            begin = at + 1 + length_bytes - reader.left
            if begin + body > len(data):
                return
            if data[at] >> 4 == Packet.PUBLISH and not data[at] & 6:
                yield decode_publish_head(data[at] & 15, data[begin : begin + body]).topic, begin + body - at
        except RemoteFault:  # there is no telling what follows
            return
        at = begin + body


# -- encoding ----------------------------------------------------------------------------------------------------------


def connect(
    version: int,
    client_id: str,
    *,
    clean_start: bool,
    keepalive_s: int,
    username: str | None,
    password: str | None,
    properties: dict[str, int | str],
) -> bytes:
    """CONNECT (section 3.1), without a will. properties: those of MQTT 5; ignored with 3.1.1."""
    flags = 0x02 * clean_start | 0x80 * (username is not None) | 0x40 * (password is not None)
    body = _text("MQTT") + bytes((version, flags)) + keepalive_s.to_bytes(2, "big")
    if version == MQTT_5:
        body += _encode_properties(properties)
    body += _text(client_id)
    for credential in (username, password):
        body += _text(credential) if credential is not None else b""
    return _packet(0x10, body)


def subscribe(version: int, packet_id: int, filters: Sequence[tuple[str, int]]) -> bytes:
    """SUBSCRIBE (section 3.8) to filters with their QoS; MQTT 5: retained messages for new subscriptions only."""
    retain_handling = RETAIN_IF_NEW << 4 if version == MQTT_5 else 0
    body = packet_id.to_bytes(2, "big") + (b"\0" if version == MQTT_5 else b"")
    return _packet(0x82, body + b"".join(_text(text) + bytes((qos | retain_handling,)) for text, qos in filters))


def unsubscribe(version: int, packet_id: int, filters: Sequence[str]) -> bytes:
    """UNSUBSCRIBE (section 3.10)."""
    body = packet_id.to_bytes(2, "big") + (b"\0" if version == MQTT_5 else b"")
    return _packet(0xA2, body + b"".join(map(_text, filters)))


def disconnect(version: int, reason: int = 0) -> bytes:
    """DISCONNECT (section 3.14). MQTT 3.1.1 knows no reasons: there only the normal end has a packet."""
    if reason == 0:
        return b"\xe0\x00"
    return bytes((0xE0, 1, reason)) if version == MQTT_5 else b""
