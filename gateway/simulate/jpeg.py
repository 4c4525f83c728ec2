"""JPEG over RTP as a camera sends it (RFC 2435): what of an image travels, and its payloads. No sockets."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from gateway.simulate.rtp import PAYLOAD_BYTES_MAX

WIDTH_MAX = HEIGHT_MAX = 2040  # a byte each, in units of 8 pixels (3.1.5, 3.1.6)
_TABLES_IN_BAND = 255  # the Q that says: quantization tables come with every frame and may change (3.1.8)
_RESTART_TYPE = 64  # added to the type where restart intervals are used (3.1.3)

_SOF0, _SOI, _EOI, _SOS, _DQT, _DRI = 0xC0, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD
_REFUSED = frozenset({0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
# Sampling factors of the luma component (the others are 1x1) and the type that stands for them (4.1).
_TYPES = {0x21: 0, 0x22: 1}

_MAIN = struct.Struct(">IBBBB")
_RESTART = struct.Struct(">HH")
_TABLES = struct.Struct(">BBH")


@dataclass(frozen=True, slots=True)
class Image:
    """What RFC 2435 carries of a baseline JPEG image; everything else of its headers follows from these.

    Two images are equal if a receiver cannot tell them apart, whatever their headers' layout. width, height: pixels.
    kind: 0 for 4:2:2, 1 for 4:2:0. tables: luma's and chroma's quantization tables, 64 bytes each, in zigzag order.
    restart: MCUs in a restart interval, 0 for none. scan: entropy-coded data up to the end-of-image marker.
    """

    width: int
    height: int
    kind: int
    tables: bytes
    restart: int
    scan: bytes

    @classmethod
    def of(cls, jpeg: bytes) -> Image:
        """Read an image. Raises ValueError for one that is damaged or that RFC 2435 cannot carry.

        It is taken for granted that its Huffman tables are those of ITU-T T.81, annex K.3, as encoders use unless told
        to optimize.
        """
        if jpeg[:2] != bytes((0xFF, _SOI)):
            raise ValueError("no JPEG image: it does not begin with SOI")
        tables: dict[int, bytes] = {}
        frame, restart, at = b"", 0, 2
        while True:
            marker, body = _segment(jpeg, at)
            at += 4 + len(body)
            if marker == _DQT:
                tables |= _quantization_tables(body)
            elif marker == _SOF0:
                frame = body
            elif marker == _DRI:
                restart = int.from_bytes(body, "big")
            elif marker in _REFUSED:
                raise ValueError(f"not a baseline JPEG image: marker {marker:#x}")
            elif marker == _SOS:
                break
        end = jpeg.rfind(bytes((0xFF, _EOI)))
        return cls(*_frame(frame, tables), restart, jpeg[at : end if end >= at else len(jpeg)])


def _segment(jpeg: bytes, at: int) -> tuple[int, bytes]:
    length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
    if len(jpeg) < at + 2 + length or length < 2 or jpeg[at] != 0xFF:
        raise ValueError(f"a damaged JPEG image: no marker segment at byte {at}")
    return jpeg[at + 1], jpeg[at + 4 : at + 2 + length]


def _quantization_tables(body: bytes) -> dict[int, bytes]:
    tables = {}
    for at in range(0, len(body), 65):
        if body[at] >> 4 or len(body) < at + 65:
            raise ValueError("quantization tables of 16 bits are not supported")
        tables[body[at]] = body[at + 1 : at + 65]
    return tables


def _frame(body: bytes, tables: dict[int, bytes]) -> tuple[int, int, int, bytes]:
    """(width, height, kind, tables) from the frame header (T.81, B.2.2)."""
    if len(body) != 15:
        raise ValueError("RFC 2435 carries images of three components only")
    height, width = struct.unpack(">HH", body[1:5])
    luma, others = body[7], {body[10], body[13]}
    if luma not in _TYPES or others != {0x11} or body[11] != body[14]:
        raise ValueError("RFC 2435 carries 4:2:2 and 4:2:0 only")
    if width % 8 or height % 8 or not (0 < width <= WIDTH_MAX and 0 < height <= HEIGHT_MAX):
        raise ValueError(f"RFC 2435 carries multiples of 8 pixels up to {WIDTH_MAX}, not {width}x{height}")
    try:
        return width, height, _TYPES[luma], tables[body[8]] + tables[body[11]]
    except KeyError:
        raise ValueError("a quantization table is missing") from None


def packetize(image: Image, payload_bytes_max: int = PAYLOAD_BYTES_MAX) -> list[bytes]:
    """RTP payloads of one image (3.1): the tables travel in the first one.

    The last payload is the one to be sent with the marker bit.
    """
    kind = image.kind + (_RESTART_TYPE if image.restart else 0)
    # First and last packet of a restart interval are not known to be in one packet: count 0x3FFF, F and L set (3.1.7).
    restart = _RESTART.pack(image.restart, 0xFFFF) if image.restart else b""
    tables = _TABLES.pack(0, 0, len(image.tables)) + image.tables
    payloads: list[bytes] = []
    offset = 0
    while offset < len(image.scan) or not payloads:
        head = _MAIN.pack(offset, kind, _TABLES_IN_BAND, image.width // 8, image.height // 8) + restart
        head += b"" if offset else tables
        part = image.scan[offset : offset + max(1, payload_bytes_max - len(head))]
        payloads.append(head + part)
        offset += len(part) or 1
    return payloads
