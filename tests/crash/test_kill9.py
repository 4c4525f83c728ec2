"""kill -9 in the middle of QoS 1 traffic: what was acknowledged is there, in order, once, and the gateway comes up."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

import gateway
from tests.support.gateway_process import GatewayProcess
from tests.support.publisher import QosOnePublisher
from tests.support.segments import parse

CLIENTS = 4
ROUNDS = int(os.environ.get("GATEWAY_CRASH_ROUNDS", "30"))
SEED = int(os.environ.get("GATEWAY_CRASH_SEED", "20261123"))


class Model:
    """What the clients know, and how far the log was looked at."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.sent = [0] * CLIENTS
        self.acknowledged = 0
        self.offset = 0

    def check(self, publishers: list[QosOnePublisher]) -> None:
        """The log's new part is what these publishers, who began where the others had ended, sent."""
        recorded: list[list[int]] = [[] for _ in range(CLIENTS)]
        for offset, _, key, value, _ in gateway.open(self.data)["telemetry"].read(offsets=(self.offset, None)).rows():
            assert offset == self.offset, f"offset {offset} follows {self.offset - 1}"
            assert key is not None
            assert value is not None
            recorded[int(key.rpartition(b"/")[2])].append(int(value))
            self.offset = offset + 1
        for client, publisher in enumerate(publishers):
            numbers = recorded[client]
            assert publisher.fault is None, publisher.fault
            assert numbers == sorted(set(numbers)), f"client {client}: out of order, or something twice"
            missing = set(range(publisher.first, publisher.acknowledged)).difference(numbers)
            assert not missing, f"client {client}: {len(missing)} acknowledged messages are gone, first {min(missing)}"
            assert set(numbers) <= set(range(publisher.first, publisher.sent)), f"client {client}: never sent"
            self.sent[client] = publisher.sent
            self.acknowledged += publisher.acknowledged - publisher.first


def one_round(process: GatewayProcess, model: Model, seconds: float) -> None:
    """Publish at speed from all clients, kill the gateway after so long, start it again, look."""
    publishers = [
        QosOnePublisher(process.port, f"client-{client}", f"load/{client}", first=model.sent[client])
        for client in range(CLIENTS)
    ]
    for publisher in publishers:
        publisher.start()
    time.sleep(seconds)
    process.kill()
    for publisher in publishers:
        publisher.join(20)
    process.start()
    model.check(publishers)


@pytest.mark.timeout(900)
def test_acknowledged_messages_survive_kill_9_in_every_round(tmp_path: Path) -> None:
    """Four clients publish at speed, the gateway is killed at a random instant and started again, thirty times over."""
    randomness = random.Random(SEED)
    with GatewayProcess(tmp_path) as process:
        process.start()
        model = Model(process.data)
        for _ in range(ROUNDS):
            one_round(process, model, randomness.uniform(0.02, 0.6))
        assert process.end() == 0
    assert model.acknowledged > ROUNDS * 100, "too little was acknowledged for this to show anything"
    ours = [(row[0], row[3]) for row in gateway.open(process.data)["telemetry"].read().rows()]
    theirs = [
        (row.offset, row.value)
        for segment in sorted((process.data / "telemetry-0").glob("*.log"))
        for batch in parse(segment.read_bytes(), both=False)
        for row in batch.rows
    ]
    assert ours == theirs
    assert len(ours) == model.offset


def test_two_rounds_without_traffic_change_nothing(tmp_path: Path) -> None:
    """A gateway that is killed while idle leaves exactly what was there."""
    with GatewayProcess(tmp_path) as process:
        process.start()
        publisher = QosOnePublisher(process.port, "c", "load/0")
        publisher.start()
        time.sleep(0.3)
        publisher.finish()
        before = list(gateway.open(process.data)["telemetry"].read())
        assert len(before) == publisher.acknowledged > 0
        for _ in range(2):
            process.kill()
            process.start()
            assert list(gateway.open(process.data)["telemetry"].read()) == before
