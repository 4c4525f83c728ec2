"""Payloads as typed columns: what types a range has, and what becomes of payloads that cannot be read."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cbor2
import pyarrow as pa
import pytest

import gateway
from gateway.errors import BadPayloadWarning, UsageError
from gateway.replay import columnar, payloads
from tests.support.columns import Put, make_stream
from tests.support.partitions import T0


def stream_of(path: Path, *values: bytes | None) -> gateway.Stream:
    return make_stream(path / "d", [Put(n, b"k", value) for n, value in enumerate(values)])


def fields(path: Path, *values: Any, **options: Any) -> pa.Table:
    """The columns that JSON payloads make."""
    table = stream_of(path, *(json.dumps(value).encode() for value in values)).read().to_arrow(values="json", **options)
    return table.drop_columns(["offset", "timestamp", "key"])


def one_field(path: Path, *values: Any) -> tuple[pa.DataType, list[Any]]:
    (column,) = fields(path, *({"x": value} for value in values)).columns
    return column.type, column.to_pylist()


TYPES: dict[str, tuple[list[Any], pa.DataType, list[Any]]] = {
    "ints": ([1, 2, None], pa.int64(), [1, 2, None]),
    "int and float": ([1, 2.5], pa.float64(), [1.0, 2.5]),
    "an int that no float is": ([2**53 + 1, 0.5], pa.float64(), [2.0**53, 0.5]),
    "an int beyond 64 bits": ([2**63, 1], pa.float64(), [2.0**63, 1.0]),
    "bools": ([True, False], pa.bool_(), [True, False]),
    "bool and int": ([True, 1], pa.large_string(), ["true", "1"]),
    "text": (["a", None], pa.large_string(), ["a", None]),
    "number and text": ([1.5, "on"], pa.large_string(), ["1.5", "on"]),
    "lists": ([[1, 2], [], None], pa.large_list(pa.int64()), [[1, 2], [], None]),
    "lists of int and float": ([[1], [0.5]], pa.large_list(pa.float64()), [[1.0], [0.5]]),
    "lists of lists": ([[[1]], [[2], None]], pa.large_list(pa.large_string()), [["[1]"], ["[2]", None]]),
    "list and number": ([[1], 2], pa.large_string(), ["[1]", "2"]),
    "nothing": ([None, None], pa.large_string(), [None, None]),
}


@pytest.mark.parametrize(("values", "kind", "expected"), TYPES.values(), ids=TYPES)
def test_types_follow_from_the_whole_range(
    tmp_path: Path, values: list[Any], kind: pa.DataType, expected: list[Any]
) -> None:
    """int and float make float64, other conflicts text, wherever in the range they meet."""
    assert one_field(tmp_path / "as they are", *values) == (kind, expected)
    far_apart = [*values[:-1], *[None] * 50, values[-1]]
    assert one_field(tmp_path / "far apart", *far_apart) == (kind, [*expected[:-1], *[None] * 50, expected[-1]])


def test_types_do_not_depend_on_the_order(tmp_path: Path) -> None:
    """The same values in any order give the same types."""
    values = [{"a": 1, "b": [1]}, {"a": 2.5, "c": {"d": "x"}}, {"a": None, "b": ["s"]}, {"c": {"d": 1}}]
    seen = set()
    for seed in range(10):
        shuffled = random.Random(seed).sample(values, len(values))
        table = fields(tmp_path / str(seed), *shuffled)
        seen.add(frozenset((field.name, str(field.type)) for field in table.schema))
    assert seen == {frozenset({("a", "double"), ("b", "large_list<item: large_string>"), ("c.d", "large_string")})}


def test_nested_fields_have_dots(tmp_path: Path) -> None:
    """Objects in objects are columns; a payload that is no object is `value`."""
    table = fields(tmp_path, {"a": {"b": 1, "c": {"d": 2}}}, 5, {"a": 3}, {"a": {}})
    assert table.to_pydict() == {
        "a.b": [1, None, None, None],
        "a.c.d": [2, None, None, None],
        "value": [None, 5, None, None],
        "a": [None, None, 3, None],
    }


def test_fields_do_not_hide_other_columns(tmp_path: Path) -> None:
    """A field called as a column of the record gets `value.` before its name."""
    payload = json.dumps({"timestamp": "yesterday", "key": 1, "line": 2, "x": 3}).encode()
    stream = make_stream(tmp_path / "d", [Put(0, b"plant/7", payload)])
    (row,) = stream.read().to_arrow(values="json", topic="plant/{line}").to_pylist()
    assert row["timestamp"].value == T0 * 10**6
    assert {name: row[name] for name in row if name not in {"offset", "timestamp"}} == {
        "key": "plant/7", "line": "7", "x": 3, "value.timestamp": "yesterday", "value.key": 1, "value.line": 2,
    }  # fmt: skip


def test_bad_payloads_are_set_aside(tmp_path: Path) -> None:
    """They are counted, kept, and told once; every other record is there."""
    stream = stream_of(tmp_path, b'{"x": 1}', b"{", None, b"", b'{"x": NaN}', b"\xff", b'{"x": 2}', b"[" * 100_000)
    records = stream.read()
    with pytest.warns(BadPayloadWarning, match=r"5 payloads .* offset 1"):
        table = records.to_arrow(values="json")
    assert table.select(["offset", "x"]).to_pydict() == {"offset": [0, 2, 6], "x": [1, None, 2]}
    assert records.bad.count == 5
    assert [(bad.offset, bad.value) for bad in records.bad.kept[:2]] == [(1, b"{"), (3, b"")]
    assert records.bad.kept[0].timestamp_ns == (T0 + 1) * 10**6


def test_what_is_kept_of_bad_payloads_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are counted."""
    monkeypatch.setattr(columnar, "BAD_KEPT_MAX", 3)
    records = stream_of(tmp_path, *[b"x"] * 10).read()
    with pytest.warns(BadPayloadWarning):
        assert records.to_arrow(values="float").num_rows == 0
    assert (records.bad.count, len(records.bad.kept)) == (10, 3)


