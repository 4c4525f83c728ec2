"""Cameras by the hundred, from a process of their own to the log of a gateway: byte for byte, and after a blackout.

Small here; `make torture` has a hundred cameras of 1080p for a minute, and five hundred that come back at once:
GATEWAY_CAMERAS, GATEWAY_CAMERA_SECONDS, GATEWAY_CAMERA_SIZE and GATEWAY_CAMERAS_RESTARTED say how many.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from gateway_native import watermark

import gateway
from gateway.simulate.coded import digest
from tests.integration.camera_gateway import headers
from tests.integration.sent_and_recorded import compare
from tests.support.camera_farm import CameraFarm
from tests.support.gateway_process import GatewayProcess

CAMERAS = int(os.environ.get("GATEWAY_CAMERAS", "16"))
SECONDS = float(os.environ.get("GATEWAY_CAMERA_SECONDS", "3"))
SIZE = os.environ.get("GATEWAY_CAMERA_SIZE", "640x360")
RESTARTED = int(os.environ.get("GATEWAY_CAMERAS_RESTARTED", "60"))
# What is promised for five hundred.
BACK_S = 10.0
AWAY_S = 3.0
# Seconds of a hundred cameras: what is measured here is not how long this machine's disk may be busy with other things.
LIMITS = """
[limits]
ring = "128MiB"
buffers = "128MiB"
"""


def configuration(urls: dict[str, str], lossy: int = 0) -> str:
    """All cameras; 1 % of the packets of the first so many are lost, large ones so that most key frames come whole."""
    return LIMITS + "\n".join(
        f'[cameras.{name}]\nurl = "{url}{f"?loss=1&mtu=8000&seed={number}" if number < lossy else ""}"\n'
        for number, (name, url) in enumerate(urls.items())
    )


def durable(data: Path, name: str) -> int:
    """The durable offset of a camera's stream."""
    path = data / f"{name}-0" / "watermark"
    found = watermark.read(path) if path.exists() else None
    return found.durable_offset if found is not None else 0


def settled(data: Path, names: list[str]) -> dict[str, int]:
    """The durable offsets of cameras that are away, once everything they sent is durable."""
    before: dict[str, int] = {}
    while True:
        now = {name: durable(data, name) for name in names}
        if now == before:
            return now
        before = now
        time.sleep(AWAY_S)


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for something; returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s"
        time.sleep(0.02)
    return time.monotonic() - began


def test_every_access_unit_of_many_cameras_is_what_was_sent(tmp_path: Path) -> None:
    """All of them hash equal; where packets are lost, those counted are those made and no damage is unflagged."""
    lossy = CAMERAS // 4
    with CameraFarm(tmp_path / "farm", CAMERAS, size=SIZE).start() as farm:
        with GatewayProcess(tmp_path / "gateway", extra_toml=configuration(farm.urls, lossy)) as process:
            process.start()
            until(lambda: all(durable(process.data, name) for name in farm.urls), 30)
            time.sleep(SECONDS)
            assert process.end() == 0, process.log
        farm.end()
        sent = farm.sent()
    log = gateway.open(process.data)
    made = 0
    for number, name in enumerate(farm.urls):
        found_headers = [headers(record) for record in log[name].read()]
        gaps = [each["gateway.gap"] for each in found_headers if "gateway.gap" in each]
        assert not [gap for gap in gaps if "overload" in gap], f"{name}: this machine did not keep up: {gaps}"
        records = [record for record in log[name].read() if "codec" in headers(record)]
        if number >= lossy:
            assert len(records) >= SECONDS * farm.fps * 0.9, name
            digests = [digest(headers(record)["codec"], record.value or b"") for record in records]
            assert digests == [line.digest for line in sent[name]][: len(digests)], name
            # What was under way when the gateway said goodbye.
            assert len(sent[name]) - len(records) <= farm.fps, name
            continue
        assert records, f"{name}: not one key frame came whole"
        found = compare(sent[name], records)
        assert found.changed == [], name
        assert found.lost_packets == found.lost_made, name
        damaged = {index for index, line in enumerate(sent[name][: found.recorded]) if line.lost}
        assert damaged <= set(found.missing) | set(found.flagged), name
        made += found.lost_made
    assert made > 0


def test_cameras_that_restart_at_once_are_soon_recorded_again(tmp_path: Path) -> None:
    """A site loses power and comes back: within ten seconds every camera's stream grows, in a new run."""
    farm = CameraFarm(tmp_path / "farm", RESTARTED, size="320x240", fps=5, bit_rate=200_000)
    with farm.start():
        with GatewayProcess(tmp_path / "gateway", extra_toml=configuration(farm.urls)) as process:
            process.start()
            until(lambda: all(durable(process.data, name) for name in farm.urls), 60)
            farm.kill()
            before = settled(process.data, list(farm.urls))
            farm.start()
            # Of the first records that come one may tell of the time without pictures.
            took_s = until(lambda: all(durable(process.data, name) > at + 1 for name, at in before.items()), 2 * BACK_S)
            assert process.end() == 0, process.log
    print(f"{RESTARTED} cameras were recorded again within {took_s:.1f} s")
    assert took_s <= BACK_S
    log = gateway.open(process.data)
    for name in farm.urls:
        runs = {headers(record)["run"] for record in log[name].read() if "run" in headers(record)}
        assert len(runs) == 2, name
