"""A range of the log as columns: what is in them, beside reading the same records one by one."""

from __future__ import annotations

import gc
import mmap
import os
import random
import threading
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest
from gateway_native.columns import ColumnBuilder

import gateway
from gateway.errors import DamageError, DamageWarning, UsageError
from gateway.log import mapped
from gateway.log.layout import prepare
from gateway.log.mapped import MappedSegment
from tests.support.columns import Put, make_stream, readings
from tests.support.native import wait_until
from tests.support.partitions import T0, Partition
from tests.support.recording import Recording

LONG = b"a value that is longer than twelve bytes"


def mixed(count: int = 60, seed: int = 1) -> list[Put]:
    """Records of every sort: null and empty keys and values, short and long ones, with and without headers."""
    source = random.Random(seed)
    keys = [None, b"", b"a/b", b"plant/3/temperature", "größe/ö".encode()]
    values = [None, b"", b"x", b"twelve bytes", b"thirteen byte", LONG, LONG * 20]
    headers = [
        [],
        [("qos", b"1")],
        [("retain", b"1"), ("source_time", b"1700000000123456789")],
        [("n", b""), ("n", LONG)],
    ]
    return [Put(n * 10, source.choice(keys), source.choice(values), source.choice(headers)) for n in range(count)]


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    """Offset, ms, key as bytes, value, as records have them."""
    return [
        (
            row["offset"],
            row["timestamp"].value // 10**6,
            None if row["key"] is None else row["key"].encode(),
            row["value"],
        )
        for row in table.to_pylist()
    ]


def expected_rows(records: gateway.Records) -> list[tuple[Any, ...]]:
    return [(r.offset, r.timestamp_ms, r.key, r.value) for r in records]


@pytest.fixture
def stream(tmp_path: Path) -> gateway.Stream:
    return make_stream(tmp_path / "data", mixed())


# -- the same as records -----------------------------------------------------------------------------------------------

SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "offsets": {"offsets": (7, 43)},
    "keys": {"keys": "plant/+/temperature"},
    "not retained": {"retained": False},
    "nothing": {"offsets": (1000, 2000)},
}


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_a_table_has_what_iterating_gives(stream: gateway.Stream, selection: dict[str, Any], view: bool) -> None:
    """Offsets, times, keys and values are those of the records, for every sort of selection."""
    table = stream.read(**selection).to_arrow(view=view)
    table.validate(full=True)
    assert rows_of(table) == expected_rows(stream.read(**selection))


def test_types_are_promised(stream: gateway.Stream) -> None:
    """The types are the same whatever is in the range."""
    for selection in ({}, {"offsets": (1000, 2000)}):
        plain, views = stream.read(**selection).to_arrow().schema, stream.read(**selection).to_arrow(view=True).schema
        assert plain.types == [pa.int64(), pa.timestamp("ns", "UTC"), pa.large_string(), pa.large_binary()]
        assert views.types == [pa.int64(), pa.timestamp("ns", "UTC"), pa.string_view(), pa.binary_view()]
        assert plain.names == views.names == ["offset", "timestamp", "key", "value"]


@pytest.mark.parametrize("key", ["text", "dictionary", "bytes"])
@pytest.mark.parametrize("view", [False, True])
def test_keys_have_the_form_asked_for(tmp_path: Path, key: Any, view: bool) -> None:
    """A key that is not UTF-8 is exact as bytes and escaped as text."""
    stream = make_stream(tmp_path / "d", [Put(0, b"\xffab", b"1"), Put(1, None, b"2"), Put(2, b"plain", b"3")])
    column = stream.read().to_arrow(key=key, view=view)["key"]
    text = ["\\xffab", None, "plain"]
    assert column.to_pylist() == ([b"\xffab", None, b"plain"] if key == "bytes" else text)


