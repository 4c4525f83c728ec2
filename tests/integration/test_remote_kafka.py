"""`gateway.open("kafka://…")` at a real Kafka broker, which shares no code with us."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer

import gateway
from gateway.errors import FormatError
from tests.support import kafka_clients as clients
from tests.support.kafka_broker import KraftBroker
from tests.support.kafka_jars import resolve

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]


def _produce(address: str, topic: str, count: int, **settings: str) -> None:
    producer = Producer({"bootstrap.servers": address, "linger.ms": 5, "enable.idempotence": True, **settings})
    for number in range(count):
        producer.produce(topic, b"%d" % number, key=b"plant/%d/x" % (number % 3), headers=[("n", b"%d" % number)])
        if number % 500 == 0:
            producer.flush(30)
    assert producer.flush(30) == 0


def test_a_brokers_topics_are_read_like_streams(tmp_path: Path) -> None:
    """Records, offsets, times and key filters as aiokafka sees them; what is compressed is refused by name."""
    resolve()
    broker = KraftBroker(tmp_path / "broker")
    broker.format()
    with broker:
        clients.create_topics(broker.address, ["plain", "squeezed"])
        _produce(broker.address, "plain", 3_000)
        _produce(broker.address, "squeezed", 100, **{"compression.type": "gzip"})
        log = gateway.open(f"kafka://{broker.address}")
        assert log.streams() == ["plain", "squeezed"]
        rows = clients.read_all(broker.address, "plain")
        ours = [clients.Row(*row[:4], tuple(row[4])) for row in log["plain"].read().rows()]
        assert ours == rows
        assert len(log["plain"]) == 3_000
        filtered = [record.offset for record in log["plain"].read(keys=["plant/1/#"], offsets=(100, 200))]
        assert filtered == [row.offset for row in rows[100:200] if row.key == b"plant/1/x"]
        times = [rows[0].timestamp_ms, rows[1_500].timestamp_ms]
        found = clients.offsets_for_times(broker.address, "plain", times)
        assert [answer[0] if answer else None for answer in found] == [
            log["plain"].reader.offset_of_time(time) for time in times
        ]
        with pytest.raises(FormatError, match="compressed \\(gzip\\)"):
            list(log["squeezed"].read())
