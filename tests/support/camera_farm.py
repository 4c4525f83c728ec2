"""`gateway simulate camera` as a process of its own: cameras by the hundred that write down what they sent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from gateway.simulate.journal import Line, read_journal
from tests.support.gateway_process import environment

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0


class CameraFarm:
    """Cameras on 127.0.0.1 that play one loop of two seconds, 1080p25 at 4 Mbit/s unless said otherwise."""

    def __init__(
        self,
        directory: Path,
        count: int,
        *,
        size: str = "1920x1080",
        fps: int = 25,
        bit_rate: int = 4_000_000,
        codec: str = "h264",
        options: tuple[str, ...] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._options = (
            *("--count", str(count), "--loop", "2", "--size", size, "--fps", str(fps)),
            *("--bit-rate", str(bit_rate), "--codec", codec, *options),
        )
        self._starts = 0
        self._port = 0
        self.count = count
        self.fps = fps
        self.urls: dict[str, str] = {}
        self.process: subprocess.Popen[str] | None = None

    @property
    def journal(self) -> Path:
        """Of the process started last."""
        return self._directory / f"journal-{self._starts}"

    def sent(self) -> dict[str, list[Line]]:
        """What each camera has sent since the last start, in order."""
        found: dict[str, list[Line]] = defaultdict(list)
        for line in read_journal(self.journal):
            found[line.camera].append(line)
        return found

    def start(self) -> CameraFarm:
        """Begin to serve; once more on the same port after `kill` or `end`."""
        self._starts += 1
        command = [sys.executable, "-m", "gateway.cli", "simulate", "camera", *self._options]
        self.process = subprocess.Popen(
            [*command, "--port", str(self._port), "--journal", str(self.journal), "--json", "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready, "the simulated cameras do not start; their error is above"
        self.urls = json.loads(ready)["cameras"]
        self._port = int(next(iter(self.urls.values())).rpartition(":")[2].partition("/")[0])
        return self

    def end(self) -> dict[str, Any]:
        """Say goodbye to all clients; returns the farm's counters."""
        process, self.process = self.process, None
        assert process is not None
        said, _ = process.communicate(timeout=END_TIMEOUT_S)
        counters: dict[str, Any] = json.loads(said.splitlines()[-1])
        return counters

    def kill(self) -> None:
        """As a site that loses power; nothing happens if it does not run."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> CameraFarm:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()
