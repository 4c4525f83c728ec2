"""Records as Python objects: what iterating over a stream yields."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

from gateway.log.gap import CLOCK_HEADER, GAP_HEADER, ClockStep, Gap, parse_clock, parse_gap

if TYPE_CHECKING:
    from gateway_native.batch import Row, Selection

    from gateway.log.partition import PartitionReader
    from gateway.log.segment import Damage

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

    @property
    def gap(self) -> Gap | None:
        """What was lost here, if this is not a record of a source but the gateway's own about a loss."""
        value = self._own(GAP_HEADER)
        with contextlib.suppress(ValueError):  # perhaps a newer version's
            return parse_gap(value) if value is not None else None
        return None

    @property
    def clock_step(self) -> ClockStep | None:
        """How the clock stepped here, if this is the gateway's own record about that."""
        value = self._own(CLOCK_HEADER)
        with contextlib.suppress(ValueError):
            return parse_clock(value) if value is not None else None
        return None

    def _own(self, name: str) -> bytes | None:
        """A header of the gateway's own records, which have neither key nor value."""
        return self.header(name) if self.key is None and self.value is None else None


class Records(Iterable[Record]):
    """The records of a range, read while one iterates; each iteration reads anew, up to what is durable by then.

    Memory stays bounded: one piece of the log (512 KiB, or one larger record) is decoded at a time. `damages` lists
    what the last iteration passed over, with ``read(..., damage="skip")``.
    """

    def __init__(self, reader: PartitionReader, selection: Selection, zone: tzinfo, *, skip_damage: bool) -> None:
        self._reader = reader
        self._selection = selection
        self._zone = zone
        self._skip_damage = skip_damage
        self.damages: list[Damage] = []

    def __iter__(self) -> Iterator[Record]:
        return (make_record(row, self._zone) for row in self.rows())

    def rows(self) -> Iterator[Row]:
        """The same as plain tuples (offset, timestamp_ms, key, value, headers): several times as fast."""
        for rows in self.chunks():
            yield from rows

    def chunks(self) -> Iterator[list[Row]]:
        """The same tuples in lists, as they were decoded: at most what 512 KiB of log, or one large batch, hold."""
        self.damages = []
        return self._reader.chunks(self._selection, on_damage=self.damages.append if self._skip_damage else None)


def make_record(row: Row, zone: tzinfo) -> Record:
    """A decoded row as a record."""
    offset, timestamp_ms, key, value, headers = row
    return Record(offset, timestamp_ms, key, value, tuple(headers), zone)
