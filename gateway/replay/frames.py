"""Decoded pictures out of a camera's stream: the one at an instant, or one after the other.

Decoding starts at a key frame and goes forward, at most one group of pictures to find a single frame. Only what is
asked for is decoded, and only what is looked at is converted to pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gateway.clock import NS_PER_MS, format_duration
from gateway.errors import GatewayError, NoFrame, UsageError
from gateway.replay.camera_records import LIBAV_CODECS, CameraRecord, Pictures, StreamLike, milliseconds, moment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A group of pictures larger than this is decoded piece by piece instead of being looked through first.
_GROUP_BYTES_MAX = 64 << 20
_GROUP_RECORDS_MAX = 5_000


def _missing(library: str) -> GatewayError:
    return GatewayError(f"Pictures need {library}, which is not installed: pip install 'gateway[replay]'.")


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture.

    offset: of its record. timestamp, timestamp_ms: when the gateway received it. source_time_ns: the camera's own
    clock, ns since 1970, None when it told none. keyframe: whether its record is a key frame. damaged: access units
    before it are missing, or the decoder found errors in it.
    """

    camera: str
    offset: int
    timestamp: datetime
    timestamp_ms: int
    source_time_ns: int | None
    keyframe: bool
    damaged: bool
    _picture: Any = field(repr=False)

    @classmethod
    def of(cls, record: CameraRecord, picture: Any, *, damaged: bool) -> Frame:
        return cls(
            camera=record.camera,
            offset=record.offset,
            timestamp=record.timestamp,
            timestamp_ms=record.timestamp_ms,
            source_time_ns=record.source_time_ns,
            keyframe=record.key,
            damaged=damaged or bool(picture.is_corrupt),
            _picture=picture,
        )

    @property
    def source_time(self) -> datetime | None:
        """The camera's own time, to the microsecond, in the same zone as `timestamp`."""
        if self.source_time_ns is None:
            return None
        milliseconds, rest_ns = divmod(self.source_time_ns, NS_PER_MS)
        whole = moment(milliseconds)
        return whole.replace(microsecond=whole.microsecond + rest_ns // 1_000).astimezone(self.timestamp.tzinfo)

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self._picture.width)

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self._picture.height)

    @cached_property
    def bgr(self) -> NDArray[np.uint8]:
        """height x width x 3, uint8, blue first, as OpenCV takes it."""
        return self._pixels("bgr24")

    @cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """height x width x 3, uint8, red first, as Matplotlib and Pillow take it."""
        return self._pixels("rgb24")

    def png(self) -> bytes:
        """The picture as a PNG file's content."""
        try:
            import cv2
        except ImportError as error:
            raise _missing("OpenCV") from error
        done, encoded = cv2.imencode(".png", self.bgr)
        if not done:
            raise GatewayError(f"The picture of {self.camera!r} at {self.timestamp} could not be written as PNG.")
        return bytes(encoded)

    def _repr_png_(self) -> bytes:
        """How notebooks show it."""
        return self.png()

    def _pixels(self, layout: str) -> NDArray[np.uint8]:
        try:
            import numpy  # noqa: F401, ICN001 - PyAV needs it here, and says so less kindly
        except ImportError as error:
            raise _missing("NumPy") from error
        pixels: NDArray[np.uint8] = self._picture.to_ndarray(format=layout)
        return pixels


