"""Data directories with very many sealed segments, written as a gateway leaves them. FORMAT.md is the specification.

Each segment is one sound batch of one record, so that whoever looks inside finds nothing wrong, and 100,000 of them fit
anywhere.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from gateway_native import batch, summary, watermark

MANIFEST = "manifest"


def write_partition(directory: Path, sealed: int) -> None:
    """Segments with offsets 0 to `sealed` - 1, an active one behind them, the manifest, and a clean watermark."""
    directory.mkdir(parents=True)
    first_ms = int(time.time() * 1000) - sealed
    entries = [_write_sealed(directory, offset, first_ms + offset) for offset in range(sealed)]
    (directory / MANIFEST).write_bytes(b"".join(entries))
    _write_active(directory, sealed, first_ms + sealed)


def drop_manifest(directory: Path) -> None:
    """As if it had been lost; each segment's own summary stays."""
    (directory / MANIFEST).unlink(missing_ok=True)


def manifest_entries(directory: Path) -> int:
    try:
        return (directory / MANIFEST).stat().st_size // summary.BYTES
    except FileNotFoundError:
        return 0


def _batch(offset: int, time_ms: int) -> bytes:
    return batch.encode([(time_ms, b"plant/line-1/sensor-01", b"x" * 64, ())], offset)


def _write_sealed(directory: Path, offset: int, time_ms: int) -> bytes:
    """The segment's files; returns its summary."""
    log = _batch(offset, time_ms)
    times = time_ms.to_bytes(8, "big") + bytes(4)
    entry = summary.encode(
        summary.Summary(
            base_offset=offset,
            log_bytes=len(log),
            next_offset=offset + 1,
            first_timestamp=time_ms,
            max_timestamp=time_ms,
            index_crc=0,
            time_crc=batch.crc32c(times),
            flags=summary.INDEXES_WHOLE,
        )
    )
    for suffix, content in (("log", log), ("index", b""), ("timeindex", times), ("sums", entry)):
        _write(f"{directory}/{offset:020d}.{suffix}", content)
    return entry


def _write_active(directory: Path, offset: int, time_ms: int) -> None:
    log = _batch(offset, time_ms)
    for suffix, content in (("log", log), ("index", b""), ("timeindex", b"")):
        _write(f"{directory}/{offset:020d}.{suffix}", content)
    mark = watermark.Watermark(
        epoch=1,
        segment_base=offset,
        position=len(log),
        durable_offset=offset + 1,
        last_timestamp=time_ms,
        first_timestamp=time_ms,
        max_timestamp=time_ms,
        offset_of_max=offset,
        bytes_since_entry=len(log),
        flags=watermark.INDEXES_WHOLE | watermark.CLEAN,
    )
    (directory / "watermark").write_bytes(watermark.encode(mark))


def _write(path: str, content: bytes) -> None:
    """Four hundred thousand of these: no objects that can be done without."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
