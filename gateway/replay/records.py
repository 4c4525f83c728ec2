"""The log as analysts see it: streams, and their records by offset, time and key.

Everything here reads only, works in any process while a gateway writes, and shows nothing that is not durable.
"""

from __future__ import annotations

import os
import threading
import time as clock
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from gateway_native import batch

from gateway.clock import NS_PER_MS, parse_time
from gateway.errors import StreamNotFound
from gateway.log.layout import list_partitions, read_meta
from gateway.log.partition import OnDamage, PartitionReader
from gateway.log.segment import Damage

if TYPE_CHECKING:
    from gateway.replay.frames import ExportReport, Frame

# An MQTT topic filter (text), an exact key (bytes), or several of them.
Keys = str | bytes | Iterable[str | bytes]

FOLLOW_POLL_SECONDS = 0.05

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was stored."""

    offset: int
    timestamp_ms: int
    """When the gateway received it, in ms since 1970-01-01 UTC."""
    key: bytes | None
    """The MQTT topic, or the camera's name."""
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    zone: tzinfo = field(default=UTC, repr=False, compare=False)
    """The site's zone, in which `timestamp` is given."""

    @property
    def timestamp(self) -> datetime:
        """When the gateway received it, in the site's time zone."""
        return _moment(self.timestamp_ms, self.zone)

    def header(self, name: str) -> bytes | None:
        """The first header of that name; None if there is none."""
        return next((value for key, value in self.headers if key == name), None)


class Records(Iterable[Record]):
    """The records of a range, read while one iterates; each iteration reads anew, up to what is durable by then.

    Memory stays bounded: one piece of the log (512 KiB, or one larger record) is decoded at a time. `damages` lists
    what was passed over, in the last iteration, by ``read(..., damage="skip")``.
    """

    def __init__(self, reader: PartitionReader, selection: batch.Selection, zone: tzinfo, *, skip_damage: bool) -> None:
        self._reader = reader
        self._selection = selection
        self._zone = zone
        self._skip_damage = skip_damage
        self.damages: list[Damage] = []

    def __iter__(self) -> Iterator[Record]:
        zone = self._zone
        for rows in self.chunks():
            for offset, timestamp, key, value, headers in rows:
                yield Record(offset, timestamp, key, value, headers, zone)

    def rows(self) -> Iterator[batch.Row]:
        """The same as plain tuples (offset, timestamp_ms, key, value, headers): several times as fast."""
        for rows in self.chunks():
            yield from rows

    def chunks(self) -> Iterator[list[batch.Row]]:
        """The same tuples in lists, as they were decoded: at most what 512 KiB of log, or one large batch, hold."""
        self.damages = []
        on_damage: OnDamage | None = self.damages.append if self._skip_damage else None
        return self._reader.chunks(self._selection, on_damage=on_damage)


