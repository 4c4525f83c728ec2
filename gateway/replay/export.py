"""A camera's stream as an MP4 file, without transcoding: the access units as they were received, with exact stamps.

Cameras change their parameter sets (another size, another profile) without asking. The clip then keeps the sets inside
the samples and is marked so (sample entry `avc3` instead of `avc1`, ISO/IEC 14496-15; H.265 clips always, `hev1`),
which players that follow the standard show correctly. A change of codec cannot be in one clip and is refused by name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from gateway import nal
from gateway.clock import format_duration, format_size
from gateway.errors import GatewayError, NoFrame
from gateway.replay.camera_records import CLOCK_HZ, LIBAV_CODECS, CameraRecord, Pictures, StreamLike, milliseconds
from gateway.replay.decoding import Decoder
from gateway.replay.timeline import Timeline, with_decode_times, with_durations

Progress = Callable[[float], None]


@dataclass(frozen=True)
class ExportReport:
    """What is in the file.

    start, end: receive times of the first and the last access unit. begins: "at start" when the range begins with a key
    frame, "before start" when the key frame before it had to be taken, "after start" when there was none. duration_s:
    as the clip plays, gaps included. runs: how many connections it spans. gaps: interruptions of more than two seconds.
    lost: access units known to be missing in it. damaged: pictures of which parts are or may be missing. left_out:
    pictures at the beginning of a run that cannot be decoded. parameter_changes: how often size or coding parameters
    change within it.
    """

    path: Path
    camera: str
    codec: str
    width: int
    height: int
    start: datetime
    end: datetime
    begins: str
    frames: int
    duration_s: float
    bytes: int
    runs: int
    gaps: int
    lost: int
    damaged: int
    left_out: int
    parameter_changes: int

    def __str__(self) -> str:
        """One line for people."""
        parts = [
            f"{self.frames} frames, {format_duration(self.duration_s * 1e9)}, {self.codec} {self.width}x{self.height}",
            (
                f"{format_size(self.bytes)}, received {self.start.isoformat(timespec='milliseconds')} to "
                f"{self.end.isoformat(timespec='milliseconds')}"
            ),
        ]
        if self.begins != "at start":
            parts.append(f"begins with the key frame {self.begins.replace('start', 'the start asked for')}")
        told = (
            ("runs", self.runs, 1),
            ("gaps", self.gaps, 0),
            ("access units lost", self.lost, 0),
            ("damaged", self.damaged, 0),
            ("parameter changes", self.parameter_changes, 0),
            ("pictures left out", self.left_out, 0),
        )
        parts += [f"{count} {name}" for name, count, usual in told if count > usual]
        return "; ".join(parts)


def mp4(
    stream: StreamLike,
    path: str | os.PathLike[str],
    start_ns: int | None,
    end_ns: int | None,
    progress: Progress | None = None,
    *,
    camera: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write the access units received in [start, end) to an MP4 file; None: from the beginning, up to now.

    The clip begins with a key frame: the one at or before `start`, or the first after it when there is none (see
    `ExportReport.begins`). `progress` is called with 0.0 to 1.0. The file appears under its name only when it is whole
    (and on disk); an existing one is replaced only with `overwrite`. Raises NoFrame when the range holds no picture,
    GatewayError when the file cannot be written or the camera changes its codec within the range.
    """
    import av.error

    target = Path(path)
    _check_target(target, overwrite)
    pictures = Pictures(stream, camera)
    start_ms, end_ms = milliseconds(start_ns), milliseconds(end_ns)
    first, begins = _beginning(pictures, start_ms, end_ms)
    clip = _Clip(pictures, first, end_ms, progress)
    try:
        partial = _partial(target)
        try:
            clip.write(partial)
            _finish(partial, target, overwrite)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()
            raise
    except (OSError, av.error.FFmpegError) as error:
        raise GatewayError(f"The clip {target} cannot be written: {error.strerror or error}.") from error
    return clip.report(target, begins)


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise GatewayError(f"{target} is a directory; name the file to write, for example {target / 'clip.mp4'}.")
    if target.exists() and not overwrite:
        raise GatewayError(
            f"{target} exists already; choose another name, or overwrite it (--overwrite; overwrite=True)."
        )
    if not target.parent.is_dir():
        raise GatewayError(f"The directory {target.parent} does not exist; create it first.")


