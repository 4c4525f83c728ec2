"""A column per key: intervals, aggregates, and what lies across batches, beside a plain reckoning in Python."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from gateway.errors import UsageError
from gateway.replay import wide
from tests.support.columns import Put, make_stream, readings
from tests.support.partitions import T0

RECKON: dict[str, Callable[[list[float]], float]] = {
    "last": lambda values: values[-1],
    "first": lambda values: values[0],
    "mean": lambda values: sum(values) / len(values),
    "min": min,
    "max": max,
    "sum": sum,
    "count": len,
}


def reckoned(records: list[Put], every_ms: int, agg: str) -> list[dict[str, Any]]:
    cells: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for put in records:
        if put.key is not None and put.value is not None:
            cells[(T0 + put.time) // every_ms * every_ms][put.key.decode()].append(float(put.value))
    keys = sorted({key for row in cells.values() for key in row})
    return [
        {"timestamp": time, **{key: RECKON[agg](row[key]) if key in row else None for key in keys}}
        for time, row in sorted(cells.items())
    ]


def rows(table: pa.Table) -> list[dict[str, Any]]:
    return [{**row, "timestamp": row["timestamp"].value // 10**6} for row in table.to_pylist()]


def scattered(count: int, seed: int) -> list[Put]:
    """Readings of few keys with gaps of all sizes, whole numbers, so that sums are exact."""
    source = random.Random(seed)
    time, records = 0, []
    for _ in range(count):
        time += source.choice([0, 1, 10, 400, 5000])
        records.append(Put(time, source.choice([b"a", b"b/c", b"d"]), str(source.randrange(100)).encode()))
    return records


@pytest.mark.parametrize("agg", RECKON)
@pytest.mark.parametrize("cells_max", [4_000_000, 7])
def test_intervals_are_as_reckoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agg: Any, cells_max: int) -> None:
    """Whatever the batches and the rows held at a time, each interval has the aggregate of all its values."""
    monkeypatch.setattr(wide, "CELLS_MAX", cells_max)
    for seed in range(3):
        records = scattered(150, seed)
        stream = make_stream(tmp_path / f"{seed}", records)
        for every in (1, 1000, 3_600_000):
            table = stream.read().wide(every=f"{every}ms", agg=agg).to_arrow()
            assert rows(table) == reckoned(records, every, agg), (seed, every)


def test_an_interval_goes_on_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when every batch of columns has a single row."""
    records = scattered(60, 5)
    stream = make_stream(tmp_path / "d", records)
    build = wide.shape_records

    def in_single_rows(*arguments: Any, **options: Any) -> Any:
        shaped = build(*arguments, **options)
        return shaped._replace(batches=(one.slice(n, 1) for one in shaped.batches for n in range(len(one))))

    monkeypatch.setattr(wide, "shape_records", in_single_rows)
    for agg in RECKON:
        assert rows(stream.read().wide("1s", agg).to_arrow()) == reckoned(records, 1000, agg)  # type: ignore[arg-type]


def test_without_intervals_each_time_is_a_row(tmp_path: Path) -> None:
    """Records of one millisecond share it."""
    records = [Put(0, b"a", b"1"), Put(0, b"b", b"2"), Put(7, b"a", b"3")]
    assert rows(make_stream(tmp_path / "d", records).read().wide().to_arrow()) == reckoned(records, 1, "last")


def test_fields_of_a_payload_are_columns_of_its_key(tmp_path: Path) -> None:
    """Named key.field; a single value is named by the key; text has a last value, too."""
    payloads: list[Any] = [{"t": 1, "state": "on"}, 5, {"t": 2.5}, {"state": None}]
    records = [Put(n, b"a" if n != 1 else b"b", json.dumps(value).encode()) for n, value in enumerate(payloads)]
    stream = make_stream(tmp_path / "d", records)
    table = stream.read().wide("1s", values="json").to_arrow().drop_columns(["timestamp"])
    assert table.to_pylist() == [{"a.state": "on", "a.t": 2.5, "b": 5}]
    assert table.schema.field("b").type == pa.int64()
    with pytest.raises(UsageError, match="state"):
        stream.read().wide("1s", "mean", values="json").to_arrow()
    counted = stream.read().wide("1s", "count", values="json").to_arrow().drop_columns(["timestamp"])
    assert counted.to_pylist() == [{"a.state": 1, "a.t": 2, "b": 1}]


def test_a_clock_that_was_set_back_makes_new_rows(tmp_path: Path) -> None:
    """The intervals come again, in the log's order."""
    records = [Put(5000, b"a", b"1"), Put(6000, b"a", b"2"), Put(1000, b"a", b"3"), Put(2000, b"a", b"4")]
    table = make_stream(tmp_path / "d", records).read().wide("1s").to_arrow()
    assert [(row["timestamp"] - T0, row["a"]) for row in rows(table)] == [(5000, 1), (6000, 2), (1000, 3), (2000, 4)]


def test_too_many_columns_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way out."""
    monkeypatch.setattr(wide, "COLUMNS_MAX", 2)
    with pytest.raises(UsageError, match="keys="):
        make_stream(tmp_path / "d", readings(9)).read().wide("1s").to_arrow()


def test_nothing_is_an_empty_table(tmp_path: Path) -> None:
    """Of one column."""
    stream = make_stream(tmp_path / "d", readings(9))
    table = stream.read(offsets=(100, 200)).wide("1s").to_arrow()
    assert (table.num_rows, table.schema.names) == (0, ["timestamp"])


@pytest.mark.parametrize("to", ["to_polars", "to_pandas", "to_duckdb"])
def test_wide_tables_reach_everybody(tmp_path: Path, to: str) -> None:
    """The same rows."""
    found = getattr(make_stream(tmp_path / "d", readings(30)).read().wide("1s"), to)()
    assert (len(found.fetchall()) if to == "to_duckdb" else len(found)) == 3


@pytest.mark.parametrize("mistake", [{"agg": "median"}, {"values": "bytes"}, {"every": "0s"}])
def test_mistakes_are_said(tmp_path: Path, mistake: Any) -> None:
    """Before anything is read."""
    with pytest.raises((UsageError, ValueError)):
        make_stream(tmp_path / "d", readings(3)).read().wide(**mistake)
