"""`gateway.open("kafka://…")` at a real Kafka broker, which shares no code with us."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from confluent_kafka import Producer
from gateway_native import batch

import gateway
from gateway.kafka.client import batches
from gateway.log.layout import prepare
from tests.support import kafka_clients as clients
from tests.support.kafka_broker import KraftBroker
from tests.support.kafka_jars import resolve

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]


CODECS = ("gzip", "snappy", "lz4", "zstd")


def _rows(stream: gateway.Stream) -> list[clients.Row]:
    return [clients.Row(*row[:4], tuple(row[4])) for row in stream.read().rows()]


def _produce(address: str, topic: str, count: int, **settings: str) -> None:
    producer = Producer({"bootstrap.servers": address, "linger.ms": 5, "enable.idempotence": True, **settings})
    for number in range(count):
        producer.produce(topic, b"%d" % number, key=b"plant/%d/x" % (number % 3), headers=[("n", b"%d" % number)])
        if number % 500 == 0:
            producer.flush(30)
    assert producer.flush(30) == 0


def test_a_brokers_topics_are_read_like_streams(tmp_path: Path) -> None:
    """Records, offsets, times and key filters as aiokafka sees them, also of what producers compressed."""
    resolve()
    broker = KraftBroker(tmp_path / "broker")
    broker.format()
    with broker:
        clients.create_topics(broker.address, ["plain", *CODECS])
        _produce(broker.address, "plain", 3_000)
        for codec in CODECS:
            _produce(broker.address, codec, 1_000, **{"compression.type": codec})
        log = gateway.open(f"kafka://{broker.address}")
        assert log.streams() == sorted(["plain", *CODECS])
        rows = clients.read_all(broker.address, "plain")
        assert _rows(log["plain"]) == rows
        assert len(log["plain"]) == 3_000
        filtered = [record.offset for record in log["plain"].read(keys=["plant/1/#"], offsets=(100, 200))]
        assert filtered == [row.offset for row in rows[100:200] if row.key == b"plant/1/x"]
        times = [rows[0].timestamp_ms, rows[1_500].timestamp_ms]
        found = clients.offsets_for_times(broker.address, "plain", times)
        assert [answer[0] if answer else None for answer in found] == [
            log["plain"].reader.offset_of_time(time) for time in times
        ]
        theirs = {codec: clients.read_all(broker.address, codec) for codec in CODECS}
        for codec in CODECS:
            assert _rows(log[codec]) == theirs[codec]
    prepare(tmp_path / "copied", "test", "UTC")
    for codec in CODECS:
        shutil.copytree(broker.partition(codec), tmp_path / "copied" / f"{codec}-0")
        data = (broker.partition(codec) / f"{0:020d}.log").read_bytes()
        assert codec in {batch.CODECS.get(data[at + 22] & 7) for at, _ in batches(data)}
        stream = gateway.open(tmp_path / "copied")[codec]
        assert _rows(stream) == theirs[codec]
        assert stream.read().to_arrow(view=True)["value"].to_pylist() == [row.value for row in theirs[codec]]