class Stream:
    """One stream of a data directory."""

    def __init__(self, name: str, directory: Path, zone: ZoneInfo) -> None:
        self.name = name
        self.timezone = zone
        self._reader = PartitionReader(directory)

    def __repr__(self) -> str:
        return f"<Stream {self.name!r} in {self._reader.directory}>"

    @property
    def log_start_offset(self) -> int:
        """The first offset that is still there."""
        return self._reader.log_start_offset

    @property
    def durable_offset(self) -> int:
        """The offset after the last record that is on the disk. Nothing at or above it can be read yet."""
        return self._reader.limit().offset

    def describe(self) -> dict[str, Any]:
        """records, log_start_offset, durable_offset, bytes (of log), segments, oldest and newest (datetime or None)."""
        limit = self._reader.limit()
        start = min(self._reader.log_start_offset, limit.offset)
        times = self._reader.time_range()
        return {
            "records": limit.offset - start,
            "log_start_offset": start,
            "durable_offset": limit.offset,
            "bytes": self._reader.size_bytes(),
            "segments": len(self._reader.segments()),
            "oldest": _moment(times.oldest, self.timezone) if times else None,
            "newest": _moment(times.newest, self.timezone) if times else None,
        }

    def instant_ms(self, value: Any) -> int:
        """A time as everywhere in the API (see `read`) as ms since the epoch, rounded up.

        Rounded up, because a record received within a millisecond carries its beginning: so half-open ranges fit.
        """
        return -(-parse_time(value, self.timezone) // NS_PER_MS)

    def offset_at(self, time: Any) -> int:
        """The first offset whose record is not earlier than `time`; the durable offset if there is none yet."""
        return self._reader.offset_of_time(self.instant_ms(time))

    def read(
        self,
        start: Any = None,
        end: Any = None,
        *,
        keys: Keys | None = None,
        offsets: tuple[int | None, int | None] | None = None,
        damage: Literal["raise", "skip"] = "raise",
    ) -> Records:
        """The records with `start` <= timestamp < `end`, with first <= offset < last of `offsets`, and with such keys.

        A time is ISO 8601 text, a datetime, a NumPy or pandas stamp, "now", or relative ("-10m"); without a zone it is
        in the site's. Keys: text is an MQTT topic filter ('+', '#'), bytes are an exact key. At damage, iterating
        raises DamageError; `damage="skip"` passes over it, and `Records.damages` says what was passed over.

        Raises ValueError or TypeError for a time or filter that means nothing.
        """
        if damage not in {"raise", "skip"}:
            raise ValueError(f'damage is "raise" or "skip", not {damage!r}.')
        first, last = offsets or (None, None)
        selection = batch.Selection(
            offset_from=first,
            offset_to=last,
            time_from=None if start is None else self.instant_ms(start),
            time_to=None if end is None else self.instant_ms(end),
            keys=None if keys is None else batch.KeyFilter(keys),
        )
        return Records(self._reader, selection, self.timezone, skip_damage=damage == "skip")

    def follow(
        self,
        offset: int | Literal["end"] | None = None,
        *,
        keys: Keys | None = None,
        poll: float = FOLLOW_POLL_SECONDS,
        stop: threading.Event | None = None,
    ) -> Iterator[Record]:
        """Records from `offset` on, without end: blocks until the next one is durable.

        None begins with the oldest record, "end" with the next new one. The watermark is looked at every `poll`
        seconds; Ctrl-C interrupts the wait, and so does `stop` once it is set, which ends the iteration.
        """
        filters = None if keys is None else batch.KeyFilter(keys)
        start = self.durable_offset if offset == "end" else offset or 0
        return self._follow(start, filters, poll, stop)

    def _follow(
        self, position: int, keys: batch.KeyFilter | None, poll: float, stop: threading.Event | None
    ) -> Iterator[Record]:
        while stop is None or not stop.is_set():
            limit = self._reader.limit()
            if limit.offset > position:
                selection = batch.Selection(offset_from=position, offset_to=limit.offset, keys=keys)
                for rows in self._reader.chunks(selection, limit):
                    for row in rows:
                        yield Record(*row, self.timezone)
                position = limit.offset
            elif stop is None:
                clock.sleep(poll)
            else:
                stop.wait(poll)

    # -- pictures; needs the extra gateway[replay] ---------------------------------------------------------------------

    def at(self, time: Any, *, max_age: str = "2s") -> Frame:
        """The picture on screen at `time`, at most `max_age` old. NoFrame, naming its neighbours, if there was none."""
        from gateway.replay import frames

        return frames.at(self, time, max_age=max_age)

    def frames(
        self, start: Any = None, end: Any = None, *, every: str | None = None, keys_only: bool = False
    ) -> Iterator[Frame]:
        """Decoded pictures with `start` <= timestamp < `end`; one per `every` ("1s"), or key frames only."""
        from gateway.replay import frames

        return frames.frames(self, start, end, every=every, keys_only=keys_only)

    def export(self, path: str | os.PathLike[str], start: Any = None, end: Any = None) -> ExportReport:
        """Write the pictures of a range to an MP4 file, as they were coded: nothing is decoded or transcoded."""
        from gateway.replay import frames

        return frames.export(self, path, start, end)


class Log:
    """A data directory, for reading."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """FormatError if it is not a data directory of Gateway, or one of a newer format."""
        self.path = Path(path)
        meta = read_meta(self.path)
        self.site = meta.site
        self.timezone: ZoneInfo = meta.zone
        self._streams: dict[str, Stream] = {}

    def __repr__(self) -> str:
        return f"<Log {self.path} of {self.site!r}>"

    def streams(self) -> list[str]:
        """Names of the streams that are there now, sorted."""
        return sorted({found.stream for found in list_partitions(self.path)})

    def __getitem__(self, name: str) -> Stream:
        """A stream by name; StreamNotFound, a KeyError, names those that exist."""
        if name not in self._streams:
            for found in list_partitions(self.path):
                if found.stream == name and found.partition == 0:
                    self._streams[name] = Stream(name, found.path, self.timezone)
                    break
            else:
                raise StreamNotFound(name, self.streams())
        return self._streams[name]

    def __contains__(self, name: object) -> bool:
        return name in self.streams()

    def __iter__(self) -> Iterator[str]:
        return iter(self.streams())

    def __len__(self) -> int:
        return len(self.streams())


def open(path: str | os.PathLike[str]) -> Log:  # noqa: A001 - read as gateway.open
    """Open a data directory for reading: also while a gateway writes it, also a copy, also without write permission."""
    return Log(path)


def _moment(timestamp_ms: int, zone: tzinfo) -> datetime:
    return (_EPOCH + timedelta(milliseconds=timestamp_ms)).astimezone(zone)
