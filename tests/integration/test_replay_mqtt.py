"""`gateway replay`: what was recorded arrives at a listener and at a broker as it was, with the original time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gateway_adapters.mqtt.listener import create
from gateway_native import batch

from gateway import cli
from gateway.log.layout import prepare
from gateway.replay import mqtt_target
from tests.integration.peers import free_port, mosquitto
from tests.support.gateway import on_uvloop, running, until
from tests.support.keeping_subscriber import KeepingSubscriber
from tests.support.native import wait_until
from tests.support.partitions import Partition

T0 = 1_700_000_000_000
COUNT = 2_500

Row = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]


def _recorded(data: Path, rows: Sequence[Row], stream: str = "telemetry") -> Path:
    """A data directory with these records."""
    if not data.exists():
        data.mkdir()
        prepare(data, "test", "UTC")
    made = Partition(data / f"{stream}-0")
    made.add([batch.encode(rows[n : n + 100], n) for n in range(0, len(rows), 100)], base=0, sealed=False)
    made.mark_all()
    return data


def _rows(count: int) -> list[Row]:
    """QoS 0, 1 and 2, properties, odd payloads; 1 ms apart."""
    rows: list[Row] = []
    for number in range(count):
        headers = [("qos", b"%d" % (number % 3))] if number % 3 else []
        headers += [("content-type", b"text/%C3%A4"), ("unit", b"%C2%B0C")] if number % 5 == 0 else []
        rows.append((T0 + number, f"plant/{number % 7}/ä".encode(), b"\x00" * (number % 11) + b"%d" % number, headers))
    return rows


async def _replay(
    capsys: pytest.CaptureFixture[str], data: Path, port: int, *options: str
) -> tuple[int, dict[str, Any]]:
    arguments = ["replay", "telemetry", "--to", f"mqtt://127.0.0.1:{port}", "--data", str(data), "--json", *options]
    code = await asyncio.to_thread(cli.run, arguments)
    out, err = capsys.readouterr()
    assert out, err
    return code, json.loads(out)


@on_uvloop
async def test_a_listener_records_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Key, payload, QoS and properties of every record are the same, in order; the original time stands beside them."""
    rows = _rows(COUNT)
    data = _recorded(tmp_path / "recorded", [*rows, (T0 + COUNT, None, None, [("gateway.gap", b"x")])])
    settings = {"bind": "127.0.0.1:0", "routes": [{"filter": "#", "stream": "again"}]}
    async with running(tmp_path / "again", create, "listeners", settings) as gateway:
        code, report = await _replay(capsys, data, gateway.port, "--speed", "max")
        await until(lambda: gateway.source.statistics()["records"] == COUNT, "all of it has come")
        found = await gateway.records("again")
    assert (code, report["messages"], report["skipped"]) == (0, COUNT, 1)
    assert (report["refused"], report["lost"]) == (0, 0)
    added = {"original-time", "original-offset"}
    assert [(row[2], row[3], [header for header in row[4] if header[0] not in added]) for row in found] == [
        (key, value, headers) for _, key, value, headers in rows
    ]
    for offset, row in enumerate(found):
        own = dict(row[4])
        assert own["original-offset"] == b"%d" % offset
        assert own["original-time"].startswith(b"2023-11-14T22:13:2")


