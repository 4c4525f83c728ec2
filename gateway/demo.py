"""``gateway demo``: a whole site on one machine for a few seconds, then everything that was recorded, read back.

    simulated sensors ── MQTT ──►┐
                                 ├─ the gateway, in this process ──► the log ──► counts, readings, a picture, a clip
    simulated cameras ── RTSP ──►┘

The simulators are processes of their own: encoding video and playing a thousand sensors must not compete with the
gateway for one interpreter. They end when this process does, however it ends, because their stdin closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gateway.clock import NS_PER_MS, NS_PER_S, format_size, monotonic_ns, realtime_ns
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from rich.table import Table

    from gateway.app import App
    from gateway.config import Config

SITE = "demo"
TELEMETRY = "telemetry"
CAMERAS = ("gate-1", "gate-2")
SENSORS = 1_000
REFRESH_S = 0.25
# Without a terminal a line is written now and then instead of a table that moves.
LINE_EVERY_S = 5.0
SIMULATOR_START_S = 30.0
SIMULATOR_STOP_S = 5.0


@dataclass
class Outcome:
    """What the recording part of the demo tells the replaying part."""

    started_ns: int
    ended_ns: int
    interrupted: bool
    simulated: dict[str, dict[str, Any]] = field(default_factory=dict)  # final counters of each simulator


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def claim_directory(directory: Path, timezone: str) -> None:
    """Makes it the demo's data directory, or takes over that of an earlier demo; never a real site's.

    Raises GatewayError, FormatError or LockedError when it is something else or in use.
    """
    from gateway.log.layout import META_FILE, prepare, read_meta
    from gateway.log.lock import DataLock

    directory.mkdir(parents=True, exist_ok=True)
    with DataLock(directory):
        if (directory / META_FILE).exists() and read_meta(directory).site != SITE:
            raise GatewayError(f"{directory} holds the data of a real site; name another directory with --data.")
        prepare(directory, SITE, timezone)


def make_config(directory: Path, mqtt_port: int, camera_urls: dict[str, str], timezone: str) -> Config:
    from gateway.config import from_dict

    return from_dict(
        {
            "data": str(directory.absolute()),
            "site": {"name": SITE, "timezone": timezone},
            # A demo deletes nothing, also where the disk is nearly full.
            "disk": {"reserve": "0B"},
            "streams": {name: {"when_full": "refuse"} for name in (TELEMETRY, *camera_urls)},
            "mqtt": {
                "listeners": {
                    "devices": {
                        "bind": f"127.0.0.1:{mqtt_port}",
                        "routes": [{"filter": "#", "stream": TELEMETRY}],
                    }
                }
            },
            "cameras": {name: {"url": url} for name, url in camera_urls.items()},
        }
    )


async def record(directory: Path, seconds: float, timezone: str, log: IO[str]) -> Outcome:
    """Runs simulators and gateway for so long, or until SIGINT or SIGTERM, showing what happens."""
    from gateway.app import App

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    mqtt_port = free_port()
    try:
        async with contextlib.AsyncExitStack() as stack:
            names = [argument for name in CAMERAS for argument in ("--name", name)]
            cameras = await stack.enter_async_context(
                simulator("camera", *names, "--port", "0", "--timezone", timezone, log=log)
            )
            config = make_config(directory, mqtt_port, dict(cameras.ready["cameras"]), timezone)
            app = App(config)
            await app.start()
            started_ns = realtime_ns()
            try:
                sensors = await stack.enter_async_context(
                    simulator(
                        "sensors",
                        "--to",
                        f"mqtt://127.0.0.1:{mqtt_port}",
                        "--count",
                        str(SENSORS),
                        "--qos",
                        "1",
                        log=log,
                    )
                )
                await _show_until(app, seconds, ended)
                # The sensors stop first and wait for their acknowledgements: the counts can then be compared.
                simulated = {"sensors": await sensors.finish()}
            finally:
                await app.stop()
            simulated["cameras"] = await cameras.finish()
            return Outcome(started_ns, realtime_ns(), ended.is_set(), simulated)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


# --- simulators ------------------------------------------------------------------------------------------------------


class Simulator:
    """A ``gateway simulate`` process: says on its first line that it is ready, on its last what it has done."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self._process = process
        self.ready = ready

    async def finish(self) -> dict[str, Any]:
        """Ends it by closing its stdin. Returns its final counters, empty if it does not end in time."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        report: dict[str, Any] = {}
        try:
            async with asyncio.timeout(SIMULATOR_STOP_S):
                async for line in process.stdout:
                    report = json.loads(line)
                await process.wait()
        except (TimeoutError, ValueError):
            await self.kill()
        return report

    async def kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def simulator(kind: str, *arguments: str, log: IO[str]) -> AsyncIterator[Simulator]:
    """Starts one and waits until it is ready. Raises GatewayError if it never is."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "gateway.cli", "simulate", kind, *arguments, "--json", "--until-eof"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        start_new_session=True,  # Ctrl-C is for this process, which ends the others in order
    )
    started = Simulator(process, {})
    try:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(SIMULATOR_START_S):
                line = await process.stdout.readline()
            started.ready = json.loads(line)
        except (TimeoutError, ValueError):
            raise GatewayError(f"The simulated {kind} did not start; {log.name} says why.") from None
        yield started
    finally:
        await started.kill()


