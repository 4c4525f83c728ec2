"""The MQTT parser alone, from a received buffer into the ring: `python -m pytest bench/micro --benchmark-only`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.mqtt import Device, make_listener, publish
from tests.support.stepped import SteppedRecording

MESSAGES = 2_000
ROUTES = {
    "one route": [("plant/#", "telemetry")],
    "51 routes": [*((f"area-{index}/+/x/#", "telemetry") for index in range(50)), ("plant/#", "telemetry")],
}


@pytest.mark.parametrize("routes", ROUTES)
@pytest.mark.parametrize("topics", [1, 1_000])
def test_parse_small_publishes(benchmark: Any, tmp_path: Path, routes: str, topics: int) -> None:
    """2,000 publishes of 64 B with QoS 0; the writer empties the ring between two rounds."""
    recording = SteppedRecording(tmp_path, ring_bytes=2**20)
    listener = make_listener(recording, ROUTES[routes])
    device = Device(listener, version=4)
    data = b"".join(publish(b"plant/line-1/sens-%05d" % (index % topics), b"x" * 64) for index in range(MESSAGES))

    def receive() -> tuple[tuple[int], dict[str, Any]]:
        recording.flush()
        memoryview(device.get_buffer(len(data)))[: len(data)] = data
        return (len(data),), {}

    benchmark.pedantic(device.buffer_updated, setup=receive, rounds=200)
    assert not device.blocked
    assert device.fault is None
    recording.close()
