"""The two messages of Foxglove that carry pictures, in protobuf, without a protobuf library.

Source: github.com/foxglove/foxglove-sdk, schemas/proto/foxglove/CompressedVideo.proto and CompressedImage.proto; the
wire format: protobuf.dev/programming-guides/encoding; the descriptors: google/protobuf/descriptor.proto. A reader
decodes by the descriptor that the file carries.
"""

from __future__ import annotations

from gateway.clock import NS_PER_S

_VARINT, _BYTES = 0, 2
# FieldDescriptorProto.Type and .Label
_TYPE_INT64, _TYPE_INT32, _TYPE_STRING, _TYPE_MESSAGE, _TYPE_BYTES = 3, 5, 9, 11, 12
_LABEL_OPTIONAL = 1
_TIMESTAMP = ".google.protobuf.Timestamp"

# Name, number, type.
_Fields = tuple[tuple[str, int, int], ...]
VIDEO_FIELDS: _Fields = (
    ("timestamp", 1, _TYPE_MESSAGE),
    ("frame_id", 2, _TYPE_STRING),
    ("data", 3, _TYPE_BYTES),
    ("format", 4, _TYPE_STRING),
)
IMAGE_FIELDS: _Fields = (
    ("timestamp", 1, _TYPE_MESSAGE),
    ("frame_id", 4, _TYPE_STRING),
    ("data", 2, _TYPE_BYTES),
    ("format", 3, _TYPE_STRING),
)


def varint(number: int) -> bytes:
    """Base 128, least significant group first; not negative."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return varint(field << 3 | _VARINT) + varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return varint(field << 3 | _BYTES) + varint(len(value)) + value


def picture(fields: _Fields, instant_ns: int, frame_id: str, data: bytes, picture_format: str) -> bytes:
    """A message of one of the two kinds. instant_ns: since 1970-01-01 UTC."""
    seconds, nanos = divmod(instant_ns, NS_PER_S)
    values = {
        "timestamp": _number(1, seconds) + _number(2, nanos),
        "frame_id": frame_id.encode(),
        "data": data,
        "format": picture_format.encode(),
    }
    return b"".join(_bytes(number, values[name]) for name, number, _ in sorted(fields, key=lambda field: field[1]))


def descriptor(name: str, fields: _Fields) -> bytes:
    """A FileDescriptorSet with google.protobuf.Timestamp and the message `foxglove.<name>`."""
    timestamp = _file(
        "google/protobuf/timestamp.proto",
        "google.protobuf",
        _message("Timestamp", (("seconds", 1, _TYPE_INT64), ("nanos", 2, _TYPE_INT32))),
    )
    message = _file(
        f"foxglove/{name}.proto", "foxglove", _message(name, fields), dependency="google/protobuf/timestamp.proto"
    )
    return _bytes(1, timestamp) + _bytes(1, message)


def _file(path: str, package: str, message: bytes, dependency: str | None = None) -> bytes:
    """A FileDescriptorProto of one message."""
    needed = _bytes(3, dependency.encode()) if dependency else b""
    return _bytes(1, path.encode()) + _bytes(2, package.encode()) + needed + _bytes(4, message) + _bytes(12, b"proto3")


def _message(name: str, fields: _Fields) -> bytes:
    """A DescriptorProto."""
    return _bytes(1, name.encode()) + b"".join(_bytes(2, _field(*field)) for field in fields)


def _field(name: str, number: int, kind: int) -> bytes:
    """A FieldDescriptorProto."""
    content = _bytes(1, name.encode()) + _number(3, number) + _number(4, _LABEL_OPTIONAL) + _number(5, kind)
    return content + (_bytes(6, _TIMESTAMP.encode()) if kind == _TYPE_MESSAGE else b"")
