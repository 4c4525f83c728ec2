"""The disk under a measurement: fio beside it, and what the device itself counts."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

from bench.common import Skipped

SECTOR_BYTES = 512  # in /sys/dev/block/*/stat, whatever the device's own is
# How much of the free disk one round may take.
FREE_SHARE = 0.5
FIO_BYTES_MAX = 64 * 2**30


class DeviceCounters(NamedTuple):
    """What was written so far: by this process as the kernel charges it, and to the device by everybody."""

    process_bytes: int
    device_bytes: int
    device_flushes: int

    def since(self, before: DeviceCounters) -> DeviceCounters:
        return DeviceCounters(*(now - then for now, then in zip(self, before, strict=True)))


def device_of(path: Path) -> Path | None:
    """Its directory in /sys; None where the file system has no block device of its own (tmpfs, overlay, network)."""
    number = os.stat(path).st_dev
    found = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return found if found.exists() else None


def counters(path: Path) -> DeviceCounters:
    """Now, after everything that is dirty went to the disk."""
    os.sync()
    process = dict(
        line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines() if ": " in line
    )
    device = device_of(path)
    written = flushes = 0
    if device is not None:
        # Documentation/block/stat.rst: the 7th is write sectors, the 16th flush requests.
        fields = [int(word) for word in (device / "stat").read_text(encoding="ascii").split()]
        written, flushes = fields[6] * SECTOR_BYTES, fields[15] if len(fields) > 15 else 0
    return DeviceCounters(int(process["write_bytes"]), written, flushes)


def free_bytes(path: Path) -> int:
    """What one round may fill."""
    return int(shutil.disk_usage(path).free * FREE_SHARE)


def fio_version() -> str:
    return subprocess.run([_fio(), "--version"], capture_output=True, text=True, check=True).stdout.strip()


def fio_write(directory: Path, block_bytes: int, seconds: float) -> float:
    """Bytes per second of sequential pwrite into a preallocated file, the one final fsync included."""
    size = min(free_bytes(directory), FIO_BYTES_MAX) // block_bytes * block_bytes
    command = [
        _fio(),
        "--name=bench",
        f"--directory={directory}",
        "--rw=write",
        "--ioengine=psync",
        f"--bs={block_bytes}",
        f"--size={size}",
        "--fallocate=native",
        f"--runtime={seconds:g}",
        "--end_fsync=1",
        "--output-format=json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"fio ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    written = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write"]
    return float(written["io_bytes"] / (written["runtime"] / 1e3))


def many_files_write(directory: Path, files: int, block_bytes: int, seconds: float) -> float:
    """Bytes per second of a bare loop: a block appended to each of so many files, then one syncfs for all of them.

    Files grow as segments do: preallocated from 1 MiB on, doubling.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    block = os.urandom(block_bytes)
    with contextlib.ExitStack() as opened:
        descriptors = []
        for number in range(files):
            descriptors.append(os.open(directory / f"{number}.bare", os.O_CREAT | os.O_WRONLY))
            opened.callback(os.close, descriptors[-1])
        position = allocated = written = 0
        most, start = free_bytes(directory), time.perf_counter()
        while (elapsed_s := time.perf_counter() - start) < seconds and written < most:
            if position + block_bytes > allocated:
                allocated = max(2**20, 2 * allocated)
                for descriptor in descriptors:
                    os.posix_fallocate(descriptor, 0, allocated)
            for descriptor in descriptors:
                os.pwrite(descriptor, block, position)
            if libc.syncfs(descriptors[0]):
                raise OSError(ctypes.get_errno(), "syncfs failed")
            position += block_bytes
            written += files * block_bytes
        return written / max(elapsed_s, time.perf_counter() - start)


def _fio() -> str:
    program = shutil.which("fio")
    if program is None:
        raise Skipped("fio is not installed; .ci/bench-deps installs it")
    return program


def drop_caches() -> bool:
    """Forget everything that is cached of the disk. False: that needs root."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")
    except OSError:
        return False
    return True


def synced_writes(directory: Path, bytes_per_s: float, interval_s: float, seconds: float) -> list[float]:
    """One pwrite into a preallocated file and one fdatasync every interval, at this rate: the ms each pair took."""
    block = b"x" * round(bytes_per_s * interval_s)
    took: list[float] = []
    descriptor = os.open(directory / "bare", os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(descriptor, 0, len(block) * (round(seconds / interval_s) + 1))
        os.fsync(descriptor)
        start = time.perf_counter()
        position, due = 0, start
        while due < start + seconds:
            time.sleep(max(0.0, due - time.perf_counter()))
            begin = time.perf_counter()
            os.pwrite(descriptor, block, position)
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - begin) * 1e3)
            position += len(block)
            due = max(due + interval_s, time.perf_counter())
    finally:
        os.close(descriptor)
    return took


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
