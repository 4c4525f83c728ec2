"""What is fuzzed: one connection that gets arbitrary bytes, once as they are and once in pieces.

The first bytes of an input choose how the connection was opened and where its bytes are cut; the rest is what the peer
sends. Whatever it is, only RemoteFault may come of it, memory stays bounded, pieces change nothing, and what was taken
is answered in order.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_adapters.mqtt import protocol
from gateway_native import mqtt

from tests.support.mqtt import Device
from tests.support.stepped import SteppedRecording

OPTION_BYTES = 6
CUTS_MAX = 4
KEPT_BYTES_MAX = 2**18
TOPICS_BYTES_MAX = 80 * 2**20
CLOCK_NS = 1_790_000_000_000_000_000
SECOND_NS = 1_000_000_000
# The log on disk begins anew after so many inputs.
INPUTS_PER_RECORDING = 2_000
ROUNDS_MAX = 10_000
# Bits of the second option byte.
SESSION, DURABLE, ALIASES, ALLOW, CLIENT_HEADER, RATE, BROKER, RAW = (1 << bit for bit in range(8))

DECODERS = {1: protocol.decode_connect}
DECODERS_OF_VERSION = {
    8: protocol.decode_subscribe, 10: protocol.decode_unsubscribe, 14: protocol.decode_disconnect,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """All that can be seen of a connection from outside."""

    records: dict[str, int]
    answers: tuple[bytes, ...]
    pings: int
    packets: tuple[tuple[int, int, bytes], ...]
    fault: str | None
    unreleased: tuple[int, ...]


class Target:
    """Runs inputs, one after the other, on a writer of its own."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fuzz-mqtt-")
        self._recording: SteppedRecording | None = None
        self._inputs = 0

    def close(self) -> None:
        if self._recording is not None:
            self._recording.close()
        self._directory.cleanup()

    def run(self, data: bytes) -> None:
        """One input. Raises whatever should not have happened."""
        if len(data) < OPTION_BYTES:
            return
        if self._inputs % INPUTS_PER_RECORDING == 0:
            self._begin()
        self._inputs += 1
        options, sent = data[:OPTION_BYTES], data[OPTION_BYTES:]
        places = sorted({place % (len(sent) + 1) for place in options[2 : 2 + CUTS_MAX]} | {0, len(sent)})
        pieces = [sent[start:end] for start, end in itertools.pairwise(places)]
        whole = self._connection(options, [sent])
        assert self._connection(options, pieces) == whole, "pieces change the outcome"

    def _begin(self) -> None:
        if self._recording is not None:
            self._recording.close()
        self._recording = SteppedRecording(Path(self._directory.name) / str(self._inputs), ring_bytes=2**16)
        self._groups = {broker: self._group(broker) for broker in (False, True)}

    def _group(self, broker: bool) -> mqtt.Group:
        assert self._recording is not None
        streams = [self._recording.partition(name) for name in ("telemetry", "overflow", "releases", "other")]
        routes = mqtt.Routes(
            [(b"plant/+/+/#", b"{2}", b"{3}{topic}"), (b"plant/#", streams[0]), (b"noise/#", streams[3], None, True),
             (b"+", streams[0], b"{1}")],
            overflow=streams[1],
        )  # fmt: skip
        group = mqtt.Group(
            self._recording.ring(f"ring {broker}"), routes, packet_bytes_max=2**15, record_bytes_max=2**14,
            kept_bytes_max=KEPT_BYTES_MAX, clock_ns=CLOCK_NS, client=broker,
        )  # fmt: skip
        group.resolve = lambda name: streams[len(name) % 2]
        group.sessions_partition = streams[2]
        return group

    def _connection(self, options: bytes, pieces: list[bytes]) -> Outcome:
        flags = options[1]
        group = self._groups[bool(flags & BROKER)]
        before = group.counters
        session = self._session(flags)
        group.set_clock(CLOCK_NS)
        device = Device(group)
        device.accept_version = 5 if options[0] & 1 else 4
        device.inflight_max = 1 + (options[0] >> 1) % 20
        device.options = self._options(flags, session)
        if not flags & RAW:
            device.open(version=device.accept_version, inflight_max=device.inflight_max, **device.options)
        for piece in pieces:
            device.send(piece)
            self._make_room(group, device)
        return self._end(group, device, session, before)

    def _session(self, flags: int) -> mqtt.Session | None:
        if not flags & (SESSION | DURABLE | CLIENT_HEADER):
            return None
        session = mqtt.Session(b"fuzz/c", b"c", durable=bool(flags & DURABLE), inflight_max=10)
        session.add(2, 1)
        return session

    def _options(self, flags: int, session: mqtt.Session | None) -> dict[str, Any]:
        return {
            "session": session,
            "topic_alias_max": 3 if flags & ALIASES else 0,
            "allow": mqtt.Routes([(b"plant/#", 0), (b"$x", 0)]) if flags & ALLOW else None,
            "client_header": bool(flags & CLIENT_HEADER),
            "rate_messages": 2.0 if flags & RATE else 0.0,
        }

    def _make_room(self, group: mqtt.Group, device: Device) -> None:
        """What waits for the disk, or for the next second, goes on."""
        assert self._recording is not None
        for _ in range(ROUNDS_MAX):
            assert group.counters["kept_bytes"] <= KEPT_BYTES_MAX
            if not device.blocked and not device.limited:
                return
            self._recording.flush()
            group.reopen()
            if device.limited:
                group.set_clock(device.resume_ns)
            device.retry()
        raise AssertionError("a connection waits for ever")

    def _end(self, group: mqtt.Group, device: Device, session: mqtt.Session | None, before: dict[str, int]) -> Outcome:
        assert self._recording is not None
        self._recording.flush()
        assert group.release() == []
        self._decode(device)
        unreleased = tuple(packet_id for packet_id, _ in sorted(session.unreleased)) if session is not None else ()
        device.close()
        after = group.counters
        group.take_drops()
        assert after["kept_bytes"] == after["unacknowledged"] == 0
        assert after["topics_bytes"] <= TOPICS_BYTES_MAX
        packets = split(device.received)
        counted = ("records", "bytes", "unrouted", "forbidden", "duplicates", "overflowed", "dropped", "retained")
        return Outcome(
            records={name: after[name] - before[name] for name in counted},
            answers=tuple(packet for packet in packets if packet[0] != 0xD0),
            pings=sum(packet[0] == 0xD0 for packet in packets),
            packets=tuple(device.packets),
            fault=None if device.fault is None else device.fault.cause,
            unreleased=unreleased,
        )

    def _decode(self, device: Device) -> None:
        """What the parser leaves to Python."""
        for kind, _, body in device.packets:
            with contextlib.suppress(mqtt.RemoteFault):
                if kind in DECODERS:
                    DECODERS[kind](body)
                elif kind in DECODERS_OF_VERSION:
                    DECODERS_OF_VERSION[kind](body, device.accept_version)


def split(data: bytes) -> list[bytes]:
    """Our own answers are short: their length is one byte."""
    packets = []
    while data:
        size = 2 + data[1]
        assert len(data) >= size, "an answer is cut off"
        packets.append(data[:size])
        data = data[size:]
    return packets
