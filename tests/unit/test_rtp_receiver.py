"""From the bytes of an RTSP connection to access units: what is whole, what is damaged, what is lost, and which run."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from gateway_native import rtp
from gateway_native.rtp import Receiver, RemoteFault, Unit

from gateway import nal
from gateway.replay.timeline import CLOCK_HZ
from tests.support.rtp_packets import (
    FRAME,
    FRAME_NS,
    PAYLOAD_TYPE,
    T0,
    Packet,
    aggregate_h265,
    goodbye,
    interleaved,
    packetize_h264,
    packetize_h265,
    packets,
    receive,
    sender_report,
    stap_a,
)

SPS, PPS, AUD, SEI = b"\x67\x42\x00\x1f\x8c", b"\x68\xce\x3c", b"\x09\xf0", b"\x06\x05\x01\x55\x80"
OTHER_SPS = b"\x67\x42\x00\x20\x8c"
IDR = b"\x65\x88" + bytes(range(1, 255)) * 20
SLICE = b"\x41\x9a" + bytes(range(1, 255)) * 10
LATER_SLICE = b"\x41\x4a" + b"later"
KEY, OTHER = [SPS, PPS, IDR], [SLICE]
UNITS = [KEY, OTHER, [SLICE[:900]], OTHER, KEY, OTHER, OTHER]

VPS5, SPS5, PPS5 = b"\x40\x01\x0c\x01\xff", b"\x42\x01\x01\x01\x60", b"\x44\x01\xc1\x72"
CRA5 = b"\x2a\x01\xaf" + bytes(range(1, 255)) * 20
SLICE5 = b"\x02\x01\xd0" + bytes(range(1, 255)) * 10

MS = 1_000_000


def receiver(codec: str = "h264", **options: object) -> Receiver:
    return Receiver(codec, payload_type=PAYLOAD_TYPE, **options)  # type: ignore[arg-type]


def h264(units: list[list[bytes]] | None = None, **options: int) -> list[Packet]:
    return packets([packetize_h264(each) for each in units or UNITS], **options)


def lost_packets(units: list[Unit]) -> int:
    return sum(unit.lost_packets for unit in units)


# -- payloads ---------------------------------------------------------------------------------------------------------


def test_h264_byte_by_byte() -> None:
    """However the connection is cut, access units are those that were sent; both counters of 16 and 32 bits wrap."""
    data = b"".join(each.frame() for each in h264(sequence=65_530, timestamp=2**32 - 2 * FRAME))
    each = receiver()
    units = [unit for number in range(len(data)) for unit in each.feed(data[number : number + 1], T0)]
    assert [unit.value for unit in units] == [nal.join(nals) for nals in UNITS]
    assert [unit.key for unit in units] == [True, False, False, False, True, False, False]
    assert [unit.pts - 2**32 for unit in units] == [(number - 2) * FRAME for number in range(len(UNITS))]
    assert [unit.run_begins for unit in units] == [True] + [False] * 6
    assert not any(unit.damaged or unit.lost or unit.lost_packets for unit in units)


def test_h264_aggregate() -> None:
    """NAL units that share a packet are taken apart."""
    sent = packets([[stap_a([AUD, SPS, PPS, SEI]), *packetize_h264([IDR])], [stap_a([SLICE[:50], LATER_SLICE])]])
    assert [unit.value for unit in receive(receiver(), sent)] == [
        nal.join([AUD, SPS, PPS, SEI, IDR]),
        nal.join([SLICE[:50], LATER_SLICE]),
    ]


def test_h265_payloads() -> None:
    """Single NAL units, aggregates and fragments; every picture where decoding can begin is a key frame."""
    units = [[VPS5, SPS5, PPS5, CRA5], [SLICE5], [SLICE5[:100]]]
    sent = packets(
        [[aggregate_h265([VPS5, SPS5, PPS5]), *packetize_h265([CRA5])], packetize_h265([SLICE5]), [SLICE5[:100]]]
    )
    found = receive(receiver("h265"), sent)
    assert [unit.value for unit in found] == [nal.join(each) for each in units]
    assert [unit.key for unit in found] == [True, False, False]


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        ("h264", b"\x19\x00\x01" + SLICE[:20]),  # STAP-B
        ("h264", b"\x1d\x81\x00\x01" + SLICE[:20]),  # FU-B
        ("h264", b"\x1c"),
        ("h264", b"\x18\x00\x09" + SLICE[:5]),  # an aggregate whose part reaches beyond its end
        ("h265", b"\x64\x01\x00\x01"),  # PACI
        ("h265", b"\x62\x01"),
    ],
)
def test_unsupported_payload(codec: str, payload: bytes) -> None:
    """What is not read is counted, and the picture it was part of is flagged."""
    pictures = {"h264": (IDR, LATER_SLICE), "h265": (CRA5, SLICE5[:100])}[codec]
    each = receiver(codec)
    sent = packets([[pictures[0][:1_000]], [pictures[1][:50], payload], [pictures[1][:50]]])
    found = receive(each, sent)
    assert each.statistics["unsupported_packets"] == 1
    assert found[1].damaged
    assert found[1].value == nal.join([pictures[1][:50]])


@pytest.mark.parametrize("extra", ["padding", "extension", "sources"])
def test_header_with_everything(extra: str) -> None:
    """Padding, header extension and contributing sources are no part of the payload (RFC 3550, 5.1)."""

    def changed(data: bytes) -> bytes:
        if extra == "padding":
            return bytes([data[0] | 0x20]) + data[1:] + b"\x00\x00\x03"
        if extra == "extension":
            return bytes([data[0] | 0x10]) + data[1:12] + b"\xbe\xde\x00\x01abcd" + data[12:]
        return bytes([data[0] | 2]) + data[1:12] + b"12345678" + data[12:]

    frames = [interleaved(changed(each.data())) for each in h264()]
    assert [unit.value for unit in receive(receiver(), frames)] == [nal.join(nals) for nals in UNITS]


def test_what_is_no_rtp() -> None:
    """Broken packets, other channels and other payload types are counted and left out."""
    each = receiver()
    noise = [
        interleaved(b"\x80short"),
        interleaved(b"\x40" + bytes(20)),
        interleaved(b"\xa0" + bytes(11) + b"\x30"),
        interleaved(b"\x90" + bytes(14)),
        interleaved(b"audio", channel=2),
        interleaved(b"", channel=0),
    ]
    sent = h264(sequence=100)
    found = receive(each, [*noise, *sent[:3], *noise, *sent[3:]])
    assert [unit.value for unit in found] == [nal.join(nals) for nals in UNITS]
    assert each.statistics["other_packets"] == 12


def test_payload_type_of_something_else() -> None:
    """It shares the sequence numbers, so it is no loss, but nothing of it is recorded."""
    each = receiver()
    sent = h264([KEY, OTHER])
    other = Packet(b"fec", 0, 0, payload_type=127)
    sent = [replace(p, sequence=number) for number, p in enumerate([*sent[:2], other, *sent[2:]])]
    found = receive(each, sent)
    assert [unit.value for unit in found] == [nal.join(KEY), nal.join(OTHER)]
    assert (each.statistics["other_packets"], each.statistics["lost_packets"]) == (1, 0)


# -- where an access unit ends ----------------------------------------------------------------------------------------


def test_marker_on_what_is_no_picture() -> None:
    """A marker on SPS, PPS, SEI or a delimiter ends nothing."""
    sent = [
        replace(each, marker=True) if len(each.payload) < 20 else each for each in h264([[AUD, SEI, SPS, PPS, IDR]])
    ]
    assert [unit.value for unit in receive(receiver(), sent)] == [nal.join([AUD, SEI, SPS, PPS, IDR])]


def test_parameter_sets_with_a_time_stamp_of_their_own() -> None:
    """They go in front of the picture that follows, and have its time."""
    sent = packets([[SPS], [PPS], packetize_h264([IDR]), packetize_h264([SLICE])])
    found = receive(receiver(), sent)
    assert [(unit.value, unit.pts) for unit in found] == [
        (nal.join([SPS, PPS, IDR]), 2 * FRAME),
        (nal.join([SLICE]), 3 * FRAME),
    ]


def test_no_markers_at_all() -> None:
    """Then the time stamp tells; the last one may lack something when the connection ends."""
    sent = [replace(each, marker=False) for each in h264()]
    found = receive(receiver(), sent)
    assert [unit.value for unit in found] == [nal.join(nals) for nals in UNITS]
    assert [unit.damaged for unit in found] == [False] * 6 + [True]


def test_several_slices() -> None:
    """Only the last one's marker ends the picture."""
    assert [unit.value for unit in receive(receiver(), h264([[SPS, PPS, IDR], [SLICE, LATER_SLICE, LATER_SLICE]]))] == [
        nal.join([SPS, PPS, IDR]),
        nal.join([SLICE, LATER_SLICE, LATER_SLICE]),
    ]


