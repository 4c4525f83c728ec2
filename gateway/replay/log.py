"""A data directory as analysts see it: streams, ranges of records, pictures. Nothing here writes.

It works beside a running gateway, after one was killed, on a copied directory, and with read permission only. Only what
is durable is seen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from gateway_native import batch

from gateway import clock
from gateway.errors import GatewayError, StreamNotFound
from gateway.log.layout import list_partitions, read_meta
from gateway.log.partition import PartitionReader
from gateway.replay.records import GapReport, OnGap, Record, Records, make_record, moment, without_retained

if TYPE_CHECKING:
    from gateway.log.segment import Damage
    from gateway.replay.export import ExportReport
    from gateway.replay.frames import Frame
    from gateway.replay.remote import RemoteReader

# How often `follow` looks whether more has become durable.
POLL_S = 0.05

Keys = str | bytes | Iterable[str | bytes] | None


class Log:
    """A data directory, open for reading. `gateway.open` makes one."""

    def __init__(self, data: str | Path) -> None:
        """FormatError if it is no data directory, or one of a newer format."""
        self.path = Path(data)
        self.meta = read_meta(self.path)

    def __repr__(self) -> str:
        return f"<gateway.Log {str(self.path)!r}, {len(self.streams())} streams>"

    @property
    def timezone(self) -> ZoneInfo:
        """The site's zone: times given without one are meant in it, and times shown are in it."""
        return self.meta.zone

    @property
    def site(self) -> str:
        """The site's name."""
        return self.meta.site

    def streams(self) -> list[str]:
        """Names of the streams that are there now, sorted."""
        try:
            return sorted({found.stream for found in list_partitions(self.path)})
        except OSError as error:
            raise GatewayError(f"{self.path} cannot be read: {error.strerror or error}.") from error

    def __iter__(self) -> Iterator[Stream]:
        return (self[name] for name in self.streams())

    def __contains__(self, name: object) -> bool:
        return name in self.streams()

    def __getitem__(self, name: str) -> Stream:
        """The stream of that name. StreamNotFound, which names those there are."""
        found = [part for part in list_partitions(self.path) if part.stream == name]
        if not found:
            raise StreamNotFound(name, self.streams())
        return Stream(name, found[0].path, self.timezone)


