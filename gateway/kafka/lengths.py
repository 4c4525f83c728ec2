"""Are the lengths in a message possible? Looked at before kio reads it, which believes them.

kio makes room for as many elements as an array claims to have: a few bytes would end the process. It also reads null
where the schema allows none. Source: Apache Kafka, https://kafka.apache.org/protocol, "Protocol Primitive Types", and
KIP-482 for compact lengths and tagged fields.
"""

from __future__ import annotations

import dataclasses
import struct
import types
import typing
from collections.abc import Mapping
from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple

# Each becomes Python objects, of hundreds of bytes. A request of 100,000 partitions is answered; see `serve.kafka`.
ELEMENTS_MAX = 250_000

_INT16, _INT32 = struct.Struct(">h"), struct.Struct(">i")
_VARINT_BYTES_MAX = 5
_SIZES: Mapping[str, int] = {
    "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uuid": 16, "error_code": 2,
    "timedelta_i32": 4, "timedelta_i64": 8, "datetime_i64": 8,
}  # fmt: skip


class ImpossibleLength(ValueError):
    """The text says which field, as the middle of a sentence."""


class _Kind(IntEnum):
    FIXED = 0
    TEXT = 1
    BYTES = 2
    ENTITY = 3
    FIXED_ARRAY = 4
    TEXT_ARRAY = 5
    ENTITY_ARRAY = 6
    TAGS = 7


class _Step(NamedTuple):
    """One field, or several of fixed size."""

    kind: _Kind
    name: str = ""
    may_be_null: bool = False
    bytes: int = 0
    """Of it, or of each element."""
    entity: Any = None
    """The schema of it, or of each element."""
    tagged: Mapping[int, _Step] = types.MappingProxyType({})


def check_lengths(schema: Any, data: bytes, position: int, *, elements_max: int = ELEMENTS_MAX) -> None:
    """A message's body, which begins at `position`, by kio's dataclass. Raises ImpossibleLength."""
    walk = _Walk(data, position, elements_max, compact=schema.__flexible__)
    walk.entity(schema)
    if walk.at > len(data):
        raise ImpossibleLength("it is cut off")


class _Walk:
    """Where it is in a message."""

    def __init__(self, data: bytes, at: int, elements_max: int, *, compact: bool) -> None:
        self.at = at
        self._data = data
        self._elements = elements_max
        self._compact = compact

    def entity(self, schema: Any) -> None:
        for step in _plan(schema):
            self._step(step)

    def _step(self, step: _Step) -> None:
        kind = step.kind
        if kind == _Kind.FIXED:
            self.at += step.bytes
        elif kind in (_Kind.TEXT, _Kind.BYTES):
            length = self._length(step, is_text=kind == _Kind.TEXT)
            self.at += length
        elif kind == _Kind.ENTITY:
            self.entity(step.entity)
        elif kind == _Kind.TAGS:
            self._tags(step)
        else:
            self._array(step)

    def _array(self, step: _Step) -> None:
        count = self._length(step, is_text=False)
        if step.kind == _Kind.FIXED_ARRAY:
            self.at += self._within(count * step.bytes, step.name)
            return
        self._elements -= count
        if self._elements < 0:
            raise ImpossibleLength(f"with {step.name} it has more elements than are read at once")
        element = _Step(_Kind.TEXT, step.name)
        for _ in range(count):
            if step.kind == _Kind.ENTITY_ARRAY:
                self.entity(step.entity)
            else:
                self._step(element)

    def _tags(self, step: _Step) -> None:
        """What is not known is skipped."""
        for _ in range(self._within(self._varint("tags"), "tags")):
            number, size = self._varint("tags"), self._varint("tags")
            end = self.at + self._within(size, "tags")
            if number in step.tagged:
                self._step(step.tagged[number])
                if self.at != end:
                    raise ImpossibleLength(f"{step.tagged[number].name} is not as long as it says")
            self.at = end

    def _length(self, step: _Step, *, is_text: bool) -> int:
        """Of text and bytes in bytes, of an array in elements, which have a byte each at least. 0 for null."""
        if self._compact:
            length = self._varint(step.name) - 1
        else:
            form = _INT16 if is_text else _INT32
            self._within(form.size, step.name)
            (length,) = form.unpack_from(self._data, self.at)
            self.at += form.size
        if length == -1 and step.may_be_null:
            return 0
        if length < 0:
            raise ImpossibleLength(f"{step.name} is null or has a length below zero")
        return self._within(length, step.name)

    def _varint(self, name: str) -> int:
        value = 0
        for number, byte in enumerate(self._data[self.at : self.at + _VARINT_BYTES_MAX]):
            value |= (byte & 0x7F) << 7 * number
            if byte < 0x80:
                self.at += number + 1
                return value
        raise ImpossibleLength(f"the length of {name} is cut off")

    def _within(self, length: int, name: str) -> int:
        if length > len(self._data) - self.at:
            raise ImpossibleLength(f"{name} is longer than what there is")
        return length


@cache
def _plan(schema: Any) -> tuple[_Step, ...]:
    """How to walk over one structure; fields of fixed size that follow each other are one step."""
    hints = typing.get_type_hints(schema)
    steps: list[_Step] = []
    tagged: dict[int, _Step] = {}
    for field in dataclasses.fields(schema):
        step = _step_of(field, hints[field.name])
        if (tag := field.metadata.get("tag")) is not None:
            tagged[tag] = step
        elif step.kind == _Kind.FIXED and steps and steps[-1].kind == _Kind.FIXED:
            steps[-1] = steps[-1]._replace(bytes=steps[-1].bytes + step.bytes)
        else:
            steps.append(step)
    if schema.__flexible__:
        steps.append(_Step(_Kind.TAGS, tagged=tagged))
    return tuple(steps)


def _step_of(field: dataclasses.Field[Any], hint: Any) -> _Step:
    kind = field.metadata.get("kafka_type")
    may_be_null = is_union(hint)
    inner = next(part for part in typing.get_args(hint) if part is not type(None)) if may_be_null else hint
    if typing.get_origin(inner) is tuple:
        if kind is None:
            return _Step(_Kind.ENTITY_ARRAY, field.name, may_be_null, entity=typing.get_args(inner)[0])
        if kind in _SIZES:
            return _Step(_Kind.FIXED_ARRAY, field.name, may_be_null, bytes=_SIZES[kind])
        return _Step(_Kind.TEXT_ARRAY, field.name, may_be_null)
    if kind is None:
        return _Step(_Kind.ENTITY, field.name, entity=inner)
    if kind in _SIZES:
        return _Step(_Kind.FIXED, field.name, bytes=_SIZES[kind])
    return _Step(_Kind.TEXT if kind == "string" else _Kind.BYTES, field.name, may_be_null)


def is_union(hint: Any) -> bool:
    """Of several types: in kio's schemas of one and None."""
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
