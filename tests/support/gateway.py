"""One source with a real engine on a temporary directory, started and stopped as the app does it."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from gateway_native import batch

from gateway.config import Config, from_dict
from gateway.ingest.engine import Engine
from gateway.ingest.source import SourceContext

PATIENCE_S = 30.0


def on_uvloop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test on the event loop that the gateway uses."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


async def until(condition: Callable[[], bool], what: str) -> None:
    """Poll until true; nothing is timed, this only keeps a test from hanging for ever."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.005)


class Events(logging.Handler):
    """What was logged: (event, fields)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((record.getMessage(), getattr(record, "fields", {})))

    def named(self, part: str) -> list[dict[str, Any]]:
        """The fields of all events whose name contains this."""
        return [fields for event, fields in self.seen if part in event]


class Running:
    """A source, its engine, what it logged, and what it recorded."""

    def __init__(self, data: Path, source: Any, engine: Engine, events: Events) -> None:
        self.data = data
        self.source = source
        self.engine = engine
        self.events = events

    @property
    def port(self) -> int:
        port: int = self.source.address[1]
        return port

    async def records(self, stream: str = "telemetry") -> list[batch.Row]:
        """Everything durable in a stream."""
        assert await asyncio.to_thread(self.engine.flush), "the engine did not take everything"
        return read_stream(self.data, stream)

    async def contents(self, stream: str = "telemetry") -> list[tuple[bytes | None, bytes | None]]:
        """Key and value of every record."""
        return [(row[2], row[3]) for row in await self.records(stream)]

    async def stop(self) -> None:
        """As the app does: read no more, make it durable, acknowledge, close."""
        await self.source.pause()
        assert await asyncio.to_thread(self.engine.flush)
        await self.source.drain()
        await self.source.stop()


def read_stream(data: Path, stream: str) -> list[batch.Row]:
    """All records in a stream's files, whoever writes them."""
    rows: list[batch.Row] = []
    for segment in sorted((data / f"{stream}-0").glob("*.log")):
        content = segment.read_bytes()
        for found in batch.scan(content, 0)[0]:
            rows += batch.decode(content, found[0])
    return rows


def _engine(data: Path, config: Config) -> Engine:
    data.mkdir(parents=True, exist_ok=True)
    return Engine(config)


@asynccontextmanager
async def running(
    data: Path, create: Callable[[str, Any, SourceContext], Any], section: str, settings: dict[str, Any], **more: Any
) -> AsyncIterator[Running]:
    """section: "listeners" or "subscribers"; the source is called "it". more: other sections of the configuration.

    `engine_starts=False` leaves the writer's threads for `engine.start()` to be called later.
    """
    engine_starts = more.pop("engine_starts", True)
    config = from_dict({"data": str(data), "mqtt": {section: {"it": settings}}, **more})
    engine = _engine(data, config)
    if engine_starts:
        engine.start()
    events = Events()
    logger = logging.getLogger(f"gateway.test.{data}")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(events)
    source = create("it", getattr(config.mqtt, section)["it"], SourceContext(engine, config, logger))
    found = Running(data, source, engine, events)
    try:
        await source.start()
        yield found
    finally:
        await source.stop()
        assert await asyncio.to_thread(engine.close)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("gateway-")]
