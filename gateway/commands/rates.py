"""How fast streams grow and when that fills the disk, from what they hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from gateway.clock import format_size
from gateway.config.model import Retention

DAY = timedelta(days=1)
# Over less than this a rate says nothing.
SPAN_MIN = timedelta(minutes=1)

_DAY_NS = DAY // timedelta(microseconds=1) * 1000


class Growth(NamedTuple):
    """One stream: bytes now, bytes a day (None: it holds too little to tell), bytes at most by its own retention."""

    bytes: int
    bytes_per_day: float | None
    bytes_max: float | None


def bytes_per_day(described: Mapping[str, Any]) -> float | None:
    """The average over what the stream holds, from `Stream.describe`."""
    oldest, newest = described["oldest"], described["newest"]
    if oldest is None or newest - oldest < SPAN_MIN:
        return None
    return float(described["bytes"] / ((newest - oldest) / DAY))


def rate(per_day: float | None) -> str:
    """For a table."""
    return "-" if per_day is None else format_size(per_day)


def growth(described: Mapping[str, Any], retention: Retention) -> Growth:
    """The same with what the stream's own limits allow it."""
    per_day = bytes_per_day(described)
    limits = [float(retention.size_bytes)] if retention.size_bytes is not None else []
    if retention.age_ns is not None and per_day is not None:
        limits.append(per_day * retention.age_ns / _DAY_NS)
    return Growth(described["bytes"], per_day, min(limits, default=None))


def days_until_full(streams: Iterable[Growth], room_bytes: float) -> float | None:
    """After how many days so much room is used up at these rates; None: never, or not to be told.

    Streams stop growing one after the other, where their own limits are.
    """
    growing = sorted((_stops(one), one.bytes_per_day) for one in streams if one.bytes_per_day)
    together, day = sum(per_day for _, per_day in growing), 0.0
    for stop, per_day in growing:
        days = max(stop - day, 0.0)
        if room_bytes <= together * days:
            return day + max(room_bytes, 0.0) / together
        room_bytes -= together * days
        together, day = together - per_day, day + days
    return None


def _stops(one: Growth) -> float:
    """After how many days its own limits keep it from growing."""
    if one.bytes_max is None or not one.bytes_per_day:
        return math.inf
    return (one.bytes_max - one.bytes) / one.bytes_per_day
