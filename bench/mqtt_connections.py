"""What do 10,000 connections cost that each publish three messages a second, QoS 1, compared with a bare echo server?

The same native generator, in the same run: against the gateway, which acknowledges what is on disk; against an epoll
loop that sends back what it reads (bench/acknowledged.pyx); and against Mosquitto, which stores nothing. The latency
that is allowed for: the echo's p99, a tick of the intake thread, linger, and 3 × the p99 of a bare loop of pwrite and
fdatasync with as many bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from bench.common import Result, cpu_seconds, duration_s, median, mosquitto_process, mosquitto_version, scratch
from bench.disk import p99, synced_writes
from bench.publishing import echo_publishers, echo_server, mqtt_publishers, open_files_max, resident_bytes
from tests.support.gateway_process import GatewayProcess

CONNECTIONS = 10_000
MESSAGES_PER_S = 3.0
WINDOW = 8
SECONDS, QUICK_SECONDS = 8.0, 2.0
WARM_UP_S = 1.0
CPU_RATIO_MAX = 1.5
KIB_PER_CONNECTION_MAX = 20
RECORD_BYTES = 100  # in the log, about
TICK_MS, LINGER_MS = 4.0, 5.0

Publishing = Callable[[int, int, int], AbstractContextManager[Any]]


class Figures:
    """Of each round."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cpu_share: list[float] = []
        self.generator_share: list[float] = []
        self.rate: list[float] = []
        self.p50_us: list[float] = []
        self.p99_us: list[float] = []
        self.bytes_per_connection: list[float] = []

    def measure(self, port: int, pid: int, publishing: Publishing) -> None:
        before = resident_bytes(pid)
        with publishing(port, CONNECTIONS, WINDOW) as publishers:
            publishers.run(WARM_UP_S, rate=CONNECTIONS * MESSAGES_PER_S)
            cpu_s = cpu_seconds(pid)
            publishers.run(duration_s(SECONDS, QUICK_SECONDS), rate=CONNECTIONS * MESSAGES_PER_S)
            elapsed_s = publishers.elapsed_ns / 1e9
            self.cpu_share.append((cpu_seconds(pid) - cpu_s) / elapsed_s)
            self.generator_share.append(publishers.cpu_ns / 1e9 / elapsed_s)
            self.rate.append(publishers.acknowledged / elapsed_s)
            self.p50_us.append(publishers.latency_us(0.5))
            self.p99_us.append(publishers.latency_us(0.99))
            self.bytes_per_connection.append((resident_bytes(pid) - before) / CONNECTIONS)

    def row(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{median(self.rate):,.0f}",
            f"{median(self.cpu_share):.1%}",
            f"{median(self.generator_share):.1%}",
            f"{median(self.p50_us) / 1e3:.2f} ms",
            f"{median(self.p99_us) / 1e3:.2f} ms",
            f"{median(self.bytes_per_connection) / 1024:.1f} KiB",
        )


def run(rounds: int) -> Result:
    open_files_max(CONNECTIONS + 2_000)
    ours, echo, broker = Figures("gateway"), Figures("bare epoll echo"), Figures(mosquitto_version())
    syncs_ms: list[float] = []
    with scratch() as directory:
        for number in range(rounds):
            settings = f"connections_max = {CONNECTIONS + 10}"
            with GatewayProcess(directory / f"gateway-{number}", extra_toml=settings) as process:
                process.start()
                assert process.process is not None
                ours.measure(process.port, process.process.pid, mqtt_publishers)
                process.end()
            rate = CONNECTIONS * MESSAGES_PER_S * RECORD_BYTES
            took = synced_writes(directory, rate, LINGER_MS / 1e3, duration_s(SECONDS, QUICK_SECONDS))
            syncs_ms.append(p99(took))
            with echo_server() as (port, pid):
                echo.measure(port, pid, echo_publishers)
            with mosquitto_process(directory, f"max_connections {CONNECTIONS + 10}") as (port, pid):
                broker.measure(port, pid, mqtt_publishers)
    columns = ("server", "acknowledged/s", "CPU", "generator's CPU", "p50", "p99", "memory a connection")
    result = Result(columns, [each.row() for each in (ours, echo, broker)])
    result.facts["cpu_ratio_to_echo"] = round(median(ours.cpu_share) / median(echo.cpu_share), 2)
    result.facts["cpu_ratio_wanted_at_most"] = CPU_RATIO_MAX
    allowed_ms = median(echo.p99_us) / 1e3 + TICK_MS + LINGER_MS + 3 * median(syncs_ms)
    result.facts["p99_of_a_bare_fdatasync_ms"] = round(median(syncs_ms), 2)
    result.facts["p99_wanted_at_most_ms"] = round(allowed_ms, 2)
    result.facts["memory_wanted_at_most_KiB"] = KIB_PER_CONNECTION_MAX
    return result
