"""``gateway camera``, called in this process, against cameras on loopback."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway import camera_status, cli
from gateway.camera_status import CameraStatus
from gateway.clock import realtime_ns
from gateway.commands.pictures import write_picture
from gateway.errors import GatewayError
from gateway.log.layout import prepare
from gateway.simulate.camera import CameraServer, LiveFeed
from tests.support import onvif_device
from tests.support.scripted_camera import Player, scripted

PASSWORD = "s/e:c r@t%"
Run = Any


@pytest.fixture
def gateway(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line as `main` does, beside this loop; (exit code, stdout, stderr)."""

    async def run(*arguments: object) -> tuple[int, str, str]:
        code = await asyncio.to_thread(cli.run, ["camera", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert PASSWORD not in out + err
        return code, out, err

    return run


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[str]:
    server = CameraServer({"gate": LiveFeed("gate", width=160, height=120, fps=25)}, port=0, **options)
    await server.start()
    try:
        yield server.urls["gate"]
    finally:
        await server.stop()


async def test_probe_tells_what_is_offered_and_what_comes(
    gateway: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In text and as JSON; with a password from a file or the environment."""
    (tmp_path / "pw").write_text(PASSWORD + "\n", encoding="utf-8")
    async with served(username="viewer", password=PASSWORD) as url:
        code, out, err = await gateway(
            "probe", url, "--username", "viewer", "--password-file", tmp_path / "pw", "--seconds", "1.5"
        )
        assert (code, err) == (0, "")
        assert "digest MD5" in out
        assert "video H264 160x120 claims 25 frames/s, recorded" in out
        assert "it can be recorded, engine native" in out
        monkeypatch.setenv("GATEWAY_CAMERA_PASSWORD", PASSWORD)
        code, out, _ = await gateway("probe", url, "--username", "viewer", "--seconds", "1.5", "--json")
        report = json.loads(out)
    assert (code, report["state"], report["measured"]["width"]) == (0, "ok", 160)
    assert 15 < report["measured"]["fps"] < 35
    assert report["measured"]["lost_packets"] == 0


@pytest.mark.parametrize("engine", ["native", "pyav"])
async def test_probe_tells_why_not(gateway: Run, engine: str) -> None:
    """Exit code 1, the state and a sentence; JSON has the same."""
    async with served(username="viewer", password=PASSWORD) as url:
        code, _, err = await gateway("probe", url, "--engine", engine)
        assert code == 1
        assert f"{url} cannot be recorded (unauthorized): " in err
        code, out, _ = await gateway("probe", "rtsp://127.0.0.1:9/x", "--json", "--engine", engine)
        assert (code, json.loads(out)["state"]) == (1, "refused")


async def test_mistakes_on_the_command_line_are_named_as_they_were_typed(gateway: Run) -> None:
    """Once, by their options; nobody wrote a configuration."""
    code, _, err = await gateway("probe", "rtsp://127.0.0.1:9/x", "--timeout", "soon")
    assert (code, err.count("'soon' is not a duration")) == (2, 1)
    assert err.startswith("gateway: --timeout: ")
    code, _, err = await gateway("probe", "ftp://127.0.0.1/x")
    assert code == 2
    assert err.startswith("gateway: the URL must start with rtsp://")


async def test_a_snapshot_of_a_camera_that_never_recorded(gateway: Run, tmp_path: Path) -> None:
    """It says how the camera is; a camera that nobody records is not there."""
    prepare(tmp_path, "test", "UTC")
    away = CameraStatus("gate", "refused", "native", "", 0, 0, 0.0, 0, 0, 0, 0, 0, 3, None, "nothing listens")
    camera_status.write(tmp_path, [away], realtime_ns())
    code, _, err = await gateway("snapshot", "gate", tmp_path / "x.png", "--data", tmp_path)
    assert (code, err) == (
        1,
        "gateway: The camera 'gate' has recorded nothing yet; its state is refused (nothing listens).\n",
    )
    code, _, err = await gateway("snapshot", "other", tmp_path / "x.png", "--data", tmp_path)
    assert code == 1
    assert "There is no stream 'other' here" in err


def test_a_picture_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    """Not by the name that it has until it is whole."""
    target = tmp_path / "none" / "x.png"
    with pytest.raises(GatewayError, match=f"^{re.escape(str(target))} cannot be written: No such file"):
        write_picture(target, np.zeros((8, 8, 3), np.uint8))


async def test_probe_through_libav(gateway: Run) -> None:
    """For cameras that only libav understands; it tells less."""
    async with served() as url:
        code, out, err = await gateway("probe", url, "--engine", "pyav", "--seconds", "1")
    assert (code, err) == (0, "")
    assert "video h264 160x120, recorded" in out


async def test_probe_of_a_camera_that_plays_nothing(gateway: Run) -> None:
    """What it offers is told, and that nothing comes."""

    async def silent(player: Player) -> None:
        await asyncio.sleep(30)

    async with scripted(silent) as camera:
        code, out, err = await gateway("probe", camera.url, "--seconds", "0.3")
    assert code == 1
    assert "video H264, recorded" in out
    assert "(stalled): the camera plays, but no picture came within 0.3 s" in err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["rtsp://u:hunter2@h/x"], "user name and password do not belong into a URL"),
        (["ftp://h/x"], "the URL must start with rtsp://"),
        (["rtsp://h/x", "--timeout", "soon"], "timeout"),
        (["rtsps://h/x", "--engine", "native"], "'native' speaks rtsp:// over TCP only"),
        (["rtsp://h/x", "--password-file", __file__], "say whose with --username"),
    ],
)
async def test_probe_called_wrongly(gateway: Run, arguments: list[str], problem: str) -> None:
    """A usage error of one sentence, which repeats no password."""
    code, out, err = await gateway("probe", *arguments)
    assert (code, out) == (2, "")
    assert problem in err
    assert "hunter2" not in err


async def test_list_shows_how_the_cameras_are(gateway: Run, tmp_path: Path) -> None:
    """A row a camera; what is not known is a question mark; an old report says that it is old."""
    prepare(tmp_path, "plant-7", "Europe/Berlin")
    assert (await gateway("list", "--data", tmp_path))[1] == f"No gateway records cameras in {tmp_path} now.\n"
    moment_ns = 1_795_431_600_000_000_000
    common = {"engine": "native", "access_units": 9, "lost": 0, "reconnects": 0}
    cameras = [
        CameraStatus("gate-1", "lossy", codec="h264", width=1920, height=1080, fps=24.96, bits_per_second=4_000_000,
                     lost_packets=1_234, damaged=2, last_frame_ns=moment_ns, last_error="", **common),
        CameraStatus("gate-2", "refused", codec="", width=0, height=0, fps=0.0, bits_per_second=0,
                     lost_packets=None, damaged=None, last_frame_ns=None, last_error="nothing listens", **common),
    ]  # fmt: skip
    camera_status.write(tmp_path, cameras, realtime_ns())
    code, out, err = await gateway("list", "--data", tmp_path)
    assert (code, err) == (0, "")
    first, second = ([*line.split()] for line in out.splitlines()[1:])
    shown = "2026-11-23T12:00:00.000+01:00"
    assert first == [
        "gate-1",
        "lossy",
        "h264",
        "1920x1080",
        "25.0",
        "4,000",
        "1,234",
        "2",
        "2026-11-23T12:00:00.000+01:00",
        "-",
    ]
    assert second == ["gate-2", "refused", "-", "-", "0.0", "0", "?", "?", "-", "nothing", "listens"]
    camera_status.write(tmp_path, cameras, realtime_ns() - 60_000_000_000)
    code, out, err = await gateway("list", "--data", tmp_path, "--json")
    report = json.loads(out)
    assert (report["stale"], report["cameras"][0]["last_frame"]) == (True, shown)
    assert "60 s old" in (await gateway("list", "--data", tmp_path))[2]
    (tmp_path / camera_status.FILE).write_text("{}", encoding="utf-8")
    code, _, err = await gateway("list", "--data", tmp_path)
    assert code == 1
    assert "is not what this version of the gateway writes" in err


async def test_discover_prints_what_can_be_pasted(gateway: Run) -> None:
    """The search and the answers, as TOML and as JSON."""
    async with onvif_device.serving() as device:
        address = f"127.0.0.1:{device.search_port}"
        code, out, err = await gateway("discover", "--address", address, "--wait", "300ms")
        assert (code, err) == (0, "")
        assert out.startswith("# Gate North, X-1, http://127.0.0.1:")
        assert 'url = "rtsp://127.0.0.1:554/live?token=p0&x=1"  # main H264 1920x1080 25 frames/s' in out
        code, out, _ = await gateway("discover", "--host", f"127.0.0.1:{device.port}", "--json")
    assert [profile["width"] for profile in json.loads(out)["cameras"][0]["profiles"]] == [640, 1920]
    assert "leaked" not in out