def test_marker_on_every_slice() -> None:
    """It is found out with the first picture of several slices; from then on time stamps tell."""
    picture = [SLICE[:200], LATER_SLICE, LATER_SLICE]
    each = receiver()
    found = receive(each, [replace(packet, marker=True) for packet in h264([KEY, picture, picture, picture])])
    assert [unit.value for unit in found] == [
        nal.join(KEY),
        nal.join(picture[:1]),
        nal.join(picture[1:]),
        nal.join(picture),
        nal.join(picture),
    ]
    assert [unit.damaged for unit in found] == [False, False, True, False, True]
    assert each.statistics["wrong_markers"] == 1


def test_picture_without_its_first_slice() -> None:
    """Its head is missing, though no sequence number says so."""
    found = receive(receiver(), h264([KEY, [LATER_SLICE]]))
    assert [unit.damaged for unit in found] == [False, True]


def test_fragments_without_an_end() -> None:
    """The next NAL unit begins though the last fragment was not marked: kept, but flagged."""
    sent = h264([KEY, OTHER])
    last = max(number for number, each in enumerate(sent) if each.unit == 0)
    payload = sent[last].payload
    sent[last] = replace(sent[last], payload=bytes([payload[0], payload[1] & ~0x40]) + payload[2:])
    found = receive(receiver(), sent)
    assert [(unit.value, unit.damaged) for unit in found] == [(nal.join(KEY), True), (nal.join(OTHER), False)]


