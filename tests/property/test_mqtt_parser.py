"""The MQTT parser against random packets, splits and damage: the same records, and only the peer's faults escape."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_adapters.mqtt import protocol
from gateway_native import mqtt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.mqtt import PINGREQ, Device, connect, make_listener, packet, publish, text
from tests.support.recording import Recording

settings.register_profile("mqtt", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RELAXED = settings(settings.get_profile("mqtt"), max_examples=200)

TOPICS = st.sampled_from(["plant/a", "plant/b/c", "plant/ü", "office/x", "plant/" + "long" * 50])
USER = st.tuples(st.text("abc é%", max_size=5), st.text("abc é%", max_size=5))
PUBLISHES = st.builds(
    lambda topic, payload, qos, packet_id, retain, user: publish(
        topic, payload, qos=qos, packet_id=packet_id, retain=retain, version=5,
        props=[b"\x26" + text(name) + text(value) for name, value in user],
    ),
    TOPICS, st.binary(max_size=300), st.integers(0, 1), st.integers(1, 65_535), st.booleans(),
    st.lists(USER, max_size=2),
)  # fmt: skip
PACKETS = st.one_of(
    PUBLISHES,
    PUBLISHES,
    st.just(PINGREQ),
    st.just(packet(0x82, b"\0\1\0" + text("a/#") + b"\1")),
    st.just(packet(0xA2, b"\0\1\0" + text("a/#"))),
)


class Bench:
    """One listener for all examples of a test; each example looks only at what it has added."""

    def __init__(self, directory: Path) -> None:
        self.recording = Recording(directory)
        self.listener = make_listener(self.recording, clock_ns=10**18)

    def device(self) -> Device:
        device = Device(self.listener)
        device.accept_version = 5
        device.send(connect(5))
        return device

    def run(self, data: bytes, cuts: list[int]) -> tuple[list[object], bytes, object]:
        """Records, answers and fault that these bytes cause, cut at these places."""
        before = len(self.recording.records("telemetry"))
        device = self.device()
        places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        for start, end in itertools.pairwise(places):
            device.send(data[start:end])
        records = [row[2:] for row in self.recording.records("telemetry")[before:]]
        self.listener.release()
        fault = device.fault and device.fault.cause
        received = b"".join(sorted(device.received[index : index + 1] for index in range(len(device.received))))
        device.close()
        return records, received, (fault, device.packets[1:])


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as directory:
        made = Bench(Path(directory) / "data")
        yield made
        made.recording.close()


@RELAXED
@given(packets=st.lists(PACKETS, max_size=12), cuts=st.lists(st.integers(0, 10**6), max_size=20))
def test_pieces_change_the_outcome(bench, packets, cuts):
    """However a stream of packets is cut, records, answers and returned packets are those of one whole buffer."""
    data = b"".join(packets)
    assert bench.run(data, cuts) == bench.run(data, [])
    assert bench.listener.counters["kept_bytes"] == 0


@RELAXED
@given(
    packets=st.lists(PACKETS, min_size=1, max_size=6),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 10**6), max_size=5),
)
def test_damaged_packets(bench, packets, damage, cuts):
    """Whatever is wrong with the bytes, only RemoteFault comes of it, memory stays bounded, pieces do not matter."""
    data = bytearray(b"".join(packets))
    for place, value in damage:
        data[place % len(data)] = value
    assert bench.run(bytes(data), cuts) == bench.run(bytes(data), [])
    assert bench.listener.counters["kept_bytes"] == 0
    assert bench.listener.counters["unacknowledged"] == 0


@RELAXED
@given(data=st.binary(max_size=2_000))
def test_garbage(bench, data):
    """Random bytes on a fresh connection and after CONNECT: a fault or a wait for more, nothing else."""
    for device in (Device(bench.listener), bench.device()):
        device.send(data, 7)
        device.close()
    assert bench.listener.counters["kept_bytes"] == 0


@RELAXED
@given(body=st.binary(max_size=300), version=st.sampled_from([4, 5]))
def test_garbage_in_packets_that_python_decodes(body, version):
    """The decoders raise only RemoteFault, and what they accept is well-typed."""
    with contextlib.suppress(mqtt.RemoteFault):
        protocol.decode_connect(body)
    with contextlib.suppress(mqtt.RemoteFault):
        protocol.decode_connect(b"\0\4MQTT" + bytes([version]) + body)
    for decode in (protocol.decode_subscribe, protocol.decode_unsubscribe, protocol.decode_disconnect):
        with contextlib.suppress(mqtt.RemoteFault):
            decode(body, version)


@RELAXED
@given(
    data=st.one_of(
        st.binary(max_size=40), st.text(max_size=20).map(lambda value: value.encode("utf-8", "surrogatepass"))
    )
)
def test_text_check_differs_from_python(data):
    """Python's strict decoder is the oracle for UTF-8."""
    try:
        expected = "\0" not in data.decode()
    except UnicodeDecodeError:
        expected = False
    assert mqtt.is_text(data) is expected
    assert mqtt.is_topic(data) is (expected and data != b"" and b"+" not in data and b"#" not in data)


def matches_by_the_book(topic_filter: list[str], topic: list[str]) -> bool:
    """MQTT 5, section 4.7, level by level."""
    if topic[0].startswith("$") and topic_filter[0] in ("+", "#"):
        return False
    return levels_match(topic_filter, topic)


def levels_match(topic_filter: list[str], topic: list[str]) -> bool:
    if topic_filter == ["#"]:  # also when no level is left: the parent
        return True
    if not topic_filter or not topic:
        return topic_filter == topic
    return topic_filter[0] in ("+", topic[0]) and levels_match(topic_filter[1:], topic[1:])


LEVEL = st.sampled_from(["", "a", "b", "ab", "$x", "x"])


@RELAXED
@given(
    filter_levels=st.lists(st.one_of(LEVEL, st.just("+")), min_size=1, max_size=5),
    hash_at_end=st.booleans(),
    topic=st.lists(LEVEL, min_size=1, max_size=5),
)
def test_filter_match_differs_from_the_book(filter_levels, hash_at_end, topic):
    """The matcher agrees with a plain reading of the standard."""
    topic_filter = [*filter_levels, "#"] if hash_at_end else filter_levels
    wanted, name = "/".join(topic_filter).encode(), "/".join(topic).encode()
    if not wanted or not name:
        return
    expected = matches_by_the_book(topic_filter, topic)
    assert mqtt.filter_match(wanted, name) is expected
    assert (mqtt.Routes([(wanted, 0)]).find(name) is not None) is expected
