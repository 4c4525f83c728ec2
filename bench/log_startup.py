"""How long until a gateway accepts connections: with 100,000 sealed segments, and after kill -9 with a full segment?

From the start of the process to the first connection, the interpreter's own start included; beside a gateway without
data. Memory is the process's largest resident size until everything is looked at. Warm: the directory is in the page
cache. Cold: the page cache was dropped, which needs root; the interpreter and its modules then come from the disk too,
in the empty gateway as well.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.common import Result, Skipped, duration_s, median, scratch
from bench.disk import drop_caches
from bench.recorder import recording
from bench.sealed_segments import drop_manifest, manifest_entries, write_partition
from tests.support.gateway_process import GatewayProcess, environment

SEGMENTS = 100_000
STREAMS = 100
SEGMENT_BYTES = 2**30
VALUE_BYTES = 1_024
RECORD_BYTES_MAX = VALUE_BYTES + 48
ACCEPT_TIMEOUT_S = 300.0
REBUILD_TIMEOUT_S = 60.0
SETTLE_S = 1.0
POLL_S = 0.002


class Start(NamedTuple):
    accepts_s: float
    peak_mb: float
    rebuilt_s: float  # 0: nothing was to be rebuilt; infinite: it was not


def stream_names(streams: int) -> list[str]:
    return ["telemetry"] if streams == 1 else [f"telemetry-{number}" for number in range(streams)]


def gateway(directory: Path, streams: int) -> GatewayProcess:
    """One whose listener writes to so many streams."""
    process = GatewayProcess(directory)
    routes = ",\n".join(f'  {{ filter = "{name}/#", stream = "{name}" }}' for name in stream_names(streams))
    process.config.write_text(
        f'data = "{process.data}"\n'
        f'[mqtt.listeners.devices]\nbind = "127.0.0.1:{process.port}"\nroutes = [\n{routes}\n]\n',
        encoding="utf-8",
    )
    return process


def start(process: GatewayProcess, *, cold: bool, until: Callable[[], bool] = lambda: True) -> Start:
    """Start it, wait until it accepts and `until` holds, end it."""
    if cold and not drop_caches():
        raise Skipped("a cold start needs root, to drop the page cache")
    begin = time.perf_counter()
    with process.start(wait=False):
        running = process.process
        assert running is not None
        while not _accepts(process.port):
            if running.poll() is not None or time.perf_counter() - begin > ACCEPT_TIMEOUT_S:
                raise RuntimeError(f"the gateway does not accept connections:\n{process.log}")
            time.sleep(POLL_S)
        accepts_s = time.perf_counter() - begin
        rebuilt_s = 0.0
        while not until():
            time.sleep(0.05)
            rebuilt_s = time.perf_counter() - begin
            if rebuilt_s > REBUILD_TIMEOUT_S:
                rebuilt_s = math.inf
                break
        time.sleep(SETTLE_S)
        peak_mb = _peak_mb(running.pid)
        process.end()
    return Start(accepts_s, peak_mb, rebuilt_s)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


# -- the cases ---------------------------------------------------------------------------------------------------------

Taken = dict[tuple[str, bool], list[Start]]


def many_segments(directory: Path, streams: int, segments: int, rounds: int, colds: list[bool], taken: Taken) -> None:
    what = f"{segments:,} segments in {streams} stream{'s' if streams > 1 else ''}"
    process = gateway(directory, streams)
    partitions = [process.data / f"{name}-0" for name in stream_names(streams)]
    start(process, cold=False)  # makes the data directory
    for partition in partitions:
        write_partition(partition, segments // streams)
    os.sync()

    def rebuilt() -> bool:
        return sum(map(manifest_entries, partitions)) == segments

    start(process, cold=False)
    for _ in range(rounds):
        for cold in colds:
            taken.setdefault((what, cold), []).append(start(process, cold=cold))
            for partition in partitions:
                drop_manifest(partition)
            taken.setdefault((f"{what}, no manifest", cold), []).append(start(process, cold=cold, until=rebuilt))


def full_segment(directory: Path, cold: bool, *, watermark: bool) -> Start:
    """Kill -9 what wrote a segment almost full; without its watermark all of it must be walked."""
    process = gateway(directory, 1)
    start(process, cold=False)
    victim = subprocess.run(
        [sys.executable, "-m", "bench.log_startup", str(process.data)], env=environment(), check=False
    )
    if victim.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the process that is to be killed ended with {victim.returncode}")
    if not watermark:
        (process.data / "telemetry-0" / "watermark").unlink()
    return start(process, cold=cold)


def write_until_killed(data: Path) -> None:
    with recording(data, "pwrite", stream="telemetry") as recorder:
        load = recorder.load(VALUE_BYTES)
        load.run(600.0, records=(SEGMENT_BYTES - 2**20) // RECORD_BYTES_MAX)
        recorder.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def run(rounds: int) -> Result:
    result = Result(
        ("case", "cache", "accepts, s", "above empty, s", "peak MB", "above empty, MB", "manifest rebuilt, s")
    )
    taken: Taken = {}
    with scratch() as directory:
        empty = gateway(directory, 1)
        start(empty, cold=False)
        colds = [False, True] if drop_caches() else [False]
        for _ in range(rounds):
            for cold in colds:
                taken.setdefault(("no data", cold), []).append(start(empty, cold=cold))
    segments = round(duration_s(SEGMENTS, SEGMENTS / 20))
    for streams in (1, STREAMS):
        with scratch() as directory:
            many_segments(directory, streams, segments, rounds, colds, taken)
    for _ in range(rounds):
        for cold in colds:
            for what, watermark in (("full 1 GiB segment, kill -9", True), ("the same, watermark lost", False)):
                with scratch() as directory:
                    taken.setdefault((what, cold), []).append(full_segment(directory, cold, watermark=watermark))
    medians = {case: Start(*(median(list(v)) for v in zip(*found, strict=True))) for case, found in taken.items()}
    for (what, cold), row in medians.items():
        nothing = medians["no data", cold]
        cells = (f"{row.accepts_s:.2f}", f"{row.accepts_s - nothing.accepts_s:.2f}", f"{row.peak_mb:.0f}")
        rebuilt = f"{row.rebuilt_s:.2f}" if row.rebuilt_s else "-"
        if math.isinf(row.rebuilt_s):
            rebuilt = f"not within {REBUILD_TIMEOUT_S:g} s"
        result.rows.append((what, "cold" if cold else "warm", *cells, f"{row.peak_mb - nothing.peak_mb:.0f}", rebuilt))
    if len(colds) == 1:
        result.facts["cold"] = "not measured: dropping the page cache needs root"
    return result


if __name__ == "__main__":
    write_until_killed(Path(sys.argv[1]))
