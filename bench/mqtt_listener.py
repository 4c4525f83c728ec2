"""How many messages a second does one connection get into the log, compared with what users do today?

QoS 0, 64 B of payload, one connection. Gateway: counted when durable (a reader may see them), the time until the last
one is durable included. Peers: a subscriber that throws away what Mosquitto delivers to it; NATS JetStream's files,
once from the same MQTT packets, once in its own protocol, both synced every two minutes as it does by default, and
once synced as the gateway does it, before a message counts; and a bare aiomqtt loop that counts what Mosquitto
delivers. That one is offered more than it takes, at a rate that leaves it a core of its own; the others as much as
they take. fio says how fast the disk was in the same round.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import aiomqtt
from gateway_native import watermark

from bench.common import (
    PAYLOAD,
    Result,
    Skipped,
    connect_mqtt,
    cpu_seconds,
    duration_s,
    free_port,
    median,
    mosquitto_broker,
    mosquitto_version,
    publish_packets,
    scratch,
    spread,
)
from bench.disk import fio_write
from bench.publishing import jetstream_request, nats_connection, nats_server
from tests.support.gateway_process import GatewayProcess, environment

SECONDS = duration_s(4.0, 1.5)
PEER_OFFERED_PER_S = 20_000
DRAIN_TIMEOUT_S = 60.0
RECEIVE_BYTES = 2**20
NATS_BLOCK = 5_000
FIO_BLOCK_BYTES = 2**18


def generate(port: int, seconds: float, rate: float | None = None) -> subprocess.Popen[bytes]:
    arguments = [str(port), str(seconds), *([str(rate)] if rate else [])]
    return subprocess.Popen(
        [sys.executable, "-m", "bench.generator", *arguments], stdout=subprocess.PIPE, env=environment()
    )


class Round(NamedTuple):
    """messages, megabytes: made durable per second; cpu_us: of the gateway per message."""

    messages: float
    megabytes: float
    cpu_us: float


def gateway_round(directory: Path) -> Round:
    with GatewayProcess(directory) as process:
        process.start()
        assert process.process is not None
        before_s = cpu_seconds(process.process.pid)
        generator = generate(process.port, SECONDS)
        mark = process.data / "telemetry-0" / "watermark"
        while not (before := durable(mark)):
            time.sleep(0.001)
        start = time.perf_counter()
        sent = int(generator.communicate()[0])
        while durable(mark) < sent:
            if time.perf_counter() - start > DRAIN_TIMEOUT_S:
                raise RuntimeError(f"{sent} sent, durable: {durable(mark)}\n{process.log}")
            time.sleep(0.001)
        elapsed_s = time.perf_counter() - start
        cpu_us = (cpu_seconds(process.process.pid) - before_s) / sent * 1e6
        process.end()
        record_bytes = sum(file.stat().st_size for file in mark.parent.glob("*.log")) / sent
    rate = (sent - before) / elapsed_s
    return Round(rate, rate * record_bytes / 1e6, cpu_us)


def durable(mark: Path) -> int:
    """The stream's durable offset, 0 before there is one."""
    found = watermark.read(mark)
    return found.durable_offset if found is not None else 0


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


def discarding_round(port: int) -> float:
    """Messages per second that a subscriber gets which only counts bytes."""
    packet_bytes = len(publish_packets(1))  # all are of one size
    buffer = bytearray(RECEIVE_BYTES)
    with connect_mqtt(port, "bench-discarding") as subscriber:
        subscriber.sendall(b"\x82\x0c\0\1\0\7plant/#\0")
        assert subscriber.recv(5)[:1] == b"\x90"
        generator = generate(port, SECONDS + 1)
        received = subscriber.recv_into(buffer)
        start = time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            received += subscriber.recv_into(buffer)
        elapsed_s = time.perf_counter() - start
    generator.kill()
    generator.communicate()
    return received / packet_bytes / elapsed_s


def nats_mqtt_round(directory: Path) -> float:
    """Messages per second out of MQTT packets that are in the stream's files or the page cache."""
    directory.mkdir()
    mqtt_port = free_port()
    with nats_server(directory, mqtt_port=mqtt_port) as port, nats_connection(port) as asking:
        start = time.perf_counter()
        generator = generate(mqtt_port, SECONDS)
        generator.communicate()
        return _stored_per_second(asking, start)


