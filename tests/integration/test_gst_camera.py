"""Cameras that no line of ours helped to write: gst-rtsp-server; PyAV's decoder judges what was recorded."""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path

import av
import pytest

from gateway import nal
from tests.integration import gst_camera
from tests.integration.camera_gateway import headers, recording, until

pytestmark = pytest.mark.integration
ENGINES = ["native", "pyav"]


@pytest.fixture(autouse=True)
def _gstreamer() -> None:
    gst_camera.require()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("codec", ["h264", "h265", "jpeg"])
async def test_a_camera_of_each_codec_is_recorded_and_played_back(tmp_path: Path, codec: str, engine: str) -> None:
    """Every record decodes; stamps are a frame apart; key frames carry their sets; the clip plays in full."""
    with gst_camera.serving("--codec", codec) as url:
        async with recording(tmp_path / "data", {"gate": {"url": url, "engine": engine}}) as gateway:
            await until(lambda: gateway.statistics("gate")["access_units"] >= 60)
            statistics = gateway.statistics("gate")
    assert (statistics["codec"], statistics["width"], statistics["height"]) == (codec, 320, 240)
    assert (statistics["lost"], statistics["skipped_before_key"], statistics["without_pts"]) == (0, 0, 0)
    stream = gateway.stream("gate")
    records = list(stream.read())
    pts = [int(headers(record)["pts"]) for record in records]
    assert [b - a for a, b in itertools.pairwise(pts)] == [3600] * (len(pts) - 1)
    assert "keyframe" in headers(records[0])
    if codec != "jpeg":
        kind = nal.CODECS[codec]
        for record in records:
            nals = nal.split(record.value or b"")
            assert kind.is_key(nals) == ("keyframe" in headers(record))
            if kind.is_key(nals):
                assert {kind.type_of(each) for each in kind.parameter_sets(nals)} == set(kind.parameter_types)
    decoded = list(stream.frames())
    assert [frame.offset for frame in decoded] == [record.offset for record in records]
    assert not any(frame.damaged for frame in decoded)
    report = stream.export(tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
        assert stamps == [n * 3600 for n in range(len(records))]
    assert report.duration_s == pytest.approx(len(records) / 25)


@pytest.mark.parametrize("engine", ENGINES)
async def test_digest_authentication_against_another_implementation(tmp_path: Path, engine: str) -> None:
    """The right password opens, also with characters that mean something in URLs; a wrong one does not."""
    password = "p w@/:%é"
    with gst_camera.serving("--user", "viewer", "--password", password) as url:
        cameras = {
            "good": {"url": url, "engine": engine, "username": "viewer", "password": password},
            "bad": {"url": url, "engine": engine, "username": "viewer", "password": "wrong"},
            "none": {"url": url, "engine": engine},
        }
        async with recording(tmp_path, cameras) as gateway:
            await until(lambda: gateway.statistics("good")["access_units"] >= 10)
            await until(lambda: gateway.statistics("bad")["state"] == "unauthorized")
            await until(lambda: gateway.statistics("none")["state"] == "unauthorized")


@pytest.mark.parametrize(("engine", "skipped"), [("native", "audio PCMA"), ("pyav", "audio")])
async def test_an_audio_track_is_skipped_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, engine: str, skipped: str
) -> None:
    """The pictures are recorded with RTP's own stamps, as if there were no sound."""
    caplog.set_level(logging.INFO, "gateway")
    with gst_camera.serving("--audio") as url:
        async with recording(tmp_path, {"gate": {"url": url, "engine": engine}}) as gateway:
            await until(lambda: gateway.statistics("gate")["access_units"] >= 40)
    pts = [int(headers(record)["pts"]) for record in gateway.stream("gate").read()]
    assert [b - a for a, b in itertools.pairwise(pts)] == [3600] * (len(pts) - 1)
    said = [entry.__dict__["fields"] for entry in caplog.records if "skipped" in entry.message]
    assert said == [{"camera": "gate", "skipped": skipped}]


@pytest.mark.parametrize("engine", ENGINES)
async def test_its_sender_reports_give_the_cameras_time(tmp_path: Path, engine: str) -> None:
    """Server and gateway have one clock here, so source_time is close to the receive time once a report has come."""
    with gst_camera.serving() as url:
        async with recording(tmp_path, {"gate": {"url": url, "engine": engine}}) as gateway:
            deadline = time.monotonic() + 30

            def reported() -> bool:
                records = gateway.stream("gate").read() if gateway.statistics("gate")["access_units"] else ()
                return any("source_time" in headers(record) for record in records) or time.monotonic() > deadline

            await until(reported, 40)
    with_time = [record for record in gateway.stream("gate").read() if "source_time" in headers(record)]
    assert with_time
    for record in with_time:
        assert abs(record.timestamp_ms - int(headers(record)["source_time"]) / 1e6) < 1_000
