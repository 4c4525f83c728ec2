"""Cameras of MediaMTX's RTSP library, judged against what they were given to send and against what PyAV makes of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from gateway import nal
from tests.integration import gortsplib_camera
from tests.integration.camera_gateway import headers, pictures, recording, until
from tests.pictures import Unit, encode

pytestmark = pytest.mark.integration
ENGINES = ["native", "pyav"]
ENCODERS = {"h264": "libx264", "h265": "libx265"}
FPS, COUNT, SECOND = 60, 60, 90_000
SPAN = COUNT * SECOND // FPS
OPTIONS = {"rtsp_transport": "tcp"}


@pytest.fixture(autouse=True)
def _gortsplib() -> None:
    gortsplib_camera.require()


def irregular(units: Sequence[Unit]) -> list[Unit]:
    """With stamps that no frame rate explains; the first one's stays, so that each round is `SPAN` long."""
    return [replace(unit, pts=unit.pts + number * number % 97) for number, unit in enumerate(units)]


def read_by_libav(url: str, count: int) -> list[tuple[bytes, int | None, bool]]:
    """Bytes, stamp and key flag of access units, by libav's own client."""
    found: list[tuple[bytes, int | None, bool]] = []
    with av.open(url, options=OPTIONS, timeout=(10, 10)) as container:
        for packet in container.demux(video=0):
            found.append((bytes(packet), packet.pts, packet.is_keyframe))
            if len(found) == count:
                break
    return found


def places(found: Sequence[Sequence[bytes]], units: Sequence[Unit]) -> list[int]:
    """Which of the units sent each is, NAL for NAL; counted on from round to round."""
    known = {unit.nals: number for number, unit in enumerate(units)}
    assert len(known) == len(units), "the units sent cannot be told apart"
    numbers = [known[tuple(each)] for each in found]
    rounds = itertools.accumulate((b < a for a, b in itertools.pairwise(numbers)), initial=0)
    return [len(units) * turn + number for turn, number in zip(rounds, numbers, strict=True)]


