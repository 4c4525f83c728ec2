"""RTSP requests, digest authentication and SDP of the simulated camera."""

from __future__ import annotations

import hashlib

import pytest

from gateway.simulate.rtsp_messages import (
    Digest,
    Interleaved,
    MalformedRequest,
    Request,
    RequestParser,
    interleaved_channels,
)
from gateway.simulate.sdp import describe

PLAY = b"PLAY rtsp://h/cam RTSP/1.0\r\nCSeq: 4\r\nSession: 12;timeout=60\r\nContent-Length: 3\r\n\r\nabc"


def test_requests_come_out_whole_however_they_arrive() -> None:
    """Fed whole or byte by byte, requests and interleaved frames come out the same."""
    data = PLAY + b"$\x01\x00\x02hi" + b"\r\n" + PLAY
    whole = RequestParser().feed(data)
    parser = RequestParser()
    assert [item for byte in data for item in parser.feed(bytes([byte]))] == whole
    assert whole[1] == Interleaved(1, b"hi")
    assert isinstance(whole[0], Request)
    assert (whole[0].method, whole[0].path, whole[0].headers["cseq"], whole[0].body) == ("PLAY", "cam", "4", b"abc")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"PLAY x RTSP/2.0\r\n\r\n", 505),
        (b"PLAY x RTSP/1.0\r\nno colon\r\n\r\n", 400),
        (b"PLAY x RTSP/1.0\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"A" * 20_000, 413),
    ],
)
def test_what_is_no_rtsp_is_refused(data: bytes, status: int) -> None:
    """Every kind of rubbish has its status; nothing is buffered without end."""
    with pytest.raises(MalformedRequest) as caught:
        RequestParser().feed(data)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("transport", "channels"),
    [
        ("RTP/AVP/TCP;unicast;interleaved=2-3", (2, 3)),
        ("RTP/AVP;unicast;client_port=5000-5001,RTP/AVP/TCP;interleaved=0-1", (0, 1)),
        ("RTP/AVP/TCP;unicast", (0, 1)),
        ("RTP/AVP;unicast;client_port=5000-5001", None),
        ("RTP/AVP/TCP;interleaved=300-301", None),
        ("", None),
    ],
)
def test_only_tcp_is_granted(transport: str, channels: tuple[int, int] | None) -> None:
    """UDP is refused; of several offers the first over TCP is taken."""
    assert interleaved_channels(transport) == channels


def test_digest_accepts_the_right_answer_only() -> None:
    """The response of RFC 2617 without qop opens; another password, nonce, method or URL does not."""
    digest = Digest("viewer", "p:w\"'")

    def md5(text: str) -> str:
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    def answer(known: str = "p:w\"'", nonce: str = "n1", method: str = "PLAY", uri: str = "rtsp://h/cam") -> Request:
        ha1, ha2 = md5(f"viewer:{digest.realm}:{known}"), md5(f"{method}:{uri}")
        response = md5(f"{ha1}:{nonce}:{ha2}")
        value = f'Digest username="viewer", realm="{digest.realm}", nonce="{nonce}", uri="{uri}", response="{response}"'
        return Request("PLAY", "rtsp://h/cam", {"authorization": value})

    assert digest.accepts(answer(), "n1")
    assert not digest.accepts(answer(known="wrong"), "n1")
    assert not digest.accepts(answer(nonce="n0"), "n1")
    assert not digest.accepts(answer(method="DESCRIBE"), "n1")
    assert not digest.accepts(answer(uri="rtsp://h/other"), "n1")
    assert not digest.accepts(Request("PLAY", "rtsp://h/cam", {"authorization": "Basic abc"}), "n1")
    assert "p:w" not in repr(digest)


def test_the_sdp_announces_the_parameter_sets() -> None:
    """sprop-parameter-sets and profile-level-id come from the SPS; without one there are neither."""
    sdp = describe("cam", "127.0.0.1", 15, [b"\x67\x42\xc0\x16\x00", b"\x68\xce"]).decode()
    assert "profile-level-id=42c016;sprop-parameter-sets=Z0LAFgA=,aM4=" in sdp
    assert "sprop" not in describe("cam", "::1", 15, []).decode()
