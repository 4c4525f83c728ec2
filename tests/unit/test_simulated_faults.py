"""What a simulated camera does when its URL asks for faults: in the packets, without a socket."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway import nal
from gateway.simulate.coded import Coded
from gateway.simulate.faults import Faults, table
from gateway.simulate.feeds import AccessUnit
from gateway.simulate.rtp import depacketize
from gateway.simulate.sending import GARBAGE, Dispatch, Sending, Then
from tests.pictures import encode

SECOND_NS = 1_000_000_000
T0_NS = 1_790_000_000 * SECOND_NS


class Packet(NamedTuple):
    marker: bool
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes


def frames(data: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """(channel, packet) of everything that was sent."""
    data = bytes(data)
    while data:
        assert data[:1] == b"$", data[:20]
        length = int.from_bytes(data[2:4], "big")
        yield data[1], data[4 : 4 + length]
        data = data[4 + length :]


def rtp(data: bytes | bytearray) -> list[Packet]:
    found = []
    for channel, packet in frames(data):
        if channel == 0:
            _, second, sequence, timestamp, ssrc = struct.unpack(">BBHII", packet[:12])
            found.append(Packet(bool(second & 0x80), sequence, timestamp, ssrc, packet[12:]))
    return found


def rtcp(data: bytes | bytearray) -> list[bytes]:
    return [packet for channel, packet in frames(data) if channel == 1]


def play(query: str, count: int = 60, *, codec: str = "libx264", **options: object) -> list[Dispatch]:
    """What `count` access units at 25 per second come to; key frames of some kilobytes every tenth."""
    units = encode(30, width=320, height=240, gop=10, codec=codec)
    name = "h265" if codec == "libx265" else "h264"
    clock = iter(range(count))
    sending = Sending(Faults.parse(query), (0, 1), now_s=lambda: next(clock) / 25, **options)  # type: ignore[arg-type]
    coded = [Coded.of(unit.nals, name) for unit in units]
    return [sending.unit(AccessUnit(n, coded[n % 30], n * 3600, T0_NS + n * SECOND_NS // 25)) for n in range(count)]


def test_without_faults_every_access_unit_arrives_as_it_is() -> None:
    """The oracle of the others: sequence numbers run on, one marker each, stamps as given, bytes as given."""
    sent = play("mtu=200&seq=65500&rtp=4294900000")
    numbers = [packet.sequence for each in sent for packet in rtp(each.data)]
    assert numbers == [(65_500 + n) % 65_536 for n in range(len(numbers))]
    for number, each in enumerate(sent):
        found = rtp(each.data)
        assert [packet.marker for packet in found] == [False] * (len(found) - 1) + [True]
        assert {packet.timestamp for packet in found} == {(4_294_900_000 + number * 3600) % 2**32}
        assert each.shaped is not None
        assert depacketize([packet.payload for packet in found]) == list(each.shaped.nals)
        assert (each.packets, each.lost) == (len(found), 0)


@pytest.mark.parametrize("query", ["loss=5&mtu=200", "loss=5&mtu=200&burst=7", "loss=100"])
def test_losses_are_what_the_journal_says(query: str) -> None:
    """Packets that are missing leave a hole in the sequence numbers, and each is counted where it is missing."""
    sent = play(query, 300)
    for each in sent:
        assert len(rtp(each.data)) == each.packets - each.lost
    total = sum(each.packets for each in sent)
    share = sum(each.lost for each in sent) / total
    assert share == 1 if query == "loss=100" else 0.02 < share < 0.1
    assert [each.lost for each in sent] == [each.lost for each in play(query, 300)], "the same seed, the same losses"
    assert [each.lost for each in sent] != [each.lost for each in play(query + "&seed=1", 300)] or share == 1


def test_packets_are_doubled_and_swapped() -> None:
    """Nothing is missing, some come twice, some after their successor."""
    twice = [packet.sequence for each in play("duplicate=10&seq=0&mtu=200") for packet in rtp(each.data)]
    assert len(set(twice)) < len(twice)
    swapped = [packet.sequence for each in play("reorder=10&seq=0&mtu=200") for packet in rtp(each.data)]
    assert len(set(swapped)) == len(swapped)
    assert swapped != sorted(swapped)
    assert max(abs(at - number) for at, number in enumerate(swapped)) <= 1


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_the_marker_on_sei_does_not_end_the_access_unit(codec: str) -> None:
    """Two markers with one time stamp: on the SEI message, and at the end."""
    kind = nal.H265 if codec == "libx265" else nal.H264
    for each in play("sei=1&aud=1&aggregate=1", 12, codec=codec):
        found = rtp(each.data)
        assert [packet.marker for packet in found].count(True) == 2
        assert found[-1].marker
        assert len({packet.timestamp for packet in found}) == 1
        assert each.shaped is not None
        nals = list(each.shaped.nals)
        assert depacketize([packet.payload for packet in found], kind) == nals
        assert kind.type_of(nals[0]) == kind.delimiter_type
        first_marked = [packet.marker for packet in found].index(True)
        assert kind.type_of(depacketize([packet.payload for packet in found[: first_marked + 1]], kind)[-1]) in (6, 39)


def test_parameter_sets_can_be_left_to_the_session_description() -> None:
    """inband=0: none in the stream, and the hash is of what was sent."""
    for each in play("inband=0", 12):
        assert each.shaped is not None
        assert nal.H264.parameter_sets(each.shaped.nals) == []
    assert play("inband=0", 1)[0].shaped.digest != play("", 1)[0].shaped.digest  # type: ignore[union-attr]


def test_parameter_sets_flap_at_key_frames() -> None:
    """switch=2: two groups of pictures of the one, two of the other."""
    other = [Coded.of(unit.nals) for unit in encode(30, width=160, height=120, gop=10)]
    sent = play("switch=2", 60, alternative=lambda index: other[index % 30])
    sizes = [nal.picture_size(nal.H264, each.shaped.nals[0]) for each in sent[::10] if each.shaped]
    assert sizes == [(320, 240), (320, 240), (160, 120), (160, 120), (320, 240), (320, 240)]


def test_time_stamps_jump_and_sender_reports_follow() -> None:
    """jump=-100: from the given access unit on, everything is 100 s earlier."""
    stamps = [rtp(each.data)[0].timestamp for each in play("jump=-100&jump_at=30&rtp=20000000")]
    steps = [(b - a + 2**31) % 2**32 - 2**31 for a, b in itertools.pairwise(stamps)]
    assert steps == [3600] * 29 + [3600 - 9_000_000] + [3600] * 29


def test_another_source_begins() -> None:
    """ssrc=20: other SSRC, other sequence numbers, other stamps, and a sender report for them at once."""
    sent = play("ssrc=20")
    sources = [rtp(each.data)[0].ssrc for each in sent]
    assert (len(set(sources[:20])), len(set(sources[20:])), len(set(sources))) == (1, 1, 2)
    (report,) = rtcp(sent[20].data)
    assert struct.unpack(">I", report[4:8]) == (sources[20],)


def test_sender_reports_come_when_they_shall() -> None:
    """report=1 and first_report=0.5 at 25 units a second; the wall clock is ahead by clock=; report=0 sends none."""
    sent = play("report=1&first_report=0.5&clock=3600")
    at = [n for n, each in enumerate(sent) if rtcp(each.data)]
    assert at == [13, 38]
    (report,) = rtcp(sent[13].data)
    seconds, fraction, stamp = struct.unpack(">III", report[8:20])
    wall_ns = (seconds - 2_208_988_800 - 3600) * SECOND_NS + (fraction * SECOND_NS >> 32)
    assert abs(wall_ns - T0_NS - 13 * SECOND_NS // 25) <= 1
    assert stamp == rtp(sent[13].data)[0].timestamp
    assert not any(rtcp(each.data) for each in play("report=0"))


def test_silence_comes_in_three_kinds() -> None:
    """A stall may end, a frozen camera is dead to everybody, a goodbye is said before."""
    stalled = play("stall=10&stall_s=1")
    assert [bool(each.data) for each in stalled] == [True] * 10 + [False] * 25 + [True] * 25
    forever = play("stall=10")
    assert [bool(each.data) for each in forever] == [True] * 10 + [False] * 50
    frozen = play("freeze=10")
    assert [each.then for each in frozen[9:12]] == [Then.GO_ON, Then.FREEZE, Then.GO_ON]
    assert not any(each.data for each in frozen[10:])
    goodbye = play("bye=10")
    (bye,) = rtcp(goodbye[10].data)
    assert bye[1] == 203
    assert not any(each.data for each in goodbye[11:])


def test_the_connection_closes_or_carries_what_does_not_belong_there() -> None:
    """close=, garbage= and text= come before the access unit of their number."""
    assert [each.then for each in play("close=10", 12)].index(Then.CLOSE) == 10
    assert play("garbage=10")[10].data.startswith(GARBAGE)
    texts = [n for n, each in enumerate(play("text=10")) if each.data.startswith(b"OPTIONS * RTSP/1.0\r\n")]
    assert texts == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("losss=1", "'losss' is no fault"),
        ("loss=many", "loss=many is no number from 0 to 100"),
        ("loss=101", "loss=101 is no number"),
        ("loss=nan", "loss=nan is no number"),
        ("mtu=1", "mtu=1 is no number from 64"),
        ("control=odd", "control=odd is none of"),
    ],
)
def test_what_is_no_fault_is_said(query: str, said: str) -> None:
    """A mistyped fault must not leave a test without any."""
    with pytest.raises(ValueError, match=said):
        Faults.parse(query)


def test_every_fault_has_its_description() -> None:
    """`gateway simulate camera --faults` leaves none out."""
    names = [name for name, what in table() if what]
    assert names == [each.name for each in fields(Faults)]
    page = (Path(__file__).parents[2] / "docs" / "simulated-cameras.md").read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}=" not in page] == []