@pytest.mark.parametrize("view", [False, True])
def test_headers_are_a_list_or_columns(stream: gateway.Stream, view: bool) -> None:
    """All headers in their order, or the last one of each name, the source's time as a time."""
    records = list(stream.read())
    lists = stream.read().to_arrow(headers=True, view=view)["headers"].to_pylist()
    assert [[(h["name"], h["value"]) for h in row] for row in lists] == [list(r.headers) for r in records]
    table = stream.read().to_arrow(headers=("qos", "n", "source_time"), view=view)
    for name in ("qos", "n"):
        expected = [None if r.header(name) is None else r.header(name).decode() for r in records]  # type: ignore[union-attr]
        assert table[name].to_pylist() == expected
    assert table["source_time"].type == pa.timestamp("ns", "UTC")
    times = table["source_time"].cast(pa.int64()).to_pylist()
    assert times == [1700000000123456789 if r.header("source_time") else None for r in records]


@pytest.mark.parametrize("options", [{}, {"view": True}, {"key": "dictionary"}, {"key": "bytes"}], ids=str)
def test_a_template_names_levels(tmp_path: Path, options: dict[str, Any]) -> None:
    """A column for each name; null where the key does not fit."""
    keys = [b"plant/3/temperature", b"plant/4", None, b"plant/5/speed", b"other/5/speed"]
    stream = make_stream(tmp_path / "d", [Put(n, key, b"1") for n, key in enumerate(keys)])
    table = stream.read().to_arrow(topic="plant/{line}/{sensor}", **options)
    table.validate(full=True)
    assert table["line"].to_pylist() == ["3", None, None, "5", None]
    assert table["sensor"].to_pylist() == ["temperature", None, None, "speed", None]
    text = [None if key is None else key.decode() for key in keys]
    assert table["key"].to_pylist() == (keys if options.get("key") == "bytes" else text)
    for mistake in ("plant/line", "plant/{line}/{line}", "plant/{1}", "plant/#/{x}", "{key}/x"):
        with pytest.raises(UsageError):
            stream.read().to_arrow(topic=mistake)


# -- what others make of it --------------------------------------------------------------------------------------------

ARROW: dict[str, Callable[[pa.Table, Path], Any]] = {
    "filter": lambda table, _: table.filter(pc.field("key") == "plant/0/temperature").num_rows == 20,
    "sort_by": lambda table, _: (
        table.sort_by([("key", "ascending"), ("offset", "descending")])["offset"][0].as_py() == 57
    ),
    "take": lambda table, _: table.take([3, 1])["offset"].to_pylist() == [3, 1],
    "join_asof": lambda table, _: (
        table.select(["timestamp", "key", "value"])
        .join_asof(table.select(["timestamp", "key", "offset"]), on="timestamp", by="key", tolerance=0)
        .num_rows
        == 60
    ),
    "write_csv": lambda table, path: pyarrow.csv.write_csv(table, path) is None and path.stat().st_size > 1000,
    "write_parquet": lambda table, path: (
        pyarrow.parquet.write_table(table, path) is None and pyarrow.parquet.read_table(path).equals(table)
    ),
}


@pytest.mark.parametrize("use", ARROW.values(), ids=ARROW)
def test_arrow_tables_can_be_used(tmp_path: Path, use: Callable[[pa.Table, Path], Any]) -> None:
    """What analysts do with a table works on the plain one."""
    table = make_stream(tmp_path / "d", readings(60)).read().to_arrow()
    assert use(table, tmp_path / "out")


POLARS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    "filter": lambda frame, _: frame.filter(pl.col("key") == "plant/0/temperature").height == 20,
    "sort_by": lambda frame, _: frame.sort("key", "offset", descending=[False, True])["offset"][0] == 57,
    "take": lambda frame, _: frame[[3, 1]]["offset"].to_list() == [3, 1],
    "join_asof": lambda frame, _: (
        frame.sort("timestamp").join_asof(frame.select("timestamp", "key", "offset"), on="timestamp", by="key").height
        == 60
    ),
    "write_csv": lambda frame, path: (
        frame.with_columns(pl.col("value").cast(pl.String)).write_csv(path) is None and path.stat().st_size > 1000
    ),
    "write_parquet": lambda frame, path: frame.write_parquet(path) is None and pl.read_parquet(path).equals(frame),
    "group_by": lambda frame, _: frame.group_by("key").len()["len"].to_list() == [20, 20, 20],
}


