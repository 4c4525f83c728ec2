"""Decoded pictures out of a camera's stream: the one at an instant, or one after the other.

Decoding starts at a key frame and goes forward, at most one group of pictures to find a single frame. Only what is
asked for is decoded, and only what is looked at is converted to pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gateway.clock import NS_PER_MS, NS_PER_S, format_duration
from gateway.errors import NoFrame, UsageError
from gateway.log.gap import Gap
from gateway.replay.camera_records import CameraRecord, Pictures, StreamLike, milliseconds
from gateway.replay.decoding import Decoder, Frame, Size, check_size

# A group of pictures larger than this is decoded piece by piece instead of being looked through first.
_GROUP_BYTES_MAX = 64 << 20
_GROUP_RECORDS_MAX = 5_000
# Pictures at least so far apart are looked for one by one; the records between closer ones are read through.
_APART_NS = 5 * NS_PER_S
# A decoder may hold a picture back until it has seen so many more (H.264 and H.265 reorder 16 at most).
_HELD_BACK_MAX = 16

Progress = Callable[[float], None]


def at(
    stream: StreamLike,
    time_ns: int,
    max_age_ns: int,
    *,
    nearest_key: bool = False,
    camera: str | None = None,
    size: Size | None = None,
    progress: Progress | None = None,
) -> Frame:
    """The picture that was on screen at `time_ns`: the newest one received at or before it.

    nearest_key: instead the key frame nearest to that time, before or after it, which costs the decoding of one
    picture. size: what it is scaled to. progress: is called with 0.0 to 1.0. Raises NoFrame when it is further away
    than `max_age_ns`, when there is none, or when it cannot be decoded; the error names its neighbours and the cause.
    """
    check_size(size)
    pictures = Pictures(stream, camera)
    target = pictures.last(-(-(time_ns - max_age_ns) // NS_PER_MS), time_ns // NS_PER_MS + 1)
    if nearest_key:
        target = _nearest_key(pictures, target, time_ns, max_age_ns)
    if target is None:
        raise _no_frame(pictures, time_ns, max_age_ns)
    key = pictures.key_before(target)
    if key is None:
        raise _undecodable(target, "no key frame is recorded before it")
    decoder = Decoder(size, pictures.source_time_ns)
    for record in pictures.offsets(key.offset, target.offset + 1):
        if progress is not None:
            progress((record.offset - key.offset + 1) / (target.offset - key.offset + 1))
        for frame in decoder.decode(record, wanted=record.offset == target.offset):
            return frame
    for frame in decoder.finish():
        return frame
    raise _undecodable(target, f"its record (offset {target.offset}) or one that it builds on is damaged")


def _nearest_key(pictures: Pictures, target: CameraRecord | None, time_ns: int, max_age_ns: int) -> CameraRecord | None:
    """The key frame nearest to a time; `target` is the newest access unit up to it."""
    before = pictures.key_before(target) if target is not None else None
    end_ms = (time_ns + max_age_ns) // NS_PER_MS + 1
    following = pictures.first(time_ns // NS_PER_MS + 1, end_ms)
    after = next(pictures.keys(following, end_ms), None) if following is not None else None
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
    size: Size | None = None,
) -> Iterator[Frame]:
    """The pictures received in [start, end), decoded as they are asked for, memory bounded by a group of pictures.

    every_ns: at most one picture in each such interval from `start` on, its first. keys_only: key frames only, by far
    the cheapest. size: what they are scaled to. What cannot be decoded is left out.
    """
    if every_ns is not None and every_ns <= 0:
        raise UsageError("`every` must be longer than nothing.")
    check_size(size)
    return _iterate(Pictures(stream, camera), start_ns, milliseconds(end_ns), every_ns, keys_only, size)


def _iterate(
    pictures: Pictures,
    start_ns: int | None,
    end_ms: int | None,
    every_ns: int | None,
    keys_only: bool,
    size: Size | None,
) -> Iterator[Frame]:
    first = pictures.first(milliseconds(start_ns), end_ms)
    if first is None:
        return
    if start_ns is None:
        start_ns = first.timestamp_ms * NS_PER_MS
    choice = _Choice(start_ns, every_ns)
    decoder = Decoder(size, pictures.source_time_ns)
    if every_ns is not None and every_ns >= _APART_NS and pictures.finds_keys:
        yield from _Apart(pictures, decoder, choice, keys_only).frames(first, end_ms)
    elif keys_only:
        for record in pictures.keys(first, end_ms):
            if choice.takes(record):
                yield from decoder.decode(record, wanted=True)
                yield from decoder.finish()
    else:
        key = pictures.key_before(first)
        yield from _consecutive(pictures.offsets((key or first).offset), end_ms, choice, decoder)


def _consecutive(
    records: Iterator[CameraRecord], end_ms: int | None, choice: _Choice, decoder: Decoder
) -> Iterator[Frame]:
    """Read everything, decode each group of pictures as far as something of it is wanted."""
    continued = False
    for group, complete in _groups(records, end_ms):
        decodable = group[0].key or continued
        continued = not complete
        wanted = [decodable and choice.takes(record) for record in group]
        if not decodable or (complete and not any(wanted)):
            continue
        last = len(wanted) - 1 - wanted[::-1].index(True) if complete else len(wanted) - 1
        for record, take in zip(group[: last + 1], wanted, strict=False):
            yield from decoder.decode(record, wanted=take)
        if complete:
            yield from decoder.finish()
    yield from decoder.finish()


class _Apart:
    """Pictures that are far apart: each is looked for, and decoded from its key frame, or on from the one before it."""

    def __init__(self, pictures: Pictures, decoder: Decoder, choice: _Choice, keys_only: bool) -> None:
        self._pictures = pictures
        self._decoder = decoder
        self._choice = choice
        self._keys_only = keys_only
        self._fed = -1  # the decoder has had everything since a key frame, up to before this offset

    def frames(self, first: CameraRecord, end_ms: int | None) -> Iterator[Frame]:
        target: CameraRecord | None = first
        while target is not None:
            wanted: CameraRecord | None = target
            if self._keys_only:
                wanted = next(self._pictures.keys(target, end_ms), None)
            frame = self._decode(wanted) if wanted is not None else None
            if frame is None and not self._keys_only:
                # As reading through would: the first in the interval, or after it, that can be decoded.
                wanted = next(self._pictures.keys(target, end_ms), None)
                frame = self._decode(wanted) if wanted is not None else None
            if wanted is None:
                return
            if frame is not None:
                self._choice.takes(wanted)
                yield frame
            after = milliseconds(self._choice.due_ns) if frame is not None else None
            target = self._pictures.first(after, end_ms, offset=wanted.offset + 1)

    def _decode(self, target: CameraRecord) -> Frame | None:
        """The picture of `target`; None when it cannot be decoded."""
        key = self._pictures.key_before(target)
        if key is None:
            return None
        begin = self._fed if key.offset < self._fed <= target.offset else key.offset
        if begin == key.offset:
            self._decoder.finish()
        self._fed = -1
        for record in self._pictures.offsets(begin, target.offset + 1 + _HELD_BACK_MAX):
            for frame in self._decoder.decode(record, wanted=record.offset == target.offset):
                self._fed = record.offset + 1
                return frame
        return next(iter(self._decoder.finish()), None)


@dataclass
class _Choice:
    """Which access units are to become frames."""

    start_ns: int
    every_ns: int | None
    due_ns: int = 0
    """From then on the next one is taken."""

    def takes(self, record: CameraRecord) -> bool:
        time_ns = record.timestamp_ms * NS_PER_MS
        if time_ns < self.start_ns:
            return False
        if self.every_ns is None:
            return True
        if time_ns < self.due_ns:
            return False
        self.due_ns = self.start_ns + ((time_ns - self.start_ns) // self.every_ns + 1) * self.every_ns
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
    gap = pictures.gap_between(before, after) if before is not None and after is not None else None
    parts.append(_cause(before, after, gap))
    return NoFrame(
        " ".join(parts),
        before=before.timestamp if before is not None else None,
        after=after.timestamp if after is not None else None,
    )


def _cause(before: CameraRecord | None, after: CameraRecord | None, gap: Gap | None) -> str:
    if before is None:
        return "the recording begins later."
    if after is None:
        return "nothing newer is on disk yet, or the camera has been away since."
    if gap is not None:
        return f"{_GAP_CAUSES.get(gap.reason, gap.reason)}{_gap_count(gap)}."
    if before.run != after.run:
        return "the camera was away in between (it connected again for the next one)."
    if after.lost:
        return f"{after.lost} access units were lost before the next one."
    if after.lost_packets:
        return f"{after.lost_packets} packets were lost before the next one."
    return "the camera sent nothing in between."


# What the reasons of gap records mean to somebody who looks for a picture.
_GAP_CAUSES = {
    "full-disk": "the disk was full",
    "failed-disk": "the disk failed",
    "overload": "the gateway was overloaded",
    "packet-loss": "packets were lost on the way from the camera",
    "camera-away": "the camera was away in between",
    "damage": "what was recorded in between is damaged",
    "retention": "what was recorded in between was deleted",
}


def _gap_count(gap: Gap) -> str:
    return f" ({gap.count:,} access units are missing)" if gap.count else ""


def _time(record: CameraRecord) -> str:
    return record.timestamp.isoformat(timespec="milliseconds")
