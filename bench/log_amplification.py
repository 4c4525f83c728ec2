"""How many bytes go to the disk for a byte of payload?

For 64 B and 1 KiB values at full speed and at 10 to 100,000 records/s, with acknowledgements wanted and not; for 10,000
keys that speak once a minute each, and for 500 streams at one record a second each. Twice: as the kernel charges this
process (/proc/self/io), and as the block device counts, everybody's writes and the file system's journal included: let
nothing else write meanwhile. Payload is the values alone. Everything is synced before and after.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from gateway_native.ring import WANTS_ACK

from bench.common import Result, duration_s, median, scratch
from bench.disk import counters, device_of, free_bytes
from bench.recorder import recording

STORAGE = "pwrite"
RATES = (10, 100, 1_000, 100_000, 0)
SIZES = (64, 1_024)
# Rounds of ten seconds each add up: more than these are not made.
ROUNDS_MAX = 3


class Case(NamedTuple):
    name: str
    value_bytes: int
    rate: float  # 0: full speed
    wants_ack: bool
    partitions: int = 1
    keys: int = 1_000


class Round(NamedTuple):
    process: float
    device: float
    syncs_per_s: float
    batches_per_s: float
    commits_per_s: float
    device_flushes_per_s: float
    records_per_s: float


def cases() -> list[Case]:
    found = []
    for wants_ack in (True, False):
        for size in SIZES:
            found += [Case(f"{rate:,}/s" if rate else "full speed", size, rate, wants_ack) for rate in RATES]
        found.append(Case("10,000 keys once a minute", 64, 10_000 / 60, wants_ack, keys=10_000))
        found.append(Case("500 streams, 1/s each", 64, 500, wants_ack, partitions=500))
    return found


def one_round(directory: Path, case: Case, seconds: float) -> Round:
    with recording(directory, STORAGE, case.partitions) as recorder:
        load = recorder.load(case.value_bytes, keys=case.keys, flags=WANTS_ACK if case.wants_ack else 0)
        load.run(60.0, records=case.partitions)
        recorder.flush()  # the files are there
        before, work = counters(directory), recorder.writer.counters
        start = time.perf_counter()
        load.run(seconds, rate=case.rate, records=free_bytes(directory) // (case.value_bytes + 64))
        elapsed_s = time.perf_counter() - start
        recorder.flush()
        written = counters(directory).since(before)
        done = {name: value - work[name] for name, value in recorder.writer.counters.items()}
        payload = load.records * case.value_bytes
        return Round(
            process=written.process_bytes / payload,
            device=written.device_bytes / payload,
            syncs_per_s=(done["synced_files"] + done.get("syncfs", 0)) / elapsed_s,
            batches_per_s=done["batches"] / elapsed_s,
            commits_per_s=done["commits"] / elapsed_s,
            device_flushes_per_s=written.device_flushes / elapsed_s,
            records_per_s=load.records / elapsed_s,
        )


def figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def run(rounds: int) -> Result:
    result = Result(
        (
            "case",
            "value",
            "acks",
            "bytes/payload byte, process",
            "device",
            "fsyncs/s",
            "batches/s",
            "commits/s",
            "device flushes/s",
            "records/s",
        )
    )
    seconds = duration_s(10.0, 2.0)
    taken: dict[Case, list[Round]] = {case: [] for case in cases()}
    with scratch() as directory:
        if device_of(directory) is None:
            result.facts["device"] = "the file system has no block device of its own; its column says 0"
    for _ in range(min(rounds, ROUNDS_MAX)):
        for case, found in taken.items():
            with scratch() as directory:
                found.append(one_round(directory, case, seconds))
    for case, found in taken.items():
        figures = (figure(median(list(values))) for values in zip(*found, strict=True))
        result.rows.append((case.name, f"{case.value_bytes:,} B", "yes" if case.wants_ack else "no", *figures))
    result.facts["seconds_a_run"] = seconds
    result.facts["storage"] = STORAGE
    return result
