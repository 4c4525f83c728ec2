"""Properties of the RTP receiver, whatever a camera sends, loses, repeats, and however the connection is cut."""

from __future__ import annotations

from collections.abc import Sequence

from gateway_native.rtp import Receiver, Unit
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import nal
from tests.fuzz import target_rtp
from tests.fuzz.fuzz_rtp import streams
from tests.support.rtp_packets import (
    FRAME,
    PAYLOAD_TYPE,
    T0,
    Packet,
    aggregate_h265,
    packetize_h264,
    packetize_h265,
    packets,
    pieces,
    stap_a,
)

# Without zeros: encoders leave no start code in a NAL unit, and none ends in zero.
BODY = st.binary(min_size=1, max_size=300).map(lambda body: body.replace(b"\x00", b"\x01"))
# Sets of two ids each: an exp-golomb 0 or 1 leads the PPS; in the SPS it follows three bytes.
SPS = st.builds(lambda number, body: b"\x67\x42\x00\x1f" + (b"\x80", b"\x40")[number] + body, st.integers(0, 1), BODY)
PPS = st.builds(lambda number, body: b"\x68" + (b"\x80", b"\x40")[number] + body, st.integers(0, 1), BODY)
SEI = BODY.map(lambda body: b"\x06\x05" + body[:200])
SLICE = BODY.map(lambda body: b"\x41\x9a" + body)
LATER_SLICE = BODY.map(lambda body: b"\x41\x4a" + body)
IDR = BODY.map(lambda body: b"\x65\x88" + body)


@st.composite
def access_units(draw: st.DrawFn) -> list[bytes]:
    """One of H.264: perhaps a delimiter, sets and SEI, then slices."""
    found = [b"\x09\xf0"] if draw(st.booleans()) else []
    found += draw(st.lists(SPS, max_size=2)) + draw(st.lists(PPS, max_size=2)) + draw(st.lists(SEI, max_size=1))
    found.append(draw(st.one_of(IDR, SLICE)))
    return found + draw(st.lists(LATER_SLICE, max_size=2))


STREAMS = st.lists(access_units(), min_size=1, max_size=6)
FIRST = [b"\x67\x42\x00\x1f\x80\x01", b"\x68\x80\x01", b"\x65\x88first"]


