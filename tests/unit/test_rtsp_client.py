"""A client's handshake with cameras that are transcripts: what is asked, what follows from the answers."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from gateway_adapters.rtsp.authentication import Authenticator
from gateway_adapters.rtsp.failures import Failure, RemoteFault
from gateway_adapters.rtsp.protocol import Client, Redirected

URL = "rtsp://10.0.0.11/main"
SDP = (
    "v=0\r\ns=cam\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=1\r\n"
    "m=audio 0 RTP/AVP 8\r\na=control:trackID=2\r\n"
)
# What a camera says to each method, without its CSeq.
REPLIES = {
    "OPTIONS": "RTSP/1.0 200 OK\r\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, TEARDOWN\r\n\r\n",
    "DESCRIBE": f"RTSP/1.0 200 OK\r\nContent-Base: {URL}/\r\nContent-Length: {len(SDP)}\r\n\r\n{SDP}",
    "SETUP": "RTSP/1.0 200 OK\r\nSession: 4711;timeout=30\r\n"
    "Transport: RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=6C0C2A0D\r\n\r\n",
    "PLAY": "RTSP/1.0 200 OK\r\nSession: 4711\r\nRTP-Info: url=x\r\n\r\n",
}


class ScriptedCamera:
    """Answers a client's requests; `asked` are those it got, as (method, URL, all of it)."""

    def __init__(self, **replies: str) -> None:
        self.replies = {**REPLIES, **replies}
        self.asked: list[tuple[str, str, str]] = []
        self.says: Callable[[str, str], str | None] = lambda method, text: None

    def answer(self, data: bytes) -> bytes:
        """Its replies to whole requests."""
        out = b""
        for text in re.findall(r".+?\r\n\r\n", data.decode(), re.DOTALL):
            method, url, _ = text.split(" ", 2)
            cseq = re.search(r"CSeq: (\d+)", text)
            assert cseq is not None
            self.asked.append((method, url, text))
            reply = self.says(method, text) or self.replies[method]
            first, end, rest = reply.partition("\r\n")
            out += f"{first}{end}CSeq: {cseq[1]}{end}{rest}".encode()
        return out

    @property
    def methods(self) -> list[str]:
        return [method for method, _, _ in self.asked]


def play(camera: ScriptedCamera, username: str | None = None, password: str | None = None) -> Client:
    """The handshake, until it is done or fails."""
    client = Client(URL, Authenticator(username, password))
    sent = client.begin()
    for _ in range(30):
        if client.done:
            return client
        sent = client.receive(camera.answer(sent))
    raise AssertionError(f"the handshake does not end: {camera.methods}")


def test_a_plain_handshake() -> None:
    """Four requests, each at the address the camera gave; channels, session and time-out are the camera's."""
    camera = ScriptedCamera()
    client = play(camera)
    assert [(method, url) for method, url, _ in camera.asked] == [
        ("OPTIONS", URL),
        ("DESCRIBE", URL),
        ("SETUP", f"{URL}/trackID=1"),
        ("PLAY", f"{URL}/"),
    ]
    playing = client.playing
    assert playing is not None
    assert (playing.track.codec, playing.rtp_channel, playing.rtcp_channel, playing.ssrc) == ("h264", 0, 1, 0x6C0C2A0D)
    assert (playing.session_timeout_s, playing.skipped) == (30, ("audio PCMA",))
    assert "Session: 4711\r\n" in camera.asked[3][2]
    assert client.keepalive_interval_s == 15
    assert client.keepalive().startswith(f"GET_PARAMETER {URL}/ RTSP/1.0\r\n".encode())
    assert b"Session: 4711\r\n" in client.teardown()


def test_what_comes_with_the_last_reply_is_the_depacketizers() -> None:
    """Frames before and behind the reply to PLAY are kept in their order, halves too."""
    frame = b"$\x00\x00\x03abc"
    camera = ScriptedCamera()
    client = Client(URL, Authenticator(None, None))
    sent = client.begin()
    while b"PLAY" not in sent[:4]:
        sent = client.receive(camera.answer(sent))
    assert client.receive(frame + camera.answer(sent) + frame + b"$\x00") == b""
    assert client.take_rest() == frame + frame + b"$\x00"


