"""Health of cameras of the native engine: what each kind of trouble is called, what follows from it, who is spared."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from gateway_adapters.rtsp import status
from gateway_adapters.rtsp.camera import create

import gateway.app
from gateway import camera_status
from gateway.config import from_dict
from gateway.simulate.camera import CameraServer, ListFeed
from tests.integration.camera_gateway import CameraGateway, gaps, headers, pictures, recording, until
from tests.support.rtp_packets import goodbye, packets
from tests.support.scripted_camera import SETS, Player, scripted


async def states_of(gateway: CameraGateway, name: str, wanted: set[str]) -> dict[str, Any]:
    """Wait until a camera has been in all these states; its statistics then."""
    seen: set[str] = set()

    def look() -> bool:
        seen.add(gateway.statistics(name)["state"])
        return wanted <= seen

    await until(look)
    return gateway.statistics(name)


async def playing(player: Player) -> None:
    while True:
        player.play()
        await asyncio.sleep(0.04)


async def test_sessions_are_kept_alive(tmp_path: Path) -> None:
    """A camera whose session lasts two seconds plays on, because it is asked for its parameters in time."""
    async with scripted(playing, timeout_s=2) as camera, recording(tmp_path, {"gate": {"url": camera.url}}) as gateway:
        await until(lambda: camera.asked.count("GET_PARAMETER") >= 2)
        assert (camera.connections, gateway.statistics("gate")["state"]) == (1, "recording")


async def test_a_forgotten_session_is_begun_again(tmp_path: Path) -> None:
    """454 to a keep-alive: what comes then is nobody's; the gateway connects anew."""
    async with scripted(playing, timeout_s=2) as camera, recording(tmp_path, {"gate": {"url": camera.url}}) as gateway:
        camera.keepalive_status = "454 Session Not Found"
        await until(lambda: camera.connections == 2)
        assert gateway.statistics("gate")["last_error"] == "the camera has forgotten the session (454)"


async def test_a_camera_that_asks_is_answered_while_it_plays(tmp_path: Path) -> None:
    """Between its pictures, and without a new connection."""

    async def asking(player: Player) -> None:
        player.play()
        player.send(b"OPTIONS * RTSP/1.0\r\nCSeq: 77\r\n\r\n")
        await playing(player)

    async with scripted(asking) as camera, recording(tmp_path, {"gate": {"url": camera.url}}) as gateway:
        await until(lambda: camera.replies)
        assert camera.replies[0].startswith("RTSP/1.0 200 OK\r\nCSeq: 77\r\n")
        await until(lambda: gateway.statistics("gate")["access_units"] >= 10)
    assert camera.connections == 1


@pytest.mark.parametrize(
    ("last", "state", "cause"),
    [
        (b"", "closed", "the camera closed the connection"),
        (goodbye(), "closed", "RTCP goodbye"),
        (b"\x00\xff" * 100, "unsupported", "broke the protocol"),
        (b"TEARDOWN rtsp://h RTSP/1.0\r\nCSeq: 1\r\n\r\n", "closed", "ended the session"),
    ],
    ids=["close", "goodbye", "rubbish", "teardown"],
)
async def test_every_end_has_a_name_and_is_a_gap(tmp_path: Path, last: bytes, state: str, cause: str) -> None:
    """What the camera does last is told in state and cause; when it is back, a gap record says for how long."""

    async def ending(player: Player) -> None:
        player.play(5)
        await asyncio.sleep(0.2)
        player.send(last)
        await asyncio.sleep(30 if last else 0)

    settings = {"reconnect_min": "300ms"}
    async with scripted(ending) as camera, recording(tmp_path, {"gate": {"url": camera.url, **settings}}) as gateway:
        found = await states_of(gateway, "gate", {state, "recording"})
        assert cause in gateway.statistics("gate")["last_error"]
        assert found["reconnects"] >= 1
        await until(lambda: camera.connections >= 3)
    found_gaps = gaps(gateway.stream("gate"))
    assert {gap.reason for gap in found_gaps} == {"camera-away"}
    runs = {headers(record)["run"] for record in pictures(gateway.stream("gate"))}
    assert len(runs) >= 2


async def test_lost_packets_make_it_lossy_and_a_gap(tmp_path: Path) -> None:
    """State, counter and gap record say how many; the picture behind the hole is flagged."""

    async def losing(player: Player) -> None:
        player.play(5)
        player.made(1)  # of three packets, of which none is sent
        player.play(5)
        await asyncio.sleep(30)

    async with scripted(losing) as camera, recording(tmp_path, {"gate": {"url": camera.url}}) as gateway:
        await states_of(gateway, "gate", {"lossy"})
        assert gateway.statistics("gate")["lost_packets"] == 3
        await until(lambda: gateway.statistics("gate")["access_units"] == 10)
    lost = [int(headers(record).get("lost_packets", "0")) for record in pictures(gateway.stream("gate"))]
    assert lost == [0] * 5 + [3] + [0] * 4
    (gap,) = gaps(gateway.stream("gate"))
    assert (gap.reason, gap.count, gap.source) == ("packet-loss", 3, "gate")


