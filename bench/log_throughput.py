"""How close to the disk does the log come: ring to durable, beside fio?

One stream, one ring, a native producer at full speed for the same time as fio writes a preallocated file in order:
records as large as fio's blocks, and fio once more with the 256 KiB that the writer appends at a time. Both end with
everything on the disk, and that time counts. Ours counts the records' values only; batch headers, keys and indexes are
its cost.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.common import Result, duration_s, median, scratch
from bench.disk import fio_version, fio_write, free_bytes
from bench.recorder import recording

SIZES = (1_024, 16_384)
BATCH_BYTES = 262_144
STORAGES = ("mapped", "pwrite")


def our_round(directory: Path, storage: str, size: int, seconds: float) -> float:
    """Bytes of values per second."""
    with recording(directory, storage) as recorder:
        load = recorder.load(size)
        start = time.perf_counter()
        load.run(seconds, records=free_bytes(directory) // size)
        recorder.flush()
        elapsed_s = time.perf_counter() - start
        assert recorder.durable_records() == load.records
        return float(load.records * size / elapsed_s)


def one_round(size: int, seconds: float, rates: dict[str, list[float]]) -> None:
    """Each in turn, on a disk that is idle again."""
    for name, found in rates.items():
        with scratch() as directory:
            os.sync()
            if name in STORAGES:
                found.append(our_round(directory, name, size, seconds))
            else:
                found.append(fio_write(directory, size if name == "fio" else BATCH_BYTES, seconds))


def run(rounds: int) -> Result:
    result = Result(("record", "what", "MB/s, median", "range", "ratio to fio", "ratio to fio, 256 KiB"))
    seconds = duration_s(20.0, 3.0)
    result.facts["seconds_a_run"] = seconds
    result.facts["fio"] = fio_version()
    for size in SIZES:
        rates: dict[str, list[float]] = {name: [] for name in ("fio", "mapped", "fio 256 KiB", "pwrite")}
        for _ in range(rounds):
            one_round(size, seconds, rates)
        same, large = median(rates["fio"]), median(rates["fio 256 KiB"])
        for name, found in rates.items():
            ratios = (f"{median(found) / same:.2f}", f"{median(found) / large:.2f}")
            spread = f"{min(found) / 1e6:,.0f} to {max(found) / 1e6:,.0f}"
            result.rows.append((f"{size:,} B", name, f"{median(found) / 1e6:,.0f}", spread, *ratios))
    return result