def test_recording_begins_with_a_key_frame() -> None:
    """What comes before cannot be decoded, and is counted."""
    each = receiver()
    found = receive(each, h264([OTHER, OTHER, KEY, OTHER]))
    assert [unit.value for unit in found] == [nal.join(KEY), nal.join(OTHER)]
    assert found[0].run_begins
    assert each.statistics["skipped_before_key"] == 2


@pytest.mark.parametrize("before", [b"", b"\xff\x10" + bytes(271)], ids=["first", "behind a long one"])
def test_recovery_point(before: bytes) -> None:
    """A stream without IDR pictures is entered at its recovery points, as libav does."""
    recovery = b"\x06" + before + b"\x06\x01\xc0\x80"
    found = receive(receiver(parameter_sets=[SPS, PPS]), h264([OTHER, [recovery, SLICE], OTHER]))
    assert [unit.key for unit in found] == [True, False]
    assert found[0].value == nal.join([SPS, PPS, recovery, SLICE])


# -- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_loss_is_counted_and_flagged(count: int, *, markers: bool) -> None:
    """Wherever packets are missing: as many are counted, what is not whole is flagged, nothing is joined across."""
    sent = [replace(each, marker=each.marker and markers) for each in h264([KEY, OTHER, KEY, OTHER, OTHER])]
    whole = {nal.join(nals) for nals in (KEY, OTHER)}
    parts = {SPS, PPS, IDR, SLICE}
    last = len([each for each in sent if each.unit == 4])  # there must be one that tells of what was lost before it
    for start in range(len(sent) - last - count + 1):
        each = receiver()
        found = receive(each, sent[:start] + sent[start + count :])
        missing = count if start else 0  # before the first packet nobody knows of any
        assert each.statistics["lost_packets"] == missing
        assert lost_packets(found) == missing
        for unit in found:
            assert set(nal.split(unit.value)) <= parts
            assert unit.damaged or unit.value in whole
        assert len({unit.pts for unit in found}) == len(found)


