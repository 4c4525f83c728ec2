"""Session descriptions as real cameras write them."""

from __future__ import annotations

import pytest
from gateway_adapters.rtsp.failures import Failure, RemoteFault
from gateway_adapters.rtsp.sdp import is_url, joined, parse

from gateway.simulate.sdp import describe

BASE = "rtsp://10.0.0.11/main/"
SPS = bytes.fromhex("674d001f9a6402802dd80b50101014")
PPS = bytes.fromhex("68ee3c80")


def section(*lines: str) -> bytes:
    return "\r\n".join(["v=0", "o=- 1 1 IN IP4 10.0.0.11", "s=cam", "t=0 0", *lines, ""]).encode()


def test_the_simulated_cameras_description() -> None:
    """What our own server writes: codec, sets, addresses, the claimed rate."""
    description = parse(describe("cam", "127.0.0.1", 15, [SPS, PPS]), BASE)
    track = description.video()
    assert (track.codec, track.payload_type, track.clock_hz, track.fps) == ("h264", 96, 90_000, 15.0)
    assert track.parameter_sets == (SPS, PPS)
    assert (description.control, track.control) == (BASE, BASE + "trackID=0")


def test_a_description_with_sound_and_metadata() -> None:
    """Video is found wherever it stands; the rest keeps its names, so that it can be said what is skipped."""
    description = parse(
        section(
            "a=control:rtsp://10.0.0.11/main",
            "m=audio 0 RTP/AVP 8",
            "a=control:track1",
            "m=application 0 RTP/AVP 107",
            "a=rtpmap:107 vnd.onvif.metadata/90000",
            "m=video 0 RTP/AVP 97",
            "a=rtpmap:97 H265/90000",
            "a=fmtp:97 sprop-vps=QAEMAf//AWAAAAMAAAMAAAMAAAMAlqwJ; sprop-sps=QgEB; sprop-pps=RAHgds;x",
            "a=x-dimensions:1920,1080",
            "a=control:track2",
        ),
        BASE,
    )
    track = description.video()
    assert [each.described for each in description.tracks] == [
        "audio PCMA",
        "application VND.ONVIF.METADATA",
        "video H265",
    ]
    assert (track.codec, track.size, track.control) == ("h265", (1920, 1080), "rtsp://10.0.0.11/main/track2")
    assert [unit[0] >> 1 & 63 for unit in track.parameter_sets] == [32, 33, 34]


M96, MAP, SPROP = "m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000", "a=fmtp:96 sprop-parameter-sets="


@pytest.mark.parametrize(
    ("lines", "codec", "sets"),
    [
        (["m=video 0 RTP/AVP 26"], "jpeg", ()),
        ([M96, MAP], "h264", ()),
        ([M96, "a=rtpmap:97 h264/90000"], "h264", ()),
        (["m=video 0 RTP/AVP 35 96", "a=rtpmap:35 VND/90000", "a=rtpmap:96 H264"], "h264", ()),
        ([M96, MAP, SPROP + "Z00AH5pkAoAt2AtQEBAU,aO48gA"], "h264", (SPS, PPS)),
        ([M96, MAP, SPROP + "AAAAAWdNAB+aZAKALdgLUBAQFA==,!!!,Zw=="], "h264", (SPS,)),
        ([M96, MAP, SPROP + "A" * 40_000], "h264", ()),
        ([M96, MAP, "a=framerate:0", "a=x-framerate:", "garbage", "a="], "h264", ()),
    ],
    ids=["static", "no-fmtp", "other-number", "several", "no-padding", "start-code", "too-large", "garbage"],
)
def test_oddities_do_not_keep_video_from_being_recorded(lines: list[str], codec: str, sets: tuple[bytes, ...]) -> None:
    """What makes no sense is passed over; what is needed is found."""
    track = parse(section(*lines), BASE).video()
    assert (track.codec, track.parameter_sets, track.fps) == (codec, sets, None)


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([], r"offers no video track \(nothing\)"),
        (["m=audio 0 RTP/AVP 0"], r"offers no video track \(audio PCMU\)"),
        (["m=video 0 RTP/AVP 96", "a=rtpmap:96 MP4V-ES/90000"], r"cannot be recorded \(video MP4V-ES\)"),
        (["m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000", "a=fmtp:96 packetization-mode=2"], "cannot be recorded"),
        (["m=video 0 RTP/AVP 96", "a=rtpmap:96 H265/90000", "a=fmtp:96 sprop-max-don-diff=2"], "cannot be recorded"),
    ],
)
def test_a_camera_without_usable_video_is_told_apart(lines: list[str], cause: str) -> None:
    """The sentence lists what the camera offers instead."""
    with pytest.raises(Failure, match=cause) as caught:
        parse(section(*lines), BASE).video()
    assert caught.value.state == "unsupported"


@pytest.mark.parametrize(
    ("base", "control", "url"),
    [
        ("rtsp://h/a", "", "rtsp://h/a"),
        ("rtsp://h/a/", "*", "rtsp://h/a/"),
        ("rtsp://h/a", "trackID=1", "rtsp://h/a/trackID=1"),
        ("rtsp://h/a/", "trackID=1", "rtsp://h/a/trackID=1"),
        ("rtsp://h/cam/realmonitor?channel=1&subtype=0", "trackID=0",
         "rtsp://h/cam/realmonitor?channel=1&subtype=0/trackID=0"),
        ("rtsp://h/a", "rtsp://192.168.1.5:554/other", "rtsp://192.168.1.5:554/other"),
        ("rtsp://h:8554/a/b", "/c/track1", "rtsp://h:8554/c/track1"),
    ],
)  # fmt: skip
def test_addresses_are_joined_as_cameras_expect(base: str, control: str, url: str) -> None:
    """Relative ones are appended, behind a query, too; absolute ones stand for themselves."""
    assert joined(base, control) == url


@pytest.mark.parametrize(
    "control", ["http://h/x", "rtsp://", "rtsp://h:99999/", "a b", "x" * 3_000, "rtsp://[/", "//[.0"]
)
def test_an_address_that_is_none_is_refused(control: str) -> None:
    """Nothing of a description can get a line end or another scheme into a request."""
    assert not is_url(control)
    with pytest.raises(RemoteFault, match="an address that is none"):
        joined(BASE, control)


def test_numbers_that_no_packet_can_have_are_passed_over() -> None:
    """A payload type has seven bits, a side of an image sixteen: the depacketizer takes nothing else."""
    lines = ["m=video 0 RTP/AVP 198 26", "a=rtpmap:198 H264/90000", "a=x-dimensions:70000,480"]
    track = parse(section(*lines), BASE).video()
    assert (track.payload_type, track.codec, track.size) == (26, "jpeg", None)
    with pytest.raises(Failure, match=r"cannot be recorded \(video\)"):
        parse(section(*lines[1:2], "m=video 0 RTP/AVP 198", lines[1]), BASE).video()


def test_descriptions_have_bounds() -> None:
    """Lines and tracks, so that no camera keeps the gateway busy or fills its memory."""
    with pytest.raises(RemoteFault, match="over 1000 lines"):
        parse(b"\n" * 2_000, BASE)
    with pytest.raises(RemoteFault, match="over 32 tracks"):
        parse(section(*["m=video 0 RTP/AVP 96"] * 33), BASE)
