"""The control plane without a broker: requests, answers, what waits, reports of bounded size, small pictures."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import av
import pytest

from gateway.config import from_dict
from gateway.control import outbox as boxes
from gateway.control import pictures, reports
from gateway.control.commands import REQUEST_BYTES_MAX, BadRequest, Request, execute, parse
from gateway.control.outbox import Outbox, Outgoing
from gateway.errors import GatewayError, NoFrame


def test_requests() -> None:
    """What a request may be, and what of it comes back."""
    assert parse(b'{"id": 7, "command": "pause", "source": "devices"}') == Request(7, "pause", "devices")
    assert parse(b'{"command": "status"}') == Request(None, "status")
    assert parse(b'{"id": "a", "command": "status"}').echo() == {"id": "a", "command": "status"}


@pytest.mark.parametrize(
    ("payload", "sentence", "echo"),
    [
        (b"", "JSON object in UTF-8", {"id": None}),
        (b"\xff", "JSON object in UTF-8", {"id": None}),
        (b"[" * 4_000, "JSON object in UTF-8", {"id": None}),
        (b"[1]", "no object", {"id": None}),
        (b"x" * (REQUEST_BYTES_MAX + 1), "has at most 4096 bytes; this one has 4097", {"id": None}),
        (b'{"id": 1, "command": "reboot"}', "one of status, pause, resume, snapshot, not 'reboot'", {"id": 1}),
        (b'{"id": 1, "command": ["status"]}', "one of status", {"id": 1}),
        (b'{"id": 1, "command": "status", "sauce": 1}', "Unknown member 'sauce'", {"id": 1}),
        (b'{"id": 1, "command": "pause"}', "needs a 'source'", {"id": 1, "command": "pause"}),
        (b'{"id": 1, "command": "pause", "source": 5}', "name of a source", {"id": 1, "command": "pause"}),
        (b'{"id": {"a": 1}, "command": "x"}', "one of status", {"id": None}),
        (b'{"id": true, "command": "x"}', "one of status", {"id": None}),
        (b'{"id": "%b", "command": "x"}' % (b"i" * 129), "one of status", {"id": None}),
    ],
)
def test_request_that_is_none(payload: bytes, sentence: str, echo: dict[str, Any]) -> None:
    """Each mistake is a sentence of bounded length, and who asked is told which request it was."""
    with pytest.raises(BadRequest, match=sentence) as raised:
        parse(payload)
    assert raised.value.echo == echo
    assert len(str(raised.value)) < 400


# -- what waits --------------------------------------------------------------------------------------------------------


async def test_statistics_pile_up() -> None:
    """Only the newest statistics wait; an answer stays."""
    box = Outbox()
    box.put(Outgoing("a", b"answer"))
    for number in range(5):
        box.put(Outgoing("s", b"%d" % number, replaceable=True))
    assert (len(box), box.dropped) == (2, 4)
    first = await box.first()
    assert first.payload == b"answer"
    box.done(first)
    assert (await box.first()).payload == b"4"


async def test_full_outbox() -> None:
    """Statistics go first, then the oldest answers; number and bytes stay bounded, and each that goes is counted."""
    box = Outbox()
    box.put(Outgoing("s", b"statistics", replaceable=True))
    for number in range(boxes.MESSAGES_MAX + 1):
        box.put(Outgoing("a", b"%d" % number))
    assert (len(box), box.dropped) == (boxes.MESSAGES_MAX, 2)
    assert (await box.first()).payload == b"1"
    box.put(Outgoing("p", b"x" * (boxes.BYTES_MAX - 1)))
    assert len(box) == 1
    assert box.bytes == boxes.BYTES_MAX
    box.put(Outgoing("p", b"x" * boxes.BYTES_MAX))
    assert len(box) == 1, "what fits nowhere drops nothing else"


async def test_dropped_while_it_is_being_sent() -> None:
    """A message that was dropped meanwhile takes no other with it when it has left."""
    box = Outbox()
    box.put(Outgoing("s", b"same", replaceable=True))
    sending = await box.first()
    box.put(Outgoing("s", b"same", replaceable=True))
    box.done(sending)
    assert (len(box), box.bytes) == (1, 5)


async def test_outbox_wakes_its_sender() -> None:
    """Who waits for the first message gets it."""
    box = Outbox()
    waiting = asyncio.create_task(box.first())
    await asyncio.sleep(0)
    assert not waiting.done()
    box.put(Outgoing("a", b"1"))
    assert (await waiting).payload == b"1"


# -- reports -----------------------------------------------------------------------------------------------------------


def test_reports_are_bounded() -> None:
    """A thousand streams do not make a message that no broker takes: the largest parts go, and are named."""
    report = {"time": "now", "streams": {f"stream-{n}": {"bytes": n} for n in range(50_000)}, "sources": {"a": 1}}
    encoded = reports.encode(report)
    assert len(encoded) <= reports.REPORT_BYTES_MAX
    assert json.loads(encoded) == {"time": "now", "sources": {"a": 1}, "left_out": ["streams"]}


@pytest.mark.parametrize("width", range(900, 1_100, 7))
def test_reports_at_the_bound(width: int) -> None:
    """Whatever the sizes, no report is larger than allowed, and all are JSON."""
    encoded = reports.encode({f"member-{n}": "ä" * (width // 10 * n) for n in range(10)}, 4_096)
    assert len(encoded) <= 4_096
    assert json.loads(encoded)["left_out"]


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "fits"),
    [((1920, 1080), (640, 360)), ((320, 240), (320, 240)), ((720, 1280), (360, 640)), ((4_000, 2), (640, 2)),
     ((7, 5), (6, 4))],
)  # fmt: skip
def test_size_of_a_snapshot(size: tuple[int, int], fits: tuple[int, int]) -> None:
    """Scaled down in proportion, never up, to even numbers."""
    assert pictures.fitted(*size) == fits


def test_snapshot_is_a_small_picture() -> None:
    """Noise, which compresses worst, still fits the bound, and any decoder reads it."""
    noise = av.VideoFrame(1920, 1080, "yuv420p")
    for plane in noise.planes:
        plane.update(
            bytes(n * n % 251 for n in range(997)) * (plane.buffer_size // 997) + bytes(plane.buffer_size % 997)
        )
    jpeg, width, height = pictures.encode(noise, "gate")
    assert len(jpeg) <= pictures.PICTURE_BYTES_MAX
    decoder = av.CodecContext.create("mjpeg", "r")
    (decoded,) = [*decoder.decode(av.Packet(jpeg)), *decoder.decode(None)]
    assert (decoded.width, decoded.height) == (width, height) == (640, 360)


def test_snapshot_that_cannot_be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather none than one that is too large."""
    monkeypatch.setattr(pictures, "PICTURE_BYTES_MAX", 100)
    with pytest.raises(GatewayError, match="'gate' does not become smaller than 100 bytes"):
        pictures.encode(av.VideoFrame(64, 64, "yuv420p"), "gate")