# --- what happens, as it happens -------------------------------------------------------------------------------------


@dataclass
class _Row:
    """One stream between two looks at it."""

    records: int = 0
    bytes: int = 0
    lag_records: int = 0
    lost: int = 0
    records_per_s: float = 0.0
    bytes_per_s: float = 0.0


@dataclass
class Look:
    """What there is to see at one moment."""

    rows: dict[str, _Row]
    commits_per_s: float
    sync_ms: float  # mean, of the last two seconds

    @property
    def disk(self) -> str:
        return f"{self.commits_per_s:,.0f} commits/s, {self.sync_ms:.1f} ms each until the disk has them"


class Meter:
    """Turns counters into rates, over the last two seconds or so."""

    SPAN_NS = 2 * NS_PER_S

    def __init__(self, app: App) -> None:
        self._app = app
        self._history: list[tuple[int, dict[str, int], dict[str, _Row]]] = []

    def look(self) -> Look:
        statistics = self._app.statistics()
        rows = {name: self._row(name, state) for name, state in sorted(statistics["streams"].items())}
        for name, source in self._app.config.sources().items():
            stream = getattr(source, "stream", TELEMETRY)
            if stream in rows:
                rows[stream].lost += int(statistics["sources"].get(name, {}).get("lost", 0))
        self._history.append((monotonic_ns(), statistics["writer"], rows))
        while len(self._history) > 2 and self._history[-1][0] - self._history[1][0] >= self.SPAN_NS:
            del self._history[0]
        return self._rates()

    def _rates(self) -> Look:
        """Between the oldest look and the newest."""
        (since_ns, writer_before, before), (now_ns, writer, rows) = self._history[0], self._history[-1]
        elapsed_s = max(now_ns - since_ns, 1) / NS_PER_S
        for name, row in rows.items():
            earlier = before.get(name, _Row())
            row.records_per_s = (row.records - earlier.records) / elapsed_s
            row.bytes_per_s = (row.bytes - earlier.bytes) / elapsed_s
        commits = writer["commits"] - writer_before["commits"]
        sync_ms = (writer["sync_ns"] - writer_before["sync_ns"]) / max(commits, 1) / NS_PER_MS
        return Look(rows, commits / elapsed_s, sync_ms)

    def _row(self, name: str, state: dict[str, Any]) -> _Row:
        recovered = self._app.engine.recovered.get(name)
        first = recovered.next_offset if recovered is not None else 0
        lag = max(0, first + state["records"] - max(state["durable_offset"], first))
        return _Row(state["records"], state["bytes"], lag, state["lost"])


def _table(look: Look, left_s: float) -> Table:
    from rich.table import Table

    table = Table(title=f"gateway demo: {left_s:.0f} s left", title_justify="left", caption=look.disk)
    table.caption_justify = "left"
    table.add_column("stream", no_wrap=True, min_width=10)
    for heading, width in (("records", 9), ("records/s", 9), ("bytes/s", 11), ("lag to durable", 15), ("lost", 5)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for name, row in look.rows.items():
        lost = f"[red]{row.lost:,}[/red]" if row.lost else "0"
        rate = f"{format_size(row.bytes_per_s)}/s"
        table.add_row(name, f"{row.records:,}", f"{row.records_per_s:,.0f}", rate, f"{row.lag_records:,} records", lost)
    return table


def _line(look: Look, left_s: float) -> str:
    parts = [
        f"{name} {row.records:,} records ({row.records_per_s:,.0f}/s, {format_size(row.bytes_per_s)}/s, "
        f"{row.lag_records:,} not yet durable, {row.lost:,} lost)"
        for name, row in look.rows.items()
    ]
    return f"{left_s:4.0f} s left: " + "; ".join(parts) + f"; {look.disk}"


async def _show_until(app: App, seconds: float, ended: asyncio.Event) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    meter = Meter(app)
    deadline_ns = monotonic_ns() + int(seconds * NS_PER_S)
    next_line_ns = monotonic_ns() + NS_PER_S
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None
        while (left_ns := deadline_ns - monotonic_ns()) > 0 and not ended.is_set():
            look = meter.look()
            if live is not None:
                live.update(_table(look, left_ns / NS_PER_S), refresh=True)
            elif monotonic_ns() >= next_line_ns:
                next_line_ns += int(LINE_EVERY_S * NS_PER_S)
                print(_line(look, left_ns / NS_PER_S), flush=True)  # noqa: T201  # the demo talks to people
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), min(REFRESH_S, left_ns / NS_PER_S))


def run_recording(directory: Path, seconds: float, timezone: str) -> Outcome:
    """Records into the directory, which is claimed; the gateway's own log goes to ``gateway.log`` in it."""
    import uvloop

    from gateway import logs

    with (directory / "gateway.log").open("a", encoding="utf-8") as log:
        logs.configure("text", stream=log)
        try:
            return uvloop.run(record(directory, seconds, timezone, log))
        finally:
            logging.getLogger("gateway").handlers.clear()
