"""libav's RTP muxer as a packetizer that is not ours: encodes pictures and gives the packets it sends, interleaved."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

from tests.support.rtp_packets import FRAME, interleaved

WIDTH, HEIGHT = 320, 240
RECEIVE_BYTES = 2**21


@dataclass
class Encoded:
    """What went into the muxer, and what came out."""

    values: list[bytes] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    """RTP on channel 0, RTCP on channel 1."""


@contextmanager
def _sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two UDP sockets on an even port and the next."""
    for _ in range(1_000):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rtp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rtcp,
        ):
            rtp.bind(("127.0.0.1", 0))
            port = rtp.getsockname()[1]
            if port % 2:
                continue
            try:
                rtcp.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            for each in (rtp, rtcp):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
                each.setblocking(False)
            yield rtp, rtcp
            return
    raise RuntimeError("no two free ports in a row")


def _waiting(each: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield each.recv(65_536)
        except BlockingIOError:
            return


def encode(encoder: str, options: dict[str, str], *, pictures: int = 30, pixels: str = "yuv420p") -> Encoded:
    """A moving noise, as access units and as RTP packets."""
    noise = np.random.default_rng(1).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    noise = noise.repeat(8, axis=0).repeat(8, axis=1)
    found = Encoded()
    with (
        _sockets() as (rtp, rtcp),
        av.open(f"rtp://127.0.0.1:{rtp.getsockname()[1]}?pkt_size=1200", "w", format="rtp") as muxer,
    ):
        stream = muxer.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        stream.codec_context.thread_count = (
            1  # with more, libav's JPEG has restart intervals, and does not say so in RTP
        )
        for number in (*range(pictures), None):
            frame = None
            if number is not None:
                frame = av.VideoFrame.from_ndarray(np.roll(noise, number * 4, axis=1), format="rgb24")
                frame.pts, frame.time_base = number * FRAME, Fraction(1, 90_000)
            for packet in stream.encode(frame):
                found.values.append(bytes(packet))
                found.keys.append(bool(packet.is_keyframe))
                assert packet.pts is not None
                assert packet.time_base is not None
                found.ticks.append(int(packet.pts * packet.time_base * 90_000))
                muxer.mux(packet)
                found.frames += [interleaved(data) for data in _waiting(rtp)]
                found.frames += [interleaved(data, 1) for data in _waiting(rtcp)]
    return found
