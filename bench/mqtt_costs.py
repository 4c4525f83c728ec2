"""What does a message cost as the work grows: larger payloads, more topics, more connections?

QoS 0, as fast as the listener takes it, one of the three grown at a time. Gateway: until the last record is durable.
Peer: Mosquitto without a subscriber, which takes each message and forgets it: a broker's bare cost of hearing, until it
has answered a PINGREQ behind the last message. Both under the same native generator, whose own CPU is shown: on few
cores it takes part of the machine from whoever is measured. The more connections, the fewer messages come at a time
(2,000 divided by the connections, at least one): what grows there is the cost of a read for every few messages.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gateway_native import watermark

from bench.common import (
    Result,
    Skipped,
    connect_mqtt,
    cpu_seconds,
    duration_s,
    median,
    mosquitto_process,
    mosquitto_version,
    scratch,
)
from bench.disk import free_bytes
from bench.native import load_module
from tests.support.gateway_process import GatewayProcess

PAYLOADS = (16, 64, 256, 1_024, 4_096, 16_384, 65_536)
TOPICS = (1, 1_000, 100_000, 1_000_000)
CONNECTIONS = (1, 10, 100, 1_000, 10_000)
DRAIN_TIMEOUT_S = 60.0
ROUND_BYTES_MAX = 3 * 2**30
# What the log adds to a small record, and the topic.
RECORD_BYTES = 64


class Case(NamedTuple):
    payload_bytes: int = 64
    topics: int = 1_000
    connections: int = 1


class Round(NamedTuple):
    messages_per_s: float
    cpu_us: float  # of the process that receives, per message
    generator_us: float  # of CPU, per message
    peak_mib: float


def cases() -> list[Case]:
    """Each of the three grown alone, from the same ordinary case."""
    grown = [
        *(Case(payload_bytes=size) for size in PAYLOADS),
        *(Case(topics=count) for count in TOPICS),
        *(Case(connections=count) for count in CONNECTIONS),
    ]
    return list(dict.fromkeys(grown))


@contextlib.contextmanager
def connected(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many connections whose CONNECT was accepted."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < count + 100:
        raise Skipped(f"{count} connections need a hard limit of open files above {hard}")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect_mqtt(port, f"bench-{number}")) for number in range(count)]
        for connection in connections:
            connection.settimeout(None)
        yield connections


def measure(port: int, pid: int, case: Case, directory: Path, settled: Callable[[int], None]) -> Round:
    """One round against who listens on that port. settled: returns when so many messages are where they should be."""
    bytes_max = min(ROUND_BYTES_MAX, free_bytes(directory))
    messages_max = bytes_max // (case.payload_bytes + RECORD_BYTES)
    with connected(port, case.connections) as connections:
        descriptors = [connection.fileno() for connection in connections]
        publishers = load_module("flood").Flood(descriptors, case.payload_bytes, case.topics)
        before_s, own_s = cpu_seconds(pid), time.thread_time()
        start = time.perf_counter()
        publishers.run(duration_s(4.0, 1.0), messages_max)
        own_s = time.thread_time() - own_s
        settled(publishers.messages)
        elapsed_s = time.perf_counter() - start
        cpu_s = cpu_seconds(pid) - before_s
    count = publishers.messages
    return Round(count / elapsed_s, cpu_s / count * 1e6, own_s / count * 1e6, peak_mib(pid))


def peak_mib(pid: int) -> float:
    """The most memory the process has had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return kib / 1024


def gateway_round(directory: Path, case: Case) -> Round:
    with GatewayProcess(directory) as process:
        process.start()
        assert process.process is not None
        mark = process.data / "telemetry-0" / "watermark"

        def durable(count: int) -> None:
            deadline = time.monotonic() + DRAIN_TIMEOUT_S
            while (found := watermark.read(mark)) is None or found.durable_offset < count:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{count} sent, durable: {found}\n{process.log}")
                time.sleep(0.001)

        found = measure(process.port, process.process.pid, case, directory, durable)
        process.end()
    return found


def mosquitto_round(directory: Path, case: Case) -> Round:
    with mosquitto_process(directory) as (port, pid):
        return measure(port, pid, case, directory, lambda count: None)


def middle(rounds: list[Round]) -> Round:
    return Round(*(median(list(values)) for values in zip(*rounds, strict=True)))


def run(rounds: int) -> Result:
    version = mosquitto_version()
    result = Result(
        ("payload", "topics", "connections", "gateway messages/s", "MB/s", "CPU µs", "peak MiB", "generator CPU µs",
         "mosquitto messages/s", "CPU µs", "ratio")
    )  # fmt: skip
    costs: dict[Case, float] = {}
    for case in cases():
        ours, theirs = [], []
        for _ in range(rounds):
            with scratch() as directory:
                ours.append(gateway_round(directory / "gateway", case))
                theirs.append(mosquitto_round(directory, case))
        us, them = middle(ours), middle(theirs)
        costs[case] = us.cpu_us
        result.rows.append(
            (f"{case.payload_bytes:,} B", f"{case.topics:,}", f"{case.connections:,}", f"{us.messages_per_s:,.0f}",
             f"{us.messages_per_s * case.payload_bytes / 1e6:,.0f}", f"{us.cpu_us:.2f}", f"{us.peak_mib:.0f}",
             f"{us.generator_us:.2f}", f"{them.messages_per_s:,.0f}", f"{them.cpu_us:.2f}",
             f"{us.messages_per_s / them.messages_per_s:.1f}")
        )  # fmt: skip
    result.facts["peer"] = f"{version}, QoS 0, no subscriber: counted when it has heard, nothing is stored"
    result.facts["cpu_of_a_million_topics_to_one"] = round(costs[Case(topics=1_000_000)] / costs[Case(topics=1)], 2)
    result.facts["cpu_of_10000_connections_to_one"] = round(costs[Case(connections=10_000)] / costs[Case()], 2)
    return result
