"""Kafka's framing, for both sides: request headers, schemas by API and version, errors. No I/O.

Source: Apache Kafka, clients/src/main/resources/common/message/{RequestHeader,ResponseHeader}.json, and KIP-482 on
flexible versions. Schemas of bodies are kio's, one dataclass for each version.
"""

from __future__ import annotations

import dataclasses
import io
import struct
import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any, Literal, NamedTuple

from kio.index import load_payload_module
from kio.schema.errors import ErrorCode
from kio.serial import entity_reader, entity_writer
from kio.serial.errors import SerialError
from kio.static.constants import EntityType

from gateway.kafka.lengths import check_lengths, is_union

_HEADER = struct.Struct(">hhih")
_INT32 = struct.Struct(">i")
# A client's name is for logs and group members alone.
CLIENT_ID_BYTES_MAX = 255
# Tagged fields of a request header: none is known, so hardly any are expected.
TAGS_MAX = 16
# Of what a broker answers: all partitions of a large cluster.
RESPONSE_ELEMENTS_MAX = 10_000_000

PRODUCE, FETCH, LIST_OFFSETS, METADATA = 0, 1, 2, 3
OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR, JOIN_GROUP = 8, 9, 10, 11
HEARTBEAT, LEAVE_GROUP, SYNC_GROUP = 12, 13, 14
SASL_HANDSHAKE, API_VERSIONS, INIT_PRODUCER_ID, SASL_AUTHENTICATE = 17, 18, 22, 36

# SASL mechanisms that are spoken here.
PLAIN, SCRAM_SHA_256 = "PLAIN", "SCRAM-SHA-256"

# Fetch ends at 12, the last version that names topics by their names and not by ids. Produce 9 is the first flexible
# one; 10 and later tell clients of other leaders, of which there are none. After SaslHandshake 0 tokens come without
# the framing of requests, which no client of this decade does.
VERSIONS: Mapping[int, tuple[int, int]] = {
    PRODUCE: (3, 9),
    FETCH: (4, 12),
    LIST_OFFSETS: (1, 7),
    METADATA: (0, 12),
    OFFSET_COMMIT: (2, 8),
    OFFSET_FETCH: (1, 7),
    FIND_COORDINATOR: (0, 4),
    JOIN_GROUP: (2, 7),
    HEARTBEAT: (0, 4),
    LEAVE_GROUP: (0, 5),
    SYNC_GROUP: (1, 5),
    SASL_HANDSHAKE: (1, 1),
    API_VERSIONS: (0, 4),
    INIT_PRODUCER_ID: (0, 4),
    SASL_AUTHENTICATE: (0, 2),
}


class ProtocolError(Exception):
    """What a client sent is not what the protocol allows. The text says what; the connection is closed."""


class Header(NamedTuple):
    """A request's header, and where its body begins."""

    api_key: int
    version: int
    correlation_id: int
    client_id: str
    body_start: int


def parse_header(frame: bytes) -> Header:
    """The header of a request (without its length). Raises ProtocolError.

    An ApiVersions request of a version that is not known here is read as far as the correlation id: it is answered.
    """
    if len(frame) < _HEADER.size:
        raise ProtocolError(f"a request of {len(frame)} bytes has no room for its header")
    api_key, version, correlation_id, length = _HEADER.unpack_from(frame)
    if not is_supported(api_key, version):
        if api_key == API_VERSIONS:
            return Header(api_key, version, correlation_id, "", len(frame))
        raise ProtocolError(f"version {version} of API {api_key} is not among those that are offered")
    start = _HEADER.size
    name = b""
    if length >= 0:
        name = frame[start : start + length]
        start += length
    if len(name) != max(length, 0) or length > CLIENT_ID_BYTES_MAX:
        raise ProtocolError(f"the client id is longer than the request, or than {CLIENT_ID_BYTES_MAX} bytes")
    if is_flexible(api_key, version):
        start = _skip_tags(frame, start)
    return Header(api_key, version, correlation_id, name.decode(errors="replace"), start)


def is_supported(api_key: int, version: int) -> bool:
    """Is it offered?"""
    lowest, highest = VERSIONS.get(api_key, (0, -1))
    return lowest <= version <= highest


@cache
def is_flexible(api_key: int, version: int) -> bool:
    """Has this version compact lengths and tagged fields?"""
    return bool(_schema(api_key, version, EntityType.request).__flexible__)


def _skip_tags(frame: bytes, position: int) -> int:
    count, position = _varint(frame, position)
    if count > TAGS_MAX:
        raise ProtocolError(f"the header has {count} tagged fields")
    for _ in range(count):
        _, position = _varint(frame, position)
        size, position = _varint(frame, position)
        position += size
    if position > len(frame):
        raise ProtocolError("the header's tagged fields are longer than the request")
    return position