def _beginning(pictures: Pictures, start_ms: int | None, end_ms: int | None) -> tuple[CameraRecord, str]:
    """The key frame that the clip begins with, and where it lies."""
    first = pictures.first(start_ms, end_ms)
    if first is None:
        raise NoFrame(f"There is nothing to export: no picture is recorded {_span(pictures, start_ms, end_ms)}.")
    if first.key:
        return first, "at start"
    before = pictures.key_before(first)
    if before is not None:
        return before, "before start"
    after = next(pictures.keys(first, end_ms), None)
    if after is not None:
        return after, "after start"
    raise NoFrame(
        f"There is nothing to export: pictures are recorded {_span(pictures, start_ms, end_ms)}, but no key frame to "
        "begin with, neither in that time nor in the minutes before."
    )


def _span(pictures: Pictures, start_ms: int | None, end_ms: int | None) -> str:
    """A range in words."""
    begin = "the beginning" if start_ms is None else pictures.show(start_ms)
    end = "now" if end_ms is None else pictures.show(end_ms)
    return f"in {pictures.stream.name!r} from {begin} to {end}"


def _partial(target: Path) -> Path:
    """A new empty file beside the target, so that giving it its name later moves no data."""
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    try:
        partial.open("xb").close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error  # the file that was asked for
    return partial


def _finish(partial: Path, target: Path, overwrite: bool) -> None:
    """Sync the finished file and give it its name; another file of that name is never replaced unasked."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if overwrite:
        partial.replace(target)
        return
    try:
        os.link(partial, target)  # unlike a rename it fails when the name was taken meanwhile
    except FileExistsError:
        raise GatewayError(f"{target} was created by somebody else meanwhile; nothing was written.") from None
    except OSError:  # a file system without hard links
        _check_target(target, overwrite)
        partial.replace(target)
        return
    partial.unlink()


class _Clip:
    """One clip while it is written."""

    def __init__(self, pictures: Pictures, first: CameraRecord, end_ms: int | None, progress: Progress | None) -> None:
        self._pictures = pictures
        self._first = first
        self._end_ms = end_ms
        newest = pictures.last(first.timestamp_ms, end_ms) if progress is not None else None
        self._span_ms = max(newest.timestamp_ms - first.timestamp_ms, 1) if newest is not None else 1
        self._progress = progress
        self._shown = 0.0
        self._timeline = Timeline()
        self._codec = nal.CODECS.get(first.codec)
        self._sets: list[bytes] = []
        self._size = _size(first, self._codec)
        self._last = first
        self._frames = 0
        self._end_ticks = 0
        self._lost = 0
        self._damaged = 0
        self._changes = 0

    def write(self, path: Path) -> None:
        """Mux everything into `path`."""
        import av

        width, height = self._size
        libav_codec = LIBAV_CODECS[self._first.codec]
        with av.open(str(path), "w", format="mp4") as container:
            container.metadata["title"] = self._first.camera
            container.metadata["creation_time"] = self._first.timestamp.astimezone(UTC).isoformat()
            stream: Any = container.add_mux_stream(
                libav_codec, width=width, height=height, time_base=Fraction(1, CLOCK_HZ)
            )
            placed = (each for record in self._records() if (each := self._timeline.place(record)) is not None)
            for each in with_durations(with_decode_times(placed)):
                packet = av.Packet(each.record.value)
                packet.stream = stream
                packet.time_base = Fraction(1, CLOCK_HZ)
                packet.pts, packet.dts, packet.duration = each.pts, each.dts, each.duration
                packet.is_keyframe = each.record.key
                container.mux(packet)
                self._frames += 1
                self._end_ticks = max(self._end_ticks, each.pts + each.duration)
        if self._changes and self._first.codec == "h264":
            _retag(path, b"avc1", b"avc3")
        self._show(1.0)

    def report(self, path: Path, begins: str) -> ExportReport:
        """What was written."""
        return ExportReport(
            path=path,
            camera=self._first.camera,
            codec=self._first.codec,
            width=self._size[0],
            height=self._size[1],
            start=self._first.timestamp,
            end=self._last.timestamp,
            begins=begins,
            frames=self._frames,
            duration_s=self._end_ticks / CLOCK_HZ,
            bytes=path.stat().st_size,
            runs=self._timeline.runs,
            gaps=self._timeline.gaps,
            lost=self._lost,
            damaged=self._damaged,
            left_out=self._timeline.left_out,
            parameter_changes=self._changes,
        )

    def _records(self) -> Iterator[CameraRecord]:
        """The clip's access units, looked at on their way."""
        for record in self._pictures.offsets(self._first.offset):
            if self._end_ms is not None and record.timestamp_ms >= self._end_ms:
                return
            if record.codec != self._first.codec:
                raise GatewayError(
                    f"The camera {record.camera!r} changes from {self._first.codec} to {record.codec} at "
                    f"{record.timestamp.isoformat(timespec='milliseconds')}; one clip cannot hold both: "
                    "export up to that time and from it on."
                )
            self._watch_parameters(record)
            if record.offset != self._first.offset:
                self._lost += record.lost
            self._damaged += record.damaged
            self._last = record
            self._show((record.timestamp_ms - self._first.timestamp_ms) / self._span_ms)
            yield record

    def _watch_parameters(self, record: CameraRecord) -> None:
        if self._codec is None or not record.key:
            return
        sets = self._codec.parameter_sets(nal.split(record.value))
        self._changes += bool(self._sets) and sets != self._sets
        self._sets = sets

    def _show(self, done: float) -> None:
        """Tell the progress, a hundred times at most."""
        if self._progress is not None and (done >= self._shown + 0.01 or done >= 1.0):
            self._shown = done
            self._progress(done)