def sent_stamps(numbers: Sequence[int], units: Sequence[Unit]) -> list[int]:
    """The stamps that these were sent with."""
    return [number // len(units) * SPAN + units[number % len(units)].pts for number in numbers]


def distances(stamps: Sequence[int]) -> list[int]:
    return [b - a for a, b in itertools.pairwise(stamps)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("codec", ["h264", "h265"])
async def test_access_units_stamps_and_key_flags_are_those_of_the_server_and_of_libav(
    tmp_path: Path, codec: str, engine: str
) -> None:
    """What is recorded, what libav reads at the same time and what was sent are the same, unit for unit."""
    units = irregular(encode(COUNT, codec=ENCODERS[codec], width=320, height=240, gop=15, fps=FPS))
    with gortsplib_camera.serving(tmp_path, codec, units, SPAN) as url:
        async with recording(tmp_path / "data", {"gate": {"url": url, "engine": engine}}) as gateway:
            judged = await asyncio.to_thread(read_by_libav, url, COUNT)
            await until(lambda: gateway.statistics("gate")["access_units"] >= COUNT)
            statistics = gateway.statistics("gate")
    assert (statistics["codec"], statistics["width"], statistics["height"], statistics["lost"]) == (codec, 320, 240, 0)
    keys = _check_recorded(pictures(gateway.stream("gate")), units, first_stamp_within=1 if engine == "native" else 200)
    _check_against(judged, units, keys)


async def test_h265_aggregates_without_a_temporal_id(tmp_path: Path) -> None:
    """Older versions of MediaMTX send such; libav drops them, and with them every parameter set. We record all."""
    units = irregular(encode(COUNT, codec="libx265", width=320, height=240, gop=15, fps=FPS))
    with gortsplib_camera.serving(tmp_path, "h265", units, SPAN, "-zero-tid") as url:
        async with recording(tmp_path / "data", {"gate": {"url": url}}) as gateway:
            await until(lambda: gateway.statistics("gate")["access_units"] >= COUNT)
            statistics = gateway.statistics("gate")
    assert (statistics["lost_packets"], statistics["damaged"], statistics["unsupported_packets"]) == (0, 0, 0)
    _check_recorded(pictures(gateway.stream("gate")), units, first_stamp_within=1)


def _check_recorded(records: list[Any], units: Sequence[Unit], *, first_stamp_within: int) -> dict[int, bool]:
    """What was recorded is what was sent; gives which units are key frames.

    first_stamp_within: libav does not know the first one's stamp, that engine derives it from the next two; in ticks.
    """
    numbers = places([nal.split(record.value or b"") for record in records], units)
    assert distances(numbers) == [1] * (len(numbers) - 1)
    found = distances([int(headers(record)["pts"]) for record in records])
    sent = distances(sent_stamps(numbers, units))
    assert found[1:] == sent[1:]
    assert abs(found[0] - sent[0]) < first_stamp_within
    keys = ["keyframe" in headers(record) for record in records]
    assert keys == [units[number % COUNT].key for number in numbers]
    return dict(zip([number % COUNT for number in numbers], keys, strict=True))


def _check_against(judged: list[tuple[bytes, int | None, bool]], units: Sequence[Unit], keys: dict[int, bool]) -> None:
    """libav's own client saw the same units, at the same distances, with the same key flags."""
    numbers = places([nal.split(data) for data, _, _ in judged], units)
    assert distances(numbers) == [1] * (len(numbers) - 1)
    known = [(number, pts) for number, (_, pts, _) in zip(numbers, judged, strict=True) if pts is not None]
    assert len(known) >= COUNT - 1
    stamps = sent_stamps([number for number, _ in known], units)
    assert distances([pts for _, pts in known])[1:] == distances(stamps)[1:]
    assert [key for _, _, key in judged] == [keys[number % COUNT] for number in numbers]


@pytest.mark.parametrize("engine", ENGINES)
async def test_mjpeg_pictures_are_those_sent(tmp_path: Path, engine: str) -> None:
    """The tables of a JPEG are sent apart from it (RFC 2435); put together again it decodes to the same picture."""
    images: list[np.ndarray[Any, Any]] = []
    units = []
    for number in range(FPS):
        picture = np.full((240, 320, 3), 40, np.uint8)
        picture[:, : 4 * number + 8] = (220, 120, 30)
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
        images.append(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
        units.append(Unit((data,), number * SECOND // FPS, True))
    with gortsplib_camera.serving(tmp_path, "jpeg", units, SECOND) as url:
        async with recording(tmp_path / "data", {"gate": {"url": url, "engine": engine}}) as gateway:
            await until(lambda: gateway.statistics("gate")["access_units"] >= FPS)
    records = pictures(gateway.stream("gate"))
    decoded = [cv2.imdecode(np.frombuffer(r.value or b"", np.uint8), cv2.IMREAD_COLOR) for r in records]
    numbers = [next(n for n, image in enumerate(images) if np.array_equal(image, each)) for each in decoded]
    assert [(b - a) % FPS for a, b in itertools.pairwise(numbers)] == [1] * (len(numbers) - 1)
    assert distances([int(headers(record)["pts"]) for record in records]) == [SECOND // FPS] * (len(records) - 1)


@pytest.mark.parametrize("method", ["md5", "sha-256", "basic"])
async def test_authentication_and_what_is_not_there(tmp_path: Path, method: str) -> None:
    """The right password opens, a wrong one does not, a path that is not served is called that."""
    units = encode(COUNT, gop=15, fps=FPS)
    login = ("-user", "viewer", "-password", "p w@/%", "-method", method)
    with gortsplib_camera.serving(tmp_path, "h264", units, SPAN, *login) as url:
        good = {"username": "viewer", "password": "p w@/%"}
        cameras = {
            "good": {"url": url, **good},
            "bad": {"url": url, "username": "viewer", "password": "wrong"},
            "elsewhere": {"url": url.replace("/cam", "/none"), **good},
        }
        async with recording(tmp_path / "data", cameras) as gateway:
            await until(lambda: gateway.statistics("good")["access_units"] >= 10)
            await until(lambda: gateway.statistics("bad")["state"] == "unauthorized")
            await until(lambda: gateway.statistics("elsewhere")["state"] == "not_found")
