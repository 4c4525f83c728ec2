"""Types of values in payloads: what several of them make together, and how a value becomes one of a column's type."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from gateway.errors import UsageError

# A kind is a name, or a list of one: ("list", kind).
Kind = str | tuple[str, Any]

NULL, BOOL, INT, FLOAT, TEXT, BYTES, TIME = "null", "bool", "int", "float", "text", "bytes", "time"

_KINDS: dict[type, Kind] = {
    type(None): NULL, bool: BOOL, int: INT, float: FLOAT, str: TEXT, bytes: BYTES, datetime: TIME
}  # fmt: skip
_TYPES: dict[Any, pa.DataType] = {
    NULL: pa.large_string(),
    BOOL: pa.bool_(),
    INT: pa.int64(),
    FLOAT: pa.float64(),
    TEXT: pa.large_string(),
    BYTES: pa.large_binary(),
    TIME: pa.timestamp("us", tz="UTC"),
}


def kind_of(value: Any) -> Kind:
    """The kind of one value. An int beyond 64 bits is a float; what is no plain value is text (its JSON)."""
    kind = _KINDS.get(type(value), TEXT)
    if kind == INT and not -(2**63) <= value < 2**63:
        return FLOAT
    if type(value) is list:
        return _kind_of_list(value)
    return kind


def _kind_of_list(values: list[Any]) -> Kind:
    kind: Kind = NULL
    for value in values:
        kind = merged(kind, TEXT if isinstance(value, (list, Mapping)) else kind_of(value))
    return ("list", kind)


def merged(one: Kind, other: Kind) -> Kind:
    """The kind that holds both: int and float make float, other conflicts text, null changes nothing."""
    if other in {one, NULL}:
        return one
    if one == NULL:
        return other
    if {one, other} == {INT, FLOAT}:
        return FLOAT
    if isinstance(one, tuple) and isinstance(other, tuple):
        return ("list", merged(one[1], other[1]))
    return TEXT


def arrow_type(kind: Kind) -> pa.DataType:
    """A column's type; where all values are null it is text."""
    return pa.large_list(arrow_type(kind[1])) if isinstance(kind, tuple) else _TYPES[kind]


def converter(kind: Kind) -> Callable[[Any], Any]:
    """Makes a value of a kind merged into this one what Arrow takes for the column; None stays None."""
    if isinstance(kind, tuple):
        inner = converter(kind[1])
        return lambda values: None if values is None else [inner(value) for value in values]
    return {FLOAT: _as_float, TEXT: as_text, NULL: as_text, TIME: _as_utc}.get(kind, _same)


def _same(value: Any) -> Any:
    return value


def _as_float(value: Any) -> float | None:
    return None if value is None else float(value)


def _as_utc(value: datetime | None) -> datetime | None:
    """CBOR's times have a zone; one without is taken as UTC."""
    if value is None:
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


def as_text(value: Any) -> str | None:
    """Text as it is, anything else as JSON; bytes as base64."""
    if value is None or type(value) is str:
        return value
    if type(value) is bytes:
        return base64.b64encode(value).decode()
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    """What JSON has no form for."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): each for key, each in value.items()}
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)


# -- schemas that are given --------------------------------------------------------------------------------------------


def with_fields(schema: Any) -> pa.Schema:
    """A schema as it may be given: a pyarrow one, or a mapping of names to types or their names."""
    if isinstance(schema, pa.Schema):
        return schema
    if not isinstance(schema, Mapping):
        raise UsageError(f"schema is a pyarrow.Schema or a dict of names and types, not {type(schema).__name__}.")
    try:
        return pa.schema(
            [(name, pa.type_for_alias(kind) if isinstance(kind, str) else kind) for name, kind in schema.items()]
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f'schema: {error}. Types are pyarrow\'s, or their names: "float64", "int64", "string", …'
        ) from error


def converter_to(kind: pa.DataType) -> Callable[[Any], Any]:
    """Makes a payload's value what Arrow takes for a column of a given type; what does not fit stays, and is refused.

    An int fits a float, and a float without a fraction an int; anything fits text; a time is ISO 8601 text with a zone,
    never a bare number (which unit?).
    """
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = converter_to(kind.value_type)
        return lambda value: [inner(each) for each in value] if isinstance(value, (list, tuple)) else _none(value)
    if pa.types.is_struct(kind):
        fields = [(field.name, converter_to(field.type)) for field in kind]
        return lambda value: (
            {name: convert(value.get(name)) for name, convert in fields} if isinstance(value, Mapping) else _none(value)
        )
    if pa.types.is_integer(kind):
        return _integer
    if pa.types.is_floating(kind):
        return _number
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return as_text
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return lambda value: value if isinstance(value, bytes) else _none(value)
    return _time if pa.types.is_timestamp(kind) else _same


class _Unfit:
    """A value that no column takes."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __str__(self) -> str:
        return str(self._value)


def _none(value: Any) -> _Unfit | None:
    return None if value is None else _Unfit(value)


def _integer(value: Any) -> Any:
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else _none(value)


def _number(value: Any) -> Any:
    if type(value) is int:
        return float(value)
    return value if type(value) is float else _none(value)


def _time(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return _Unfit(value)
    return value if isinstance(value, datetime) and value.tzinfo is not None else _none(value)


def try_array(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    """An array of that type; None if a value does not fit."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, TypeError, ValueError):
        return None
