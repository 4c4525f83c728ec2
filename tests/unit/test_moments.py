"""Everything at an instant, over streams of sensors and of cameras."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch

import gateway
from gateway.errors import StreamNotFound, UsageError
from gateway.replay import moments
from gateway.replay.camera_records import moment
from tests.pictures import FakeStream, encode
from tests.support.columns import Put, make_stream
from tests.support.partitions import T0, Partition


def put_camera(data: Path, name: str, pictures: int) -> gateway.Stream:
    """A stream of a camera's pictures, from T0 on."""
    records = FakeStream().add(encode(pictures, gop=5)).records
    first = records[0].timestamp_ms
    partition = Partition(data / f"{name}-0")
    partition.add(
        [
            batch.encode([(T0 + each.timestamp_ms - first, name.encode(), each.value, list(each.headers))], each.offset)
            for each in records
        ],
        sealed=False,
    )
    partition.mark_all()
    return gateway.open(data)[name]


def test_each_key_has_its_last_value(tmp_path: Path) -> None:
    """Not one from after the instant, nor from too long before it; as reckoned from all records."""
    source = random.Random(3)
    keys = [None, b"a", b"b/c", b"d", b"\xff", b"e"]
    records = [Put(n * 100, source.choice(keys), b"%d" % n) for n in range(100)]
    records.insert(0, Put(0, b"old", b"long ago"))
    make_stream(tmp_path / "d", records)
    log = gateway.open(tmp_path / "d")
    for time, max_age_ms in [(0, 0), (1500, 1000), (5000, 5000), (5000, 60_000), (9900, 3_000)]:
        expected = {
            put.key: (offset, put.value)
            for offset, put in enumerate(records)
            if put.key is not None and time - max_age_ms <= put.time <= time
        }
        found = log.at(moment(T0 + time), max_age=f"{max_age_ms}ms")
        assert {row.record.key: (row.record.offset, row.record.value) for row in found.rows} == expected


def test_streams_are_together(tmp_path: Path) -> None:
    """A row for each key of each stream, with its age, as a table."""
    make_stream(tmp_path / "d", [Put(0, b"a", b"1"), Put(500, b"b", b"2")], name="one")
    make_stream(tmp_path / "d", [Put(250, b"a", b"3")], name="two")
    log = gateway.open(tmp_path / "d")
    table = log.at(moment(T0 + 600)).to_arrow()
    ages = [age.value // 10**6 for age in table["age"]]
    rows = zip(*(table[name].to_pylist() for name in ("stream", "key", "value", "camera")), ages, strict=True)
    assert list(rows) == [
        ("one", "a", b"1", False, 600), ("one", "b", b"2", False, 100), ("two", "a", b"3", False, 350)
    ]  # fmt: skip
    assert len(log.at(moment(T0 + 600), streams=["two"])) == 1
    assert len(log.at(moment(T0 + 600), keys="b")) == 1
    with pytest.raises(StreamNotFound):
        log.at(moment(T0), streams=["three"])
    with pytest.raises(UsageError):
        log.at(moment(T0)).to_arrow(values="json")


def test_cameras_have_their_picture(tmp_path: Path) -> None:
    """The one on screen; a camera that has been away for longer says so, and where its nearest pictures are."""
    make_stream(tmp_path / "d", [Put(0, b"speed", b"<b>7</b>")], name="sensors")
    gate = put_camera(tmp_path / "d", "gate", 12)
    times = [record.timestamp_ms for record in gate.read()]
    log = gateway.open(tmp_path / "d")
    found = log.at(moment(times[8]))
    assert found.frames["gate"].offset == 8
    assert found.no_frames == {}
    shown = found._repr_html_()
    assert "data:image/jpeg;base64," in shown
    assert "&lt;b&gt;7&lt;/b&gt;" in shown
    late = log.at(moment(times[-1] + 5000))
    assert late.frames == {}
    assert "gate" in late.no_frames
    assert "(a camera)" in repr(late)
    assert "img" not in late._repr_html_()


def test_nothing_shows_itself_too(tmp_path: Path) -> None:
    """An instant before everything."""
    make_stream(tmp_path / "d", [Put(0, b"a", b"1")])
    found = gateway.open(tmp_path / "d").at(moment(T0 - 1000))
    assert (len(found), found.to_arrow().num_rows) == (0, 0)
    assert "0 keys" in repr(found)
    assert "0 keys" in found._repr_html_()


def test_keys_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than fit are refused, with the way out."""
    make_stream(tmp_path / "d", [Put(n, b"%d" % n, b"") for n in range(30)])
    monkeypatch.setattr(moments, "KEYS_MAX", 10)
    with pytest.raises(UsageError, match="keys="):
        gateway.open(tmp_path / "d").at(moment(T0 + 100))


def test_records_that_lie_apart_are_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the distances, each is found once."""
    records = [Put(n, b"rare" if n in {3, 50} else b"%d" % (n % 7), b"%d" % n) for n in range(100)]
    make_stream(tmp_path / "d", records)
    monkeypatch.setattr(moments, "_APART_MAX", 2)
    found = gateway.open(tmp_path / "d").at(moment(T0 + 99))
    expected: dict[Any, int] = {put.key: offset for offset, put in enumerate(records)}
    assert {row.record.key: row.record.offset for row in found.rows} == expected
