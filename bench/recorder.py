"""A native writer with its two threads on a directory, and what they cost."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gateway_native.ring import Ring
from gateway_native.writer import Writer

from bench.native import load_module
from gateway.ingest.disk import SYNCFS_FILES

RING_BYTES = 16 * 2**20
FLUSH_TIMEOUT_S = 300.0
SEGMENT_BYTES = 2**30


class Cost(NamedTuple):
    """CPU seconds of the two threads so far, and how much of the writer's was spent in the kernel."""

    writer_s: float
    writer_kernel_s: float
    flusher_s: float


class Recorder:
    """Partitions 0 to `partitions` - 1, each a stream of its own (`stream`, if there is one), fed by one ring."""

    def __init__(
        self,
        directory: Path,
        storage: str,
        partitions: int = 1,
        *,
        linger_ns: int = 5_000_000,
        stream: str = "bench",
        syncfs_files: int = SYNCFS_FILES,
        segment_bytes: int = SEGMENT_BYTES,
        **options: Any,
    ) -> None:
        self.writer = Writer(storage, partitions_max=max(1024, partitions), syncfs_files=syncfs_files, **options)
        self.ring: Ring = self.writer.ring("bench", RING_BYTES)
        for number in range(partitions):
            name = stream if partitions == 1 else f"{stream}-{number:04d}"
            self.writer.add_partition(str(directory / f"{name}-0"), linger_ns=linger_ns, segment_bytes=segment_bytes)
        self.partitions = partitions
        self._writer = threading.Thread(target=self.writer.run_writer)
        self._flusher = threading.Thread(target=self.writer.run_flusher)

    def start(self) -> None:
        self._writer.start()
        self._flusher.start()

    def load(self, value_bytes: int, **options: Any) -> Any:
        """A producer (bench/load.pyx) for all partitions."""
        return load_module().Load(self.ring, value_bytes, partitions=self.partitions, **options)

    def cost(self) -> Cost:
        return Cost(_cpu_s(self._writer), _kernel_s(self._writer), _cpu_s(self._flusher))

    def flush(self) -> None:
        """Returns when everything is durable."""
        if not self.writer.flush(FLUSH_TIMEOUT_S):
            raise RuntimeError(f"not everything was durable within {FLUSH_TIMEOUT_S:g} s")
        if any(self.writer.partition_state(number)["failed"] for number in range(self.partitions)):
            raise RuntimeError("a partition failed")

    def durable_records(self) -> int:
        """Records that are on the disk, over all partitions; each began at offset 0."""
        return sum(self.writer.partition_state(number)["durable_offset"] for number in range(self.partitions))

    def stop(self) -> None:
        self.writer.stop()
        self._writer.join()
        self._flusher.join()


@contextlib.contextmanager
def recording(directory: Path, storage: str, partitions: int = 1, **options: Any) -> Iterator[Recorder]:
    """A running one; ended, not removed, at the end."""
    recorder = Recorder(directory, storage, partitions, **options)
    recorder.start()
    try:
        yield recorder
    finally:
        recorder.stop()


def _cpu_s(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def _kernel_s(thread: threading.Thread) -> float:
    """In ticks of 10 ms: good enough over seconds."""
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text(encoding="ascii", errors="replace")
    return int(stat.rpartition(")")[2].split()[12]) / os.sysconf("SC_CLK_TCK")
