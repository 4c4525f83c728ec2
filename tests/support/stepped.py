"""A writer that takes its steps when a test says so, on the test's own thread and clock: what comes when is certain."""

from __future__ import annotations

from pathlib import Path

from gateway_native import batch
from gateway_native.ring import Ring
from gateway_native.writer import ManualClock, Writer

from gateway.log.recovery import recover

STEP_NS = 10_000_000
# Far more than one round of writing and committing takes.
STEPS_MAX = 1_000


class SteppedRecording:
    """As `Recording`, without threads."""

    def __init__(self, directory: Path, *, ring_bytes: int = 2**20, recovering: bool = False) -> None:
        """recovering: go on with what an earlier one left there."""
        self._recovering = recovering
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.ring_bytes = ring_bytes
        self.clock = ManualClock()
        self.writer = Writer("pwrite", partitions_max=16, clock=self.clock)
        self.partitions: dict[str, int] = {}
        self._rings: list[Ring] = []

    def partition(self, stream: str) -> int:
        if stream not in self.partitions:
            directory = self.directory / f"{stream}-0"
            state = recover(directory).writer_state() if self._recovering else {}
            self.partitions[stream] = self.writer.add_partition(str(directory), linger_ns=0, **state)
        return self.partitions[stream]

    def ring(self, name: str) -> Ring:
        self._rings.append(self.writer.ring(name, self.ring_bytes))
        return self._rings[-1]

    def flush(self) -> None:
        """Everything in the rings becomes durable."""
        idle = 0
        for _ in range(STEPS_MAX):
            self.clock.monotonic_ns += STEP_NS
            self.clock.realtime_ns += STEP_NS
            moved = self.writer.step_writer() | self.writer.step_flusher()
            idle = 0 if moved or any(ring.used for ring in self._rings) else idle + 1
            if idle == 3:
                return
        raise AssertionError("the writer does not come to rest")

    def records(self, stream: str) -> list[batch.Row]:
        """Everything durable in a stream: (offset, timestamp_ms, key, value, headers)."""
        self.flush()
        rows: list[batch.Row] = []
        for segment in sorted((self.directory / f"{stream}-0").glob("*.log")):
            data = segment.read_bytes()
            for found in batch.scan(data, 0)[0]:
                rows += batch.decode(data, found[0])
        return rows

    def abandon(self) -> None:
        """As a crash does: what has not been appended is gone, and nothing more becomes durable."""
        self.writer.stop(abandon=True)
        self._rings.clear()

    def close(self) -> None:
        self.writer.stop()
        for _ in range(STEPS_MAX):
            self.flush()
            if self.writer.finish():
                return
        raise AssertionError("the writer does not end")
