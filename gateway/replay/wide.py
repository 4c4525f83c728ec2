"""A column per key: readings of many sensors side by side, thinned out to one row for each interval of time.

Rows come in the log's order and are finished one after the other, so only the interval that is open is held. Where the
clock was set back, an interval may come twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gateway.errors import UsageError
from gateway.replay.columnar import Columnar, Shape, Shaped, refuse_options
from gateway.replay.columns import TIMESTAMP, shape_records

if TYPE_CHECKING:
    from gateway.log.partition import Limit
    from gateway.replay.records import Records

Aggregate = Literal["last", "first", "mean", "min", "max", "sum", "count"]
AGGREGATES = ("last", "first", "mean", "min", "max", "sum", "count")

COLUMNS_MAX = 10_000
# Cells of one batch: what is held of the table at a time.
CELLS_MAX = 4_000_000
# The columns of records, before those of their payloads.
_OWN = 3

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Cells = npt.NDArray[Any]


@dataclass(frozen=True)
class Column:
    """One column of the table: where its values come from, and their type."""

    name: str
    kind: pa.DataType


class Wide(Columnar):
    """What `Records.wide` gives: `timestamp`, then a column for each key, sorted by name. Options of `to_arrow` and the
    others do not apply: what the columns are was said to `wide`.
    """

    def __init__(self, records: Records, every_ns: int | None, agg: Aggregate, shape: Shape) -> None:
        if agg not in AGGREGATES:
            raise UsageError(f"agg is one of {', '.join(AGGREGATES)}, not {agg!r}.")
        if every_ns is not None and every_ns <= 0:
            raise UsageError("every is a duration of more than nothing.")
        if shape.values == "bytes":
            raise UsageError('wide takes values="float", "json" or "cbor": bytes have no columns.')
        self._records = records
        self._every_ns = every_ns or 1
        self._agg = agg
        self._shape = shape

    def shaped(self, shape: Shape) -> Shaped:
        refuse_options(shape)
        limit = self._records.limit()
        found = self._find_columns(limit)
        names = sorted(found)
        schema = pa.schema([("timestamp", TIMESTAMP), *((name, found[name]) for name in names)])
        if len(set(schema.names)) < len(schema.names):
            raise UsageError('A key is called "timestamp", which is a column of its own already: narrow keys=.')
        long = shape_records(self._records, self._shape, limit)
        return Shaped(schema, self._batches(long, schema), long.bad)

    # -- which columns

    def _find_columns(self, limit: Limit) -> dict[str, pa.DataType]:
        """Types by name, from the whole range: only columns that have a value somewhere."""
        long = shape_records(self._records, self._shape, limit, quiet=True)
        fields = list(long.schema)[_OWN:]
        self._check_aggregate(fields)
        found: dict[str, pa.DataType] = {}
        for batch in long.batches:
            codes, keys = _codes(batch)
            for number, field in enumerate(fields, _OWN):
                used = np.unique(codes[(codes >= 0) & _valid(batch.column(number))])
                for code in used.tolist():
                    found[column_name(keys[code], field.name)] = self._result_type(field.type)
            if len(found) > COLUMNS_MAX:
                raise UsageError(f"That would be more than {COLUMNS_MAX:,} columns: narrow the keys with keys=.")
        return found

    def _check_aggregate(self, fields: list[pa.Field]) -> None:
        if self._agg in {"last", "first", "count"}:
            return
        for field in fields:
            if not _is_number(field.type):
                raise UsageError(
                    f'The field {field.name!r} is {field.type}, which has no {self._agg}: choose agg="last", or leave '
                    "it out with schema= or keys=."
                )

    def _result_type(self, kind: pa.DataType) -> pa.DataType:
        if self._agg == "count":
            return pa.int64()
        return pa.float64() if self._agg == "mean" else kind

    # -- rows

    def _batches(self, long: Shaped, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        places = {name: number for number, name in enumerate(schema.names[1:])}
        rows_max = max(1, CELLS_MAX // max(1, len(places)))
        open_rows: Block | None = None
        for batch in long.batches:
            for bucket_numbers, begin, end in self._runs(batch, rows_max):
                block = self._block(batch.slice(begin, end - begin), bucket_numbers, long.schema, places)
                if open_rows is not None:
                    if open_rows.buckets[-1] == block.buckets[0]:
                        block.merge_before(open_rows, self._agg)
                    else:
                        yield open_rows.finished(self._every_ns, schema, self._agg)
                open_rows, done = block.split_last()
                if done is not None:
                    yield done.finished(self._every_ns, schema, self._agg)
        if open_rows is not None:
            yield open_rows.finished(self._every_ns, schema, self._agg)

    def _runs(self, batch: pa.RecordBatch, rows_max: int) -> Iterator[tuple[Ints, int, int]]:
        """Stretches of a batch in which time does not run back, of at most so many intervals."""
        times = batch.column(1).cast(pa.int64()).to_numpy(zero_copy_only=False)
        buckets = times // self._every_ns
        steps = np.diff(buckets)
        changes = np.cumsum(steps != 0)
        begin = 0
        while begin < len(buckets):
            end = len(buckets)
            back = np.flatnonzero(steps[begin:] < 0)
            if len(back):
                end = begin + int(back[0]) + 1
            passed = int(changes[begin - 1]) if begin else 0
            end = min(end, int(np.searchsorted(changes, passed + rows_max, side="left")) + 1)
            yield buckets[begin:end], begin, end
            begin = end

    def _block(self, batch: pa.RecordBatch, buckets: Ints, schema: pa.Schema, places: dict[str, int]) -> Block:
        distinct, rows = np.unique(buckets, return_inverse=True)
        block = Block.empty(distinct, len(places))
        codes, keys = _codes(batch)
        for number in range(_OWN, len(schema)):
            values = batch.column(number)
            used = (codes >= 0) & _valid(values)
            if not used.any():
                continue
            columns = np.full(len(keys), -1, np.int64)
            for code in np.unique(codes[used]).tolist():
                columns[code] = places[column_name(keys[code], schema.names[number])]
            block.add(rows[used], columns[codes[used]], _cells(values)[used], self._agg)
        return block


def column_name(key: str, field: str) -> str:
    """A key's only value is called like the key."""
    return key if field == "value" else f"{key}.{field}"


