"""Record headers of MQTT messages: the native encoder, its Python counterpart, and what a reader gets back."""

from __future__ import annotations

import base64
from urllib.parse import unquote

import pytest
from gateway_adapters.mqtt.headers import escape, message_headers
from gateway_native import batch

from tests.support.mqtt import Device, binary, make_listener, publish, text

WIRE = {
    "payload_format": lambda value: b"\x01" + bytes([value]),
    "message_expiry": lambda value: b"\x02" + value.to_bytes(4, "big"),
    "content_type": lambda value: b"\x03" + text(value),
    "response_topic": lambda value: b"\x08" + text(value),
    "correlation_data": lambda value: b"\x09" + binary(value),
}
MESSAGES = [
    {},
    {"qos": 1},
    {"retain": True},
    {"qos": 1, "retain": True, "dup": True},
    {"payload_format": 0},
    {"payload_format": 1},
    {"message_expiry": 0},
    {"message_expiry": 2**32 - 1},
    {"content_type": ""},
    {"content_type": "text/plain; charset=utf-8"},
    {"content_type": "50 % größer\t~"},
    {"response_topic": "antwort/ü"},
    {"correlation_data": b""},
    *({"correlation_data": bytes(range(250, 250 - size, -1))} for size in (1, 2, 3, 4, 5, 63, 64)),
    {"user_properties": [("a", "b"), ("a", "c"), ("", ""), ("größe", "XL €")]},
    {"user_properties": [("x" * 200, "y" * 20_000)]},
    {"user_properties": [(str(number), "v") for number in range(100)]},
    {
        "qos": 1, "retain": True, "payload_format": 1, "message_expiry": 60, "content_type": "a", "response_topic": "b",
        "correlation_data": b"c", "user_properties": [("d", "e")],
    },
]  # fmt: skip
RESERVED = [
    "qos", "retain", "dup", "will", "payload-format", "message-expiry", "content-type", "response-topic",
    "correlation-data", "gateway.gap", "gateway.", "user.qos", "user.",
]  # fmt: skip


def as_packet(message):
    props = [WIRE[name](value) for name, value in message.items() if name in WIRE]
    props += [b"\x26" + text(name) + text(value) for name, value in message.get("user_properties", [])]
    qos = message.get("qos", 0)
    retain, dup = message.get("retain", False), message.get("dup", False)
    return publish("plant/a", b"v", qos=qos, packet_id=1, retain=retain, dup=dup, version=5, props=props)


@pytest.mark.parametrize("message", MESSAGES)
def test_native_headers_differ_from_the_definition(recording, message):
    """The native encoder writes the same headers as the Python one, and a reader decodes them."""
    device = Device(make_listener(recording), version=5)
    device.send(as_packet(message))
    assert device.fault is None
    ((*_, key, value, headers),) = recording.records("telemetry")
    assert (key, value) == (b"plant/a", b"v")
    assert headers == tuple(message_headers(**message))
    assert batch.encode_headers(list(headers)) == batch.encode_headers(message_headers(**message))


@pytest.mark.parametrize("name", RESERVED)
def test_user_property_passes_for_a_header_of_ours(recording, name):
    """A sender cannot forge what the gateway says; taking one "user." away gives its own name back."""
    device = Device(make_listener(recording), version=5)
    device.send(as_packet({"user_properties": [(name, "1")]}))
    assert recording.records("telemetry")[0][4] == ((f"user.{name}", b"1"),)
    assert message_headers(user_properties=[(name, "1")]) == [(f"user.{name}", b"1")]


@pytest.mark.parametrize(
    "name", ["QOS", "qos2", "dups", "user", "gateway", "retained", "content-typ", "x-content-type"]
)
def test_ordinary_user_property_is_renamed(recording, name):
    """Only names that mean something here are changed."""
    device = Device(make_listener(recording), version=5)
    device.send(as_packet({"user_properties": [(name, "1")]}))
    assert recording.records("telemetry")[0][4] == ((name, b"1"),)
    assert message_headers(user_properties=[(name, "1")]) == [(name, b"1")]


@pytest.mark.parametrize("value", ["", "plain", "100 %", "%41", "é\u0001\n\x7f~ ", "🌡"])
def test_escaping_cannot_be_undone(value):
    """Header values are ASCII and the standard library turns them back."""
    escaped = escape(value)
    assert escaped.isascii()
    assert all(0x20 <= byte <= 0x7E for byte in escaped)
    assert unquote(escaped.decode()) == value


def test_correlation_data_is_not_base64(recording):
    """Binary data comes back whole."""
    data = bytes(range(256))
    device = Device(make_listener(recording), version=5)
    device.send(as_packet({"correlation_data": data}))
    assert base64.b64decode(dict(recording.records("telemetry")[0][4])["correlation-data"], validate=True) == data
