"""Records of the log as Arrow record batches: the native walker's buffers become arrays without another copy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from gateway_native.columns import ColumnBuilder, Columns
from gateway_native.columns import Strings as Buffers

from gateway.errors import UsageError
from gateway.log.mapped import MappedSegment
from gateway.log.partition import Limit
from gateway.replay.columnar import BadPayloads, Shape, Shaped
from gateway.replay.payloads import Payloads, payloads_of

if TYPE_CHECKING:
    from gateway.replay.records import Records

TIMESTAMP = pa.timestamp("ns", tz="UTC")
HEADERS = pa.large_list(pa.struct([("name", pa.large_string()), ("value", pa.large_binary())]))
RETAIN_HEADER = b"retain"
# The one header that is a time: ns since 1970-01-01 UTC, as text.
SOURCE_TIME = "source_time"


def shape_records(records: Records, shape: Shape, limit: Limit | None = None, *, quiet: bool = False) -> Shaped:
    """Schema and batches of a range, up to what is durable now, or to a limit. quiet: as for `Records.decoded`."""
    limit = records.limit() if limit is None else limit
    base = _base_schema(shape)
    bad = BadPayloads()
    if shape.values == "bytes":
        return Shaped(base, _plain(records, shape, limit, base), bad)
    payloads = payloads_of(shape, taken=[name for name in base.names if name != "value"])
    if payloads.schema is None:
        _infer(records, payloads, limit)
    at = base.get_field_index("value")
    assert payloads.schema is not None
    schema = pa.schema([*list(base)[:at], *payloads.schema, *list(base)[at + 1 :]])
    return Shaped(schema, _typed(records, shape, limit, payloads, schema, bad, quiet), bad)


def _base_schema(shape: Shape) -> pa.Schema:
    text, octets = _string_types(shape)
    key = {"text": text, "bytes": octets, "dictionary": pa.dictionary(pa.int32(), pa.large_string())}[shape.key]
    fields = [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("key", key),
        *(pa.field(name, pa.large_string()) for name in (shape.topic.names if shape.topic else ())),
        pa.field("value", octets),
    ]
    if shape.headers is True:
        fields.append(pa.field("headers", HEADERS))
    elif shape.headers:
        fields += [pa.field(name, TIMESTAMP if name == SOURCE_TIME else pa.large_string()) for name in shape.headers]
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two columns would be called {name!r}: name another level or header.")
    return pa.schema(fields)


def _string_types(shape: Shape) -> tuple[pa.DataType, pa.DataType]:
    return (pa.string_view(), pa.binary_view()) if shape.view else (pa.large_string(), pa.large_binary())


# -- reading -----------------------------------------------------------------------------------------------------------


def columns_of(
    records: Records, limit: Limit, builder: ColumnBuilder, *, mapped: bool = False, quiet: bool = False
) -> Iterator[Columns]:
    """What the builder makes of the records, in pieces of bounded size. quiet: as for `Records.decoded`."""
    for found in records.decoded(builder.decode, limit, MappedSegment if mapped else None, quiet=quiet):
        if isinstance(found, list):  # records that were found otherwise than by walking batches
            builder.add(found)
        if builder.full:
            yield builder.take()
    if builder.rows:
        yield builder.take()


def builder_for(records: Records, shape: Shape) -> ColumnBuilder:
    """A builder that leaves out what the range leaves out."""
    form = "view" if shape.view else "copy"
    by_code = shape.key == "dictionary" or shape.topic is not None
    return ColumnBuilder(
        keys="codes" if by_code else form,  # type: ignore[arg-type]
        values=form,  # type: ignore[arg-type]
        headers=bool(shape.headers),
        without_header=None if records.retained else RETAIN_HEADER,
    )


def _plain(records: Records, shape: Shape, limit: Limit, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for columns in columns_of(records, limit, builder_for(records, shape), mapped=shape.view):
        yield pa.RecordBatch.from_arrays(_arrays(columns, shape, schema), schema=schema)


def _typed(
    records: Records,
    shape: Shape,
    limit: Limit,
    payloads: Payloads,
    schema: pa.Schema,
    bad: BadPayloads,
    quiet: bool,
) -> Iterator[pa.RecordBatch]:
    base = _base_schema(shape)
    at = base.get_field_index("value")
    for columns in columns_of(records, limit, builder_for(records, shape), quiet=quiet):
        arrays = _arrays(columns, shape, base)
        typed, reasons = payloads.arrays(arrays[at])
        if reasons:
            for row, reason in sorted(reasons.items()):
                bad.add(_bad_payload(arrays, at, row, reason))
            kept = pa.array([row not in reasons for row in range(columns.rows)])
            arrays = [array.filter(kept) for array in arrays]
        arrays[at : at + 1] = typed
        if len(arrays[0]):
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _infer(records: Records, payloads: Payloads, limit: Limit) -> None:
    builder = ColumnBuilder(keys="none", values="copy", without_header=None if records.retained else RETAIN_HEADER)
    for columns in columns_of(records, limit, builder, quiet=True):
        payloads.look(strings_array(columns.value, columns.rows, pa.large_binary(), []))
    payloads.settle()


def _bad_payload(arrays: list[pa.Array], at: int, row: int, reason: str) -> Any:
    from gateway.replay.columnar import BadPayload

    offset, timestamp, key, value = (arrays[n][row] for n in (0, 1, 2, at))
    return BadPayload(offset.as_py(), timestamp.value, key.as_py(), value.as_py(), reason)


# -- arrays ------------------------------------------------------------------------------------------------------------


def _arrays(columns: Columns, shape: Shape, schema: pa.Schema) -> list[pa.Array]:
    rows, sources = columns.rows, _source_buffers(columns)
    arrays = [
        pa.Array.from_buffers(pa.int64(), rows, [None, pa.py_buffer(columns.offset)]),
        pa.Array.from_buffers(TIMESTAMP, rows, [None, pa.py_buffer(columns.timestamp)]),
    ]
    if columns.key.form == "codes":
        codes, distinct = coded_keys(columns)
        arrays.append(_decoded_keys(codes, distinct, schema.field("key").type))
        for name, values in zip(*_topic_columns(shape, distinct), strict=True):
            assert schema.field(name).type == values.type
            arrays.append(values.take(codes))
    else:
        arrays.append(_keys(columns, schema.field("key").type, sources))
    arrays.append(strings_array(columns.value, rows, schema.field("value").type, sources))
    if shape.headers:
        arrays += _header_arrays(columns, shape)
    return arrays


def _source_buffers(columns: Columns) -> list[pa.Buffer]:
    """What views point into: of each only what was decoded, so that nobody ever looks behind what is durable."""
    return [pa.py_buffer(source).slice(0, size) for source, size in columns.sources]


def strings_array(found: Buffers, rows: int, kind: pa.DataType, sources: list[pa.Buffer]) -> pa.Array:
    """A column of byte strings as an array of `kind`, which fits its form. Nothing is copied or checked."""
    validity = pa.py_buffer(found.validity) if found.validity is not None else None
    if found.form == "copy":
        assert found.bytes is not None
        buffers = [validity, pa.py_buffer(found.items), pa.py_buffer(found.bytes)]
    else:
        buffers = [validity, pa.py_buffer(found.items), *sources]
    return pa.Array.from_buffers(kind, rows, buffers, null_count=found.nulls)


def coded_keys(columns: Columns) -> tuple[pa.Array, pa.Array]:
    """Codes by row, and the distinct keys as bytes."""
    key = columns.key
    validity = pa.py_buffer(key.validity) if key.validity is not None else None
    codes = pa.Array.from_buffers(pa.int32(), columns.rows, [validity, pa.py_buffer(key.items)], null_count=key.nulls)
    distinct = pa.Array.from_buffers(
        pa.large_binary(), key.distinct, [None, pa.py_buffer(key.ends), pa.py_buffer(key.bytes)]
    )
    return codes, distinct


def _decoded_keys(codes: pa.Array, distinct: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column of keys from their codes."""
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(codes, text_of(distinct))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        distinct = text_of(distinct)
    taken = distinct.take(codes)
    return taken if taken.type == kind else taken.cast(kind)


