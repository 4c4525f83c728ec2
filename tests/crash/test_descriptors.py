"""Descriptors are no hidden limit: the usual 1,024 would stop at 250 streams."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from tests.support.gateway_process import GatewayProcess
from tests.support.native import wait_until
from tests.support.publisher import QosOnePublisher

LOW = 128
STREAMS = 60


@pytest.fixture
def low_limit() -> Iterator[None]:
    """A low soft limit for what this test starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(LOW, _used() + 32), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _used() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.usefixtures("low_limit")
def test_more_streams_than_the_soft_limit_has_descriptors_for(tmp_path: Path) -> None:
    """Sixty streams take 240 descriptors; started with a limit of about 128 the gateway raises it and records all."""
    with GatewayProcess(tmp_path) as process:
        routes = ", ".join(f'{{ filter = "load/{n}", stream = "s{n}" }}' for n in range(STREAMS))
        text = process.config.read_text(encoding="utf-8")
        whole = 'routes = [{ filter = "#", stream = "telemetry" }]'
        assert whole in text
        process.config.write_text(text.replace(whole, f"routes = [{routes}]"), encoding="utf-8")
        process.start()
        for number in range(STREAMS):
            publisher = QosOnePublisher(process.port, "c", f"load/{number}", window=2)
            publisher.start()
            wait_until(lambda: publisher.acknowledged > 0 or not publisher.is_alive(), "an answer")  # noqa: B023
            publisher.finish()
            assert publisher.acknowledged > 0, process.log
        assert process.end() == 0
    assert len(gateway.open(process.data).streams()) == STREAMS