@pytest.mark.parametrize("use", POLARS.values(), ids=POLARS)
@pytest.mark.filterwarnings("ignore:Sortedness of columns cannot be checked")
def test_polars_frames_can_be_used(tmp_path: Path, use: Callable[[pl.DataFrame, Path], Any]) -> None:
    """The same on a frame whose payloads lie in the mapped log."""
    assert use(make_stream(tmp_path / "d", readings(60)).read().to_polars(), tmp_path / "out")


PANDAS: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "filter": lambda frame, _: len(frame[frame["key"] == "plant/0/temperature"]) == 20,
    "sort_by": lambda frame, _: frame.sort_values(["key", "offset"])["offset"].iloc[0] == 0,
    "take": lambda frame, _: list(frame.take([3, 1])["offset"]) == [3, 1],
    "join_asof": lambda frame, _: (
        len(pd.merge_asof(frame, frame[["timestamp", "key", "offset"]], on="timestamp", by="key")) == 60
    ),
    "write_csv": lambda frame, path: frame.to_csv(path) is None and path.stat().st_size > 1000,
    "write_parquet": lambda frame, path: frame.to_parquet(path) is None and pd.read_parquet(path).equals(frame),
}


@pytest.mark.parametrize("use", PANDAS.values(), ids=PANDAS)
def test_pandas_frames_can_be_used(tmp_path: Path, use: Callable[[pd.DataFrame, Path], Any]) -> None:
    """The same in pandas."""
    assert use(make_stream(tmp_path / "d", readings(60)).read().to_pandas(), tmp_path / "out")


DUCKDB: dict[str, Callable[[duckdb.DuckDBPyRelation, Path], Any]] = {
    "filter": lambda found, _: len(found.filter("key = 'plant/0/temperature'").fetchall()) == 20,
    "sort_by": lambda found, _: found.order('key, "offset" desc').project('"offset"').fetchall()[0] == (57,),
    "join_asof": lambda found, _: (
        len(
            found.query(
                "r", "select * from r a asof join r b on a.key = b.key and a.timestamp >= b.timestamp"
            ).fetchall()
        )
        == 60
    ),
    "write_csv": lambda found, path: found.write_csv(str(path)) is None and path.stat().st_size > 1000,
    "write_parquet": lambda found, path: (
        found.write_parquet(str(path)) is None and pyarrow.parquet.read_table(path).num_rows == 60
    ),
    "twice": lambda found, _: [found.count("*").fetchall() for _ in range(2)] == [[(60,)]] * 2,
}


@pytest.mark.parametrize("use", DUCKDB.values(), ids=DUCKDB)
def test_duckdb_relations_can_be_used(tmp_path: Path, use: Callable[[duckdb.DuckDBPyRelation, Path], Any]) -> None:
    """The same in DuckDB, which reads the log anew for each query."""
    connection = duckdb.connect()
    assert use(make_stream(tmp_path / "d", readings(60)).read().to_duckdb(connection), tmp_path / "out")


def test_dictionaries_are_categories_elsewhere(tmp_path: Path) -> None:
    """Over several batches with other keys in each."""
    stream = make_stream(tmp_path / "d", readings(60, sensors=30))
    expected = [record.key.decode() for record in stream.read() if record.key]
    frame = stream.read().to_polars(key="dictionary")
    assert frame["key"].dtype == pl.Categorical
    assert frame["key"].cast(pl.String).to_list() == expected
    found = stream.read().to_pandas(key="dictionary")["key"]
    assert isinstance(found.dtype, pd.CategoricalDtype)
    assert found.astype(str).to_list() == expected


def test_others_take_records_as_they_are(stream: gateway.Stream) -> None:
    """By Arrow's PyCapsule protocol."""
    assert pa.table(stream.read()).num_rows == 60
    assert pl.DataFrame(stream.read()).height == 60


# -- bounded, safe -----------------------------------------------------------------------------------------------------


