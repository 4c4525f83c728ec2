"""A gateway that records cameras, in the test's own process, and the log to read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gateway_adapters.rtsp.camera import create

import gateway
import gateway.app
from gateway.config import Config, from_dict
from gateway.log.gap import Gap
from gateway.replay.log import Stream


class CameraGateway:
    """A running gateway's cameras by name, and their streams."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.app = gateway.app.App(config)

    def statistics(self, name: str) -> dict[str, Any]:
        return self.app.sources[name].statistics()

    def stream(self, name: str) -> Stream:
        """A camera's stream, as any reader sees it."""
        return gateway.open(self.config.data)[name]


@asynccontextmanager
async def recording(data: Path, cameras: dict[str, dict[str, Any]]) -> AsyncIterator[CameraGateway]:
    """Record these cameras until the block is left; then everything is on disk."""
    defaults = {"reconnect_min": "200ms", "open_timeout": "5s", "read_timeout": "2s"}
    config = from_dict(
        {
            "data": str(data),
            "site": {"name": "test", "timezone": "Europe/Berlin"},
            "cameras": {name: {**defaults, **settings} for name, settings in cameras.items()},
        }
    )
    running = CameraGateway(config)
    # The adapter of this source tree, also where another version is installed or none.
    with patch.object(gateway.app, "load_factory", lambda kind: create):
        await running.app.start()
    try:
        yield running
    finally:
        await running.app.stop()


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def pictures(stream: Stream) -> list[Any]:
    """The camera's records, without the gateway's own."""
    return [record for record in stream.read() if record.key is not None]


def gaps(stream: Stream) -> list[Gap]:
    """What is missing in the stream."""
    return [record.gap for record in stream.read() if record.gap is not None]


def headers(record: Any) -> dict[str, str]:
    """A record's headers as text."""
    return {name: value.decode() for name, value in record.headers}
