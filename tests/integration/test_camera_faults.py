"""Cameras that do something wrong, or differently: what the records say afterwards, and what the health says meanwhile.

Every fault is the simulated camera's, asked for in its URL (gateway/simulate/faults.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from gateway.simulate.camera import CameraServer, Clip, ListFeed, Sent
from gateway.simulate.clips import make_clip
from gateway.simulate.coded import digest
from tests.integration.camera_gateway import CameraGateway, headers, recording, until
from tests.integration.sent_and_recorded import compare

FPS = 250  # so that tests take little time
UNITS = 150  # three turns of the loop
GOING_ON = ("connecting", "recording", "lossy")


@lru_cache(maxsize=8)
def clip(codec: str = "h264", b_frames: int = 0) -> Clip:
    return make_clip(
        "gate",
        width=320,
        height=240,
        fps=FPS,
        seconds=50 / FPS,
        gop_s=10 / FPS,
        codec=codec,
        b_frames=b_frames,
        alternative=True,
    )


@asynccontextmanager
async def serving(cameras: dict[str, ListFeed], **options: Any) -> AsyncIterator[CameraServer]:
    server = CameraServer(cameras, port=0, journal=100_000, **options)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Case(NamedTuple):
    """A camera and its faults."""

    query: str
    codec: str = "h264"
    b_frames: int = 0


class Outcome(NamedTuple):
    """What a camera sent, what is in its stream, and its last statistics."""

    sent: list[Sent]
    records: list[Any]
    statistics: dict[str, Any]


async def recorded_all(data: Path, cases: dict[str, Case], *, turns: int = 3) -> dict[str, Outcome]:
    """Record all these cameras at once, each to its end."""
    feeds = {
        name: ListFeed(clip(case.codec, case.b_frames), repeat=turns, at_end="close") for name, case in cases.items()
    }
    async with serving(feeds) as server:
        cameras = {
            name: {"url": server.urls[name] + case.query, "reconnect_min": "30s"} for name, case in cases.items()
        }
        async with recording(data, cameras) as gateway:
            for name in cases:
                await until(lambda name=name: gateway.statistics(name)["state"] not in GOING_ON)  # type: ignore[misc]
            statistics = {name: gateway.statistics(name) for name in cases}
        return {
            name: Outcome(
                [each for each in server.journal if each.path == name],
                list(gateway.stream(name).read()),
                statistics[name],
            )
            for name in cases
        }


async def recorded(data: Path, query: str, *, turns: int = 3) -> Outcome:
    """The same for one camera."""
    return (await recorded_all(data, {"gate": Case(query)}, turns=turns))["gate"]


def pictures(records: Sequence[Any]) -> list[Any]:
    return [record for record in records if "codec" in headers(record)]


def digests(records: Sequence[Any]) -> list[str]:
    return [digest(headers(record)["codec"], record.value or b"") for record in pictures(records)]


def runs(records: Sequence[Any]) -> list[str]:
    """The run of each picture."""
    return [headers(record)["run"] for record in pictures(records)]


MANNERS = {
    "plain": "",
    "marker-on-sei-and-delimiters": "?sei=1&aud=1",
    "aggregated-in-small-packets": "?aggregate=1&mtu=300",
    "odd-chunks": "?chunk=1001",
    "tiny-chunks": "?chunk=13&mtu=60000",
    "audio-track": "?audio=1",
    "requests-of-the-server": "?text=7",
    "parameter-sets-flap": "?switch=1",
    "sequence-and-time-wrap": "?seq=65500&rtp=4294950000",
    "wrong-frame-rate": "?fps=1",
    "no-sprop-and-whole-urls": "?sprop=0&control=absolute",
    "no-content-base-and-late": "?control=query&delay=0.05",
    "redirected": "?redirect=2",
    "no-sender-reports": "?report=0",
}


async def test_every_manner_of_sending_is_recorded_byte_for_byte(tmp_path: Path) -> None:
    """Nothing is missing, changed or flagged, in one run, whatever habits the camera has."""
    found = await recorded_all(tmp_path, {name: Case(query) for name, query in MANNERS.items()})
    for name, (sent, records, statistics) in found.items():
        assert len(sent) == UNITS, name
        assert digests(records) == [each.digest for each in sent], name
        assert len(set(runs(records))) == 1, name
        assert not any({"lost", "lost_packets", "damaged"} & headers(record).keys() for record in records), name
        assert (statistics["lost"], statistics["lost_packets"], statistics["damaged"]) == (0, 0, 0), name
        stamps = [int(headers(record)["pts"]) for record in pictures(records)]
        assert [stamp - stamps[0] for stamp in stamps] == [each.ticks - sent[0].ticks for each in sent], name
        assert statistics["state"] == "closed", name
    assert found["parameter-sets-flap"].statistics["parameter_changes"] >= UNITS // 10 - 1


CODECS = {"hevc": ("h265", 0), "hevc-b": ("h265", 2), "mjpeg": ("jpeg", 0), "avc-b": ("h264", 2)}


async def test_every_codec_is_recorded_byte_for_byte(tmp_path: Path) -> None:
    """Also with B-frames, with parameter sets that flap, and in odd chunks."""
    queries = {"": "", "-switch": "?switch=1&chunk=999"}
    cases = {name + kind: Case(query, *codec) for name, codec in CODECS.items() for kind, query in queries.items()}
    for name, (sent, records, _) in (await recorded_all(tmp_path, cases)).items():
        found = compare(sent, records)
        assert (found.recorded, found.missing, found.changed, found.flagged) == (UNITS, [], [], []), name


async def test_losses_counted_are_those_made(tmp_path: Path) -> None:
    """Every packet that is missing is counted, no damaged access unit is unflagged, and a gap record says so."""
    queries = ("?loss=1&mtu=300", "?loss=5&burst=20&mtu=300", "?loss=5&mtu=300&sei=1&aggregate=1")
    cases = {f"h264-{n}-{seed}": Case(f"{query}&seed={seed}") for n, query in enumerate(queries) for seed in range(3)}
    cases |= {name: Case("?loss=1&mtu=300", *codec) for name, codec in CODECS.items()}
    for name, (sent, records, statistics) in (await recorded_all(tmp_path, cases)).items():
        found = compare(sent, records)
        assert found.lost_made > 0, name
        assert found.lost_packets == found.lost_made, name
        assert found.changed == [], name
        last = max(set(range(UNITS)) - {n for n, each in enumerate(sent) if each.lost})
        damaged = {n for n, each in enumerate(sent[:last]) if each.lost}
        assert damaged <= set(found.missing) | set(found.flagged), name
        assert statistics["lost_packets"] >= found.lost_packets, name
        assert any("reason=packet-loss" in headers(record).get("gateway.gap", "") for record in records), name


async def test_a_clock_jump_begins_a_run(tmp_path: Path) -> None:
    """Both ways: every access unit is there, the one after the jump begins a new run, and the jump is counted."""
    cases = {f"by{seconds:g}": Case(f"?jump={seconds}&jump_at=70") for seconds in (-100, 100, -1e5, 1e5)}
    for name, (sent, records, statistics) in (await recorded_all(tmp_path, cases)).items():
        assert digests(records) == [each.digest for each in sent], name
        found = runs(records)
        assert [found[0]] * 70 + [found[-1]] * (UNITS - 70) == found, name
        assert int(found[0]) < int(found[-1]), name
        assert statistics["clock_jumps"] == 1, name


async def test_another_source_begins_a_run(tmp_path: Path) -> None:
    """A camera that restarts its encoder within the connection: other SSRC, other stamps, other sequence numbers."""
    sent, records, statistics = await recorded(tmp_path, "?ssrc=70")
    assert digests(records) == [each.digest for each in sent]
    found = runs(records)
    assert [found[0]] * 70 + [found[-1]] * (UNITS - 70) == found
    assert found[0] != found[-1]
    assert statistics["lost_packets"] == 0


async def test_the_cameras_wrong_clock_is_recorded_as_it_is(tmp_path: Path) -> None:
    """source_time is what the camera says, an hour ahead here; before its first report there is none."""
    sent, records, _ = await recorded(tmp_path, "?clock=3600&first_report=0.2&report=0.1")
    said = [headers(record).get("source_time") for record in pictures(records)]
    begin = said.index(next(each for each in said if each))
    assert 20 <= begin <= 80
    assert all(said[begin:])
    for each, unit in zip(said[begin:], sent[begin:], strict=True):
        assert each is not None
        assert abs(int(each) - unit.wall_ns - 3_600 * 10**9) < 100_000


async def test_a_connection_that_ends_is_made_again(tmp_path: Path) -> None:
    """The cause is the state meanwhile; all that came whole is kept, and the time without pictures is a gap record."""
    states = {"close": "closed", "bye": "closed", "garbage": "unsupported"}
    async with serving({name: ListFeed(clip(), repeat=0) for name in states}) as server:
        cameras = {name: {"url": f"{server.urls[name]}?{name}=60", "reconnect_min": "500ms"} for name in states}
        async with recording(tmp_path, cameras) as gateway:
            left = set(states)
            async with asyncio.timeout(30):
                while left:
                    left -= {name for name in left if gateway.statistics(name)["state"] == states[name]}
                    await asyncio.sleep(0.01)
            await until(lambda: all(gateway.statistics(name)["access_units"] >= 100 for name in states))
    for name in states:
        records = list(gateway.stream(name).read())
        sent = [each for each in server.journal if each.path == name]
        found = runs(records)
        assert found.count(found[0]) == 60, name
        assert digests(records)[:60] == [each.digest for each in sent[:60]], name
        assert len(set(found)) >= 2, name
        gaps = [headers(record)["gateway.gap"] for record in records if "gateway.gap" in headers(record)]
        assert any("reason=camera-away" in gap for gap in gaps), name


async def test_packets_that_come_twice_or_swapped_change_nothing_silently(tmp_path: Path) -> None:
    """Doubled ones are left out; a swapped one is either put right or counted as lost and flagged."""
    cases = {"twice": Case("?duplicate=5&mtu=300"), "swapped": Case("?reorder=2&mtu=300")}
    outcomes = await recorded_all(tmp_path, cases)
    found = compare(outcomes["twice"].sent, outcomes["twice"].records)
    assert (found.recorded, found.changed, found.flagged, found.lost_packets) == (UNITS, [], [], 0)
    assert compare(outcomes["swapped"].sent, outcomes["swapped"].records).changed == []


async def test_a_camera_that_falls_silent_is_noticed_while_others_lose_nothing(tmp_path: Path) -> None:
    """Frozen or only without pictures: stalled after five seconds and connected again; fifty others miss nothing."""
    small = make_clip("others", width=160, height=120, fps=20, seconds=1, gop_s=1)
    names = [f"other-{number}" for number in range(50)]
    silent = {"frozen": "?freeze=100", "stalled": "?stall=100"}
    feeds = {name: ListFeed(clip(), repeat=0) for name in silent}
    feeds |= {name: ListFeed(small, repeat=0) for name in names}
    async with serving(feeds) as server:
        cameras = {
            name: {"url": url + silent.get(name, ""), "reconnect_min": "100ms"} for name, url in server.urls.items()
        }
        async with recording(tmp_path, cameras) as gateway:
            await until(lambda: all(gateway.statistics(name)["access_units"] >= 100 for name in silent))
            began = time.monotonic()
            await until(lambda: all(gateway.statistics(name)["state"] == "stalled" for name in silent))
            noticed_s = time.monotonic() - began
            await until(lambda: all(gateway.statistics(name)["access_units"] > 100 for name in silent))
            assert {gateway.statistics(name)["state"] for name in names} == {"recording"}
        sent: dict[str, list[str]] = {name: [] for name in names}
        for each in server.journal:
            if each.path in sent:
                sent[each.path].append(each.digest)
        check_others(gateway, sent)
    assert 4 < noticed_s < 10


def check_others(gateway: CameraGateway, sent: dict[str, list[str]]) -> None:
    """Every one has all that was sent from its first access unit to its last."""
    for name, expected in sent.items():
        found = digests(list(gateway.stream(name).read()))
        assert len(found) > 80
        assert found == expected[: len(found)]
        assert len(found) >= len(expected) - 3


async def test_a_stall_that_ends_keeps_the_connection(tmp_path: Path) -> None:
    """Seven seconds are too long, two are not: no new run, no loss."""
    sent, records, statistics = await recorded(tmp_path, "?stall=60&stall_s=2", turns=8)
    assert digests(records) == [each.digest for each in sent]
    assert len(set(runs(records))) == 1
    assert statistics["reconnects"] == 1, "that of the end"


async def test_the_wrong_frame_rate_is_measured(tmp_path: Path) -> None:
    """The session description says 1; statistics say what comes."""
    async with serving({"gate": ListFeed(clip(), repeat=0)}) as server:
        async with recording(tmp_path, {"gate": {"url": server.urls["gate"] + "?fps=1"}}) as gateway:
            await until(lambda: 0.9 * FPS < gateway.statistics("gate")["fps"] < 1.1 * FPS, 15)
            await until(lambda: gateway.statistics("gate")["bits_per_second"] > 100_000, 15)
