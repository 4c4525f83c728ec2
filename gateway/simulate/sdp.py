"""What a simulated camera says of itself (SDP, RFC 8866). No I/O."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from gateway import nal
from gateway.simulate.rtp import CLOCK_HZ, JPEG_PAYLOAD_TYPE, PAYLOAD_TYPE

VIDEO_TRACK = "trackID=0"
AUDIO_TRACK = "trackID=1"
_ENCODINGS = {"h264": "H264", "h265": "H265", "jpeg": "JPEG"}


def describe(
    name: str,
    host: str,
    fps: float,
    parameter_sets: Sequence[bytes],
    *,
    codec: str = "h264",
    audio: bool = False,
    control: str = "",
) -> bytes:
    """The session description of one camera.

    parameter_sets: those to be announced (RFC 6184, 8.1 and RFC 7798, 7.1). audio: an audio track comes first.
    control: what stands before the tracks' names, to make whole URLs of them.
    """
    family = "IP6" if ":" in host else "IP4"
    kind = JPEG_PAYLOAD_TYPE if codec == "jpeg" else PAYLOAD_TYPE
    lines = [
        "v=0",
        f"o=- 1 1 IN {family} {host}",
        f"s={name}",
        f"c=IN {family} {host}",
        "t=0 0",
        "a=control:*",
        "a=range:npt=now-",
        *(["m=audio 0 RTP/AVP 0", "a=rtpmap:0 PCMU/8000", f"a=control:{control}{AUDIO_TRACK}"] if audio else []),
        f"m=video 0 RTP/AVP {kind}",
        f"a=rtpmap:{kind} {_ENCODINGS[codec]}/{CLOCK_HZ}",
        *(f"a=fmtp:{kind} {';'.join(each)}" for each in [_parameters(codec, parameter_sets)] if each),
        f"a=framerate:{fps:g}",
        f"a=control:{control}{VIDEO_TRACK}",
    ]
    return ("\r\n".join(lines) + "\r\n").encode()


def _parameters(codec: str, parameter_sets: Sequence[bytes]) -> list[str]:
    if codec == "h264":
        return _h264_parameters(parameter_sets)
    if codec == "h265":
        names = {32: "sprop-vps", 33: "sprop-sps", 34: "sprop-pps"}
        found = {names[kind]: each for each in parameter_sets if (kind := nal.H265.type_of(each)) in names}
        return [f"{name}={_encoded(each)}" for name, each in found.items()]
    return []


def _h264_parameters(parameter_sets: Sequence[bytes]) -> list[str]:
    parameters = ["packetization-mode=1"]
    sps = next((each for each in parameter_sets if nal.H264.type_of(each) == 7), None)
    if sps is not None:
        parameters.append(f"profile-level-id={sps[1:4].hex()}")
        parameters.append("sprop-parameter-sets=" + ",".join(map(_encoded, parameter_sets)))
    return parameters


def _encoded(parameter_set: bytes) -> str:
    return base64.b64encode(parameter_set).decode()
