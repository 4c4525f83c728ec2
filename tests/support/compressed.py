"""Batches compressed as Kafka's producers do it, by a library that only reads snappy in what is under test: cramjam."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import cramjam
from gateway_native import batch

# snappy-java compresses so much at a time.
_XERIAL_BLOCK_BYTES = 32 * 2**10


def _xerial(data: bytes) -> bytes:
    """The frames of snappy-java: SnappyOutputStream.java."""
    framed = b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)
    for start in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[start : start + _XERIAL_BLOCK_BYTES]))
        framed += struct.pack(">i", len(block)) + block
    return framed


CODECS: Mapping[str, tuple[int, Callable[[bytes], bytes]]] = {
    "gzip": (1, lambda data: bytes(cramjam.gzip.compress(data))),
    "snappy": (2, lambda data: bytes(cramjam.snappy.compress_raw(data))),
    "snappy in frames": (2, _xerial),
    "lz4": (3, lambda data: bytes(cramjam.lz4.compress(data))),
    "zstd": (4, lambda data: bytes(cramjam.zstd.compress(data))),
}


def sealed(data: bytes) -> bytes:
    """With the length and the CRC that belong to what is there."""
    data = data[:8] + struct.pack(">i", len(data) - batch.LENGTH_PREFIX_BYTES) + data[12:]
    return data[:17] + batch.crc32c(data[21:]).to_bytes(4, "big") + data[21:]


def with_records(plain: bytes, codec: int, records: bytes) -> bytes:
    """The batch with other bytes behind its header, which says that they are compressed."""
    return sealed(plain[:22] + bytes([plain[22] | codec]) + plain[23 : batch.HEADER_BYTES] + records)


def compressed(plain: bytes, codec: str) -> bytes:
    """The same batch by one of CODECS."""
    number, compress = CODECS[codec]
    return with_records(plain, number, compress(plain[batch.HEADER_BYTES :]))
