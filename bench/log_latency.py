"""How long does a record wait to be durable at 100,000 records/s, compared with what the disk alone takes?

64 B values, paced, one stream, every record wants its acknowledgement; measured from the record's put to the
acknowledgement as the producing thread sees it. Peer: a bare loop of one pwrite and one fdatasync per linger into a
preallocated file, with the bytes that the log writes in that time; its p99 is the disk's share. The bound is linger + 3
× that p99. A steady producer puts a few records every 50 µs; one in bursts puts what came in a tick of 2 ms, as the
intake thread does under load.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from gateway_native.ring import WANTS_ACK

from bench.common import Result, duration_s, median, scratch
from bench.disk import p99, synced_writes
from bench.recorder import recording

RATE = 100_000
VALUE_BYTES = 64
LINGER_MS = 5
STORAGES = ("mapped", "pwrite")
TICKS_NS = {"steady": 50_000, "bursts": 2_000_000}


class Round(NamedTuple):
    p50_ms: float
    p99_ms: float
    max_ms: float
    commits_per_s: float
    bytes_per_s: float
    late_ms: float


def our_round(directory: Path, storage: str, tick_ns: int, seconds: float) -> Round:
    with recording(directory, storage, linger_ns=LINGER_MS * 1_000_000) as recorder:
        load = recorder.load(VALUE_BYTES, flags=WANTS_ACK, latencies=True)
        load.run(min(1.0, seconds), rate=RATE, tick_ns=tick_ns)  # files are there, caches are warm
        before = recorder.writer.counters
        start = time.perf_counter()
        load.run(seconds, rate=RATE, tick_ns=tick_ns)
        elapsed_s = time.perf_counter() - start
        after = recorder.writer.counters
        assert load.acked == load.records
        return Round(
            p50_ms=load.latency_us(0.5) / 1e3,
            p99_ms=load.latency_us(0.99) / 1e3,
            max_ms=load.latency_ns_max / 1e6,
            commits_per_s=(after["commits"] - before["commits"]) / elapsed_s,
            bytes_per_s=(after["log_bytes"] - before["log_bytes"]) / elapsed_s,
            late_ms=load.late_ns_max / 1e6,
        )


def bare_round(directory: Path, bytes_per_s: float, seconds: float) -> Round:
    """One pwrite and one fdatasync every linger."""
    start = time.perf_counter()
    took = synced_writes(directory, bytes_per_s, LINGER_MS / 1e3, seconds)
    elapsed_s = time.perf_counter() - start
    return Round(median(took), p99(took), max(took), len(took) / elapsed_s, bytes_per_s, 0.0)


def middle(rounds: list[Round]) -> Round:
    return Round(*(median(list(values)) for values in zip(*rounds, strict=True)))


def run(rounds: int) -> Result:
    result = Result(("what", "p50 ms", "p99 ms", "max ms", "commits/s", "MB/s", "p99 / bound", "producer late by, ms"))
    seconds = duration_s(10.0, 2.0)
    ours: dict[tuple[str, str], list[Round]] = {(s, t): [] for t in TICKS_NS for s in STORAGES}
    bare: list[Round] = []
    for _ in range(rounds):
        for (storage, tick), found in ours.items():
            with scratch() as directory:
                os.sync()
                found.append(our_round(directory, storage, TICKS_NS[tick], seconds))
            with scratch() as directory:
                os.sync()
                bare.append(bare_round(directory, found[-1].bytes_per_s, seconds))
    disk = middle(bare)
    bound_ms = LINGER_MS + 3 * disk.p99_ms
    for name, found in [*((f"{s}, {t}", f) for (s, t), f in ours.items()), ("pwrite + fdatasync", bare)]:
        row = middle(found)
        cells = (f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.max_ms:.2f}", f"{row.commits_per_s:.0f}")
        against = f"{row.p99_ms / bound_ms:.2f}" if found is not bare else "-"
        late = f"{row.late_ms:.2f}" if found is not bare else "-"
        result.rows.append((name, *cells, f"{row.bytes_per_s / 1e6:.1f}", against, late))
    result.facts["seconds_a_run"] = seconds
    result.facts["bound_ms"] = round(bound_ms, 2)
    result.facts["commits_per_s_bound"] = 1000 // LINGER_MS
    return result
