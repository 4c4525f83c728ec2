"""Few cameras are asked at a time, and none that says nothing keeps another from being asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from gateway_adapters.rtsp.failures import Failure
from gateway_adapters.rtsp.handshakes import Handshakes
from gateway_adapters.rtsp.native_session import Credentials, connect

LONG_S = 3_600.0
TIMEOUT_S = 10.0


class Silent:
    """A camera that takes every connection and counts the first requests it was sent."""

    def __init__(self) -> None:
        self.asked = 0
        self.most = 0
        self.go_on = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        self.most = max(self.most, self.asked)
        await self.go_on.wait()
        self.asked -= 1
        writer.close()


async def attempt(url: str, handshakes: Handshakes, timeout_s: float = TIMEOUT_S) -> str:
    with pytest.raises(Failure) as caught:
        await connect(url, Credentials(), timeout_s, handshakes=handshakes)
    return caught.value.state


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_no_more_than_there_are_places() -> None:
    """Twelve come at once, three are asked; each that ends makes room for the next, until all were asked."""
    camera, handshakes = Silent(), Handshakes(3, lease_s=LONG_S)
    server = await asyncio.start_server(camera, "127.0.0.1", 0)
    async with server:
        url = f"rtsp://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        waiting = [asyncio.create_task(attempt(url, handshakes)) for _ in range(12)]
        await until(lambda: camera.asked == 3)
        await asyncio.sleep(0.05)
        assert camera.asked == 3
        camera.go_on.set()
        assert await asyncio.gather(*waiting) == ["closed"] * 12
    assert camera.most <= 3


async def test_the_silent_hold_up_nobody() -> None:
    """Each has its place for a moment only: all are asked though not one of them ever answers."""
    camera, handshakes = Silent(), Handshakes(2, lease_s=0.01)
    server = await asyncio.start_server(camera, "127.0.0.1", 0)
    async with server:
        url = f"rtsp://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        waiting = [asyncio.create_task(attempt(url, handshakes)) for _ in range(40)]
        await until(lambda: camera.asked == 40)
        camera.go_on.set()
        assert await asyncio.gather(*waiting) == ["closed"] * 40


async def test_waiting_for_a_place_is_no_silence_of_the_camera() -> None:
    """The time-out goes on when the camera is asked; until then it cannot have run out."""
    camera, handshakes = Silent(), Handshakes(1, lease_s=LONG_S)
    server = await asyncio.start_server(camera, "127.0.0.1", 0)
    async with server:
        url = f"rtsp://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        first = asyncio.create_task(attempt(url, handshakes))
        await until(lambda: camera.asked == 1)
        second = asyncio.create_task(attempt(url, handshakes, timeout_s=0.2))
        await asyncio.sleep(0.5)
        assert not second.done()
        first.cancel()
        await asyncio.wait([first])
        assert await second == "timeout"
        camera.go_on.set()
        await until(lambda: camera.asked == 0)
