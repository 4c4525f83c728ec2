"""The watermark file."""

from __future__ import annotations

import os
import struct
import threading

import pytest
from gateway_native import watermark
from gateway_native.batch import crc32c
from gateway_native.watermark import Watermark

SAMPLE = Watermark(
    epoch=3,
    segment_base=1 << 40,
    position=123_456,
    durable_offset=(1 << 40) + 77,
    last_timestamp=1_700_000_000_123,
    first_timestamp=1_700_000_000_000,
    max_timestamp=1_700_000_000_200,
    offset_of_max=(1 << 40) + 70,
    last_time_entry=1_700_000_000_100,
    bytes_since_entry=4_000,
    index_bytes=240,
    time_bytes=300,
    index_crc=0xFEEDFACE,
    time_crc=0x01020304,
    flags=watermark.INDEXES_WHOLE | watermark.CLEAN,
)


def test_the_128_bytes_are_as_specified():
    """Magic, little-endian integers, zeros, CRC-32C of the first 124 bytes."""
    data = watermark.encode(SAMPLE)
    body = b"GWWMARK2" + struct.pack("<Qqqqqqqqqqqq3I", *SAMPLE) + bytes(8)
    assert data == body + struct.pack("<I", crc32c(body))


@pytest.mark.parametrize("mark", [SAMPLE, Watermark(0, 0, 0, 0), Watermark(2**64 - 1, 2**63 - 1, 2**31 - 1, 2**63 - 1)])
def test_what_was_encoded_is_read(tmp_path, mark):
    """Round trip, also at the ends of the ranges."""
    path = tmp_path / "watermark"
    path.write_bytes(watermark.encode(mark))
    assert watermark.read(path) == mark
    assert watermark.read(str(path)) == mark


@pytest.mark.parametrize("bit", range(0, 1024, 5))
def test_one_flipped_bit_makes_it_unreadable(bit):
    """Damage is never taken for a promise."""
    data = bytearray(watermark.encode(SAMPLE))
    data[bit // 8] ^= 1 << bit % 8
    assert watermark.parse(bytes(data)) is None


@pytest.mark.parametrize("size", [0, 1, 63, 64, 127])
def test_a_short_file_is_none(tmp_path, size):
    """A file cut short says nothing."""
    path = tmp_path / "watermark"
    path.write_bytes(watermark.encode(SAMPLE)[:size])
    assert watermark.read(path) is None


def test_a_missing_file_is_none_and_a_directory_an_error(tmp_path):
    """Only what cannot be there is None; what cannot be read raises."""
    assert watermark.read(tmp_path / "missing") is None
    with pytest.raises(OSError):
        watermark.read(tmp_path)


def test_a_reader_beside_a_writer_sees_only_whole_versions(tmp_path):
    """While the file is rewritten as fast as possible, every reading is one of the versions written, in order."""
    path = tmp_path / "watermark"
    path.write_bytes(watermark.encode(Watermark(1, 0, 0, 0)))
    stop = threading.Event()

    def write() -> None:
        number = 0
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                number += 1
                os.pwrite(file.fileno(), watermark.encode(Watermark(1, number, number * 2, number * 3)), 0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        last = 0
        for _ in range(2000):
            found = watermark.read(path)
            assert found is not None
            assert (found.position, found.durable_offset) == (found.segment_base * 2, found.segment_base * 3)
            assert found.segment_base >= last
            last = found.segment_base
    finally:
        stop.set()
        writer.join()
