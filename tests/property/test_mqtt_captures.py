"""What real clients sent, whole, in every pair of pieces, byte by byte, and damaged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from gateway_adapters.mqtt.headers import escape
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.target import OPTION_BYTES, Target
from tests.support.capture_mqtt import DATA, MESSAGES
from tests.support.mqtt import Device, make_listener, session

CAPTURES = {path.stem: path.read_bytes() for path in sorted(DATA.glob("*.bin"))}
RELAXED = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def test_captures_are_missing():
    """Three clients, both versions; mosquitto_pub and paho speak either."""
    assert sorted(CAPTURES) == ["gmqtt-5", "mosquitto_pub-3.1.1", "mosquitto_pub-5", "paho-3.1.1", "paho-5"]


def replay(listener, name, cuts=()):
    """Send a capture, cut at these places; the device."""
    device = Device(listener, session=session(), topic_alias_max=16)
    device.accept_version = 5 if name.endswith("-5") else 4
    data = CAPTURES[name]
    places = [0, *cuts, len(data)]
    for start, end in itertools.pairwise(places):
        device.send(data[start:end])
    assert device.fault is None
    return device


def messages_of(name):
    """(topic, payload, qos, retain) that the client published."""
    if not name.startswith("mosquitto"):
        return MESSAGES
    lines = [payload for _, payload, _, _ in MESSAGES if payload and payload.isascii()]
    return [(MESSAGES[0][0], payload, 2, True) for payload in lines]


def headers_of(name, qos, retain):
    flags = ([("qos", b"%d" % qos)] if qos else []) + ([("retain", b"1")] if retain else [])
    by_client = {
        "gmqtt-5": [("content-type", b"x"), ("who", b"gmqtt"), ("response-topic", b"plant/answers"),
                    ("correlation-data", b"AAE=")],
        "mosquitto_pub-5": [("content-type", b"text/plain"), ("unit", escape("°C"))],
        "paho-5": [("message-expiry", b"60"), ("content-type", b"application/octet-stream"), ("größe", b"XL"),
                   ("a", b"b")],
    }  # fmt: skip
    return tuple(flags + by_client.get(name, []))


@pytest.mark.parametrize("name", CAPTURES)
def test_capture_misread(recording, name):
    """Records are what the client published, however its bytes arrive; and its QoS 2 ends as it should."""
    listener = make_listener(recording)
    expected = [
        (topic.encode(), payload, headers_of(name, qos, retain)) for topic, payload, qos, retain in messages_of(name)
    ]
    size = len(CAPTURES[name])
    cuts = [(), *((cut,) for cut in range(1, size)), tuple(range(1, size))]
    for cut in cuts:
        device = replay(listener, name, cut)
        assert [kind for kind, _, _ in device.packets if kind != 8] == [1, 14]
        assert len(device.options["session"]) == 0
        device.close()
    rows = [(row[2], row[3] or b"", tuple(sorted(row[4]))) for row in recording.records("telemetry")]
    assert rows == [(key, value, tuple(sorted(headers))) for key, value, headers in expected] * len(cuts)
    assert listener.counters["kept_bytes"] == 0


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


def test_captures_as_inputs(target):
    """Whole and cut, with every combination of options."""
    for data in CAPTURES.values():
        for flags in range(256):
            for version in (1, 0xFE):
                target.run(bytes([version, flags, 3, 50, 100, 200]) + data)


def test_options_without_bytes(target):
    """The shortest inputs of the fuzzer."""
    for size in range(OPTION_BYTES + 2):
        target.run(b"\0" * size)


@RELAXED
@given(
    name=st.sampled_from(sorted(CAPTURES)),
    options=st.binary(min_size=OPTION_BYTES, max_size=OPTION_BYTES),
    damage=st.lists(
        st.tuples(
            st.sampled_from(["set", "cut", "insert", "repeat"]),
            st.integers(0, 2_000),
            st.binary(min_size=1, max_size=3),
        ),
        max_size=5,
    ),
)
def test_damaged_capture(target, name, options, damage):
    """Bytes changed, taken out, put in, repeated: only the peer's faults, and pieces never matter."""
    data = bytearray(CAPTURES[name])
    for how, place, value in damage:
        at = place % (len(data) + 1)
        if how == "set":
            data[at : at + len(value)] = value
        elif how == "cut":
            del data[at : at + value[0]]
        elif how == "insert":
            data[at:at] = value
        else:
            data[at:at] = data[max(0, at - value[0]) : at]
    target.run(options + bytes(data))


@RELAXED
@given(data=st.binary(max_size=400))
def test_garbage_with_options(target, data):
    """Nothing of a client in it at all."""
    target.run(data)
