"""What is fuzzed: one camera's connection that gets arbitrary bytes, once as they are and once in pieces.

The first bytes of an input choose codec and cuts; the rest is what the camera sends. Whatever it is, only RemoteFault
may come of it, memory stays bounded, pieces change nothing, and no unit says more than the counters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway_native.rtp import CODECS, Receiver, RemoteFault, Unit

from gateway import nal
from tests.support.rtp_packets import T0, pieces

OPTION_BYTES = 4
# Blocks are twice what is in them at most: an access unit, and a frame of 64 KiB.
UNIT_BYTES_MAX = 100_000
MEMORY_BYTES_MAX = 2 * UNIT_BYTES_MAX + 2 * 2**16 + 2**12
# Bits of the first option byte, besides the codec.
SETS, ANY_TYPE, SIZE = 4, 8, 16
PARAMETER_SETS = {
    "h264": (b"\x67\x42\x00\x1f", b"\x68\xce"),
    "h265": (b"\x42\x01\x01\x01", b"\x44\x01\xc1"),
    "jpeg": (),
}


@dataclass(frozen=True)
class Outcome:
    """All that can be seen of a connection from outside."""

    units: tuple[Unit, ...]
    texts: tuple[bytes, ...]
    fault: int | None
    report: bytes
    statistics: dict[str, int]


def receiver(option: int) -> Receiver:
    codec = CODECS[option % 4 % len(CODECS)]
    return Receiver(
        codec,
        payload_type=-1 if option & ANY_TYPE else 96,
        parameter_sets=PARAMETER_SETS[codec] if option & SETS else (),
        jpeg_size=(640, 480) if option & SIZE else (0, 0),
        unit_bytes_max=UNIT_BYTES_MAX,
    )


def connection(option: int, data: Iterable[bytes]) -> Outcome:
    """One that receives these pieces."""
    each = receiver(option)
    units: list[Unit] = []
    fault = None
    for piece in data:
        try:
            units += each.feed(piece, T0)
        except RemoteFault as error:
            fault = error.number
        assert each.memory_bytes <= MEMORY_BYTES_MAX
    report = each.report(T0)[12:]  # without our own SSRC
    units += each.end()
    assert fault is not None or len(report) in {0, 44}
    return Outcome(tuple(units), tuple(each.texts()), fault, report[:24], each.statistics)


def check_units(option: int, outcome: Outcome) -> None:
    """What no camera can change."""
    found = outcome.statistics
    assert sum(unit.damaged for unit in outcome.units) <= found["damaged_units"]
    assert sum(unit.lost_packets for unit in outcome.units) <= found["lost_packets"]
    assert not outcome.units or outcome.units[0].run_begins
    for unit in outcome.units:
        assert unit.value
        assert len(unit.value) <= UNIT_BYTES_MAX + sum(4 + len(each) for each in PARAMETER_SETS["h265"]) + 2**16
        if CODECS[option % 4 % len(CODECS)] == "jpeg":
            assert unit.value.startswith(b"\xff\xd8")
            assert unit.value.endswith(b"\xff\xd9")
        else:
            assert unit.value.startswith(nal.START_CODE)


def run(data: bytes) -> None:
    """One input. AssertionError: something is wrong."""
    if len(data) < OPTION_BYTES:
        return
    option, cuts, sent = data[0], data[1:OPTION_BYTES], data[OPTION_BYTES:]
    whole = connection(option, [sent])
    check_units(option, whole)
    cut = connection(option, pieces(sent, [each * len(sent) // 256 for each in cuts]))
    assert cut == whole, "pieces change the outcome"
