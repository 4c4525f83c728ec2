"""The parser as a client of a broker: what a broker sends becomes records, and what it may not send is a fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_native import mqtt

from tests.support.mqtt import PINGREQ, PINGRESP, Device, length, packet, puback, publish
from tests.support.recording import Recording

CONNACK = packet(0x20, b"\0\0")
MAX = 4_096


class Broker(Device):
    """The same connection, seen from the other side: `send` is what a broker sends to us."""

    passed: list[int]

    def attend(self) -> None:
        self.passed = getattr(self, "passed", [])
        try:
            while (taken := self.take()) is not None:
                self.packets.append(taken)
                self.passed.append(self.passed_over)
                if taken[0] == 2:
                    self.open(version=self.accept_version, inflight_max=self.inflight_max)
                elif taken[0] == 3:
                    topic_bytes = int.from_bytes(taken[2][:2], "big")
                    if taken[1] & 6:
                        self.acknowledge(int.from_bytes(taken[2][2 + topic_bytes :][:2], "big"))
        except mqtt.RemoteFault as fault:
            self.fault = fault
            self.close()


@pytest.fixture
def recording(tmp_path: Path):
    found = Recording(tmp_path, start=False)
    yield found
    found.close()


def group_of(recording: Recording, *, record_bytes_max: int = MAX) -> mqtt.Group:
    routes = mqtt.Routes([(b"plant/#", recording.partition("telemetry"))])
    return mqtt.Group(
        recording.ring("test"), routes, packet_bytes_max=MAX, record_bytes_max=record_bytes_max, kept_bytes_max=2**20,
        client=True,
    )  # fmt: skip


def test_publishes_right_behind_connack(recording):
    """A broker that resumes a session sends its publishes with CONNACK; they are recorded and acknowledged."""
    broker = Broker(group_of(recording))
    broker.send(CONNACK + publish("plant/a", b"1", qos=1, packet_id=7, retain=True) + PINGRESP + publish("plant/b"))
    recording.start()
    assert [row[2:] for row in recording.records("telemetry")] == [
        (b"plant/a", b"1", (("qos", b"1"), ("retain", b"1"))),
        (b"plant/b", b"", ()),
    ]
    assert broker.group.release() == []
    assert broker.received == puback(7)
    assert broker.group.counters["retained"] == 1
    assert [taken[0] for taken in broker.packets] == [2]


@pytest.mark.parametrize("first", [publish("plant/a"), PINGRESP, packet(0x90, b"\0\1\0"), packet(0x10)])
def test_first_packet_that_is_not_connack(recording, first):
    """Whatever a broker says before CONNACK is a fault."""
    broker = Broker(group_of(recording))
    broker.send(first)
    assert broker.fault is not None
    assert broker.fault.reason == 0x82


@pytest.mark.parametrize(
    ("version", "wrong"),
    [(version, wrong) for version in (4, 5) for wrong in (CONNACK, PINGREQ, packet(0x82, b"\0\1"), packet(0x10))]
    + [(4, packet(0xE0)), (4, packet(0xF0))],
)
def test_packets_that_servers_do_not_send(recording, version, wrong):
    """A second CONNACK, and what only clients send; DISCONNECT and AUTH in MQTT 3.1.1."""
    broker = Broker(group_of(recording), version=version)
    broker.send(wrong)
    assert broker.fault is not None
    assert "does not send" in broker.fault.cause


def test_subscription_identifiers(recording):
    """Any number of them may stand in a publish, and they are no headers; 0 and a malformed one are faults."""
    broker = Broker(group_of(recording), version=5)
    identifiers = [b"\x0b\x01", b"\x0b" + length(268_435_455), b"\x0b\x01"]
    broker.send(publish("plant/a", b"1", version=5, props=[*identifiers, b"\x03\0\1t"]))
    recording.start()
    assert [row[4] for row in recording.records("telemetry")] == [(("content-type", b"t"),)]
    for wrong, reason in ((b"\x0b\x00", 0x82), (b"\x0b\x80\x00", 0x81), (b"\x0b\x80", 0x81)):
        other = Broker(broker.group, version=5)
        other.send(publish("plant/a", version=5, props=[wrong]))
        assert other.fault is not None
        assert other.fault.reason == reason


@pytest.mark.parametrize("version", [4, 5])
def test_topic_without_route(recording, version):
    """It is counted and acknowledged in its turn: a broker must not stop at what an older subscription asked for."""
    broker = Broker(group_of(recording), version=version)
    broker.send(publish("plant/a", qos=1, packet_id=1, version=version))
    broker.send(publish("office/a", qos=1, packet_id=2, version=version))
    assert broker.received == b""
    recording.start()
    recording.flush()
    broker.group.release()
    assert broker.received == puback(1) + puback(2)
    assert broker.group.counters["unrouted"] == 1
    broker.send(publish("office/a", qos=1, packet_id=3, version=version))
    assert broker.received.endswith(puback(3))


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(("size", "chunk"), [(MAX, None), (MAX, 1), (70_000, 1), (200_000, None), (200_000, 1_000)])
def test_publish_larger_than_allowed(recording, size, chunk, qos):
    """Its beginning is handed over, the rest is passed over in bounded memory, and what follows is recorded."""
    broker = Broker(group_of(recording), version=4)
    large = publish("plant/large", b"x" * size, qos=qos, packet_id=5 * qos)
    broker.send(large + publish("plant/a", b"after", qos=1, packet_id=6), chunk)
    assert broker.fault is None
    assert len(broker.packets) == 1
    kind, flags, body = broker.packets[0]
    assert (kind, flags) == (3, qos << 1)
    assert body[:13] == b"\0\x0bplant/large"
    assert len(body) <= 65_544
    assert len(body) + broker.passed[0] == len(large) - 1 - len(length(len(large) - 4))
    recording.start()
    assert [row[3] for row in recording.records("telemetry")] == [b"after"]
    broker.group.release()
    assert broker.received == (puback(5) if qos else b"") + puback(6)
    assert broker.group.kept_bytes == 0


def test_record_larger_than_allowed(recording):
    """A packet that is not too large itself, but whose record would be, is handed over whole."""
    broker = Broker(group_of(recording, record_bytes_max=100), version=4)
    broker.send(publish("plant/a", b"x" * 200, qos=1, packet_id=5) + publish("plant/a", b"y"))
    assert len(broker.packets) == 1
    assert broker.packets[0][2].endswith(b"x" * 200)
    assert broker.passed == [0]
    assert broker.received == puback(5)
    recording.start()
    assert [row[3] for row in recording.records("telemetry")] == [b"y"]


def test_what_was_not_parsed_can_be_looked_at(recording):
    """Bytes that wait for room in the ring are there to be counted when a connection is given up."""
    broker = Broker(group_of(recording), version=4)
    one = publish("plant/a", b"x" * 2_000)
    while not broker.blocked:
        broker.send(one)
    assert broker.kept_data == one
    broker.close()
    assert broker.kept_data == b""
