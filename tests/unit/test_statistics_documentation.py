"""docs/statistics.md has every member that the gateway tells, and no others."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from gateway.app import App
from gateway.config import from_dict
from tests.support.gateway_process import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
# Kafka counts these when they happen first.
LATER = {
    "requests", "bytes_sent", "accepted", "refused", "logins_refused", "handshakes_failed", "timeouts", "slow_clients",
    "protocol_errors", "faults",
}  # fmt: skip


def documented(heading: str) -> set[str]:
    """What stands in code in the first cells of that section's table."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    first = [line.split(" | ")[0] for line in found[1].splitlines() if line.startswith("| ")]
    return {name for cell in first for name in re.findall(r"`([^`]+)`", cell)}


def names(reports: Iterable[dict[str, Any]]) -> set[str]:
    return {name for report in reports for name in report}


@pytest.fixture(scope="module", name="told")
def make_told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The statistics of a gateway with a source of each kind, none of which finds anybody."""
    nobody = free_port()
    routes = [{"filter": "#", "stream": "telemetry"}]
    broker = {"url": f"mqtt://127.0.0.1:{nobody}", "routes": routes}
    camera = {"url": f"rtsp://127.0.0.1:{nobody}/x"}
    config = {
        "data": str(tmp_path_factory.mktemp("site") / "data"),
        "disk": {"reserve": "1MiB"},
        "mqtt": {
            "listeners": {"devices": {"bind": "127.0.0.1:0", "routes": routes}},
            "subscribers": {"native": broker, "aiomqtt": {**broker, "engine": "aiomqtt"}},
        },
        "cameras": {"gate-1": camera, "gate-2": {**camera, "engine": "pyav"}},
        "kafka": {"bind": "127.0.0.1:0"},
        "control": {"url": broker["url"]},
    }

    async def tell() -> dict[str, Any]:
        app = App(from_dict(config))
        await app.start()
        try:
            return app.statistics()
        finally:
            await app.stop()

    return asyncio.run(tell())


def test_the_members_of_the_gateway(told: dict[str, Any]) -> None:
    """Each has a row, and those that hold more a section."""
    assert documented("The gateway: `storage` …") == {*told}
    for member in ("writer", "disk", "control"):
        assert documented(f"`{member}`") == {*told[member]}, member
    assert documented("`streams`") == names(told["streams"].values())


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("A listener", "mqtt.listener"),
        ("A subscriber", "mqtt.subscriber"),
        ("A camera", "camera"),
        ("`kafka`", "kafka"),
    ],
)
def test_the_members_of_sources(told: dict[str, Any], heading: str, kind: str) -> None:
    """Of all engines together."""
    later = LATER if kind == "kafka" else set()
    assert documented(heading) - later == names(each for each in told["sources"].values() if each["kind"] == kind)
    assert later <= documented(heading)