def payloads(nals: Sequence[bytes], size: int, *, aggregated: bool) -> list[bytes]:
    """Small NAL units may share a packet."""
    small = [each for each in nals if len(each) < size // 2]
    if aggregated and len(small) > 1 and nals[: len(small)] == small:
        return [stap_a(small), *packetize_h264(nals[len(small) :], size)]
    return packetize_h264(nals, size)


def feed(receiver: Receiver, data: bytes, cuts: Sequence[int] = ()) -> list[Unit]:
    return [unit for piece in pieces(data, cuts) for unit in receiver.feed(piece, T0)] + receiver.end()


@given(
    STREAMS,
    st.integers(40, 400),
    st.booleans(),
    st.lists(st.integers(0, 10_000), max_size=8),
    st.integers(65_500, 65_535),
    st.booleans(),
)
def test_units_are_what_was_sent(
    units: list[list[bytes]], size: int, aggregated: bool, cuts: list[int], sequence: int, markers: bool
) -> None:
    """Every access unit comes back, key frames completed as `nal.ParameterSets` would."""
    units = [FIRST, *units]
    sent = packets(
        [payloads(each, size, aggregated=aggregated) for each in units], sequence=sequence, timestamp=2**32 - 2 * FRAME
    )
    receiver = Receiver("h264", payload_type=PAYLOAD_TYPE)
    changed = [p if markers else Packet(p.payload, p.sequence, p.timestamp) for p in sent]
    found = feed(receiver, b"".join(each.frame() for each in changed), cuts)
    sets = nal.ParameterSets(nal.H264)
    expected = []
    for nals in units:
        sets.update(nals)
        expected.append(nal.join(sets.complete(nals) if nal.H264.is_key(nals) else nals))
    assert [unit.value for unit in found] == expected
    assert [unit.key for unit in found] == [nal.H264.is_key(nals) for nals in units]
    assert [unit.pts for unit in found] == [2**32 + (number - 2) * FRAME for number in range(len(units))]
    assert not any(unit.damaged for unit in found[: len(units) if markers else -1])
    assert not any(unit.lost or unit.lost_packets for unit in found)


@given(STREAMS, st.integers(40, 200), st.data())
def test_losses_are_counted_and_flagged(units: list[list[bytes]], size: int, data: st.DataObject) -> None:
    """Counted = made; what is not flagged is whole; every NAL unit is one that was sent, and no unit has another's."""
    units = [FIRST, *units, FIRST]
    sent = packets([packetize_h264(each, size) for each in units])
    middle = range(len(FIRST), len(sent) - len(FIRST))  # what comes before and behind tells of what is lost between
    gone = data.draw(st.sets(st.sampled_from(middle), max_size=len(middle)))
    again = data.draw(st.lists(st.sampled_from(range(len(sent))), max_size=3))
    receiver = Receiver("h264", payload_type=PAYLOAD_TYPE)
    kept = [each for number, each in enumerate(sent) if number not in gone]
    repeated = [each for number, each in enumerate(kept) for _ in range(1 + again.count(number))]
    found = feed(receiver, b"".join(each.frame() for each in repeated))
    assert receiver.statistics["lost_packets"] == len(gone)
    assert receiver.statistics["duplicate_packets"] == len(repeated) - len(kept)
    assert sum(unit.lost_packets for unit in found) == len(gone)
    by_time = {number * FRAME: nals for number, nals in enumerate(units)}
    for unit in found:
        nals = by_time[unit.pts]
        own = set(nals) | {each for before in units for each in before if each[0] in (0x67, 0x68)}
        carried = {each for before in units for each in before if each[0] in (0x06, 0x09)}
        assert set(nal.split(unit.value)) <= own | carried
        lost = [each for number, each in enumerate(sent) if number in gone and each.timestamp == unit.pts]
        assert unit.damaged or not lost
    recorded = {unit.pts for unit in found}
    for number in range(len(units)):
        if not any(each.unit == number for index, each in enumerate(sent) if index in gone):
            assert number * FRAME in recorded


@given(
    st.lists(st.binary(min_size=1, max_size=500), min_size=1, max_size=8),
    st.integers(20, 200),
    st.lists(st.integers(0, 9_999), max_size=6),
)
def test_h265_units_are_what_was_sent(bodies: list[bytes], size: int, cuts: list[int]) -> None:
    """Fragments and aggregates of any size."""
    sets = [b"\x40\x01\x0c", b"\x42\x01\x01" + bytes(14) + b"\x80", b"\x44\x01\xc0"]
    units = [[*sets, b"\x26\x01\x80key"], *([b"\x02\x01\x80" + body] for body in bodies)]
    sent = packets([[aggregate_h265(sets), units[0][3]], *(packetize_h265(each, size) for each in units[1:])])
    found = feed(Receiver("h265", payload_type=PAYLOAD_TYPE), b"".join(each.frame() for each in sent), cuts)
    assert [unit.value for unit in found] == [b"".join(nal.START_CODE + each for each in nals) for nals in units]
    assert not any(unit.damaged for unit in found)


SETS = {
    "h264": st.builds(lambda kind, body: bytes([kind]) + body, st.sampled_from([0x67, 0x68]), st.binary(max_size=30)),
    "h265": st.builds(
        lambda kind, body: bytes([kind, 1]) + body, st.sampled_from([0x40, 0x42, 0x44]), st.binary(max_size=100)
    ),
}


@settings(max_examples=300)
@given(st.sampled_from(["h264", "h265"]), st.data())
def test_parameter_sets_are_known_by_type_and_id(codec: str, data: st.DataObject) -> None:
    """Whatever is in them: those that a key frame is completed with are the ones that `nal.ParameterSets` knows."""
    known = data.draw(st.lists(SETS[codec], max_size=12))
    key = {"h264": b"\x65\x88key", "h265": b"\x26\x01\xafkey"}[codec]
    nals = [*data.draw(st.lists(SETS[codec], max_size=2)), key]
    sets = nal.ParameterSets(nal.CODECS[codec])
    sets.update(known)
    sets.update(nals)
    receiver = Receiver(codec, payload_type=PAYLOAD_TYPE, parameter_sets=known)
    found = feed(receiver, b"".join(each.frame() for each in packets([nals])))
    assert [unit.value for unit in found] == [nal.join(sets.complete(nals))]


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(streams())),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=6),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 40)), max_size=2),
)
def test_mutated_streams(name: str, changes: list[tuple[int, int]], removed: list[tuple[int, int]]) -> None:
    """Whatever becomes of its bytes, only the remote fault comes of it, memory is bounded, pieces change nothing."""
    data = bytearray(streams()[name])
    for at, value in changes:
        data[at % len(data)] = value
    for at, count in removed:
        start = target_rtp.OPTION_BYTES + at % len(data)
        del data[start : start + count]
    target_rtp.run(bytes(data))