def test_hole_between_two_pictures() -> None:
    """The one before it ended with its marker and is whole; the one behind counts what is missing."""
    sent = h264([KEY, OTHER, OTHER, OTHER])
    found = receive(receiver(), [each for each in sent if each.unit != 2])
    assert [unit.damaged for unit in found] == [False, False, True]
    assert [unit.lost_packets for unit in found] == [0, 0, len([each for each in sent if each.unit == 2])]


def test_picture_of_which_nothing_is_left() -> None:
    """It is not recorded; the next one says that one is missing, and carries its lost packets."""
    sent = h264([KEY, OTHER, OTHER])
    first = next(number for number, each in enumerate(sent) if each.unit == 1)
    each = receiver()
    found = receive(each, sent[:first] + sent[first + 1 :])
    assert [(unit.value, unit.lost, unit.lost_packets) for unit in found] == [
        (nal.join(KEY), 0, 0),
        (nal.join(OTHER), 1, 1),
    ]
    assert each.statistics["lost_units"] == 1


def test_duplicates_and_late_packets() -> None:
    """A packet that came twice, or after its successor, is left out and counted."""
    sent = h264()
    each = receiver()
    found = receive(each, [*sent[:3], sent[2], sent[1], *sent[3:]])
    assert [unit.value for unit in found] == [nal.join(nals) for nals in UNITS]
    assert each.statistics["duplicate_packets"] == 2
    each = receiver()
    late = [*sent[:5], sent[6], sent[5], *sent[7:]]
    found = receive(each, late)
    assert (each.statistics["lost_packets"], each.statistics["late_packets"]) == (1, 1)
    assert lost_packets(found) == 1


def test_sequence_numbers_begin_anew() -> None:
    """How much that cost nobody knows: the next picture is flagged, and no number is invented."""
    each = receiver()
    sent = h264([KEY, OTHER], sequence=20_000) + h264([OTHER], sequence=3, timestamp=2 * FRAME)
    found = receive(each, sent)
    assert [unit.damaged for unit in found] == [False, False, True]
    assert (each.statistics["restarts"], each.statistics["lost_packets"]) == (1, 0)


def test_oversized_unit() -> None:
    """It is lost and said to be; what follows is received."""
    found = receive(receiver(unit_bytes_max=3_000), h264([[SPS, PPS, IDR[:100]], [SLICE + bytes(5_000)], [SLICE[:90]]]))
    assert [(unit.value, unit.lost) for unit in found] == [
        (nal.join([SPS, PPS, IDR[:100]]), 0),
        (nal.join([SLICE[:90]]), 1),
    ]


def test_oversized_key_frame_at_the_beginning() -> None:
    """A camera whose key frames are all too large is not only skipped over: what is lost is said."""
    each = receiver(unit_bytes_max=3_000)
    found = receive(each, h264([KEY, OTHER, [SPS, PPS, IDR[:100]]]))
    assert [(unit.value, unit.lost) for unit in found] == [(nal.join([SPS, PPS, IDR[:100]]), 1)]
    assert each.statistics["skipped_before_key"] == 1


# -- time -------------------------------------------------------------------------------------------------------------


