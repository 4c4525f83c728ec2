"""Replies of cameras as a client reads them, and the requests it writes."""

from __future__ import annotations

import pytest
from gateway_adapters.rtsp import messages
from gateway_adapters.rtsp.failures import RemoteFault
from gateway_adapters.rtsp.messages import MessageParser, Reply, ServerRequest, parse_message, request

OK = b"RTSP/1.0 200 OK\r\nCSeq: 3\r\nSession: 12;timeout=60\r\nContent-Length: 3\r\n\r\nabc"
FRAME = b"$\x00\x00\x02hi"


def read_all(parser: MessageParser) -> list[messages.Message]:
    found = []
    while (message := parser.next()) is not None:
        found.append(message)
    return found


def test_messages_come_out_whole_however_they_arrive() -> None:
    """Byte by byte or at once: the same messages, and the same frames kept for the depacketizer."""
    data = OK + FRAME + b"OPTIONS rtsp://h/x RTSP/1.0\r\nCSeq: 1\r\n\r\n" + FRAME + b"\r\n" + OK + FRAME + b"$\x00\x00"
    whole = MessageParser()
    whole.feed(data)
    expected = read_all(whole)
    parser, found = MessageParser(), []
    for byte in data:
        parser.feed(bytes([byte]))
        found += read_all(parser)
    assert found == expected
    assert [type(message) for message in expected] == [Reply, ServerRequest, Reply]
    assert parser.take_rest() == whole.take_rest() == FRAME * 3 + b"$\x00\x00"


def test_a_reply_is_read_as_cameras_write_it() -> None:
    """Bare line feeds, odd case, folded lines, no reason, a line that is no header, bytes that are no UTF-8."""
    reply = parse_message(
        b'RTSP/1.0 401\nCSEQ:  7 \nwww-authenticate: Digest\n\trealm="K\xfcche"\nWWW-Authenticate: Basic\nACME\n\n'
    )
    assert isinstance(reply, Reply)
    assert (reply.status, reply.reason, reply.cseq, reply.body) == (401, "", 7, b"")
    assert reply.headers.all("WWW-Authenticate") == ['Digest realm="Küche"', "Basic"]
    assert "Date" not in reply.headers


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP, not RTSP"),
        (b"RTSP/2.0 200 OK\r\n\r\n", "which is no RTSP/1.0"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "begins with 'SSH-2.0-OpenSSH_9.2', which is no RTSP/1.0"),
        (b"\x16\x03\x01\x02\x00", "speaks TLS"),
        (b"\x00\x01\x02", "does not speak RTSP"),
        (b"A" * 20_000, "a head of over"),
        (b"RTSP/1.0 200 OK\r\nContent-Length: 65537\r\n\r\n", "a body of 65537 bytes"),
        (b"RTSP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n", "a body of -1 bytes"),
        (b"RTSP/1.0 200 OK\r\n" + b"a:b\r\n" * 101 + b"\r\n", "over 100 headers"),
        (b"$\x00\xff\xff" + b"x" * 65_535 + (b"$\x00\xff\xff" + b"x" * 65_535) * 16, "does not answer requests"),
    ],
)
def test_what_is_no_rtsp_is_refused(data: bytes, cause: str) -> None:
    """Every kind of rubbish has its sentence, and nothing is kept without end."""
    parser = MessageParser()
    parser.feed(data)
    with pytest.raises(RemoteFault, match=cause):
        read_all(parser)


def test_a_request_is_one_that_another_reader_understands() -> None:
    """The simulated camera's parser gets back what was put in."""
    from gateway.simulate.rtsp_messages import Request, RequestParser

    (read,) = RequestParser().feed(request("SETUP", "rtsp://h/x", 4, [("Session", "1"), ("Transport", "a;b")]))
    assert isinstance(read, Request)
    assert (read.method, read.url, read.headers["cseq"]) == ("SETUP", "rtsp://h/x", "4")
    assert (read.headers["session"], read.headers["transport"]) == ("1", "a;b")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (b"OPTIONS * RTSP/1.0\r\nCSeq: 9\r\n\r\n", b"RTSP/1.0 200 OK\r\nCSeq: 9\r\nPublic: "),
        (b"GET_PARAMETER rtsp://h RTSP/1.0\r\n\r\n", b"RTSP/1.0 200 OK\r\n\r\n"),
        (b"ANNOUNCE rtsp://h RTSP/1.0\r\nCSeq: 1\r\n\r\n", b"RTSP/1.0 501 Not Implemented\r\nCSeq: 1\r\n\r\n"),
    ],
)
def test_a_camera_that_asks_is_answered(asked: bytes, said: bytes) -> None:
    """Some cameras send requests as a sign of life and hang up on whoever does not answer."""
    message = parse_message(asked)
    assert isinstance(message, ServerRequest)
    assert messages.answer(message).startswith(said)