def _size(record: CameraRecord, codec: nal.Codec | None) -> tuple[int, int]:
    """(width, height) of a key frame in pixels."""
    if codec is not None:
        sets = nal.ParameterSets(codec)
        sets.update(nal.split(record.value))
        size = sets.size()
        if size is not None:
            return size
    decoder = Decoder()
    for frame in [*decoder.decode(record, wanted=True), *decoder.finish()]:
        return frame.width, frame.height
    raise NoFrame(
        f"The key frame of {record.camera!r} at {record.timestamp} cannot be decoded, so its size is unknown."
    )


def _retag(path: Path, old: bytes, new: bytes) -> None:
    """Rename the sample entry of the clip's only track: moov/trak/mdia/minf/stbl/stsd, its first entry.

    The muxer cannot be told in time: whether the parameter sets change is known when the last access unit was read.
    """
    with path.open("r+b") as file:
        begin, end = 0, path.stat().st_size
        for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
            begin, end = _find_box(file, name, begin, end)
        file.seek(begin + 12)  # version and flags, number of entries, size of the first
        if file.read(4) != old:
            raise GatewayError(f"The clip {path} is not laid out as expected; its sample entry is not {old.decode()}.")
        file.seek(begin + 12)
        file.write(new)


def _find_box(file: Any, name: bytes, begin: int, end: int) -> tuple[int, int]:
    """The content of the first box `name` between two positions of an MP4 file (ISO/IEC 14496-12, 4.2)."""
    while begin + 8 <= end:
        file.seek(begin)
        size, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        head = 8
        if size == 1:
            size, head = int.from_bytes(file.read(8), "big"), 16
        if size == 0:
            size = end - begin
        if size < head:
            break
        if kind == name:
            return begin + head, begin + size
        begin += size
    raise GatewayError(f"The clip is not laid out as expected: it has no box {name.decode()}.")
