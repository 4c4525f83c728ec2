"""The RTP receiver alone, from received bytes to access units: `python -m pytest bench/micro --benchmark-only`."""

from __future__ import annotations

import os
from typing import Any

import pytest
from gateway_native.rtp import Receiver

from tests.support.rtp_packets import T0, packetize_h264, packetize_h265, packets

# 1080p25 at 4 Mbit/s, one second of it: a key frame and what follows.
SIZES = [100_000, *[17_000] * 24]
# What a socket gives at once when many cameras share a tick.
PIECE_BYTES = 20_000


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_receive_a_second(benchmark: Any, codec: str) -> None:
    """A second of one camera in pieces of 20 kB; the time is CPU per camera-second, without the socket and the ring."""
    heads = {"h264": (b"\x65\x88", b"\x41\x9a"), "h265": (b"\x26\x01\xaf", b"\x02\x01\xd0")}[codec]
    packetize = {"h264": packetize_h264, "h265": packetize_h265}[codec]
    sent = packets([packetize([heads[number > 0] + os.urandom(size)]) for number, size in enumerate(SIZES)])
    data = b"".join(each.frame() for each in sent)
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    sets = {"h264": [b"\x67\x42\x00\x1f", b"\x68\xce"], "h265": [b"\x42\x01\x01", b"\x44\x01\xc0"]}[codec]

    def receive() -> int:
        receiver = Receiver(codec, parameter_sets=sets)
        return sum(len(receiver.feed(piece, T0)) for piece in pieces)

    assert benchmark(receive) == len(SIZES)
