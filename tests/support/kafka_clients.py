"""What a broker serves, read by clients that share no code with it or with us: aiokafka and kcat (librdkafka)."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.integration.peers import find

PATIENCE_S = 60.0
FETCH_BYTES = 4 * 2**20

Result = TypeVar("Result")


class Row(NamedTuple):
    """One record; headers as far as a client keeps them apart."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def create_topics(address: str, names: Sequence[str]) -> None:
    """Topics of one partition that keep everything."""

    async def create() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        await admin.start()
        try:
            wanted = [NewTopic(name, 1, 1, topic_configs={"retention.ms": "-1"}) for name in names]
            answer = await admin.create_topics(wanted)
        finally:
            await admin.close()
        assert [code for _, code, _ in answer.topic_errors] == [0] * len(names), answer

    asyncio.run(asyncio.wait_for(create(), PATIENCE_S))


def _consume(address: str, topic: str, use: Callable[[Any, TopicPartition], Awaitable[Result]]) -> Result:
    """Call `use` with a consumer and the topic's only partition, which it has not been assigned.

    An assigned one waits at the end of the log for more, and look-ups wait behind that on the same connection.
    """

    async def run() -> Result:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=address, enable_auto_commit=False, max_partition_fetch_bytes=FETCH_BYTES
        )
        await consumer.start()
        try:
            return await use(consumer, TopicPartition(topic, 0))
        finally:
            await consumer.stop()

    return asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def bounds(address: str, topic: str) -> tuple[int, int]:
    """The first offset, and the one that comes next."""

    async def use(consumer: Any, partition: TopicPartition) -> tuple[int, int]:
        first = await consumer.beginning_offsets([partition])
        end = await consumer.end_offsets([partition])
        return first[partition], end[partition]

    return _consume(address, topic, use)


def read_all(address: str, topic: str) -> list[Row]:
    """Every record from the beginning to the end, by aiokafka, which checks CRCs."""

    async def use(consumer: Any, partition: TopicPartition) -> list[Row]:
        first = (await consumer.beginning_offsets([partition]))[partition]
        end = (await consumer.end_offsets([partition]))[partition]
        consumer.assign([partition])
        consumer.seek(partition, first)
        rows: list[Row] = []
        while await consumer.position(partition) < end:
            for fetched in (await consumer.getmany(timeout_ms=1_000)).values():
                rows += (Row(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in fetched)
        return rows

    return _consume(address, topic, use)


def offsets_for_times(address: str, topic: str, times_ms: Sequence[int]) -> list[tuple[int, int] | None]:
    """For each time: offset and time of the first record that is not earlier; None if there is none."""

    async def use(consumer: Any, partition: TopicPartition) -> list[tuple[int, int] | None]:
        answers = [(await consumer.offsets_for_times({partition: time}))[partition] for time in times_ms]
        return [answer and (answer.offset, answer.timestamp) for answer in answers]

    return _consume(address, topic, use)


def produce(address: str, topic: str, values: Sequence[bytes]) -> list[int]:
    """Write these, one after the other; the offsets that they got."""

    async def run() -> list[int]:
        producer = AIOKafkaProducer(bootstrap_servers=address, acks="all")
        await producer.start()
        try:
            return [(await producer.send_and_wait(topic, value, partition=0)).offset for value in values]
        finally:
            await producer.stop()

    return asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def read_all_with_kcat(address: str, topic: str) -> list[Row]:
    """The same by kcat. Header values must hold no comma, equals sign or line feed, as it does not set them apart."""
    done = subprocess.run(
        [
            find("kcat"), "-C", "-q", "-e", "-b", address, "-t", topic, "-p", "0", "-o", "beginning",
            "-X", "check.crcs=true", "-f", "%o %T %K %S %k%s%h\n",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2_000:]
    rows: list[Row] = []
    sizes = re.compile(rb"(\d+) (-?\d+) (-?\d+) (-?\d+) ")
    position = 0
    while found := sizes.match(done.stdout, position):
        offset, timestamp, key_bytes, value_bytes = (int(number) for number in found.groups())
        key, at = _take(done.stdout, found.end(), key_bytes)
        value, at = _take(done.stdout, at, value_bytes)
        line_end = done.stdout.index(b"\n", at)
        pairs = (pair.partition(b"=") for pair in done.stdout[at:line_end].split(b",") if pair)
        rows.append(Row(offset, timestamp, key, value, tuple((name.decode(), text) for name, _, text in pairs)))
        position = line_end + 1
    assert position == len(done.stdout), f"kcat printed {done.stdout[position : position + 100]!r} behind its records"
    return rows


def _take(data: bytes, at: int, size: int) -> tuple[bytes | None, int]:
    return (None, at) if size < 0 else (data[at : at + size], at + size)