def _varint(frame: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(frame) and shift <= 28:
        byte = frame[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ProtocolError("the header's tagged fields are cut off")


# -- bodies ------------------------------------------------------------------------------------------------------------


def parse_body(header: Header, frame: bytes) -> Any:
    """The request's body, as kio's dataclass of its version. Raises ProtocolError.

    Bytes behind it are ignored, as Kafka's brokers do: librdkafka 2.16 sends some behind Metadata 12.
    """
    try:
        check_lengths(_schema(header.api_key, header.version, EntityType.request), frame, header.body_start)
        body, _ = _reader(header.api_key, header.version)(frame, header.body_start)
    except (SerialError, ValueError, OverflowError, LookupError) as error:
        raise ProtocolError(
            f"the body of API {header.api_key} version {header.version} cannot be read: {error}"
        ) from None
    return body


def response_header(header: Header) -> bytes:
    """What stands before a response's body. ApiVersions has the old one always: its reader knows no version yet."""
    head = _INT32.pack(header.correlation_id)
    return head + b"\0" if is_flexible(header.api_key, header.version) and header.api_key != API_VERSIONS else head


def response(header: Header, values: Mapping[str, Any]) -> bytes:
    """A whole response, its length included.

    values: fields by kio's names, nested ones as mappings. Those that the version does not have are left out, so that
    one mapping serves all versions; `throttle_time` is always 0.
    """
    body = io.BytesIO()
    schema = _schema(header.api_key, header.version, EntityType.response)
    _writer(header.api_key, header.version)(body, _shaped(schema, values))
    return framed(response_header(header) + body.getvalue())


def request(api_key: int, version: int, correlation_id: int, client_id: str, values: Mapping[str, Any]) -> bytes:
    """A client's request, its length included; `values` as for `response`."""
    schema = _schema(api_key, version, EntityType.request)
    name = client_id.encode()
    head = _HEADER.pack(api_key, version, correlation_id, len(name)) + name
    body = io.BytesIO()
    entity_writer(schema)(body, _shaped(schema, values))
    return framed(head + (b"\0" if is_flexible(api_key, version) else b"") + body.getvalue())


def parse_response(api_key: int, version: int, correlation_id: int, frame: bytes) -> Any:
    """The body of what a broker answered to that request. Raises ProtocolError."""
    if frame[:4] != _INT32.pack(correlation_id):
        raise ProtocolError("the answer belongs to another request")
    start = 4
    if is_flexible(api_key, version) and api_key != API_VERSIONS:
        start = _skip_tags(frame, start)
    schema = _schema(api_key, version, EntityType.response)
    try:
        check_lengths(schema, frame, start, elements_max=RESPONSE_ELEMENTS_MAX)
        body, _ = entity_reader(schema)(frame, start)
    except (SerialError, ValueError, OverflowError, LookupError) as error:
        raise ProtocolError(f"the answer to API {api_key} version {version} cannot be read: {error}") from None
    return body


def framed(payload: bytes) -> bytes:
    """With its length in front."""
    return _INT32.pack(len(payload)) + payload


def unsupported_api_versions(header: Header) -> bytes:
    """The answer to ApiVersions of an unknown version: version 0 with error 35 and what is offered (KIP-511)."""
    old = header._replace(version=0)
    return response(old, {"error_code": ErrorCode.unsupported_version, "api_keys": api_ranges(VERSIONS)})


def api_ranges(offered: Mapping[int, tuple[int, int]]) -> list[dict[str, int]]:
    """What is offered, as ApiVersions says it."""
    return [
        {"api_key": key, "min_version": lowest, "max_version": highest} for key, (lowest, highest) in offered.items()
    ]


@cache
def _schema(api_key: int, version: int, kind: Literal[EntityType.request, EntityType.response]) -> Any:
    module = load_payload_module(api_key, version, kind)
    return next(found for found in vars(module).values() if getattr(found, "__type__", None) is kind)


@cache
def _reader(api_key: int, version: int) -> Callable[[bytes, int], tuple[Any, int]]:
    return entity_reader(_schema(api_key, version, EntityType.request))


@cache
def _writer(api_key: int, version: int) -> Callable[[io.BytesIO, Any], None]:
    return entity_writer(_schema(api_key, version, EntityType.response))


@cache
def _fields(schema: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, schema of the elements if it is an array of structures, and whether it must be given."""
    hints = typing.get_type_hints(schema)
    found = []
    for field in dataclasses.fields(schema):
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found.append((field.name, _element(hints[field.name]), missing))
    return tuple(found)


def _element(hint: Any) -> Any:
    """The structure that an array holds; None for anything else."""
    if is_union(hint):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is not tuple:
        return None
    element = typing.get_args(hint)[0]
    return element if dataclasses.is_dataclass(element) else None


def _shaped(schema: Any, values: Mapping[str, Any]) -> Any:
    given: dict[str, Any] = {}
    for name, element, required in _fields(schema):
        if name in values:
            value = values[name]
            if element is not None and value is not None:
                value = tuple(_shaped(element, one) for one in value)
            given[name] = value
        elif name == "throttle_time":
            given[name] = timedelta(0)
        elif required:
            raise AssertionError(f"{schema.__module__}: {schema.__name__}.{name} is not given")
    return schema(**given)


def milliseconds(duration: timedelta) -> int:
    """kio's durations as Kafka's milliseconds."""
    return duration // timedelta(milliseconds=1)
