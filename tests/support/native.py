"""A native writer with its two threads, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from gateway_native.ring import ACKED, FAILED, PENDING, Ring
from gateway_native.writer import Writer

# Nothing in these tests is timed; this only keeps a hanging test from hanging for ever.
PATIENCE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Poll until true."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s:g} s: {what}"
        time.sleep(0.001)


class RunningWriter:
    """``with RunningWriter(...) as running: running.writer.add_partition(...)``; stops cleanly at the end."""

    def __init__(self, storage: str = "pwrite", **options: int) -> None:
        self.writer = Writer(storage, **options)
        self.threads = [
            threading.Thread(target=self.writer.run_flusher),
            threading.Thread(target=self.writer.run_writer),
        ]

    def __enter__(self) -> RunningWriter:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(abandon=kind is not None)

    def stop(self, *, abandon: bool = False) -> None:
        """End both threads; the second call does nothing."""
        self.writer.stop(abandon=abandon)
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} does not end"

    def ring(self, capacity: int = 1 << 20, name: str = "test") -> Ring:
        return self.writer.ring(name, capacity)


def put(
    ring: Ring, partition: int, key: bytes, value: bytes, *, timestamp_ms: int = 0, headers: bytes = b"", flags: int = 0
) -> int:
    """Append, waiting for room; the sequence number."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        sequence = ring.append(partition, key, value, headers, timestamp_ms * 1_000_000, flags)
        if sequence:
            return sequence
        assert time.monotonic() < deadline, "no room in the ring"
        time.sleep(0.0005)


def verdict_of(ring: Ring, partition: int, sequence: int) -> int:
    """Wait for ACKED or FAILED."""
    wait_until(lambda: ring.verdict(partition, sequence) != PENDING, f"a verdict on record {sequence}")
    found = ring.verdict(partition, sequence)
    assert found in (ACKED, FAILED)
    return found
