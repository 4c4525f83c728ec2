"""A full disk behind a subscriber: the broker keeps what was refused, and sends it again when there is room."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gateway
from tests.integration.peers import mosquitto
from tests.support.gateway_process import GatewayProcess
from tests.support.publisher import QosOnePublisher
from tests.support.small_disk import small_disk

DISK_BYTES = 64 << 20
LEFT_BYTES = 2 << 20
PATIENCE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)


def recorded(data: Path) -> set[int]:
    """Numbers of the messages that are in the stream; the gateway's own records have no key."""
    rows = gateway.open(data)["telemetry"].read().rows()
    return {int(value) for _, _, key, value, _ in rows if key is not None and value is not None}


@pytest.mark.integration
@pytest.mark.parametrize("engine", ["native", "aiomqtt"])
def test_what_a_full_disk_refuses_comes_again(tmp_path: Path, engine: str) -> None:
    """The stream refuses, the connection is given up, nothing is acknowledged; with room everything is there."""
    with small_disk(tmp_path / "data", "tmpfs", DISK_BYTES) as disk, mosquitto(tmp_path / "broker") as broker:
        extra = f"""
[disk]
reserve = "0B"
[streams.telemetry]
segment_size = "1MiB"
when_full = "refuse"
[mqtt.subscribers.broker]
url = "mqtt://127.0.0.1:{broker.port}"
engine = "{engine}"
reconnect_min = "200ms"
reconnect_max = "500ms"
routes = [{{ filter = "load/#", stream = "telemetry" }}]
"""
        with GatewayProcess(tmp_path, extra_toml=extra) as process:
            process.start()
            wait_until(lambda: "connected to the broker" in process.log, "the gateway reaches its broker")
            disk.leave(LEFT_BYTES)
            publisher = QosOnePublisher(broker.port, "c", "load/0", padding=1_000)
            publisher.start()
            wait_until(lambda: "disconnecting: the disk is full" in process.log, "the disk is full")
            publisher.finish()
            assert publisher.fault is None
            assert publisher.acknowledged > 0
            disk.relieve()
            expected = set(range(publisher.acknowledged))
            wait_until(lambda: expected <= recorded(process.data), "everything is recorded after all")
            assert process.end() == 0
