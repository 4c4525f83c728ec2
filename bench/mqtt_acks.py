"""How many acknowledged messages a second do 16 connections get, by their window of unacknowledged publishes?

QoS 1, 64 B of payload; one native generator thread keeps every window full. What an acknowledgement means differs, and
stands beside each figure.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bench.common import Result, Skipped, duration_s, median, mosquitto_broker, mosquitto_version, scratch, spread
from bench.publishing import mqtt_publishers, nats_publishers, nats_server, nats_server_program
from tests.support.gateway_process import GatewayProcess

CONNECTIONS = 16
WINDOWS = (1, 20, 100, 1_000)
SECONDS, QUICK_SECONDS = 1.5, 0.5
WARM_UP_S = 0.3

Publishing = Callable[[int, int, int], AbstractContextManager[Any]]


class Figures:
    """Messages per second of each round."""

    def __init__(self, name: str, meaning: str) -> None:
        self.name, self.meaning = name, meaning
        self.rates: dict[int, list[float]] = {window: [] for window in WINDOWS}
        self.p99_us: dict[int, list[float]] = {window: [] for window in WINDOWS}

    def measure(self, port: int, publishing: Publishing) -> None:
        for window in WINDOWS:
            with publishing(port, CONNECTIONS, window) as publishers:
                publishers.run(WARM_UP_S)
                publishers.run(duration_s(SECONDS, QUICK_SECONDS))
                self.rates[window].append(publishers.acknowledged / publishers.elapsed_ns * 1e9)
                self.p99_us[window].append(publishers.latency_us(0.99))


def _gateway(figures: Figures, directory: Path) -> None:
    with GatewayProcess(directory) as process:
        process.start()
        figures.measure(process.port, mqtt_publishers)
        process.end()


def _mosquitto(figures: Figures, directory: Path) -> None:
    directory.mkdir()
    persistence = ("persistence true", f"persistence_location {directory}/", "max_inflight_messages 0", "user root")
    with mosquitto_broker(directory, *persistence) as port:
        figures.measure(port, mqtt_publishers)


def _nats(figures: Figures, directory: Path, sync_interval: str | None) -> None:
    directory.mkdir()
    with nats_server(directory, sync_interval=sync_interval) as port:
        figures.measure(port, nats_publishers)


def run(rounds: int) -> Result:
    ours = Figures("gateway", "on disk")
    broker = Figures(f"{mosquitto_version()}, persistence", "in memory; the file is written every half hour")
    always = Figures("NATS JetStream, sync_interval always", "on disk")
    default = Figures("NATS JetStream, default", "in the page cache; on disk within 2 minutes")
    peers = [ours, broker]
    with scratch() as directory:
        for number in range(rounds):
            _gateway(ours, directory / f"gateway-{number}")
            _mosquitto(broker, directory / f"mosquitto-{number}")
        try:
            nats_server_program()
        except Skipped as reason:
            skipped: str | None = str(reason)
        else:
            skipped = None
            for number in range(rounds):
                _nats(always, directory / f"always-{number}", "always")
                _nats(default, directory / f"default-{number}", None)
            peers += [always, default]
    return _result(peers, skipped)


def _result(peers: list[Figures], skipped: str | None) -> Result:
    result = Result(("window", "server", "acknowledged/s, median (range)", "p99", "acknowledged means"))
    for window in WINDOWS:
        for figures in peers:
            p99 = f"{median(figures.p99_us[window]) / 1e3:.1f} ms"
            result.rows.append((str(window), figures.name, spread(figures.rates[window]), p99, figures.meaning))
    for window in WINDOWS:
        result.facts[f"gateway_acknowledged_per_s_window_{window}"] = round(median(peers[0].rates[window]))
    if skipped is None:
        for window in WINDOWS:
            ratio = median(peers[0].rates[window]) / median(peers[2].rates[window])
            result.facts[f"ratio_to_nats_always_window_{window}"] = round(ratio, 1)
    else:
        result.facts["skipped"] = skipped
    return result
