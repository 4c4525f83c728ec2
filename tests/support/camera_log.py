"""Camera streams on disk, written by the gateway's own writer, and what must be found in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gateway_native.batch import encode_headers
from gateway_native.ring import GAP, KEYFRAME

import gateway
from gateway.clock import NS_PER_MS
from gateway.log.gap import Gap, encode_gap
from gateway.log.layout import META_FILE, prepare
from tests.pictures import FakeRecord, FakeStream
from tests.support.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM = "gate"


class CameraLog:
    """A data directory with one stream, and a writer on it; `log` reads it."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        prepare(self.data, "plant-7", "UTC")
        self.recording = Recording(self.data, ring_bytes=1 << 24)
        self.index = self.recording.partition(STREAM)
        self.ring = self.recording.ring("cameras")
        self.directory = self.data / f"{STREAM}-0"

    def write(self, records: Iterable[FakeRecord], *, roll_at: Sequence[int] = ()) -> CameraLog:
        """Append them, their offsets being those they get; begin a new segment at each of those offsets."""
        for record in records:
            if record.offset in roll_at:
                self.roll()
            headers = encode_headers(record.headers)
            flags = KEYFRAME if dict(record.headers).get("keyframe") else 0
            time_ns = record.timestamp_ms * NS_PER_MS
            assert self.ring.append(self.index, record.key, record.value, headers, time_ns, flags)
        self.recording.flush()
        return self

    def gap(self, gap: Gap) -> None:
        """The gateway's own record of a loss."""
        assert self.ring.append(self.index, b"", b"", encode_gap(gap), gap.last_ms * NS_PER_MS, GAP)
        self.recording.flush()

    def roll(self) -> None:
        """Seal the active segment; the next record begins another."""
        self.recording.flush()
        self.recording.writer.roll(self.index)

    @property
    def stream(self) -> gateway.Stream:
        """Opened anew."""
        assert (self.data / META_FILE).exists()
        return gateway.open(self.data)[STREAM]

    def close(self) -> None:
        self.recording.close()


@contextmanager
def camera_log(directory: Path, fake: FakeStream, *, roll_at: Sequence[int] = ()) -> Iterator[CameraLog]:
    """The records of a stream in memory, on disk."""
    log = CameraLog(directory)
    try:
        yield log.write(fake.records, roll_at=roll_at)
    finally:
        log.close()
