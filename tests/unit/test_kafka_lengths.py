"""Lengths in messages that cannot be: found before anything is allocated, and nulls where there may be none."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest

from gateway.kafka import lengths, wire
from tests.fuzz.kafka_seeds import VALUES
from tests.fuzz.target_kafka import APIS
from tests.support.kafka_endpoint import running_endpoint
from tests.support.kafka_wire import WireClient, request


def _parse(frame: bytes) -> Any:
    return wire.parse_body(wire.parse_header(frame), frame)


@pytest.mark.parametrize(("api", "version"), APIS)
def test_what_is_sound_is_read_and_nothing_shorter(api: int, version: int) -> None:
    """Each API in each version; cut off anywhere it is refused, with a sentence."""
    frame = request(api, version, VALUES[api])[4:]
    assert _parse(frame) is not None
    start = wire.parse_header(frame).body_start
    for end in range(start, len(frame)):
        with pytest.raises(wire.ProtocolError, match="cannot be read"):
            _parse(frame[:end])


@pytest.mark.parametrize("count", [2**31 - 1, 2**28, 1_000, -2])
@pytest.mark.parametrize("version", [8, 12])
def test_an_array_of_more_elements_than_there_are_bytes(version: int, count: int) -> None:
    """Whatever it claims, in both forms of lengths."""
    compact = version > 8
    frame = request(wire.METADATA, version, {**VALUES[wire.METADATA], "topics": []})[4:]
    at = wire.parse_header(frame).body_start
    claimed = _varint((count + 1) & 0xFFFFFFFF) if compact else struct.pack(">i", count)
    with pytest.raises(wire.ProtocolError, match="topics"):
        _parse(frame[:at] + claimed + frame[at + (1 if compact else 4) :])


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def test_more_elements_than_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All arrays of a message together."""
    topics = [{"name": f"topic-{number}", "topic_id": None} for number in range(20)]
    frame = request(wire.METADATA, 12, {**VALUES[wire.METADATA], "topics": topics})[4:]
    schema, start = wire._schema(wire.METADATA, 12, wire.EntityType.request), wire.parse_header(frame).body_start
    lengths.check_lengths(schema, frame, start, elements_max=20)
    with pytest.raises(lengths.ImpossibleLength, match="more elements"):
        lengths.check_lengths(schema, frame, start, elements_max=19)


def test_a_broker_that_claims_too_much() -> None:
    """It ends the connection, not the process of whoever reads."""
    with pytest.raises(wire.ProtocolError, match="brokers is longer than what there is"):
        wire.parse_response(wire.METADATA, 9, 7, struct.pack(">i", 7) + b"\0" + bytes(4) + b"\xff\xff\xff\xff\x0f")


async def test_the_endpoint_bears_them(tmp_path: Path) -> None:
    """A null, and an array of billions, close their connections; a topic by its id is not known; others go on."""
    null_members = request(wire.LEAVE_GROUP, 4, VALUES[wire.LEAVE_GROUP])[4:]
    start = wire.parse_header(null_members).body_start
    null_members = null_members[: start + 1 + len("group")] + b"\0\0"
    billions = request(wire.METADATA, 12, {**VALUES[wire.METADATA], "topics": []})[4:]
    start = wire.parse_header(billions).body_start
    billions = billions[:start] + _varint(2**31) + billions[start + 1 :]
    async with running_endpoint(tmp_path / "data") as running:

        def use() -> None:
            with WireClient(running.port) as other:
                for frame in (null_members, billions):
                    with WireClient(running.port) as client:
                        client.socket.sendall(wire.framed(frame))
                        assert client.is_closed
                asked = {**VALUES[wire.METADATA], "topics": [{"name": None, "topic_id": None}]}
                assert [topic.error_code for topic in other.call(wire.METADATA, 12, **asked).topics] == [100]

        await asyncio.to_thread(use)
        statistics = running.endpoint.statistics()
        assert (statistics["protocol_errors"], statistics.get("faults", 0)) == (2, 0)
