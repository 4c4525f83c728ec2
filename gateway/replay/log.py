"""A data directory as analysts see it: streams, ranges of records, pictures. Nothing here writes.

It works beside a running gateway, after one was killed, on a copied directory, and with read permission only. Only what
is durable is seen.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from gateway_native import batch

from gateway import clock
from gateway.errors import GatewayError, StreamNotFound, UsageError
from gateway.log.layout import list_partitions, read_meta
from gateway.log.partition import PartitionReader
from gateway.replay.columnar import library
from gateway.replay.records import GapReport, OnGap, Record, Records, moment

if TYPE_CHECKING:
    from gateway.log.key_frame_finder import KeyFrameFinder
    from gateway.log.segment import Damage
    from gateway.replay.cursor import Cursor
    from gateway.replay.decoding import Frame, Size
    from gateway.replay.export import ExportReport
    from gateway.replay.exports.exporter import RecordsReport
    from gateway.replay.follow import Follower, Merged
    from gateway.replay.moments import Moment
    from gateway.replay.readings import WithReadings
    from gateway.replay.remote import RemoteReader

# How often `follow` looks whether more has become durable.
POLL_S = 0.05
# Streams that are read together hold one piece each in memory, and a file open.
MERGED_STREAMS_MAX = 256
# How far before the first frame readings are looked for, if nothing is said of their age.
READINGS_BEFORE_NS = 60 * clock.NS_PER_S

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

    def at(
        self,
        when: Any,
        *,
        max_age: str = "10m",
        frame_max_age: str = "2s",
        streams: Iterable[str] | None = None,
        keys: Keys = None,
    ) -> Moment:
        """Everything at an instant: the last value of every key, and the picture of every camera.

        Keys without a record in the `max_age` before it are left out, as are cameras. A camera's picture is the one on
        screen then, at most `frame_max_age` old. streams: names; default: all. keys: as for `Stream.read`. The cost
        follows from how much was recorded in `max_age`.
        """
        library("pyarrow", "Arrow")
        from gateway.replay import moments

        return moments.at(
            [self[name] for name in self._named(streams)],
            clock.parse_time(when, self.timezone),
            clock.parse_duration(max_age),
            clock.parse_duration(frame_max_age),
            keys,
        )

    def __getitem__(self, name: str) -> Stream:
        """The stream of that name. StreamNotFound, which names those there are."""
        found = [part for part in list_partitions(self.path) if part.stream == name]
        if not found:
            raise StreamNotFound(name, self.streams())
        return Stream(name, found[0].path, self.timezone)

    def merge(
        self,
        streams: Iterable[str] | None = None,
        start: Any = None,
        end: Any = None,
        *,
        keys: Keys = None,
        retained: bool = True,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> Iterator[Merged]:
        """The records of several streams (None: of all) in the order of their times, each with its stream's name.

        start, end, keys, retained, damage, on_gap: as for `Stream.read`. One piece of each stream is in memory, so
        there may be at most 256; ValueError for more.
        """
        from gateway.replay.follow import merge

        return merge(
            [
                (
                    stream.name,
                    iter(stream.read(start, end, keys=keys, retained=retained, damage=damage, on_gap=on_gap)),
                )
                for stream in self._chosen(streams)
            ]
        )

    def export(
        self,
        path: str | Path,
        streams: Iterable[str] | None = None,
        start: Any = None,
        end: Any = None,
        *,
        keys: Keys = None,
        retained: bool = True,
        format: str | None = None,  # noqa: A002  # what it is called everywhere
        resume: bool = False,
        overwrite: bool = False,
        progress: Callable[[int, int], None] | None = None,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> RecordsReport:
        """Write the records of some streams (None: of all) to `path`, up to what is durable now.

        A name that ends in .parquet, .arrow, .csv, .jsonl or .mcap is one file, of one stream; .mcap takes several,
        which Foxglove shows together. Any other name is a directory, with a file for each stream and day of the site's
        zone: ``stream=…/date=…/<first offset>.parquet`` (or another `format`). An export into a directory that was
        interrupted, or is to be brought up to date, goes on with `resume`. progress gets offsets done, and of how many.
        start, end, keys, retained, damage, on_gap: as for `Stream.read`.
        """
        from gateway.replay.exports.exporter import Choice, export

        choice = Choice(
            None if start is None else clock.parse_time(start, self.timezone),
            None if end is None else clock.parse_time(end, self.timezone),
            keys,
            retained,
            damage,
            on_gap,
        )
        return export(
            self._chosen(streams),
            path,
            choice,
            format_name=format,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    def follow(
        self,
        streams: Iterable[str] | None = None,
        start: Any = "end",
        *,
        keys: Keys = None,
        retained: bool = True,
        poll_s: float = POLL_S,
        stop: threading.Event | None = None,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> Iterator[Merged]:
        """What becomes durable in several streams (None: in all that are there now), as `Stream.follow` does for one.

        start: "end", "start" or a time, for all of them. What is found at once is in the order of times.
        """
        from gateway.replay.follow import follow_merged

        report = GapReport(damage, set(), on_gap)
        followers = [
            (
                stream.name,
                stream.follower(stream.position_of(start), keys=keys, retained=retained, report=report),
            )
            for stream in self._chosen(streams)
        ]
        return follow_merged(followers, poll_s, stop or threading.Event())

    def _chosen(self, streams: Iterable[str] | None) -> list[Stream]:
        names = self._named(streams)
        if len(names) > MERGED_STREAMS_MAX:
            raise ValueError(f"{len(names)} streams are too many to read together; name at most {MERGED_STREAMS_MAX}")
        return [self[name] for name in names]

    def _named(self, streams: Iterable[str] | None) -> list[str]:
        """One name, several, or None for all that are there."""
        named = (streams,) if isinstance(streams, str) else streams
        return self.streams() if named is None else list(dict.fromkeys(named))


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
        offset: int | str | Any = "end",
        *,
        keys: Keys = None,
        retained: bool = True,
        poll_s: float = POLL_S,
        stop: threading.Event | None = None,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> Iterator[Record]:
        """Records from `offset` on as they become durable.

        offset: a number, "end" (begins with the next one), "start" (with the oldest), or a time as for `read`.

        It blocks until more is durable, looking every `poll_s` seconds, and works beside the gateway that writes, in
        any process. Ctrl-C interrupts it; `stop`, once set, ends the iteration. retained, damage, on_gap: as for
        `read`.
        """
        report = GapReport(damage, self._warned, on_gap)
        follower = self.follower(self.position_of(offset), keys=keys, report=report, retained=retained)
        return follower.run(poll_s, stop or threading.Event())

    def follow_async(
        self,
        offset: int | str | Any = "end",
        *,
        keys: Keys = None,
        retained: bool = True,
        poll_s: float = POLL_S,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> AsyncIterator[Record]:
        """The same for ``async for``: the event loop goes on while this waits or reads."""
        report = GapReport(damage, self._warned, on_gap)
        follower = self.follower(self.position_of(offset), keys=keys, report=report, retained=retained)
        return follower.run_async(poll_s)

    def follower(self, position: int, *, keys: Keys, report: GapReport, retained: bool = True) -> Follower:
        """What `follow` and cursors are made of."""
        from gateway.replay.follow import Follower

        chosen = batch.KeyFilter(keys) if keys is not None else None
        return Follower(self.reader, position, self.zone, report, chosen, retained=retained)

    def position_of(self, where: int | str | Any) -> int:
        """An offset: a number, "start" (the oldest there is), "end" (the next one), or that of a time."""
        from gateway.replay.cursor import position_of

        return position_of(self, where)

    def cursor(self, path: str | Path, start: int | str | Any = "start") -> Cursor:
        """A reader's place in this stream, kept in a file of its own, so that it goes on there after a restart.

        start: where to begin when the file is not there yet; as `offset` of `follow`. FormatError if the file is of
        something else.
        """
        from gateway.replay.cursor import Cursor

        return Cursor(self, path, start)

    def moment(self, timestamp_ms: int) -> datetime:
        """Milliseconds since 1970-01-01 UTC in the site's time zone."""
        return moment(timestamp_ms, self.zone)

    @cached_property
    def key_frames(self) -> KeyFrameFinder | None:
        """Finds the key frames of cameras in this stream, by the indexes beside its segments where there are any.

        None at a distance, where there are no files to look into.
        """
        from gateway.log.key_frame_finder import KeyFrameFinder

        return KeyFrameFinder(self.reader) if isinstance(self.reader, PartitionReader) else None

    def at(
        self,
        when: Any,
        *,
        max_age: str = "2s",
        nearest_key: bool = False,
        camera: str | None = None,
        size: Size | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Frame:
        """The picture on screen at that instant: the newest one received at or before it.

        NoFrame, which names its neighbours, if none is at most `max_age` old. nearest_key: the key frame nearest to the
        instant will do, which saves decoding. camera: which, in a stream of several. size: (width, height) in pixels to
        scale it to; one of them may be None and follows. progress: gets 0.0 to 1.0 while it is decoded.
        """
        from gateway.replay import frames

        return frames.at(
            self,
            self.instant_ns(when),
            clock.parse_duration(max_age),
            nearest_key=nearest_key,
            camera=camera,
            size=size,
            progress=progress,
        )

    def snapshot(self, *, max_age: str = "2s", camera: str | None = None, size: Size | None = None) -> Frame:
        """The newest picture on disk; NoFrame if it is older than `max_age` now. Otherwise as `at`."""
        return self.at("now", max_age=max_age, camera=camera, size=size)

    def frames(
        self,
        start: Any = None,
        end: Any = None,
        *,
        every: str | None = None,
        keys_only: bool = False,
        camera: str | None = None,
        size: Size | None = None,
    ) -> Iterator[Frame]:
        """Decoded pictures of a half-open range, decoded as they are asked for; memory is bounded.

        every: at most one in each such interval from `start` on. keys_only: key frames alone, which costs least. size:
        (width, height) in pixels to scale them to; one of them may be None and follows.
        """
        from gateway.replay import frames

        every_ns = clock.parse_duration(every) if every is not None else None
        return frames.iterate(self, self._ns(start), self._ns(end), every_ns, keys_only, camera=camera, size=size)

    def frames_with(
        self,
        readings: Stream,
        start: Any = None,
        end: Any = None,
        *,
        every: str | None = None,
        keys_only: bool = False,
        camera: str | None = None,
        keys: Keys = None,
        within: str | None = None,
        around: str = "0s",
    ) -> Iterator[WithReadings[Frame]]:
        """Decoded pictures with what the sensors said: `item` is the frame, `latest` has the newest record of each key.

        every, keys_only, camera: as for `frames`. keys: which of the readings. within: how old the latest may be; None:
        any age that lies in the range, which begins that much earlier, or a minute. around: `around` has every reading
        so near to the frame, before and after.
        """
        from gateway.replay.readings import with_readings

        within_ns = clock.parse_duration(within) if within is not None else None
        around_ns = clock.parse_duration(around)
        earlier_ns = max(around_ns, READINGS_BEFORE_NS if within_ns is None else within_ns)
        begin, stop = self._ns(start), self._ns(end)
        rows = readings.read(
            readings.stamp(None if begin is None else begin - earlier_ns),
            readings.stamp(None if stop is None else stop + around_ns),
            keys=keys,
        )
        return with_readings(
            self.frames(start, end, every=every, keys_only=keys_only, camera=camera),
            rows,
            within_ms=None if within_ns is None else within_ns // clock.NS_PER_MS,
            around_ms=around_ns // clock.NS_PER_MS,
        )

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

    @staticmethod
    def stamp(instant_ns: int | None) -> datetime | None:
        """Nanoseconds since 1970-01-01 UTC as what `read` takes, to the ms below."""
        return None if instant_ns is None else moment(instant_ns // clock.NS_PER_MS, UTC)

    def instant_ns(self, when: Any) -> int:
        """A time as ns since 1970-01-01 UTC; see `read` for what may be given."""
        return clock.parse_time(when, self.zone)

    def _ns(self, when: Any) -> int | None:
        return None if when is None else self.instant_ns(when)

    def _milliseconds(self, when: Any) -> int | None:
        """Timestamps are whole milliseconds: a range from 0.5 ms on begins with the record of 1 ms."""
        return None if when is None else -(-self.instant_ns(when) // clock.NS_PER_MS)


def _span(offsets: tuple[int | None, int | None] | range | None) -> tuple[int | None, int | None]:
    if offsets is None:
        return None, None
    if isinstance(offsets, range):
        if offsets.step != 1:
            raise ValueError("a range of offsets has the step 1")
        return offsets.start, offsets.stop
    try:
        first, end = offsets
    except (TypeError, ValueError):
        raise TypeError(f"offsets is (first, end), either of them None, or a range; not {offsets!r}") from None
    if any(each is not None and each < 0 for each in (first, end)):
        raise ValueError(f"{offsets!r}: offsets count from 0; the last ten begin at durable_offset - 10")
    return first, end


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
        try:
            from gateway.replay.remote import open_remote
        except ModuleNotFoundError as error:
            raise GatewayError(
                f"Reading over the network needs the package {str(error.name).partition('.')[0]!r}: "
                "pip install 'gateway[kafka]' brings it."
            ) from error

        return open_remote(data, username=username, password=password, tls_ca=tls_ca, timezone=timezone)
    if isinstance(data, str) and "://" in data:
        raise UsageError('Only a data directory, "kafka://host:port" and "kafkas://host:port" can be opened.')
    return Log(data)
