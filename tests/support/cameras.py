"""A camera thread with a writer behind it, and cameras that are one end of a socket pair."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway_native import camera_thread
from gateway_native.batch import Row
from gateway_native.camera_thread import Camera, CameraThread

from tests.support.native import PATIENCE_S, wait_until
from tests.support.recording import RING_BYTES, Recording
from tests.support.rtp_packets import PAYLOAD_TYPE, Packet

RING = "cameras.native"


class Cameras:
    """The thread, and everything that it said so far."""

    def __init__(self, recording: Recording, **options: int) -> None:
        self.recording = recording
        self.ring = recording.ring(RING)
        self.native = CameraThread(self.ring, **options)
        self.said: list[tuple[int, int, int, bytes]] = []
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self.native.run)
        self._thread.start()

    def close(self) -> None:
        self.native.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        for each in self._sockets:
            each.close()

    def camera(self, name: str = "gate", **options: int) -> Camera:
        return Camera(name.encode(), self.ring, self.recording.partition(name), **options)

    def connect(self, camera: Camera, **options: Any) -> tuple[socket.socket, int]:
        """The camera's end of a connection, and its handle."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(PATIENCE_S)
        self._sockets.append(theirs)
        options = {"codec": "h264", "payload_type": PAYLOAD_TYPE, **options}
        return theirs, self.native.add(ours.detach(), camera, **options)

    def wait_for(self, kind: int, handle: int | None = None) -> tuple[int, int, int, bytes]:
        """The oldest event of this kind that was not waited for before."""
        found: list[tuple[int, int, int, bytes]] = []

        def is_there() -> bool:
            self.said += self.native.events()
            found.extend(each for each in self.said if each[0] == kind and handle in (None, each[1]))
            return bool(found)

        wait_until(is_there, f"event {kind}; there were {self.said}")
        self.said.remove(found[0])
        return found[0]

    def remove(self, handle: int) -> None:
        """Until all that it sent is in the ring."""
        self.native.remove(handle)
        self.wait_for(camera_thread.CLOSED, handle)


@contextmanager
def cameras(
    directory: Path, *, ring_bytes: int = RING_BYTES, start: bool = True, **options: int
) -> Iterator[tuple[Cameras, Recording]]:
    """A running thread; with start=False nothing takes the records."""
    recording = Recording(directory, ring_bytes=ring_bytes, start=start)
    found = Cameras(recording, **options)
    try:
        yield found, recording
    finally:
        found.close()
        recording.close()


def send(to: socket.socket, sent: Iterable[Packet | bytes]) -> None:
    """All of it, in one piece."""
    to.sendall(b"".join(each if isinstance(each, bytes) else each.frame() for each in sent))


def values(rows: Sequence[Row]) -> list[bytes]:
    return [row[3] or b"" for row in rows]


def headers(row: Row) -> dict[str, str]:
    return {name: value.decode("ascii") for name, value in row[4]}
