"""Consumer groups of several members, of each client: shared work, a killed member, a killed gateway."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.support import kafka_member
from tests.support.gateway_process import ROOT, environment
from tests.support.kafka_gateway import Gateway
from tests.support.kafka_jars import command

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PATIENCE_S = 60.0
TOPICS = ("one", "two", "three")
CLIENTS = ("confluent", "aiokafka", "kafka-python", "java")


def _line(client: str, address: str, group: str) -> list[str]:
    """What runs a member that prints topic and offset of each record; Kafka's own prints only offset and value."""
    if client != "java":
        return [sys.executable, "-m", "tests.support.kafka_member", client, address, group, *TOPICS]
    settings = {
        "partition.assignment.strategy": "org.apache.kafka.clients.consumer.RoundRobinAssignor",
        "session.timeout.ms": kafka_member.SESSION_MS,
        "heartbeat.interval.ms": kafka_member.HEARTBEAT_MS,
        "auto.commit.interval.ms": 100,
    }
    return command(
        "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", address, "--group", group,
        "--include", "|".join(TOPICS), "--from-beginning", "--property", "print.offset=true",
        *(part for name, value in settings.items() for part in ("--consumer-property", f"{name}={value}")),
    )  # fmt: skip


class MemberProcess:
    """One member, and what it has printed."""

    def __init__(self, client: str, address: str, group: str) -> None:
        self.seen: list[tuple[str, int]] = []
        self._is_java = client == "java"
        self._process = subprocess.Popen(
            _line(client, address, group), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment()
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if self._is_java:
                offset, topic, _ = line.decode().removeprefix("Offset:").split()
            else:
                topic, offset = line.decode().split()
            self.seen.append((topic, int(offset)))

    def kill(self) -> None:
        self._process.kill()
        self._done()

    def end(self) -> None:
        """It leaves its group."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._is_java:
            self._process.terminate()
        self._done()

    def _done(self) -> None:
        self._process.wait(PATIENCE_S)
        self._reading.join(PATIENCE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway in which everybody may write to the topics."""
    with Gateway(tmp_path / "gateway", produce=TOPICS) as made:
        made.start()
        yield made


def _publish(address: str, count: int) -> None:
    """So many more records to each topic, whose name their values begin with."""
    producer = Producer({"bootstrap.servers": address, "linger.ms": 5})
    for number in range(count):
        for topic in TOPICS:
            producer.produce(topic, f"{topic} {number}")
    assert producer.flush(PATIENCE_S) == 0


def _wait(members: list[MemberProcess], count: int) -> None:
    """Until all of them together have seen the offsets below `count` of every topic."""
    deadline = time.monotonic() + PATIENCE_S
    wanted = {(topic, offset) for topic in TOPICS for offset in range(count)}
    while missing := wanted - {seen for member in members for seen in list(member.seen)}:
        assert time.monotonic() < deadline, f"not read: {sorted(missing)[:5]} … {len(missing)}"
        time.sleep(0.05)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_killed_members_share_goes_to_the_others(process: Gateway, client: str) -> None:
    """Three members share three topics; after one is killed the others have all; nothing is missing or out of order."""
    published = 100
    _publish(process.address, published)
    members = [MemberProcess(client, process.address, client) for _ in range(3)]
    deadline = time.monotonic() + PATIENCE_S
    while not all(member.seen for member in members):  # until all of them have joined, and got a share
        assert time.monotonic() < deadline, [len(member.seen) for member in members]
        _publish(process.address, 100)
        published += 100
        time.sleep(0.3)
    members[0].kill()
    _publish(process.address, 500)
    _wait(members, published + 500)
    for member in members[1:]:
        member.end()
    for member in members:
        for topic in TOPICS:
            offsets = [offset for name, offset in member.seen if name == topic]
            assert offsets == sorted(offsets), f"{topic} out of order"


def test_a_group_goes_on_after_the_gateway_was_killed(process: Gateway) -> None:
    """What was committed is on disk: of what was committed nothing is read again, and nothing is missing."""
    _publish(process.address, 200)
    first = MemberProcess("confluent", process.address, "group")
    _wait([first], 200)
    first.end()
    process.kill()
    process.start()
    _publish(process.address, 50)
    second = MemberProcess("confluent", process.address, "group")
    _wait([first, second], 250)
    second.end()
    seen = Counter(first.seen + second.seen)
    assert max(seen.values()) == 1
