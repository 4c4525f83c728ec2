"""From a URL to a camera that plays, over sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_adapters.rtsp.failures import Failure
from gateway_adapters.rtsp.native_session import Credentials, Names, connect

from gateway.simulate.camera import CameraServer, ListFeed

SETS = (bytes.fromhex("6742c016"), bytes.fromhex("68ce3c80"))
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def simulated(**options: object) -> AsyncIterator[CameraServer]:
    feed = ListFeed([[*SETS, b"\x65picture"]], fps=20, repeat=0)
    server = CameraServer({"gate": feed}, port=0, **options)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[str]:
    """A server that says what it likes; gives its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"rtsp://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"


async def test_a_camera_plays_and_its_socket_is_ours() -> None:
    """After the handshake the socket brings the camera's frames and nothing else."""
    async with simulated(username="viewer", password="p:w") as server:
        connected = await connect(server.urls["gate"], Credentials("viewer", "p:w"), 5)
        assert connected.client.playing is not None
        assert connected.client.playing.track.parameter_sets == SETS
        data = connected.rest
        while len(data) < 100:
            data += await asyncio.get_running_loop().sock_recv(connected.socket, 4096)
        assert data[0:2] in (b"$\x00", b"$\x01")
        connected.socket.close()
        assert list(server.requests) == ["OPTIONS", "DESCRIBE", "DESCRIBE", "SETUP", "PLAY"]


async def test_probing_leaves_no_session() -> None:
    """Asked only to describe itself a camera sets nothing up."""
    async with simulated() as server:
        connected = await connect(server.urls["gate"], Credentials(), 5, describe_only=True)
        connected.socket.close()
        assert connected.client.description is not None
        assert list(server.requests) == ["OPTIONS", "DESCRIBE"]


@pytest.mark.parametrize(
    ("path", "credentials", "state"),
    [
        ("gate", Credentials(), "unauthorized"),
        ("gate", Credentials("viewer", "wrong"), "unauthorized"),
        ("other", Credentials("viewer", "right"), "not_found"),
    ],
)
async def test_a_camera_that_refuses(path: str, credentials: Credentials, state: str) -> None:
    """Each refusal has its state, and no text has the password."""
    async with simulated(username="viewer", password="right") as server:
        with pytest.raises(Failure) as caught:
            await connect(server.urls["gate"].replace("gate", path), credentials, 5)
    assert caught.value.state == state
    assert "right" not in str(caught.value) + repr(credentials)


async def test_nobody_listens_and_nobody_is_called_that() -> None:
    """A closed port and an unknown name are told apart."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Failure) as refused:
        await connect(f"rtsp://127.0.0.1:{port}/x", Credentials(), 5)
    with pytest.raises(Failure) as unknown:
        await connect("rtsp://no-such-camera.invalid/x", Credentials(), 5)
    assert (refused.value.state, unknown.value.state) == ("refused", "unreachable")


async def test_silence_has_an_end_and_says_what_was_awaited() -> None:
    """A server that never answers, and one that stops in the middle."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n")
        await reader.read()

    for talk, method in ((silent, "OPTIONS"), (half, "DESCRIBE")):
        async with talking(talk) as url:
            with pytest.raises(Failure, match=f"no answer to {method} within 0.2 s") as caught:
                await connect(url, Credentials(), 0.2)
            assert caught.value.state == "timeout"


async def test_a_server_that_hangs_up_or_is_another() -> None:
    """Closing instead of answering is "closed"; another protocol is "unsupported"."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    for talk, state in ((hang_up, "closed"), (web, "unsupported")):
        async with talking(talk) as url:
            with pytest.raises(Failure) as caught:
                await connect(url, Credentials(), 5)
            assert caught.value.state == state


async def test_redirects_are_followed_and_have_an_end() -> None:
    """To the camera's real address; not round and round."""
    async with simulated(username="viewer", password="pw") as server:
        target = server.urls["gate"]

        async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"RTSP/1.0 302 Found\r\nCSeq: 1\r\nLocation: {target}\r\n\r\n".encode())

        async with talking(elsewhere) as url:
            seen: list[str] = []
            connected = await connect(url, Credentials("viewer", "pw"), 5, on_redirect=seen.append)
            connected.socket.close()
            assert (connected.url, seen) == (target, [target])
            target = url
            with pytest.raises(Failure, match="redirects over 5 times"):
                await connect(url, Credentials(), 5)


async def test_no_password_goes_to_another_host() -> None:
    """A redirect cannot make the gateway authenticate elsewhere."""
    async with simulated(username="viewer", password="pw") as server:
        target = server.urls["gate"]

        async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"RTSP/1.0 302 Found\r\nCSeq: 1\r\nLocation: {target}\r\n\r\n".encode())

        async with talking(elsewhere) as url:
            with pytest.raises(Failure, match="gets no password") as caught:
                await connect(url.replace("127.0.0.1", "localhost"), Credentials("viewer", "pw"), 5)
            assert caught.value.state == "unauthorized"
        assert server.statistics()["unauthorized"] == 0  # no answer, not even a wrong one, was sent there


async def test_a_name_server_that_is_away_keeps_no_known_camera_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name stood for is tried when nobody tells any more; an unknown name is unreachable."""
    names = Names()
    known = await names.look_up("localhost", 554)

    async def fail(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(Names, "_ask", fail)
    assert await names.look_up("localhost", 554) == known
    with pytest.raises(Failure, match="Temporary failure") as caught:
        await names.look_up("localhost", 555)
    assert caught.value.state == "unreachable"
    names.close()


async def test_names_that_nobody_tells_keep_the_loops_own_threads_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name server away every look-up hangs; what else the gateway does on threads goes on."""
    names, hanging = Names(), threading.Event()
    ask = socket.getaddrinfo

    def hang(host: str, *arguments: Any, **options: Any) -> Any:
        if options.get("flags"):
            return ask(host, *arguments, **options)
        hanging.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    asking = [asyncio.create_task(names.look_up(f"camera-{n}.invalid", 554)) for n in range(100)]
    await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(lambda: 7) == 7
        assert not any(task.done() for task in asking)
    finally:
        hanging.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert {str(each) for each in found} == {"the host cannot be found (Temporary failure in name resolution)"}
    names.close()
