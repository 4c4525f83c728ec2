"""Clients of others at the Kafka endpoint: kcat and confluent-kafka (librdkafka), kafka-python, aiokafka, Java."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

import gateway
from tests.integration.peers import find
from tests.support import kafka_clients as clients
from tests.support.kafka_gateway import Gateway
from tests.support.kafka_jars import command
from tests.support.kafka_traffic import Traffic

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # kafka-python reads its own schemas by a deprecated call, whenever it needs one.
    pytest.mark.filterwarnings(r"ignore:(open|read)_text is deprecated:DeprecationWarning"),
]

MESSAGES = 5_000
PATIENCE_S = 60.0


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Gateway]:
    """Running."""
    with Gateway(tmp_path / "gateway") as made:
        made.start()
        yield made


def _consumer(address: str, **settings: Any) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "check.crcs": True,
            **{name.replace("_", "."): value for name, value in settings.items()},
        }
    )


def _read_with_confluent(address: str, topic: str, count: int) -> list[clients.Row]:
    consumer = _consumer(address)
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    rows: list[clients.Row] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(rows) < count and time.monotonic() < deadline:
        for message in consumer.consume(1_000, 1.0):
            assert message.error() is None, message.error()
            rows.append(
                clients.Row(
                    message.offset(), message.timestamp()[1], message.key(), message.value(),
                    tuple(message.headers() or ()),
                )
            )  # fmt: skip
    consumer.close()
    return rows


def _read_with_kafka_python(address: str, topic: str, count: int) -> list[clients.Row]:
    import kafka

    consumer = kafka.KafkaConsumer(bootstrap_servers=address, consumer_timeout_ms=10_000, enable_auto_commit=False)
    partition = kafka.TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    rows: list[clients.Row] = []
    for message in consumer:
        rows.append(clients.Row(message.offset, message.timestamp, message.key, message.value, tuple(message.headers)))
        if len(rows) == count:
            break
    consumer.close()
    return rows


def _read_with_java(address: str, topic: str, count: int) -> list[tuple[int, bytes]]:
    """Offset and value of every record, as Kafka's console consumer prints them."""
    line = command(
        "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", address, "--topic", topic,
        "--from-beginning", "--max-messages", str(count), "--timeout-ms", "30000",
        "--property", "print.offset=true", "--property", "print.value=true",
    )  # fmt: skip
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-2_000:])
    pairs = (line.split(b"\t", 1) for line in done.stdout.splitlines())
    return [(int(offset.removeprefix(b"Offset:")), value) for offset, value in pairs]


def test_every_client_reads_what_the_log_holds(process: Gateway) -> None:
    """Offsets, times, keys, values and headers, with values larger than a batch among them."""
    find("kcat")
    Traffic().publish(process.port, MESSAGES)
    rows = process.rows()
    assert len(rows) >= MESSAGES
    end = rows[-1].offset + 1
    assert clients.bounds(process.address, "telemetry") == (0, end)
    assert clients.read_all(process.address, "telemetry") == rows
    assert clients.read_all_with_kcat(process.address, "telemetry") == rows
    assert _read_with_confluent(process.address, "telemetry", end) == rows
    assert _read_with_kafka_python(process.address, "telemetry", end) == rows


def test_clients_find_times(process: Gateway) -> None:
    """The first record that is not earlier, as the log itself says; none behind the end."""
    Traffic().publish(process.port, 2_000)
    rows = process.rows()
    times = sorted({0, rows[0].timestamp_ms, rows[700].timestamp_ms, rows[-1].timestamp_ms, rows[-1].timestamp_ms + 1})
    found = clients.offsets_for_times(process.address, "telemetry", times)
    reader = gateway.open(process.data)["telemetry"].reader
    ours = [reader.offset_of_time(moment) for moment in times]
    assert [answer[0] if answer else rows[-1].offset + 1 for answer in found] == ours
    consumer = _consumer(process.address)
    asked = [TopicPartition("telemetry", 0, moment) for moment in times[:-1]]
    assert [consumer.offsets_for_times([one], 10)[0].offset for one in asked] == ours[:-1]
    consumer.close()


