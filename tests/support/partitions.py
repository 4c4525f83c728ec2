"""Partitions made by hand: batches in files, without the writer, so that each test decides what is on the disk."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway_native import batch, watermark

T0 = 1_700_000_000_000  # ms; the first record's time unless a test says otherwise


def make_batch(
    base_offset: int, records: int = 3, *, time: int = T0, value_bytes: int = 20, key: bytes = b"a/b"
) -> bytes:
    """A batch whose records are 1 ms apart from `time` on and tell their offset in the value."""
    return batch.encode(
        [
            (time + number, key, str(base_offset + number).encode().ljust(value_bytes, b"."), [])
            for number in range(records)
        ],
        base_offset,
    )


def make_batches(
    count: int, *, base_offset: int = 0, records: int = 3, time: int = T0, value_bytes: int = 20
) -> list[bytes]:
    """So many batches in a row; times go on like offsets."""
    return [
        make_batch(base_offset + n * records, records, time=time + n * records, value_bytes=value_bytes)
        for n in range(count)
    ]


def last_offset(data: bytes) -> int:
    return int(struct.unpack_from(">q", data)[0] + struct.unpack_from(">i", data, 23)[0])


def max_timestamp(data: bytes) -> int:
    return int(struct.unpack_from(">q", data, 35)[0])


def kafka_indexes(base_offset: int, batches: Sequence[bytes], *, sealed: bool) -> tuple[bytes, bytes]:
    """Both indexes by Kafka's rule (LogSegment.append), written independently of the code under test."""
    index, times = b"", b""
    since, newest, newest_offset, last_entry, position = 0, -1, base_offset, -1, 0
    for data in batches:
        if max_timestamp(data) > newest:
            newest, newest_offset = max_timestamp(data), last_offset(data)
        if since > 4096:
            index += (last_offset(data) - base_offset).to_bytes(4, "big") + position.to_bytes(4, "big")
            if newest > last_entry:
                times += newest.to_bytes(8, "big") + (newest_offset - base_offset).to_bytes(4, "big")
                last_entry = newest
            since = 0
        since += len(data)
        position += len(data)
    if sealed and newest > last_entry:
        times += newest.to_bytes(8, "big") + (newest_offset - base_offset).to_bytes(4, "big")
    return index, times


@dataclass
class Partition:
    """A partition's directory and what was put into it."""

    directory: Path
    segments: dict[int, list[bytes]] = field(default_factory=dict)

    def log(self, base: int) -> Path:
        return self.directory / f"{base:020d}.log"

    def index(self, base: int) -> Path:
        return self.directory / f"{base:020d}.index"

    def times(self, base: int) -> Path:
        return self.directory / f"{base:020d}.timeindex"

    @property
    def watermark(self) -> Path:
        return self.directory / "watermark"

    def add(self, batches: Sequence[bytes], *, base: int | None = None, sealed: bool = True, tail: bytes = b"") -> int:
        """One more segment with right indexes; `tail` follows the last batch. Returns its base offset."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if base is None:
            base = struct.unpack_from(">q", batches[0])[0]
        self.segments[base] = list(batches)
        self.log(base).write_bytes(b"".join(batches) + tail)
        index, times = kafka_indexes(base, batches, sealed=sealed)
        self.index(base).write_bytes(index)
        self.times(base).write_bytes(times)
        return base

    def mark(self, base: int, position: int, offset: int, *, epoch: int = 1) -> None:
        """Write the watermark."""
        self.watermark.write_bytes(watermark.encode(watermark.Watermark(epoch, base, position, offset)))

    def mark_all(self) -> None:
        """Everything that was added is durable."""
        base = max(self.segments)
        batches = self.segments[base]
        offset = last_offset(batches[-1]) + 1 if batches else base
        self.mark(base, sum(map(len, batches)), offset)

    def damage(self, base: int, position: int, *, bit: int = 0) -> None:
        """Flip one bit of a log file."""
        data = bytearray(self.log(base).read_bytes())
        data[position] ^= 1 << bit
        self.log(base).write_bytes(data)
