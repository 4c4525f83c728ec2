"""CONNECT, SUBSCRIBE, UNSUBSCRIBE and DISCONNECT as a server reads them, and its answers as paho reads those."""

from __future__ import annotations

import pytest
from gateway_adapters.mqtt import protocol
from gateway_adapters.mqtt.protocol import ConnectRefused, Disconnect, Reason, Subscribe, Unsubscribe, Will
from gateway_native.mqtt import RemoteFault
from paho.mqtt.enums import MQTTProtocolVersion

from tests.support.mqtt import binary, connect, length, properties, text

paho_packet = pytest.importorskip("paho.mqtt._packet", reason="this paho-mqtt has no separate decoder")


def body_of(packet):
    """A packet without its fixed header."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    return packet[at + 1 :]


def decode(packet):
    return protocol.decode_connect(body_of(packet))


# -- CONNECT -----------------------------------------------------------------------------------------------------------


def test_example_of_the_standard():
    """The non-normative example of MQTT 3.1.1, figure 3.6, with a payload for its flags."""
    flags = 0b1100_1110  # user name, password, will with QoS 1, clean session
    rest = text("will/topic") + binary(b"\0\xff") + text("user") + binary(b"pass\0")
    found = decode(connect(4, "client", flags=flags, keepalive=10, rest=rest))
    assert found.version == 4
    assert found.client_id == "client"
    assert found.clean_start
    assert found.keepalive_s == 10
    assert (found.username, found.password) == ("user", b"pass\0")
    assert found.will == Will("will/topic", b"\0\xff", 1, retain=False)


def test_secrets_in_the_repr():
    """Neither password nor will payload nor properties can slip into a log through a repr."""
    rest = text("t") + binary(b"PAYLOAD") + text("user") + binary(b"SECRET")
    found = decode(connect(4, "client", flags=0b1100_0110, rest=rest))
    assert "SECRET" not in repr(found)
    assert "PAYLOAD" not in repr(found)


def test_connect_properties():
    """Every property of CONNECT and of its will is understood."""
    props = [
        b"\x11\0\0\0\x0a", b"\x21\0\x14", b"\x27\0\0\x10\0", b"\x22\0\x05", b"\x19\1", b"\x17\0",
        b"\x26" + text("a") + text("b"), b"\x26" + text("a") + text("c"), b"\x15" + text("m"),
        b"\x16" + binary(b"\xff"),
    ]  # fmt: skip
    will = properties(b"\x18\0\0\0\x07", b"\x01\1", b"\x02\0\0\0\x3c", b"\x03" + text("ct"), b"\x08" + text("rt"),
                      b"\x09" + binary(b"cd"), b"\x26" + text("k") + text("v"))  # fmt: skip
    found = decode(connect(5, "", flags=0x04 | 0x20, props=props, rest=will + text("will") + binary(b"x")))
    assert found.properties == {
        "session_expiry": 10, "receive_maximum": 20, "maximum_packet_size": 4096, "topic_alias_maximum": 5,
        "request_response_information": 1, "request_problem_information": 0,
        "user_properties": [("a", "b"), ("a", "c")], "authentication_method": "m", "authentication_data": b"\xff",
    }  # fmt: skip
    assert found.number("receive_maximum", 65_535) == 20
    assert found.number("absent", 7) == 7
    assert found.will is not None
    assert found.will.retain
    assert found.will.properties == {
        "will_delay": 7, "payload_format": 1, "message_expiry": 60, "content_type": "ct", "response_topic": "rt",
        "correlation_data": b"cd", "user_properties": [("k", "v")],
    }  # fmt: skip


REFUSED = [
    ("MQTT 3.1", connect(3, name=b"MQIsdp"), 4, Reason.UNSUPPORTED_PROTOCOL),
    ("level 3 under the newer name", connect(3), 4, Reason.UNSUPPORTED_PROTOCOL),
    ("level 6", connect(6), 5, Reason.UNSUPPORTED_PROTOCOL),
    ("bridge of level 4", connect(0x84), 5, Reason.UNSUPPORTED_PROTOCOL),
    ("another protocol", connect(4, name=b"AMQP"), 0, Reason.UNSUPPORTED_PROTOCOL),
    ("nothing at all", b"\x10\x00", 0, Reason.MALFORMED_PACKET),
    ("name cut off", b"\x10\x03\x00\x04M", 0, Reason.MALFORMED_PACKET),
    ("reserved flag", connect(4, flags=0x03), 4, Reason.MALFORMED_PACKET),
    ("will QoS without will", connect(4, flags=0x0A), 4, Reason.MALFORMED_PACKET),
    ("will retain without will", connect(4, flags=0x22), 4, Reason.MALFORMED_PACKET),
    ("will QoS 3", connect(4, flags=0x1E, rest=text("t") + binary(b"")), 4, Reason.MALFORMED_PACKET),
    ("password without user name", connect(4, flags=0x42, rest=binary(b"p")), 4, Reason.MALFORMED_PACKET),
    ("user name missing", connect(4, flags=0x82), 4, Reason.MALFORMED_PACKET),
    ("bytes after the end", connect(4, rest=b"x"), 4, Reason.MALFORMED_PACKET),
    (
        "will topic with wildcard",
        connect(5, flags=6, rest=b"\0" + text("a/#") + binary(b"")),
        5,
        Reason.MALFORMED_PACKET,
    ),
    ("will topic empty", connect(4, flags=6, rest=text("") + binary(b"")), 4, Reason.MALFORMED_PACKET),
    ("client id not UTF-8", b"\x10\x0e\0\4MQTT\4\2\0\0\0\2\xff\xff", 4, Reason.MALFORMED_PACKET),
    ("receive maximum 0", connect(5, props=[b"\x21\0\0"]), 5, Reason.PROTOCOL_ERROR),
    ("maximum packet size 0", connect(5, props=[b"\x27\0\0\0\0"]), 5, Reason.PROTOCOL_ERROR),
    ("property twice", connect(5, props=[b"\x11\0\0\0\1", b"\x11\0\0\0\1"]), 5, Reason.PROTOCOL_ERROR),
    ("problem information 2", connect(5, props=[b"\x17\2"]), 5, Reason.PROTOCOL_ERROR),
    ("property of PUBLISH", connect(5, props=[b"\x03" + text("a")]), 5, Reason.MALFORMED_PACKET),
    ("unknown property", connect(5, props=[b"\x7f\0"]), 5, Reason.MALFORMED_PACKET),
    ("authentication data alone", connect(5, props=[b"\x16" + binary(b"x")]), 5, Reason.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("packet", "version", "reason"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED])
def test_bad_connect_accepted(packet, version, reason):
    """Each refusal knows its reason and in which version to answer, if at all."""
    with pytest.raises(ConnectRefused) as refused:
        decode(packet)
    assert (refused.value.version, refused.value.reason) == (version, reason)


def test_connect_cut_at_any_byte():
    """Whatever is missing, the only error is that the peer's packet is malformed."""
    body = body_of(
        connect(
            5, flags=0xC6, props=[b"\x11\0\0\0\1"], rest=b"\0" + text("t") + binary(b"p") + text("u") + binary(b"p")
        )
    )
    protocol.decode_connect(body)
    for cut in range(len(body)):
        with pytest.raises(ConnectRefused):
            protocol.decode_connect(body[:cut])


