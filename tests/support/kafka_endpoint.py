"""A Kafka endpoint with a real engine, in this process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway_native import ring as native_ring

from gateway.config import Config, from_dict
from gateway.ingest.engine import Engine
from gateway.ingest.source import SourceContext
from gateway.log.layout import prepare
from gateway.serve.kafka.server import KafkaEndpoint
from tests.support.gateway import Events

STREAM = "telemetry"
RING_BYTES = 2**22


class RunningEndpoint:
    """The endpoint, and a source beside it that records."""

    def __init__(self, endpoint: KafkaEndpoint, engine: Engine, events: Events) -> None:
        self.endpoint = endpoint
        self.engine = engine
        self.events = events
        self._ring = engine.ring("test", RING_BYTES)

    @property
    def port(self) -> int:
        return self.endpoint.address[1]

    def append(self, values: Sequence[bytes], *, key: bytes = b"key", stream: str = STREAM) -> None:
        """Records; not durable yet."""
        index = self.engine.partition(stream)
        for value in values:
            while not self._ring.append(index, key, value, b"", time.time_ns(), native_ring.WANTS_ACK):
                time.sleep(0.001)

    async def record(self, values: Sequence[bytes], **more: Any) -> None:
        """Records, durable."""
        self.append(values, **more)
        assert await asyncio.to_thread(self.engine.flush)


def _engine(data: Path, config: Config) -> Engine:
    data.mkdir(parents=True, exist_ok=True)
    prepare(data, "test", "UTC")
    engine = Engine(config)
    engine.start()
    return engine


@asynccontextmanager
async def running_endpoint(data: Path, *, streams: Any = None, **kafka: Any) -> AsyncIterator[RunningEndpoint]:
    """kafka: keys of the section."""
    config = from_dict({"data": str(data), "streams": streams or {}, "kafka": {"bind": "127.0.0.1:0", **kafka}})
    engine = _engine(data, config)
    events = Events()
    logger = logging.getLogger(f"gateway.test.{data}")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(events)
    assert config.kafka is not None
    endpoint = KafkaEndpoint("kafka", config.kafka, SourceContext(engine, config, logger))
    try:
        await endpoint.start()
        yield RunningEndpoint(endpoint, engine, events)
    finally:
        await endpoint.pause()
        await endpoint.drain()
        await endpoint.stop()
        assert await asyncio.to_thread(engine.close)
