"""`gateway run` with a Kafka endpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import gateway
from tests.support import kafka_clients as clients
from tests.support.gateway_process import START_TIMEOUT_S, GatewayProcess, free_port


class Gateway(GatewayProcess):
    """One in which everybody may write to some streams."""

    def __init__(self, directory: Path, *, produce: Sequence[str] = ("orders",), settings: str = "") -> None:
        """settings: further lines of `[kafka]`."""
        self.kafka_port = free_port()
        names = ", ".join(f'"{name}"' for name in produce)
        kafka = f'[kafka]\nbind = "127.0.0.1:{self.kafka_port}"\nproduce = [{names}]\n{settings}\n'
        super().__init__(directory, extra_toml=f'{kafka}[disk]\nreserve = "1MiB"\n')

    def wait_until_it_accepts(self) -> None:
        super().wait_until_it_accepts()
        self.wait_for("listening source=kafka", times=self.log.count("listening source=devices"))

    def wait_for(self, event: str, *, times: int = 1) -> None:
        """Until it has logged that so often."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.log.count(event) < times:
            assert self.process is not None
            assert self.process.poll() is None, f"the gateway ended by itself:\n{self.log}"
            assert time.monotonic() < deadline, f"{event!r} is not logged {times} times:\n{self.log}"
            time.sleep(0.01)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.kafka_port}"

    def rows(self, stream: str = "telemetry") -> list[clients.Row]:
        """What the log itself says."""
        rows = gateway.open(self.data)[stream].read().rows()
        return [clients.Row(*row[:4], tuple(row[4])) for row in rows]
