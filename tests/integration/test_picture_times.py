"""The picture at an instant shows, by the clock burnt into it, what the camera saw then: right to the frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway import nal
from gateway.clock import NS_PER_MS
from gateway.replay.camera_records import moment
from gateway.simulate.camera import CameraServer, LiveFeed
from gateway.simulate.feeds import AccessUnit
from gateway.simulate.picture import Picture
from tests.integration.camera_gateway import headers, recording, until

NAME, WIDTH, HEIGHT, FPS = "gate", 640, 360, 15


def clock_of(image: Any) -> Any:
    """The part of a picture in which its clock and its number stand."""
    return np.concatenate([image[:100, :320], image[300:, :480, :].reshape(-1, 320, 3)]).astype(np.int16)


def shown(image: Any, candidates: Sequence[AccessUnit]) -> int:
    """Which of some access units a picture shows, by what is burnt into it."""
    drawn = Picture(NAME, WIDTH, HEIGHT)
    found = [np.abs(clock_of(drawn.draw(each.index, each.wall_ns)) - clock_of(image)).mean() for each in candidates]
    best, second = sorted(found)[:2]
    assert best < second * 0.9, "the picture shows none of them clearly"
    return int(np.argmin(found))


async def test_the_clock_in_the_picture_is_the_one_of_its_record(tmp_path: Path) -> None:
    """Asked for an instant between two pictures, the one before is shown: recorded, indexed, found, decoded right."""
    server = CameraServer({NAME: LiveFeed(NAME, width=WIDTH, height=HEIGHT, fps=FPS)}, port=0, journal=1000)
    await server.start()
    try:
        async with recording(tmp_path, {NAME: {"url": server.urls[NAME]}}) as gateway:
            await until(lambda: gateway.statistics(NAME)["access_units"] >= 50)
        stream = gateway.stream(NAME)
        records = [record for record in stream.read() if record.value is not None]
    finally:
        await server.stop()
    sent = list(server.journal)
    place = {nal.join(unit.nals): number for number, unit in enumerate(sent)}
    # On a machine that does not keep up several come at once: between those there is no instant.
    apart = [n for n in range(45) if records[n + 1].timestamp_ms - records[n].timestamp_ms >= 2]
    assert len(apart) >= 7
    for number in apart[:: len(apart) // 7]:
        record, following = records[number], records[number + 1]
        assert record.value is not None
        at = place[record.value]
        between_ms = (record.timestamp_ms + following.timestamp_ms) // 2
        frame = stream.at(moment(between_ms))
        assert frame.offset == record.offset
        first = max(at - 2, 0)
        assert first + shown(frame.bgr, sent[first : at + 3]) == at
        # What the camera's own clock says is what it drew.
        assert frame.source_time_ns is not None
        assert abs(frame.source_time_ns - sent[at].wall_ns) < NS_PER_MS
    key = stream.at(records[40].timestamp, nearest_key=True)
    assert "keyframe" in headers(next(record for record in records if record.offset == key.offset))
