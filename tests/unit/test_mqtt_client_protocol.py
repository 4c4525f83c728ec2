"""A client's control packets: the server's own decoder judges what is encoded; what is decoded was written by hand."""

from __future__ import annotations

import pytest
from gateway_adapters.mqtt import client_protocol, protocol
from gateway_native.mqtt import RemoteFault

from tests.support.mqtt import properties, publish, text


def body(packet: bytes) -> bytes:
    """What follows a fixed header of two bytes."""
    assert packet[1] == len(packet) - 2 < 128
    return packet[2:]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(("username", "password"), [(None, None), ("user", None), ("user", "pässword")])
def test_connect_is_what_a_server_reads(version, username, password):
    """Every field arrives; properties only in MQTT 5."""
    packet = client_protocol.connect(
        version, "me", clean_start=False, keepalive_s=30, username=username, password=password,
        properties={"session_expiry": 7, "receive_maximum": 8, "maximum_packet_size": 9},
    )  # fmt: skip
    found = protocol.decode_connect(body(packet))
    assert (found.version, found.client_id, found.clean_start, found.keepalive_s) == (version, "me", False, 30)
    assert (found.username, found.password) == (username, password.encode() if password else None)
    asked = {"session_expiry": 7, "receive_maximum": 8, "maximum_packet_size": 9}
    assert found.properties == (asked if version == 5 else {})


@pytest.mark.parametrize("version", [4, 5])
def test_subscriptions_are_what_a_server_reads(version):
    """Filters, QoS, and in MQTT 5 the retain handling, which its decoder checks."""
    packet = client_protocol.subscribe(version, 7, [("plant/#", 1), ("$share/g/office/+", 0)])
    found = protocol.decode_subscribe(body(packet), version)
    assert found == protocol.Subscribe(7, (("plant/#", 1), ("$share/g/office/+", 0)))
    unsubscribe = protocol.decode_unsubscribe(body(client_protocol.unsubscribe(version, 8, ["a", "b"])), version)
    assert unsubscribe == protocol.Unsubscribe(8, ("a", "b"))


def test_connack():
    """Both versions, with all properties that there are, and a 3.1.1 broker's answer to MQTT 5."""
    assert client_protocol.decode_connack(b"\1\0", 4) == client_protocol.Connack(True, 0)
    assert client_protocol.decode_connack(b"\0\5", 4).reason == 0x87
    assert client_protocol.decode_connack(b"\0\1", 5).reason == 0x84
    many = properties(
        b"\x11\0\0\0\1", b"\x21\0\x14", b"\x24\1", b"\x25\1", b"\x27\0\1\0\0", b"\x12" + text("me"), b"\x22\0\x0a",
        b"\x1f" + text("fine"), b"\x26" + text("k") + text("v"), b"\x28\1", b"\x29\1", b"\x2a\1", b"\x13\0\x3c",
        b"\x1a" + text("r"), b"\x1c" + text("s"),
    )  # fmt: skip
    found = client_protocol.decode_connack(b"\1\0" + many, 5)
    assert found.session_present
    assert found.number("server_keepalive", 0) == 60
    assert found.number("maximum_packet_size", 0) == 65_536
    assert found.number("topic_alias_maximum", 0) == 10


@pytest.mark.parametrize(
    ("packet", "version"),
    [(b"", 4), (b"\0", 4), (b"\2\0", 4), (b"\0\0\0", 4), (b"\0\0", 5), (b"\1\x87\0", 5), (b"\0\0\1", 5),
     (b"\0\0" + properties(b"\x0b\1"), 5), (b"\0\0" + properties(b"\x13\0\1", b"\x13\0\1"), 5)],
)  # fmt: skip
def test_connack_that_is_none(packet, version):
    """Whatever is wrong with it is the broker's fault, and nothing else is raised."""
    with pytest.raises(RemoteFault):
        client_protocol.decode_connack(packet, version)


def test_answers_and_disconnect():
    """SUBACK, UNSUBACK, DISCONNECT of both versions."""
    assert client_protocol.decode_suback(b"\0\7\1\x80", 4) == (7, b"\1\x80")
    assert client_protocol.decode_suback(b"\0\7" + properties(b"\x1f" + text("no")) + b"\x87", 5) == (7, b"\x87")
    assert client_protocol.decode_unsuback(b"\0\7", 4) == (7, b"")
    assert client_protocol.decode_unsuback(b"\0\7\0\x11", 5) == (7, b"\x11")
    assert client_protocol.decode_disconnect(b"") == 0
    assert client_protocol.decode_disconnect(b"\x8e") == 0x8E
    assert client_protocol.decode_disconnect(b"\x8b" + properties(b"\x1c" + text("x"), b"\x1f" + text("y"))) == 0x8B
    for wrong in (b"\0\0", b"\0", b""):
        with pytest.raises(RemoteFault):
            client_protocol.decode_suback(wrong, 4)
    with pytest.raises(RemoteFault):
        client_protocol.decode_disconnect(b"\x8b" + properties(b"\x13\0\1"))


def test_reasons_are_words():
    """Also one that the standard does not know."""
    assert client_protocol.reason_text(0x87) == "not authorized (0x87)"
    assert client_protocol.reason_text(0x70) == "an unknown reason (0x70)"


def test_publishes_that_nobody_sends_again_can_be_counted():
    """Whole QoS 0 publishes of a piece; a torn one at the end, and what follows nonsense, are left out."""
    first = publish("plant/a", b"x" * 300)
    piece = first + publish("plant/b", qos=1, packet_id=1) + b"\xd0\0" + publish("plant/c")
    expected = [(b"plant/a", len(first)), (b"plant/c", len(publish("plant/c")))]
    assert list(client_protocol.publishes_qos_0(piece)) == expected
    for cut in range(1, 9):
        assert list(client_protocol.publishes_qos_0(piece[:-cut])) == expected[:1]
    assert list(client_protocol.publishes_qos_0(piece + b"\x30\xff\xff\xff\xff\1abc")) == expected
    assert list(client_protocol.publishes_qos_0(b"")) == []
