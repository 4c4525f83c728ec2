"""RTP as a camera sends it (RFC 3550): H.264 (RFC 6184) and H.265 (RFC 7798) payloads, packets, reports. No sockets.

JPEG payloads (RFC 2435) are made in gateway/simulate/jpeg.py.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gateway import nal

CLOCK_HZ = 90_000
PAYLOAD_TYPE = 96
JPEG_PAYLOAD_TYPE = 26  # a static one (RFC 3551)
# Fits an Ethernet frame behind IPv4, TCP with options and the interleaving header, as cameras do.
PAYLOAD_BYTES_MAX = 1_400

_HEADER_BYTES = 12
_PACKET = struct.Struct(">BBHBBHII")  # interleaving ($, channel, length), then the RTP header
_INTERLEAVED = struct.Struct(">BBH")
_SENDER_REPORT = struct.Struct(">BBHIIIIII")
_GOODBYE = struct.Struct(">BBHI")
_NTP_EPOCH_S = 2_208_988_800  # 1900 to 1970

_FU_START, _FU_END = 0x80, 0x40


@dataclass(frozen=True, slots=True)
class _Payloads:
    """What differs between RFC 6184 and RFC 7798: payload types, and how a NAL header carries one."""

    codec: nal.Codec
    fragment_type: int
    aggregate_type: int

    def header(self, kind: int, like: bytes) -> bytes:
        """A NAL header of this type with everything else as in `like`."""
        codec = self.codec
        kept = like[0] & ~(codec.type_mask << codec.type_shift) & 0xFF
        return bytes([kept | kind << codec.type_shift]) + like[1 : codec.header_bytes]


# FU-A and STAP-A; FU and AP.
_FORMATS = {nal.H264: _Payloads(nal.H264, 28, 24), nal.H265: _Payloads(nal.H265, 49, 48)}


def packetize(
    nals: Sequence[bytes],
    payload_bytes_max: int = PAYLOAD_BYTES_MAX,
    *,
    codec: nal.Codec = nal.H264,
    aggregate: bool = False,
) -> list[bytes]:
    """RTP payloads of one access unit: a NAL unit that fits is a payload, a larger one becomes fragments.

    The last payload is the one to be sent with the marker bit. aggregate: NAL units in front of the first that must be
    fragmented travel together (STAP-A, AP) as far as they fit.
    """
    form = _FORMATS[codec]
    payloads: list[bytes] = []
    together: list[bytes] = []
    for each in nals:
        if aggregate and _aggregate_bytes(form, [*together, each]) <= payload_bytes_max:
            together.append(each)
            continue
        payloads += _aggregate(form, together)
        together = []
        payloads += [each] if len(each) <= payload_bytes_max else _fragments(form, each, payload_bytes_max)
    return payloads + _aggregate(form, together)


def _aggregate_bytes(form: _Payloads, nals: Sequence[bytes]) -> int:
    return form.codec.header_bytes + sum(2 + len(each) for each in nals)


def _aggregate(form: _Payloads, nals: Sequence[bytes]) -> list[bytes]:
    """RFC 6184, 5.7.1 and RFC 7798, 4.4.2: a header, then each NAL unit behind its length. One alone goes as it is."""
    if len(nals) < 2:
        return list(nals)
    parts = [form.header(form.aggregate_type, nals[0])]
    for each in nals:
        parts += [len(each).to_bytes(2, "big"), each]
    return [b"".join(parts)]


def _fragments(form: _Payloads, unit: bytes, payload_bytes_max: int) -> list[bytes]:
    """RFC 6184, 5.8 and RFC 7798, 4.4.3: the NAL header's bits travel in the payload header and the FU header."""
    first = form.codec.header_bytes
    indicator = form.header(form.fragment_type, unit)
    kind = form.codec.type_of(unit)
    step = payload_bytes_max - first - 1
    last = len(unit) - 1
    fragments = []
    for start in range(first, len(unit), step):
        header = kind | (_FU_START if start == first else 0) | (_FU_END if start + step > last else 0)
        fragments.append(indicator + bytes([header]) + unit[start : start + step])
    return fragments


def depacketize(payloads: Sequence[bytes], codec: nal.Codec = nal.H264) -> list[bytes]:
    """The NAL units of payloads that arrived whole and in order; raises ValueError for anything else."""
    form = _FORMATS[codec]
    begin = codec.header_bytes
    nals: list[bytes] = []
    fragment: bytearray | None = None
    for payload in payloads:
        kind = _payload_type(form, payload)
        if kind == form.fragment_type:
            header = payload[begin]
            if bool(header & _FU_START) == (fragment is not None):
                raise ValueError("fragments out of order")
            if fragment is None:
                fragment = bytearray(form.header(header & 0x3F & codec.type_mask, payload))
            fragment += payload[begin + 1 :]
            if header & _FU_END:
                nals.append(bytes(fragment))
                fragment = None
        elif fragment is not None:
            raise ValueError("a fragment is missing")
        else:
            nals += _separate(payload[begin:]) if kind == form.aggregate_type else [payload]
    if fragment is not None:
        raise ValueError("the last fragment is missing")
    return nals


