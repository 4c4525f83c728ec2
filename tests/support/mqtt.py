"""MQTT packets written by hand from the standard, and a connection to the parser without any socket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway_native import mqtt

from tests.support.recording import Recording

PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"


def length(value: int) -> bytes:
    """A variable byte integer (MQTT 5, section 1.5.5)."""
    out = b""
    while True:
        value, digit = divmod(value, 128)
        out += bytes([digit | (0x80 if value else 0)])
        if not value:
            return out


def packet(first_byte: int, body: bytes = b"") -> bytes:
    return bytes([first_byte]) + length(len(body)) + body


def binary(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def text(value: str) -> bytes:
    return binary(value.encode())


def properties(*items: bytes) -> bytes:
    joined = b"".join(items)
    return length(len(joined)) + joined


def connect(
    version: int = 4,
    client_id: str = "c",
    *,
    flags: int = 0x02,
    keepalive: int = 60,
    props: Iterable[bytes] = (),
    rest: bytes = b"",
    name: bytes = b"MQTT",
) -> bytes:
    """CONNECT; `rest` is will, user name and password as the flags announce them."""
    middle = properties(*props) if version == 5 else b""
    body = binary(name) + bytes([version, flags]) + keepalive.to_bytes(2, "big") + middle + text(client_id) + rest
    return packet(0x10, body)


def publish(
    topic: bytes | str,
    payload: bytes = b"",
    *,
    qos: int = 0,
    packet_id: int = 0,
    retain: bool = False,
    dup: bool = False,
    version: int = 4,
    props: Iterable[bytes] = (),
) -> bytes:
    name = topic.encode() if isinstance(topic, str) else topic
    body = binary(name) + (packet_id.to_bytes(2, "big") if qos else b"")
    body += properties(*props) if version == 5 else b""
    return packet(0x30 | dup << 3 | qos << 1 | retain, body + payload)


def puback(packet_id: int, reason: int = 0) -> bytes:
    head = packet_id.to_bytes(2, "big")
    return packet(0x40, head + bytes([reason]) if reason else head)


def pubrec(packet_id: int, reason: int = 0) -> bytes:
    head = packet_id.to_bytes(2, "big")
    return packet(0x50, head + bytes([reason]) if reason else head)


def pubrel(packet_id: int, rest: bytes = b"") -> bytes:
    return packet(0x62, packet_id.to_bytes(2, "big") + rest)


def pubcomp(packet_id: int, reason: int = 0) -> bytes:
    head = packet_id.to_bytes(2, "big")
    return packet(0x70, head + bytes([reason]) if reason else head)


def session(*, durable: bool = False, inflight_max: int = 65_535) -> mqtt.Session:
    return mqtt.Session(b"test/c", b"c", durable=durable, inflight_max=inflight_max)


class Device(mqtt.Connection):
    """A connection whose bytes are lists: `send` is the wire towards the gateway, `received` what came back.

    Every CONNECT is accepted; other packets that the parser returns are in `packets`.
    """

    def __new__(cls, listener: mqtt.Group, **_options: object) -> Device:
        return super().__new__(cls, listener)

    def __init__(self, listener: mqtt.Group, *, version: int = 0, inflight_max: int = 65_535, **options: Any) -> None:
        self.received = b""
        self.packets: list[tuple[int, int, bytes]] = []
        self.fault: mqtt.RemoteFault | None = None
        self.write = self._write
        self.accept_version = version or 4
        self.inflight_max = inflight_max
        self.options = options  # of `open`
        if version:
            self.open(version=version, inflight_max=inflight_max, **options)

    def _write(self, data: bytes) -> None:
        self.received += data

    def attend(self) -> None:
        try:
            while (taken := self.take()) is not None:
                self.packets.append(taken)
                if taken[0] == 1 and not self.version:
                    self.open(version=self.accept_version, inflight_max=self.inflight_max, **self.options)
        except mqtt.RemoteFault as fault:
            self.fault = fault
            self.close()

    def send(self, data: bytes, chunk: int | None = None) -> None:
        """Hand over bytes, at most `chunk` at once; like a socket, not after the connection stopped reading."""
        view = memoryview(data)
        while view and not self.closed:
            assert not self.blocked, "a blocked connection is not read from"
            window = memoryview(self.get_buffer(65_536))
            assert len(window) > 0
            count = min(len(window), len(view), chunk or len(view))
            window[:count] = view[:count]
            view = view[count:]
            self.buffer_updated(count)


def make_listener(
    recording: Recording,
    routes: Iterable[tuple[str, str]] = (("plant/#", "telemetry"),),
    *,
    packet_bytes_max: int = 2**24,
    record_bytes_max: int = 2**24,
    kept_bytes_max: int = 2**26,
    clock_ns: int = 0,
) -> mqtt.Group:
    """A native listener with a ring of its own; routes are (filter, stream)."""
    table = mqtt.Routes([(topic_filter.encode(), recording.partition(stream)) for topic_filter, stream in routes])
    return mqtt.Group(
        recording.ring("test"),
        table,
        packet_bytes_max=packet_bytes_max,
        record_bytes_max=record_bytes_max,
        kept_bytes_max=kept_bytes_max,
        clock_ns=clock_ns,
    )


class Broker(Device):
    """The other side: `send` is what a broker sends to us. The group is one with `client=True`."""

    def __init__(self, group: mqtt.Group, *, version: int = 0, inflight_max: int = 65_535, **options: Any) -> None:
        self.passed: list[int] = []  # of each packet returned, what lies behind its body
        self.new: list[bool] = []  # of each publish returned, what `acknowledge` said
        super().__init__(group, version=version, inflight_max=inflight_max, **options)

    def attend(self) -> None:
        try:
            while (taken := self.take()) is not None:
                self.packets.append(taken)
                self.passed.append(self.passed_over)
                if taken[0] == 2:
                    self.open(version=self.accept_version, inflight_max=self.inflight_max, **self.options)
                elif taken[0] == 3:
                    topic_bytes = int.from_bytes(taken[2][:2], "big")
                    if taken[1] & 6:
                        packet_id = int.from_bytes(taken[2][2 + topic_bytes :][:2], "big")
                        self.new.append(self.acknowledge(packet_id, taken[1] >> 1 & 3, dup=bool(taken[1] & 8)))
        except mqtt.RemoteFault as fault:
            self.fault = fault
            self.close()
