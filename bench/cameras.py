"""What does recording a camera cost, from its socket to the durable log, for 1 to 200 of them?

Cameras of 1080p, 25 frames and 4 Mbit/s a second, H.264 over RTSP, played by one process that writes down what it sent
(gateway/simulate). Gateway: the whole process, one stream a camera, both engines. Beside it one `ffmpeg -c copy` each,
as recorders do, into segments of MP4. CPU is that of all their threads over the measured time, memory their
proportional share (PSS) at its end; of Gateway's the mapped tails of the logs are shown apart, since they are page
cache, which a recorder that writes fills too but does not map.

Latency is from the moment an access unit's last packet was given to the kernel to the moment a reader may see its
record, looked for every millisecond. Beside it stands what the disk takes for the same bytes by itself: all cameras'
pictures of a frame interval appended to one file, and fdatasync.

The data directory is treated as one on a file system of its own (`[disk] syncfs = "always"`), as recorders have.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gateway_native import watermark

from bench.common import QUICK_VARIABLE, Result, Skipped, duration_s, median, scratch
from bench.publishing import open_files_max
from tests.support.camera_farm import CameraFarm
from tests.support.gateway_process import GatewayProcess

COUNTS = (1, 10, 40, 100, 200)
PEER_COUNTS = (1, 10, 40)  # 200 of them would need more than this machine has
LATENCY_AT = 100
COMPARED_AT = 40
FPS = 25
BYTES_PER_S = 500_000
SETTLE_S = duration_s(4.0, 1.0)
SECONDS = duration_s(20.0, 3.0)
READY_TIMEOUT_S = 60.0
SWEEP_S = 0.001
# More than the gateway may lag behind when it is asked; beyond that, the cameras or it did not keep up.
LEAST_SHARE = 0.97


DISK = """
[disk]
syncfs = "always"
"""


class Cost(NamedTuple):
    """cpu_ms: per camera and second. own_mib, mapped_mib: memory per camera, without and of mapped log files."""

    cpu_ms: float
    own_mib: float
    mapped_mib: float
    offered: float  # access units sent, of those that were due
    recorded: float  # of those sent; of bytes for ffmpeg, which writes in blocks
    threads: str = ""
    latency_ms: tuple[float, float] | None = None  # median and 99th percentile


def cpu_by_thread_ns(pid: int) -> dict[int, int]:
    """Time on a processor of each thread that still lives."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # ended meanwhile
            found[int(task.name)] = int((task / "schedstat").read_text(encoding="ascii").split()[0])
    return found


def memory_mib(pid: int) -> tuple[float, float]:
    """(proportional share without the data directory's mapped files, that of those)."""
    log_kib = whole_kib = 0
    of_log = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            of_log = bool(rest) and rest[-1].endswith((".log", ".index", ".timeindex", "watermark"))
        elif first == "Pss:":
            whole_kib += int(rest[0])
            log_kib += int(rest[0]) * of_log
    return (whole_kib - log_kib) / 1024, log_kib / 1024


class Marks:
    """The watermarks of all cameras' streams, mapped, and when each offset was first seen to be durable."""

    def __init__(self, data: Path, names: list[str]) -> None:
        self._maps: dict[str, mmap.mmap] = {}
        for name in names:
            with (data / f"{name}-0" / "watermark").open("rb") as file:
                self._maps[name] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._raw = dict.fromkeys(names, b"")
        self.durable = dict.fromkeys(names, 0)
        self.seen: dict[str, list[tuple[int, int]]] = defaultdict(list)  # (offset, ns since 1970)

    def sweep(self) -> int:
        """Look at all; returns how many records are durable."""
        for name, mapped in self._maps.items():
            raw = mapped[: watermark.BYTES]
            if raw == self._raw[name]:
                continue
            found = watermark.parse(raw)
            if found is None:  # being written
                continue
            self._raw[name] = raw
            if found.durable_offset > self.durable[name]:
                self.durable[name] = found.durable_offset
                self.seen[name].append((found.durable_offset, time.time_ns()))
        return sum(self.durable.values())

    def close(self) -> None:
        for mapped in self._maps.values():
            mapped.close()


