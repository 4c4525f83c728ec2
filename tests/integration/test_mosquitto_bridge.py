"""A Mosquitto that hands its messages on to a listener, configured exactly as the documentation says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from gateway_adapters.mqtt.listener import create

from tests.integration.peers import free_port, mosquitto, mosquitto_pub
from tests.support.gateway import Running, on_uvloop, running, until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
ADDRESS = "address 127.0.0.1:1883"


def recipe(page: str) -> list[str]:
    """The bridge's lines as that page has them."""
    found = re.findall(r"```conf\n(connection gateway\n.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1, page
    return found[0].splitlines()


def bridge(port: int, *more: str, page: str = "README.md") -> Sequence[str]:
    """Settings of a broker that bridges to that port."""
    lines = recipe(page)
    assert ADDRESS in lines
    return [ADDRESS.replace("1883", str(port)) if line == ADDRESS else line for line in lines] + list(more)


def listening(tmp_path: Path, port: int, name: str = "data"):
    settings = {"bind": f"127.0.0.1:{port}", "routes": [{"filter": "plant/#", "stream": "telemetry"}]}
    return running(tmp_path / name, create, "listeners", settings)


async def pub(port: int, *arguments: str, stdin: bytes | None = None) -> None:
    done = await asyncio.to_thread(mosquitto_pub, port, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr


async def bridged(gateway: Running) -> None:
    await until(lambda: gateway.source.statistics()["connections"] == 1, "the bridge is connected")


def test_both_pages_have_the_same_recipe() -> None:
    """README and docs/mqtt.md do not drift apart."""
    assert recipe("README.md") == recipe("docs/mqtt.md")


@pytest.mark.parametrize("version", ["mqttv311", "mqttv50"])
@on_uvloop
async def test_bridge(tmp_path: Path, version: str) -> None:
    """Everything that the broker's clients publish below plant/ is recorded, in order, and the bridge stays."""
    port = free_port()
    lines = [b"line %d" % number for number in range(2_000)]
    async with listening(tmp_path, port) as gateway:
        with mosquitto(tmp_path / "broker", settings=bridge(port, f"bridge_protocol_version {version}")) as broker:
            await bridged(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=b"\n".join([*lines, b""]))
            await pub(broker.port, "-q", "1", "-t", "office/a", "-m", "not asked for")
            await pub(broker.port, "-q", "0", "-t", "plant/b", "-m", "last")
            await until(lambda: gateway.source.statistics()["records"] == 2_001, "all of it has come")
            assert [value for _, value in await gateway.contents()] == [*lines, b"last"]
            statistics = gateway.source.statistics()
            assert (statistics["accepted"], statistics["faults"], statistics["unrouted"]) == (1, 0, 0)


@on_uvloop
async def test_bridge_while_the_gateway_is_away(tmp_path: Path) -> None:
    """What is published meanwhile is queued by the broker and comes when the gateway is back; nothing is lost."""
    port = free_port()
    with mosquitto(tmp_path / "broker", settings=bridge(port, "restart_timeout 1")) as broker:
        async with listening(tmp_path, port, "first") as gateway:
            await bridged(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-m", "1")
            await until(lambda: gateway.source.statistics()["records"] == 1, "it has come")
            await gateway.stop()
        await pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=b"2\n3\n4\n")
        async with listening(tmp_path, port, "second") as gateway:
            await until(lambda: gateway.source.statistics()["records"] >= 3, "the queued ones come")
            assert [value for _, value in await gateway.contents()] == [b"2", b"3", b"4"]