def _keys(columns: Columns, kind: pa.DataType, sources: list[pa.Buffer]) -> pa.Array:
    if columns.not_text == 0 or kind in {pa.large_binary(), pa.binary_view()}:
        return strings_array(columns.key, columns.rows, kind, sources)
    octets = pa.large_binary() if columns.key.form == "copy" else pa.binary_view()
    text = text_of(strings_array(columns.key, columns.rows, octets, sources))
    return text if text.type == kind else text.cast(kind)


def text_of(octets: pa.Array) -> pa.Array:
    """Byte strings as text (large_string); bytes that are not UTF-8 are escaped as \\xNN."""
    if octets.type == pa.large_binary():
        as_text = pa.Array.from_buffers(
            pa.large_string(), len(octets), octets.buffers(), octets.null_count, octets.offset
        )
        try:
            as_text.validate(full=True)
        except pa.ArrowInvalid:
            pass  # the way round by Python says it
        else:
            return as_text
    return pa.array(
        [None if one is None else one.decode("utf-8", "backslashreplace") for one in octets.to_pylist()],
        pa.large_string(),
    )


def _topic_columns(shape: Shape, distinct: pa.Array) -> tuple[tuple[str, ...], list[pa.Array]]:
    """Names, and for each its value by code."""
    if shape.topic is None:
        return (), []
    matched = [shape.topic.match(key) for key in text_of(distinct).to_pylist()]
    names = shape.topic.names
    return names, [pa.array([one[n] for one in matched], pa.large_string()) for n in range(len(names))]