async def test_a_camera_that_plays_nothing_is_given_its_time(tmp_path: Path) -> None:
    """Connected, but without a picture: stalled after 5 s, given up after read_timeout, not before."""

    async def silent(player: Player) -> None:
        await asyncio.sleep(60)

    async with (
        scripted(silent) as camera,
        recording(tmp_path, {"gate": {"url": camera.url, "read_timeout": "6s"}}) as g,
    ):
        found = await states_of(g, "gate", {"connecting", "stalled"})
        assert (found["reconnects"], camera.connections) == (0, 1)
        await until(lambda: camera.connections == 2)
        assert g.statistics("gate")["last_error"] == "no picture within 6 s"


async def test_a_frozen_camera_costs_the_others_nothing(tmp_path: Path) -> None:
    """It is stalled after five seconds; twenty others have not lost a picture, nor been connected anew."""

    async def freezing(player: Player) -> None:
        player.play(20)
        await asyncio.sleep(60)

    async with AsyncExitStack() as stack:
        bad = await stack.enter_async_context(scripted(freezing))
        good = [await stack.enter_async_context(scripted(playing)) for _ in range(20)]
        cameras = {f"good-{n}": {"url": each.url} for n, each in enumerate(good)} | {"bad": {"url": bad.url}}
        gateway = await stack.enter_async_context(recording(tmp_path, cameras))
        await states_of(gateway, "bad", {"recording", "stalled"})
        for number, each in enumerate(good):
            found = gateway.statistics(f"good-{number}")
            assert (found["state"], found["reconnects"], found["lost_packets"], found["lost"]) == ("recording", 0, 0, 0)
            assert each.connections == 1


async def test_dead_cameras_keep_no_living_one_waiting(tmp_path: Path) -> None:
    """Three hundred that never answer, more than are asked at a time; three that come back are soon recorded."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent:
        dead = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        feeds = {name: ListFeed([[*SETS, b"\x65picture"]], fps=20, repeat=0) for name in "abc"}
        server = CameraServer(feeds, port=0)
        await server.start()
        try:
            cameras = {f"dead-{n}": {"url": f"{dead}{n}", "open_timeout": "60s"} for n in range(300)}
            cameras |= {name: {"url": url} for name, url in server.urls.items()}
            async with recording(tmp_path, cameras) as gateway:
                for _ in range(2):
                    before = {name: gateway.statistics(name)["access_units"] for name in "abc"}
                    await until(
                        lambda before=before: all(gateway.statistics(n)["access_units"] > before[n] + 3 for n in "abc"),
                        10,
                    )
                    server.drop_clients()
                assert {gateway.statistics(f"dead-{n}")["state"] for n in range(300)} == {"connecting"}
        finally:
            await server.stop()


async def test_one_camera_comes_and_one_goes_without_touching_others(tmp_path: Path) -> None:
    """A reload with one added and one dropped: the third's connection, run and pictures go on."""
    async with AsyncExitStack() as stack:
        cameras = {name: await stack.enter_async_context(scripted(playing)) for name in "abc"}

        def config(names: str) -> Any:
            return from_dict({"data": str(tmp_path), "cameras": {name: {"url": cameras[name].url} for name in names}})

        app = gateway.app.App(config("ab"))
        with patch.object(gateway.app, "load_factory", lambda kind: create):
            await app.start()
            stack.push_async_callback(app.stop)
            await until(lambda: all(app.sources[name].statistics()["access_units"] for name in "ab"))
            await app.reload(config("bc"))
        await until(lambda: app.sources["c"].statistics()["access_units"])
        assert set(app.sources) == {"b", "c"}
        await until(lambda: "TEARDOWN" in cameras["a"].asked)
        assert cameras["b"].connections == 1
    records = pictures(gateway.open(tmp_path)["b"])
    assert len({headers(record)["run"] for record in records}) == 1
    assert not gaps(gateway.open(tmp_path)["b"])


async def test_other_processes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status file has every camera of both engines while the gateway runs, and is gone afterwards."""
    monkeypatch.setattr(status, "INTERVAL_S", 0.1)
    async with scripted(playing) as one, scripted(playing) as other:
        cameras = {"native": {"url": one.url}, "pyav": {"url": other.url, "engine": "pyav"}}
        cameras["away"] = {"url": "rtsp://127.0.0.1:9/x"}

        def found() -> dict[str, camera_status.CameraStatus]:
            report = camera_status.read(tmp_path)
            return {each.name: each for each in report.cameras} if report else {}

        async with recording(tmp_path, cameras):
            await until(lambda: found() and found()["native"].access_units > 30 and found()["pyav"].access_units)
            shown = found()
        assert shown["away"].state in ("refused", "connecting")
        assert (shown["native"].codec, shown["native"].width, shown["native"].height) == ("h264", 640, 360)
        assert 10 < shown["native"].fps < 40
        assert shown["pyav"].lost_packets is None
        assert camera_status.read(tmp_path) is None


async def test_the_log_says_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A camera that is away for long is told at the 1st, 2nd, 4th… failure, not at each."""
    caplog.set_level(logging.INFO, "gateway")
    settings = {"url": "rtsp://127.0.0.1:9/x", "reconnect_min": "100ms", "reconnect_max": "100ms"}
    async with recording(tmp_path, {"gate": settings}) as gateway:
        await until(lambda: gateway.statistics("gate")["reconnects"] >= 9)
    told = [entry for entry in caplog.records if "cannot be recorded" in entry.message]
    assert len(told) == 4
    assert told[-1].__dict__["fields"]["times"] == 8


def test_packets_of_the_scripted_camera() -> None:
    """Three packets a picture, which the tests above count on."""
    assert len(packets([[*SETS, b"\x65"]])) == 3
