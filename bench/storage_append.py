"""Ring to durable: which way of appending to a segment is the faster one here, mapped or pwrite?

One partition, one ring, records of one size, until the last is durable. Records go in through `Ring.append`, one Python
call each, which bounds the small ones at about a million records/s; the large ones show the disk.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from gateway_native.writer import Writer

from bench.common import Result, median, scratch

SIZES = (64, 1_024, 16_384, 262_144)
BYTES = 256 * 2**20
RECORDS_MAX = 500_000
RING_BYTES = 64 * 2**20


def one_round(directory: Path, storage: str, size: int) -> float:
    """Seconds until everything is durable."""
    writer = Writer(storage)
    ring = writer.ring("bench", RING_BYTES)
    partition = writer.add_partition(str(directory / "bench-0"))
    threads = [threading.Thread(target=body) for body in (writer.run_writer, writer.run_flusher)]
    for thread in threads:
        thread.start()
    value, count = b"x" * size, record_count(size)
    start = time.perf_counter()
    now_ns = time.time_ns()
    for _ in range(count):
        while not ring.append(partition, b"plant/line-1/sensor-01", value, b"", now_ns):
            time.sleep(0.0005)
    if not writer.flush(120):
        raise RuntimeError("the disk did not take everything within two minutes")
    elapsed_s = time.perf_counter() - start
    writer.stop()
    for thread in threads:
        thread.join()
    return elapsed_s


def record_count(size: int) -> int:
    return min(RECORDS_MAX, BYTES // size)


def run(rounds: int) -> Result:
    result = Result(("storage", "record", "MB/s", "records/s"))
    for size in SIZES:
        times: dict[str, list[float]] = {"mapped": [], "pwrite": []}
        for _ in range(rounds):
            for storage, taken in times.items():  # in turns, so that a slow moment of the machine hits both
                with scratch() as directory:
                    taken.append(one_round(directory, storage, size))
        count = record_count(size)
        for storage, taken in times.items():
            elapsed_s = median(taken)
            row = (storage, f"{size:,} B", f"{count * size / elapsed_s / 1e6:,.0f}", f"{count / elapsed_s:,.0f}")
            result.rows.append(row)
        result.facts[f"pwrite_to_mapped_{size}_B"] = round(median(times["mapped"]) / median(times["pwrite"]), 2)
    return result
