"""Camera records as replay needs them: their headers in types, and the searches that pictures start from.

What is searched is a stream of the log. Times are milliseconds since 1970 here, as records carry them; ranges
half-open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Protocol

from gateway.clock import NS_PER_MS, NS_PER_S, format_time
from gateway.errors import UsageError
from gateway.log.gap import GAP_HEADER, Gap, parse_gap

if TYPE_CHECKING:
    from gateway.log.key_frame_finder import KeyFrameFinder

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The unit of a record's pts.
CLOCK_HZ = 90_000
# Names of the codecs in records, and libav's.
LIBAV_CODECS = {"h264": "h264", "h265": "hevc", "jpeg": "mjpeg"}
# How far before a picture its key frame is looked for; the longest interval that cameras offer is far below.
KEY_SEARCH_MS = 600_000
_FIRST_WINDOW_MS = 2_000
_FOREVER = 2**63 - 1
# So many records behind one are looked at for the camera's clock: a minute of 25 a second. Cameras tell it every few.
CLOCK_SEARCH_RECORDS = 1_500
# So many records between two pictures are looked at for gap records.
GAP_SEARCH_RECORDS = 10_000
GAP_BEHIND_RECORDS = 200


class RecordLike(Protocol):
    """What is used of a record of the log."""

    @property
    def offset(self) -> int: ...

    @property
    def timestamp_ms(self) -> int: ...

    @property
    def timestamp(self) -> datetime: ...

    @property
    def key(self) -> bytes | None: ...

    @property
    def value(self) -> bytes | None: ...

    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]: ...


class StreamLike(Protocol):
    """What is used of a stream of the log."""

    @property
    def name(self) -> str: ...

    @property
    def zone(self) -> tzinfo: ...

    def read(
        self,
        start: Any = None,
        end: Any = None,
        *,
        keys: Any = None,
        offsets: Any = None,
    ) -> Iterable[RecordLike]: ...


@dataclass(frozen=True, slots=True)
class CameraRecord:
    """One access unit; FORMAT.md, section 3, says what its headers mean.

    pts: unwrapped 90 kHz ticks within its run, None when the camera gave none. lost: access units missing directly
    before it. lost_packets: RTP packets missing in it or directly before it. damaged: parts of it may be missing.
    """

    offset: int
    timestamp_ms: int
    timestamp: datetime
    camera: str
    codec: str
    key: bool
    pts: int | None
    run: str
    source_time_ns: int | None
    lost: int
    lost_packets: int
    damaged: bool
    value: bytes

    @classmethod
    def of(cls, record: RecordLike) -> CameraRecord | None:
        """The record's access unit, or None for anything else (a gap record, a sensor's message)."""
        headers = dict(record.headers)
        codec = headers.get("codec", b"").decode("ascii", "replace")
        if codec not in LIBAV_CODECS or not record.value:
            return None
        return cls(
            offset=record.offset,
            timestamp_ms=record.timestamp_ms,
            timestamp=record.timestamp,
            camera=(record.key or b"").decode("utf-8", "replace"),
            codec=codec,
            key="keyframe" in headers,
            pts=_number(headers.get("pts")),
            run=headers.get("run", b"").decode("ascii", "replace"),
            source_time_ns=_number(headers.get("source_time")),
            lost=_number(headers.get("lost")) or 0,
            lost_packets=_number(headers.get("lost_packets")) or 0,
            damaged="damaged" in headers,
            value=record.value,
        )


def _gap_of(record: RecordLike) -> Gap | None:
    if record.key is not None or record.value is not None:
        return None
    for name, value in record.headers:
        if name == GAP_HEADER:
            with contextlib.suppress(ValueError):  # perhaps a newer version's
                return parse_gap(value)
    return None


def _number(text: bytes | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def moment(time_ms: int) -> datetime:
    """A time as `Stream.read` takes it, exact."""
    return _EPOCH + timedelta(milliseconds=time_ms)


def milliseconds(time_ns: int | None) -> int | None:
    """The first whole millisecond at or after a time: where a range that begins or ends there does."""
    return None if time_ns is None else -(-time_ns // NS_PER_MS)


class Pictures:
    """The access units of one camera in one stream.

    camera: its name; None when the stream holds a single one (another one's record then raises UsageError). What damage
    in the log has cost counts as lost before the access unit that follows it, as it might have been this camera's.

    A stream that has a `key_frames` (a `KeyFrameFinder`) is asked for key frames; in others all records are read.
    """

    def __init__(self, stream: StreamLike, camera: str | None = None) -> None:
        self.stream = stream
        self.camera = camera
        self._keys = None if camera is None else [camera.encode()]
        self._finder: KeyFrameFinder | None = getattr(stream, "key_frames", None)
        self._clock_run: str | None = None
        self._clock: tuple[int, int] | None = None  # of that run: ticks, and the camera's time then (ns)

    @property
    def finds_keys(self) -> bool:
        """A key frame, and any picture, is found without reading all that lies before it."""
        return self._finder is not None

    def between(self, start_ms: int | None, end_ms: int | None, *, offset: int | None = None) -> Iterator[CameraRecord]:
        """Access units received in [start, end), oldest first, read as they are asked for; from `offset` on."""
        start = None if start_ms is None else moment(start_ms)
        end = None if end_ms is None else moment(end_ms)
        offsets = None if offset is None else (offset, None)
        return self._camera_records(self.stream.read(start, end, keys=self._keys, offsets=offsets))

    def offsets(self, first: int, end: int | None = None) -> Iterator[CameraRecord]:
        """Access units at offsets [first, end), or to what is durable now."""
        return self._camera_records(self.stream.read(offsets=(first, end), keys=self._keys))

    def first(
        self, start_ms: int | None = None, end_ms: int | None = None, *, offset: int | None = None
    ) -> CameraRecord | None:
        """The oldest access unit in the range, at that offset or behind it."""
        return next(self.between(start_ms, end_ms, offset=offset), None)

    def show(self, time_ms: int) -> str:
        """A time for people, in the site's zone."""
        return format_time(time_ms * NS_PER_MS, self.stream.zone)

    def last(self, start_ms: int, end_ms: int | None = None) -> CameraRecord | None:
        """The newest access unit in the range.

        Halves the range until little is left to walk: every step costs one look-up by time, not the reading of a day.
        """
        if self.first(start_ms, end_ms) is None:
            return None
        if end_ms is None:
            end_ms = start_ms + _FIRST_WINDOW_MS
            while self.first(end_ms) is not None:
                end_ms += (end_ms - start_ms) * 3
        while end_ms - start_ms > _FIRST_WINDOW_MS:
            middle = (start_ms + end_ms) // 2
            if self.first(middle, end_ms) is None:
                end_ms = middle
            else:
                start_ms = middle
        newest = None
        for newest in self.between(start_ms, end_ms):  # noqa: B007 - the last one is wanted
            pass
        return newest

    def key_before(self, record: CameraRecord) -> CameraRecord | None:
        """The key frame that decoding has to start from for `record`: itself, or the last one before it.

        Looks back `KEY_SEARCH_MS` at most.
        """
        if record.key:
            return record
        if self._finder is None:
            return self._key_by_reading(record)
        entry = self._finder.last_before(record.offset, self._key_of(record))
        if entry is None:
            return None
        found = self.at_offset(entry.offset)
        # An index is a hint: the record decides.
        return found if found is not None and found.key else self._key_by_reading(record)

    def _key_by_reading(self, record: CameraRecord) -> CameraRecord | None:
        """The same from the records themselves, looked through backwards in growing windows."""
        end_ms, width_ms = record.timestamp_ms + 1, _FIRST_WINDOW_MS
        while record.timestamp_ms - end_ms < KEY_SEARCH_MS:
            found = None
            for each in self.between(end_ms - width_ms, end_ms):
                if each.key and each.offset < record.offset:
                    found = each
            if found is not None:
                return found
            end_ms -= width_ms
            width_ms *= 2
        return None

    def keys(self, first: CameraRecord, end_ms: int | None) -> Iterator[CameraRecord]:
        """The key frames from `first` on, up to the first picture received at `end_ms` or later, as they are asked for.

        Where there is a finder, only they are read.
        """
        if self._finder is None:
            found = (each for each in self.offsets(first.offset) if each.key or self._is_over(each, end_ms))
        else:
            entries = self._finder.between(first.offset, _FOREVER, self._key_of(first))
            found = (each for entry in entries if (each := self.at_offset(entry.offset)) is not None and each.key)
        for each in found:
            if self._is_over(each, end_ms):
                return
            yield each

    def at_offset(self, offset: int) -> CameraRecord | None:
        """The access unit at that offset; None if there is none, or none that can be read."""
        return next(self.offsets(offset, offset + 1), None)

    def gap_between(self, before: CameraRecord, after: CameraRecord) -> Gap | None:
        """The gateway's own record of a loss in the time between two access units: best one about this camera, and of
        several the one that says most of that time.

        It is written behind the loss, so perhaps a little behind `after`.
        """
        end = min(before.offset + GAP_SEARCH_RECORDS, after.offset) + GAP_BEHIND_RECORDS
        best: tuple[bool, int] | None = None
        found = None
        for record in self.stream.read(offsets=(before.offset + 1, end)):
            gap = _gap_of(record)
            if gap is None:
                continue
            common_ms = min(gap.last_ms, after.timestamp_ms) - max(gap.first_ms, before.timestamp_ms)
            rank = (gap.source == after.camera, common_ms)
            if common_ms >= 0 and (best is None or rank >= best):
                best, found = rank, gap
        return found

    def source_time_ns(self, record: CameraRecord) -> int | None:
        """When the camera took the picture by its own clock, ns since 1970; None if it told it nowhere near.

        A record from before the camera's first report has it from the next one that has: FORMAT.md, section 3.
        """
        if record.source_time_ns is not None or record.pts is None:
            return record.source_time_ns
        if self._clock_run != record.run:
            self._clock_run, self._clock = record.run, self._find_clock(record)
            if self._clock is None:
                self._clock_run = None  # it may be told any moment
        if self._clock is None:
            return None
        ticks, time_ns = self._clock
        return time_ns + (record.pts - ticks) * NS_PER_S // CLOCK_HZ

    def _find_clock(self, record: CameraRecord) -> tuple[int, int] | None:
        for each in self.offsets(record.offset + 1, record.offset + 1 + CLOCK_SEARCH_RECORDS):
            if each.run != record.run:
                return None
            if each.pts is not None and each.source_time_ns is not None:
                return each.pts, each.source_time_ns
        return None

    def _key_of(self, record: CameraRecord) -> bytes | None:
        """What entries of the index are chosen by. Of a stream's only camera each is taken, and looked at when read."""
        return None if self._keys is None else record.camera.encode()

    @staticmethod
    def _is_over(record: CameraRecord, end_ms: int | None) -> bool:
        return end_ms is not None and record.timestamp_ms >= end_ms

    def _camera_records(self, records: Iterable[RecordLike]) -> Iterator[CameraRecord]:
        passed = 0  # gaps that damage in the log has left so far
        missing = 0  # records in those that no picture has followed yet
        for each in records:
            gaps = getattr(records, "gaps", ())
            missing += sum(end - first for first, end in (gap.offsets or (0, 1) for gap in gaps[passed:]))
            passed = len(gaps)
            record = CameraRecord.of(each)
            if record is None:
                continue
            if self.camera is None:
                self.camera = record.camera
            elif record.camera != self.camera:
                raise UsageError(
                    f"The stream {self.stream.name!r} holds pictures of several cameras ({self.camera!r}, "
                    f"{record.camera!r}, …): say which one is meant."
                )
            yield replace(record, lost=record.lost + missing) if missing else record
            missing = 0