def test_pictures_are_in_the_order_of_decoding() -> None:
    """With B-frames time stamps step back, in one run."""
    stamps = [number * FRAME for number in (0, 3, 1, 2, 6, 4, 5)]
    found = receive(receiver(), h264(stamps=stamps))
    assert [unit.pts for unit in found] == stamps
    assert [unit.run_begins for unit in found] == [True] + [False] * 6


@pytest.mark.parametrize("jump", [-100 * CLOCK_HZ, 20_000 * CLOCK_HZ], ids=["back", "ahead"])
def test_clock_that_was_set(jump: int) -> None:
    """A new run, and no camera time until the next report makes it known again."""
    each = receiver()
    found = []
    now_ns = T0
    for number, unit in enumerate(UNITS):
        stamp = 200 * CLOCK_HZ + number * FRAME + (jump if number >= 3 else 0)
        for packet in packets([packetize_h264(unit)], sequence=number * 10, timestamp=stamp):
            found += each.feed(replace(packet, sequence=packet.sequence).frame(), now_ns)
        if number in (0, 5):
            found += each.feed(sender_report(stamp, T0 + number * FRAME_NS), now_ns)
        now_ns += FRAME_NS
    assert [unit.run_begins for unit in found] == [True, False, False, True, False, False, False]
    assert [unit.source_time_ns is None for unit in found] == [True, False, False, True, True, True, False]
    assert each.statistics["clock_jumps"] == 1


