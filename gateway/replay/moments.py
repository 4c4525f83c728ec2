"""Everything at an instant: the last value of every key and the picture of every camera, in one table."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from datetime import UTC
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from gateway_native.columns import ColumnBuilder, Columns

from gateway.clock import NS_PER_MS, format_duration, format_time
from gateway.errors import NoFrame, UsageError
from gateway.replay.camera_records import CameraRecord, milliseconds, moment
from gateway.replay.columnar import BadPayloads, Columnar, Shape, Shaped, refuse_options
from gateway.replay.columns import TIMESTAMP, coded_keys, columns_of, text_of
from gateway.replay.records import Record, Records

if TYPE_CHECKING:
    from gateway.replay.decoding import Frame
    from gateway.replay.log import Keys, Stream

KEYS_MAX = 1_000_000
# Records that lie so close are read in one go.
_APART_MAX = 200
# What is shown of a table, and of pictures in it.
_ROWS_SHOWN = 200
_TEXT_SHOWN = 80
_FRAMES_SHOWN = 16
_FRAME_WIDTH = 320

SCHEMA = pa.schema([
    ("stream", pa.large_string()),
    ("key", pa.large_string()),
    ("timestamp", TIMESTAMP),
    ("age", pa.duration("ns")),
    ("offset", pa.int64()),
    ("camera", pa.bool_()),
    ("value", pa.large_binary()),
])  # fmt: skip


class Latest(NamedTuple):
    """The last record of a key at an instant. camera: it is an access unit, and the picture is in `Moment.frames`."""

    stream: Stream
    record: Record
    camera: bool

    @property
    def key(self) -> str:
        """Bytes that are not UTF-8 are escaped."""
        return (self.record.key or b"").decode("utf-8", "backslashreplace")


def at(streams: list[Stream], when_ns: int, max_age_ns: int, frame_max_age_ns: int, keys: Keys) -> Moment:
    """What `Log.at` gives."""
    end_ms = when_ns // NS_PER_MS + 1
    begin_ms = milliseconds(when_ns - max_age_ns)
    assert begin_ms is not None
    rows: list[Latest] = []
    for stream in streams:
        offsets = _last_offsets(stream.read(moment(begin_ms), moment(end_ms), keys=keys))
        rows += _records_at(stream, sorted(offsets.values()))
    rows.sort(key=lambda row: (row.stream.name, row.record.key or b""))
    zone = streams[0].zone if streams else UTC
    asked = f"{format_time(when_ns, zone)}, {len(rows)} keys in the {format_duration(max_age_ns)} before"
    return Moment(when_ns, frame_max_age_ns, tuple(rows), asked)


def _last_offsets(records: Records) -> dict[bytes, int]:
    """The last offset of each key in the range."""
    last: dict[bytes, int] = {}
    for columns in columns_of(records, records.limit(), ColumnBuilder(keys="codes", values="none")):
        last.update(_last_of(columns))
        if len(last) > KEYS_MAX:
            raise UsageError(f"There are more than {KEYS_MAX:,} keys: say with keys= which are wanted.")
    return last


def _last_of(columns: Columns) -> Iterator[tuple[bytes, int]]:
    codes, distinct = coded_keys(columns)
    rows = np.flatnonzero(codes.is_valid().to_numpy(zero_copy_only=False))
    offsets = np.frombuffer(memoryview(columns.offset), np.int64)
    last = np.full(len(distinct), -1, np.int64)
    # Of equal codes the last assignment counts: offsets ascend.
    np.maximum.at(last, codes.fill_null(0).to_numpy(zero_copy_only=False)[rows], offsets[rows])
    return ((key, offset) for key, offset in zip(distinct.to_pylist(), last.tolist(), strict=True) if offset >= 0)


def _records_at(stream: Stream, offsets: list[int]) -> Iterator[Latest]:
    """Those that are still there. Neighbours are read together."""
    first = 0
    for number in range(1, len(offsets) + 1):
        if number < len(offsets) and offsets[number] - offsets[number - 1] <= _APART_MAX:
            continue
        wanted = set(offsets[first:number])
        for record in stream.read(offsets=(offsets[first], offsets[number - 1] + 1)):
            if record.offset in wanted:
                yield Latest(stream, record, CameraRecord.of(record) is not None)
        first = number


class Moment(Columnar):
    """What was at an instant. In a notebook it shows itself, pictures too.

    As a table it has a row for each key: `stream`, `key`, `timestamp`, `age`, `offset`, `camera`, and `value`, which is
    null for cameras.
    """

    def __init__(self, when_ns: int, frame_max_age_ns: int, rows: tuple[Latest, ...], asked: str) -> None:
        """asked: the instant and what was found, for people."""
        self._asked = asked
        self.when_ns = when_ns
        self.rows = rows
        self._frame_max_age_ns = frame_max_age_ns

    @property
    def frames(self) -> dict[str, Frame]:
        """The pictures, by camera; decoded when they are first asked for. Cameras without one are in `no_frames`."""
        return self._decoded[0]

    @property
    def no_frames(self) -> dict[str, NoFrame]:
        """Why a camera has no picture then, and which are the nearest."""
        return self._decoded[1]

    @cached_property
    def _decoded(self) -> tuple[dict[str, Frame], dict[str, NoFrame]]:
        from gateway.replay import frames

        found: dict[str, Frame] = {}
        failed: dict[str, NoFrame] = {}
        for row in self.rows:
            if row.camera:
                try:
                    found[row.key] = frames.at(row.stream, self.when_ns, self._frame_max_age_ns, camera=row.key)
                except NoFrame as error:
                    failed[row.key] = error
        return found, failed

    def shaped(self, shape: Shape) -> Shaped:
        refuse_options(shape)
        return Shaped(SCHEMA, iter([self._batch()]), BadPayloads())

    def _batch(self) -> pa.RecordBatch:
        rows = self.rows
        times = [row.record.timestamp_ms * NS_PER_MS for row in rows]
        arrays = [
            pa.array([row.stream.name for row in rows], pa.large_string()),
            text_of(pa.array([row.record.key for row in rows], pa.large_binary())),
            pa.array(times, pa.int64()).cast(TIMESTAMP),
            pa.array([self.when_ns - time for time in times], pa.int64()).cast(pa.duration("ns")),
            pa.array([row.record.offset for row in rows], pa.int64()),
            pa.array([row.camera for row in rows], pa.bool_()),
            pa.array([None if row.camera else row.record.value for row in rows], pa.large_binary()),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)

    # -- for people

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        lines = [f"<gateway.Moment {self._asked}>"]
        lines += [" ".join(cells) for cells in self._shown()]
        return "\n".join(lines)

    def _shown(self) -> Iterator[tuple[str, str, str, str]]:
        """Stream, key, age and value of the first rows."""
        for row in self.rows[:_ROWS_SHOWN]:
            age = format_duration(self.when_ns - row.record.timestamp_ms * NS_PER_MS)
            yield row.stream.name, row.key, age, "(a camera)" if row.camera else _excerpt(row.record.value)

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self._asked)}</p>"]
        parts += [_figure(name, frame) for name, frame in list(self.frames.items())[:_FRAMES_SHOWN]]
        parts += [f"<p>{html.escape(str(error))}</p>" for error in list(self.no_frames.values())[:_FRAMES_SHOWN]]
        cells = (f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in self._shown())
        parts.append(f"<table><tr><th>stream<th>key<th>age<th>value</tr>{''.join(cells)}</table>")
        if len(self.rows) > _ROWS_SHOWN:
            parts.append(f"<p>… and {len(self.rows) - _ROWS_SHOWN} more</p>")
        return "".join(parts)


def _excerpt(value: bytes | None) -> str:
    if value is None:
        return ""
    text = value[: 4 * _TEXT_SHOWN].decode("utf-8", "backslashreplace")
    return text if len(text) <= _TEXT_SHOWN else f"{text[: _TEXT_SHOWN - 1]}…"


def _figure(name: str, frame: Frame) -> str:
    import cv2

    picture: Any = frame.bgr
    width = min(_FRAME_WIDTH, picture.shape[1])
    small = cv2.resize(picture, (width, max(1, picture.shape[0] * width // picture.shape[1])))
    _, encoded = cv2.imencode(".jpg", small)
    data = base64.b64encode(encoded.tobytes()).decode()
    told = f"{name}, {frame.timestamp.isoformat(timespec='milliseconds')}"
    return f'<figure><img src="data:image/jpeg;base64,{data}"><figcaption>{html.escape(told)}</figcaption></figure>'