# -- SUBSCRIBE, UNSUBSCRIBE, DISCONNECT --------------------------------------------------------------------------------


def test_subscribe():
    """Filters come in order with the QoS asked for; MQTT 5 adds properties and options."""
    assert protocol.decode_subscribe(b"\0\x0a" + text("a/b") + b"\1" + text("c/d") + b"\2", 4) == Subscribe(
        10, (("a/b", 1), ("c/d", 2))
    )
    body = b"\0\x0a" + properties(b"\x0b\x81\x01", b"\x26" + text("k") + text("v")) + text("a/+") + b"\x2d"
    assert protocol.decode_subscribe(body, 5) == Subscribe(10, (("a/+", 1),))


@pytest.mark.parametrize(
    ("version", "body", "reason"),
    [
        (4, b"\0\1", Reason.PROTOCOL_ERROR),
        (4, b"\0\0" + text("a") + b"\0", Reason.PROTOCOL_ERROR),
        (4, b"\0\1" + text("a"), Reason.MALFORMED_PACKET),
        (4, b"\0\1" + text("a") + b"\3", Reason.MALFORMED_PACKET),
        (4, b"\0\1" + text("a") + b"\4", Reason.MALFORMED_PACKET),
        (5, b"\0\1\0" + text("a") + b"\x40", Reason.MALFORMED_PACKET),
        (5, b"\0\1\0" + text("a") + b"\x30", Reason.MALFORMED_PACKET),
        (5, b"\0\1\0" + text("$share/g/a") + b"\x05", Reason.PROTOCOL_ERROR),
        (5, b"\0\1\2\x0b\x00" + text("a") + b"\0", Reason.PROTOCOL_ERROR),
        (5, b"\0\1\3\x21\0\1" + text("a") + b"\0", Reason.MALFORMED_PACKET),
        (5, b"\0\1\x80\x00" + text("a") + b"\0", Reason.MALFORMED_PACKET),
        (5, b"\0\1\xff\xff\xff\xff", Reason.MALFORMED_PACKET),
    ],
)
def test_bad_subscribe_accepted(version, body, reason):
    """Empty, cut off, impossible options, wrong properties."""
    with pytest.raises(RemoteFault) as fault:
        protocol.decode_subscribe(body, version)
    assert fault.value.reason == reason


def test_unsubscribe():
    """Filters come in order; there must be one."""
    assert protocol.decode_unsubscribe(b"\0\1" + text("a") + text("b/#"), 4) == Unsubscribe(1, ("a", "b/#"))
    assert protocol.decode_unsubscribe(b"\0\1\0" + text("a"), 5) == Unsubscribe(1, ("a",))
    for version, body in ((4, b"\0\1"), (4, b"\0\0" + text("a")), (5, b"\0\1\0"), (4, b"\0\1\0")):
        with pytest.raises(RemoteFault):
            protocol.decode_unsubscribe(body, version)