def test_stalled_network_begins_no_run() -> None:
    """Pictures that come late, and then in a burst, are of the same run."""
    each = receiver()
    found = []
    for ms, unit in zip((0, 40, 30_000, 30_001, 30_002, 30_003, 30_004), range(7), strict=True):
        for packet in [p for p in h264() if p.unit == unit]:
            found += each.feed(packet.frame(), T0 + ms * MS)
    assert sum(unit.run_begins for unit in found) == 1
    assert [(unit.received_ns - T0) // MS for unit in found] == [0, 40, 30_000, 30_001, 30_002, 30_003, 30_004]


def test_another_source() -> None:
    """Another SSRC is another run, which begins with a key frame."""
    each = receiver()
    other = [replace(packet, ssrc=0xBEEF) for packet in h264([OTHER, KEY], timestamp=77, sequence=4_000)]
    found = receive(each, [*h264([KEY, OTHER]), *other])
    assert [(unit.run_begins, unit.key) for unit in found] == [(True, True), (False, False), (True, True)]
    assert (each.statistics["ssrc_changes"], each.statistics["skipped_before_key"]) == (1, 1)
    assert each.statistics["lost_packets"] == 0


def test_goodbye_ends_the_run() -> None:
    """What is sent after BYE is a new run; somebody else's BYE is nothing to us."""
    each = receiver()
    sent = h264([KEY, OTHER])
    again = h264([KEY], sequence=9, timestamp=9 * FRAME)
    found = receive(each, [*sent, goodbye(0xBAD), *h264([OTHER], sequence=len(sent)), goodbye(), *again])
    assert [unit.run_begins for unit in found] == [True, False, False, True]
    assert each.statistics["goodbyes"] == 1


def test_camera_time() -> None:
    """From the first report on each unit has it; for those before FORMAT.md says how it follows."""
    sent: list[Packet | bytes] = list(h264(timestamp=2**32 - 3 * FRAME))
    third = next(number for number, each in enumerate(sent) if isinstance(each, Packet) and each.unit == 3)
    wall = T0 + 123_456_789
    found = receive(receiver(), [*sent[:third], sender_report(2**32 - 3 * FRAME, wall), *sent[third:]])
    times = [unit.source_time_ns for unit in found]
    assert times[:3] == [None] * 3
    known = found[3]
    assert known.source_time_ns is not None
    for number, unit in enumerate(found):
        derived = known.source_time_ns + (unit.pts - known.pts) * 100_000 // 9
        assert abs(derived - (wall + number * FRAME_NS)) <= 1
        assert unit.source_time_ns in (None, derived)


def test_camera_time_before_the_first_picture() -> None:
    """A report may come first."""
    found = receive(receiver(), [sender_report(2 * FRAME, T0 + 80 * MS), *h264()])
    assert [round((unit.source_time_ns or 0) - T0, -1) // MS for unit in found[:3]] == [0, 40, 80]


@pytest.mark.parametrize(
    "report",
    [
        sender_report(0, T0 - 1_790_000_000 * 10**9 - 2_208_988_000 * 10**9),
        sender_report(1_000 * CLOCK_HZ, T0),
        sender_report(0, T0, ssrc=0xBAD),
        interleaved(b"\x80\xc8\x00\x06short", 1),
        interleaved(b"\x80\xc8\x00\x01\x00\x00\xca\xfe", 1),
    ],
    ids=["since it was switched on", "of another clock", "of another source", "cut off", "too short"],
)
def test_report_that_says_nothing(report: bytes) -> None:
    """Rather no camera time than a wrong one."""
    sent = h264()
    found = receive(receiver(), [*sent[:-1], report, sent[-1]])
    assert {unit.source_time_ns for unit in found} == {None}


# -- parameter sets ---------------------------------------------------------------------------------------------------


def test_parameter_sets_of_the_sdp() -> None:
    """They stand in until the stream brings its own, which then are used."""
    each = receiver(parameter_sets=[SPS, PPS])
    found = receive(each, h264([[IDR], [OTHER_SPS, SLICE], [AUD, IDR]]))
    assert [nal.split(unit.value) for unit in found] == [
        [SPS, PPS, IDR],
        [OTHER_SPS, SLICE],
        [AUD, OTHER_SPS, PPS, IDR],
    ]
    assert each.statistics["parameter_changes"] == 1


def test_flapping_parameter_sets() -> None:
    """Each key frame has those that it was coded with, in one run."""
    each = receiver()
    units = [[sps, PPS, IDR] for sps in (SPS, OTHER_SPS, SPS, OTHER_SPS)]
    found = receive(each, h264(units))
    assert [nal.split(unit.value) for unit in found] == units
    assert sum(unit.run_begins for unit in found) == 1
    assert each.statistics["parameter_changes"] == 3


def exp_golomb(number: int) -> str:
    """ue(v) of H.264 9.1, as bits."""
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits


def picture_set(number: int, size: int) -> bytes:
    """A picture parameter set of that id."""
    bits = exp_golomb(number) + "1"
    bits += "1" * (-len(bits) % 8)
    return b"\x68" + int(bits, 2).to_bytes(len(bits) // 8, "big") + b"x" * size


@pytest.mark.parametrize(
    ("size", "kept"), [(20, 304 - 1), (10_000, 2**18 // 10_000 - 1), (16_384, 0)], ids=["many", "long", "too long"]
)
def test_parameter_sets_without_end(size: int, kept: int) -> None:
    """A camera may send any number of them: so many are remembered, and the newest."""
    each = receiver(parameter_sets=[SPS, *(picture_set(number, size) for number in range(400))])
    found = receive(each, h264([[SPS, IDR], [SPS, IDR]]))
    numbers = [each for each in nal.split(found[0].value) if each[0] == 0x68]
    assert len(numbers) == pytest.approx(kept, abs=1)
    sent = [picture_set(number, size) for number in range(400)]
    assert numbers == sent[len(sent) - len(numbers) :]
    assert found[0].damaged == (kept == 0)


# -- RTSP text and faults ---------------------------------------------------------------------------------------------

REPLY = b"RTSP/1.0 200 OK\r\nCSeq: 9\r\n\r\n"
REQUEST = b"SET_PARAMETER rtsp://x RTSP/1.0\r\ncSeq: 1\r\ncontent-LENGTH:  7\r\n\r\n$\x00\x00\x05abc"


def test_text_between_frames() -> None:
    """Replies and requests are handed over whole, with their bodies, wherever the connection is cut."""
    data = b""
    for number, packet in enumerate(h264()):
        data += (REPLY, REQUEST, b"\r\n", b"")[number % 4] + packet.frame()
    each = receiver()
    units = [unit for number in range(len(data)) for unit in each.feed(data[number : number + 1], T0)]
    assert [unit.value for unit in units] == [nal.join(nals) for nals in UNITS]
    texts = each.texts()
    assert set(texts) == {REPLY, REQUEST}
    assert len(texts) == len([n for n in range(len(h264())) if n % 4 < 2])
    assert each.texts() == []


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"\x00", rtp.FAULT_GARBAGE),
        (b"rtsp", rtp.FAULT_GARBAGE),
        (b"RTSP/1.0 200\x00", rtp.FAULT_GARBAGE),
        (b"A" * rtp.TEXT_BYTES_MAX, rtp.FAULT_TEXT),
        (b"A\r\nContent-Length: 65530\r\n\r\n", rtp.FAULT_TEXT),
        (b"A\r\nContent-Length: 99999999999999999999\r\n\r\n", rtp.FAULT_TEXT),
    ],
)
def test_what_cannot_be_understood(data: bytes, number: int) -> None:
    """The connection is at fault, whatever follows."""
    each = receiver()
    assert len(receive(each, h264(), end=False)) == len(UNITS)
    with pytest.raises(RemoteFault) as caught:
        each.feed(data, T0)
    assert caught.value.number == number
    with pytest.raises(RemoteFault, match=str(caught.value)):
        each.feed(REPLY, T0)


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("av1", {}),
        ("h264", {"rtp_channel": 256}),
        ("h264", {"rtp_channel": 3, "rtcp_channel": 3}),
        ("h264", {"payload_type": 128}),
        ("jpeg", {"jpeg_size": (70_000, 1)}),
        ("h264", {"unit_bytes_max": 0}),
    ],
)
def test_impossible_arguments(codec: str, options: dict[str, int]) -> None:
    """Our own mistakes are ValueErrors."""
    with pytest.raises(ValueError):
        Receiver(codec, **options)  # type: ignore[arg-type]


