"""Codec and checksum alone: `python -m pytest bench/micro --benchmark-only`."""

from __future__ import annotations

import os
from typing import Any

import pytest
from gateway_native import batch

RECORDS = [
    (1_790_000_000_000 + number, b"plant/line-1/sensor-%02d" % (number % 100), b"x" * 64, ()) for number in range(2_000)
]


@pytest.mark.parametrize("implementation", batch.crc32c_implementations())
def test_crc32c_of_a_batch(benchmark: Any, implementation: str) -> None:
    """256 KiB, the size at which a batch closes."""
    data = os.urandom(262_144)
    benchmark(batch.crc32c, data, 0, implementation)


def test_decode_small_records(benchmark: Any) -> None:
    """2,000 records of 64 B into tuples, CRC checked."""
    encoded = batch.encode(RECORDS, 0)
    assert len(benchmark(batch.decode, encoded)) == len(RECORDS)


def test_scan_small_records(benchmark: Any) -> None:
    """The walk of recovery and verify over the same batch."""
    encoded = batch.encode(RECORDS, 0)
    assert len(benchmark(batch.scan, encoded)[0]) == 1
