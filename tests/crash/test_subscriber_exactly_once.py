"""kill -9 of the gateway, of its broker, of both, in the middle of QoS 2 traffic: nothing is lost, nothing comes twice.

The gateway alone is killed behind Mosquitto, too. A Mosquitto that is killed forgets what it had sent, and sends it
again as something new, which no client can tell; so there the broker is one of the tests' own that forgets nothing.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

import gateway
from tests.integration.peers import Mosquitto
from tests.support.exact_broker import ExactBroker
from tests.support.exact_publisher import ExactPublisher
from tests.support.gateway_process import GatewayProcess

CLIENTS = 2
ROUNDS = int(os.environ.get("GATEWAY_CRASH_ROUNDS", "2"))
SEED = int(os.environ.get("GATEWAY_CRASH_SEED", "20261125"))
PATIENCE_S = 60.0


def subscribing(directory: Path, port: int) -> GatewayProcess:
    """A gateway that asks for QoS 2 at this broker."""
    return GatewayProcess(
        directory / "gateway",
        extra_toml=f"""
[mqtt.subscribers.broker]
url = "mqtt://127.0.0.1:{port}"
reconnect_min = "100ms"
reconnect_max = "200ms"
routes = [{{ filter = "load/#", stream = "telemetry", qos = 2 }}]
""",
    )


class Recorded:
    """The numbers in the log, by topic, read on from where the last look ended."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._offset = 0
        self.numbers: list[set[int]] = [set() for _ in range(CLIENTS)]

    def read_on(self) -> int:
        """How many more there are; nothing may be there twice."""
        before = self._offset
        log = gateway.open(self._data)
        if "telemetry" not in log:
            return 0
        for _, _, key, value, _ in log["telemetry"].read(offsets=(self._offset, None)).rows():
            assert key is not None
            assert value is not None
            numbers = self.numbers[int(key.rpartition(b"/")[2])]
            assert int(value) not in numbers, f"{key!r} {value!r} is recorded twice, the second time at {self._offset}"
            numbers.add(int(value))
            self._offset += 1
        return self._offset - before


def traffic(recorded: Recorded, process: GatewayProcess, after: int = 1) -> None:
    """Wait until messages come in, so that each kill is in the middle of some."""
    deadline = time.monotonic() + PATIENCE_S
    while recorded.read_on() < after:
        assert time.monotonic() < deadline, f"nothing is recorded:\n{process.log}"
        time.sleep(0.02)


def catch_up(recorded: Recorded, publishers: list[ExactPublisher], process: GatewayProcess) -> None:
    """Everything comes.

    A gateway that is killed before has Mosquitto (2.0.11) send tens of thousands of messages without waiting for an
    answer, until it uses identifiers twice at a time.
    """
    deadline = time.monotonic() + PATIENCE_S
    while sum(map(len, recorded.numbers)) < sum(publisher.sent for publisher in publishers):
        recorded.read_on()
        assert time.monotonic() < deadline, f"messages are gone:\n{process.log}"
        time.sleep(0.05)


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("victim", ["gateway", "broker", "both"])
def test_everything_a_broker_has_is_recorded_once(tmp_path: Path, victim: str) -> None:
    """The broker sends at speed and reuses identifiers at once; the victim is killed at random instants."""
    randomness = random.Random(SEED)
    broker = ExactBroker(tmp_path / "broker")
    with subscribing(tmp_path, broker.port) as process:
        recorded = Recorded(process.data)
        try:
            broker.start()
            process.start()
            for _ in range(ROUNDS):
                traffic(recorded, process)
                time.sleep(randomness.uniform(0.0, 0.3))
                if victim != "broker":
                    process.kill()
                if victim != "gateway":
                    broker.kill()
                    time.sleep(randomness.uniform(0.0, 0.1))
                    broker.start()
                if victim != "broker":
                    process.start()
            traffic(recorded, process)
            broker.finish()
            assert process.end() == 0
        finally:
            broker.kill()
        recorded.read_on()
        assert broker.begun > ROUNDS * 100, "too little to show anything"
        assert recorded.numbers[0] == set(range(broker.begun))


@pytest.mark.integration
@pytest.mark.timeout(3_600)
def test_everything_mosquitto_has_is_recorded_once(tmp_path: Path) -> None:
    """Two clients publish at Mosquitto with QoS 2, and keep their sessions; the gateway is killed behind it."""
    randomness = random.Random(SEED)
    broker = Mosquitto(tmp_path / "broker", settings=["max_inflight_messages 100"])
    publishers = [ExactPublisher(f"client-{client}", f"load/{client}") for client in range(CLIENTS)]
    with subscribing(tmp_path, broker.port) as process:
        recorded = Recorded(process.data)
        try:
            broker.start()
            process.start()
            while "connected to the broker" not in process.log:
                time.sleep(0.02)
            for _ in range(ROUNDS):
                connections = [publisher.start(broker.port) for publisher in publishers]
                traffic(recorded, process)
                time.sleep(randomness.uniform(0.0, 0.3))
                process.kill()
                for connection in connections:
                    connection.finish()
                process.start()
                assert [publisher.fault for publisher in publishers] == [None] * CLIENTS
                catch_up(recorded, publishers, process)
            assert process.end() == 0
        finally:
            broker.stop()
    recorded.read_on()
    for client, publisher in enumerate(publishers):
        assert publisher.completed > ROUNDS * 20, "too little to show anything"
        assert recorded.numbers[client] == set(range(publisher.sent))