# -- headers -----------------------------------------------------------------------------------------------------------


def _header_arrays(columns: Columns, shape: Shape) -> list[pa.Array]:
    assert columns.headers is not None
    assert columns.header_name is not None
    assert columns.header_value is not None
    count = len(columns.header_name.items or b"") // 8 - 1
    names = text_of(strings_array(columns.header_name, count, pa.large_binary(), []))
    values = strings_array(columns.header_value, count, pa.large_binary(), [])
    ends = pa.Array.from_buffers(pa.int64(), columns.rows + 1, [None, pa.py_buffer(columns.headers)])
    if shape.headers is True:
        pairs = pa.StructArray.from_arrays([names, values], fields=list(HEADERS.value_type))
        return [pa.LargeListArray.from_arrays(ends, pairs)]
    assert isinstance(shape.headers, tuple)
    return [_named_header(name, names, values, ends.to_pylist()) for name in shape.headers]


def _named_header(name: str, names: pa.Array, values: pa.Array, ends: list[int]) -> pa.Array:
    """For each row the last header of that name as text, or null."""
    places = pc.indices_nonzero(pc.equal(names, name)).to_pylist()
    found: list[Any] = [None] * (len(ends) - 1)
    if places:
        texts = text_of(values.take(pa.array(places, pa.int64()))).to_pylist()
        wanted = iter([*zip(places, texts, strict=True), (ends[-1], None)])
        place, text = next(wanted)
        for row, (_, end) in enumerate(pairwise(ends)):
            while place < end:
                found[row] = text
                place, text = next(wanted)
    if name != SOURCE_TIME:
        return pa.array(found, pa.large_string())
    return pa.array([_nanoseconds(text) for text in found], pa.int64()).cast(TIMESTAMP)


def _nanoseconds(text: str | None) -> int | None:
    """None also for what is no number of 64 bits: a header is its source's."""
    try:
        number = int(text) if text is not None else None
    except ValueError:
        return None
    return number if number is not None and abs(number) < 2**63 else None