@pytest.mark.parametrize(
    ("transport", "channels"),
    [
        ("RTP/AVP/TCP;unicast;interleaved=2-3", (2, 3)),
        ('rtp/avp/tcp; unicast; Interleaved = 4 - 5; mode="PLAY"', (4, 5)),
        ("RTP/AVP/TCP;interleaved=6", (6, 7)),
        ("RTP/AVP/TCP;interleaved=8-8", (8, 9)),
        ("RTP/AVP/TCP;unicast", (0, 1)),
        ("RTP/AVP;unicast;interleaved=0-1", (0, 1)),
        ("", (0, 1)),
    ],
)
def test_transports_as_cameras_write_them(transport: str, channels: tuple[int, int]) -> None:
    """Spaces, capitals, one channel, none: what can be meant is understood."""
    header = f"Transport: {transport}\r\n" if transport else ""
    playing = play(ScriptedCamera(SETUP=f"RTSP/1.0 200 OK\r\nSession: 1\r\n{header}\r\n")).playing
    assert playing is not None
    assert (playing.rtp_channel, playing.rtcp_channel) == channels


def test_digest_on_every_request_once_asked() -> None:
    """A challenge is answered once, and later requests carry an answer of their own with a growing counter."""
    camera = ScriptedCamera()
    challenge = 'RTSP/1.0 401 Unauthorized\r\nWWW-Authenticate: Digest realm="r", nonce="n", qop="auth"\r\n\r\n'
    camera.says = lambda method, text: None if "Authorization" in text or method == "OPTIONS" else challenge
    client = play(camera, "viewer", "secret")
    assert camera.methods == ["OPTIONS", "DESCRIBE", "DESCRIBE", "SETUP", "PLAY"]
    assert ["nc=0000000" in text for _, _, text in camera.asked] == [False, False, True, True, True]
    assert "secret" not in "".join(text for _, _, text in camera.asked)
    # A nonce that has grown old while the camera played is answered, too.
    assert b"nc=00000004" in client.keepalive()
    stale = challenge.replace('"n"', '"m", stale=true').replace("\r\n", "\r\nCSeq: 6\r\n", 1)
    again = client.heard(stale.encode())
    assert again.startswith(b"GET_PARAMETER")
    assert b'nonce="m"' in again


def test_a_wrong_password_is_tried_once() -> None:
    """Cameras lock accounts after a few wrong answers."""
    camera = ScriptedCamera(DESCRIBE='RTSP/1.0 401 No\r\nWWW-Authenticate: Digest realm="r", nonce="n"\r\n\r\n')
    with pytest.raises(Failure) as caught:
        play(camera, "viewer", "wrong")
    assert caught.value.state == "unauthorized"
    assert camera.methods == ["OPTIONS", "DESCRIBE", "DESCRIBE"]


@pytest.mark.parametrize(
    ("method", "status", "state", "cause"),
    [
        ("DESCRIBE", "404 Not Found", "not_found", "no stream at this path"),
        ("DESCRIBE", "403 Forbidden", "unauthorized", "forbids this user"),
        ("SETUP", "461 Unsupported Transport", "unsupported", 'set transport = "udp"'),
        ("SETUP", "453 Not Enough Bandwidth", "refused", "bandwidth"),
        ("PLAY", "503 Service Unavailable", "refused", "busy"),
        ("PLAY", "500 Oh \x1b[31m no", "failed", r"answers PLAY with 500 Oh \?\[31m no"),
        ("DESCRIBE", "302 Moved", "unsupported", "redirects \\(302\\) to 'nowhere'"),
        ("DESCRIBE", "302 Moved\r\nLocation: http://h/", "unsupported", "redirects"),
        ("DESCRIBE", "302 Moved\r\nLocation: rtsp://u:p@h/", "unsupported", "with a user name"),
    ],
)
def test_refusals_have_a_state_and_a_cause(method: str, status: str, state: str, cause: str) -> None:
    """Each status becomes what people can act on."""
    with pytest.raises(Failure, match=cause) as caught:
        play(ScriptedCamera(**{method: f"RTSP/1.0 {status}\r\n\r\n"}))
    assert caught.value.state == state


def test_a_redirect_names_the_other_address() -> None:
    """Whoever owns the connection decides whether to follow."""
    with pytest.raises(Redirected) as caught:
        play(ScriptedCamera(DESCRIBE="RTSP/1.0 302 Moved\r\nLocation: rtsp://10.0.0.12:8554/other\r\n\r\n"))
    assert caught.value.url == "rtsp://10.0.0.12:8554/other"