def test_batches_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """Damage far behind is met only when reading gets there, and told as for records."""
    stream = make_stream(tmp_path / "d", readings(60))
    partition = Partition(tmp_path / "d" / "s-0")
    partition.damage(40, 100)
    with pytest.raises(DamageError):
        stream.read(damage="raise").to_arrow()
    records = stream.read()
    with pytest.warns(DamageWarning):
        table = records.to_arrow()
    assert [gap.offsets for gap in records.gaps] == [(40, 45)]
    assert table["offset"].to_pylist() == [*range(40), *range(45, 60)]
    assert stream.read(damage="skip").to_arrow(view=True)["offset"].to_pylist() == table["offset"].to_pylist()


def test_views_outlive_the_segment(tmp_path: Path) -> None:
    """Retention may delete what a table points to: the bytes stay until the table is gone."""
    stream = make_stream(tmp_path / "d", mixed())
    expected = expected_rows(stream.read())
    table = stream.read().to_arrow(view=True)
    for path in (tmp_path / "d" / "s-0").iterdir():
        os.unlink(path)
    assert rows_of(table) == expected
    held = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(tmp_path / "d" / "s-0") in held
    del table
    gc.collect()
    assert str(tmp_path / "d" / "s-0") not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_no_view_reaches_behind_what_is_durable(tmp_path: Path) -> None:
    """The file may be cut behind the last batch: whoever copies whole buffers must not look there."""
    stream = make_stream(tmp_path / "d", mixed(10))
    log = Partition(tmp_path / "d" / "s-0").log(0)
    size = log.stat().st_size
    with log.open("ab") as file:
        file.write(bytes(1 << 20))
    table = stream.read().to_arrow(view=True)
    (views,) = table["value"].chunk(0).buffers()[2:]
    assert views.size == size
    os.truncate(log, size)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert pa.ipc.open_stream(sink.getvalue()).read_all().equals(table)


