"""Whatever a camera says, only Failure and Redirected come of it, and how the bytes are cut changes nothing."""

from __future__ import annotations

import contextlib
import itertools

from gateway_adapters.rtsp import messages
from gateway_adapters.rtsp.authentication import Authenticator, parse_challenges
from gateway_adapters.rtsp.failures import Failure, RemoteFault
from gateway_adapters.rtsp.protocol import Client, Redirected
from gateway_adapters.rtsp.sdp import is_url, parse
from hypothesis import given, settings
from hypothesis import strategies as st

URL = "rtsp://10.0.0.11/main"

TOKENS = st.sampled_from(
    [
        *("RTSP/1.0 200 OK", "RTSP/1.0 401 Unauthorized", "RTSP/1.0 302 Moved", "RTSP/1.0 457 x", "RTSP/1.0 454 x"),
        *("RTSP/1.0 100 Continue", "OPTIONS * RTSP/1.0", "REDIRECT rtsp://h RTSP/1.0", "HTTP/1.1 200 OK"),
        *("CSeq: 1", "CSeq: 2", "CSeq: 3", "CSeq: 4", "CSeq: x", "Session: 1;timeout=0", "Session: ;", "Public: PLAY"),
        *("Content-Length: 30", "Content-Length: 0", "Transport: RTP/AVP/TCP;interleaved=0-1", "Transport: x"),
        *(
            'WWW-Authenticate: Digest realm="a", nonce="b"',
            "WWW-Authenticate: Basic",
            "WWW-Authenticate: Digest nonce=\r",
        ),
        *("Location: rtsp://h/x", "Location: rtsp://[", "v=0", "m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000"),
        *("a=control:*", "a=control:rtsp://[", "m=video 0 RTP/AVP 26", "$\x00\x00\x02ab", "\t", "", "a=fmtp:96 x"),
    ]
)
TEXTS = st.lists(st.one_of(TOKENS, st.text(max_size=12)), max_size=25).map(
    lambda lines: "\r\n".join(lines) + "\r\n\r\n"
)
BYTES = st.one_of(TEXTS.map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=400))


def outcome(pieces: list[bytes]) -> tuple[object, ...]:
    """All that can be seen of a handshake from outside."""
    client = Client(URL, Authenticator("me", "secret", new_nonce=lambda: "c"))
    sent, end = client.begin(), ""
    try:
        for piece in pieces:
            sent += client.receive(piece)
    except (Failure, Redirected) as error:
        end = f"{type(error).__name__} {error}"
    assert "secret" not in end
    assert b"secret" not in sent
    if end:  # what a camera would still have been told before its end depends on the cuts
        return (end,)
    return sent, client.done, client.description, client.take_rest()


@settings(max_examples=400, deadline=None)
@given(st.lists(BYTES, max_size=6), st.data())
def test_handshakes_survive_any_camera(says: list[bytes], data: st.DataObject) -> None:
    """Cut anywhere, the same bytes lead to the same requests, the same end and the same rest."""
    whole = b"".join(says)
    places = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    cuts = [0, *places, len(whole)]
    assert outcome([whole[start:end] for start, end in itertools.pairwise(cuts)]) == outcome([whole])


@settings(max_examples=300, deadline=None)
@given(BYTES)
def test_descriptions_are_parsed_or_refused(body: bytes) -> None:
    """What comes out can stand in a request."""
    try:
        description = parse(body, URL)
        track = description.video()
    except Failure:
        return
    assert is_url(description.control)
    assert is_url(track.control)
    assert 0 <= track.payload_type < 1_000


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=4))
def test_challenges_are_parsed_or_refused(values: list[str]) -> None:
    """And an answer never breaks the line it stands in."""
    with contextlib.suppress(RemoteFault):
        parse_challenges(values)
    known = Authenticator("me", "secret")
    lines = [line for value in values for line in value.splitlines()]
    with contextlib.suppress(Failure):
        known.challenged(lines, answered=False)
        messages.request("PLAY", URL, 1, [("Authorization", known.header("PLAY", URL) or "")])


@settings(max_examples=200, deadline=None)
@given(BYTES)
def test_texts_between_frames_are_heard_or_refused(text: bytes) -> None:
    """While the camera plays, too."""
    client = Client(URL, Authenticator("me", "secret"))
    client.begin()
    with contextlib.suppress(Failure):
        client.heard(text)
