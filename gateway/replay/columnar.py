"""What can be had as columns: Arrow, Polars, pandas, DuckDB, each from the same lazily read batches.

pyarrow, Polars, pandas and DuckDB are imported when they are first used: reading records needs none of them.
"""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, Unpack

from gateway.errors import BadPayloadWarning, GatewayError, UsageError
from gateway.replay.topics import TopicTemplate

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import polars as pl
    import pyarrow as pa

Values = Literal["bytes", "float", "json", "cbor"]
KeyForm = Literal["text", "bytes", "dictionary"]

# So many payloads that could not be read are kept, and so many of their bytes; the rest is counted.
BAD_KEPT_MAX = 1_000
BAD_KEPT_BYTES_MAX = 16 << 20


class Options(TypedDict, total=False):
    """What the columns are.

    values: what becomes of payloads. "bytes": a column `value` of them as they are. "float": a column `value` of
    numbers, from their text. "json", "cbor": a column for each field, nested ones as `a.b`; a payload that is no object
    is the field `value`; a field with the name of another column gets `value.` before its own.
    schema: of the fields, for "json" and "cbor": a pyarrow schema, or a dict of names and pyarrow types (or their
    names). The table has exactly these fields then, and what does not fit is a bad payload. Without it the whole range
    is read once more beforehand: int and float make float64, other conflicts text.
    topic: a template as "plant/{line}/{sensor}"; each name is a column, with null where the key does not fit.
    headers: True gives a column `headers`, a list of name and value; a tuple of names gives a text column each, the
    last header of that name (`source_time`: timestamp[ns, UTC]).
    key: "text"; "dictionary", the same with each distinct key held once; or "bytes". In text, bytes that are not UTF-8
    are escaped as \\xNN.
    """

    values: Values
    schema: Any
    topic: str | None
    headers: bool | tuple[str, ...] | list[str]
    key: KeyForm


@dataclass(frozen=True)
class Shape:
    """Checked options. view: strings are Arrow's views, which point into the mapped log."""

    values: Values = "bytes"
    schema: Any = None
    topic: TopicTemplate | None = None
    headers: bool | tuple[str, ...] = False
    key: KeyForm = "text"
    view: bool = False

    def __post_init__(self) -> None:
        if self.values not in {"bytes", "float", "json", "cbor"}:
            raise UsageError(f'values is "bytes", "float", "json" or "cbor", not {self.values!r}.')
        if self.key not in {"text", "bytes", "dictionary"}:
            raise UsageError(f'key is "text", "bytes" or "dictionary", not {self.key!r}.')
        if self.schema is not None and self.values not in {"json", "cbor"}:
            raise UsageError(f'A schema is for values="json" and values="cbor", not for {self.values!r}.')

    @classmethod
    def of(cls, *, view: bool, options: Options) -> Shape:
        """TypeError for an option that there is not."""
        if unknown := set(options) - set(Options.__annotations__):
            raise TypeError(f"{min(unknown)!r} is no option; there are {', '.join(Options.__annotations__)}")
        topic, headers = options.get("topic"), options.get("headers", False)
        return cls(
            values=options.get("values", "bytes"),
            schema=options.get("schema"),
            topic=TopicTemplate(topic) if topic is not None else None,
            headers=headers if isinstance(headers, bool) else tuple(headers),
            key=options.get("key", "text"),
            view=view and options.get("values", "bytes") == "bytes",
        )


class BadPayload(NamedTuple):
    """A record that is not in the table, because its payload could not be read as was asked."""

    offset: int
    timestamp_ns: int
    key: str | bytes | None
    value: bytes | None
    reason: str


@dataclass
class BadPayloads:
    """Records set aside. count: all of them; kept: the first 1,000, and 16 MiB of payload, at most."""

    count: int = 0
    kept: list[BadPayload] = field(default_factory=list)
    _kept_bytes: int = 0

    def add(self, bad: BadPayload) -> None:
        self.count += 1
        size = len(bad.value or b"")
        if len(self.kept) < BAD_KEPT_MAX and self._kept_bytes + size <= BAD_KEPT_BYTES_MAX:
            self.kept.append(bad)
            self._kept_bytes += size

    def warn(self) -> None:
        """Say so, if there are any."""
        if self.count:
            first = f" The first, offset {self.kept[0].offset}: {self.kept[0].reason}." if self.kept else ""
            text = f"{self.count} payloads could not be read as was asked and are not in the table.{first}"
            warnings.warn(BadPayloadWarning(f"{text} `bad` has them."), stacklevel=2)


