"""The simulated camera as a client meets it on a socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway import nal
from gateway.errors import SourceError
from gateway.simulate.camera import CameraServer, ListFeed, LiveFeed
from gateway.simulate.rtp import depacketize
from tests.pictures import encode
from tests.rtsp_client import RtspClient


@asynccontextmanager
async def serving(cameras: Any, **options: Any) -> AsyncIterator[CameraServer]:
    server = CameraServer(cameras, port=0, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client_of(server: CameraServer, camera: str = "cam", **options: str) -> AsyncIterator[RtspClient]:
    client = await RtspClient.connect(server.urls[camera], **options)
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def receive(client: RtspClient, count: int) -> list[tuple[int, list[bytes]]]:
    """(RTP time stamp, NAL units) of so many access units."""
    units: list[tuple[int, list[bytes]]] = []
    payloads: list[bytes] = []
    async with asyncio.timeout(20):
        while len(units) < count:
            channel, data = await client.next_frame()
            if channel != 0:
                continue
            _, second, _, timestamp, _ = struct.unpack(">BBHII", data[:12])
            payloads.append(data[12:])
            if second & 0x80:
                units.append((timestamp, depacketize(payloads)))
                payloads = []
    return units


def feed(**options: Any) -> ListFeed:
    return ListFeed([unit.nals for unit in encode(30, width=320, height=240)], fps=200, **options)


async def test_given_access_units_arrive_byte_for_byte() -> None:
    """From the first to the last, in order, with the stamps of the list."""
    units = [unit.nals for unit in encode(30, width=320, height=240)]
    async with serving({"cam": feed()}, journal=100) as server, client_of(server) as client:
        await client.setup_and_play()
        received = await receive(client, 30)
        assert [tuple(nals) for _, nals in received] == units
        assert [(stamp - received[0][0]) % 2**32 for stamp, _ in received] == [n * 450 for n in range(30)]
        assert [sent.nals for sent in server.journal] == units


async def test_every_client_gets_the_list_from_its_beginning() -> None:
    """Playing is per client: one that comes later misses nothing."""
    async with serving({"cam": feed(repeat=0)}) as server:
        async with client_of(server) as first, client_of(server) as second:
            await first.setup_and_play()
            await receive(first, 3)
            await second.setup_and_play()
            assert nal.H264.is_key((await receive(second, 1))[0][1])


async def test_the_end_of_the_list_is_a_goodbye_or_silence() -> None:
    """at_end="close": RTCP BYE, then the connection ends."""
    async with serving({"cam": feed(at_end="close")}) as server, client_of(server) as client:
        await client.setup_and_play()
        await receive(client, 30)
        async with asyncio.timeout(20):
            channel, data = await client.next_frame()
            while data[1] != 203:
                channel, data = await client.next_frame()
            assert channel == 1
            assert await client.reader.read() == b""


async def test_a_live_camera_begins_with_a_key_frame_for_everybody() -> None:
    """Each new client gets parameter sets and a key frame at once, from one encoder for all."""
    async with serving({"cam": LiveFeed("cam", width=160, height=120, fps=60, gop_s=600)}) as server:
        async with client_of(server) as first, client_of(server) as second:
            await first.setup_and_play()
            await receive(first, 3)
            await second.setup_and_play()
            _stamp, nals = (await receive(second, 1))[0]
            assert [nal.H264.type_of(each) for each in nals if nal.H264.type_of(each) != 6] == [7, 8, 5]
        await until(lambda: server.statistics()["connections"] == 0)
        encoded = server.statistics()["frames_encoded"]
        assert encoded > 0
        await asyncio.sleep(0.2)
        assert server.statistics()["frames_encoded"] <= encoded + 1, "nobody watches, nothing is encoded"


async def test_the_sdp_is_enough_to_decode() -> None:
    """A decoder needs the parameter sets before the first picture: they are in the SDP of a live camera, too."""
    async with serving(["cam"], width=160, height=120) as server, client_of(server) as client:
        reply = await client.ask("DESCRIBE")
        assert reply.headers["content-type"] == "application/sdp"
        assert b"sprop-parameter-sets=Z0" in reply.body


async def test_digest_is_asked_and_checked() -> None:
    """Without the password or with a wrong one there is 401; OPTIONS is free; the right one opens."""
    async with serving({"cam": feed()}, username="viewer", password="se cret") as server:
        async with client_of(server) as client:
            assert (await client.ask("OPTIONS")).status == 200
            reply = await client.ask("DESCRIBE")
            assert reply.status == 401
            assert reply.headers["www-authenticate"].startswith("Digest ")
        async with client_of(server, username="viewer", password="wrong") as client:
            assert (await client.ask("DESCRIBE")).status == 401
        assert server.statistics()["unauthorized"] == 1
        async with client_of(server, username="viewer", password="se cret") as client:
            await client.setup_and_play()
            assert len(await receive(client, 2)) == 2


async def test_refusals_have_their_status() -> None:
    """UDP 461, unknown paths 404, unknown methods 501, a wrong session 454, PLAY before SETUP 455."""
    async with serving({"cam": feed()}) as server, client_of(server) as client:
        tcp = "RTP/AVP/TCP;unicast;interleaved=0-1"
        assert (await client.ask("DESCRIBE", client.url + "x")).status == 404
        assert (await client.ask("SETUP", client.url, Transport="RTP/AVP;unicast;client_port=5000-5001")).status == 461
        assert (await client.ask("SETUP", client.url + "/trackID=7", Transport=tcp)).status == 404
        assert (await client.ask("RECORD")).status == 501
        assert (await client.ask("PLAY")).status == 455
        assert (await client.ask("SETUP", client.url, Transport=tcp)).status == 200
        assert (await client.ask("PLAY", Session="nonsense")).status == 454
        assert (await client.ask("SETUP", client.url, Transport=tcp)).status == 459


async def test_teardown_ends_the_playing_and_the_connection_stays() -> None:
    """After its reply no more pictures come, and a new session can begin."""
    async with serving({"cam": feed(repeat=0)}, journal=1) as server, client_of(server) as client:
        await client.setup_and_play()
        await receive(client, 3)
        assert (await client.ask("TEARDOWN", Session=client.session)).status == 200
        client.frames.clear()
        assert server.statistics()["watchers"] == 0
        await client.setup_and_play()
        assert len(await receive(client, 1)) == 1


async def test_sender_reports_map_the_clocks() -> None:
    """The first comes with the first access unit and names its stamp and wall clock."""
    async with serving({"cam": feed()}, journal=10) as server, client_of(server) as client:
        await client.setup_and_play()
        stamp = None
        async with asyncio.timeout(20):
            while True:
                channel, data = await client.next_frame()
                if channel == 0 and stamp is None:
                    stamp = struct.unpack(">BBHII", data[:12])[3]
                if channel == 1:
                    break
        seconds, fraction, rtp = struct.unpack(">III", data[8:20])
        wall_ns = (seconds - 2_208_988_800) * 10**9 + (fraction * 10**9 >> 32)
        assert rtp == stamp
        assert abs(wall_ns - server.journal[0].wall_ns) < 10


async def test_a_client_that_does_not_read_is_dropped() -> None:
    """What waits for it is bounded; others play on."""
    fat = ListFeed([(b"\x67\x42\x00\x1f", b"\x68\xce", b"\x65" + bytes([7]) * 200_000)], fps=100, repeat=0)
    async with serving({"cam": fat}, write_buffer_bytes_max=100_000) as server:
        async with client_of(server) as good:
            bad = socket.create_connection(("127.0.0.1", server.port))
            bad.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            try:
                url = server.urls["cam"]
                bad.sendall(
                    f"SETUP {url} RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n\r\n".encode()
                )
                session = (await asyncio.to_thread(bad.recv, 4096)).decode().partition("Session: ")[2].partition(";")[0]
                bad.sendall(f"PLAY {url} RTSP/1.0\r\nCSeq: 2\r\nSession: {session}\r\n\r\n".encode())
                await until(lambda: server.statistics()["slow_clients_dropped"] == 1)
            finally:
                bad.close()
            await good.setup_and_play()
            assert len(await receive(good, 3)) == 3


async def test_a_client_that_says_nothing_is_dropped() -> None:
    """The session time-out is announced and kept; saying anything prolongs it."""
    async with serving({"cam": feed(repeat=0)}, session_timeout_s=1) as server, client_of(server) as client:
        await client.setup_and_play()
        async with asyncio.timeout(20):
            await client.reader.read()  # ends when the server closes
        assert server.statistics()["sessions_timed_out"] == 1


async def test_rubbish_ends_one_connection_with_its_status() -> None:
    """The others do not notice."""
    async with serving({"cam": feed(repeat=0)}) as server, client_of(server) as good:
        await good.setup_and_play()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"RTSP/1.0 400 ")
        writer.close()
        assert len(await receive(good, 3)) == 3


async def test_a_taken_port_is_said() -> None:
    """One sentence with address and cause, and no thread left behind."""
    async with serving({"cam": feed()}) as server:
        other = CameraServer(["cam"], port=server.port, width=160, height=120)
        with pytest.raises(SourceError, match=f"cannot listen on 127.0.0.1:{server.port}: another program"):
            await other.start()


@pytest.mark.parametrize(
    "options",
    [
        {"cameras": 0},
        {"cameras": ["a/b"]},
        {"cameras": ["ok"], "width": 161},
        {"cameras": ["ok"], "fps": 0},
        {"cameras": ["ok"], "username": "u"},
    ],
)
def test_impossible_cameras_are_refused(options: dict[str, Any]) -> None:
    """Names, sizes and rates that cannot be are refused before anything starts."""
    with pytest.raises(SourceError):
        CameraServer(**options)