def at(
    stream: StreamLike, time_ns: int, max_age_ns: int, *, nearest_key: bool = False, camera: str | None = None
) -> Frame:
    """The picture that was on screen at `time_ns`: the newest one received at or before it.

    nearest_key: instead the key frame nearest to that time, before or after it, which costs the decoding of one
    picture. Raises NoFrame when it is further away than `max_age_ns`, when there is none, or when it cannot be decoded;
    the error names its neighbours and the cause.
    """
    pictures = Pictures(stream, camera)
    target = pictures.last(-(-(time_ns - max_age_ns) // NS_PER_MS), time_ns // NS_PER_MS + 1)
    if nearest_key:
        target = _nearest_key(pictures, target, time_ns, max_age_ns)
    if target is None:
        raise _no_frame(pictures, time_ns, max_age_ns)
    key = pictures.key_before(target)
    if key is None:
        raise _undecodable(target, "no key frame is recorded before it")
    decoder = Decoder()
    for record in pictures.offsets(key.offset, target.offset + 1):
        for frame in decoder.decode(record, wanted=record.offset == target.offset):
            return frame
    for frame in decoder.finish():
        return frame
    raise _undecodable(target, f"its record (offset {target.offset}) or one that it builds on is damaged")


def _nearest_key(pictures: Pictures, target: CameraRecord | None, time_ns: int, max_age_ns: int) -> CameraRecord | None:
    """The key frame nearest to a time; `target` is the newest access unit up to it."""
    before = pictures.key_before(target) if target is not None else None
    following = pictures.between(time_ns // NS_PER_MS + 1, (time_ns + max_age_ns) // NS_PER_MS + 1)
    after = next((record for record in following if record.key), None)
    reachable = [
        (distance_ns, record)
        for record in (before, after)
        if record is not None and (distance_ns := abs(record.timestamp_ms * NS_PER_MS - time_ns)) <= max_age_ns
    ]
    return min(reachable, key=lambda each: each[0])[1] if reachable else None


def iterate(
    stream: StreamLike,
    start_ns: int | None,
    end_ns: int | None,
    every_ns: int | None = None,
    keys_only: bool = False,
    *,
    camera: str | None = None,
) -> Iterator[Frame]:
    """The pictures received in [start, end), decoded as they are asked for, memory bounded by a group of pictures.

    every_ns: at most one picture in each such interval from `start` on, its first. keys_only: key frames only, by far
    the cheapest. What cannot be decoded is left out.
    """
    if every_ns is not None and every_ns <= 0:
        raise UsageError("`every` must be longer than nothing.")
    return _iterate(Pictures(stream, camera), start_ns, end_ns, every_ns, keys_only)


def _iterate(
    pictures: Pictures, start_ns: int | None, end_ns: int | None, every_ns: int | None, keys_only: bool
) -> Iterator[Frame]:
    end_ms = milliseconds(end_ns)
    first = pictures.first(milliseconds(start_ns), end_ms)
    if first is None:
        return
    if start_ns is None:
        start_ns = first.timestamp_ms * NS_PER_MS
    key = first if keys_only else pictures.key_before(first)
    choice = _Choice(start_ns, every_ns, keys_only)
    decoder = Decoder()
    records = pictures.offsets((key or first).offset)
    continued = False
    for group, complete in _groups(records, end_ms):
        decodable = group[0].key or continued
        continued = not complete
        wanted = [decodable and choice.takes(record) for record in group]
        if not decodable or (complete and not any(wanted)):
            continue
        last = len(wanted) - 1 - wanted[::-1].index(True) if complete else len(wanted) - 1
        for record, take in zip(group[: last + 1], wanted, strict=False):
            if take or not keys_only:
                yield from decoder.decode(record, wanted=take)
        if complete:
            yield from decoder.finish()
    yield from decoder.finish()


@dataclass
class _Choice:
    """Which access units are to become frames."""

    start_ns: int
    every_ns: int | None
    keys_only: bool
    _due_ns: int = 0

    def takes(self, record: CameraRecord) -> bool:
        time_ns = record.timestamp_ms * NS_PER_MS
        if time_ns < self.start_ns or (self.keys_only and not record.key):
            return False
        if self.every_ns is None:
            return True
        if time_ns < self._due_ns:
            return False
        self._due_ns = self.start_ns + ((time_ns - self.start_ns) // self.every_ns + 1) * self.every_ns
        return True


def _groups(records: Iterator[CameraRecord], end_ms: int | None) -> Iterator[tuple[list[CameraRecord], bool]]:
    """Access units from one key frame to before the next; False with a part of a group that is too large to hold."""
    group: list[CameraRecord] = []
    size = 0
    split = False
    for record in records:
        if end_ms is not None and record.timestamp_ms >= end_ms:
            break
        if group and (record.key or size > _GROUP_BYTES_MAX or len(group) >= _GROUP_RECORDS_MAX):
            yield group, record.key and not split
            split = not record.key
            group, size = [], 0
        group.append(record)
        size += len(record.value)
    if group:
        yield group, not split


class Decoder:
    """Decodes access units in order and gives back the wanted ones as frames."""

    def __init__(self) -> None:
        self._context: Any = None
        self._codec = ""
        self._wanted: dict[int, CameraRecord] = {}
        self._damaged: set[int] = set()
        self._broken = False  # access units are missing since the last key frame

    def decode(self, record: CameraRecord, *, wanted: bool) -> list[Frame]:
        """Take one access unit; the frames that are ready, of those wanted."""
        import av

        if self._context is None or record.codec != self._codec:
            ready = self.finish()
            self._open(record.codec)
        else:
            ready = []
        self._broken = not record.key and (self._broken or record.lost > 0)
        if wanted:
            self._wanted[record.offset] = record
            if self._broken:
                self._damaged.add(record.offset)
        packet = av.Packet(record.value)
        packet.pts = packet.dts = record.offset  # comes back with the frame, whatever the order of display
        packet.is_keyframe = record.key
        return ready + self._take(packet)

    def finish(self) -> list[Frame]:
        """The frames that the decoder still holds back; it can go on with a key frame afterwards."""
        if self._context is None:
            return []
        ready = self._take(None)
        self._context.flush_buffers()
        self._wanted.clear()
        self._damaged.clear()
        return ready

    def _open(self, codec: str) -> None:
        import av

        self._context = av.CodecContext.create(LIBAV_CODECS[codec], "r")
        self._codec = codec

    def _take(self, packet: Any) -> list[Frame]:
        import av.error

        try:
            pictures = self._context.decode(packet)
        except av.error.FFmpegError:
            self._broken = True
            return []
        frames = []
        for picture in pictures:
            record = self._wanted.pop(picture.pts, None)
            if record is not None:
                frames.append(Frame.of(record, picture, damaged=record.offset in self._damaged))
        return frames


def _undecodable(record: CameraRecord, cause: str) -> NoFrame:
    return NoFrame(f"The picture of {record.camera!r} at {_time(record)} cannot be decoded: {cause}.")


def _no_frame(pictures: Pictures, time_ns: int, max_age_ns: int) -> NoFrame:
    """Names the neighbours of an instant without a picture, and why there is none."""
    time_ms = time_ns // NS_PER_MS
    oldest = pictures.first()
    if oldest is None:
        return NoFrame(f"The stream {pictures.stream.name!r} holds no pictures.")
    before = pictures.last(oldest.timestamp_ms, time_ms + 1) if oldest.timestamp_ms <= time_ms else None
    after = pictures.first(time_ms + 1)
    age_max = format_duration(max_age_ns)
    parts = [f"There is no picture of {pictures.camera!r} at {pictures.show(time_ms)}, nor in the {age_max} before:"]
    if before is not None:
        age = format_duration(time_ns - before.timestamp_ms * NS_PER_MS)
        parts.append(f"the last one before is from {_time(before)}, {age} earlier,")
    else:
        parts.append("there is none before,")
    parts.append(f"the next one is from {_time(after)};" if after is not None else "and none after;")
    parts.append(_cause(before, after))
    return NoFrame(
        " ".join(parts),
        before=before.timestamp if before is not None else None,
        after=after.timestamp if after is not None else None,
    )


def _cause(before: CameraRecord | None, after: CameraRecord | None) -> str:
    if before is None:
        return "the recording begins later."
    if after is None:
        return "nothing newer is on disk yet, or the camera has been away since."
    if before.run != after.run:
        return "the camera was away in between (it connected again for the next one)."
    if after.lost:
        return f"{after.lost} access units were lost before the next one."
    return "the camera sent nothing in between."


def _time(record: CameraRecord) -> str:
    return record.timestamp.isoformat(timespec="milliseconds")
