"""From a demuxer's packets to what is recorded: times, key frames, parameter sets, runs."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from gateway_adapters.rtsp.access_units import AccessUnit, Assembler, Packet

from gateway import nal

SPS, PPS, IDR, SLICE = b"\x67\x42\x00\x1f", b"\x68\xce", b"\x65\x88\x84", b"\x41\x9a"
MS = 1_000_000
T0 = 1_790_000_000_000 * MS
FRAME = 3_600  # 25 frames per second


def packet(
    number: int,
    nals: Sequence[bytes] = (SLICE,),
    *,
    pts: int | None = -1,
    camera_ns: int | None = None,
    report: bool = False,
    returned_ns: int | None = None,
    time_base: Fraction = Fraction(1, 90_000),
) -> Packet:
    """Packet `number` of a stream, returned when its successor begins to arrive."""
    return Packet(
        data=nal.join(nals),
        key=False,
        pts=number * FRAME if pts == -1 else pts,
        time_base=time_base,
        camera_ns=camera_ns,
        sender_report=report,
        returned_ns=T0 + (number + 1) * 40 * MS if returned_ns is None else returned_ns,
    )


def run(assembler: Assembler, packets: Sequence[Packet]) -> list[AccessUnit]:
    units = [unit for each in packets for unit in assembler.add(each)]
    return units + list(assembler.end())


def test_recording_begins_with_the_first_key_frame() -> None:
    """What comes before it cannot be decoded; it is counted, not recorded."""
    assembler = Assembler("h264")
    units = run(assembler, [packet(0), packet(1), packet(2, [SPS, PPS, IDR]), packet(3)])
    assert [unit.key for unit in units] == [True, False]
    assert assembler.skipped_before_key == 2
    assert units[0].run_begins
    assert not units[1].run_begins


def test_key_frames_without_parameter_sets_get_those_of_the_sdp() -> None:
    """Sets from the session description stand in until the stream brings its own, which then are used."""
    assembler = Assembler("h264", nal.join([SPS, PPS]))
    other = b"\x67\x42\x00\x20"
    units = run(assembler, [packet(0, [IDR]), packet(1, [other, SLICE]), packet(2, [IDR])])
    assert nal.split(units[0].value) == [SPS, PPS, IDR]
    assert nal.split(units[1].value) == [other, SLICE]
    assert nal.split(units[2].value) == [other, PPS, IDR]
    assert assembler.parameter_changes == 1


def test_start_codes_are_normalised_and_nothing_else() -> None:
    """Three-byte start codes become four-byte ones; the NAL units are the same bytes."""
    raw = b"\x00\x00\x01" + SPS + b"\x00\x00\x01" + PPS + b"\x00\x00\x01" + IDR + b"\x00"
    data = Packet(raw, True, 0, Fraction(1, 90_000), None, False, T0)
    assert run(Assembler("h264"), [data])[0].value == nal.join([SPS, PPS, IDR])


def test_an_access_unit_was_received_when_its_predecessor_was_returned() -> None:
    """libav returns it only when the next begins to arrive: a stall must not make the last picture late."""
    packets = [packet(0, [SPS, PPS, IDR]), packet(1), packet(2, returned_ns=T0 + 10_000 * MS)]
    assert [(unit.received_ns - T0) // MS for unit in run(Assembler("h264"), packets)] == [40, 40, 80]


def test_a_first_access_unit_without_time_stamp_is_placed_before_the_second() -> None:
    """It is held for two more, then lies one interval before the second, on both clocks."""
    assembler = Assembler("h264")
    first = packet(0, [SPS, PPS, IDR], pts=None)
    assert list(assembler.add(first)) == []
    assert list(assembler.add(packet(1))) == []
    units = list(assembler.add(packet(2)))
    assert [unit.ticks for unit in units] == [0, FRAME, 2 * FRAME]
    assert [(unit.received_ns - T0) // MS for unit in units] == [0, 40, 80]
    assert [unit.run_begins for unit in units] == [True, False, False]


@pytest.mark.parametrize("later", [[], [1], [2, 1]], ids=["alone", "one more", "B-frames"])
def test_a_time_stamp_that_cannot_be_derived_is_left_out(later: list[int]) -> None:
    """Rather no time stamp than an invented one; it is counted."""
    assembler = Assembler("h264")
    packets = [packet(0, [SPS, PPS, IDR], pts=None), *(packet(n, pts=n * FRAME) for n in later)]
    units = run(assembler, packets)
    assert units[0].ticks is None
    assert len(units) == len(packets)
    assert assembler.without_pts == 1


def test_other_time_bases_are_converted_exactly() -> None:
    """Ticks are of 90 kHz whatever the demuxer counts in."""
    units = run(Assembler("h264"), [packet(0, [IDR], pts=7, time_base=Fraction(1, 1000))])
    assert units[0].ticks == 630


def test_the_cameras_clock_is_mapped_by_time_stamps() -> None:
    """The first time that comes along belongs to the next access unit, all others to their own."""
    packets = [
        packet(0, [SPS, PPS, IDR]),
        packet(1, camera_ns=T0 + 80 * MS, report=True),
        packet(2, camera_ns=T0 + 80 * MS, report=True),
        packet(3),
        packet(4, camera_ns=T0 + 165 * MS),
        packet(5, camera_ns=T0 + 205 * MS),
    ]
    units = run(Assembler("h264"), packets)
    times = [None if u.source_time_ns is None else (u.source_time_ns - T0) / MS for u in units]
    assert times == [None, None, 80, 120, 160, 205]


@pytest.mark.parametrize("jump", [-100 * 90_000, 47_622 * 90_000], ids=["back", "ahead"])
def test_a_jump_of_the_time_stamps_begins_a_run(jump: int) -> None:
    """The camera's clock was set: a new run, and no camera time until the next report makes it known again."""
    assembler = Assembler("h264")
    packets = [packet(n, [SPS, PPS, IDR] if n == 0 else (SLICE,), camera_ns=T0 + n * 40 * MS) for n in range(3)]
    packets += [packet(n, pts=n * FRAME + jump, camera_ns=T0 + jump) for n in (3, 4)]
    packets += [packet(5, pts=5 * FRAME + jump, camera_ns=T0 + 200 * MS, report=True)]
    packets += [packet(6, pts=6 * FRAME + jump, camera_ns=T0 + 240 * MS)]
    units = run(assembler, packets)
    assert [unit.run_begins for unit in units] == [True, False, False, True, False, False, False]
    assert [unit.source_time_ns is None for unit in units] == [True, False, False, True, True, True, False]
    assert assembler.clock_jumps == 1


def test_a_stalled_network_begins_no_run() -> None:
    """Pictures that come late, and then in a burst, are of the same run."""
    returned = [0, 40, 30_000, 30_001, 30_002, 30_003]
    packets = [
        packet(n, [SPS, PPS, IDR] if n == 0 else (SLICE,), returned_ns=T0 + ms * MS) for n, ms in enumerate(returned)
    ]
    assert sum(unit.run_begins for unit in run(Assembler("h264"), packets)) == 1


def test_jpeg_images_are_recorded_as_they_are() -> None:
    """Every image is a key frame, received when it was returned."""
    image = b"\xff\xd8\x00\x00\x01rest\xff\xd9"
    unit = run(Assembler("jpeg"), [Packet(image, False, 5, Fraction(1, 90_000), None, False, T0)])[0]
    assert (unit.value, unit.key, unit.ticks, unit.received_ns) == (image, True, 5, T0)
