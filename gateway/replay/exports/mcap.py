"""MCAP, which Foxglove opens: sensors and video of several streams in one file, in time order.

Source: mcap.dev/spec. What is in it:

* A sensor's key is a topic. A payload that is a JSON object is the message as it is; another JSON value is the message
  ``{"value": …}`` around the payload's own bytes; everything else is on a channel of its own of the same topic, without
  an encoding, byte for byte.
* A camera is the topic ``/<camera>`` with `foxglove.CompressedVideo` (Annex B, as recorded) or `CompressedImage`.
* `log_time` is the gateway's receive time, `publish_time` the source's own where it is known, `sequence` the offset.
* Gap records are on the topic ``/gateway/gaps/<stream>``, as JSON. Other headers are left out.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcap.writer import Writer as McapWriter

from gateway.clock import NS_PER_MS
from gateway.errors import GatewayError
from gateway.replay.exports import foxglove
from gateway.replay.records import make_record

if TYPE_CHECKING:
    from gateway_native.batch import Row

    from gateway.replay.records import Record

# Channels have 16-bit numbers, from 1 on.
CHANNELS_MAX = 65_535

_VIDEO = ("h264", "h265")
_IMAGE = "jpeg"
VALUE_PREFIX, VALUE_SUFFIX = b'{"value":', b"}"

_ANY_OBJECT = json.dumps({"type": "object"}).encode()
_VALUE = json.dumps({"type": "object", "properties": {"value": {}}, "required": ["value"]}).encode()


class McapFile:
    """One file, compressed by zstd in chunks of 4 MiB."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._writer = McapWriter(self._file, chunk_size=4 << 20)
        self._writer.start(library="gateway")
        self._schemas: dict[str, int] = {}
        self._channels: dict[tuple[str, str, str], int] = {}

    def write(self, stream: str, rows: list[Row]) -> None:
        for row in rows:
            self._write_record(stream, make_record(row, UTC))

    def close(self) -> None:
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._file.close()

    def abandon(self) -> None:
        self._file.close()

    def _write_record(self, stream: str, record: Record) -> None:
        log_time = record.timestamp_ms * NS_PER_MS
        codec = record.header("codec")
        if record.key is None and record.value is None:
            channel, data = self._own(stream, record)
        elif codec is not None and record.key is not None and record.value is not None:
            channel, data = self._picture(stream, record, codec.decode("ascii", "replace"), log_time)
        else:
            channel, data = self._reading(stream, record.key or f"/{stream}".encode(), record.value or b"")
        source_time = _number(record.header("source_time"))
        self._writer.add_message(
            channel, log_time, data, log_time if source_time is None else source_time, record.offset & 0xFFFFFFFF
        )

    def _reading(self, stream: str, key: bytes, payload: bytes) -> tuple[int, bytes]:
        topic = key.decode("utf-8", "backslashreplace")
        kind = _json_kind(payload)
        if kind == "object":
            return self._channel(stream, topic, "json", "gateway.Object", "jsonschema", _ANY_OBJECT), payload
        if kind == "value":
            channel = self._channel(stream, topic, "json", "gateway.Value", "jsonschema", _VALUE)
            return channel, VALUE_PREFIX + payload + VALUE_SUFFIX
        return self._channel(stream, topic, "", "", "", b""), payload

    def _picture(self, stream: str, record: Record, codec: str, log_time: int) -> tuple[int, bytes]:
        assert record.key is not None
        camera = record.key.decode("utf-8", "backslashreplace")
        name, fields = (
            ("CompressedImage", foxglove.IMAGE_FIELDS)
            if codec == _IMAGE
            else (
                "CompressedVideo",
                foxglove.VIDEO_FIELDS,
            )
        )
        descriptor = foxglove.descriptor(name, fields)
        channel = self._channel(stream, f"/{camera}", "protobuf", f"foxglove.{name}", "protobuf", descriptor)
        return channel, foxglove.picture(fields, log_time, camera, record.value or b"", codec)

    def _own(self, stream: str, record: Record) -> tuple[int, bytes]:
        gap, step = record.gap, record.clock_step
        content: dict[str, Any] = {"kind": "unknown"}
        if gap is not None:
            content = {"kind": "gap", **dataclasses.asdict(gap)}
        elif step is not None:
            content = {"kind": "clock", **step._asdict()}
        channel = self._channel(stream, f"/gateway/gaps/{stream}", "json", "gateway.Object", "jsonschema", _ANY_OBJECT)
        return channel, json.dumps(content).encode()

    def _channel(self, stream: str, topic: str, encoding: str, name: str, schema_encoding: str, schema: bytes) -> int:
        """The channel of that topic and kind, made when it is first needed."""
        known = self._channels.get((stream, topic, name))
        if known is not None:
            return known
        if len(self._channels) >= CHANNELS_MAX:
            raise GatewayError(
                f"An MCAP file has at most {CHANNELS_MAX:,} channels, and there are more keys; choose some (--key)."
            )
        if name and name not in self._schemas:
            self._schemas[name] = self._writer.register_schema(name, schema_encoding, schema)
        made = self._writer.register_channel(topic, encoding, self._schemas.get(name, 0), {"stream": stream})
        self._channels[stream, topic, name] = made
        return made


def _json_kind(payload: bytes) -> str:
    """ "object", "value" (any other JSON) or "" (no JSON)."""
    try:
        found = json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError):  # UnicodeDecodeError is one
        return ""
    return "object" if isinstance(found, dict) else "value"


def _refuse(constant: str) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(f"{constant} is not JSON")


def _number(header: bytes | None) -> int | None:
    return int(header) if header is not None and header.isdigit() and len(header) <= 19 else None