def await_recording(data: Path, names: list[str]) -> None:
    """Until every camera's stream has durable records."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    for name in names:
        mark = data / f"{name}-0" / "watermark"
        while (found := watermark.read(mark)) is None or not found.durable_offset:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} is not being recorded after {READY_TIMEOUT_S:g} s")
            time.sleep(0.02)


def gateway_round(directory: Path, count: int, engine: str, *, latency: bool = False) -> Cost:
    with CameraFarm(directory / "farm", count).start() as farm, contextlib.ExitStack() as stack:
        cameras = "\n".join(
            f'[cameras.{name}]\nurl = "{url}"\nengine = "{engine}"\n' for name, url in farm.urls.items()
        )
        gateway = stack.enter_context(GatewayProcess(directory / "gateway", extra_toml=DISK + cameras))
        gateway.start()
        assert gateway.process is not None
        pid, names = gateway.process.pid, list(farm.urls)
        await_recording(gateway.data, names)
        time.sleep(SETTLE_S)
        marks = Marks(gateway.data, names)
        stack.callback(marks.close)
        before, start_ns, durable = cpu_by_thread_ns(pid), time.time_ns(), marks.sweep()
        while time.time_ns() - start_ns < SECONDS * 1e9:
            time.sleep(SWEEP_S if latency else 0.1)
            if latency:
                marks.sweep()
        recorded, end_ns = marks.sweep() - durable, time.time_ns()
        after = cpu_by_thread_ns(pid)
        own_mib, mapped_mib = memory_mib(pid)
        gateway.end()
        sent = sent_between(farm, start_ns, end_ns)
        found = latencies_ms(marks, farm) if latency else []
    elapsed_s = (end_ns - start_ns) / 1e9
    used_ns = {thread: ns - before.get(thread, 0) for thread, ns in after.items()}
    return Cost(
        sum(used_ns.values()) / 1e6 / count / elapsed_s,
        own_mib / count,
        mapped_mib / count,
        sent / (count * FPS * elapsed_s),
        recorded / sent,
        shares(used_ns, pid),
        (found[len(found) // 2], found[len(found) * 99 // 100]) if found else None,
    )


def sent_between(farm: CameraFarm, start_ns: int, end_ns: int) -> int:
    """How many access units all cameras sent in that time."""
    return sum(start_ns <= line.sent_ns < end_ns for sent in farm.sent().values() for line in sent)


def latencies_ms(marks: Marks, farm: CameraFarm) -> list[float]:
    """Of every access unit that became durable while it was looked for, in order of size."""
    found = []
    for name, sent in farm.sent().items():
        seen = marks.seen[name]
        for (first, _), (end, ns) in itertools.pairwise(seen):
            found += [(ns - line.sent_ns) / 1e6 for line in sent[first:end]]
    return sorted(found)


def disk_alone_ms(directory: Path, count: int) -> tuple[float, float]:
    """(median, 99th percentile) of appending a frame interval's bytes of so many cameras and fdatasync."""
    block, found = os.urandom(count * BYTES_PER_S // FPS), []
    end = time.monotonic() + SECONDS
    with (directory / "alone").open("wb", buffering=0) as file:
        while (began := time.monotonic()) < end:
            file.write(block)
            os.fdatasync(file.fileno())
            found.append((time.monotonic() - began) * 1e3)
            time.sleep(max(0.0, 1 / FPS - found[-1] / 1e3))
    found.sort()
    return found[len(found) // 2], found[len(found) * 99 // 100]


def shares(used_ns: dict[int, int], main: int) -> str:
    """The main thread's share of the CPU, and those of the busiest others."""
    total = sum(used_ns.values()) or 1
    others = sorted((ns for thread, ns in used_ns.items() if thread != main), reverse=True)[:3]
    parts = [f"event loop {used_ns.get(main, 0) / total:.0%}", *(f"{ns / total:.0%}" for ns in others)]
    return ", ".join(parts)


def ffmpeg_round(directory: Path, count: int) -> Cost:
    program = shutil.which("ffmpeg")
    if program is None:
        raise Skipped("ffmpeg is not installed; .ci/bench-deps installs it")
    with CameraFarm(directory / "farm", count).start() as farm, recorders(program, directory, farm) as processes:
        time.sleep(SETTLE_S + 2)  # it looks at a stream for a while before it writes
        before = {each.pid: sum(cpu_by_thread_ns(each.pid).values()) for each in processes}
        start_ns, written = time.time_ns(), bytes_in(directory)
        time.sleep(SECONDS)
        used_ns = sum(sum(cpu_by_thread_ns(pid).values()) - ns for pid, ns in before.items())
        end_ns, written = time.time_ns(), bytes_in(directory) - written
        own_mib = sum(memory_mib(pid)[0] for pid in before)
        time.sleep(1)  # what the cameras' journal holds back
        sent = sent_between(farm, start_ns, end_ns)
    elapsed_s = (end_ns - start_ns) / 1e9
    offered = sent / (count * FPS * elapsed_s)
    written_share = written / (sent * BYTES_PER_S / FPS)
    return Cost(used_ns / 1e6 / count / elapsed_s, own_mib / count, 0.0, offered, written_share)


@contextlib.contextmanager
def recorders(program: str, directory: Path, farm: CameraFarm) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One ffmpeg for each camera, as recorders run it."""
    processes = []
    try:
        for name, url in farm.urls.items():
            arguments = ["-nostdin", "-loglevel", "error", "-rtsp_transport", "tcp", "-i", url, "-c", "copy", "-an"]
            arguments += ["-f", "segment", "-segment_time", "10", "-segment_format", "mp4"]
            processes.append(
                subprocess.Popen([program, *arguments, str(directory / f"{name}-%d.mp4")], stdin=subprocess.DEVNULL)
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(10)


def bytes_in(directory: Path) -> int:
    return sum(entry.stat().st_size for entry in directory.glob("*.mp4"))


def middle(rounds: list[Cost]) -> Cost:
    """Medians, and the slowest latencies."""
    latencies = [each.latency_ms for each in rounds if each.latency_ms]
    return Cost(
        *(median([each[field] for each in rounds]) for field in range(5)),  # type: ignore[arg-type]
        rounds[0].threads,
        (median([one for one, _ in latencies]), max(p99 for _, p99 in latencies)) if latencies else None,
    )


def run(rounds: int) -> Result:
    open_files_max(16_384)
    result = Result(
        (
            "what",
            "cameras",
            "CPU ms a camera-second",
            "own MiB a camera",
            "of mapped logs",
            "sent of due",
            "recorded of sent",
        )
    )
    quick = bool(os.environ.get(QUICK_VARIABLE))
    counts, peers = ((1, 10), (10,)) if quick else (COUNTS, PEER_COUNTS)
    compared = max(peers)
    found: dict[tuple[str, int], Cost] = {}
    alone: list[tuple[float, float]] = []
    for count in counts:
        engines = ["native", *(["pyav", "ffmpeg"] if count in peers else [])]
        for what in engines:
            costs = []
            for _ in range(rounds):
                with scratch() as directory:
                    if what == "ffmpeg":
                        costs.append(ffmpeg_round(directory, count))
                    else:
                        latency = what == "native" and count == (max(counts) if quick else LATENCY_AT)
                        costs.append(gateway_round(directory, count, what, latency=latency))
                        if latency:
                            alone.append(disk_alone_ms(directory, count))
            cost = found[what, count] = middle(costs)
            result.rows.append(
                (f"gateway, {what}" if what != "ffmpeg" else "ffmpeg -c copy", str(count), f"{cost.cpu_ms:.2f}",
                 f"{cost.own_mib:.2f}", f"{cost.mapped_mib:.2f}", f"{cost.offered:.1%}", f"{cost.recorded:.1%}")
            )  # fmt: skip
    tell(result, found, counts, compared)
    result.facts["disk_alone_with_the_same_bytes_ms"] = (
        f"median {median([one for one, _ in alone]):.1f}, p99 {max(p99 for _, p99 in alone):.1f}"
    )
    return result


def tell(result: Result, found: dict[tuple[str, int], Cost], counts: tuple[int, ...], compared: int) -> None:
    """What follows from the rows."""
    ours, theirs = found["native", compared], found["ffmpeg", compared]
    result.facts[f"ffmpeg_to_gateway_at_{compared}_cpu"] = round(theirs.cpu_ms / ours.cpu_ms, 1)
    result.facts[f"ffmpeg_to_gateway_at_{compared}_memory"] = round(theirs.own_mib / ours.own_mib, 1)
    result.facts[f"pyav_to_native_at_{compared}_cpu"] = round(found["pyav", compared].cpu_ms / ours.cpu_ms, 1)
    if kept := [count for count in counts if min(found["native", count][3:5]) >= LEAST_SHARE]:
        most = found["native", kept[-1]]
        result.facts["cameras_a_core_would_hold"] = f"{1000 / most.cpu_ms:.0f}, by the cost at {kept[-1]}"
        result.facts[f"threads_at_{kept[-1]}"] = most.threads
    for (what, count), cost in found.items():
        if cost.latency_ms is not None:
            result.facts[f"{what}_at_{count}_last_packet_to_durable_ms"] = (
                f"median {cost.latency_ms[0]:.1f}, p99 {cost.latency_ms[1]:.1f}"
            )
    for name, field in (("cameras_did_not_keep_up", 3), ("recorder_did_not_keep_up", 4)):
        if behind := [f"{what} at {count}" for (what, count), cost in found.items() if cost[field] < LEAST_SHARE]:
            result.facts[name] = ", ".join(behind)
