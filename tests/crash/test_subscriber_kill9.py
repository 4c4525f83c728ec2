"""kill -9 of the gateway, of its broker, of both, in the middle of traffic: nothing that the broker had is lost.

The broker is Mosquitto, which acknowledges before it has anything on disk. So what must survive its own end is what it
was made to save (SIGUSR1) just before; what must survive the gateway's is everything that it had acknowledged. A
Mosquitto that comes back from such a save goes on with packet identifiers of then, and sends some messages again as if
they were new; so with QoS 2, too, some are recorded twice. Where the broker forgets nothing that is looked at as well:
test_subscriber_exactly_once.py.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import gateway
from tests.integration.peers import Mosquitto
from tests.support.exact_publisher import ExactPublisher
from tests.support.gateway_process import GatewayProcess
from tests.support.publisher import QosOnePublisher

CLIENTS = 2
WINDOW = 20
ROUNDS = int(os.environ.get("GATEWAY_CRASH_ROUNDS", "4"))
SEED = int(os.environ.get("GATEWAY_CRASH_SEED", "20261125"))
PATIENCE_S = 60.0


class QosTwoPublisher:
    """Looks like a QosOnePublisher: a client of its own, of which only what is complete counts."""

    def __init__(self, port: int, client_id: str, topic: str, *, first: int) -> None:
        self._port = port
        self._publisher = ExactPublisher(client_id, topic, window=WINDOW)
        self._publisher.sent = self.first = first

    def start(self) -> None:
        self._connection = self._publisher.start(self._port)

    def finish(self) -> None:
        self._connection.finish()

    @property
    def sent(self) -> int:
        return self._publisher.sent

    @property
    def acknowledged(self) -> int:
        return self.first + self._publisher.completed

    @property
    def fault(self) -> str | None:
        return self._publisher.fault


class Site:
    """A broker that keeps its sessions, a gateway that subscribes to it, and what is known to have been published."""

    def __init__(self, directory: Path, settings: str = "", qos: int = 1) -> None:
        self.qos = qos
        self.rounds = 0
        self._database = directory / "broker" / "mosquitto.db"
        keeping = ["persistence true", f"persistence_location {directory}/broker/", "autosave_interval 0"]
        self.broker = Mosquitto(directory / "broker", settings=[*keeping, "max_inflight_messages 1000"])
        subscriber = f"""
[mqtt.subscribers.broker]
url = "mqtt://127.0.0.1:{self.broker.port}"
reconnect_min = "100ms"
reconnect_max = "200ms"
routes = [{{ filter = "load/#", stream = "telemetry", qos = {qos} }}]
{settings}
"""
        self.gateway = GatewayProcess(directory / "gateway", extra_toml=subscriber)
        self.expected: list[set[int]] = [set() for _ in range(CLIENTS)]
        self.sent = [0] * CLIENTS
        self.recorded: list[list[int]] = [[] for _ in range(CLIENTS)]
        self._offset = 0

    def start(self) -> None:
        self.broker.start()
        self.gateway.start()
        deadline = time.monotonic() + PATIENCE_S
        while "connected to the broker" not in self.gateway.log:
            assert time.monotonic() < deadline, f"the gateway does not reach its broker:\n{self.gateway.log}"
            time.sleep(0.02)

    def publishers(self) -> list[QosOnePublisher | QosTwoPublisher]:
        """Of one round: with QoS 2 new clients, since the broker may have forgotten those of the last one."""
        self.rounds += 1
        port = self.broker.port
        if self.qos == 2:
            return [
                QosTwoPublisher(port, f"client-{client}-{self.rounds}", f"load/{client}", first=self.sent[client])
                for client in range(CLIENTS)
            ]
        return [
            QosOnePublisher(port, f"client-{client}", f"load/{client}", first=self.sent[client], window=WINDOW)
            for client in range(CLIENTS)
        ]

    def stop(self) -> None:
        self.gateway.kill()
        self.broker.stop()

    def save(self) -> None:
        """Have the broker write down what it has."""
        before = self._database.stat().st_ino if self._database.exists() else 0
        process = self.broker._process
        assert process is not None
        process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + PATIENCE_S
        while not self._database.exists() or self._database.stat().st_ino == before:
            assert time.monotonic() < deadline, "the broker saves nothing"
            time.sleep(0.001)

    def read_on(self) -> None:
        """Take what the log has beyond what was looked at."""
        for offset, _, key, value, _ in (
            gateway.open(self.gateway.data)["telemetry"].read(offsets=(self._offset, None)).rows()
        ):
            assert offset == self._offset
            assert key is not None
            assert value is not None
            self.recorded[int(key.rpartition(b"/")[2])].append(int(value))
            self._offset += 1

    def wait_until_recorded(self) -> None:
        """Everything that must be there comes; the broker may take its time."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.read_on()
            missing = [expected.difference(found) for expected, found in zip(self.expected, self.recorded, strict=True)]
            if not any(missing):
                return
            assert time.monotonic() < deadline, (
                f"{sum(map(len, missing))} messages that the broker had are gone, first "
                f"{[min(numbers, default=None) for numbers in missing]}:\n{self.gateway.log}"
            )
            time.sleep(0.05)


def one_round(site: Site, victim: str, seconds: float) -> None:
    """Publish at speed, kill the victim after so long, start it again; look when it has caught up."""
    publishers = site.publishers()
    for publisher in publishers:
        publisher.start()
    time.sleep(seconds)
    if victim != "gateway":
        for client, publisher in enumerate(publishers):
            site.expected[client].update(range(publisher.first, publisher.acknowledged))
        site.save()
        time.sleep(seconds / 10)
    if victim != "broker":
        site.gateway.kill()
    if victim != "gateway":
        site.broker.stop(kill=True)
    time.sleep(seconds / 4)
    for client, publisher in enumerate(publishers):
        publisher.finish()
        assert publisher.fault is None, publisher.fault
        site.sent[client] = publisher.sent
        if victim == "gateway":
            site.expected[client].update(range(publisher.first, publisher.acknowledged))
    if victim != "gateway":
        site.broker.start()
    if victim != "broker":
        site.gateway.start()
    site.wait_until_recorded()


@pytest.mark.integration
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize(("victim", "qos"), [("gateway", 1), ("broker", 1), ("both", 1), ("broker", 2), ("both", 2)])
def test_nothing_the_broker_had_is_lost(tmp_path: Path, victim: str, qos: int) -> None:
    """Two clients publish at the broker at speed; the victim is killed at a random instant and started again."""
    randomness = random.Random(SEED)
    site = Site(tmp_path, qos=qos)
    try:
        site.start()
        for _ in range(ROUNDS):
            one_round(site, victim, randomness.uniform(0.05, 0.6))
        assert site.gateway.end() == 0
    finally:
        site.stop()
    site.read_on()
    for client in range(CLIENTS):
        found = site.recorded[client]
        assert len(site.expected[client]) > ROUNDS * 20, "too little was published for this to show anything"
        assert set(found) <= set(range(site.sent[client])), "something was recorded that nobody sent"
        if victim == "gateway":
            first_seen = list(dict.fromkeys(found))
            assert first_seen == sorted(first_seen), "the broker delivers in order, and so it must be recorded"
