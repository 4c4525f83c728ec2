"""Camera records as replay needs them: their headers in types, and the searches that pictures start from.

What is searched is a stream of the log. Times are milliseconds since 1970 here, as records carry them; ranges
half-open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Protocol

from gateway.clock import NS_PER_MS, format_time
from gateway.errors import UsageError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Names of the codecs in records, and libav's.
LIBAV_CODECS = {"h264": "h264", "h265": "hevc", "jpeg": "mjpeg"}
# How far before a picture its key frame is looked for; the longest interval that cameras offer is far below.
KEY_SEARCH_MS = 600_000
_FIRST_WINDOW_MS = 2_000


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
    """One access unit. pts: unwrapped 90 kHz ticks within its run, None when the camera gave none."""

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
            value=record.value,
        )


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
    """

    def __init__(self, stream: StreamLike, camera: str | None = None) -> None:
        self.stream = stream
        self.camera = camera
        self._keys = None if camera is None else [camera.encode()]

    def between(self, start_ms: int | None, end_ms: int | None) -> Iterator[CameraRecord]:
        """Access units received in [start, end), oldest first, read as they are asked for."""
        start = None if start_ms is None else moment(start_ms)
        end = None if end_ms is None else moment(end_ms)
        return self._camera_records(self.stream.read(start, end, keys=self._keys))

    def offsets(self, first: int, end: int | None = None) -> Iterator[CameraRecord]:
        """Access units at offsets [first, end), or to what is durable now."""
        return self._camera_records(self.stream.read(offsets=(first, end), keys=self._keys))

    def first(self, start_ms: int | None = None, end_ms: int | None = None) -> CameraRecord | None:
        """The oldest access unit in the range."""
        return next(self.between(start_ms, end_ms), None)

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

        Looks back in growing windows, `KEY_SEARCH_MS` at most.
        """
        if record.key:
            return record
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
