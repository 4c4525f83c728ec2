"""A writer on a temporary directory, with just enough of the engine around it to test what feeds it."""

from __future__ import annotations

import threading
from pathlib import Path

from gateway_native import batch
from gateway_native.ring import Ring
from gateway_native.writer import Writer

from tests.support.native import wait_until

RING_BYTES = 2**20


class Recording:
    """Looks like an Engine to sources: `partition`, `ring`, `flush`. `records` reads back what is on disk."""

    def __init__(self, directory: Path, *, ring_bytes: int = RING_BYTES, start: bool = True) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ring_bytes = ring_bytes
        self.writer = Writer("pwrite", partitions_max=16)
        self.partitions: dict[str, int] = {}
        self._threads: list[threading.Thread] = []
        if start:
            self.start()

    def start(self) -> None:
        """Until then rings fill up and nothing becomes durable."""
        for body in (self.writer.run_writer, self.writer.run_flusher):
            thread = threading.Thread(target=body, daemon=True)
            thread.start()
            self._threads.append(thread)

    def partition(self, stream: str, *, refuse_when_full: bool = False) -> int:
        if stream not in self.partitions:
            self.partitions[stream] = self.writer.add_partition(
                str(self.directory / f"{stream}-0"), linger_ns=0, refuse_when_full=refuse_when_full
            )
        return self.partitions[stream]

    def broken_partition(self, stream: str) -> int:
        """A stream whose directory can never be made, so that it fails at its first record."""
        obstacle = self.directory / "obstacle"
        obstacle.write_text("a file where a directory is wanted")
        self.partitions[stream] = self.writer.add_partition(str(obstacle / f"{stream}-0"), linger_ns=0)
        return self.partitions[stream]

    def full_partition(self, stream: str) -> int:
        """A stream that refuses records, because its disk is full until `make_room`; one record is in it."""
        index = self.partition(stream, refuse_when_full=True)
        assert self.ring(f"first of {stream}").append(index, b"", b"first", b"", 1)
        self.flush()
        self.writer.roll(index)
        self.writer.reserve_bytes = 1 << 60
        return index

    def make_room(self, stream: str) -> None:
        """The disk of that stream, which has refused something, has room again, and the writer knows."""
        index = self.partitions[stream]
        # A refusal is heard of before the stream says that it refuses.
        wait_until(lambda: self.writer.partition_state(index)["refusing"], "the stream refuses")
        self.writer.reserve_bytes = 0
        wait_until(lambda: not self.writer.partition_state(index)["refusing"], "room on the disk")

    def ring(self, name: str) -> Ring:
        return self.writer.ring(name, self.ring_bytes)

    def flush(self) -> None:
        """Everything put into rings so far is durable, or its stream has failed."""
        assert self.writer.flush(10.0), "the writer did not take everything"

    def records(self, stream: str) -> list[batch.Row]:
        """Everything durable in a stream: (offset, timestamp_ms, key, value, headers)."""
        self.flush()
        rows: list[batch.Row] = []
        for segment in sorted((self.directory / f"{stream}-0").glob("*.log")):
            data = segment.read_bytes()
            for found in batch.scan(data, 0)[0]:
                rows += batch.decode(data, found[0])
        return rows

    def close(self) -> None:
        self.writer.stop(abandon=not self._threads)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "the writer did not end"
