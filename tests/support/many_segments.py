"""A partition with very many sealed segments, made quickly: sparse files, right summaries, a right manifest."""

from __future__ import annotations

from pathlib import Path

from gateway_native import batch, summary, watermark
from gateway_native.summary import Summary
from gateway_native.watermark import INDEXES_WHOLE, Watermark

from tests.support.partitions import T0, make_batch

RECORDS = 3
STEP_MS = 1000  # between the first records of two segments


def make_many_segments(directory: Path, count: int, *, sparse_bytes: int = 0, clean: bool = False) -> None:
    """`count` sealed segments of one batch each, and an active one with one batch, all durable.

    sparse_bytes: so many zeros stand behind each sealed segment's batch, as a hole (verify and Kafka call that damage).
    """
    directory.mkdir(parents=True)
    entries = bytearray()
    crc = batch.crc32c(b"")
    for number in range(count):
        base = number * RECORDS
        data = make_batch(base, RECORDS, time=T0 + number * STEP_MS)
        newest = T0 + number * STEP_MS + RECORDS - 1
        times = newest.to_bytes(8, "big") + (RECORDS - 1).to_bytes(4, "big")
        size = max(len(data), sparse_bytes)
        entry = summary.encode(
            Summary(base, size, base + RECORDS, T0 + number * STEP_MS, newest, crc, batch.crc32c(times))
        )
        entries += entry
        stem = f"{directory}/{base:020d}"
        for suffix, content in ((".log", data), (".index", b""), (".timeindex", times), (".sums", entry)):
            with open(stem + suffix, "wb", buffering=0) as file:
                file.write(content)
                if suffix == ".log" and size > len(data):
                    file.truncate(size)
    (directory / "manifest").write_bytes(entries)
    _make_active(directory, count, clean)


def _make_active(directory: Path, count: int, clean: bool) -> None:
    base = count * RECORDS
    time = T0 + count * STEP_MS
    data = make_batch(base, RECORDS, time=time)
    newest = time + RECORDS - 1
    stem = f"{directory}/{base:020d}"
    for suffix, content in ((".log", data), (".index", b""), (".timeindex", b"")):
        Path(stem + suffix).write_bytes(content)
    mark = Watermark(
        epoch=1,
        segment_base=base,
        position=len(data),
        durable_offset=base + RECORDS,
        last_timestamp=newest,
        first_timestamp=time,
        max_timestamp=newest,
        offset_of_max=base + RECORDS - 1,
        bytes_since_entry=len(data),
        flags=INDEXES_WHOLE | (watermark.CLEAN if clean else 0),
    )
    (directory / "watermark").write_bytes(watermark.encode(mark))
