"""Gateway: sensors (MQTT) and cameras (RTSP) into a durable event log on the local disk, and back.

    import gateway

    log = gateway.open("/var/lib/gateway")
    for record in log["telemetry"].read(start="-10m", keys="plant/+/+/temperature"):
        print(record.timestamp, record.key, record.value)

Reading needs no running gateway and only read permission.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import (
    BadPayloadWarning,
    ConfigError,
    DamageError,
    DamageWarning,
    FormatError,
    GatewayError,
    LockedError,
    NoFrame,
    SourceError,
    StreamNotFound,
    UsageError,
)

if TYPE_CHECKING:
    from gateway.replay.cursor import Cursor
    from gateway.replay.decoding import Frame
    from gateway.replay.export import ExportReport
    from gateway.replay.exports.exporter import RecordsReport
    from gateway.replay.follow import Merged
    from gateway.replay.log import Log, Stream, open  # noqa: A004  # gateway.open(…) reads as it should
    from gateway.replay.moments import Moment
    from gateway.replay.records import Record, Records

__all__ = [
    "BadPayloadWarning",
    "ConfigError",
    "Cursor",
    "DamageError",
    "DamageWarning",
    "ExportReport",
    "FormatError",
    "Frame",
    "GatewayError",
    "LockedError",
    "Log",
    "Merged",
    "Moment",
    "NoFrame",
    "Record",
    "Records",
    "RecordsReport",
    "SourceError",
    "Stream",
    "StreamNotFound",
    "UsageError",
    "open",
]

# Imported when first used: commands and the gateway itself start without what only readers need.
_LATE = {
    "Cursor": "gateway.replay.cursor",
    "ExportReport": "gateway.replay.export",
    "Frame": "gateway.replay.decoding",
    "Log": "gateway.replay.log",
    "Merged": "gateway.replay.follow",
    "Moment": "gateway.replay.moments",
    "Record": "gateway.replay.records",
    "Records": "gateway.replay.records",
    "RecordsReport": "gateway.replay.exports.exporter",
    "Stream": "gateway.replay.log",
    "open": "gateway.replay.log",
}


def __getattr__(name: str) -> Any:
    module = _LATE.get(name)
    if module is None:
        raise AttributeError(f"module 'gateway' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(module), name)
