"""An intake thread with a writer behind it, driven by a test instead of an event loop."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway_native import intake, mqtt

from tests.support.mqtt import connect, make_listener
from tests.support.native import wait_until
from tests.support.recording import RING_BYTES, Recording

CONNACK = b"\x20\x02\x00\x00"
TIMEOUT_S = 60.0


class Thread:
    """The thread, its listener, and everything that it said so far."""

    def __init__(self, group: mqtt.Group, **options: int) -> None:
        self.group = group
        self.intake = intake.Intake()
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1_024)
        self.socket.setblocking(False)
        options = {"sockets_max": 10_000, "patience_s": 60, **options}
        self.listener = self.intake.add_listener([self.socket.fileno()], group, **options)
        self.events: list[tuple[int, int, int, int, bytes]] = []
        self._clients: list[socket.socket] = []
        self._thread = threading.Thread(target=self.intake.run)
        self._thread.start()

    def close(self) -> None:
        self.intake.remove_listener(self.listener)
        wait_until(lambda: self.intake.settled, "the listener is gone")
        self.intake.forget_listener(self.listener)
        for each in (self.socket, *self._clients):
            each.close()
        self.intake.stop()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def client(self, hello: bytes = b"") -> socket.socket:
        """A blocking socket to the listener."""
        found = socket.create_connection(self.socket.getsockname(), timeout=TIMEOUT_S)
        self._clients.append(found)
        if hello:
            found.sendall(hello)
        return found

    def opened(self, client_id: str = "c", **options: Any) -> tuple[socket.socket, int]:
        """A client whose CONNECT was accepted, and its handle."""
        client = self.client(connect(4, client_id))
        handle = self.wait_for(intake.PACKET)[2]
        self.accept(handle, **options)
        assert exactly(client, 4) == CONNACK
        return client, handle

    def accept(self, handle: int, **options: Any) -> None:
        wanted = {"version": 4, "inflight_max": 65_535, "patience_s": 60, **options}
        self.intake.send(handle, CONNACK)
        self.intake.open(self.listener, handle, **wanted)
        self.intake.resume(handle)

    def wait_for(self, kind: int, handle: int | None = None) -> tuple[int, int, int, int, bytes]:
        """The oldest event of this kind (of this connection), which is taken out of `events`."""
        found: list[tuple[int, int, int, int, bytes]] = []

        def look() -> bool:
            self.events += self.intake.events()
            found.extend([e for e in self.events if e[0] == kind and handle in (None, e[2])][:1])
            return bool(found)

        wait_until(look, f"event {kind}")
        self.events.remove(found[0])
        return found[0]

    def counter(self, name: str) -> int:
        return self.intake.counters(self.listener)[name]


@contextmanager
def thread(
    directory: Path,
    *,
    routes: Any = (("#", "telemetry"),),
    running: bool = True,
    ring_bytes: int = RING_BYTES,
    **options: int,
) -> Iterator[tuple[Thread, Recording]]:
    """(thread, recording); `running=False`: the writer is started by the test."""
    recording = Recording(directory, ring_bytes=ring_bytes, start=running)
    found = Thread(make_listener(recording, routes), **options)
    try:
        yield found, recording
    finally:
        found.close()
        recording.close()


def exactly(client: socket.socket, size: int) -> bytes:
    """So many bytes; fewer only at the end."""
    received = b""
    while len(received) < size and (part := client.recv(size - len(received))):
        received += part
    return received


def reset(client: socket.socket) -> None:
    """Close with RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
