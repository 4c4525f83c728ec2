"""RTP packets as cameras send them, to be lost, repeated and cut: H.264 with aggregates, H.265, MJPEG."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gateway_native.rtp import Receiver, Unit

from gateway.simulate import rtp

T0 = 1_790_000_000_000_000_000
FRAME = 3_600  # ticks: 25 pictures per second
FRAME_NS = 40_000_000
PAYLOAD_TYPE = 96


@dataclass(frozen=True)
class Packet:
    """One RTP packet."""

    payload: bytes
    sequence: int
    timestamp: int
    marker: bool = False
    ssrc: int = 0xCAFE
    payload_type: int = PAYLOAD_TYPE
    unit: int = 0
    """Which access unit it belongs to."""

    def data(self) -> bytes:
        head = struct.pack(
            ">BBHII",
            0x80,
            self.marker << 7 | self.payload_type,
            self.sequence & 0xFFFF,
            self.timestamp & 0xFFFFFFFF,
            self.ssrc,
        )
        return head + self.payload

    def frame(self, channel: int = 0) -> bytes:
        return interleaved(self.data(), channel)


def interleaved(data: bytes, channel: int = 0) -> bytes:
    """RFC 2326, 10.12."""
    return b"$" + struct.pack(">BH", channel, len(data)) + data


def packets(
    units: Iterable[Sequence[bytes]],
    *,
    sequence: int = 0,
    timestamp: int = 0,
    step: int = FRAME,
    stamps: Sequence[int] | None = None,
) -> list[Packet]:
    """Access units, each given by its payloads; the last of each has the marker. stamps: in place of even steps."""
    found = []
    for number, payloads in enumerate(units):
        stamp = stamps[number] if stamps else timestamp + number * step
        for index, payload in enumerate(payloads):
            found.append(Packet(payload, sequence, stamp, index == len(payloads) - 1, unit=number))
            sequence += 1
    return found


def stap_a(nals: Sequence[bytes]) -> bytes:
    """RFC 6184, 5.7.1."""
    return bytes([max(nal[0] & 0x60 for nal in nals) | 24]) + b"".join(struct.pack(">H", len(n)) + n for n in nals)


def aggregate_h265(nals: Sequence[bytes]) -> bytes:
    """RFC 7798, 4.4.2."""
    return b"\x60\x01" + b"".join(struct.pack(">H", len(nal)) + nal for nal in nals)


def packetize_h264(nals: Sequence[bytes], payload_bytes_max: int = 1_400) -> list[bytes]:
    """As the simulator does."""
    return rtp.packetize(nals, payload_bytes_max)


def packetize_h265(nals: Sequence[bytes], payload_bytes_max: int = 1_400) -> list[bytes]:
    """Single NAL units and fragments (RFC 7798, 4.4.1, 4.4.3)."""
    found = []
    for nal in nals:
        if len(nal) <= payload_bytes_max:
            found.append(nal)
            continue
        header = bytes([(nal[0] & 0x81) | 49 << 1, nal[1]])
        kind = nal[0] >> 1 & 0x3F
        step = payload_bytes_max - 3
        for start in range(2, len(nal), step):
            flags = (0x80 if start == 2 else 0) | (0x40 if start + step >= len(nal) else 0)
            found.append(header + bytes([flags | kind]) + nal[start : start + step])
    return found


def packetize_jpeg(
    scan: bytes,
    *,
    width: int,
    height: int,
    kind: int = 1,
    quality: int = 255,
    tables: bytes = b"",
    precision: int = 0,
    restart: int = 0,
    payload_bytes_max: int = 1_400,
) -> list[bytes]:
    """RFC 2435, 3.1. kind: 0 is 4:2:2, 1 is 4:2:0; restart: interval. tables: in the first, Q from 128 on."""
    found = []
    at = 0
    kind |= 64 if restart else 0
    while at < len(scan):
        head = struct.pack(">IBBBB", at, kind, quality, width // 8 & 0xFF, height // 8 & 0xFF)
        head += struct.pack(">HH", restart, 0xFFFF) if restart else b""
        if quality >= 128 and at == 0:
            head += struct.pack(">BBH", 0, precision, len(tables)) + tables
        piece = scan[at : at + payload_bytes_max - len(head)]
        found.append(head + piece)
        at += len(piece)
    return found


def sender_report(timestamp: int, wall_ns: int, ssrc: int = 0xCAFE) -> bytes:
    """As the simulator sends it, on channel 1."""
    return rtp.RtpSender(ssrc, 0, 0, 1).sender_report(timestamp, wall_ns)


def goodbye(ssrc: int = 0xCAFE) -> bytes:
    """As the simulator sends it, on channel 1."""
    return rtp.RtpSender(ssrc, 0, 0, 1).goodbye()


def receive(receiver: Receiver, sent: Iterable[Packet | bytes], *, end: bool = True) -> list[Unit]:
    """What a receiver makes of them; packets come when their stamps say, bytes (RTCP, text) with the one before."""
    found: list[Unit] = []
    now_ns = T0
    first: int | None = None
    for each in sent:
        if isinstance(each, Packet):
            first = each.timestamp if first is None else first
            now_ns = T0 + (each.timestamp - first) * 100_000 // 9
            found += receiver.feed(each.frame(), now_ns)
        else:
            found += receiver.feed(each, now_ns)
    return found + (receiver.end() if end else [])


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    """The data cut at these places."""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


def moved(sent: Sequence[Packet], **changes: int) -> list[Packet]:
    """The same packets with other fields."""
    return [replace(each, **changes) for each in sent]