class Shaped(NamedTuple):
    """What is read: its schema, and its batches, each read when it is asked for."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    bad: BadPayloads


class Columnar(ABC):
    """Something that is read as columns. Each call reads anew, up to what is durable by then.

    Memory stays bounded where the result allows it: `to_batches` and `to_duckdb` hold one batch at a time, of
    256,000 rows or 64 MiB and what one piece of the log adds. The gateway may write, and retention delete, meanwhile.
    """

    _bad: BadPayloads | None = None

    @abstractmethod
    def shaped(self, shape: Shape) -> Shaped:
        """Schema and batches."""

    @property
    def bad(self) -> BadPayloads:
        """What the last call could not read; while batches are being read, so far."""
        return self._bad if self._bad is not None else BadPayloads()

    def to_batches(self, *, view: bool = False, **options: Unpack[Options]) -> pa.RecordBatchReader:
        """A pyarrow.RecordBatchReader, lazily. See `Options`.

        view: keys and values are Arrow's string_view and binary_view, which point into the mapped log instead of being
        copied (values="bytes" only). pyarrow itself cannot yet filter, sort or join those; Polars and DuckDB can.
        """
        return self._read(Shape.of(view=view, options=options))

    def to_arrow(self, *, view: bool = False, **options: Unpack[Options]) -> pa.Table:
        """A pyarrow.Table: `offset` (int64), `timestamp` (timestamp[ns, UTC], the gateway's receive time), `key`
        (large_string), `value` (large_binary), in the log's order. view: as for `to_batches`.
        """
        return self._read(Shape.of(view=view, options=options)).read_all()

    def to_polars(self, **options: Unpack[Options]) -> pl.DataFrame:
        """A polars.DataFrame. Payloads are not copied: they stay in the mapped log."""
        polars = library("polars", "Polars")
        frame: pl.DataFrame = polars.from_arrow(
            self._read(Shape.of(view=True, options=options)).read_all(), rechunk=False
        )
        return frame

    def to_pandas(self, **options: Unpack[Options]) -> pd.DataFrame:
        """A pandas.DataFrame. Payloads are Python bytes there: typed `values` take far less."""
        library("pandas", "pandas")
        table = self._read(Shape.of(view=False, options=options)).read_all()
        frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
        return frame

    def to_duckdb(
        self, connection: duckdb.DuckDBPyConnection | None = None, **options: Unpack[Options]
    ) -> duckdb.DuckDBPyRelation:
        """A DuckDB relation, of the default connection unless one is given.

        It holds no records: each query reads the log anew, in batches, without copying payloads.
        """
        database = library("duckdb", "DuckDB")
        shape = Shape.of(view=True, options=options)
        if connection is None:
            connection = database.default_connection()
        return connection.from_arrow(Stream(self, replace(shape)))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Arrow's PyCapsule protocol: for `pyarrow.table(records)`, DuckDB's `FROM records`, and others."""
        return self._read(Shape()).__arrow_c_stream__(requested_schema)

    def _read(self, shape: Shape) -> pa.RecordBatchReader:
        pyarrow = library("pyarrow", "Arrow")
        shaped = self.shaped(shape)
        self._bad = shaped.bad
        return pyarrow.RecordBatchReader.from_batches(shaped.schema, _to_the_end(shaped))


def refuse_options(shape: Shape) -> None:
    """UsageError if options were given where the columns are what they are."""
    if shape not in {Shape(), Shape(view=True)}:
        raise UsageError("This table's columns are fixed: it takes no options but the range's own.")


class Stream:
    """What others pull batches from, as often as they like (Arrow's PyCapsule protocol)."""

    def __init__(self, columnar: Columnar, shape: Shape) -> None:
        self._columnar = columnar
        self._shape = shape

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._columnar._read(self._shape).__arrow_c_stream__(requested_schema)


def _to_the_end(shaped: Shaped) -> Iterator[pa.RecordBatch]:
    yield from shaped.batches
    shaped.bad.warn()


def library(name: str, called: str) -> Any:
    """A library of an extra. GatewayError, which says what brings it, if it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = "replay" if name == "pyarrow" else "frames"
        raise GatewayError(f"{called} is not installed: pip install 'gateway[{extra}]' brings it.") from error
