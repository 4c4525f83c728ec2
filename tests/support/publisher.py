"""A QoS 1 publisher that remembers what it sent and what was acknowledged: the model that the log is compared with."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque

RECEIVE_BYTES = 65_536


class QosOnePublisher(threading.Thread):
    """Publishes the numbers 0, 1, 2 … as payloads, with at most `window` unacknowledged, until the connection ends.

    Nothing is ever sent twice. `acknowledged` is how many of the first messages were acknowledged: PUBACKs that come
    out of order end the thread with `fault` set.
    """

    def __init__(
        self, port: int, client_id: str, topic: str, *, first: int = 0, window: int = 200, padding: int = 0
    ) -> None:
        """padding: so many spaces follow each number."""
        super().__init__(daemon=True)
        self._client_id = client_id.encode()
        self._topic = topic.encode()
        self._window = window
        self._padding = b" " * padding
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._unacknowledged: deque[int] = deque()
        self._received = b""
        self._ending = threading.Event()
        self.first = first
        self.sent = first
        self.acknowledged = first
        self.fault: str | None = None

    def run(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError), self._socket:
            self._connect()
            while not self._ending.is_set():
                self._fill_window()
                self._take_acknowledgements()
                if self.fault:
                    return
            while self._unacknowledged and not self.fault:
                self._take_acknowledgements()
            self._socket.sendall(b"\xe0\x00")

    def finish(self) -> None:
        """Publish no more, wait for what is due, disconnect."""
        self._ending.set()
        self.join(20)

    def _connect(self) -> None:
        body = b"\0\4MQTT\4\2\0\0" + len(self._client_id).to_bytes(2, "big") + self._client_id
        self._socket.sendall(b"\x10" + bytes([len(body)]) + body)
        answer = self._socket.recv(4)
        if answer != b"\x20\x02\0\0":
            self.fault = f"CONNACK was {answer!r}"

    def _fill_window(self) -> None:
        packets = []
        while len(self._unacknowledged) < self._window:
            packet_id = self.sent % 65_535 + 1
            body = len(self._topic).to_bytes(2, "big") + self._topic + packet_id.to_bytes(2, "big")
            body += b"%d" % self.sent + self._padding
            packets.append(b"\x32" + _length(len(body)) + body)
            self._unacknowledged.append(packet_id)
            self.sent += 1
        self._socket.sendall(b"".join(packets))

    def _take_acknowledgements(self) -> None:
        received = self._socket.recv(RECEIVE_BYTES)
        if not received:
            raise ConnectionResetError
        self._received += received
        whole = len(self._received) // 4 * 4
        for at in range(0, whole, 4):
            packet = self._received[at : at + 4]
            expected = b"\x40\x02" + self._unacknowledged.popleft().to_bytes(2, "big")
            if packet != expected:
                self.fault = f"expected {expected!r}, received {packet!r}"
                return
            self.acknowledged += 1
        self._received = self._received[whole:]


def _length(value: int) -> bytes:
    """A variable byte integer of up to two bytes (MQTT 3.1.1, section 2.2.3)."""
    return bytes([value]) if value < 128 else bytes([value % 128 | 128, value // 128])
