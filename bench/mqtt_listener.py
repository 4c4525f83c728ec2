"""How many messages a second does one connection get into the log, compared with what users do today?

QoS 0, 64 B of payload, one connection. Gateway: counted when durable (a reader may see them), the time until the last
one is durable included. Peer: a bare aiomqtt loop that counts what Mosquitto delivers to it, and stores nothing. It is
offered more than it takes, at a rate that leaves it a core of its own.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import aiomqtt
from gateway_native import watermark

from bench.common import Result, cpu_seconds, median, mosquitto_broker, mosquitto_version, scratch, spread
from tests.support.gateway_process import GatewayProcess, environment

SECONDS = 4.0
PEER_OFFERED_PER_S = 20_000
DRAIN_TIMEOUT_S = 60.0


def generate(port: int, seconds: float, rate: float | None = None) -> subprocess.Popen[bytes]:
    arguments = [str(port), str(seconds), *([str(rate)] if rate else [])]
    return subprocess.Popen(
        [sys.executable, "-m", "bench.generator", *arguments], stdout=subprocess.PIPE, env=environment()
    )


def gateway_round(directory: Path) -> tuple[float, float]:
    """Messages per second made durable, and µs of the gateway's CPU per message."""
    with GatewayProcess(directory) as process:
        process.start()
        assert process.process is not None
        before_s = cpu_seconds(process.process.pid)
        generator = generate(process.port, SECONDS)
        mark = process.data / "telemetry-0" / "watermark"
        while watermark.read(mark) is None:
            time.sleep(0.001)
        start = time.perf_counter()
        sent = int(generator.communicate()[0])
        while (found := watermark.read(mark)) is None or found.durable_offset < sent:
            if time.perf_counter() - start > DRAIN_TIMEOUT_S:
                raise RuntimeError(f"{sent} sent, durable: {found}\n{process.log}")
            time.sleep(0.001)
        elapsed_s = time.perf_counter() - start
        cpu_us = (cpu_seconds(process.process.pid) - before_s) / sent * 1e6
        process.end()
    return sent / elapsed_s, cpu_us


async def aiomqtt_round(port: int) -> float:
    """Messages per second that a loop over aiomqtt's messages receives."""
    async with aiomqtt.Client("127.0.0.1", port, identifier="bench-aiomqtt") as client:
        await client.subscribe("plant/#", qos=0)
        generator = generate(port, SECONDS + 1, PEER_OFFERED_PER_S)
        received, start = 0, 0.0
        async for _ in client.messages:
            received += 1
            if received == 1:
                start = time.perf_counter()
            elif time.perf_counter() - start >= SECONDS:
                break
        elapsed_s = time.perf_counter() - start
    generator.kill()
    generator.communicate()
    await asyncio.sleep(0)
    return received / elapsed_s


def run(rounds: int) -> Result:
    broker_version = mosquitto_version()
    ours: list[float] = []
    cpu: list[float] = []
    theirs: list[float] = []
    with scratch() as directory:
        for number in range(rounds):
            rate, cpu_us = gateway_round(directory / str(number))
            ours.append(rate)
            cpu.append(cpu_us)
            with mosquitto_broker(directory) as port:
                theirs.append(asyncio.run(aiomqtt_round(port)))
    result = Result(("what", "messages/s, median (range)", "counted when"))
    result.rows.append(("gateway listener", spread(ours), "durable"))
    result.rows.append((f"aiomqtt behind {broker_version}", spread(theirs), "received"))
    result.facts["ratio"] = round(median(ours) / median(theirs), 1)
    result.facts["gateway_cpu_us_per_message"] = round(median(cpu), 3)
    return result
