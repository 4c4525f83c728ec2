"""QoS 2 against a model: whatever a client does on however many connections, nothing is recorded twice or lost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from gateway_native import mqtt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.mqtt import Device, make_listener, puback, pubcomp, publish, pubrec, pubrel
from tests.support.stepped import SteppedRecording

RELAXED = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
IDS = st.sampled_from([1, 2, 3, 8, 9, 16, 17, 65_535])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), IDS),
        st.tuples(st.just("publish"), IDS),
        st.tuples(st.just("release"), IDS),
        st.tuples(st.just("at least once"), IDS),
        st.tuples(st.just("settle"), st.just(0)),
        st.tuples(st.just("reconnect"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=60,
)


@dataclass
class Model:
    """What the standard says becomes of a client's packets, as plain as can be."""

    version: int
    received: dict[int, int] = field(default_factory=dict)  # identifier: delivery number
    records: list[bytes] = field(default_factory=list)
    releases: list[bytes] = field(default_factory=list)
    answers: bytes = b""
    deliveries: int = 0

    def publish(self, packet_id: int, payload: bytes) -> None:
        if packet_id not in self.received:
            self.records.append(payload)
            self.deliveries += 1
            self.received[packet_id] = self.deliveries
        self.answers += pubrec(packet_id)

    def release(self, packet_id: int) -> None:
        unknown = packet_id not in self.received and self.version == 5
        self.received.pop(packet_id, None)
        self.releases.append(b"release %d %d" % (packet_id, self.deliveries))
        self.answers += pubcomp(packet_id, 0x92 if unknown else 0)


def unreleased_by_the_log(rows: list[tuple[bytes, bytes]], releases: list[bytes]) -> dict[int, int]:
    """What a restart finds: identifiers whose highest delivery is above the highest release."""
    published: dict[int, int] = {}
    released: dict[int, int] = {}
    for packet_id, delivery in rows:
        published[int(packet_id)] = max(published.get(int(packet_id), 0), int(delivery))
    for value in releases:
        _, packet_id, delivery = value.split()
        released[int(packet_id)] = max(released.get(int(packet_id), 0), int(delivery))
    return {key: number for key, number in published.items() if number > released.get(key, 0)}


class Client:
    """The real thing: one client of one listener, whose connections, and whose gateway, come and go."""

    def __init__(self, recording: SteppedRecording, version: int) -> None:
        self.recording = recording
        self.version = version
        self.start = {name: len(recording.records(name)) for name in ("telemetry", "releases")}
        self.listener = make_listener(recording)
        self.listener.sessions_partition = recording.partition("releases")
        self.session = self.new_session()
        self.device = self.connect()

    def new_session(self) -> mqtt.Session:
        return mqtt.Session(b"test/c", b"c", durable=True, inflight_max=100)

    def connect(self) -> Device:
        return Device(self.listener, version=self.version, inflight_max=100, session=self.session)

    def rows(self, stream: str) -> list[tuple[bytes, dict[str, bytes]]]:
        return [(row[3] or b"", dict(row[4])) for row in self.recording.records(stream)[self.start[stream] :]]

    def settle(self) -> bytes:
        self.recording.flush()
        assert self.listener.release() == []
        received, self.device.received = self.device.received, b""
        return received

    def restart(self) -> None:
        """Another process: nothing is left but what is in the log."""
        self.recording.flush()
        published = [
            (headers["packet-id"], headers["delivery"])
            for _, headers in self.rows("telemetry")
            if "delivery" in headers
        ]
        releases = [value for value, _ in self.rows("releases")]
        number = self.listener.delivery_next
        self.device.close()
        self.listener = make_listener(self.recording)
        self.listener.sessions_partition = self.recording.partition("releases")
        self.listener.delivery_next = number
        self.session = self.new_session()
        for packet_id, delivery in unreleased_by_the_log(published, releases).items():
            self.session.add(packet_id, delivery)
        self.device = self.connect()


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@RELAXED
@given(operations=OPERATIONS, version=st.sampled_from([4, 5]), together=st.booleans())
def test_exactly_once(directory, operations, version, together):
    """Records, answers and what is unreleased are the model's, whether packets come one by one or many in a buffer."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        recording = SteppedRecording(Path(name))
        client, model = Client(recording, version), Model(version)
        buffered = b""
        for number, (operation, packet_id) in enumerate(operations):
            payload = b"%d" % number
            if operation == "publish":
                buffered += publish("plant/a", payload, qos=2, packet_id=packet_id, version=version)
                model.publish(packet_id, payload)
            elif operation == "release":
                buffered += pubrel(packet_id)
                model.release(packet_id)
            elif operation == "at least once":
                buffered += publish("plant/a", payload, qos=1, packet_id=packet_id, version=version)
                model.records.append(payload)
                model.answers += puback(packet_id)
            if not together or operation in ("settle", "reconnect", "restart"):
                client.device.send(buffered)
                buffered = b""
            if operation == "settle":
                assert client.settle() == model.answers
                model.answers = b""
            elif operation == "reconnect":
                client.device.close()
                client.device = client.connect()
                model.answers = b""
            elif operation == "restart":
                client.restart()
                model.answers = b""
        client.device.send(buffered)
        assert client.device.fault is None
        assert client.settle() == model.answers
        assert [value for value, _ in client.rows("telemetry")] == model.records
        assert [value for value, _ in client.rows("releases")] == model.releases
        assert dict(client.session.unreleased) == model.received
        client.device.close()
        assert client.listener.counters["unacknowledged"] == 0
        recording.close()
