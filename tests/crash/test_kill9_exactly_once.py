"""kill -9 in the middle of QoS 2 traffic: what was received is there exactly once, over any number of restarts."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

import gateway
from tests.support.exact_publisher import ExactPublisher
from tests.support.gateway_process import GatewayProcess

CLIENTS = 4
ROUNDS = int(os.environ.get("GATEWAY_CRASH_ROUNDS", "10"))
SEED = int(os.environ.get("GATEWAY_CRASH_SEED", "20261125"))


def recorded(data: Path) -> list[list[int]]:
    """The numbers in the log, by client."""
    found: list[list[int]] = [[] for _ in range(CLIENTS)]
    log = gateway.open(data)
    if "telemetry" not in log:
        return found  # killed before the first message was on disk
    for _, _, key, value, _ in log["telemetry"].read().rows():
        assert key is not None
        assert value is not None
        found[int(key.rpartition(b"/")[2])].append(int(value))
    return found


def check(data: Path, publishers: list[ExactPublisher]) -> None:
    """Nothing twice; nothing missing of what PUBREC came for."""
    for client, numbers in enumerate(recorded(data)):
        publisher = publishers[client]
        assert publisher.fault is None, publisher.fault
        twice = {number for number in numbers if numbers.count(number) > 1} if len(set(numbers)) < len(numbers) else ()
        assert not twice, f"client {client}: recorded twice: {sorted(twice)[:10]}"
        assert len(numbers) >= publisher.received, f"client {client}: {publisher.received - len(numbers)} are gone"


@pytest.mark.timeout(900)
def test_messages_are_recorded_exactly_once_whenever_the_gateway_is_killed(tmp_path: Path) -> None:
    """Four clients publish at speed and keep their sessions; in the end every message is there, once."""
    randomness = random.Random(SEED)
    publishers = [ExactPublisher(f"client-{client}", f"load/{client}") for client in range(CLIENTS)]
    with GatewayProcess(tmp_path) as process:
        process.start()
        for _ in range(ROUNDS):
            connections = [publisher.start(process.port) for publisher in publishers]
            time.sleep(randomness.uniform(0.05, 0.6))
            process.kill()
            for connection in connections:
                connection.join(20)
            process.start()
            check(process.data, publishers)
        connections = [publisher.start(process.port) for publisher in publishers]
        for connection in connections:
            connection.finish()
        assert process.end() == 0
    assert all(publisher.idle for publisher in publishers)
    assert sum(publisher.completed for publisher in publishers) > ROUNDS * 100, "too little to show anything"
    for client, numbers in enumerate(recorded(process.data)):
        assert sorted(numbers) == list(range(publishers[client].sent)), f"client {client}"


@pytest.mark.timeout(300)
def test_checkpoint_taken_between_kills(tmp_path: Path) -> None:
    """A clean stop leaves a checkpoint; kills after it go on from there, and from nothing when it is deleted."""
    publisher = ExactPublisher("client-0", "load/0")
    with GatewayProcess(tmp_path) as process:
        for end in ("stop", "kill", "lose", "kill", "stop", "kill"):
            process.start()
            connection = publisher.start(process.port)
            time.sleep(0.3)
            if end == "stop":
                assert process.end() == 0
            else:
                process.kill()
            connection.join(20)
            if end == "lose":
                (process.data / "mqtt-sessions" / "devices.json").unlink()
            assert publisher.fault is None, publisher.fault
        process.start()
        publisher.start(process.port).finish()
    assert publisher.idle
    assert sorted(recorded(process.data)[0]) == list(range(publisher.sent))