# -- commands ----------------------------------------------------------------------------------------------------------


class OneSource:
    """A gateway with one camera that has recorded nothing yet."""

    class _Source:
        name, kind = "gate", "camera"

        def statistics(self) -> dict[str, Any]:
            return {"state": "connecting", "access_units": 0}

    def __init__(self, data: Path) -> None:
        self.config = from_dict({"data": str(data), "cameras": {"gate": {"url": "rtsp://127.0.0.1/x"}}})
        self.sources: dict[str, Any] = {"gate": self._Source()}
        self.held: frozenset[str] = frozenset()

    async def hold(self, name: str) -> None:
        self.held = frozenset([name])

    async def release(self, name: str) -> None:
        self.held = frozenset()

    def statistics(self) -> dict[str, Any]:
        return {}


async def test_commands(tmp_path: Path) -> None:
    """Each command's answer; a source that is not there, and a camera without pictures, are sentences."""
    from gateway.log.layout import prepare

    prepare(tmp_path, "test", "UTC")
    gateway = OneSource(tmp_path)
    assert await execute(Request(1, "pause", "gate"), gateway) == ({"paused": True}, None)
    states = {"gate": {"kind": "camera", "state": "connecting", "paused": True}}
    assert await execute(Request(1, "status"), gateway) == ({"status": "online", "sources": states}, None)
    assert await execute(Request(1, "resume", "gate"), gateway) == ({"paused": False}, None)
    answer, _ = await execute(Request(1, "status", "gate"), gateway)
    assert answer == {"kind": "camera", "paused": False, "statistics": {"state": "connecting", "access_units": 0}}
    with pytest.raises(NoFrame, match="'gate' holds no pictures of 'gate' yet"):
        await execute(Request(1, "snapshot", "gate"), gateway)
    with pytest.raises(GatewayError, match="no source 'nobody' here"):
        await execute(Request(1, "status", "nobody"), gateway)
