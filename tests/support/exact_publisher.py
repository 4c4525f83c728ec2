"""A QoS 2 publisher that keeps its session across connections, as MQTT demands: the model the log is compared with."""

from __future__ import annotations

import contextlib
import socket
import threading

RECEIVE_BYTES = 65_536
PUBREC, PUBCOMP = 0x50, 0x70


class ExactPublisher:
    """Publishes the numbers 0, 1, 2 … as payloads with QoS 2, over any number of connections, each message until done.

    `sent` is how many have been begun, `received` those of which PUBREC came. `fault` says what a gateway did wrong.
    """

    def __init__(self, client_id: str, topic: str, *, window: int = 50) -> None:
        self._client_id = client_id.encode()
        self._topic = topic.encode()
        self._window = window
        self._published: dict[int, int] = {}  # packet identifier: number; PUBREC is awaited, in the order sent
        self._releasing: dict[int, int] = {}  # PUBCOMP is awaited
        self._packet_id = 0
        self._connected_once = False
        self.sent = 0
        self.received = 0
        self.completed = 0
        self.fault: str | None = None

    def start(self, port: int) -> Connection:
        """Go on over a new connection, in a thread of its own."""
        connection = Connection(self, port)
        connection.start()
        return connection

    def hello(self) -> bytes:
        """CONNECT for a lasting session."""
        body = b"\0\4MQTT\4\0\0\0" + len(self._client_id).to_bytes(2, "big") + self._client_id
        return b"\x10" + bytes([len(body)]) + body

    def again(self, connack: bytes) -> bytes:
        """What section 4.4 of the standard asks for after a reconnect."""
        expected = b"\x20\x02\1\0" if self._connected_once else b"\x20\x02\0\0"
        if connack != expected and not (not self._connected_once and connack == b"\x20\x02\1\0"):
            self.fault = f"CONNACK was {connack!r}, not {expected!r}"
        self._connected_once = True
        return self.resend()

    def resend(self) -> bytes:
        """Everything under way, once more."""
        publishes = [self._publish(packet_id, number, dup=True) for packet_id, number in self._published.items()]
        return b"".join(publishes + [self._release(packet_id) for packet_id in self._releasing])

    def more(self) -> bytes:
        """New messages, as many as the window allows."""
        packets = []
        while len(self._published) + len(self._releasing) < self._window:
            self._packet_id = self._packet_id % self._window + 1  # reused at once: the hardest case
            while self._packet_id in self._published or self._packet_id in self._releasing:
                self._packet_id = self._packet_id % self._window + 1
            self._published[self._packet_id] = self.sent
            packets.append(self._publish(self._packet_id, self.sent, dup=False))
            self.sent += 1
        return b"".join(packets)

    def take(self, packet: bytes) -> bytes:
        """An answer of the gateway's, and what to say to it."""
        packet_id = int.from_bytes(packet[2:], "big")
        if packet[0] == PUBREC and packet_id in self._published:
            self._releasing[packet_id] = self._published.pop(packet_id)
            self.received += 1
            return self._release(packet_id)
        if packet[0] == PUBCOMP and packet_id in self._releasing:
            del self._releasing[packet_id]
            self.completed += 1
            return b""
        self.fault = f"an answer to nothing: {packet!r}"
        return b""

    @property
    def idle(self) -> bool:
        """Everything begun is complete."""
        return not self._published and not self._releasing

    def _publish(self, packet_id: int, number: int, *, dup: bool) -> bytes:
        body = len(self._topic).to_bytes(2, "big") + self._topic + packet_id.to_bytes(2, "big") + b"%d" % number
        assert len(body) < 128
        return bytes([0x3C if dup else 0x34, len(body)]) + body

    @staticmethod
    def _release(packet_id: int) -> bytes:
        return b"\x62\2" + packet_id.to_bytes(2, "big")


class Connection(threading.Thread):
    """One connection of a publisher's, until it breaks or `finish` has waited for everything."""

    def __init__(self, publisher: ExactPublisher, port: int) -> None:
        super().__init__(daemon=True)
        self._publisher = publisher
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._ending = threading.Event()

    def run(self) -> None:
        publisher = self._publisher
        with contextlib.suppress(ConnectionError, TimeoutError), self._socket:
            self._socket.sendall(publisher.hello())
            received = b""
            while len(received) < 4:
                received += self._receive()
            self._socket.sendall(publisher.again(received[:4]))
            received = received[4:]
            while not publisher.fault and not (self._ending.is_set() and publisher.idle):
                answers = b"" if self._ending.is_set() else publisher.more()
                self._socket.sendall(answers)
                received += self._receive()
                whole = len(received) // 4 * 4
                answers = b"".join(publisher.take(received[at : at + 4]) for at in range(0, whole, 4))
                received = received[whole:]
                self._socket.sendall(answers)

    def finish(self) -> None:
        """Begin nothing more, and wait until all is complete."""
        self._ending.set()
        self.join(20)

    def _receive(self) -> bytes:
        part = self._socket.recv(RECEIVE_BYTES)
        if not part:
            raise ConnectionResetError
        return part
