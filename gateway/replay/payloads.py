"""Payloads as typed columns: JSON by orjson, CBOR by cbor2, numbers written as text by Arrow.

What a column's type is follows from all values of a range (`Payloads.look`), or is given; then batches are made. A
payload that cannot be read, or does not fit, is set aside with a reason, and its row is in no column.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from gateway.errors import GatewayError, UsageError
from gateway.replay.columnar import Shape
from gateway.replay.kinds import Kind, arrow_type, converter, converter_to, kind_of, merged, try_array, with_fields

# Columns that payloads may make; objects whose field names are data would make one for each.
FIELDS_MAX = 1_000

Row = dict[str, Any]
Typed = tuple[list[pa.Array], dict[int, str]]


class Payloads(ABC):
    """Turns a column of payloads into columns. `schema` is what these are; None while it is not settled."""

    schema: pa.Schema | None = None

    def look(self, values: pa.Array) -> None:
        """See what types one more batch of the range has. Not called where the schema is known."""
        raise NotImplementedError

    def settle(self) -> None:
        """The whole range was looked at: `schema` is known now."""
        raise NotImplementedError

    @abstractmethod
    def arrays(self, values: pa.Array) -> Typed:
        """The columns of one batch, and by row number why a payload is bad: such rows are left out."""


def payloads_of(shape: Shape, taken: Iterable[str]) -> Payloads:
    """For a shape whose values are not bytes. taken: names that other columns have."""
    if shape.values == "float":
        return Numbers(shape, taken)
    loads = _loader("orjson") if shape.values == "json" else _loader("cbor2")
    return Objects(loads, _bad_errors(shape.values), shape.schema, taken)


def _loader(name: str) -> Callable[[bytes], Any]:
    try:
        loads: Callable[[bytes], Any] = importlib.import_module(name).loads
    except ImportError as error:
        raise GatewayError(f"{name} is not installed: pip install 'gateway[replay]' brings it.") from error
    return loads


def _bad_errors(values: str) -> tuple[type[Exception], ...]:
    """What the loader raises for a payload that is none of its format."""
    if values == "json":
        return (ValueError, RecursionError)
    # CBOR's tags make dates, numbers and expressions of text: each may raise what its constructor does.
    return (Exception,)


# -- numbers -----------------------------------------------------------------------------------------------------------


class Numbers(Payloads):
    """Payloads that are a number as text: "21.5", "-3e-7", "inf". A null payload is null."""

    def __init__(self, shape: Shape, taken: Iterable[str]) -> None:
        del shape
        assert "value" not in taken
        self.schema = pa.schema([("value", pa.float64())])

    def arrays(self, values: pa.Array) -> Typed:
        try:
            return [values.cast(pa.large_string()).cast(pa.float64())], {}
        except pa.ArrowInvalid:
            return self._one_by_one(values)

    @staticmethod
    def _one_by_one(values: pa.Array) -> Typed:
        """What Arrow takes, this takes, too, and makes the same of it."""
        numbers: list[float | None] = []
        reasons: dict[int, str] = {}
        for row, value in enumerate(values.to_pylist()):
            try:
                numbers.append(None if value is None else _number(value))
            except ValueError:
                reasons[row] = "no number"
        return [pa.array(numbers, pa.float64())], reasons


def _number(value: bytes) -> float:
    if b"_" in value:  # Python's own notation
        raise ValueError
    return float(value)


# -- objects -----------------------------------------------------------------------------------------------------------


class Objects(Payloads):
    """Payloads of a format that has objects. Nested fields are `a.b`; a payload that is no object is `value`."""

    def __init__(
        self,
        loads: Callable[[bytes], Any],
        bad_errors: tuple[type[Exception], ...],
        schema: Any,
        taken: Iterable[str],
    ) -> None:
        self._loads = loads
        self._bad_errors = bad_errors
        self._taken = frozenset(taken)
        self._kinds: dict[str, Kind] = {}
        self._given = schema is not None
        self._convert: list[Callable[[Any], Any]] = []
        if schema is not None:
            self.schema = with_fields(schema)
            clash = self._taken.intersection(self.schema.names)
            if clash:
                raise UsageError(f"The schema has the field {min(clash)!r}, which is a column of its own already.")

    # -- what there is

    def look(self, values: pa.Array) -> None:
        kinds = self._kinds
        for row in self._rows(values)[0]:
            for name, value in (row or {}).items():
                known = kinds.get(name)
                if known is None:
                    self._check_room(name)
                    kinds[name] = kind_of(value)
                elif value is not None:
                    kind = kind_of(value)
                    if kind != known:
                        kinds[name] = merged(known, kind)

    def _check_room(self, name: str) -> None:
        if len(self._kinds) >= FIELDS_MAX:
            raise UsageError(
                f"The payloads have more than {FIELDS_MAX:,} distinct fields, the last one {name[:100]!r}: say with "
                "schema= which are wanted, or narrow the range with keys=."
            )

    def settle(self) -> None:
        self.schema = pa.schema([(name, arrow_type(kind)) for name, kind in self._kinds.items()])
        self._convert = [converter(kind) for kind in self._kinds.values()]

    # -- batches

    def arrays(self, values: pa.Array) -> Typed:
        rows, reasons = self._rows(values)
        assert self.schema is not None
        if self._given:
            return self._given_arrays(rows, reasons)
        kept = [row for number, row in enumerate(rows) if number not in reasons]
        return [
            pa.array([None if row is None else convert(row.get(field.name)) for row in kept], field.type)
            for field, convert in zip(self.schema, self._convert, strict=True)
        ], reasons

    def _given_arrays(self, rows: list[Row | None], reasons: dict[int, str]) -> Typed:
        assert self.schema is not None
        columns = {field.name: [self._value(row, field) for row in rows] for field in self.schema}
        for field in self.schema:
            column = columns[field.name]
            if try_array(column, field.type) is not None:
                continue
            for number, value in enumerate(column):
                if number not in reasons and try_array([value], field.type) is None:
                    reasons[number] = f"field {field.name!r} is {str(value)[:60]!r}, not {field.type}"
        arrays = []
        for field in self.schema:
            kept = [value for number, value in enumerate(columns[field.name]) if number not in reasons]
            made = try_array(kept, field.type)
            assert made is not None
            arrays.append(made)
        return arrays, reasons

    @staticmethod
    def _value(row: Row | None, field: pa.Field) -> Any:
        return None if row is None else converter_to(field.type)(row.get(field.name))

    def _rows(self, values: pa.Array) -> tuple[list[Row | None], dict[int, str]]:
        """Flat fields by row; None for null payloads, and for bad ones, whose reasons are given."""
        loads, errors = self._loads, self._bad_errors
        rows: list[Row | None] = []
        reasons: dict[int, str] = {}
        for number, value in enumerate(values.to_pylist()):
            row = None
            if value is not None:
                try:
                    row = self._flat(loads(value))
                except errors as error:
                    reasons[number] = f"not readable: {str(error)[:200]}"
            rows.append(row)
        return rows, reasons

    def _flat(self, payload: Any) -> Row:
        if not isinstance(payload, Mapping):
            payload = {"value": payload}
        wanted = self.schema.names if self._given and self.schema is not None else ()
        row: Row = {}
        _flatten(payload, "", row, frozenset(wanted), 0)
        for name in self._taken.intersection(row):
            row[f"value.{name}"] = row.pop(name)
        return row


# Deeper objects stay one value.
DEPTH_MAX = 16


def _flatten(fields: Mapping[Any, Any], prefix: str, row: Row, whole: frozenset[str], depth: int) -> None:
    """Put the fields into `row`, nested ones with dots, except those that are wanted as a whole."""
    for key, value in fields.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in whole and depth < DEPTH_MAX:
            _flatten(value, f"{name}.", row, whole, depth + 1)
        else:
            row[name] = value
