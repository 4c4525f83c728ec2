"""A broker that keeps its half of one QoS 2 session on disk: `python -m tests.support.exact_broker PORT FILE`.

Mosquitto writes its sessions down now and then, so that a kill takes it back in time, and it repeats what no client can
tell from something new. This one syncs each step before anybody can know of it (MQTT 5 section 4.3.3, the sender). It
has one client, speaks MQTT 3.1.1, and publishes the numbers 0, 1, 2 … to it as fast as they are taken.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.integration.peers import wait_for_port
from tests.support.exact_publisher import PUBREC, ExactPublisher
from tests.support.gateway_process import ROOT, environment, free_port

CONNECT, SUBSCRIBE, PINGREQ = 0x10, 0x82, 0xC0
PUBACKS = (0x50, 0x70)
LOOK_S = 0.05
PATIENCE_S = 60.0
TOPIC = "load/0"


class KeptSession(ExactPublisher):
    """The sender's half. Its journal has a line for each step: s subscribed, p published, r received, c complete."""

    def __init__(self, path: Path, *, window: int = 50) -> None:
        super().__init__("", TOPIC, window=window)
        self.subscribed = False
        lines = path.read_bytes() if path.exists() else b""
        whole = lines[: lines.rfind(b"\n") + 1]  # the last one may be torn, and then nobody knows of it
        for line in whole.decode().splitlines():
            self._replay(*line.split())
        self._journal = path.open("ab")
        self._journal.truncate(len(whole))

    def _replay(self, step: str, *numbers: str) -> None:
        values = [int(number) for number in numbers]
        if step == "s":
            self.subscribed = True
        elif step == "p":
            self._published[values[0]] = values[1]
            self._packet_id, self.sent = values[0], values[1] + 1
        elif step == "r":
            self._releasing[values[0]] = self._published.pop(values[0])
        else:
            del self._releasing[values[0]]

    def _write(self, *lines: str) -> None:
        self._journal.write("".join(f"{line}\n" for line in lines).encode())

    def sync(self) -> None:
        """Call before anything is sent."""
        self._journal.flush()
        os.fdatasync(self._journal.fileno())

    def subscribe(self) -> None:
        self.subscribed = True
        self._write("s")

    def more(self) -> bytes:
        before = set(self._published)
        packets = super().more()
        self._write(*(f"p {key} {number}" for key, number in self._published.items() if key not in before))
        return packets

    def take(self, packet: bytes) -> bytes:
        answer = super().take(packet)
        self._write(f"{'r' if packet[0] == PUBREC else 'c'} {int.from_bytes(packet[2:], 'big')}")
        return answer


class Server:
    """One client at a time, until SIGTERM came and all is complete."""

    def __init__(self, port: int, session: KeptSession) -> None:
        self._session = session
        self._ending = False
        signal.signal(signal.SIGTERM, self._end)
        self._listening = socket.create_server(("127.0.0.1", port))
        self._listening.settimeout(LOOK_S)

    def _end(self, *_arguments: object) -> None:
        self._ending = True

    @property
    def _done(self) -> bool:
        return bool(self._session.fault) or (self._ending and self._session.idle)

    def run(self) -> None:
        while not self._done:
            with contextlib.suppress(TimeoutError, ConnectionError):
                client, _ = self._listening.accept()
                with client:
                    client.settimeout(LOOK_S)
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        received, speaking = b"", False
        while not self._done:
            with contextlib.suppress(TimeoutError):
                part = client.recv(65_536)
                if not part:
                    return
                received += part
            answers = b""
            while len(received) >= 2 and len(received) >= 2 + received[1]:
                packet, received = received[: 2 + received[1]], received[2 + received[1] :]
                answers += self._answer(packet)
                speaking = speaking or packet[0] == SUBSCRIBE or (packet[0] == CONNECT and self._session.subscribed)
            if speaking and not self._ending:
                answers += self._session.more()
            self._session.sync()
            client.sendall(answers)

    def _answer(self, packet: bytes) -> bytes:
        session = self._session
        if packet[0] == CONNECT:
            if packet[8] != 4:
                return b"\x20\x02\0\1"  # not this version
            return b"\x20\x02\1\0" + session.resend() if session.subscribed else b"\x20\x02\0\0"
        if packet[0] == SUBSCRIBE:
            session.subscribe()
            return b"\x90\x03" + packet[2:4] + b"\2"
        if packet[0] in PUBACKS:
            return session.take(packet)
        return b"\xd0\0" if packet[0] == PINGREQ else b""


class ExactBroker:
    """Such a broker as a process of its own; started, killed and ended by a test."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.journal = directory / "session"
        self._log = directory / "broker.err"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.exact_broker", str(self.port), str(self.journal)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, env=environment(), cwd=ROOT)
        wait_for_port(self.port, self._process)

    @property
    def begun(self) -> int:
        """Messages that it has, or had: all that may be recorded."""
        return sum(line.startswith(b"p ") for line in self.journal.read_bytes().splitlines())

    def kill(self) -> None:
        """kill -9, if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    def finish(self) -> None:
        """Begin nothing more, and wait until all is complete."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(PATIENCE_S) == 0, self._log.read_text()
        self._process = None


if __name__ == "__main__":
    kept = KeptSession(Path(sys.argv[2]))
    Server(int(sys.argv[1]), kept).run()
    sys.exit(kept.fault)
