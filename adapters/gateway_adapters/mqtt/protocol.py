"""MQTT control packets as a server reads and writes them, sans I/O: all but PUBLISH, which never reaches Python.

Decoders take the body of a packet (what follows its fixed header) and raise only RemoteFault. Encoders give whole
packets. Levels: 4 is MQTT 3.1.1, 5 is MQTT 5. Source: the two OASIS standards; section numbers are those of MQTT 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from gateway_native.mqtt import RemoteFault, is_text, is_topic

MQTT_3_1_1 = 4
MQTT_5 = 5

# The longest reason string sent: some of ours name a setting.
REASON_STRING_BYTES_MAX = 256


class Packet(IntEnum):
    """Packet types (section 2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


class Reason(IntEnum):
    """The reason codes that occur here (section 2.4)."""

    SUCCESS = 0x00
    DISCONNECT_WITH_WILL = 0x04
    NO_SUBSCRIPTION_EXISTED = 0x11
    UNSPECIFIED = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_ERROR = 0x83
    UNSUPPORTED_PROTOCOL = 0x84
    CLIENT_ID_NOT_VALID = 0x85
    BAD_CREDENTIALS = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    PACKET_TOO_LARGE = 0x95
    QUOTA_EXCEEDED = 0x97
    QOS_NOT_SUPPORTED = 0x9B


# MQTT 3.1.1 knows five refusals (its table 3.1); anything else closes the connection without a word.
_RETURN_CODES = {
    Reason.SUCCESS: 0,
    Reason.UNSUPPORTED_PROTOCOL: 1,
    Reason.CLIENT_ID_NOT_VALID: 2,
    Reason.SERVER_UNAVAILABLE: 3,
    Reason.QUOTA_EXCEEDED: 3,
    Reason.BAD_CREDENTIALS: 4,
    Reason.NOT_AUTHORIZED: 5,
}

PropertyValue: TypeAlias = "int | str | bytes | list[tuple[str, str]]"
Properties: TypeAlias = "dict[str, PropertyValue]"

# Section 2.2.2.2: identifier, name, type, packets that may carry it: W the will inside of CONNECT (C), S SUBSCRIBE,
# U UNSUBSCRIBE, D DISCONNECT, A AUTH; from servers (client_protocol.py) K CONNACK, B SUBACK and UNSUBACK, E DISCONNECT.
_PROPERTIES: dict[int, tuple[str, str, str]] = {
    0x01: ("payload_format", "byte", "W"),
    0x02: ("message_expiry", "u32", "W"),
    0x03: ("content_type", "text", "W"),
    0x08: ("response_topic", "text", "W"),
    0x09: ("correlation_data", "binary", "W"),
    0x0B: ("subscription_identifier", "varint", "S"),
    0x11: ("session_expiry", "u32", "CDK"),
    0x12: ("assigned_client_id", "text", "K"),
    0x13: ("server_keepalive", "u16", "K"),
    0x15: ("authentication_method", "text", "CAK"),
    0x16: ("authentication_data", "binary", "CAK"),
    0x17: ("request_problem_information", "byte", "C"),
    0x18: ("will_delay", "u32", "W"),
    0x19: ("request_response_information", "byte", "C"),
    0x1A: ("response_information", "text", "K"),
    0x1C: ("server_reference", "text", "KE"),
    0x1F: ("reason_string", "text", "DAKBE"),
    0x21: ("receive_maximum", "u16", "CK"),
    0x22: ("topic_alias_maximum", "u16", "CK"),
    0x24: ("maximum_qos", "byte", "K"),
    0x25: ("retain_available", "byte", "K"),
    0x26: ("user_properties", "pair", "CWSUDAKBE"),
    0x27: ("maximum_packet_size", "u32", "CK"),
    0x28: ("wildcard_subscription_available", "byte", "K"),
    0x29: ("subscription_identifiers_available", "byte", "K"),
    0x2A: ("shared_subscription_available", "byte", "K"),
}
_IDENTIFIERS = {
    "session_expiry": (0x11, "u32"),
    "assigned_client_id": (0x12, "text"),
    "server_keepalive": (0x13, "u16"),
    "reason_string": (0x1F, "text"),
    "receive_maximum": (0x21, "u16"),
    "maximum_qos": (0x24, "byte"),
    "maximum_packet_size": (0x27, "u32"),
    "wildcard_subscription_available": (0x28, "byte"),
    "subscription_identifiers_available": (0x29, "byte"),
    "shared_subscription_available": (0x2A, "byte"),
}
_FLAGS = {"payload_format", "request_problem_information", "request_response_information"}
_NEVER_ZERO = {"receive_maximum", "maximum_packet_size", "subscription_identifier"}


class ConnectRefused(RemoteFault):
    """A CONNECT that cannot be accepted. ``version`` is how to answer it: 4, 5, or 0 for not at all."""

    def __init__(self, version: int, reason: int, cause: str) -> None:
        super().__init__(reason, cause)
        self.version = version


@dataclass(frozen=True)
class Will:
    """The message a client leaves to be published when its connection ends without DISCONNECT (section 3.1.2.5)."""

    topic: str
    payload: bytes = field(repr=False)
    qos: int
    retain: bool
    properties: Properties = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Connect:
    """A CONNECT packet (section 3.1). ``password`` never shows in a repr."""

    version: int
    client_id: str
    clean_start: bool
    keepalive_s: int
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    will: Will | None = None
    properties: Properties = field(default_factory=dict, repr=False)

    def number(self, name: str, default: int) -> int:
        """A numeric property, or what its absence means."""
        value = self.properties.get(name, default)
        return value if isinstance(value, int) else default


@dataclass(frozen=True)
class Subscribe:
    """A SUBSCRIBE packet (section 3.8): filters with the QoS asked for."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Unsubscribe:
    """An UNSUBSCRIBE packet (section 3.10)."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True)
class Disconnect:
    """A DISCONNECT packet from a client (section 3.14). MQTT 3.1.1 has only reason 0."""

    reason: int


# -- decoding ----------------------------------------------------------------------------------------------------------


def _malformed(cause: str) -> RemoteFault:
    return RemoteFault(Reason.MALFORMED_PACKET, cause)


def _protocol_error(cause: str) -> RemoteFault:
    return RemoteFault(Reason.PROTOCOL_ERROR, cause)


class _Reader:
    """The fields of one packet, in their order. ``what`` is the packet's name for the sentences of faults."""

    def __init__(self, body: bytes, what: str) -> None:
        self._body = body
        self._at = 0
        self.what = what

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def take(self, count: int) -> bytes:
        if self.left < count:
            raise _malformed(f"a field of {self.what} reaches beyond the end of the packet")
        self._at += count
        return self._body[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def varint(self) -> int:
        """A variable byte integer of at most four bytes, in its shortest form (section 1.5.5)."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    break
                return value
        raise _malformed(f"a variable length in {self.what} is malformed")

    def binary(self) -> bytes:
        return self.take(self.u16())

    def text(self) -> str:
        value = self.binary()
        if not is_text(value):
            raise _malformed(f"a text in {self.what} is not UTF-8, or contains U+0000")
        return value.decode()

    def packet_id(self) -> int:
        value = self.u16()
        if value == 0:
            raise _protocol_error(f"{self.what} has packet identifier 0")
        return value

    def properties(self, packet: str) -> Properties:
        """The property table of this kind of packet (a letter of _PROPERTIES)."""
        inner = _Reader(self.take(self.varint()), self.what)
        found: Properties = {}
        while inner.left:
            name, kind, packets = _PROPERTIES.get(inner.varint(), ("", "", ""))
            if packet not in packets:
                raise _malformed(f"{self.what} has a property that it cannot have")
            if kind == "pair":
                pairs = found.setdefault(name, [])
                assert isinstance(pairs, list)
                pairs.append((inner.text(), inner.text()))
                continue
            if name in found:
                raise _protocol_error(f"{self.what} has the property {name!r} twice")
            value: int | str | bytes = getattr(inner, kind)()
            if (name in _FLAGS and value not in (0, 1)) or (name in _NEVER_ZERO and value == 0):
                raise _protocol_error(f"in {self.what} the property {name!r} has a value outside its range")
            found[name] = value
        return found

    def end(self) -> None:
        if self.left:
            raise _malformed(f"{self.what} is longer than its fields")


def decode_connect(body: bytes) -> Connect:
    """Decode CONNECT (section 3.1). Raises ConnectRefused, whose ``version`` says how to answer."""
    reader = _Reader(body, "CONNECT")
    version = _protocol_version(reader)
    try:
        return _decode_connect(reader, version)
    except ConnectRefused:
        raise
    except RemoteFault as fault:
        raise ConnectRefused(version, fault.reason, fault.cause) from None


def _protocol_version(reader: _Reader) -> int:
    """4 or 5; a client of another version is answered in a way that it understands, if there is one."""
    try:
        name, level = reader.binary(), reader.byte()
    except RemoteFault as fault:
        raise ConnectRefused(0, fault.reason, fault.cause) from None
    if name == b"MQIsdp" and level == 3:
        raise ConnectRefused(MQTT_3_1_1, Reason.UNSUPPORTED_PROTOCOL, "the client speaks MQTT 3.1; use 3.1.1 or 5")
    if name != b"MQTT":
        raise ConnectRefused(0, Reason.UNSUPPORTED_PROTOCOL, "the client does not name its protocol 'MQTT'")
    if level not in (MQTT_3_1_1, MQTT_5):
        answer = MQTT_5 if level > MQTT_5 else MQTT_3_1_1
        raise ConnectRefused(
            answer, Reason.UNSUPPORTED_PROTOCOL, f"the client speaks MQTT protocol level {level}; 4 and 5 are known"
        )
    return level


def _decode_connect(reader: _Reader, version: int) -> Connect:
    flags = reader.byte()
    has_will, will_qos, will_retain = bool(flags & 0x04), flags >> 3 & 3, bool(flags & 0x20)
    has_password, has_username = bool(flags & 0x40), bool(flags & 0x80)
    if flags & 1:
        raise _malformed("the reserved flag of CONNECT is set")
    if will_qos == 3 or (not has_will and (will_qos or will_retain)):
        raise _malformed("the will flags of CONNECT contradict each other")
    if has_password and not has_username and version == MQTT_3_1_1:
        raise _malformed("CONNECT has a password without a user name")
    keepalive_s = reader.u16()
    properties = reader.properties("C") if version == MQTT_5 else {}
    if "authentication_data" in properties and "authentication_method" not in properties:
        raise _protocol_error("CONNECT has authentication data without an authentication method")
    client_id = reader.text()
    will = _decode_will(reader, version, will_qos, will_retain) if has_will else None
    username = reader.text() if has_username else None
    password = reader.binary() if has_password else None
    reader.end()
    return Connect(version, client_id, bool(flags & 0x02), keepalive_s, username, password, will, properties)


def _decode_will(reader: _Reader, version: int, qos: int, retain: bool) -> Will:
    properties = reader.properties("W") if version == MQTT_5 else {}
    topic = reader.text()
    payload = reader.binary()
    if not is_topic(topic.encode()):
        raise _malformed("the topic of the will is empty or has + or #")
    return Will(topic, payload, qos, retain, properties)


def decode_subscribe(body: bytes, version: int) -> Subscribe:
    """Decode SUBSCRIBE (section 3.8). Filters come as they are; see `is_filter`."""
    reader = _Reader(body, "SUBSCRIBE")
    packet_id = reader.packet_id()
    if version == MQTT_5:
        reader.properties("S")
    filters = []
    while reader.left:
        topic_filter, options = reader.text(), reader.byte()
        if options & 3 == 3 or options & (0xC0 if version == MQTT_5 else 0xFC) or options >> 4 & 3 == 3:
            raise _malformed("SUBSCRIBE has options that do not exist")
        if options & 4 and topic_filter.startswith("$share/"):
            raise _protocol_error("SUBSCRIBE asks for No Local on a shared subscription")
        filters.append((topic_filter, options & 3))
    if not filters:
        raise _protocol_error("SUBSCRIBE has no topic filter")
    return Subscribe(packet_id, tuple(filters))


def decode_unsubscribe(body: bytes, version: int) -> Unsubscribe:
    """Decode UNSUBSCRIBE (section 3.10)."""
    reader = _Reader(body, "UNSUBSCRIBE")
    packet_id = reader.packet_id()
    if version == MQTT_5:
        reader.properties("U")
    filters = []
    while reader.left:
        filters.append(reader.text())
    if not filters:
        raise _protocol_error("UNSUBSCRIBE has no topic filter")
    return Unsubscribe(packet_id, tuple(filters))


def decode_disconnect(body: bytes, version: int) -> Disconnect:
    """Decode DISCONNECT (section 3.14). An absent reason code is 0."""
    reader = _Reader(body, "DISCONNECT")
    reason = 0
    if version == MQTT_5 and reader.left:
        reason = reader.byte()
        if reader.left:
            reader.properties("D")
    reader.end()
    return Disconnect(reason)


def is_filter(topic_filter: str) -> bool:
    """Is this a valid topic filter (section 4.7.1)? Wildcards must stand alone in their level, # in the last one."""
    levels = topic_filter.split("/")
    if not topic_filter or any("+" in level and level != "+" for level in levels):
        return False
    return not any("#" in level and (level != "#" or index < len(levels) - 1) for index, level in enumerate(levels))


# -- encoding ----------------------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _packet(first_byte: int, body: bytes) -> bytes:
    return bytes((first_byte,)) + _varint(len(body)) + body


def _text(value: str) -> bytes:
    encoded = value.encode()
    return len(encoded).to_bytes(2, "big") + encoded


def _encode_properties(properties: dict[str, int | str]) -> bytes:
    out = bytearray()
    for name, value in properties.items():
        identifier, kind = _IDENTIFIERS[name]
        out.append(identifier)
        if isinstance(value, str):
            out += _text(value)
        else:
            out += value.to_bytes({"byte": 1, "u16": 2, "u32": 4}[kind], "big")
    return _varint(len(out)) + bytes(out)


def connack(version: int, reason: int, properties: dict[str, int | str] | None = None) -> bytes:
    """CONNACK (section 3.2), session present 0. Empty when MQTT 3.1.1 has no return code for the reason.

    The client's first packets may be accepted only with reason 0.
    """
    if version == MQTT_5:
        return _packet(0x20, bytes((0, reason)) + _encode_properties(properties or {}))
    code = _RETURN_CODES.get(Reason(reason))
    return b"" if code is None else _packet(0x20, bytes((0, code)))


def suback(version: int, packet_id: int, codes: Iterable[int]) -> bytes:
    """SUBACK (section 3.9): for each filter in its order the QoS granted, or a failure (MQTT 3.1.1 has only 0x80)."""
    if version == MQTT_5:
        return _packet(0x90, packet_id.to_bytes(2, "big") + b"\0" + bytes(codes))
    return _packet(0x90, packet_id.to_bytes(2, "big") + bytes(min(code, 0x80) for code in codes))


def unsuback(version: int, packet_id: int, codes: Sequence[int]) -> bytes:
    """UNSUBACK (section 3.11); the codes exist only in MQTT 5."""
    codes_5 = b"\0" + bytes(codes) if version == MQTT_5 else b""
    return _packet(0xB0, packet_id.to_bytes(2, "big") + codes_5)


def disconnect(version: int, reason: int, text: str = "", bytes_max: int | None = None) -> bytes:
    """DISCONNECT as a server sends it (section 3.14): only MQTT 5 has one, so it is empty for 3.1.1.

    The text is left out when the packet would exceed bytes_max, the client's maximum packet size.
    """
    if version != MQTT_5:
        return b""
    bare = _packet(0xE0, bytes((reason,)))
    if text and len(text.encode()) <= REASON_STRING_BYTES_MAX:
        whole = _packet(0xE0, bytes((reason,)) + _encode_properties({"reason_string": text}))
        if bytes_max is None or len(whole) <= bytes_max:
            return whole
    return bare if bytes_max is None or len(bare) <= bytes_max else b""
