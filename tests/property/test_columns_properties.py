"""Whatever lies in record batches, columns hold the same as rows do, split and damaged in the same places."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from gateway_native import batch
from gateway_native.columns import ColumnBuilder, Columns
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.replay.columns import strings_array

OCTETS = st.one_of(st.none(), st.binary(max_size=40))
HEADERS = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=20)), max_size=3)
RECORDS = st.lists(st.tuples(st.integers(0, 2**41), OCTETS, OCTETS, HEADERS), min_size=1, max_size=8)
Outcome = tuple[Any, ...]


def log_of(batches: list[Any]) -> bytes:
    """The batches one after the other, with offsets from 0 on."""
    data, offset = b"", 0
    for records in batches:
        data += batch.encode(records, offset)
        offset += len(records)
    return data


def rows_of(columns: Columns, form: str) -> list[tuple[Any, ...]]:
    """Rows as `batch.decode_chunk` gives them."""
    sources = [pa.py_buffer(source).slice(0, size) for source, size in columns.sources]
    kind = pa.large_binary() if form == "copy" else pa.binary_view()
    key = strings_array(columns.key, columns.rows, kind, sources)
    value = strings_array(columns.value, columns.rows, kind, sources)
    for array in (key, value):
        array.validate(full=True)
    offsets = memoryview(columns.offset).cast("q").tolist()
    times = [time // 10**6 for time in memoryview(columns.timestamp).cast("q")]
    assert columns.headers is not None
    assert columns.header_name is not None
    assert columns.header_value is not None
    ends = memoryview(columns.headers).cast("q").tolist()
    pairs = [
        (name.decode("utf-8", "surrogateescape"), each)
        for name, each in zip(
            strings_array(columns.header_name, ends[-1], pa.large_binary(), []).to_pylist(),
            strings_array(columns.header_value, ends[-1], pa.large_binary(), []).to_pylist(),
            strict=True,
        )
    ]
    headers = [tuple(pairs[begin:end]) for begin, end in pairwise(ends)]
    return list(zip(offsets, times, key.to_pylist(), value.to_pylist(), headers, strict=True))


def by_rows(data: bytes, selection: batch.Selection) -> Outcome:
    try:
        rows, *rest = batch.decode_chunk(data, 0, selection, expected_offset=0)
    except (batch.BatchError, batch.UnsupportedBatch) as error:
        return (type(error), str(error))
    return (rows, rest)


def by_columns(data: bytes, selection: batch.Selection, form: Any) -> Outcome:
    builder = ColumnBuilder(keys=form, values=form, headers=True)
    try:
        count, *rest = builder.decode(data, 0, selection, expected_offset=0)
    except (batch.BatchError, batch.UnsupportedBatch) as error:
        assert builder.rows == 0
        return (type(error), str(error))
    columns = builder.take()
    assert columns.rows == count
    return (rows_of(columns, form), rest)


SELECTIONS = st.builds(
    lambda first, length, begin, span, keys: batch.Selection(
        offset_from=first, offset_to=first + length, time_from=begin, time_to=begin + span, keys=keys
    ),
    st.integers(0, 8),
    st.integers(0, 20),
    st.integers(0, 2**40),
    st.integers(0, 2**41),
    st.one_of(st.none(), st.lists(st.binary(max_size=3), min_size=1, max_size=3)),
)


@pytest.mark.parametrize("form", ["copy", "view"])
@given(batches=st.lists(RECORDS, min_size=1, max_size=4), selection=st.one_of(st.just(batch.Selection()), SELECTIONS))
def test_columns_are_the_rows(form: str, batches: list[Any], selection: batch.Selection) -> None:
    """Every record, every selection, headers included."""
    data = log_of(batches)
    rows = by_rows(data, selection)
    columns = by_columns(data, selection, form)
    # Columns stop before the batch behind the last selected offset, rows after its header: both say it is over.
    assert columns[0] == rows[0]
    assert columns[1][1] == rows[1][1] or selection.offset_to <= columns[1][2]


@pytest.mark.parametrize("form", ["copy", "view"])
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_rows_that_others_decoded_are_the_same_columns(form: Any, batches: list[Any]) -> None:
    """Mixed with batches that the builder decodes itself."""
    builder = ColumnBuilder(keys=form, values=form, headers=True)
    expected, offset = [], 0
    for number, records in enumerate(batches):
        data = batch.encode(records, offset)
        rows = batch.decode(data)
        if number % 2:
            assert builder.decode(data, 0, batch.Selection())[0] == len(rows)
        else:
            assert builder.add(rows) == len(rows)
        expected += rows
        offset += len(records)
    assert builder.add([]) == 0
    assert rows_of(builder.take(), form) == expected


@settings(max_examples=200)
@given(
    batches=st.lists(RECORDS, min_size=1, max_size=3),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    mend=st.booleans(),
)
def test_damage_is_met_in_the_same_place(
    batches: list[Any], cut: float, flips: list[tuple[float, int]], mend: bool
) -> None:
    """Cut and flipped bytes, with right CRCs too: the same records before it, then the same error."""
    data = bytearray(log_of(batches))
    for where, bits in flips:
        data[int(where * len(data))] ^= bits
    if mend:
        position = 0
        while len(data) - position >= 61:
            end = position + 12 + int.from_bytes(data[position + 8 : position + 12], "big", signed=True)
            if not position + 61 <= end <= len(data):
                break
            data[position + 17 : position + 21] = batch.crc32c(bytes(data[position + 21 : end])).to_bytes(4, "big")
            position = end
    whole = bytes(data[: int(cut * len(data)) + 1])
    assert by_columns(whole, batch.Selection(), "copy") == by_rows(whole, batch.Selection())


@given(st.lists(st.one_of(st.none(), st.sampled_from([b"", b"a", b"plant/1"]), st.binary(max_size=20)), max_size=50))
def test_codes_stand_for_keys(keys: list[bytes | None]) -> None:
    """Each distinct key once, in the order in which they came; keys that are no text are counted."""
    builder = ColumnBuilder(keys="codes", values="none")
    if keys:
        builder.decode(batch.encode([(0, key, None, ()) for key in keys]), 0, batch.Selection())
    assert builder.not_text == sum(key is not None and not is_text(key) for key in keys)
    for _ in range(2):
        columns = builder.take()
        codes = memoryview(columns.key.items or b"").cast("i").tolist()
        distinct = strings_array_of(columns)
        assert [None if key is None else distinct[code] for key, code in zip(keys, codes, strict=True)] == keys
        assert distinct == list(dict.fromkeys(key for key in keys if key is not None))
        keys = []


def strings_array_of(columns: Columns) -> list[bytes]:
    key = columns.key
    assert key.ends is not None
    assert key.bytes is not None
    buffers = [None, pa.py_buffer(key.ends), pa.py_buffer(key.bytes)]
    found: list[bytes] = pa.Array.from_buffers(pa.large_binary(), key.distinct, buffers).to_pylist()
    return found


def is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
