"""What a broker sends, random, cut and damaged: the same records, bounded memory, and only the peer's faults escape."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_adapters.mqtt import client_protocol
from gateway_native import mqtt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.mqtt import PINGRESP, Broker, length, packet, publish
from tests.support.recording import Recording

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
PACKET_BYTES_MAX = 600
CONNACK = packet(0x20, b"\1\0\0")

PUBLISHES = st.builds(
    lambda topic, size, qos, packet_id, retain, identifiers: publish(
        topic, b"x" * size, qos=qos, packet_id=packet_id, retain=retain, version=5,
        props=[b"\x0b" + length(identifier) for identifier in identifiers],
    ),
    st.sampled_from(["plant/a", "plant/b/c", "office/x", "plant/" + "long" * 200]),
    st.sampled_from([0, 1, 300, PACKET_BYTES_MAX, 5_000, 100_000]),
    st.integers(0, 1), st.integers(1, 65_535), st.booleans(), st.lists(st.integers(1, 300), max_size=2),
)  # fmt: skip
PACKETS = st.one_of(PUBLISHES, PUBLISHES, st.just(PINGRESP), st.just(packet(0x90, b"\0\1\0\1")))


class Bench:
    """One group for all examples of a test; each example looks only at what it has added."""

    def __init__(self, directory: Path) -> None:
        self.recording = Recording(directory)
        routes = mqtt.Routes([(b"plant/#", self.recording.partition("telemetry"))])
        self.group = mqtt.Group(
            self.recording.ring("test"), routes, packet_bytes_max=PACKET_BYTES_MAX, record_bytes_max=500,
            kept_bytes_max=2**18, clock_ns=10**18, client=True,
        )  # fmt: skip

    def run(self, data: bytes, cuts: list[int]) -> tuple[list[object], bytes, object]:
        """Records, answers, and what was returned, caused by these bytes, cut at these places."""
        before = len(self.recording.records("telemetry"))
        broker = Broker(self.group)
        broker.accept_version = 5
        broker.send(CONNACK)
        places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        for start, end in itertools.pairwise(places):
            broker.send(data[start:end])
        records = [row[2:] for row in self.recording.records("telemetry")[before:]]
        self.group.release()
        fault = broker.fault and broker.fault.cause
        received = broker.received if fault is None else b""
        broker.close()
        return records, received, (fault, broker.packets, broker.passed)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as directory:
        made = Bench(Path(directory) / "data")
        yield made
        made.recording.close()


@RELAXED
@given(packets=st.lists(PACKETS, max_size=8), cuts=st.lists(st.integers(0, 10**6), max_size=20))
def test_pieces_change_the_outcome(bench, packets, cuts):
    """However a stream is cut, also inside of a publish that is too large, the outcome is that of one whole buffer."""
    data = b"".join(packets)
    whole = bench.run(data, [])
    assert bench.run(data, cuts) == whole
    assert whole[2][0] is None
    assert bench.group.counters["kept_bytes"] == 0


@RELAXED
@given(
    packets=st.lists(PACKETS, min_size=1, max_size=5),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 10**6), max_size=5),
)
def test_damaged_packets(bench, packets, damage, cuts):
    """Whatever is wrong with the bytes, only RemoteFault comes of it, and memory stays bounded."""
    data = bytearray(b"".join(packets))
    for place, value in damage:
        data[place % len(data)] = value
    assert bench.run(bytes(data), cuts) == bench.run(bytes(data), [])
    assert bench.group.counters["kept_bytes"] == 0
    assert bench.group.counters["unacknowledged"] == 0


@RELAXED
@given(body=st.binary(max_size=60), version=st.sampled_from([4, 5]), flags=st.integers(0, 15))
def test_control_packets_of_any_bytes(body, version, flags):
    """A client's decoders raise nothing but RemoteFault."""
    for decode in (
        lambda: client_protocol.decode_connack(body, version),
        lambda: client_protocol.decode_suback(body, version),
        lambda: client_protocol.decode_unsuback(body, version),
        lambda: client_protocol.decode_disconnect(body),
        lambda: client_protocol.decode_publish_head(flags, body),
        lambda: list(client_protocol.publishes_qos_0(body)),
    ):
        with contextlib.suppress(mqtt.RemoteFault):
            decode()
