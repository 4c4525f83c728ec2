"""What is fuzzed: an RTSP client that gets arbitrary bytes for replies, once as they are and once in pieces.

The first bytes of an input choose what is asked, with whose name, how often the rest is said, and cuts; the rest is
what the camera says. Whatever it is: only Failure (of which RemoteFault is one) and Redirected come of it, the password
is in neither, memory stays bounded, pieces change nothing, and a camera that plays is one that the depacketizer takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway_adapters.rtsp import messages, sdp
from gateway_adapters.rtsp.authentication import Authenticator
from gateway_adapters.rtsp.failures import Failure
from gateway_adapters.rtsp.protocol import Client, Playing, Redirected
from gateway_native import rtp

from tests.support.rtp_packets import T0, pieces

URL = "rtsp://10.0.0.11/main"
PASSWORD = b"s3cret"
OPTION_BYTES = 4
# Bits of the first option byte. DESCRIPTION: the rest is a session description by itself. TEXT: a message between
# frames. MANY: the rest is said so often, to come near the bounds.
DESCRIBE_ONLY, NAMELESS, DESCRIPTION, TEXT, MANY = 1, 2, 4, 8, 16
OFTEN = 100
# A head and a body that are nearly whole, frames that wait for the reply to PLAY, and the piece that was fed last.
HELD_BYTES_MAX = messages.HEAD_BYTES_MAX + messages.BODY_BYTES_MAX + messages.FRAMES_BYTES_MAX + 2**16
PIECE_BYTES = 2**16
# What the camera thread takes over with a connection (camera_thread.pxd).
RECEIVED_BYTES_MAX = 2**20


@dataclass(frozen=True)
class Outcome:
    """All that can be seen of a handshake from outside; with an end, no more than that."""

    end: str = ""
    sent: bytes = b""
    rest: bytes = b""
    description: sdp.Description | None = None


def client_of(option: int) -> Client:
    username, password = (None, None) if option & NAMELESS else ("me", PASSWORD.decode())
    authenticator = Authenticator(username, password, new_nonce=lambda: "c")
    return Client(URL, authenticator, describe_only=bool(option & DESCRIBE_ONLY))


def handshake(option: int, data: Iterable[bytes]) -> Outcome:
    """A connection that receives these pieces."""
    client = client_of(option)
    sent = client.begin()
    try:
        for piece in data:
            if client.done:
                return Outcome(sent=sent, description=client.description)
            sent += client.receive(piece)
            assert client.held_bytes <= HELD_BYTES_MAX
    except (Failure, Redirected) as error:
        # What a camera would still have been told before its end depends on the cuts.
        _check_said(f"{type(error).__name__} {error}".encode())
        return Outcome(end=f"{type(error).__name__} {error}")
    _check_said(sent)
    rest = client.take_rest()
    if client.playing is not None:
        _check_playing(client.playing, rest)
        _check_said(client.keepalive() + client.teardown())
    return Outcome(sent=sent, rest=rest, description=client.description)


def _check_said(said: bytes) -> None:
    assert PASSWORD not in said


def _check_playing(playing: Playing, rest: bytes) -> None:
    """The depacketizer has no objection, and finds in the rest at most what it may call a fault."""
    assert len(rest) <= RECEIVED_BYTES_MAX
    track = playing.track
    assert track.codec is not None
    receiver = rtp.Receiver(
        track.codec,
        rtp_channel=playing.rtp_channel,
        rtcp_channel=playing.rtcp_channel,
        payload_type=track.payload_type,
        parameter_sets=track.parameter_sets,
        jpeg_size=track.size or (0, 0),
    )
    try:
        receiver.feed(rest, T0)
    except rtp.RemoteFault:
        return


def described(body: bytes) -> None:
    """A session description by itself; what comes of it can stand in requests."""
    try:
        found = sdp.parse(body, URL)
        track = found.video()
    except Failure:
        return
    assert sdp.is_url(found.control)
    assert sdp.is_url(track.control)
    assert sum(map(len, track.parameter_sets)) <= sdp.SETS_BYTES_MAX
    assert len(found.tracks) <= sdp.TRACKS_MAX


def heard(option: int, text: bytes) -> None:
    """A message between the frames of a camera that plays."""
    client = client_of(option)
    client.begin()
    try:
        _check_said(client.heard(text))
    except Failure as failure:
        _check_said(str(failure).encode())


def run(data: bytes) -> None:
    """One input. AssertionError: something is wrong."""
    if len(data) < OPTION_BYTES:
        return
    option, cuts, said = data[0], data[1:OPTION_BYTES], data[OPTION_BYTES:]
    if option & DESCRIPTION:
        described(said)
        return
    if option & TEXT:
        heard(option, said)
        return
    if option & MANY:
        said *= OFTEN
    whole = handshake(option, [said[at : at + PIECE_BYTES] for at in range(0, len(said), PIECE_BYTES)])
    cut = handshake(option, pieces(said, [each * len(said) // 256 for each in cuts]))
    assert (cut.end, cut.sent, cut.description) == (whole.end, whole.sent, whole.description), (
        "pieces change the outcome"
    )