def _payload_type(form: _Payloads, payload: bytes) -> int:
    """Of a payload that has enough bytes for it; ValueError for others, and for types that are not known here."""
    least = form.codec.header_bytes
    if len(payload) < least:
        raise ValueError("a payload is cut short")
    kind = form.codec.type_of(payload)
    if kind in (form.fragment_type, form.aggregate_type):
        if len(payload) < least + 2:
            raise ValueError("a payload is cut short")
    elif kind > form.aggregate_type or (form.codec is nal.H264 and kind == 0):
        raise ValueError(f"unexpected RTP payload of type {kind}")
    return kind


def _separate(data: bytes) -> list[bytes]:
    nals = []
    while data:
        length = int.from_bytes(data[:2], "big")
        if not length or len(data) < 2 + length:
            raise ValueError("an aggregation packet is cut short")
        nals.append(data[2 : 2 + length])
        data = data[2 + length :]
    return nals


class Packets:
    """The packets of one access unit in one block of bytes, ready to be sent but for what differs each time.

    payloads: as `packetize` gives them. markers: which of them carry the marker bit; the last one if not given. Made
    once and sent by many cameras many times: a send copies the block and writes each packet's header.
    """

    __slots__ = ("blank", "payload_bytes", "places")

    def __init__(
        self,
        payloads: Sequence[bytes],
        markers: Collection[int] | None = None,
        payload_type: int = PAYLOAD_TYPE,
    ) -> None:
        marked = {len(payloads) - 1} if markers is None else markers
        room = bytes(_PACKET.size)
        self.blank = b"".join(part for payload in payloads for part in (room, payload))
        self.payload_bytes = sum(map(len, payloads))
        # (where the packet begins, the length in its interleaving header, marker and payload type)
        self.places: list[tuple[int, int, int]] = []
        at = 0
        for number, payload in enumerate(payloads):
            second = payload_type | (0x80 if number in marked else 0)
            self.places.append((at, _HEADER_BYTES + len(payload), second))
            at += _PACKET.size + len(payload)

    def __len__(self) -> int:
        return len(self.places)


class RtpSender:
    """One RTP stream as one client sees it: its SSRC, sequence numbers, and what sender reports say about it.

    Gives interleaved frames (RFC 2326, 10.12) ready for the RTSP connection.
    """

    def __init__(self, ssrc: int, first_sequence: int, rtp_channel: int, rtcp_channel: int) -> None:
        self.ssrc = ssrc
        self.sequence = first_sequence & 0xFFFF
        self.packets = 0
        self.payload_bytes = 0
        self.rtp_channel = rtp_channel
        self.rtcp_channel = rtcp_channel

    def send(self, packets: Packets, timestamp: int) -> bytearray:
        """All packets of an access unit, as one block. timestamp: 90 kHz ticks, taken modulo 2**32."""
        data = bytearray(packets.blank)
        put, channel, ssrc, sequence = _PACKET.pack_into, self.rtp_channel, self.ssrc, self.sequence
        timestamp &= 0xFFFFFFFF
        for at, length, second in packets.places:
            put(data, at, 0x24, channel, length, 0x80, second, sequence, timestamp, ssrc)
            sequence = (sequence + 1) & 0xFFFF
        self.sequence = sequence
        self.packets += len(packets.places)
        self.payload_bytes += packets.payload_bytes
        return data

    def access_unit(self, payloads: Sequence[bytes], timestamp: int) -> list[bytes]:
        """The same for payloads that are sent once: one interleaved frame each, the last with the marker bit."""
        packets = Packets(payloads)
        data = bytes(self.send(packets, timestamp))
        return [data[at : at + 4 + length] for at, length, _ in packets.places]

    def sender_report(self, timestamp: int, wall_ns: int) -> bytes:
        """RFC 3550, 6.4.1: the wall clock (ns since 1970) at which the RTP clock stood at ``timestamp``."""
        seconds, fraction_ns = divmod(wall_ns, 1_000_000_000)
        packet = _SENDER_REPORT.pack(
            0x80,
            200,
            6,
            self.ssrc,
            (seconds + _NTP_EPOCH_S) & 0xFFFFFFFF,
            (fraction_ns << 32) // 1_000_000_000,
            timestamp & 0xFFFFFFFF,
            self.packets & 0xFFFFFFFF,
            self.payload_bytes & 0xFFFFFFFF,
        )
        return _INTERLEAVED.pack(0x24, self.rtcp_channel, len(packet)) + packet

    def goodbye(self) -> bytes:
        """RFC 3550, 6.6: the stream is over."""
        packet = _GOODBYE.pack(0x81, 203, 1, self.ssrc)
        return _INTERLEAVED.pack(0x24, self.rtcp_channel, len(packet)) + packet
