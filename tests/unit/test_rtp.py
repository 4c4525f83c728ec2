"""RTP packetisation as the simulated camera does it."""

from __future__ import annotations

import struct

import pytest

from gateway import nal
from gateway.simulate.rtp import Packets, RtpSender, depacketize, packetize


@pytest.mark.parametrize("length", [1, 1399, 1400, 1401, 1402, 2797, 2798, 50_000])
def test_a_nal_unit_survives_packetisation(length: int) -> None:
    """Around every boundary of fragmentation the receiver gets the same bytes, no payload exceeds its limit."""
    unit = bytes([0x65]) + bytes(i * 7 & 0xFF for i in range(length - 1))
    payloads = packetize([unit])
    assert max(map(len, payloads)) <= 1400
    assert depacketize(payloads) == [unit]


def test_a_missing_fragment_is_noticed() -> None:
    """A NAL unit whose fragments are not all there is an error, not a shorter NAL unit."""
    payloads = packetize([bytes([0x65]) + bytes(5000)])
    for missing in (0, len(payloads) - 1):
        with pytest.raises(ValueError):
            depacketize(payloads[:missing] + payloads[missing + 1 :])


def test_only_the_last_packet_of_an_access_unit_has_the_marker() -> None:
    """Sequence numbers run on across their wrap, the marker ends the access unit, all carry one time stamp."""
    sender = RtpSender(0xABCD, 65_534, 0, 1)
    data = b"".join(sender.access_unit([b"a", b"b", b"c"], (1 << 32) + 5))
    headers = []
    while data:
        length = int.from_bytes(data[2:4], "big")
        headers.append(struct.unpack(">BBHII", data[4:16]))
        data = data[4 + length :]
    assert [h[1] >> 7 for h in headers] == [0, 0, 1]
    assert [h[2] for h in headers] == [65_534, 65_535, 0]
    assert {h[3] for h in headers} == {5}


def test_a_sender_report_maps_the_clocks() -> None:
    """NTP seconds count from 1900, the fraction is of 2**32, counters are of what was sent."""
    sender = RtpSender(1, 0, 2, 3)
    sender.access_unit([b"four", b"5"], 0)
    report = sender.sender_report(90_000, 1_000_000_000 * 10 + 500_000_000)
    assert report[:2] == b"$\x03"
    _, kind, _, ssrc, seconds, fraction, rtp, packets, octets = struct.unpack(">BBHIIIIII", report[4:])
    assert (kind, ssrc, seconds, fraction, rtp) == (200, 1, 2_208_988_810, 1 << 31, 90_000)
    assert (packets, octets) == (2, 5)


@pytest.mark.parametrize("codec", [nal.H264, nal.H265])
@pytest.mark.parametrize("length", [3, 1399, 1400, 1401, 1402, 2796, 2797, 2798, 50_000])
def test_small_nal_units_travel_together(codec: nal.Codec, length: int) -> None:
    """Parameter sets and a small picture share a packet, a large one is fragmented; the same bytes come out."""
    head = b"\x67\x42" if codec is nal.H264 else b"\x42\x01"
    large = (b"\x65\x88" if codec is nal.H264 else b"\x26\x01") + bytes(i * 7 & 0xFF for i in range(length - 2))
    nals = [head + b"sps", head + b"pps", large]
    payloads = packetize(nals, codec=codec, aggregate=True)
    assert max(map(len, payloads)) <= 1400
    assert codec.type_of(payloads[0]) in (24, 48)
    assert depacketize(payloads, codec) == nals
    with pytest.raises(ValueError):
        depacketize([payloads[0][:-1], *payloads[1:]], codec)


def test_a_block_of_packets_can_be_sent_by_many() -> None:
    """The same payloads from two senders differ in their headers only, and the block stays as it was."""
    packets = Packets([b"one", b"two"], markers={0, 1})
    first, second = RtpSender(1, 0, 0, 1), RtpSender(2, 65_535, 4, 5)
    a, b, again = first.send(packets, 7), second.send(packets, 8), first.send(packets, 9)
    assert a[:4] == b"$\x00\x00\x0f"
    assert b[:4] == b"$\x04\x00\x0f"
    assert struct.unpack(">BBHII3s", a[4:19]) == (0x80, 0xE0, 0, 7, 1, b"one")
    assert struct.unpack(">BBHII3s", b[23:38]) == (0x80, 0xE0, 0, 8, 2, b"two")
    assert struct.unpack(">BBHII3s", again[4:19]) == (0x80, 0xE0, 2, 9, 1, b"one")
    assert (first.packets, first.payload_bytes) == (4, 12)


@pytest.mark.parametrize("payload", [b"\x1c", b"\x1c\x85", b"\x18", b"\x18\x00\x05a"])
def test_a_payload_that_is_cut_short_is_refused(payload: bytes) -> None:
    """Also where nothing follows its type."""
    with pytest.raises(ValueError):
        depacketize([payload])
    with pytest.raises(ValueError):
        depacketize([bytes([{0x1C: 0x62, 0x18: 0x60}[payload[0]]]) + payload[1:]], nal.H265)
