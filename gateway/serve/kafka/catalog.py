"""Streams as topics: which there are, and how far each can be read.

A topic has one partition, number 0. What begins with "__" is the gateway's own and is not shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from gateway_native import batch

from gateway.config import Config
from gateway.log.layout import list_partitions, partition_path
from gateway.log.partition import Limit, PartitionReader
from gateway.serve.kafka.slices import Checked, Slice, Slices

PARTITION = 0
# Names in the data directory are listed again when they are older: a template may have made a stream.
LISTING_AGE_S = 1.0
# Consumers that read what is long there need not be told the very end of the log each time.
BOUNDS_AGE_S = 0.02
INTERNAL_PREFIX = "__"
# Readers of streams that were asked for lately; each keeps what it knows of segments.
READERS_MAX = 1_024

LATEST, EARLIEST, MAX_TIMESTAMP = -1, -2, -3


class EngineView(Protocol):
    """What is needed of the engine."""

    @property
    def streams(self) -> dict[str, int]: ...

    def durable_offset(self, index: int) -> int:
        """In memory: what this process has made durable of the partition with that index."""
        ...

    def follow(self, index: int, *, followed: bool) -> None:
        """Somebody waits for its next records, or nobody any more."""
        ...


class Topic:
    """One stream. Its methods read the disk and are called on threads for that, one at a time each."""

    def __init__(self, name: str, directory: Path, checked: Checked | None = None) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._reader = PartitionReader(directory)
        self._slices = Slices(directory, checked)
        self._known = (0, 0, Limit(0, 0, 0))
        self._known_at = float("-inf")

    def bounds(self) -> tuple[int, int]:
        """The first offset that is there, and the high watermark: the durable offset."""
        with self._lock:
            return self._bounds()[:2]

    def _bounds(self) -> tuple[int, int, Limit]:
        try:
            limit = self._reader.limit()
            start = self._reader.log_start_offset
        except FileNotFoundError:  # a stream without its first record has no directory
            limit, start = Limit(0, 0, 0), 0
        self._known_at = time.monotonic()
        self._known = min(start, limit.offset), limit.offset, limit
        return self._known

    def find(self, offset: int, bytes_max: int) -> tuple[int, int, Slice | None]:
        """Log start, high watermark, and the bytes that begin with the batch that holds `offset`.

        The slice is None at the high watermark, and for an offset that is out of range: compare. At least one whole
        batch is in it, whatever `bytes_max`. Its file is open; the caller closes it. Raises OSError.
        """
        with self._lock:
            start, end, limit = self._known
            if time.monotonic() - self._known_at <= BOUNDS_AGE_S and start <= offset < end:
                found = self._slices.go_on(limit, offset, bytes_max)
                if found is not None:
                    return start, end, found
            start, end, limit = self._bounds()
            if not start <= offset < end:
                return start, end, None
            return start, end, self._slices.find(self._reader, limit, offset, bytes_max)

    def offset_at(self, timestamp: int) -> tuple[int, int]:
        """For ListOffsets: offset and time (ms) of the first record that is not earlier; (-1, -1) if there is none."""
        with self._lock:
            start, end, limit = self._bounds()
            if timestamp == LATEST:
                return end, -1
            if timestamp == EARLIEST:
                return start, -1
            selection = batch.Selection(time_from=self._newest() if timestamp == MAX_TIMESTAMP else max(timestamp, 0))
            if end > start:
                for rows in self._reader.chunks(selection, limit, on_damage=lambda _: None):
                    return rows[0][0], rows[0][1]
            return -1, -1

    def _newest(self) -> int:
        times = self._reader.time_range()
        return times.newest if times is not None else 0


class Catalog:
    """The topics of a data directory. `names` and `topic` read the disk as well, at most once a second."""

    def __init__(self, config: Config, engine: EngineView) -> None:
        self._data = Path(config.data)
        self._configured = config.written_streams()
        self._engine = engine
        self._lock = threading.Lock()
        self._topics: dict[str, Topic] = {}
        self._checked = Checked()
        self._listed: frozenset[str] = frozenset()
        self._listed_at = float("-inf")

    def names(self) -> list[str]:
        """All topics, sorted."""
        with self._lock:
            return sorted(self._known())

    def topic(self, name: str) -> Topic | None:
        """The topic of that name; None if there is none."""
        with self._lock:
            found = self._topics.get(name)
            if found is None and name in self._known():
                if len(self._topics) >= READERS_MAX:
                    del self._topics[next(iter(self._topics))]
                found = self._topics[name] = Topic(name, partition_path(self._data, name, PARTITION), self._checked)
            return found

    def _known(self) -> frozenset[str]:
        now = time.monotonic()
        if now - self._listed_at > LISTING_AGE_S:
            on_disk = (found.stream for found in list_partitions(self._data) if found.partition == PARTITION)
            self._listed = _shown({*on_disk, *self._configured, *self._engine.streams})
            self._topics = {name: topic for name, topic in self._topics.items() if name in self._listed}
            self._listed_at = now
        return self._listed

    def follow(self, name: str, *, followed: bool) -> None:
        """Somebody waits for the stream's next records, or nobody any more. It may be one that is not written."""
        index = self._engine.streams.get(name)
        if index is not None:
            self._engine.follow(index, followed=followed)

    def durable_offset(self, name: str) -> int | None:
        """Without a look at the disk: how far a stream that is written now is durable; None for any other."""
        index = self._engine.streams.get(name)
        return None if index is None else self._engine.durable_offset(index)


def _shown(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if not name.startswith(INTERNAL_PREFIX))
