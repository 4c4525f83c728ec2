"""What a source's sessions need of the engine and of their source, around a writer of tests/support."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gateway.config import SubscriberConfig, from_dict

SUBSCRIBER = {"url": "mqtt://h", "routes": [{"filter": "plant/#", "stream": "telemetry", "qos": 2}]}


class Host:
    """A source that has nothing to say."""

    name = "it"

    def count(self, counter: str, more: int = 1) -> None:
        raise AssertionError(f"{more} {counter}")

    def say(self, level: int, event: str, **fields: object) -> None:
        raise AssertionError(f"{level} {event} {fields}")


def session_engine(recording: Any, directory: Path) -> Any:
    """An engine with one subscriber; recording is a Recording or SteppedRecording on that directory."""
    return SimpleNamespace(
        config=from_dict({"data": str(directory), "mqtt": {"subscribers": {Host.name: SUBSCRIBER}}}),
        partition=recording.partition,
        writer=recording.writer,
        ring=lambda name, _bytes=None: recording.ring(name),
        streams=recording.partitions,
    )


def subscriber(engine: Any) -> SubscriberConfig:
    """Its one source's configuration."""
    found: SubscriberConfig = engine.config.mqtt.subscribers[Host.name]
    return found
