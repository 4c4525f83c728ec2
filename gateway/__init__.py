"""Gateway: sensors (MQTT) and cameras (RTSP) as durable, replayable event streams.

import gateway

log = gateway.open("/var/lib/gateway")
for record in log["telemetry"].read(start="-10m", keys=["plant/+/temperature"]):
    print(record.timestamp, record.key, record.value)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import (
    ConfigError,
    DamageError,
    FormatError,
    GatewayError,
    LockedError,
    NoFrame,
    SourceError,
    StreamNotFound,
    UsageError,
)
from gateway.replay.log import Log, Stream
from gateway.replay.records import Record, Records

if TYPE_CHECKING:
    from gateway.replay.frames import Frame

__all__ = [
    "ConfigError",
    "DamageError",
    "FormatError",
    "Frame",
    "GatewayError",
    "LockedError",
    "Log",
    "NoFrame",
    "Record",
    "Records",
    "SourceError",
    "Stream",
    "StreamNotFound",
    "UsageError",
    "open",
]

__version__ = "0.1.0"


def open(data: str | Path) -> Log:  # noqa: A001  # gateway.open(…) reads as it should
    """Open a data directory for reading: a running gateway's, a killed one's, or a copy.

    Raises FormatError if it is none, or if a newer Gateway wrote it.
    """
    return Log(data)


def __getattr__(name: str) -> object:
    """`Frame` needs libraries that only reading pictures needs, so it is imported when it is asked for."""
    if name == "Frame":
        from gateway.replay.frames import Frame

        return Frame
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
