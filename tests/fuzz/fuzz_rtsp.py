"""An RTSP client under atheris: ``python -m tests.fuzz.fuzz_rtsp [options of libFuzzer] [directory of inputs]``.

See fuzzing.py for how. Python's branches guide it here.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.fuzzing import OneInput, fuzz

# Longer inputs take longer and find no more: what is large is said often (see target_rtsp.MANY).
INPUT_BYTES_MAX = 4_000

_DESCRIPTION = """v=0
o=- 1 1 IN IP4 10.0.0.11
s=gate
a=control:*
m=audio 0 RTP/AVP 0
a=control:trackID=0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1;sprop-parameter-sets=Z0IAKeKQFAe2AtwEBAaQeJEV,aM48gA==
a=framerate:25.0
a=framesize:96 1920-1080
a=control:trackID=1
"""
_H265 = """v=0
m=video 0 RTP/AVP 98
a=rtpmap:98 H265/90000
a=fmtp:98 sprop-vps=QAEMAf//; sprop-sps=QgEBAWAA; sprop-pps=RAHgdrAmQA==; sprop-max-don-diff=0
a=control:rtsp://10.0.0.11/main/track1
"""
_JPEG = "v=0\nm=video 0 RTP/AVP 26\na=x-dimensions:640,480\na=control:track1\n"
_CHALLENGES = (
    'WWW-Authenticate: Digest realm="cam", nonce="abc", algorithm=SHA-256, qop="auth", opaque="x"',
    'WWW-Authenticate: Digest realm="cam", nonce="abd", stale=true\nWWW-Authenticate: Basic realm="cam"',
)


def reply(status: str, *headers: str, body: str = "") -> str:
    """One, without a CSeq, which a client takes for an answer to whatever it asked."""
    length = [f"Content-Length: {len(body)}"] if body else []
    return "\n".join([f"RTSP/1.0 {status}", *headers, *length, "", ""]) + body


def conversations() -> dict[str, str]:
    """What cameras say from OPTIONS to PLAY."""
    options = reply("200 OK", "Public: OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER", "Server: cam/1.0")
    setup = reply("200 OK", "Session: 12345;timeout=30", "Transport: RTP/AVP/TCP;unicast;interleaved=2-3;ssrc=1A2B")
    play = reply("200 OK", "Session: 12345", "RTP-Info: url=trackID=1;seq=1;rtptime=0")
    asks = "GET_PARAMETER rtsp://10.0.0.11/main RTSP/1.0\nCSeq: 7\n\n"

    def plays(description: str, *between: str) -> str:
        described = reply("200 OK", "Content-Base: rtsp://10.0.0.11/main/", body=description)
        return "".join([options, *between, described, setup, asks, play]) + "$\0\0\4abcd"

    unauthorized = [reply("401 Unauthorized", *each.split("\n")) for each in _CHALLENGES]
    return {
        **{name: plays(each) for name, each in {"h264": _DESCRIPTION, "h265": _H265, "jpeg": _JPEG}.items()},
        "digest": plays(_DESCRIPTION, unauthorized[0]),
        "stale": plays(_DESCRIPTION, *unauthorized),
        "redirect": options + reply("302 Moved", "Location: rtsp://10.0.0.12:8554/other"),
        "not-found": options + reply("404 Not Found"),
        "range": plays(_H265).replace(play, reply("457 Invalid Range") + play),
    }


def inputs() -> dict[str, bytes]:
    """With their option bytes in front."""
    from tests.fuzz import target_rtsp as target

    cuts = bytes([60, 120, 180])
    found = {name: b"\0" + cuts + said.encode() for name, said in conversations().items()}
    for name, body in {"h264": _DESCRIPTION, "h265": _H265, "jpeg": _JPEG}.items():
        found[f"sdp-{name}"] = bytes([target.DESCRIPTION]) + cuts + body.encode()
    for number, said in enumerate([reply("200 OK"), reply("454 Gone"), "TEARDOWN rtsp://h RTSP/1.0\n\n"]):
        found[f"text-{number}"] = bytes([target.TEXT]) + cuts + said.encode()
    found["described"] = bytes([target.DESCRIBE_ONLY | target.NAMELESS]) + cuts + conversations()["h264"].encode()
    found["frames"] = bytes([target.MANY]) + cuts + b"$\0\x03\xe8" + bytes(1000)
    return found


def seed(directory: Path) -> None:
    """Inputs to begin with."""
    for name, data in inputs().items():
        (directory / name).write_bytes(data)


def target() -> OneInput:
    """The client's modules are looked at by atheris, which counts Python's branches as it imports them."""
    import atheris

    with atheris.instrument_imports(include=["gateway_adapters.rtsp"]):
        from tests.fuzz.target_rtsp import run
    return run


if __name__ == "__main__":
    fuzz(target, seed, INPUT_BYTES_MAX)
