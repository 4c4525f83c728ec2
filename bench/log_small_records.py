"""What does a small record cost, and how many go through, by the number of partitions?

64 B values with keys of 22 B, full speed, without acknowledgements, records to all partitions in turn (each next record
belongs to another one). CPU is that of the two threads alone, per record that became durable. fio beside it (256 KiB,
the same disk) shows where the disk is the limit: then records/s say nothing of the log. So does, for many partitions, a
bare loop that appends as much to each of as many files as the log did in one commit, and then calls syncfs once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from bench.common import Result, duration_s, median, scratch
from bench.disk import fio_write, free_bytes, many_files_write
from bench.recorder import recording

VALUE_BYTES = 64
PARTITIONS = (1, 10, 100, 1_000)
STORAGES = ("mapped", "pwrite")
BUFFER_BYTES = 64 * 2**20  # the default
# On the disk a record takes no more than this, so it bounds what a round fills.
RECORD_BYTES_MAX = 128
# From so many partitions on, syncing many files is a limit of its own.
BARE_PARTITIONS_MIN = 100


class Round(NamedTuple):
    writer_us: float
    kernel_us: float
    flusher_us: float
    records_per_s: float
    bytes_per_s: float
    records_per_batch: float
    bytes_per_commit: float


def one_round(directory: Path, storage: str, partitions: int, buffer_bytes: int, seconds: float) -> Round:
    with recording(directory, storage, partitions, buffer_bytes=buffer_bytes, syncfs_files=16) as recorder:
        load = recorder.load(VALUE_BYTES)
        load.run(60.0, records=partitions)
        recorder.flush()  # the files are there
        work, durable = recorder.writer.counters, recorder.durable_records()
        before, start = recorder.cost(), time.perf_counter()
        load.run(seconds, records=free_bytes(directory) // RECORD_BYTES_MAX)
        recorder.flush()
        elapsed_s, after = time.perf_counter() - start, recorder.cost()
        assert recorder.durable_records() - durable == load.records
        done = {name: value - work[name] for name, value in recorder.writer.counters.items()}
        writer_us, kernel_us, flusher_us = (
            (end - begin) / load.records * 1e6 for begin, end in zip(before, after, strict=True)
        )
        return Round(
            writer_us=writer_us,
            kernel_us=kernel_us,
            flusher_us=flusher_us,
            records_per_s=load.records / elapsed_s,
            bytes_per_s=done["log_bytes"] / elapsed_s,
            records_per_batch=load.records / done["batches"],
            bytes_per_commit=done["log_bytes"] / done["commits"],
        )


def run(rounds: int) -> Result:
    result = Result(
        (
            "storage",
            "partitions",
            "buffers, MiB",
            "writer µs/record",
            "of it in the kernel",
            "flusher µs/record",
            "million records/s",
            "MB/s",
            "records/batch",
            "bare loop, MB/s",
        )
    )
    seconds = duration_s(5.0, 1.0)
    taken: dict[tuple[str, int, int], list[Round]] = {(s, p, BUFFER_BYTES): [] for p in PARTITIONS for s in STORAGES}
    # What many streams take in during one commit is bounded by the buffers: [limits] buffers.
    taken["pwrite", PARTITIONS[-1], 16 * BUFFER_BYTES] = []
    disk: list[float] = []
    bare: dict[tuple[str, int, int], list[float]] = {key: [] for key in taken if key[1] >= BARE_PARTITIONS_MIN}
    for _ in range(rounds):
        with scratch() as directory:
            disk.append(fio_write(directory, 262_144, seconds))
        for (storage, partitions, buffer_bytes), found in taken.items():
            with scratch() as directory:
                os.sync()
                found.append(one_round(directory, storage, partitions, buffer_bytes, seconds))
            loops = bare.get((storage, partitions, buffer_bytes))
            if loops is not None:
                with scratch() as directory:
                    os.sync()
                    block_bytes = int(found[-1].bytes_per_commit) // partitions
                    loops.append(many_files_write(directory, partitions, block_bytes, seconds))
    for (storage, partitions, buffer_bytes), found in taken.items():
        loops = bare.get((storage, partitions, buffer_bytes))
        middle = Round(*(median(list(values)) for values in zip(*found, strict=True)))
        result.rows.append(
            (
                storage,
                f"{partitions:,}",
                f"{buffer_bytes >> 20:,}",
                f"{middle.writer_us:.3f}",
                f"{middle.kernel_us:.3f}",
                f"{middle.flusher_us:.3f}",
                f"{middle.records_per_s / 1e6:.2f}",
                f"{middle.bytes_per_s / 1e6:,.0f}",
                f"{middle.records_per_batch:,.1f}",
                f"{median(loops) / 1e6:,.0f}" if loops else "",
            )
        )
    result.facts["seconds_a_run"] = seconds
    result.facts["fio_256_KiB_MB_per_s"] = round(median(disk) / 1e6)
    return result