@pytest.mark.parametrize("trouble", ["unknown advice", "bad sector", "no descriptor"])
def test_what_cannot_be_mapped_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """The same table where the kernel cannot be asked for pages, or has an error for one."""
    stream = make_stream(tmp_path / "d", mixed())
    expected = stream.read().to_arrow(view=True).to_pylist()
    calls = 0

    class Window(mmap.mmap):
        def madvise(self, option: int, start: int = 0, length: int = 0) -> None:  # type: ignore[override]
            nonlocal calls
            calls += 1
            if trouble == "unknown advice" or length:
                raise OSError(22 if trouble == "unknown advice" else 14, "no")

    def refuse(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        raise OSError(24, "no")

    refuse.madvise = None  # type: ignore[attr-defined]
    monkeypatch.setattr(mmap, "mmap", refuse if trouble == "no descriptor" else Window)
    assert stream.read().to_arrow(view=True).to_pylist() == expected
    assert calls > 0


def test_windows_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment longer than a window is mapped piece by piece, and batches across the border are whole."""
    monkeypatch.setattr(mapped, "WINDOW_BYTES", 8192)
    monkeypatch.setattr("gateway.log.chunks.CHUNK_BYTES", 1024)
    records = [Put(n, b"k", LONG * (n % 70)) for n in range(300)]
    stream = make_stream(tmp_path / "d", records, per_segment=300)
    table = stream.read().to_arrow(view=True)
    table.validate(full=True)
    assert table["value"].to_pylist() == [put.value for put in records]
    assert len(table["value"].chunk(0).buffers()) > 10


def test_memory_is_bounded_by_rows_and_bytes(tmp_path: Path) -> None:
    """A batch is taken when it is full: so many rows, or so many bytes, whatever comes."""
    stream = make_stream(tmp_path / "d", [Put(n, b"k", LONG * 100) for n in range(100)])
    for form in ("copy", "view"):
        for limits in ({"rows_max": 20}, {"bytes_max": 20 * len(LONG) * 100}):
            builder = ColumnBuilder(keys="none", values=form, **limits)  # type: ignore[arg-type]
            records = stream.read()
            decoded = records.decoded(builder.decode, records.limit(), MappedSegment)
            taken = [builder.take().rows for _ in decoded if builder.full]
            assert sum(taken) == 100
            assert max(taken) == 20


def test_what_becomes_durable_meanwhile_is_left_for_the_next_call(tmp_path: Path) -> None:
    """One call has one limit: the one at its begin."""
    stream = make_stream(tmp_path / "d", readings(40))
    batches = iter(stream.read().to_batches())
    make_stream(tmp_path / "d", readings(60))
    with warnings.catch_warnings():
        assert sum(len(one) for one in batches) == 40
    assert stream.read().to_arrow().num_rows == 60


def test_a_record_beyond_all_times_is_at_the_bound(tmp_path: Path) -> None:
    """ns of 64 bits end in 2262: later times of others' logs are at that bound, not somewhere in the past."""
    stream = make_stream(tmp_path / "d", [Put(0, b"k", b"1"), Put(2**53, b"k", b"2"), Put(2**53, b"k", b"3")])
    times = stream.read().to_arrow()["timestamp"].cast(pa.int64()).to_pylist()
    assert times == [T0 * 10**6, 2**63 - 1, 2**63 - 1]


def test_gaps_are_told_once_although_the_range_is_read_twice(tmp_path: Path) -> None:
    """Types are found by reading the range beforehand; who asked to be told of damage is told by the second reading."""
    stream = make_stream(tmp_path / "d", [Put(n, b"k", b'{"x": 1}') for n in range(60)])
    Partition(tmp_path / "d" / "s-0").damage(40, 100)
    told: list[Any] = []
    records = stream.read(on_gap=told.append)
    assert records.to_arrow(values="json").num_rows == 55
    assert len(told) == len(records.gaps) == 1
    told.clear()
    assert records.wide("1s", values="json").to_arrow().num_rows == 1
    assert len(told) == 1


# -- beside a writer ---------------------------------------------------------------------------------------------------


class Deleting(threading.Thread):
    """Deletes all but a stream's last segments, the oldest first, as retention does, until it is stopped."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self.stop = threading.Event()
        self.deleted = 0

    def run(self) -> None:
        while not self.stop.wait(0.01):
            for path in sorted(self._directory.glob("*.log"))[:-3]:
                path.unlink()
                self.deleted += 1


def write_and_roll(recording: Recording, records: int, per_segment: int) -> None:
    ring, partition = recording.ring("test"), recording.partition("s")
    for number in range(records):
        wait_until(lambda n=number: ring.append(partition, b"k", b"%d" % n + LONG, b"", n * 1000), "room in the ring")
        if number % per_segment == per_segment - 1:
            recording.flush()
            recording.writer.roll(partition)
    recording.flush()


@pytest.mark.parametrize("view", [False, True])
def test_reading_goes_on_while_the_gateway_writes_and_retention_deletes(tmp_path: Path, view: bool) -> None:
    """What is in a table is right, whatever is sealed, cut and deleted meanwhile; only whole segments are missing."""
    prepare(tmp_path / "d", "site", "UTC")
    recording = Recording(tmp_path / "d")
    recording.partition("s")
    writer = threading.Thread(target=write_and_roll, args=(recording, 20_000, 1_000))
    retention = Deleting(tmp_path / "d" / "s-0")
    try:
        writer.start()
        retention.start()
        wait_until((tmp_path / "d" / "s-0" / "watermark").exists, "the first commit")
        stream = gateway.open(tmp_path / "d")["s"]
        tables = []
        while writer.is_alive():
            tables.append(stream.read(damage="raise").to_arrow(view=view))
        tables.append(stream.read(damage="raise").to_arrow(view=view))
    finally:
        writer.join()
        retention.stop.set()
        retention.join()
        recording.close()
    assert retention.deleted > 10
    for table in tables:
        offsets = table["offset"].to_pylist()
        assert table["value"].to_pylist() == [b"%d" % number + LONG for number in offsets]
        assert all(after == before + 1 or after % 1_000 == 0 for before, after in pairwise(offsets))
    assert offsets[-1] == 19_999
