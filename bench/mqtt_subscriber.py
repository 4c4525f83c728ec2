"""Does the subscriber take what a broker can give, and at what price?

QoS 0, 64 B of payload, behind a Mosquitto that is offered all it takes. Each round: two readers that only receive and
discard, of which the one that gets more counts; the gateway, whose messages count when durable; and a bare aiomqtt loop
that discards, which is offered more than it takes, but so little that it has a core of its own. All are processes of
their own on the same machine, so what the gateway spends is missing to the broker. CPU is the receiving process's, all
its threads.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gateway_native import watermark

from bench.common import Result, cpu_seconds, duration_s, median, mosquitto_broker, mosquitto_version, scratch, spread
from bench.reader import WARM_UP_S
from tests.support.gateway_process import GatewayProcess, environment

SECONDS = 6.0
QUICK_SECONDS = 2.0
PEER_OFFERED_PER_S = 20_000
START_TIMEOUT_S = 30.0
# What the broker keeps for a reader that is behind; what is over is dropped by it.
BROKER_SETTINGS = ("max_queued_messages 1000",)


@contextlib.contextmanager
def publishing(port: int, rate: float | None = None) -> Iterator[None]:
    """A sender at the broker, until the block ends."""
    arguments = [str(port), "3600", *([str(rate)] if rate else [])]
    sender = subprocess.Popen(
        [sys.executable, "-m", "bench.generator", *arguments], stdout=subprocess.DEVNULL, env=environment()
    )
    try:
        yield
    finally:
        sender.kill()
        sender.wait()


def reader_round(what: str, port: int, seconds: float, rate: float | None = None) -> tuple[float, float]:
    """Messages per second of a reader that discards, and µs of its CPU per message."""
    reader = subprocess.Popen(
        [sys.executable, "-m", "bench.reader", what, str(port), str(seconds)], stdout=subprocess.PIPE, env=environment()
    )
    time.sleep(1)
    with publishing(port, rate):
        messages, elapsed_s, cpu_s = map(float, reader.communicate(timeout=START_TIMEOUT_S + seconds)[0].split())
    return messages / elapsed_s, cpu_s / messages * 1e6


def gateway_round(directory: Path, port: int, seconds: float) -> tuple[float, float]:
    """Messages per second made durable, and µs of the gateway's CPU per message."""
    subscriber = f"""
[mqtt.subscribers.broker]
url = "mqtt://127.0.0.1:{port}"
clean_session = true
routes = [{{ filter = "plant/#", stream = "telemetry", qos = 0 }}]
"""
    with GatewayProcess(directory, extra_toml=subscriber) as process, publishing(port):
        process.start()
        assert process.process is not None
        first = durable(process)
        time.sleep(WARM_UP_S)
        first, start, cpu_s = durable(process), time.perf_counter(), cpu_seconds(process.process.pid)
        time.sleep(seconds)
        count, elapsed_s = durable(process) - first, time.perf_counter() - start
        cpu_us = (cpu_seconds(process.process.pid) - cpu_s) / count * 1e6
        process.end()
    return count / elapsed_s, cpu_us


def durable(process: GatewayProcess) -> int:
    """Records on the disk, at least one."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (found := watermark.read(process.data / "telemetry-0" / "watermark")) is None or not found.durable_offset:
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing arrives at the gateway\n{process.log}")
        time.sleep(0.01)
    return found.durable_offset


def run(rounds: int) -> Result:
    seconds = duration_s(SECONDS, QUICK_SECONDS)
    version = mosquitto_version()
    found: dict[str, list[tuple[float, float]]] = {"eager": [], "patient": [], "gateway": [], "aiomqtt": []}
    with scratch() as directory:
        for number in range(rounds):
            with mosquitto_broker(directory, *BROKER_SETTINGS) as port:
                for reader in ("eager", "patient"):
                    found[reader].append(reader_round(reader, port, seconds))
                found["gateway"].append(gateway_round(directory / str(number), port, seconds))
                found["aiomqtt"].append(reader_round("aiomqtt", port, seconds, PEER_OFFERED_PER_S))
    rates = {name: [rate for rate, _ in values] for name, values in found.items()}
    cpu_us = {name: median([cpu for _, cpu in values]) for name, values in found.items()}
    best = map(max, rates["eager"], rates["patient"])
    shares = [ours / theirs for ours, theirs in zip(rates["gateway"], best, strict=True)]
    result = Result((f"behind {version}", "messages/s, median (range)", "CPU µs/message", "counted when"))
    for name, shown, counted in (
        ("eager", "reader that discards", "received"),
        ("patient", "reader that discards and rests", "received"),
        ("gateway", "gateway subscriber, native", "durable"),
        ("aiomqtt", "aiomqtt loop that discards", "received"),
    ):
        result.rows.append((shown, spread(rates[name]), f"{cpu_us[name]:.2f}", counted))
    result.facts["share_of_the_better_reader"] = round(median(shares), 3)
    result.facts["aiomqtt_cpu_over_gateway_cpu"] = round(cpu_us["aiomqtt"] / cpu_us["gateway"], 1)
    return result