def _codes(batch: pa.RecordBatch) -> tuple[Ints, list[str]]:
    """Codes of the keys by row, -1 for none, and the keys."""
    key = batch.column(2)
    return key.indices.fill_null(-1).cast(pa.int64()).to_numpy(zero_copy_only=False), key.dictionary.to_pylist()


def _valid(values: pa.Array) -> Flags:
    valid: Flags = values.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _cells(values: pa.Array) -> Cells:
    """Numbers as numbers; anything else as objects, with NumPy's own for null places."""
    if _is_number(values.type):
        cells: Cells = values.fill_null(0).to_numpy(zero_copy_only=False)
        return cells
    objects = np.empty(len(values), object)
    objects[:] = values.to_pylist()
    return objects


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


_REDUCE: dict[str, Callable[..., Any]] = {"mean": np.add, "sum": np.add, "min": np.minimum, "max": np.maximum}


class Block:
    """Intervals in order, by columns: what their values have become so far, and how many there were.

    Values are kept by column, since columns differ in type: a dict of arrays over the intervals.
    """

    def __init__(self, buckets: Ints, columns: int, values: dict[int, Cells], counts: dict[int, Ints]) -> None:
        self.buckets = buckets
        self._columns = columns
        self._values = values
        self._counts = counts

    @classmethod
    def empty(cls, buckets: Ints, columns: int) -> Block:
        return cls(buckets, columns, {}, {})

    def add(self, rows: Ints, columns: Ints, values: Cells, agg: str) -> None:
        """Put values into their cells: `rows` are the intervals' numbers, in the log's order."""
        order = np.argsort(columns * len(self.buckets) + rows, kind="stable")
        rows, columns, values = rows[order], columns[order], values[order]
        starts = np.flatnonzero(np.diff(columns * len(self.buckets) + rows, prepend=-1))
        ends = np.append(starts[1:], len(rows))
        if agg in _REDUCE:
            wanted = values.astype(np.float64) if agg == "mean" else values
            reduced = getattr(_REDUCE[agg], "reduceat")(wanted, starts)  # noqa: B009  # not in every stub
        else:
            reduced = values[starts if agg == "first" else ends - 1]
        self._place(rows[starts], columns[starts], reduced, ends - starts)

    def _place(self, rows: Ints, columns: Ints, values: Cells, counts: Ints) -> None:
        borders = np.flatnonzero(np.diff(columns, prepend=-1))
        for begin, end in zip(borders.tolist(), [*borders[1:].tolist(), len(columns)], strict=True):
            column = int(columns[begin])
            cells = np.zeros(len(self.buckets), values.dtype)
            cells[rows[begin:end]] = values[begin:end]
            counted = np.zeros(len(self.buckets), np.int64)
            counted[rows[begin:end]] = counts[begin:end]
            self._values[column], self._counts[column] = cells, counted

    def merge_before(self, earlier: Block, agg: str) -> None:
        """The first interval here is the last one of `earlier`, which holds only that: put both together."""
        for column, before in earlier._counts.items():
            value = earlier._values[column][-1]
            if column not in self._counts:
                self._values[column] = np.zeros(len(self.buckets), earlier._values[column].dtype)
                self._counts[column] = np.zeros(len(self.buckets), np.int64)
            cells, counts = self._values[column], self._counts[column]
            if not counts[0] or agg == "first":
                cells[0] = value
            elif agg in _REDUCE:
                cells[0] = _REDUCE[agg](cells[0], value)
            counts[0] += before[-1]

    def split_last(self) -> tuple[Block, Block | None]:
        """The last interval, which may go on, and those before it."""
        last = self._slice(slice(-1, None), only_used=True)
        return last, self._slice(slice(0, -1)) if len(self.buckets) > 1 else None

    def _slice(self, part: slice, *, only_used: bool = False) -> Block:
        used = [column for column, counts in self._counts.items() if not only_used or counts[part].any()]
        return Block(
            self.buckets[part],
            self._columns,
            {column: self._values[column][part].copy() for column in used},
            {column: self._counts[column][part].copy() for column in used},
        )

    def finished(self, every_ns: int, schema: pa.Schema, agg: str) -> pa.RecordBatch:
        """The intervals as rows. One without a value has been no interval; its row is there with nulls."""
        arrays = [pa.array(self.buckets * every_ns, pa.int64()).cast(TIMESTAMP)]
        for column in range(self._columns):
            kind = schema.field(column + 1).type
            if column not in self._counts:
                arrays.append(pa.nulls(len(self.buckets), kind))
                continue
            counts = self._counts[column]
            values = counts if agg == "count" else self._values[column]
            if agg == "mean":
                values = values / np.maximum(counts, 1)
            arrays.append(pa.array(values, kind, mask=counts == 0))
        return pa.RecordBatch.from_arrays(arrays, schema=schema)