def test_cameras_that_are_poor_at_it() -> None:
    """No OPTIONS, no Range, no session, 100 Continue, questions in between, late answers: it plays all the same."""
    camera = ScriptedCamera(
        OPTIONS="RTSP/1.0 501 Not Implemented\r\n\r\n", SETUP="RTSP/1.0 200 OK\r\n\r\n", PLAY="RTSP/1.0 200 OK\r\n\r\n"
    )
    camera.says = lambda method, text: "RTSP/1.0 457 Invalid Range\r\n\r\n" if "Range" in text else None
    client = Client(URL, Authenticator(None, None))
    sent = client.begin()
    disturbance = (
        b"RTSP/1.0 200 OK\r\nCSeq: 0\r\n\r\nRTSP/1.0 100 Continue\r\n\r\nOPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"
    )
    for _ in range(5):
        said = client.receive(disturbance)
        assert said.startswith(b"RTSP/1.0 200 OK\r\nCSeq: 1\r\n")
        sent = client.receive(camera.answer(sent))
    assert client.done
    assert camera.methods == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY", "PLAY"]
    assert client.keepalive_interval_s == 30
    assert b"Session" not in client.keepalive()


def test_keepalive_is_what_the_camera_can_do() -> None:
    """GET_PARAMETER unless it is not on the camera's list or turns out not to be known."""
    without = ScriptedCamera(OPTIONS="RTSP/1.0 200 OK\r\nPublic: DESCRIBE, SETUP\r\nPublic: PLAY\r\n\r\n")
    assert play(without).keepalive().startswith(b"OPTIONS ")
    client = play(ScriptedCamera())
    assert client.keepalive().startswith(b"GET_PARAMETER ")
    assert client.heard(b"RTSP/1.0 405 No\r\nCSeq: 5\r\n\r\n") == b""
    assert client.keepalive().startswith(b"OPTIONS ")


def test_the_end_of_a_session_is_heard() -> None:
    """A camera that forgot us, or sends us elsewhere, is connected to again; an answer nobody waits for is none."""
    client = play(ScriptedCamera())
    assert client.heard(b"RTSP/1.0 200 OK\r\nCSeq: 4\r\n\r\n") == b""
    client.keepalive()
    with pytest.raises(Failure, match="forgotten the session"):
        client.heard(b"RTSP/1.0 454 Session Not Found\r\nCSeq: 5\r\n\r\n")
    with pytest.raises(Failure, match="ended the session"):
        client.heard(b"REDIRECT rtsp://h RTSP/1.0\r\nCSeq: 1\r\nLocation: rtsp://x\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "reply", "cause"),
    [
        ("DESCRIBE", "RTSP/1.0 200 OK\r\n\r\n", "with nothing"),
        ("SETUP", "RTSP/1.0 200 OK\r\nTransport: RTP/AVP/TCP;interleaved=300-301\r\n\r\n", "channels that do not"),
        ("SETUP", "RTSP/1.0 200 OK\r\nTransport: RTP/AVP;client_port=5-6\r\n\r\n", "answers to TCP with"),
        ("SETUP", f"RTSP/1.0 200 OK\r\nSession: {'x' * 300}\r\n\r\n", "identifier is empty or too long"),
        ("PLAY", "RTSP/1.0 200 OK\r\nCSeq: 77\r\n\r\n", ""),
    ],
)
def test_answers_that_make_no_sense(method: str, reply: str, cause: str) -> None:
    """They are the camera's fault and said so. (A second CSeq is ignored: the first counts.)"""
    camera = ScriptedCamera(**{method: reply})
    if not cause:
        assert play(camera).done
        return
    with pytest.raises(Failure, match=cause):
        play(camera)


def test_a_camera_that_only_talks_is_given_up() -> None:
    """Questions without end, or answers to what was never asked, do not keep a connection busy for ever."""
    client = Client(URL, Authenticator(None, None))
    client.begin()
    with pytest.raises(RemoteFault, match="over 64 messages"):
        client.receive(b"OPTIONS * RTSP/1.0\r\n\r\n" * 100)
    client = Client(URL, Authenticator(None, None))
    client.begin()
    with pytest.raises(RemoteFault, match="never made"):
        client.receive(b"RTSP/1.0 200 OK\r\nCSeq: 5\r\n\r\n")


def test_probing_stops_at_the_description() -> None:
    """A camera that is only looked at sends no picture."""
    camera = ScriptedCamera()
    client = Client(URL, Authenticator(None, None), describe_only=True)
    sent = client.begin()
    while not client.done:
        sent = client.receive(camera.answer(sent))
    assert camera.methods == ["OPTIONS", "DESCRIBE"]
    assert client.description is not None
    assert len(client.description.tracks) == 2