class Stream:
    """One stream, open for reading. It may be kept and asked again: it sees what becomes durable."""

    def __init__(self, name: str, directory: Path, zone: ZoneInfo, *, reader: RemoteReader | None = None) -> None:
        self.name = name
        self.zone = zone
        self.reader: PartitionReader | RemoteReader = reader or PartitionReader(directory)
        self._warned: set[tuple[Path, int]] = set()

    def __repr__(self) -> str:
        return f"<gateway.Stream {self.name!r}, offsets {self.log_start_offset} to {self.durable_offset}>"

    @property
    def log_start_offset(self) -> int:
        """The first offset that is there."""
        return self.reader.log_start_offset

    @property
    def durable_offset(self) -> int:
        """Everything below it is on disk and can be read."""
        return self.reader.limit().offset

    def __len__(self) -> int:
        """Records that can be read now."""
        return max(0, self.durable_offset - self.log_start_offset)

    def offset_at(self, when: Any) -> int:
        """The first offset whose record is not earlier than that; the durable offset if there is none yet."""
        return self.reader.offset_of_time(-(-self.instant_ns(when) // clock.NS_PER_MS))

    def describe(self) -> dict[str, Any]:
        """Offsets, number of records, bytes, segments, and the times of the oldest and the newest record."""
        limit = self.reader.limit()
        start = self.log_start_offset
        times = self.reader.time_range()
        return {
            "log_start_offset": start,
            "durable_offset": limit.offset,
            "records": max(0, limit.offset - start),
            "bytes": self.reader.size_bytes(),
            "segments": self.reader.segment_count(),
            "oldest": moment(times.oldest, self.zone) if times else None,
            "newest": moment(times.newest, self.zone) if times else None,
        }

    def read(
        self,
        start: Any = None,
        end: Any = None,
        *,
        keys: Keys = None,
        offsets: tuple[int | None, int | None] | range | None = None,
        retained: bool = True,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> Records:
        """The records of a half-open range that are durable when iteration begins, lazily and in bounded memory.

        start, end: times (ISO 8601 text, datetime, pandas or NumPy stamps, "-10m", "now"); without a zone the site's
        is meant. offsets: ``(first, end)``, either may be None. keys: text is an MQTT topic filter, bytes are an exact
        key; one of several must match. retained=False leaves out MQTT messages whose retain flag was set: those that a
        broker had kept from before the subscription, and those that a device asked a listener to retain.

        damage: "gap" goes on behind a damaged place, which is listed in `Records.gaps` with a DamageWarning, the first
        time, or a call of `on_gap` before the record that follows; "skip" lists it without a warning; "raise" raises
        DamageError there. Raises ValueError or TypeError for a time or filter that means nothing.
        """
        first, stop = _span(offsets)
        selection = batch.Selection(
            offset_from=first,
            offset_to=stop,
            time_from=self._milliseconds(start),
            time_to=self._milliseconds(end),
            keys=keys,
        )
        report = GapReport(damage, self._warned, on_gap)
        return Records(self.reader, selection, self.zone, report, retained=retained)

    def follow(
        self,
        offset: int | Literal["start", "end"] = "end",
        *,
        keys: Keys = None,
        retained: bool = True,
        poll_s: float = POLL_S,
        stop: threading.Event | None = None,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> Iterator[Record]:
        """Records from `offset` on as they become durable: "end" begins with the next one, "start" with the oldest.

        It blocks until more is durable, looking every `poll_s` seconds, and works beside the gateway that writes, in
        any process. Ctrl-C interrupts it; `stop`, once set, ends the iteration. retained, damage, on_gap: as for
        `read`.
        """
        bounds = {"start": self.log_start_offset, "end": self.durable_offset}
        position = bounds[offset] if isinstance(offset, str) else offset
        key_filter = batch.KeyFilter(keys) if keys is not None else None
        report = GapReport(damage, self._warned, on_gap)
        return self._follow(position, key_filter, poll_s, stop or threading.Event(), report, retained)

    def _follow(
        self,
        position: int,
        keys: batch.KeyFilter | None,
        poll_s: float,
        stop: threading.Event,
        report: GapReport,
        retained: bool,
    ) -> Iterator[Record]:
        while not stop.is_set():
            limit = self.reader.limit()
            if limit.offset > position:
                selection = batch.Selection(offset_from=position, offset_to=limit.offset, keys=keys)
                for rows in self.reader.chunks(selection, limit, on_damage=report.passes_over):
                    for row in rows if retained else without_retained(rows):
                        yield make_record(row, self.zone)
                position = limit.offset
            else:
                stop.wait(poll_s)

    def at(self, when: Any, *, max_age: str = "2s", nearest_key: bool = False, camera: str | None = None) -> Frame:
        """The picture on screen at that instant: the newest one received at or before it.

        NoFrame, which names its neighbours, if none is at most `max_age` old. nearest_key: the key frame before will
        do, which saves decoding. camera: which, in a stream of several.
        """
        from gateway.replay import frames

        max_age_ns = clock.parse_duration(max_age)
        return frames.at(self, self.instant_ns(when), max_age_ns, nearest_key=nearest_key, camera=camera)

    def frames(
        self,
        start: Any = None,
        end: Any = None,
        *,
        every: str | None = None,
        keys_only: bool = False,
        camera: str | None = None,
    ) -> Iterator[Frame]:
        """Decoded pictures of a half-open range; `every` thins them out, `keys_only` decodes key frames alone."""
        from gateway.replay import frames

        every_ns = clock.parse_duration(every) if every is not None else None
        return frames.iterate(self, self._ns(start), self._ns(end), every_ns, keys_only, camera=camera)

    def export(
        self,
        path: str | Path,
        start: Any = None,
        end: Any = None,
        *,
        overwrite: bool = False,
        progress: Callable[[float], None] | None = None,
        camera: str | None = None,
    ) -> ExportReport:
        """Write the pictures of a half-open range to an MP4 file, without transcoding; `progress` gets 0.0 to 1.0."""
        from gateway.replay import export

        return export.mp4(self, path, self._ns(start), self._ns(end), progress, camera=camera, overwrite=overwrite)

    def instant_ns(self, when: Any) -> int:
        """A time as ns since 1970-01-01 UTC; see `read` for what may be given."""
        return clock.parse_time(when, self.zone)

    def _ns(self, when: Any) -> int | None:
        return None if when is None else self.instant_ns(when)

    def _milliseconds(self, when: Any) -> int | None:
        """Timestamps are whole milliseconds: a range from 0.5 ms on begins with the record of 1 ms."""
        return None if when is None else -(-self.instant_ns(when) // clock.NS_PER_MS)


def _span(offsets: tuple[int | None, int | None] | range | None) -> tuple[int | None, int | None]:
    if isinstance(offsets, range):
        if offsets.step != 1:
            raise ValueError("a range of offsets has the step 1")
        return offsets.start, offsets.stop
    return offsets if offsets is not None else (None, None)


def open(  # noqa: A001  # gateway.open(…) reads as it should
    data: str | Path,
    *,
    username: str | None = None,
    password: str | None = None,
    tls_ca: str | Path | None = None,
    timezone: str = "UTC",
) -> Log:
    """Open a data directory for reading: a running gateway's, a killed one's, or a copy; read permission is enough.

    Or what a Kafka endpoint serves, a gateway's or any other: ``"kafka://host:9092"``, ``"kafkas://host:9093"`` over
    TLS; the further arguments are for these alone. timezone: in which times without a zone are meant there.
    Raises FormatError if it is no data directory, or if a newer Gateway wrote it; UsageError for a URL that is none.
    """
    if isinstance(data, str) and data.startswith(("kafka://", "kafkas://")):
        from gateway.replay.remote import open_remote

        return open_remote(data, username=username, password=password, tls_ca=tls_ca, timezone=timezone)
    return Log(data)
