"""Records as Python objects: what iterating over a stream yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway_native.batch import Row

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(timestamp_ms: int, zone: tzinfo) -> datetime:
    """Milliseconds since 1970-01-01 UTC as an aware datetime."""
    return (_EPOCH + timedelta(milliseconds=timestamp_ms)).astimezone(zone)


@dataclass(frozen=True, slots=True)
class Record:
    """One event: what was published or filmed, when the gateway received it, and its place in the stream."""

    offset: int
    timestamp_ms: int
    """The gateway's receive time, ms since 1970-01-01 UTC."""
    key: bytes | None
    """The MQTT topic, or the camera's name."""
    value: bytes | None
    """The MQTT payload, or one access unit (Annex B)."""
    headers: tuple[tuple[str, bytes], ...]
    """Names and values in their order; a name may occur more than once."""
    zone: tzinfo = field(default=UTC, repr=False, compare=False)

    @property
    def timestamp(self) -> datetime:
        """The gateway's receive time, in the site's time zone."""
        return moment(self.timestamp_ms, self.zone)

    def header(self, name: str) -> bytes | None:
        """The last header of that name; None if there is none."""
        for found, value in reversed(self.headers):
            if found == name:
                return value
        return None


class Records:
    """A range of a stream: iterate as often as you like, each time from its beginning, in bounded memory."""

    def __init__(self, chunks: Callable[[], Iterator[list[Row]]], zone: tzinfo) -> None:
        self._chunks = chunks
        self._zone = zone

    def __iter__(self) -> Iterator[Record]:
        for rows in self._chunks():
            for row in rows:
                yield make_record(row, self._zone)


def make_record(row: Row, zone: tzinfo) -> Record:
    """A decoded row as a record."""
    offset, timestamp_ms, key, value, headers = row
    return Record(offset, timestamp_ms, key, value, tuple(headers), zone)
