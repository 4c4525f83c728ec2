"""Idempotent producers and a gateway that is killed: what was acknowledged is there, and nothing is there twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.support.kafka_gateway import Gateway

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PATIENCE_S = 60.0
KILLS = 3


class Publishing(threading.Thread):
    """An idempotent producer of librdkafka's that writes numbers until it is told to end."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[int, int] = {}
        self.failed: list[str] = []
        self._ending = threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 1,
                "message.timeout.ms": 60_000, "reconnect.backoff.max.ms": 200, "retry.backoff.ms": 50,
                "log_level": 0,
            }
        )  # fmt: skip

    def _done(self, number: int, error: Any, message: Any) -> None:
        if error is not None:
            self.failed.append(str(error))
        else:
            self.acknowledged[number] = message.offset()

    def run(self) -> None:
        number = 0
        while not self._ending.is_set():
            if len(self._producer) < 5_000:

                def delivered(error: Any, message: Any, number: int = number) -> None:
                    self._done(number, error, message)

                self._producer.produce("orders", b"%d" % number, on_delivery=delivered)
                number += 1
            self._producer.poll(0 if number % 50 else 0.002)
        assert self._producer.flush(PATIENCE_S) == 0

    def end(self) -> None:
        self._ending.set()
        self.join(PATIENCE_S + 10)
        assert not self.is_alive()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path / "gateway") as made:
        made.start()
        yield made


@pytest.mark.timeout(180)
def test_nothing_is_lost_doubled_or_out_of_order(process: Gateway) -> None:
    """Killed again and again while it is written to; afterwards the log holds each number once, in order."""
    publishing = Publishing(process.address)
    publishing.start()
    for _ in range(KILLS):
        before = len(publishing.acknowledged)
        deadline = time.monotonic() + PATIENCE_S
        while len(publishing.acknowledged) < before + 3_000:
            assert time.monotonic() < deadline, len(publishing.acknowledged)
            time.sleep(0.01)
        process.kill()
        process.start()
    publishing.end()
    assert publishing.failed == []
    rows = process.rows("orders")
    assert [row.value for row in rows] == [b"%d" % number for number in range(len(rows))]
    assert len(publishing.acknowledged) == len(rows)
    wrong = {number: at for number, at in publishing.acknowledged.items() if at not in (number, -1)}
    assert wrong == {}
