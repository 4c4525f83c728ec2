"""NAL units: what is cut where, which pictures are key frames, what parameter sets say."""

from __future__ import annotations

import pytest

from gateway import nal
from tests.pictures import encode

SPS, PPS, IDR, SLICE, SEI, AUD = (
    b"\x67\x42\x00\x1f",
    b"\x68\xce",
    b"\x65\x88\x84",
    b"\x41\x9a",
    b"\x06\x05",
    b"\x09\xf0",
)


@pytest.mark.parametrize(
    ("data", "nals"),
    [
        (b"", []),
        (b"\x00\x00\x00\x01", []),
        (b"\x00\x00\x01" + IDR, [IDR]),
        (b"\x00\x00\x00\x01" + SPS + b"\x00\x00\x01" + PPS + b"\x00\x00\x00\x01" + IDR, [SPS, PPS, IDR]),
        (b"\x00\x00\x01" + IDR + b"\x00\x00\x00\x00\x00\x01" + SLICE + b"\x00\x00", [IDR, SLICE]),
        (b"rubbish\x00\x00\x01" + IDR, [IDR]),
    ],
    ids=["empty", "start code only", "short code", "mixed codes", "zero bytes between and behind", "leading bytes"],
)
def test_start_codes_of_any_length_are_cut_away(data: bytes, nals: list[bytes]) -> None:
    """Three- and four-byte start codes, zero bytes behind NAL units and bytes before the first are no part of any."""
    assert nal.split(data) == nals


def test_emulation_prevention_stays() -> None:
    """00 00 03 inside a NAL unit is content, and comes back byte for byte."""
    unit = b"\x65\x00\x00\x03\x01\x00\x00\x03\x00\x00\x03\x02\x80"
    assert nal.split(nal.join([unit, SLICE])) == [unit, SLICE]


def test_key_frames_are_told_by_nal_types() -> None:
    """An IDR slice makes a key frame; parameter sets alone do not. For H.265 any IRAP picture does."""
    assert nal.H264.is_key([AUD, SPS, PPS, SEI, IDR])
    assert not nal.H264.is_key([AUD, SPS, PPS, SEI, SLICE])
    assert nal.H265.is_key([bytes([21 << 1, 1, 0x80])])  # CRA
    assert not nal.H265.is_key([bytes([1 << 1, 1, 0x80])])  # TRAIL_R


def test_parameter_sets_are_put_in_front_only_where_they_are_missing() -> None:
    """A key frame without sets gets the newest known ones, behind its delimiter; a complete one is left as it is."""
    sets = nal.ParameterSets(nal.H264)
    sets.update([SPS, PPS])
    assert sets.complete([AUD, IDR]) == [AUD, SPS, PPS, IDR]
    assert sets.complete([IDR]) == [SPS, PPS, IDR]
    assert sets.complete([SPS, PPS, IDR]) == [SPS, PPS, IDR]
    assert sets.complete([PPS, SEI, IDR]) == [SPS, PPS, SEI, IDR]


def test_a_parameter_set_sent_again_replaces_the_one_of_the_same_id() -> None:
    """In-band sets update what is known, by type and id; sets of other ids stay."""
    sets = nal.ParameterSets(nal.H264)
    first, other, changed = b"\x68\xce\x38", b"\x68\x48\x38", b"\x68\xce\x39"  # ids 0, 1, 0
    assert sets.update([SPS, first, other])
    assert not sets.update([first])
    assert sets.update([changed])
    assert sets.complete([IDR]) == [SPS, other, changed, IDR]
    assert sets.changes == 2


def pps(number: int) -> bytes:
    """A picture parameter set of that id, as an exp-Golomb code (H.264, 9.1)."""
    code = f"{number + 1:b}"
    bits = "0" * (len(code) - 1) + code + "1"
    return b"\x68" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def test_parameter_sets_are_bounded() -> None:
    """A broken camera that invents ids without end does not fill the memory."""
    sets = nal.ParameterSets(nal.H264)
    sets.update([pps(number) for number in range(2_000)])
    assert sets.complete([IDR]) == [*(pps(number) for number in range(2_000 - nal.ParameterSets.LIMIT, 2_000)), IDR]


@pytest.mark.parametrize("size", [(160, 120), (642, 362), (1920, 1080)])
@pytest.mark.parametrize(("encoder", "codec"), [("libx264", nal.H264), ("libx265", nal.H265)])
def test_the_size_comes_out_of_real_parameter_sets(encoder: str, codec: nal.Codec, size: tuple[int, int]) -> None:
    """Width and height, cropping included, as x264 and x265 wrote them."""
    unit = encode(1, codec=encoder, width=size[0], height=size[1])[0]
    sets = nal.ParameterSets(codec)
    sets.update(unit.nals)
    assert sets.size() == size


@pytest.mark.parametrize("codec", [nal.H264, nal.H265], ids=["h264", "h265"])
def test_broken_parameter_sets_raise_nothing(codec: nal.Codec) -> None:
    """Cut anywhere, a sequence parameter set gives no size or some size, never an error."""
    encoder = "libx264" if codec is nal.H264 else "libx265"
    sps = next(n for n in encode(1, codec=encoder)[0].nals if codec.type_of(n) in (7, 33))
    for length in range(2, len(sps)):
        sets = nal.ParameterSets(codec)
        sets.update([sps[:length]])
        sets.size()
