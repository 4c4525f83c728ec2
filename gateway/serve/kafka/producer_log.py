"""Getting the producers of a stream back after a start: from a checkpoint, and the log from there on.

The checkpoint `kafka/producers.json` only says from which offset on the log has to be read, for each stream, and what
was known of its producers there. Without it the last day of the log is read. Losing it costs time, never a record.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from gateway_native import batch

from gateway.log.files import FILES, replace
from gateway.log.layout import partition_path
from gateway.log.partition import PartitionReader
from gateway.serve.kafka.commits import DIRECTORY
from gateway.serve.kafka.producers import HEADER, Position, StreamProducers, parse

FILE = "producers.json"
FORMAT = 1
# Who has not written for so long is forgotten: Kafka's own default, transactional.id.expiration apart.
KEPT_MS = 86_400_000


class ProducerLog:
    """Follows what is durable in the streams that may be produced to. For one thread that may read the disk."""

    def __init__(self, data: Path, streams: list[str]) -> None:
        self._data = data
        self._path = data / DIRECTORY / FILE
        self._readers = {name: PartitionReader(partition_path(data, name)) for name in streams}
        self._offsets: dict[str, int] = {}
        self._known = {name: StreamProducers() for name in streams}
        self._load()

    def restore(self) -> dict[str, StreamProducers]:
        """What the producers of each stream have recorded. Raises OSError."""
        for name in self._readers:
            self._advance(name)
        return {name: StreamProducers.load(known.state()) for name, known in self._known.items()}

    def checkpoint(self) -> None:
        """Read on to what is durable now, and keep that. Raises OSError."""
        before = dict(self._offsets)
        for name in self._readers:
            self._advance(name)
        if self._offsets == before and FILES.exists(self._path):
            return
        streams = {
            name: {"offset": self._offsets[name], "producers": known.state()} for name, known in self._known.items()
        }
        content = json.dumps({"format": FORMAT, "streams": streams}).encode("ascii")
        self._path.parent.mkdir(exist_ok=True)
        replace(FILES, self._path, content)
        FILES.sync_directory(self._path.parent)

    def _advance(self, name: str) -> None:
        """Read from where it stopped to what is durable."""
        reader = self._readers[name]
        try:
            limit = reader.limit()
        except FileNotFoundError:  # a stream without its first record has no directory
            self._offsets[name] = 0
            return
        start = self._offsets.get(name, -1)
        if not reader.log_start_offset <= start <= limit.offset:
            start = reader.offset_of_time(int(time.time() * 1_000) - KEPT_MS)
        known = self._known[name]
        selection = batch.Selection(offset_from=start, offset_to=limit.offset)
        for rows in reader.chunks(selection, limit, on_damage=lambda _: None):
            for offset, _, _, _, headers in rows:
                position = _position(headers)
                if position is not None:
                    known.restored(position, offset)
        self._offsets[name] = limit.offset

    def _load(self) -> None:
        """A checkpoint that is not there, or not understood, is done without."""
        try:
            content: Any = json.loads(FILES.read_bytes(self._path))
            for name, stream in content["streams"].items() if content["format"] == FORMAT else ():
                if name in self._readers:
                    self._known[name] = StreamProducers.load(stream["producers"])
                    self._offsets[name] = int(stream["offset"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError):
            self._offsets.clear()


def _position(headers: tuple[tuple[str, bytes], ...]) -> Position | None:
    return next((parse(value) for name, value in reversed(headers) if name == HEADER), None)
