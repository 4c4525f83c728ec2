"""From how many dirty files on is one syncfs faster than an fdatasync of each?

Each commit: one record of 64 B to each of N streams, then wait until all are durable, as fast as that goes. Once
through the writer, once bare (N preallocated files and N watermarks, a pwrite each), to tell the disk from the log.
syncfs also writes whatever others left dirty on the same file system, so on a shared one it can only be slower than
shown here.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

from gateway_native.ring import WANTS_ACK

from bench.common import Result, duration_s, median, scratch
from bench.recorder import recording

STREAMS = (1, 3, 10, 30, 100, 300, 1_000)
BLOCK = b"x" * 160  # a batch of one record
WATERMARK = b"w" * 128
BARE_FILE_BYTES = 1 << 20
# What is faster by less than this share may be so by chance.
MARGIN = 1.25

_libc = ctypes.CDLL(None, use_errno=True)


def sync_each(logs: list[int]) -> None:
    for descriptor in logs:
        os.fdatasync(descriptor)


def sync_filesystem(logs: list[int]) -> None:
    if _libc.syncfs(logs[0]) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")


def bare_round(directory: Path, streams: int, sync: Callable[[list[int]], None], seconds: float) -> float:
    """Milliseconds per commit."""
    logs = [os.open(directory / f"{n}.log", os.O_RDWR | os.O_CREAT) for n in range(streams)]
    marks = [os.open(directory / f"{n}.mark", os.O_RDWR | os.O_CREAT) for n in range(streams)]
    try:
        for descriptor in logs:
            os.posix_fallocate(descriptor, 0, BARE_FILE_BYTES)
        os.sync()
        commits, start = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - start) < seconds or commits == 0:
            for descriptor in logs:
                os.pwrite(descriptor, BLOCK, commits * len(BLOCK) % (BARE_FILE_BYTES - len(BLOCK)))
            sync(logs)
            for descriptor in marks:
                os.pwrite(descriptor, WATERMARK, 0)
            commits += 1
    finally:
        for descriptor in logs + marks:
            os.close(descriptor)
    return elapsed_s / commits * 1e3


def writer_round(directory: Path, streams: int, syncfs_files: int, seconds: float) -> float:
    """Milliseconds per commit, through ring, writer and flusher."""
    with recording(directory, "pwrite", streams, syncfs_files=syncfs_files) as recorder:
        load = recorder.load(64, flags=WANTS_ACK)
        load.run(60.0, records=streams)
        recorder.flush()  # every file is there
        commits, start = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - start) < seconds or commits == 0:
            load.run(60.0, records=streams)
            recorder.flush()
            commits += 1
    return elapsed_s / commits * 1e3


WAYS: dict[str, Callable[[Path, int, float], float]] = {
    "writer, each": lambda directory, streams, seconds: writer_round(directory, streams, 0, seconds),
    "writer, syncfs": lambda directory, streams, seconds: writer_round(directory, streams, 1, seconds),
    "bare, each": lambda directory, streams, seconds: bare_round(directory, streams, sync_each, seconds),
    "bare, syncfs": lambda directory, streams, seconds: bare_round(directory, streams, sync_filesystem, seconds),
}


def run(rounds: int) -> Result:
    result = Result(("streams", *(f"{name}: ms/commit" for name in WAYS), "each / syncfs, writer", "bare"))
    seconds = duration_s(3.0, 0.5)
    crossover = None
    for streams in STREAMS:
        taken: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(rounds):
            for name, found in taken.items():
                with scratch() as directory:
                    os.sync()
                    found.append(WAYS[name](directory, streams, seconds))
        each, all_at_once, bare_each, bare_at_once = (median(found) for found in taken.values())
        ratios = (f"{each / all_at_once:.2f}", f"{bare_each / bare_at_once:.2f}")
        result.rows.append((f"{streams:,}", *(f"{median(found):.2f}" for found in taken.values()), *ratios))
        if crossover is None and each > MARGIN * all_at_once:
            crossover = streams
    result.facts["seconds_a_run"] = seconds
    result.facts["syncfs_is_faster_from"] = crossover or f"more than {STREAMS[-1]:,} streams on"
    return result
