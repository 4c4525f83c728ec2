"""A gateway as a process of its own, started and ended by tests. It listens on 127.0.0.1, on a port that was free."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tests' own environment, with the source tree first for child processes too."""
    paths = [str(ROOT), str(ROOT / "_native"), str(ROOT / "adapters")]
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])]),
        **(extra or {}),
    }


class GatewayProcess:
    """`gateway run` with one listener that records everything in the stream `telemetry`, or with a given TOML text."""

    def __init__(self, directory: Path, *, extra_toml: str = "", env: Mapping[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.data = directory / "data"
        self.port = free_port()
        self.config = directory / "gateway.toml"
        self.log_path = directory / "gateway.err"
        self.config.write_text(
            f"""
data = "{self.data}"
[mqtt.listeners.devices]
bind = "127.0.0.1:{self.port}"
routes = [{{ filter = "#", stream = "telemetry" }}]
{extra_toml}
""",
            encoding="utf-8",
        )
        self._env = environment(env)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> GatewayProcess:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "run", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=self._env,
            )
        if wait:
            self.wait_until_it_accepts()
        return self

    def wait_until_it_accepts(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self.process is not None
            assert self.process.poll() is None, f"the gateway ended by itself:\n{self.log}"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline, f"the gateway accepts no connection:\n{self.log}"
                time.sleep(0.02)
            else:
                return

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and return the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(END_TIMEOUT_S)
        self.process = None
        return code

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.process is not None:
            self.end(signal.SIGKILL)

    def __enter__(self) -> GatewayProcess:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()