def nats_round(directory: Path, sync_interval: str | None = None) -> float:
    """Messages per second that are in the stream's files or, unless synced, the page cache. Drops are not counted."""
    block = b"PUB plant.1 %d\r\n%s\r\n" % (len(PAYLOAD), PAYLOAD) * NATS_BLOCK
    directory.mkdir()
    with (
        nats_server(directory, sync_interval=sync_interval) as port,
        nats_connection(port) as publisher,
        nats_connection(port) as asking,
    ):
        start = time.perf_counter()
        while time.perf_counter() - start < SECONDS:
            publisher.sendall(block)
        return _stored_per_second(asking, start)


def _stored_per_second(asking: socket.socket, start: float) -> float:
    """Once nothing more is added, since what it still works off belongs to it; a long queue is not waited for."""
    stored, before, elapsed_s = _stored(asking), -1, 0.0
    while stored != before and elapsed_s < 3 * SECONDS:
        elapsed_s = time.perf_counter() - start
        time.sleep(0.1)
        stored, before = _stored(asking), stored
    return stored / elapsed_s


def _stored(connection: socket.socket) -> int:
    state: dict[str, int] = jetstream_request(connection, "$JS.API.STREAM.INFO.bench", {})["state"]
    return state["messages"]


# NATS as: row, what counts as stored, name of the ratio.
NATS_WAYS = {
    "mqtt": ("NATS JetStream, files, over MQTT", "in the page cache", "ratio_to_nats_mqtt"),
    "default": ("NATS JetStream, files", "in the page cache", "ratio_to_nats_jetstream"),
    "always": ("NATS JetStream, files, sync_interval always", "durable", "ratio_to_nats_durable"),
}


def nats_rounds(directory: Path, number: int) -> dict[str, float]:
    """One round of each way. Raises Skipped when there is no server."""
    return {
        "mqtt": nats_mqtt_round(directory / f"nats-mqtt-{number}"),
        "default": nats_round(directory / f"nats-{number}"),
        "always": nats_round(directory / f"nats-always-{number}", "always"),
    }


def run(rounds: int) -> Result:
    broker_version = mosquitto_version()
    rows: list[Round] = []
    disk: list[float] = []
    discarded: list[float] = []
    stored: dict[str, list[float]] = {way: [] for way in NATS_WAYS}
    received: list[float] = []
    skipped: str | None = None
    with scratch() as directory:
        for number in range(rounds):
            rows.append(gateway_round(directory / str(number)))
            disk.append(fio_write(directory, FIO_BLOCK_BYTES, SECONDS) / 1e6)
            with mosquitto_broker(directory) as port:
                discarded.append(discarding_round(port))
                received.append(asyncio.run(aiomqtt_round(port)))
            try:
                for way, rate in nats_rounds(directory, number).items():
                    stored[way].append(rate)
            except Skipped as reason:
                skipped = str(reason)
    ours = [row.messages for row in rows]
    result = Result(("what", "messages/s, median (range)", "counted when"))
    result.rows.append(("gateway listener", spread(ours), "durable"))
    result.rows.append((f"{broker_version}, subscriber that discards", spread(discarded), "received"))
    result.facts["ratio_to_mosquitto"] = round(median(ours) / median(discarded), 1)
    for way, (what, counted, ratio) in NATS_WAYS.items():
        if stored[way]:
            result.rows.append((what, spread(stored[way]), counted))
            result.facts[ratio] = round(median(ours) / median(stored[way]), 1)
    if skipped:
        result.facts["skipped"] = skipped
    result.rows.append((f"aiomqtt behind {broker_version}", spread(received), "received"))
    result.facts["ratio_to_aiomqtt"] = round(median(ours) / median(received), 1)
    result.facts["gateway_cpu_us_per_message"] = round(median([row.cpu_us for row in rows]), 3)
    result.facts["gateway_mb_per_s"] = [round(row.megabytes) for row in rows]
    result.facts["fio_mb_per_s"] = [round(rate) for rate in disk]
    return result
