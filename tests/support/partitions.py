"""Partitions made by hand: batches in files, without the writer, so that each test decides what is on the disk."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway_native import batch, summary, watermark
from gateway_native.summary import Summary
from gateway_native.watermark import INDEXES_WHOLE, Watermark

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


@dataclass
class IndexState:
    """Both indexes by Kafka's rule (LogSegment.append), written independently of the code under test."""

    base_offset: int
    index: bytes = b""
    times: bytes = b""
    since: int = 0
    newest: int = -1
    newest_offset: int = 0
    last_entry: int = -1
    first: int = -1
    position: int = 0

    def add(self, data: bytes) -> None:
        """One more batch."""
        self.first = struct.unpack_from(">q", data, 27)[0] if self.first < 0 else self.first
        if max_timestamp(data) > self.newest:
            self.newest, self.newest_offset = max_timestamp(data), last_offset(data)
        if self.since > 4096:
            self.index += (last_offset(data) - self.base_offset).to_bytes(4, "big") + self.position.to_bytes(4, "big")
            self.add_time()
            self.since = 0
        self.since += len(data)
        self.position += len(data)

    def add_time(self) -> None:
        if self.newest > self.last_entry:
            self.times += self.newest.to_bytes(8, "big") + (self.newest_offset - self.base_offset).to_bytes(4, "big")
            self.last_entry = self.newest


def index_state(base_offset: int, batches: Sequence[bytes]) -> IndexState:
    """The state after these batches."""
    state = IndexState(base_offset, newest_offset=base_offset)
    for data in batches:
        state.add(data)
    return state


def kafka_indexes(base_offset: int, batches: Sequence[bytes], *, sealed: bool) -> tuple[bytes, bytes]:
    """The content of both index files."""
    state = index_state(base_offset, batches)
    if sealed:
        state.add_time()
    return state.index, state.times


def summary_of(base_offset: int, batches: Sequence[bytes]) -> Summary:
    """The summary of a sealed segment with these batches."""
    state = index_state(base_offset, batches)
    state.add_time()
    return Summary(
        base_offset,
        state.position,
        last_offset(batches[-1]) + 1 if batches else base_offset,
        state.first,
        state.newest,
        batch.crc32c(state.index),
        batch.crc32c(state.times),
    )


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

    def sums(self, base: int) -> Path:
        return self.directory / f"{base:020d}.sums"

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest"

    @property
    def watermark(self) -> Path:
        return self.directory / "watermark"

    def add(self, batches: Sequence[bytes], *, base: int | None = None, sealed: bool = True, tail: bytes = b"") -> int:
        """One more segment with right indexes; `tail` follows the last batch. Returns its base offset.

        A sealed one has a summary, and the manifest speaks of it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if base is None:
            base = struct.unpack_from(">q", batches[0])[0]
        self.segments[base] = list(batches)
        self.log(base).write_bytes(b"".join(batches) + tail)
        index, times = kafka_indexes(base, batches, sealed=sealed)
        self.index(base).write_bytes(index)
        self.times(base).write_bytes(times)
        if sealed:
            entry = summary.encode(summary_of(base, batches))
            self.sums(base).write_bytes(entry)
            entries = self.manifest.read_bytes() if self.manifest.exists() else b""
            if summary.parse(entry) not in [summary.parse(entries, at) for at in range(0, len(entries), summary.BYTES)]:
                self.manifest.write_bytes(entries + entry)
        return base

    def mark(self, base: int, position: int, offset: int, *, epoch: int = 1, flags: int = INDEXES_WHOLE) -> None:
        """Write the watermark, with the state of a writer that appended the segment's batches up to `position`."""
        state = IndexState(base, newest_offset=base)
        for data in self.segments.get(base, []):
            if state.position + len(data) <= position:
                state.add(data)
        mark = Watermark(
            epoch=epoch,
            segment_base=base,
            position=position,
            durable_offset=offset,
            last_timestamp=state.newest,
            first_timestamp=state.first,
            max_timestamp=state.newest,
            offset_of_max=state.newest_offset,
            last_time_entry=state.last_entry,
            bytes_since_entry=state.since,
            index_bytes=len(state.index),
            time_bytes=len(state.times),
            index_crc=batch.crc32c(state.index),
            time_crc=batch.crc32c(state.times),
            flags=flags,
        )
        self.watermark.write_bytes(watermark.encode(mark))

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
