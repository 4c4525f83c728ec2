"""Programs that no line of ours helped to write: found, started on free ports of 127.0.0.1, ended by process id.

Where a program is missing a test is skipped and says so; in CI, where they are all installed, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

HINTS = {
    "mosquitto": "apt install mosquitto",
    "mosquitto_pub": "apt install mosquitto-clients",
    "mosquitto_sub": "apt install mosquitto-clients",
    "kcat": "apt install kcat",
    "openssl": "apt install openssl",
    "mosquitto_passwd": "apt install mosquitto",
    "node": "apt install nodejs",
    "npm": "apt install npm",
}
# Debian keeps daemons where ordinary users have no PATH.
SYSTEM_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/sbin")
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


def missing(what: str, hint: str) -> None:
    """End this test: skipped on a developer's machine, failed in CI."""
    reason = f"{what} is not here ({hint})"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def find(program: str) -> str:
    """The path of a program; ends the test when it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_DIRECTORIES])
    found = shutil.which(program, path=path)
    if found is None:
        missing(program, HINTS.get(program, "install it"))
    assert found is not None
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Until somebody listens there; fails when the process ends first."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process is None or process.poll() is None, f"it ended at once with exit code {process.returncode}"
            assert time.monotonic() < deadline, f"nobody listens on port {port}"
            time.sleep(0.02)


class Mosquitto:
    """A Mosquitto broker with a directory of its own; can be stopped and started again on the same port."""

    def __init__(self, directory: Path, *, settings: Sequence[str] = (), port: int | None = None) -> None:
        """settings: further lines of mosquitto.conf, after the listener's."""
        self.port = port or free_port()
        self._program = find("mosquitto")
        self._process: subprocess.Popen[bytes] | None = None
        self._config = directory / "mosquitto.conf"
        self._log = directory / "mosquitto.log"
        directory.mkdir(parents=True, exist_ok=True)
        lines = [f"listener {self.port} 127.0.0.1", *settings]
        if not any(line.startswith("allow_anonymous") for line in lines):
            lines.append("allow_anonymous true")
        if os.geteuid() == 0:
            lines.append("user root")  # else it becomes another user, who may not read what the test wrote
        self._config.write_text("\n".join([*lines, "max_queued_messages 0", ""]))

    def start(self) -> Mosquitto:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([self._program, "-c", str(self._config)], stdout=log, stderr=log)
        wait_for_port(self.port, self._process)
        return self

    def stop(self, *, kill: bool = False) -> None:
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None


@contextmanager
def mosquitto(directory: Path, **options: object) -> Iterator[Mosquitto]:
    """A running broker, ended afterwards."""
    broker = Mosquitto(directory, **options)  # type: ignore[arg-type]
    try:
        yield broker.start()
    finally:
        broker.stop()


def mosquitto_pub(port: int, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run mosquitto_pub against a port of 127.0.0.1 until it ends."""
    command = [find("mosquitto_pub"), "-h", "127.0.0.1", "-p", str(port), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)
