"""Streams replayed together, followed live, and read on after a restart."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from gateway_native import batch

import gateway
from gateway.errors import FormatError
from gateway.log.layout import prepare
from gateway.replay.log import MERGED_STREAMS_MAX
from gateway.replay.readings import KEYS_MAX, with_readings
from gateway.replay.records import Record
from tests.support.partitions import T0, Partition, make_batch


@pytest.fixture(name="data")
def make_data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    prepare(data, "test", "UTC")
    return data


def _stream(data: Path, name: str, times: list[int], *, keys: list[bytes] | None = None) -> Partition:
    """One active segment with a batch for each time (ms after T0)."""
    made = Partition(data / f"{name}-0")
    made.add(
        [
            batch.encode([(T0 + time, keys[n] if keys else name.encode(), b"%d" % time, [])], n)
            for n, time in enumerate(times)
        ],
        base=0,
        sealed=False,
    )
    made.mark_all()
    return made


def _durable(made: Partition, count: int) -> None:
    """Only the first `count` batches are."""
    made.mark(0, sum(map(len, made.segments[0][:count])), count)


def test_merged_streams_are_in_the_order_of_time(data: Path) -> None:
    """Equal times in the order of the streams; each stream's own order is kept even where its clock went back."""
    _stream(data, "a", [0, 10, 20, 20])
    _stream(data, "b", [5, 20, 8, 30])
    found = [(each.stream, each.record.timestamp_ms - T0) for each in gateway.open(data).merge()]
    assert found == [
        ("a", 0), ("b", 5), ("a", 10), ("a", 20), ("a", 20), ("b", 20), ("b", 8), ("b", 30),
    ]  # fmt: skip
    chosen = gateway.open(data).merge("b", keys=["b"])
    assert [each.record.offset for each in chosen] == [0, 1, 2, 3]


def test_too_many_streams_are_refused_by_number(data: Path) -> None:
    """Memory and descriptors grow with the streams read together, so there is a bound."""
    with pytest.raises(ValueError, match="257 streams"):
        gateway.open(data).merge([f"s{number}" for number in range(MERGED_STREAMS_MAX + 1)])


def test_following_several_streams(data: Path) -> None:
    """What becomes durable comes in the order of times, and nothing that is not durable."""
    one, other = _stream(data, "a", [0, 10, 20]), _stream(data, "b", [5, 15, 25])
    _durable(one, 1)
    _durable(other, 1)
    stop = threading.Event()
    followed = gateway.open(data).follow(None, "start", poll_s=0.001, stop=stop)
    assert [next(followed).record.timestamp_ms - T0 for _ in range(2)] == [0, 5]
    _durable(one, 3)
    _durable(other, 3)
    assert [next(followed).record.timestamp_ms - T0 for _ in range(4)] == [10, 15, 20, 25]
    stop.set()
    assert list(followed) == []


async def test_following_on_an_event_loop(data: Path) -> None:
    """The loop goes on while nothing comes; a time says where to begin."""
    made = _stream(data, "a", [0, 10, 20, 30])
    _durable(made, 2)
    stream = gateway.open(data)["a"]
    seen: list[int] = []
    begun = asyncio.Event()

    async def follow() -> None:
        async for record in stream.follow_async(stream.moment(T0 + 5), poll_s=0.001):
            seen.append(record.offset)
            begun.set()
            if len(seen) == 3:
                return

    task = asyncio.create_task(follow())
    await asyncio.wait_for(begun.wait(), 10)
    assert seen == [1]
    _durable(made, 4)
    await asyncio.wait_for(task, 10)
    assert seen == [1, 2, 3]


def test_a_cursor_goes_on_where_it_was_committed(data: Path, tmp_path: Path) -> None:
    """What was handed out after the last commit comes again; what was committed never does."""
    _stream(data, "a", list(range(10)))
    stream = gateway.open(data)["a"]
    path = tmp_path / "a.cursor"
    first = stream.cursor(path)
    assert (first.lag, first.committed) == (10, None)
    records = first.read()
    assert [next(records).offset for _ in range(4)] == [0, 1, 2, 3]
    first.commit()
    assert next(records).offset == 4
    second = stream.cursor(path, "end")
    assert (second.position, second.lag) == (4, 6)
    assert [record.offset for record in second.read()] == [4, 5, 6, 7, 8, 9]
    second.commit()
    third = stream.cursor(path)
    assert third.describe() == {
        "stream": "a", "position": 10, "committed": 10, "durable_offset": 10, "lag": 0, "missed": 0, "next": None,
    }  # fmt: skip
    assert list(third.read()) == []


