"""The gateway makes key indexes of what it has sealed, for streams that are to have them, and only with room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config import from_dict
from gateway.ingest import key_indexer
from gateway.ingest.disk import Space
from gateway.ingest.engine import Engine
from gateway.ingest.key_indexer import KeyIndexer
from gateway.log.key_index import KeyIndex
from gateway.log.layout import partition_path, prepare
from tests.support.native import wait_until
from tests.support.partitions import Partition, make_batch


def _stream(data: Path, name: str, sealed: int) -> int:
    """A stream with so many sealed segments of one batch; returns the active one's base offset."""
    made = Partition(partition_path(data, name))
    for number in range(sealed):
        made.add([make_batch(number * 3)])
    made.add([make_batch(sealed * 3)], sealed=False)
    made.mark_all()
    return sealed * 3


def _names(data: Path, name: str) -> list[str]:
    return sorted(path.stem.lstrip("0") or "0" for path in partition_path(data, name).glob("*.keys"))


@pytest.fixture(name="indexer")
def make_indexer(tmp_path: Path) -> Iterator[tuple[KeyIndexer, dict[int, dict[str, Any]]]]:
    states: dict[int, dict[str, Any]] = {}
    indexer = KeyIndexer(tmp_path, 0, state=states.__getitem__, wanted=lambda name: name != "unwanted")
    yield indexer, states
    indexer.stop()


def test_sealed_segments_get_one(tmp_path: Path, indexer: tuple[KeyIndexer, dict[int, dict[str, Any]]]) -> None:
    """All that is there at the start, then each that is sealed; nothing of a stream that shall have none."""
    looks, states = indexer
    states[0] = {"segment_base": _stream(tmp_path, "telemetry", 3)}
    states[1] = {"segment_base": _stream(tmp_path, "unwanted", 2)}
    streams = {"telemetry": 0, "unwanted": 1}
    looks.look(streams)
    wait_until(lambda: looks.made == 3, "three indexes")
    assert _names(tmp_path, "telemetry") == ["0", "3", "6"]
    made = Partition(partition_path(tmp_path, "telemetry"))
    made.segments[9] = [make_batch(9)]
    made.add([make_batch(12)], sealed=False)
    made.mark_all()
    states[0] = {"segment_base": 12}
    looks.look(streams)
    wait_until(lambda: looks.made == 4, "one more index")
    assert _names(tmp_path, "telemetry") == ["0", "3", "6", "9"]
    assert _names(tmp_path, "unwanted") == []
    assert looks.statistics()["failures"] == 0


def test_without_room_none_is_made(
    tmp_path: Path, indexer: tuple[KeyIndexer, dict[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index never takes what the log needs; what was left out is counted."""
    looks, states = indexer
    states[0] = {"segment_base": _stream(tmp_path, "telemetry", 2)}
    monkeypatch.setattr(key_indexer, "space", lambda path: Space(1 << 40, 10))
    looks.look({"telemetry": 0})
    wait_until(lambda: looks.left_out == 2, "two segments to be left out")
    assert _names(tmp_path, "telemetry") == []


def test_the_gateway_makes_them(tmp_path: Path) -> None:
    """A running engine makes the index of what it seals; of a camera's stream only if that is set."""
    prepare(tmp_path, "here", "UTC")
    cameras = {"gate-1": {"url": "rtsp://127.0.0.1/x"}, "gate-2": {"url": "rtsp://127.0.0.1/y"}}
    streams = {"off": {"key_index": False}, "gate-2": {"key_index": True}}
    engine = Engine(from_dict({"data": str(tmp_path), "cameras": cameras, "streams": streams}))
    engine.start()
    try:
        ring = engine.ring("test")
        names = ["telemetry", "off", "gate-1", "gate-2"]
        for name in names:
            for _ in range(2):
                assert ring.append(engine.partition(name), b"key", b"value", b"", 1_700_000_000_000_000_000)
                assert engine.flush()
                engine.writer.roll(engine.partition(name))
        wanted = {"telemetry", "gate-2"}
        wait_until(lambda: {name for name in names if _names(tmp_path, name)} == wanted, "the key indexes", 20.0)
        with KeyIndex(partition_path(tmp_path, "telemetry"), 0) as index:
            assert [part.records for _, part in index.parts()] == [1]
        assert engine.statistics()["key_indexes"]["made"] >= 2
    finally:
        assert engine.close()


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    """Half an index, and that of a segment that was being deleted, are gone after the next start; others are made."""
    prepare(tmp_path, "here", "UTC")
    made = Partition(partition_path(tmp_path, "telemetry"))
    made.add([make_batch(3)])
    made.add([make_batch(6)], sealed=False)
    made.mark_all()
    orphan = made.directory / f"{0:020d}.keys"
    half = made.directory / f".{3:020d}.keys.new"
    for left in (orphan, half):
        left.write_bytes(b"GWKEYS1")
    engine = Engine(from_dict({"data": str(tmp_path)}))
    engine.start()
    try:
        engine.partition("telemetry")
        wait_until(lambda: _names(tmp_path, "telemetry") == ["3"], "the index", 20.0)
        assert not orphan.exists()
        assert not half.exists()
    finally:
        assert engine.close()
