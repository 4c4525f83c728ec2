"""RTSP requests, digest authentication and SDP of the simulated camera."""

from __future__ import annotations

import base64
import hashlib

import pytest

from gateway.simulate.rtsp_messages import (
    Answer,
    Digest,
    Interleaved,
    MalformedRequest,
    Request,
    RequestParser,
    authentication,
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


def test_digest_with_sha_256_and_qop() -> None:
    """RFC 7616: nonce count, client nonce and qop are part of the answer; leaving them out is no answer."""
    digest = authentication("sha-256", "viewer", "secret")

    def sha(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    def answer(qop: str = ', qop=auth, nc=00000001, cnonce="c"', middle: str = "n1:00000001:c:auth") -> Request:
        ha1, ha2 = sha("viewer:Gateway simulated camera:secret"), sha("PLAY:rtsp://h/cam")
        value = (
            'Digest username="viewer", realm="Gateway simulated camera", nonce="n1", uri="rtsp://h/cam", '
            f'response="{sha(f"{ha1}:{middle}:{ha2}")}"{qop}'
        )
        return Request("PLAY", "rtsp://h/cam", {"authorization": value})

    assert digest.accepts(answer(), "n1")
    assert not digest.accepts(answer(middle="n1:00000002:c:auth"), "n1")
    assert not digest.accepts(answer(qop="", middle="n1"), "n1")
    assert 'algorithm=SHA-256, qop="auth", stale=true' in digest.challenge("n2", stale=True)


def test_basic_accepts_the_right_answer_only() -> None:
    """RFC 7617."""
    basic = authentication("basic", "viewer", "secret")
    assert basic.challenge("n") == 'Basic realm="Gateway simulated camera"'
    for password, right in (("secret", True), ("wrong", False)):
        value = base64.b64encode(f"viewer:{password}".encode()).decode()
        assert basic.accepts(Request("PLAY", "x", {"authorization": f"Basic {value}"}), "n") is right
    assert not basic.accepts(Request("PLAY", "x", {}), "n")
    assert "secret" not in repr(basic)


def test_answers_to_the_server_are_told_from_requests() -> None:
    """A client that was asked something answers in between."""
    items = RequestParser().feed(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n" + PLAY)
    assert items[0] == Answer(200)
    assert isinstance(items[1], Request)


def test_a_track_is_found_behind_the_query_too() -> None:
    """Clients append a track's name to the whole URL, or resolve it as RFC 3986 says."""
    appended = Request("SETUP", "rtsp://h/cam?loss=1/trackID=0", {})
    assert (appended.path, appended.query, appended.track) == ("cam", "loss=1", "trackID=0")
    assert Request("SETUP", "rtsp://h/cam/trackID=0", {}).track == "trackID=0"


def test_the_sdp_says_what_it_shall() -> None:
    """The codec and its parameters, an audio track in front, whole URLs."""
    sdp = describe(
        "cam", "h", 25, [b"\x40\x01v", b"\x42\x01s", b"\x44\x01p"], codec="h265", audio=True, control="rtsp://h/cam/"
    ).decode()
    assert "a=rtpmap:96 H265/90000\r\na=fmtp:96 sprop-vps=QAF2;sprop-sps=QgFz;sprop-pps=RAFw\r\n" in sdp
    assert sdp.index("m=audio") < sdp.index("a=control:rtsp://h/cam/trackID=1") < sdp.index("m=video")
    assert (
        "m=video 0 RTP/AVP 26\r\na=rtpmap:26 JPEG/90000\r\na=framerate"
        in describe("cam", "h", 5, [], codec="jpeg").decode()
    )


def test_the_sdp_announces_the_parameter_sets() -> None:
    """sprop-parameter-sets and profile-level-id come from the SPS; without one there are neither."""
    sdp = describe("cam", "127.0.0.1", 15, [b"\x67\x42\xc0\x16\x00", b"\x68\xce"]).decode()
    assert "profile-level-id=42c016;sprop-parameter-sets=Z0LAFgA=,aM4=" in sdp
    assert "sprop" not in describe("cam", "::1", 15, []).decode()
