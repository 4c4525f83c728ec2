"""What only libav reads: images over HTTP, files."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
from gateway_adapters.rtsp import pyav_camera

from gateway import nal
from gateway.simulate.camera import CameraServer, ListFeed
from tests.integration.camera_gateway import headers, pictures, recording, until
from tests.pictures import encode

FPS = 50


async def test_a_file_is_recorded_at_its_own_pace(tmp_path: Path) -> None:
    """A clip of ours, recorded as a camera: the same pictures, stamps and key frames, as fast as they were made."""
    units = encode(60, width=320, height=240, gop=20)
    server = CameraServer({"gate": ListFeed([unit.nals for unit in units], fps=FPS, at_end="close")}, port=0)
    await server.start()
    try:
        settings = {"url": server.urls["gate"], "reconnect_min": "30s"}
        async with recording(tmp_path / "first", {"gate": settings}) as gateway:
            await until(lambda: gateway.statistics("gate")["access_units"] == len(units))
        clip = tmp_path / "clip.mp4"
        gateway.stream("gate").export(clip)
    finally:
        await server.stop()
    began = asyncio.get_running_loop().time()
    async with recording(tmp_path / "second", {"clip": {"url": clip.as_uri(), "reconnect_min": "30s"}}) as gateway:
        await until(lambda: gateway.statistics("clip")["state"] == "closed")
        took_s = asyncio.get_running_loop().time() - began
        assert gateway.statistics("clip")["codec"] == "h264"
    assert took_s > (len(units) - 1) / FPS
    records = pictures(gateway.stream("clip"))

    def slices(nals: list[bytes]) -> list[bytes]:
        return [each for each in nals if nal.H264.type_of(each) in (1, 5)]

    assert [slices(nal.split(record.value or b"")) for record in records] == [slices(list(u.nals)) for u in units]
    assert ["keyframe" in headers(record) for record in records] == [unit.key for unit in units]
    stamps = [int(headers(record)["pts"]) for record in records]
    assert {b - a for a, b in itertools.pairwise(stamps)} == {90_000 // FPS}
    assert sum(1 for _ in gateway.stream("clip").frames()) == len(units)


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Is called that."""
    async with recording(tmp_path / "data", {"clip": {"url": (tmp_path / "no.mp4").as_uri()}}) as gateway:
        await until(lambda: gateway.statistics("clip")["state"] == "not_found")


async def test_a_device_that_is_not_there_or_is_no_camera(tmp_path: Path) -> None:
    """Each is called that, and tried again: a USB camera may be plugged in later."""
    cameras = {"gone": {"url": "v4l2:///dev/video-none"}, "null": {"url": "v4l2:///dev/null?size=640x480&fps=30"}}
    async with recording(tmp_path / "data", cameras) as gateway:
        await until(lambda: gateway.statistics("gone")["state"] == "not_found")
        await until(lambda: gateway.statistics("null")["state"] == "unsupported")
        assert gateway.statistics("null")["last_error"] == "this device is no camera (it does not speak V4L2)"


async def test_images_over_http(tmp_path: Path) -> None:
    """Byte for byte, without the stamps that libav makes up for them."""
    images = [cv2.imencode(".jpg", np.full((48, 64, 3), shade, np.uint8))[1].tobytes() for shade in range(0, 250, 5)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n")
        for image in images:
            head = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(image)
            writer.write(head + image + b"\r\n")
            await asyncio.sleep(0.02)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/video.mjpg"
    async with server, recording(tmp_path, {"gate": {"url": url, "reconnect_min": "30s"}}) as gateway:
        await until(lambda: gateway.statistics("gate")["last_error"])
        assert gateway.statistics("gate")["last_error"] == "the camera broke the connection"
        statistics = gateway.statistics("gate")
    assert (statistics["codec"], statistics["width"], statistics["height"]) == ("jpeg", 64, 48)
    records = pictures(gateway.stream("gate"))
    assert [record.value for record in records] == images
    assert not any("pts" in headers(record) for record in records)


async def test_many_silent_cameras_are_left_together(tmp_path: Path) -> None:
    """Each has a thread that waits for libav, which cannot be interrupted: all are waited for at the same time."""
    going_on = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await going_on.wait()
        writer.close()

    count = 30
    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"rtsp://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    cameras = {f"c-{n}": {"url": url, "engine": "pyav", "open_timeout": "60s"} for n in range(count)}
    async with server:
        async with recording(tmp_path, cameras) as gateway:
            sources = [gateway.app.sources[name] for name in cameras]
            with patch.object(pyav_camera, "PAUSE_TIMEOUT_S", 3_600):
                pausing = [asyncio.create_task(source.pause()) for source in sources]
                await asyncio.sleep(0.1)
                # The loop's own threads have nothing to do with it.
                async with asyncio.timeout(10):
                    assert await asyncio.to_thread(lambda: 7) == 7
                assert not any(task.done() for task in pausing)
                going_on.set()
                await asyncio.gather(*pausing)
