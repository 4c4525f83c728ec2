"""How fast do Kafka clients read a stream from the gateway, compared with a Kafka broker that holds the same segments?

The same files serve both: a stream that the gateway recorded is put into a topic of a KRaft broker on this machine (one
node, its own defaults, all in the page cache). Both are read from the beginning to the end by confluent-kafka
(librdkafka), by kcat, by Kafka's own consumer (ConsumerPerformance, its time of fetching), and by a
bare client that discards what Fetch answers, 1 MiB at a time: what the server itself can do. Values of 64 B and 16 KiB.

`busy` is how much of one core the client's process kept busy: near 1 the client is measured, not the server. librdkafka
rests for a second, by default, whenever it has more in its queue than it wants (fetch.queue.backoff.ms): here 10 ms, or
the figure would tell how often it rested. kcat has the default.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from bench.common import Result, Skipped, duration_s, median, scratch
from gateway.kafka import wire
from tests.support import kafka_clients
from tests.support.kafka_broker import KraftBroker
from tests.support.kafka_gateway import Gateway
from tests.support.kafka_jars import command
from tests.support.kafka_wire import request

TOPIC = "telemetry"
SIZES = {"64 B": (64, round(duration_s(2_000_000, 100_000))), "16 KiB": (16_384, round(duration_s(40_000, 3_000)))}
FETCH_BYTES = 2**20
IDLE_S = 60.0


def record(process: Gateway, value_bytes: int, count: int) -> None:
    """So many records, produced over Kafka by librdkafka into the stream, which makes batches of a usual size."""
    from confluent_kafka import Producer

    producer = Producer(
        {
            "bootstrap.servers": process.address, "linger.ms": 20, "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 200_000,
        }
    )  # fmt: skip
    value = b"x" * value_bytes
    for _ in range(count):
        while True:
            try:
                producer.produce(TOPIC, value, key=b"plant/line-1/sensor-01")
                break
            except BufferError:
                producer.poll(0.05)
    if producer.flush(IDLE_S):
        raise RuntimeError("the gateway did not take all records")


def read_with_confluent(port: int, count: int) -> None:
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": f"127.0.0.1:{port}", "group.id": "bench", "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,
        }
    )  # fmt: skip
    consumer.assign([TopicPartition(TOPIC, 0, OFFSET_BEGINNING)])
    seen = 0
    while seen < count:
        found = consumer.consume(min(10_000, count - seen), 10.0)
        if not found:
            raise RuntimeError(f"{seen} of {count} records came")
        seen += len(found)
    consumer.close()


def read_with_kcat(port: int, count: int) -> None:
    subprocess.run(
        ["kcat", "-C", "-q", "-e", "-b", f"127.0.0.1:{port}", "-t", TOPIC, "-p", "0", "-o", "beginning", "-f", ""],
        stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True, timeout=600,
    )  # fmt: skip


def read_bare(port: int, count: int) -> None:
    """Fetch 11, one request after the other; of what comes only the last batch's offset is looked at."""
    buffer = bytearray(4 * FETCH_BYTES)
    view = memoryview(buffer)
    offset = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while offset < count:
            partitions = [{"partition": 0, "fetch_offset": offset, "partition_max_bytes": FETCH_BYTES}]
            asked = {
                "replica_id": -1, "max_wait": timedelta(seconds=1), "min_bytes": 1, "max_bytes": 50 * FETCH_BYTES,
                "isolation_level": 0, "forgotten_topics_data": [],
                "topics": [{"topic": TOPIC, "partitions": partitions}],
            }  # fmt: skip
            connection.sendall(request(wire.FETCH, 11, asked))
            receive(connection, view[:4])
            size = int.from_bytes(view[:4], "big")
            receive(connection, view[:size])
            offset = next_offset(buffer, size, offset)


def receive(connection: socket.socket, into: memoryview) -> None:
    got = 0
    while got < len(into):
        count = connection.recv_into(into[got:])
        if not count:
            raise RuntimeError("the server closed the connection")
        got += count