@on_uvloop
async def test_a_subset_below_a_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By time and key, all with one QoS, below another topic; MQTT 3.1.1 has no properties to tell the time by."""
    data = _recorded(tmp_path / "recorded", _rows(100))
    settings = {"bind": "127.0.0.1:0", "routes": [{"filter": "replay/#", "stream": "again"}]}
    chosen = ["--key", "plant/3/+", "--start", "2023-11-14 22:13:20.010", "--prefix", "replay/", "--qos", "1"]
    async with running(tmp_path / "again", create, "listeners", settings) as gateway:
        code, report = await _replay(capsys, data, gateway.port, "--mqtt", "3.1.1", "--speed", "1000", *chosen)
        found = await gateway.records("again")
    expected = [row for number, row in enumerate(_rows(100)) if number >= 10 and number % 7 == 3]
    assert (code, report["messages"]) == (0, len(expected))
    assert [(row[2], row[3], row[4]) for row in found] == [
        (b"replay/" + (key or b""), value, (("qos", b"1"),)) for _, key, value, _ in expected
    ]


async def test_a_broker_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence that names it; and no password ever."""
    data = _recorded(tmp_path / "recorded", _rows(3))
    port = free_port()
    url = f"mqtt://127.0.0.1:{port}"
    code = await asyncio.to_thread(cli.run, ["replay", "telemetry", "--to", url, "--data", str(data)])
    err = capsys.readouterr().err
    assert code == 1
    assert f"127.0.0.1:{port}: the broker cannot be reached" in err
    secret = ["replay", "telemetry", "--to", "mqtt://me:geheim@127.0.0.1", "--data", str(data)]
    assert await asyncio.to_thread(cli.run, secret) == 2
    assert "geheim" not in capsys.readouterr().err


@pytest.mark.integration
async def test_mosquitto_gets_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another client of a broker of others sees payloads, and the time in a user property."""
    rows = _rows(300)
    data = _recorded(tmp_path / "recorded", rows)
    with mosquitto(tmp_path / "broker") as broker:
        listener = await asyncio.to_thread(KeepingSubscriber, broker.port)
        try:
            code, report = await _replay(capsys, data, broker.port, "--speed", "max", "--qos", "2")
            await asyncio.to_thread(wait_until, lambda: len(listener.got) >= len(rows), "every message", 20.0)
        finally:
            await asyncio.to_thread(listener.close)
    assert (code, report["messages"], report["refused"]) == (0, 300, 0)
    assert [(message.topic.encode(), message.payload) for message in listener.got] == [row[1:3] for row in rows]
    properties = dict(listener.got[17].properties.UserProperty)  # type: ignore[union-attr]
    assert properties == {"original-time": "2023-11-14T22:13:20.017+00:00", "original-offset": "17"}


@on_uvloop
async def test_a_target_that_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What may not be published is counted, and the exit code says that not all arrived."""
    (tmp_path / "acl").write_text("topic write plant/1/#\n")
    data = _recorded(tmp_path / "recorded", _rows(70))
    settings = {
        "bind": "127.0.0.1:0",
        "routes": [{"filter": "#", "stream": "again"}],
        "access_file": str(tmp_path / "acl"),
    }
    async with running(tmp_path / "again", create, "listeners", settings) as gateway:
        code, report = await _replay(capsys, data, gateway.port, "--speed", "max", "--qos", "1")
        found = await gateway.records("again")
    assert (code, report["messages"], report["refused"], len(found)) == (1, 70, 60, 10)


@pytest.mark.integration
async def test_a_broker_that_restarts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With QoS 1 nothing is lost when the broker goes and comes back in the middle."""
    monkeypatch.setattr(mqtt_target, "WINDOW_MESSAGES", 50)
    data = _recorded(tmp_path / "recorded", _rows(600))
    settings = ["persistence true", f"persistence_location {tmp_path}/"]
    with mosquitto(tmp_path / "broker", settings=settings) as broker:
        listener = await asyncio.to_thread(KeepingSubscriber, broker.port)
        try:
            replay = asyncio.create_task(_replay(capsys, data, broker.port, "--speed", "0.5", "--qos", "1"))
            await asyncio.to_thread(wait_until, lambda: len(listener.got) >= 100, "the first messages", 20.0)
            await asyncio.to_thread(broker.stop)
            await asyncio.to_thread(broker.start)
            code, report = await replay
            wanted = set(range(600))

            def arrived() -> bool:
                return wanted <= {int(message.payload.lstrip(b"\0")) for message in list(listener.got)}

            await asyncio.to_thread(wait_until, arrived, "every message, some twice", 20.0)
        finally:
            await asyncio.to_thread(listener.close)
    assert (code, report["messages"], report["lost"]) == (0, 600, 0)