def test_the_java_client_reads_and_writes(process: Gateway) -> None:
    """Kafka's own consumer, in a group of its own, and its idempotent producer."""
    text = "".join(f"line {number}\n" for number in range(500))
    line = command("org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", process.address, "--topic", "orders")
    done = subprocess.run(line, input=text.encode(), capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-2_000:])
    expected = [(number, f"line {number}".encode()) for number in range(500)]
    assert _read_with_java(process.address, "orders", 500) == expected
    rows = process.rows("orders")
    assert [(row.key, row.value) for row in rows] == [(None, value) for _, value in expected]
    assert {name for row in rows for name, _ in row.headers} == {"source_time", "gateway.producer"}


def _produce_with_confluent(address: str, count: int) -> list[int]:
    """Offsets, in the order of the values."""
    offsets: dict[int, int] = {}
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 5})
    for number in range(count):

        def delivered(error: Any, message: Any, number: int = number) -> None:
            assert error is None, error
            offsets[number] = message.offset()

        producer.produce("orders", b"%d" % number, key=None, headers=[("h", b"1")], on_delivery=delivered)
        producer.poll(0)
    assert producer.flush(PATIENCE_S) == 0
    return [offsets[number] for number in range(count)]


def _produce_with_kafka_python(address: str, count: int) -> list[int]:
    import kafka

    producer = kafka.KafkaProducer(bootstrap_servers=address, acks="all")
    sent = [producer.send("orders", b"%d" % number, partition=0) for number in range(count)]
    offsets = [one.get(timeout=PATIENCE_S).offset for one in sent]
    producer.close()
    return offsets


def test_every_producer_is_recorded_in_order(process: Gateway) -> None:
    """What librdkafka, kafka-python and aiokafka write, under the offsets that they were told; null keys stay null."""
    told = _produce_with_confluent(process.address, 3_000)
    told += _produce_with_kafka_python(process.address, 300)
    told += clients.produce(process.address, "orders", [b"%d" % number for number in range(30)])
    rows = process.rows("orders")
    assert told == list(range(3_330))
    numbers = [*range(3_000), *range(300), *range(30)]
    assert [(row.key, row.value) for row in rows] == [(None, b"%d" % number) for number in numbers]
    assert clients.read_all(process.address, "orders") == rows


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_are_recorded(process: Gateway, codec: str) -> None:
    """Of librdkafka, and of the Java client, which frames snappy in another way; in the log they are as any others."""
    values = [b"line %d " % number * 30 for number in range(1_000)]
    producer = Producer({"bootstrap.servers": process.address, "compression.type": codec, "linger.ms": 50})
    for value in values:
        producer.produce("orders", value)
    assert producer.flush(PATIENCE_S) == 0
    line = command(
        "org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", process.address, "--topic", "orders",
        "--compression-codec", codec,
    )  # fmt: skip
    done = subprocess.run(line, input=b"\n".join(values), capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-2_000:])
    assert [row.value for row in process.rows("orders")] == values * 2
    assert [row.value for row in clients.read_all(process.address, "orders")] == values * 2


def test_a_changed_configuration_is_applied(process: Gateway) -> None:
    """SIGHUP: the endpoint begins anew with what is written now; a consumer goes on, and a producer is told."""
    clients.produce(process.address, "orders", [b"before"])
    text = process.config.read_text()
    process.config.write_text(text.replace('produce = ["orders"]', "produce = []"))
    assert process.process is not None
    process.process.send_signal(signal.SIGHUP)
    process.wait_for("configuration applied")
    assert [row.value for row in clients.read_all(process.address, "orders")] == [b"before"]
    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": process.address, "message.timeout.ms": 10_000})
    producer.produce("orders", b"after", on_delivery=lambda error, _: failed.append(error))
    producer.flush(PATIENCE_S)
    assert failed[0].name() == "TOPIC_AUTHORIZATION_FAILED"
    process.config.write_text(text)
    process.process.send_signal(signal.SIGHUP)
    process.wait_for("configuration applied", times=2)
    assert clients.produce(process.address, "orders", [b"again"]) == [1]
    assert process.end() == 0
    assert "ERROR" not in process.log
