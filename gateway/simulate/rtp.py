"""RTP as a camera sends it: H.264 packetisation (RFC 6184), sender reports (RFC 3550). No sockets."""

from __future__ import annotations

import struct
from collections.abc import Sequence

CLOCK_HZ = 90_000
PAYLOAD_TYPE = 96
# Fits an Ethernet frame behind IPv4, TCP with options and the interleaving header, as cameras do.
PAYLOAD_BYTES_MAX = 1_400

_HEADER = struct.Struct(">BBHII")
_INTERLEAVED = struct.Struct(">BBH")
_SENDER_REPORT = struct.Struct(">BBHIIIIII")
_GOODBYE = struct.Struct(">BBHI")
_NTP_EPOCH_S = 2_208_988_800  # 1900 to 1970

_FU_A = 28
_FU_START, _FU_END = 0x80, 0x40


def packetize(nals: Sequence[bytes], payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> list[bytes]:
    """RTP payloads of one access unit: a NAL unit that fits is a payload, a larger one becomes FU-A fragments.

    The last payload is the one to be sent with the marker bit.
    """
    payloads = []
    for nal in nals:
        if len(nal) <= payload_bytes_max:
            payloads.append(nal)
        else:
            payloads.extend(_fragments(nal, payload_bytes_max))
    return payloads


def _fragments(nal: bytes, payload_bytes_max: int) -> list[bytes]:
    """FU-A fragments (RFC 6184, 5.8): the NAL header's bits travel in FU indicator and FU header."""
    indicator = (nal[0] & 0xE0) | _FU_A
    kind = nal[0] & 0x1F
    step = payload_bytes_max - 2
    last = len(nal) - 1
    fragments = []
    for start in range(1, len(nal), step):
        header = kind | (_FU_START if start == 1 else 0) | (_FU_END if start + step > last else 0)
        fragments.append(bytes((indicator, header)) + nal[start : start + step])
    return fragments


def depacketize(payloads: Sequence[bytes]) -> list[bytes]:
    """The NAL units of payloads that arrived whole and in order; raises ValueError for anything else."""
    nals: list[bytes] = []
    open_fragment: bytearray | None = None
    for payload in payloads:
        kind = payload[0] & 0x1F
        if kind != _FU_A:
            if open_fragment is not None or kind >= 24:
                raise ValueError(f"unexpected RTP payload of type {kind}")
            nals.append(payload)
            continue
        header = payload[1]
        if bool(header & _FU_START) == (open_fragment is not None):
            raise ValueError("FU-A fragments out of order")
        if open_fragment is None:
            open_fragment = bytearray([(payload[0] & 0xE0) | (header & 0x1F)])
        open_fragment += payload[2:]
        if header & _FU_END:
            nals.append(bytes(open_fragment))
            open_fragment = None
    if open_fragment is not None:
        raise ValueError("the last FU-A fragment is missing")
    return nals


class RtpSender:
    """One RTP stream as one client sees it: its SSRC, sequence numbers, and what sender reports say about it.

    Gives interleaved frames (RFC 2326, 10.12) ready for the RTSP connection.
    """

    def __init__(self, ssrc: int, first_sequence: int, rtp_channel: int, rtcp_channel: int) -> None:
        self.ssrc = ssrc
        self.sequence = first_sequence & 0xFFFF
        self.packets = 0
        self.payload_bytes = 0
        self._rtp_channel = rtp_channel
        self._rtcp_channel = rtcp_channel

    def access_unit(self, payloads: Sequence[bytes], timestamp: int) -> list[bytes]:
        """All packets of an access unit, the last with the marker bit. timestamp: 90 kHz ticks, taken modulo 2**32."""
        last = len(payloads) - 1
        parts = []
        for index, payload in enumerate(payloads):
            marker = 0x80 if index == last else 0
            parts.append(_INTERLEAVED.pack(0x24, self._rtp_channel, _HEADER.size + len(payload)))
            parts.append(_HEADER.pack(0x80, marker | PAYLOAD_TYPE, self.sequence, timestamp & 0xFFFFFFFF, self.ssrc))
            parts.append(payload)
            self.sequence = (self.sequence + 1) & 0xFFFF
            self.payload_bytes += len(payload)
        self.packets += len(payloads)
        return parts

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
        return _INTERLEAVED.pack(0x24, self._rtcp_channel, len(packet)) + packet

    def goodbye(self) -> bytes:
        """RFC 3550, 6.6: the stream is over."""
        packet = _GOODBYE.pack(0x81, 203, 1, self.ssrc)
        return _INTERLEAVED.pack(0x24, self._rtcp_channel, len(packet)) + packet