def test_too_many_fields_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Field names that are data would make a column each."""
    monkeypatch.setattr(payloads, "FIELDS_MAX", 5)
    with pytest.raises(UsageError, match="5 distinct fields"):
        fields(tmp_path, *({f"id-{n}": n} for n in range(6)))
    assert fields(tmp_path / "given", *({f"id-{n}": n} for n in range(6)), schema={"id-3": "int64"}).num_columns == 1


NUMBERS = {
    b"21.5": 21.5, b"-3e-7": -3e-7, b" 7 ": 7.0, b"+1": 1.0, b"inf": float("inf"), b"007": 7.0, b".5": 0.5,
    b"0.1": 0.1, b"123456789012345678901": 123456789012345678901.0,
}  # fmt: skip
NO_NUMBERS = [b"", b"on", b"1_000", b"0x10", b"1,5", b"\xff", b"1.2.3", b"{}"]


def test_numbers_are_read_the_same_alone_and_among_bad_ones(tmp_path: Path) -> None:
    """The quick way for whole batches and the slow one around bad payloads agree."""
    for number, (text, expected) in enumerate(NUMBERS.items()):
        alone = stream_of(tmp_path / f"{number}", text).read().to_arrow(values="float")
        assert alone["value"].to_pylist() == [expected]
    records = stream_of(tmp_path / "all", None, *NUMBERS, *NO_NUMBERS).read()
    with pytest.warns(BadPayloadWarning):
        table = records.to_arrow(values="float")
    assert table["value"].to_pylist() == [None, *NUMBERS.values()]
    assert [bad.value for bad in records.bad.kept] == NO_NUMBERS


def test_a_schema_is_kept_exactly(tmp_path: Path) -> None:
    """Exactly its columns and types; what does not fit is a bad payload, what is missing null."""
    moment = "2026-11-23T08:00:00+01:00"
    stream = stream_of(
        tmp_path,
        *(
            json.dumps(value).encode()
            for value in [
                {"t": 1, "n": {"deep": 5}, "when": moment, "more": 1},
                {"t": "warm"},
                {"n": {"deep": 1.5}},
                {"when": 1700000000},
                {"when": "2026-11-23T08:00:00"},
                {"n": 3},
                [1],
            ]
        ),
    )
    schema = pa.schema([("n.deep", pa.int32()), ("when", pa.timestamp("ms", "UTC")), ("t", pa.float32())])
    records = stream.read()
    with pytest.warns(BadPayloadWarning):
        table = records.to_arrow(values="json", schema=schema)
    assert table.schema.field(3).type == pa.int32()
    assert table.schema.names[3:] == ["n.deep", "when", "t"]
    assert table["n.deep"].to_pylist() == [5, None, None]
    assert table["when"].to_pylist() == [datetime(2026, 11, 23, 7, tzinfo=UTC), None, None]
    assert table["t"].to_pylist() == [1.0, None, None]
    assert [bad.offset for bad in records.bad.kept] == [1, 2, 3, 4]
    assert "'warm'" in records.bad.kept[0].reason


def test_a_schema_may_want_an_object_as_a_whole(tmp_path: Path) -> None:
    """A struct takes the object itself."""
    kind = pa.struct([("x", pa.int64()), ("y", pa.float64())])
    table = fields(tmp_path, {"at": {"x": 1, "y": 0.5}}, schema={"at": kind})
    assert table["at"].to_pylist() == [{"x": 1, "y": 0.5}]


@pytest.mark.parametrize("mistake", [{"x": "furlong"}, {"key": "int64"}, ["x"], {"x": 5}])
def test_mistakes_in_a_schema_are_said(tmp_path: Path, mistake: Any) -> None:
    """One sentence, before anything is read."""
    with pytest.raises(UsageError):
        fields(tmp_path, {"x": 1}, schema=mistake)


def test_mistakes_in_options_are_said(tmp_path: Path) -> None:
    """What means nothing is refused."""
    records = stream_of(tmp_path, b"1").read()
    for options in ({"values": "xml"}, {"key": "int"}, {"values": "float", "schema": {"x": "int64"}}):
        with pytest.raises(UsageError):
            records.to_arrow(**options)  # type: ignore[arg-type]


def test_cbor_has_types_that_json_has_not(tmp_path: Path) -> None:
    """Bytes and times keep theirs; what Arrow has no type for is text."""
    moment = datetime(2026, 11, 23, 8, tzinfo=UTC)
    values = [{"b": b"\x00\xff", "t": moment, "n": 1, 5: "x"}, {"b": None, "t": moment, "n": 2.5}]
    stream = stream_of(tmp_path, *(cbor2.dumps(value) for value in values), b"\xff\xff", b"\xa1")
    records = stream.read()
    with pytest.warns(BadPayloadWarning):
        table = records.to_arrow(values="cbor")
    assert records.bad.count == 2
    assert table.schema.types[3:] == [
        pa.large_binary(), pa.timestamp("us", "UTC"), pa.float64(), pa.large_string()
    ]  # fmt: skip
    assert table.to_pylist()[0] | {"offset": 0} == table.to_pylist()[0] | {
        "b": b"\x00\xff",
        "t": moment,
        "n": 1.0,
        "5": "x",
    }


@pytest.mark.parametrize(
    "payload",
    ["d81c81d81d00", "d81c a1 6161 d81d00", "82 d81c 81 01 d81d00", "d823 63 282e2a", "9f" * 100_000, "0102"],
    ids=["list in itself", "object in itself", "shared", "pattern", "too deep", "more behind it"],
)
def test_cbor_that_could_make_much_of_little_is_bad(tmp_path: Path, payload: str) -> None:
    """Shared values would allow endless and exponential structures; it ends in no recursion and no exhaustion."""
    records = stream_of(tmp_path, bytes.fromhex(payload), cbor2.dumps({"x": 1})).read()
    with pytest.warns(BadPayloadWarning):
        table = records.to_arrow(values="cbor")
    assert table["x"].to_pylist() == [1]


@pytest.mark.parametrize("to", ["to_polars", "to_pandas", "to_duckdb"])
def test_typed_columns_reach_everybody(tmp_path: Path, to: str) -> None:
    """Numbers are numbers there."""
    found = getattr(stream_of(tmp_path, b'{"x": 1}', b'{"x": 2.5}').read(), to)(values="json")
    values = [row[3] for row in found.fetchall()] if to == "to_duckdb" else list(found["x"])
    assert values == [1.0, 2.5]
