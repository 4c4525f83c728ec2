"""A subscriber's QoS 2 against a model of its broker: reconnects, crashes and lost sessions in any order.

What is driven is the real thing from the bytes of a connection to the files and back, but for sockets, threads and
clock: the parser, `BrokerSession`, its journal and checkpoints, and recovery. The broker is the sender of MQTT 5
section 4.3.3.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_adapters.mqtt.broker_session import BrokerSession
from gateway_native import mqtt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.log.layout import prepare
from tests.support.mqtt import Broker, publish, pubrel
from tests.support.session_engine import Host, session_engine, subscriber
from tests.support.stepped import SteppedRecording

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
OPERATIONS = st.lists(
    st.sampled_from(
        ["publish", "publish", "publish", "settle", "write", "durable", "reconnect", "lose a publish", "crash",
         "crash in CONNECT", "checkpoint", "other session"]
    ),
    min_size=5, max_size=40,
)  # fmt: skip
WINDOW = 3
PUBREC = 0x50


class BrokerModel:
    """The sender. `owed` are the numbers that it has or had and did not lose itself; `lost` those that it forgot."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.present = False
        self.published: dict[int, int] = {}  # identifier: number
        self.marked: set[int] = set()  # identifiers that were sent before
        self.releasing: list[int] = []
        self.sent = 0
        self.owed: set[int] = set()
        self.lost: set[int] = set()

    def connect(self) -> bool:
        """CONNECT has come: was its session there?"""
        present, self.present = self.present, True
        return present

    def forget(self) -> None:
        """It begins anew, from a disk that is empty."""
        self.lost |= set(self.published.values())
        self.owed -= self.lost
        self.present = False
        self.published, self.marked, self.releasing = {}, set(), []

    def resend(self) -> bytes:
        packets = [self._publish(packet_id) for packet_id in self.published]
        return b"".join(packets + [pubrel(packet_id) for packet_id in self.releasing])

    def more(self) -> bytes:
        """One new message, under the lowest identifier that is free."""
        free = set(range(1, WINDOW + 1)) - set(self.published) - set(self.releasing)
        if not free:
            return b""
        packet_id = min(free)
        self.published[packet_id] = self.sent
        self.owed.add(self.sent)
        self.sent += 1
        return self._publish(packet_id)

    def _publish(self, packet_id: int) -> bytes:
        dup = packet_id in self.marked
        self.marked.add(packet_id)
        number = b"%d" % self.published[packet_id]
        return publish("plant/a", number, qos=2, packet_id=packet_id, dup=dup, version=self.version)

    def take(self, answers: bytes) -> bytes:
        """What it says to PUBREC and PUBCOMP."""
        said = b""
        while answers:
            kind, packet_id = answers[0], int.from_bytes(answers[2:4], "big")
            answers = answers[2 + answers[1] :]
            if kind == PUBREC:
                if packet_id in self.published:
                    del self.published[packet_id]
                    self.releasing.append(packet_id)
                said += pubrel(packet_id)
            elif packet_id in self.releasing:
                self.releasing.remove(packet_id)
                self.marked.discard(packet_id)
        return said

    @property
    def idle(self) -> bool:
        return not self.published and not self.releasing


class Gateway:
    """The subscriber without sockets. `crash` leaves nothing but the files."""

    def __init__(self, directory: Path, broker: BrokerModel) -> None:
        self.directory = directory
        self.broker = broker

    async def start(self) -> None:
        self.recording = SteppedRecording(self.directory, recovering=True)
        engine = session_engine(self.recording, self.directory)
        routes = mqtt.Routes([(b"plant/#", self.recording.partition("telemetry"))])
        self.group = mqtt.Group(
            self.recording.ring("it"), routes, client=True, packet_bytes_max=1_000, record_bytes_max=1_000,
            kept_bytes_max=10_000,
        )  # fmt: skip
        self.session = BrokerSession(Host(), "recorder", engine, self.group, subscriber(engine))
        await self.session.start()
        self.link: Broker | None = None

    async def _durable(self, work: Coroutine[Any, Any, None]) -> None:
        """The disk does what it can while this is waited for."""
        task = asyncio.ensure_future(work)
        while not task.done():
            self.recording.flush()
            await asyncio.sleep(0)
        task.result()

    async def connect(self, *, crash: bool = False) -> None:
        """As NativeSubscriber._connect. crash: when the broker has taken CONNECT, before anything came of it."""
        self.disconnect()
        await self._durable(self.session.prepare())
        present = self.broker.connect()
        if crash:
            await self.crash()
            return
        version = self.broker.version
        self.link = Broker(self.group, version=version, session=self.session.attach(present=present))
        await self._durable(self.session.settle())
        self.send(self.broker.resend())

    def send(self, data: bytes) -> None:
        if self.link is not None:
            self.link.send(data)
            assert self.link.fault is None

    def settle(self) -> None:
        """All that came is on disk, and both sides hear of it."""
        if self.link is None:
            return
        self.recording.flush()
        assert self.group.release() == []
        received, self.link.received = self.link.received, b""
        self.send(self.broker.take(received))

    def disconnect(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None

    async def crash(self) -> None:
        """kill -9: what is in memory is gone, and another process begins."""
        self.disconnect()
        asyncio.get_running_loop().remove_reader(self.session._sessions._journal._ring.event_fd)
        self.recording.abandon()
        await self.start()

    async def checkpoint(self) -> None:
        await self.session._sessions._save()

    async def close(self) -> list[int]:
        """The numbers that were recorded."""
        self.disconnect()
        self.recording.flush()
        await self.session.stop()
        numbers = [int(row[3] or b"") for row in self.recording.records("telemetry")]
        self.recording.close()
        return numbers


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


async def disturb(gateway: Gateway, what: str) -> None:
    """Whatever breaks, there is a connection afterwards."""
    gateway.disconnect()
    if what == "other session":
        gateway.broker.forget()
    elif what == "lose a publish":  # which comes marked, though never before
        gateway.broker.more()
    elif what == "crash in CONNECT":
        await gateway.connect(crash=True)
    elif what == "crash":
        await gateway.crash()
    await gateway.connect()


async def run(directory: Path, operations: list[str], version: int) -> tuple[list[int], BrokerModel]:
    """What was recorded once everything that can come to its end has."""
    broker = BrokerModel(version)
    gateway = Gateway(directory, broker)
    await gateway.start()
    await gateway.connect()
    for operation in operations:
        if operation == "publish":
            gateway.send(broker.more())
        elif operation == "settle":
            gateway.settle()
        elif operation == "write":
            gateway.recording.writer.step_writer()
        elif operation == "durable":  # and nobody hears of it
            gateway.recording.flush()
        elif operation == "checkpoint":
            await gateway.checkpoint()
        else:
            await disturb(gateway, operation)
    while not broker.idle:
        gateway.settle()
    return await gateway.close(), broker


@RELAXED
@given(operations=OPERATIONS, version=st.sampled_from([4, 5]))
def test_whatever_happens_each_message_is_recorded_once(directory, operations, version):
    """All that the broker had and did not itself forget is there; nothing at all is there twice."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        data = Path(name)
        prepare(data, "site", "UTC")
        numbers, broker = asyncio.run(run(data, operations, version))
    assert [number for number, count in Counter(numbers).items() if count > 1] == []
    assert broker.owed <= set(numbers) <= broker.owed | broker.lost