def test_disconnect():
    """The reason may be left out, and its properties too; an expiry interval is kept."""
    assert protocol.decode_disconnect(b"", 4) == protocol.decode_disconnect(b"", 5) == Disconnect(0)
    assert protocol.decode_disconnect(b"\4", 5) == Disconnect(4)
    body = b"\x80" + properties(b"\x1f" + text("why"), b"\x11\0\0\0\0")
    assert protocol.decode_disconnect(body, 5) == Disconnect(0x80, 0)
    for version, wrong in ((4, b"\0"), (5, b"\0\0x"), (5, b"\0\3\x1f\0\5")):
        with pytest.raises(RemoteFault):
            protocol.decode_disconnect(wrong, version)


@pytest.mark.parametrize("good", ["#", "+", "/", "a", "a/#", "+/a/+", "a//b", "$share/g/a/+", "/#", "ü/+"])
def test_good_filter_refused(good):
    """Filters of MQTT 5, section 4.7.1."""
    assert protocol.is_filter(good)


@pytest.mark.parametrize("bad", ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "a/b+", "##", "++"])
def test_bad_filter_accepted(bad):
    """Wildcards that share a level, and # before the end."""
    assert not protocol.is_filter(bad)


# -- answers -----------------------------------------------------------------------------------------------------------

V5 = MQTTProtocolVersion.MQTTv5
V4 = MQTTProtocolVersion.MQTTv311


def test_connack():
    """MQTT 5: reason and properties; MQTT 3.1.1: one of five return codes, or nothing."""
    packet = protocol.connack(
        5, 0,
        {
            "receive_maximum": 100, "maximum_qos": 1, "maximum_packet_size": 70_000, "assigned_client_id": "x-1",
            "server_keepalive": 30, "session_expiry": 0, "wildcard_subscription_available": 0,
            "subscription_identifiers_available": 0, "shared_subscription_available": 0,
        },
    )  # fmt: skip
    found = paho_packet.decode_connack(packet[0], body_of(packet), V5)
    assert found.reason.value == 0
    assert found.flags == 0
    told = found.properties
    assert (told.ReceiveMaximum, told.MaximumQoS, told.MaximumPacketSize) == (100, 1, 70_000)
    assert (told.AssignedClientIdentifier, told.ServerKeepAlive, told.SessionExpiryInterval) == ("x-1", 30, 0)
    assert (told.WildcardSubscriptionAvailable, told.SharedSubscriptionAvailable) == (0, 0)
    assert told.SubscriptionIdentifierAvailable == 0
    assert protocol.connack(4, 0) == b"\x20\x02\0\0"
    assert protocol.connack(4, Reason.UNSUPPORTED_PROTOCOL) == b"\x20\x02\0\1"
    assert protocol.connack(4, Reason.CLIENT_ID_NOT_VALID) == b"\x20\x02\0\2"
    assert protocol.connack(4, Reason.QUOTA_EXCEEDED) == b"\x20\x02\0\3"
    assert protocol.connack(4, Reason.MALFORMED_PACKET) == b""


def test_suback_and_unsuback():
    """Codes in the order of the filters; MQTT 3.1.1 has one failure code, and no codes in UNSUBACK."""
    packet = protocol.suback(5, 300, [0, 1, 0x83, 0x8F])
    found = paho_packet.decode_suback(packet[0], body_of(packet), V5)
    assert (found.mid, [code.value for code in found.reason_codes]) == (300, [0, 1, 0x83, 0x8F])
    assert protocol.suback(4, 300, [0, 1, 0x83, 0x8F]) == b"\x90\x06\x01\x2c\x00\x01\x80\x80"
    packet = protocol.unsuback(5, 2, [0x11, 0x11])
    found = paho_packet.decode_unsuback(packet[0], body_of(packet), V5)
    assert (found.mid, [code.value for code in found.reason_codes]) == (2, [0x11, 0x11])
    assert protocol.unsuback(4, 2, [0x11]) == b"\xb0\x02\0\2"


def test_disconnect_answer():
    """The text is left out before the client's maximum packet size is exceeded; MQTT 3.1.1 has no such packet."""
    packet = protocol.disconnect(5, 0x95, "too large")
    found = paho_packet.decode_disconnect(packet[0], body_of(packet), V5)
    assert (found.reason.value, found.properties.ReasonString) == (0x95, "too large")
    assert protocol.disconnect(5, 0x95, "too large", bytes_max=len(packet)) == packet
    assert protocol.disconnect(5, 0x95, "too large", bytes_max=len(packet) - 1) == b"\xe0\x01\x95"
    assert protocol.disconnect(5, 0x95, "too large", bytes_max=2) == b""
    assert protocol.disconnect(5, 0x95, "x" * 10_000) == b"\xe0\x01\x95"
    assert protocol.disconnect(4, 0x95, "too large") == b""


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455])
def test_variable_length(value):
    """The bounds of the table in MQTT 5, section 1.5.5."""
    assert protocol._varint(value) == length(value)
    assert protocol._Reader(length(value), "a test").varint() == value
