"""Payloads as typed columns: JSON by orjson, CBOR by cbor2, numbers written as text by Arrow.

What a column's type is follows from all values of a range (`Payloads.look`), or is given; then batches are made. A
payload that cannot be read, or does not fit, is set aside with a reason, and its row is in no column.
"""

from __future__ import annotations

import importlib
import io
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
Load = Callable[[bytes], Any]
Typed = tuple[list[pa.Array], dict[int, str]]


class Payloads(ABC):
    """Turns a column of payloads into columns. `schema` is what these are; None while it is not settled.

    A kind that knows its schema beforehand has nothing to look for in the range.
    """

    schema: pa.Schema | None = None

    def look(self, values: pa.Array) -> None:  # noqa: B027 - most kinds need none
        """See what types one more batch of the range has."""

    def settle(self) -> None:  # noqa: B027
        """The whole range was looked at: `schema` is known now."""

    @abstractmethod
    def arrays(self, values: pa.Array) -> Typed:
        """The columns of one batch, and by row number why a payload is bad: such rows are left out."""


def payloads_of(shape: Shape, taken: Iterable[str]) -> Payloads:
    """For a shape whose values are not bytes. taken: names that other columns have."""
    if shape.values == "float":
        return Numbers(shape, taken)
    if shape.values == "json":
        return Objects(_load_json(), (ValueError, RecursionError), shape.schema, taken)
    # Tags make dates and numbers of what a payload holds: each raises what its constructor does.
    return Objects(_load_cbor(), (Exception,), shape.schema, taken)


def _load_json() -> Load:
    return _library("orjson").loads  # type: ignore[no-any-return]


# Tags of CBOR that a payload of a few bytes can make gigabytes, or endless structures, of: shared values (28, 29) and
# strings (25, 256), and patterns (35). http://cbor.schmorp.de/value-sharing, http://cbor.schmorp.de/stringref
_REFUSED_TAGS = (25, 28, 29, 35, 256)
_CBOR_DEPTH_MAX = 64


def _load_cbor() -> Load:
    decoder = _library("cbor2").CBORDecoder
    refused = dict.fromkeys(_REFUSED_TAGS, _refuse_tag)

    def load(payload: bytes) -> Any:
        data = io.BytesIO(payload)
        value = decoder(data, semantic_decoders=refused, max_depth=_CBOR_DEPTH_MAX).decode()
        if data.tell() != len(payload):
            raise ValueError(f"{len(payload) - data.tell()} bytes follow the value")
        return value

    return load


def _refuse_tag(*_: Any) -> Any:
    raise ValueError("a CBOR tag that is not read: shared values, shared strings, patterns")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise GatewayError(f"{name} is not installed: pip install 'gateway[replay]' brings it.") from error


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
                reasons[row] = f"no number{_JSON_HINT if value.lstrip()[:1] == b'{' else ''}"
        return [pa.array(numbers, pa.float64())], reasons


_JSON_HINT = ', but an object: values="json" reads those'


def _number(value: bytes) -> float:
    if b"_" in value:  # Python's own notation
        raise ValueError
    return float(value)


# -- objects -----------------------------------------------------------------------------------------------------------


class Objects(Payloads):
    """Payloads of a format that has objects. Nested fields are `a.b`; a payload that is no object is `value`."""

    def __init__(
        self,
        loads: Load,
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
            self._convert = [converter_to(field.type) for field in self.schema]
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
        columns = []
        for field, convert in zip(self.schema, self._convert, strict=True):
            name = field.name
            column = [None if row is None else convert(row.get(name)) for row in rows]
            if self._given and try_array(column, field.type) is None:
                _find_unfit(column, field, reasons)
            columns.append(column)
        return [
            pa.array([value for number, value in enumerate(column) if number not in reasons], field.type)
            for field, column in zip(self.schema, columns, strict=True)
        ], reasons

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


def _find_unfit(column: list[Any], field: pa.Field, reasons: dict[int, str]) -> None:
    """Add the rows whose value does not fit the field."""
    for number, value in enumerate(column):
        if number not in reasons and try_array([value], field.type) is None:
            reasons[number] = f"field {field.name!r} is {str(value)[:60]!r}, not {field.type}"


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
