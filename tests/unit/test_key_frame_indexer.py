"""The gateway indexes key frames while it records, and after a restart what has none; ingest never waits for it."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import from_dict
from gateway.ingest.engine import Engine
from gateway.ingest.key_frames import KeyFrameIndexer
from gateway.log import key_frames
from gateway.log.key_frame_finder import KeyFrameFinder
from gateway.log.layout import KEY_FRAMES_SUFFIX, list_segments, segment_name
from gateway.log.partition import PartitionReader
from gateway.log.retention import delete_segment
from tests.pictures import T0_MS, FakeStream, encode
from tests.support.camera_log import STREAM, CameraLog, camera_log
from tests.support.native import wait_until

GOP = 10


@pytest.fixture(name="log")
def log_fixture(tmp_path: Path) -> Iterator[CameraLog]:
    """Forty pictures on the disk, of which the first twenty are in a sealed segment."""
    with camera_log(tmp_path, FakeStream().add(encode(40, gop=GOP)), roll_at=[20]) as made:
        yield made


def more(count: int, after: int) -> FakeStream:
    """Pictures that follow."""
    return FakeStream().add(encode(count, gop=GOP), begin_ms=T0_MS + after * 40)


def indexer(log: CameraLog) -> KeyFrameIndexer:
    return KeyFrameIndexer(log.data, lambda: [STREAM])


def run(made: KeyFrameIndexer, rounds: int = 20) -> None:
    """Until nothing is left."""
    for _ in range(rounds):
        if not made.round():
            return
    pytest.fail("it never comes to an end")


def indexed(log: CameraLog) -> dict[int, list[int]]:
    """Segments that have an index, and the offsets in it."""
    bases = list_segments(log.directory)
    found = {}
    for base, end in itertools.pairwise(bases):
        index = key_frames.load(log.directory, base, end)
        if index is not None:
            found[base] = [each.offset for each in index]
    return found


def test_segments_get_their_index_when_they_are_sealed(log: CameraLog) -> None:
    """What was recorded before the first look and what comes after it; the active segment has none."""
    made = indexer(log)
    run(made)
    assert indexed(log) == {0: [0, 10]}
    log.roll()
    log.write(more(20, 40).records, roll_at=[10])
    run(made)
    assert indexed(log) == {0: [0, 10], 20: [20, 30], 40: [40]}
    assert made.statistics() == {"written": 3, "waiting": 0, "failures": 0}
    finder = KeyFrameFinder(PartitionReader(log.directory))
    assert [found.offset for found in finder.between(0, 100)] == [0, 10, 20, 30, 40, 50]


def test_after_a_restart_only_what_is_missing_is_made(log: CameraLog) -> None:
    """One that was lost, one that belongs to another segment, one that was cut short; the sound one stays untouched."""
    log.roll()
    log.write(more(30, 40).records, roll_at=[10, 20])
    run(indexer(log))
    whole = indexed(log)
    assert list(whole) == [0, 20, 40, 50]
    paths = [log.directory / segment_name(base, KEY_FRAMES_SUFFIX) for base in whole]
    paths[1].unlink()
    paths[2].write_bytes(paths[0].read_bytes())
    paths[3].write_bytes(paths[3].read_bytes()[:-1])
    untouched = paths[0].stat().st_ino
    made = indexer(log)
    run(made)
    assert (made.written, indexed(log)) == (3, whole)
    assert paths[0].stat().st_ino == untouched


def test_a_full_disk_costs_the_index_only(log: CameraLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, nothing is left behind, and the next start makes it."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(key_frames, "replace", full)
        made = indexer(log)
        run(made)
        assert made.statistics() == {"written": 0, "waiting": 0, "failures": 1}
    assert indexed(log) == {}
    run(indexer(log))
    assert indexed(log) == {0: [0, 10]}


def test_the_reserve_of_the_disk_stays_free(log: CameraLog) -> None:
    """Where less is free than that, an index has to wait for the next start."""
    made = KeyFrameIndexer(log.data, lambda: [STREAM], reserve_bytes=1 << 62)
    run(made)
    assert (made.written, made.failures, indexed(log)) == (0, 1, {})


def test_retention_may_be_faster(log: CameraLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that is deleted while its index is made leaves none behind, and no failure."""
    write = key_frames.write

    def late(search: key_frames.Search, end_offset: int) -> bool:
        delete_segment(log.directory, search.base_offset)
        return write(search, end_offset)

    monkeypatch.setattr(key_frames, "write", late)
    made = indexer(log)
    run(made)
    assert made.failures == 0
    assert [path.name for path in log.directory.glob(f"*{KEY_FRAMES_SUFFIX}")] == []


def test_a_segment_gone_before_it_was_looked_through(log: CameraLog) -> None:
    """Nothing is left waiting for it."""
    log.roll()
    log.write(more(10, 40).records)
    made = indexer(log)
    made.round()
    for base in (0, 20):
        delete_segment(log.directory, base)
    run(made)
    assert (made.failures, made.statistics()["waiting"]) == (0, 0)


def test_a_fault_of_ours_ends_one_stream_only(log: CameraLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged and counted once; other streams, and the thread, go on."""

    def broken(*_: object) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(key_frames.Search, "step", broken)
    made = KeyFrameIndexer(log.data, lambda: [STREAM, "not-there"])
    for _ in range(3):
        made.round()
    assert made.failures == 1


def test_the_thread_comes_with_the_first_camera_and_ends(log: CameraLog) -> None:
    """Without a camera's stream there is none; told to stop it ends."""
    streams: list[str] = []
    made = KeyFrameIndexer(log.data, lambda: streams, interval_s=0.01)
    made.look()
    assert "gateway-key-frames" not in {thread.name for thread in threading.enumerate()}
    streams.append(STREAM)
    made.look()
    wait_until(lambda: made.written == 1, "the index")
    made.stop()
    assert "gateway-key-frames" not in {thread.name for thread in threading.enumerate()}
    made.look()
    assert "gateway-key-frames" not in {thread.name for thread in threading.enumerate()}


def test_the_engine_follows_the_streams_of_its_cameras(tmp_path: Path) -> None:
    """Those that are open; its statistics tell of it, and its end is the thread's."""
    config = from_dict({"data": str(tmp_path), "cameras": {"gate-1": {"url": "rtsp://127.0.0.1/x", "stream": STREAM}}})
    engine = Engine(config)
    engine.start()
    try:
        engine.partition("telemetry")
        assert engine._camera_streams() == set()
        engine.partition(STREAM)
        assert engine._camera_streams() == {STREAM}
        wait_until(lambda: "gateway-key-frames" in {thread.name for thread in threading.enumerate()}, "the thread")
        assert engine.statistics()["key_frames"] == {"written": 0, "waiting": 0, "failures": 0}
    finally:
        engine.close()
    assert "gateway-key-frames" not in {thread.name for thread in threading.enumerate()}