def next_offset(buffer: bytearray, size: int, offset: int) -> int:
    """Behind the last whole batch; the records are what the response ends with."""
    at = buffer.index(struct.pack(">h", len(TOPIC)) + TOPIC.encode()) + 2 + len(TOPIC) + 4 + 4 + 2 + 3 * 8 + 4 + 4
    (records_bytes,) = struct.unpack_from(">i", buffer, at)
    at += 4
    end = at + records_bytes
    while at + 61 <= end:
        base, length = struct.unpack_from(">qi", buffer, at)
        if at + 12 + length > end:
            break
        offset = base + struct.unpack_from(">i", buffer, at + 23)[0] + 1
        at += 12 + length
    return offset


def read_with_java(port: int, count: int) -> float:
    """Its own time of fetching, in seconds: without the start of the JVM, and without joining the group."""
    line = command(
        "org.apache.kafka.tools.ConsumerPerformance", "--bootstrap-server", f"127.0.0.1:{port}", "--topic", TOPIC,
        "--messages", str(count), "--timeout", "30000", "--hide-header",
    )  # fmt: skip
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=600, text=True)
    columns = done.stdout.strip().splitlines()[-1].split(", ")
    if int(columns[4]) < count:
        raise RuntimeError(f"{columns[4]} of {count} records came")
    return int(columns[7]) / 1e3


Reader = Callable[[int, int], float | None]

READERS: dict[str, Reader] = {
    "confluent-kafka": read_with_confluent, "kcat": read_with_kcat, "java": read_with_java, "bare": read_bare,
}  # fmt: skip


class Took(NamedTuple):
    """One reading."""

    seconds: float
    busy: float
    """Processor time of the client in that time."""


def timed(reader: Reader, port: int, count: int) -> Took:
    before, start = os.times(), time.perf_counter()
    own_s = reader(port, count)
    took_s, after = time.perf_counter() - start, os.times()
    return Took(own_s if own_s is not None else took_s, (sum(after[:4]) - sum(before[:4])) / took_s)


def rounds_of(
    directory: Path, value_bytes: int, count: int, rounds: int, readers: Mapping[str, Reader]
) -> dict[tuple[str, str], list[Took]]:
    """By server and reader."""
    found: dict[tuple[str, str], list[Took]] = {}
    broker = KraftBroker(directory / "broker")
    broker.format()
    with broker:
        kafka_clients.create_topics(broker.address, [TOPIC])
    with Gateway(directory / "gateway", produce=[TOPIC]) as process:
        process.start()
        record(process, value_bytes, count)
        process.end()
        broker.replace_files(TOPIC, (process.data / f"{TOPIC}-0").iterdir())
        process.start()
        with broker:
            for number in range(rounds + 1):  # the first one warms up: the JVM's compiler above all
                for server, port in (("gateway", process.kafka_port), ("broker", broker.port)):
                    for name, reader in readers.items():
                        took = timed(reader, port, count)
                        if number:
                            found.setdefault((server, name), []).append(took)
    return found


def run(rounds: int) -> Result:
    for program in ("java", "kcat"):
        if shutil.which(program) is None:
            raise Skipped(f"{program} is not installed")
    result = Result(("values", "client", "gateway k records/s", "broker k records/s", "gateway MB/s", "busy", "ratio"))
    for size, (value_bytes, count) in SIZES.items():
        with scratch() as directory:
            found = rounds_of(directory, value_bytes, count, rounds, READERS)
        for name in READERS:
            ours, theirs = (median([took.seconds for took in found[one, name]]) for one in ("gateway", "broker"))
            busy = median([took.busy for took in found["gateway", name]])
            result.rows.append(
                (
                    size, name, f"{count / ours / 1e3:,.0f}", f"{count / theirs / 1e3:,.0f}",
                    f"{count * value_bytes / ours / 1e6:,.0f}", f"{busy:.2f}", f"{theirs / ours:.2f}",
                )
            )  # fmt: skip
    return result
