"""Segments on disk as others see them: parsed by aiokafka and by kafka-python, their indexes by Kafka's own rule.

Nothing here uses the gateway's own decoder: these are the oracles for what it writes.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from aiokafka.record.memory_records import MemoryRecords as AiokafkaRecords

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python reads its own schemas by a deprecated call
    from kafka.record.memory_records import MemoryRecords as KafkaPythonRecords

# storage/src/main/java/org/apache/kafka/storage/internals/log/LogConfig.java: index.interval.bytes
INDEX_INTERVAL_BYTES = 4096


class Row(NamedTuple):
    """One record."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Batch(NamedTuple):
    """One record batch and where it is in its segment."""

    position: int
    size: int
    rows: tuple[Row, ...]

    @property
    def last_offset(self) -> int:
        return self.rows[-1].offset

    @property
    def max_timestamp(self) -> int:
        return max(row.timestamp_ms for row in self.rows)


def parse(data: bytes, *, both: bool = True) -> list[Batch]:
    """The batches in a segment's bytes, CRCs checked, by aiokafka and (`both`) the same by kafka-python."""
    found = _parse(AiokafkaRecords, data)
    if both:
        assert _parse(KafkaPythonRecords, data) == found, "aiokafka and kafka-python read different records"
    return found


def _parse(kind: type, data: bytes) -> list[Batch]:
    records = kind(data)
    batches: list[Batch] = []
    position = 0
    while records.has_next():
        batch = records.next_batch()
        assert batch.magic == 2, f"the batch at {position} has magic {batch.magic}"
        assert batch.validate_crc(), f"the batch at {position} has a wrong CRC"
        rows = tuple(Row(r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in batch)
        size = 12 + struct.unpack_from(">i", data, position + 8)[0]
        assert batch.max_timestamp == max(row.timestamp_ms for row in rows)
        batches.append(Batch(position, size, rows))
        position += size
    assert position == len(data), f"{len(data) - position} bytes after the last whole batch"
    return batches


def index_model(
    batches: list[Batch], base_offset: int, *, sealed: bool = True, closed_after: Collection[int] = ()
) -> tuple[bytes, bytes]:
    """`.index` and `.timeindex` as Kafka would write them for one append per batch.

    closed_after: last offsets of batches after which the log was closed and opened again.
    Source: append, close and onBecomeInactiveSegment of LogSegment, maybeAppend of TimeIndex, Apache Kafka 4.
    """
    offsets, times = b"", b""
    since_entry = 0
    max_timestamp, offset_of_max, last_entry = -1, base_offset, -1

    def add_time() -> bytes:
        nonlocal last_entry
        if max_timestamp <= last_entry:
            return b""
        last_entry = max_timestamp
        return struct.pack(">qi", max_timestamp, offset_of_max - base_offset)

    for batch in batches:
        if batch.max_timestamp > max_timestamp:
            max_timestamp, offset_of_max = batch.max_timestamp, batch.last_offset
        if since_entry > INDEX_INTERVAL_BYTES:
            offsets += struct.pack(">ii", batch.last_offset - base_offset, batch.position)
            times += add_time()
            since_entry = 0
        since_entry += batch.size
        if batch.last_offset in closed_after:
            times += add_time()
    if sealed:
        times += add_time()
    return offsets, times


def segment_bases(directory: Path) -> list[int]:
    """Base offsets of a partition's segments, ascending."""
    return sorted(int(path.stem) for path in directory.glob("*.log"))


def segment_file(directory: Path, base_offset: int, suffix: str = "log") -> Path:
    """A segment's file."""
    return directory / f"{base_offset:020d}.{suffix}"


def read_partition(directory: Path, *, both: bool = True, closed_after: Collection[int] = ()) -> list[Row]:
    """Every record of a cleanly closed partition, with contiguous offsets across its segments; indexes checked."""
    rows: list[Row] = []
    expected: int | None = None
    for base in segment_bases(directory):
        data = segment_file(directory, base).read_bytes()
        batches = parse(data, both=both)
        assert expected is None or base == expected, f"segment {base} where {expected} should begin"
        expected = base
        for batch in batches:
            for row in batch.rows:
                assert row.offset == expected, f"offset {row.offset} where {expected} should be"
                expected += 1
                rows.append(row)
        offsets, times = index_model(batches, base, closed_after=closed_after)
        assert segment_file(directory, base, "index").read_bytes() == offsets, f"index of segment {base}"
        assert segment_file(directory, base, "timeindex").read_bytes() == times, f"time index of segment {base}"
    return rows