def test_a_cursor_begins_where_it_is_told(data: Path, tmp_path: Path) -> None:
    """At an offset, a time, the start or the end, as long as it has no file."""
    _stream(data, "a", list(range(10)))
    stream = gateway.open(data)["a"]
    places = [stream.cursor(tmp_path / "x", start).position for start in ("start", "end", 3, stream.moment(T0 + 7))]
    assert places == [0, 10, 3, 7]
    with pytest.raises(ValueError, match="negative"):
        stream.cursor(tmp_path / "x", -1)


def test_keys_that_do_not_match_are_no_lag(data: Path, tmp_path: Path) -> None:
    """A cursor for some keys has come as far as the log when it has seen that the rest does not match."""
    _stream(data, "a", list(range(6)), keys=[b"x", b"y"] * 3)
    cursor = gateway.open(data)["a"].cursor(tmp_path / "a.cursor")
    assert [record.offset for record in cursor.read(keys="x")] == [0, 2, 4]
    assert (cursor.position, cursor.lag) == (6, 0)


def test_what_retention_took_is_told_as_missed(data: Path, tmp_path: Path) -> None:
    """A cursor that is older than the log says how much it missed, and goes on with what is there."""
    made = Partition(data / "a-0")
    made.add([make_batch(0)])
    made.add([make_batch(3)], sealed=False)
    made.mark_all()
    stream = gateway.open(data)["a"]
    cursor = stream.cursor(tmp_path / "a.cursor", 1)
    made.log(0).unlink()
    assert (cursor.missed, cursor.lag) == (2, 3)
    assert [record.offset for record in cursor.read()] == [3, 4, 5]


def test_a_cursor_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    """Another stream, another log, an older one, no cursor: each is named, and the file is left alone."""
    _stream(data, "a", [0])
    _stream(data, "b", [0])
    log = gateway.open(data)
    path = tmp_path / "a.cursor"
    log["a"].cursor(path).commit()
    with pytest.raises(FormatError, match="of the stream 'a'"):
        log["b"].cursor(path)
    content = json.loads(path.read_text())
    for wrong, words in (
        ({**content, "log": "1999"}, "made 1999"),
        ({**content, "format": 2}, "newer Gateway"),
        ({**content, "offset": "4"}, "is no cursor"),
        ({**content, "offset": 2}, "stands at offset 2, but 'a' ends at 1: this is an older copy"),
        ([], "is no cursor"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(FormatError, match=words):
            log["a"].cursor(path)
        assert json.loads(path.read_text()) == wrong
    path.write_bytes(b"\xff")
    with pytest.raises(FormatError, match="is no cursor"):
        log["a"].cursor(path)


def test_readings_at_the_time_of_each_item() -> None:
    """The newest at or before; not older than asked; and those around."""

    def record(time: int, key: bytes | None) -> Record:
        return Record(time, T0 + time, key, b"", ())

    items = [record(time, b"frame") for time in (100, 200, 300)]
    readings = [record(90, b"t"), record(100, b"p"), record(195, b"t"), record(205, None), record(310, b"t")]
    found = list(with_readings(items, readings, within_ms=150, around_ms=10))
    assert [{key: one.offset for key, one in each.latest.items()} for each in found] == [
        {b"t": 90, b"p": 100}, {b"t": 195, b"p": 100}, {b"t": 195},
    ]  # fmt: skip
    assert [[one.offset for one in each.around] for each in found] == [[90, 100], [195, 205], [310]]
    assert [len(each.latest) for each in with_readings(items, readings)] == [2, 2, 2]


def test_readings_have_a_bound() -> None:
    """Keys without end are refused, instead of taking all memory."""
    readings = (Record(n, T0, b"%d" % n, b"", ()) for n in range(KEYS_MAX + 1))
    with pytest.raises(ValueError, match="more than"):
        list(with_readings([Record(0, T0 + 1, b"", b"", ())], readings))


def test_frames_with_readings_of_another_stream(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings from before the range count for its first frame, as far back as they may be old."""
    _stream(data, "t", [0, 30_000, 95_000, 100_500, 130_000], keys=[b"a", b"b", b"a", b"c", b"a"])
    _stream(data, "gate", [100_000, 101_000])
    log = gateway.open(data)
    gate, readings = log["gate"], log["t"]
    monkeypatch.setattr(gateway.Stream, "frames", lambda self, start, end, **options: iter(self.read(start, end)))
    start = gate.moment(T0 + 100_000)
    found = list(gate.frames_with(readings, start, within="10s", around="1s"))
    assert [sorted(each.latest) for each in found] == [[b"a"], [b"a", b"c"]]
    assert [[record.offset for record in each.around] for each in found] == [[3], [3]]
    by_default = list(gate.frames_with(readings, start, keys=["a", "b"]))
    assert [sorted(each.latest) for each in by_default] == [[b"a"], [b"a"]]