# -- receiver reports -------------------------------------------------------------------------------------------------


def test_receiver_report() -> None:
    """RFC 3550, 6.4.2: what was lost since the last one, in all, the highest number, and when the last report came."""
    each = receiver()
    assert each.report(T0) == b""
    sent = h264([KEY, *[OTHER] * 20], sequence=65_500)
    kept = [packet for number, packet in enumerate(sent) if number % 10 != 3]
    receive(each, [*kept, sender_report(0, T0)], end=False)
    last_ns = T0 + (kept[-1].timestamp - kept[0].timestamp) * 100_000 // 9
    data = each.report(last_ns + 500 * MS)
    assert data[:4] == b"$\x01\x00\x34"
    head, kind, words, own, ssrc = struct.unpack(">BBHII", data[4:16])
    assert (head, kind, words, ssrc) == (0x81, 201, 7, 0xCAFE)
    lost, highest, jitter, report, since = struct.unpack(">IIIII", data[16:36])
    missing = len(sent) - len(kept)
    assert lost & 0xFFFFFF == missing
    assert lost >> 24 == missing * 256 // len(sent)
    assert highest == kept[-1].sequence
    assert jitter == 0
    assert report == int.from_bytes(sender_report(0, T0)[14:18], "big"), "the middle of its NTP time"
    assert since == 65_536 // 2
    assert data[36:40] == b"\x81\xca\x00\x04"
    assert int.from_bytes(data[40:44], "big") == own
    assert data[44:] == b"\x01\x07gateway\x00\x00\x00"
    assert each.report(last_ns + 600 * MS)[16] == 0, "nothing was lost since"
