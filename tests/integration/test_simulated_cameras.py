"""The simulated cameras beside libav's RTSP client, which shares no code with them: what is sent is what comes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import pytest

from gateway import nal
from gateway.simulate.camera import CameraServer, Clip, LiveFeed, loop_cameras
from gateway.simulate.clips import make_clip
from gateway.simulate.coded import digest
from gateway.simulate.journal import JournalFile, read_journal
from tests.rtsp_client import RtspClient

LIBAV_NAMES = {"h264": "h264", "h265": "hevc", "jpeg": "mjpeg"}


@lru_cache(maxsize=8)
def clip(codec: str, **options: Any) -> Clip:
    return make_clip("cam", width=320, height=240, fps=100, seconds=0.2, gop_s=0.1, codec=codec, **options)


@asynccontextmanager
async def serving(cameras: Any, **options: Any) -> AsyncIterator[CameraServer]:
    server = CameraServer(cameras, port=0, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[RtspClient]:
    client = await RtspClient.connect(url)
    try:
        yield client
    finally:
        await client.close()


def demux(url: str, count: int) -> tuple[str, list[tuple[bytes, int | None]]]:
    """(libav's name of the codec, (bytes, time stamp) of so many packets)."""
    with av.open(url, options={"rtsp_transport": "tcp"}, timeout=(10, 10)) as container:
        stream = container.streams.video[0]
        packets = []
        for packet in container.demux(stream):
            packets.append((bytes(packet), packet.pts))
            if len(packets) == count:
                break
        return stream.codec_context.name, packets


async def played(server: CameraServer, query: str, count: int = 25) -> tuple[str, list[tuple[bytes, int | None]]]:
    return await asyncio.to_thread(demux, server.urls["cam"] + query, count)


@pytest.mark.parametrize(
    "query", ["", "?aud=1&aggregate=1&mtu=500", "?chunk=777", "?audio=1", "?control=absolute&sprop=0"]
)
@pytest.mark.parametrize("codec", ["h264", "h265", "jpeg"])
async def test_libav_sees_what_the_journal_says(codec: str, query: str) -> None:
    """Each access unit hashes to what was written down, in every codec and manner of sending."""
    if codec == "jpeg" and query.startswith("?aud"):
        query = "?mtu=500"
    async with serving(loop_cameras(["cam"], clip(codec)), journal=1000) as server:
        name, packets = await played(server, query)
        assert name == LIBAV_NAMES[codec]
        sent = [each.digest for each in server.journal]
        values = [data if codec == "jpeg" else nal.join(nal.split(data)) for data, _ in packets]
        assert [digest(codec, value) for value in values] == sent[: len(values)]
        assert {each.lost for each in server.journal} == {0}


async def test_b_frames_are_sent_in_the_order_of_decoding() -> None:
    """Time stamps step back, and libav gives them as they were given."""
    async with serving(loop_cameras(["cam"], clip("h264", b_frames=2)), journal=1000) as server:
        _, packets = await played(server, "?rtp=1000000")
        stamps = [stamp for _, stamp in packets[1:]]
        sent = [each.timestamp for each in server.journal][1 : len(packets)]
        assert [a - stamps[0] for a in stamps if stamps[0] is not None and a is not None] == [a - sent[0] for a in sent]
        assert sent != sorted(sent)


@pytest.mark.parametrize("codec", ["h264", "h265", "jpeg"])
async def test_parameter_sets_that_flap_can_be_decoded(codec: str) -> None:
    """switch=1: the size changes with every group of pictures, and each decodes to the size it has."""

    def sizes(url: str) -> set[tuple[int, int]]:
        with av.open(url, options={"rtsp_transport": "tcp"}, timeout=(10, 10)) as container:
            frames = container.decode(video=0)
            return {(frame.width, frame.height) for frame, _ in zip(frames, range(40), strict=False)}

    async with serving(loop_cameras(["cam"], clip(codec, alternative=True))) as server:
        query = "?switch=1" if codec != "jpeg" else "?switch=5"
        assert await asyncio.to_thread(sizes, server.urls["cam"] + query) == {(320, 240), (160, 120)}


@pytest.mark.parametrize("kind", ["basic", "md5", "md5-qop"])
async def test_libav_can_authenticate(kind: str) -> None:
    """The kinds that libav knows; a nonce that becomes stale is replaced."""
    async with serving(
        loop_cameras(["cam"], clip("h264")), username="u", password="p w", authentication_kind=kind, nonce_uses_max=2
    ) as server:
        url = server.urls["cam"].replace("rtsp://", "rtsp://u:p%20w@")
        _, packets = await asyncio.to_thread(demux, url, 5)
        assert len(packets) == 5
        assert server.statistics()["unauthorized"] == 0


@pytest.mark.parametrize("codec", ["h265", "jpeg"])
async def test_a_live_camera_of_every_codec(codec: str) -> None:
    """Drawn and encoded while it is watched; H.264 is what the other tests have."""
    async with serving({"cam": LiveFeed("cam", width=320, height=240, fps=20, codec=codec)}) as server:
        name, packets = await played(server, "", 5)
        assert (name, len(packets)) == (LIBAV_NAMES[codec], 5)


async def test_the_journal_file_tells_all_cameras_apart(tmp_path: Path) -> None:
    """One line for every access unit that any of them sent, readable while they play."""
    path = tmp_path / "journal"
    cameras = loop_cameras(["cam", "other"], clip("h264"))
    async with serving(cameras, journal=1000, journal_file=JournalFile(path)) as server:
        await played(server, "?loss=10&mtu=300&seed=3")
        await asyncio.to_thread(demux, server.urls["other"], 10)
    lines = list(read_journal(path))
    assert {line.camera for line in lines} == {"cam", "other"}
    assert [(line.digest, line.lost, line.timestamp) for line in lines] == [
        (each.digest, each.lost, each.timestamp) for each in server.journal
    ]
    assert sum(line.lost for line in lines) == server.statistics()["packets_lost"] > 0


async def test_redirects_lead_to_the_camera() -> None:
    """redirect=2: two replies 302, each with a place to go to."""
    async with serving(loop_cameras(["cam"], clip("h264"))) as server:
        url = server.urls["cam"] + "?redirect=2&seed=1"
        for left in (1, 0):
            async with client_of(url) as client:
                reply = await client.ask("DESCRIBE")
            assert reply.status == 302
            url = reply.headers["location"]
            assert url == f"{server.urls['cam']}?redirect={left}&seed=1"
        async with client_of(url) as client:
            assert (await client.ask("DESCRIBE")).status == 200


async def test_a_fault_that_is_none_is_refused_with_its_reason() -> None:
    """400, and a sentence for whoever mistyped it; what a live camera cannot do is said, too."""
    cameras = {**loop_cameras(["cam"], clip("h264")), "live": LiveFeed("live", width=160, height=120)}
    async with serving(cameras) as server:
        for url, said in (
            (server.urls["cam"] + "?lost=1", b"'lost' is no fault"),
            (server.urls["live"] + "?switch=1", b"a loop"),
        ):
            client = await RtspClient.connect(url)
            reply = await client.ask("DESCRIBE")
            await client.close()
            assert reply.status == 400
            assert said in reply.body


async def test_replies_come_late_and_a_frozen_camera_sends_none() -> None:
    """delay= holds back every reply; after freeze= the connection stays, and nothing comes any more."""
    async with serving(loop_cameras(["cam"], clip("h264"))) as server:
        async with client_of(server.urls["cam"] + "?delay=0.2&freeze=3") as client:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await play(client)
            assert loop.time() - began >= 0.6
            marked = 0
            while marked < 3:
                channel, data = await client.next_frame()
                marked += channel == 0 and bool(data[1] & 0x80)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.ask("OPTIONS")
            assert server.statistics()["connections"] == 1


async def test_the_server_asks_and_takes_answers() -> None:
    """text=1: a request between the packets; the client's answer ends nothing."""
    async with serving(loop_cameras(["cam"], clip("h264"))) as server:
        async with client_of(server.urls["cam"] + "?text=1") as client:
            await play(client)
            async with asyncio.timeout(10):
                await client.reader.readuntil(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")
                client.writer.write(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n")
                await client.reader.readuntil(b"CSeq: 2\r\n\r\n")
        assert server.statistics()["answers_received"] == 1


async def play(client: RtspClient) -> None:
    """As `setup_and_play`, for a URL that has a query."""
    assert (await client.ask("DESCRIBE")).status == 200
    base = client.url.partition("?")[0]
    reply = await client.ask("SETUP", f"{base}/trackID=0", Transport="RTP/AVP/TCP;unicast;interleaved=0-1")
    assert (await client.ask("PLAY", Session=reply.headers["session"].partition(";")[0])).status == 200
