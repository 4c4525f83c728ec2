"""What the measurements share: the machine, peers, medians, tables."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

PAYLOAD = b"x" * 64
TOPICS = 100
# Set by --quick: rounds are cut to a few seconds, for a look at whether everything works. Their figures prove nothing.
QUICK_VARIABLE = "GATEWAY_BENCH_QUICK"


class Skipped(Exception):
    """The measurement cannot be made here; the text says what is missing."""


@dataclass
class Result:
    """Rows of figures, each the median of its rounds, and what follows from them."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        return {"rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows], **self.facts}

    def as_text(self) -> str:
        table = [self.columns, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.columns))]
        lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*lines, *(f"  {name.replace('_', ' ')}: {value}" for name, value in self.facts.items())])


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gateway": version("gateway"),
        "uvloop": version("uvloop"),
        "aiomqtt": version("aiomqtt"),
    }


def duration_s(full: float, quick: float) -> float:
    """How long a round lasts."""
    return quick if os.environ.get(QUICK_VARIABLE) else full


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float]) -> str:
    """Median with the extremes, in thousands."""
    return f"{median(values) / 1e3:,.1f} k  ({min(values) / 1e3:,.1f} to {max(values) / 1e3:,.1f})"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory on the disk that is measured: the current one's, since the system's temporary one may be memory."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as name:
        yield Path(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def mosquitto_version() -> str:
    """The broker's version. Skipped if there is none."""
    program = mosquitto()
    shown = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout.splitlines()
    return shown[0] if shown else "mosquitto"


def mosquitto() -> str:
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise Skipped("mosquitto is not installed; .ci/bench-deps installs it")
    return program


@contextlib.contextmanager
def mosquitto_broker(directory: Path, *options: str) -> Iterator[int]:
    """A broker on 127.0.0.1; gives its port."""
    with mosquitto_process(directory, *options) as (port, _):
        yield port


@contextlib.contextmanager
def mosquitto_process(directory: Path, *options: str) -> Iterator[tuple[int, int]]:
    """A broker on 127.0.0.1; gives its port and process id."""
    port = free_port()
    config = directory / "mosquitto.conf"
    config.write_text("\n".join([f"listener {port} 127.0.0.1", "allow_anonymous true", *options, ""]), encoding="utf-8")
    process = subprocess.Popen(
        [mosquitto(), "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(10)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} does not accept connections") from None
            time.sleep(0.02)
        else:
            return


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def publish_packets(count: int) -> bytes:
    """So many QoS 0 PUBLISH packets (MQTT 3.1.1), 64 B of payload each, over a hundred topics."""
    packets = []
    for number in range(count):
        topic = b"plant/line-%d/sensor-%02d" % (number % TOPICS % 10, number % TOPICS)
        body = len(topic).to_bytes(2, "big") + topic + PAYLOAD
        packets.append(b"\x30" + bytes([len(body)]) + body)
    return b"".join(packets)


def connect_mqtt(port: int, client_id: str) -> socket.socket:
    """A connection whose CONNECT was accepted."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    name = client_id.encode()
    body = b"\0\4MQTT\4\2\0\0" + len(name).to_bytes(2, "big") + name
    connection.sendall(b"\x10" + bytes([len(body)]) + body)
    answer = connection.recv(4)
    if answer != b"\x20\x02\0\0":
        raise RuntimeError(f"CONNACK was {answer!r}")
    return connection
