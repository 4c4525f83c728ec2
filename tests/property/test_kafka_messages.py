"""Messages of Kafka's protocol that went wrong on the way: read, or refused with a sentence, whatever they are."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.kafka import wire
from tests.fuzz.kafka_seeds import VALUES
from tests.fuzz.target_kafka import APIS
from tests.support.kafka_wire import request

FRAMES = {one: request(*one, VALUES[one[0]])[4:] for one in APIS}
# Bytes that lengths are made of, among any others.
BYTES = st.one_of(st.sampled_from([0x00, 0x01, 0x7F, 0x80, 0xFF]), st.integers(0, 255))


@st.composite
def _changed(draw: Any) -> bytes:
    """A sound request with some bytes changed, left out or put in."""
    frame = bytearray(FRAMES[draw(st.sampled_from(APIS))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        frame[at : at + draw(st.integers(0, 4))] = bytes(draw(st.lists(BYTES, max_size=8)))
    return bytes(frame)


@given(_changed())
def test_a_changed_request_is_read_or_refused(frame: bytes) -> None:
    """Nothing but ProtocolError comes of it."""
    with contextlib.suppress(wire.ProtocolError):
        header = wire.parse_header(frame)
        if wire.is_supported(header.api_key, header.version):
            wire.parse_body(header, frame)


@given(st.sampled_from(APIS), st.binary(max_size=200))
def test_any_answer_is_read_or_refused(api: tuple[int, int], answer: bytes) -> None:
    """The same for what a broker sends."""
    with contextlib.suppress(wire.ProtocolError):
        wire.parse_response(*api, 7, b"\0\0\0\7" + answer)
