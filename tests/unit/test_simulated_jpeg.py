"""JPEG over RTP as the simulated camera sends it (RFC 2435)."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import pytest

from gateway.simulate.coded import Coded, digest
from gateway.simulate.jpeg import Image, packetize


def image(width: int = 320, height: int = 240, *options: int) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 40, *options])
    assert done
    encoded: bytes = data.tobytes()
    return encoded


@pytest.mark.parametrize("restart", [0, 4])
@pytest.mark.parametrize(("sampling", "kind"), [(0x221111, 1), (0x211111, 0)])
def test_payloads_carry_the_whole_scan_and_the_tables_once(sampling: int, kind: int, restart: int) -> None:
    """Offsets rise without a hole, the first payload has both tables, no payload exceeds its limit."""
    options = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_RST_INTERVAL, restart)
    found = Image.of(image(320, 240, *options))
    assert (found.width, found.height, found.kind, found.restart) == (320, 240, kind, restart)
    payloads = packetize(found, 500)
    assert max(map(len, payloads)) <= 500
    scan = b""
    for payload in payloads:
        offset, of_kind, q, width, height = struct.unpack(">IBBBB", payload[:8])
        assert (offset, of_kind, q) == (len(scan), kind + (64 if restart else 0), 255)
        assert (width, height) == (40, 30)
        at = 8
        if restart:
            assert struct.unpack(">HH", payload[8:12]) == (restart, 0xFFFF)
            at = 12
        if not scan:
            assert struct.unpack(">BBH", payload[at : at + 4]) == (0, 0, 128)
            assert payload[at + 4 : at + 132] == found.tables
            at += 132
        scan += payload[at:]
    assert scan == found.scan


def test_the_hash_is_of_what_travels() -> None:
    """A comment in the file changes nothing; another picture does."""
    plain = image()
    comment = plain[:2] + b"\xff\xfe\x00\x06note" + plain[2:]
    assert digest("jpeg", plain) == digest("jpeg", comment) == Coded.of([plain], "jpeg").shaped().digest
    assert digest("jpeg", plain) != digest("jpeg", image(328))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no image", "does not begin with SOI"),
        (image()[:100], "no marker segment"),
        (image(324, 240), "multiples of 8"),
        (image(320, 240, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111), "4:2:2 and 4:2:0 only"),
        (image(320, 240, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), "not a baseline"),
    ],
)
def test_what_cannot_travel_is_refused(data: Any, said: str) -> None:
    """RFC 2435 is narrow: the reason is said."""
    with pytest.raises(ValueError, match=said):
        Image.of(data)
