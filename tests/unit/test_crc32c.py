"""CRC-32C against implementations that share nothing with ours."""

from __future__ import annotations

import random
import warnings

import pytest
from aiokafka.record.util import calc_crc32c as aiokafka_crc32c
from gateway_native import batch

with warnings.catch_warnings():  # its import reads resources in a way that Python calls old
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.record.util import calc_crc32c as kafka_python_crc32c

POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed
LENGTH_MAX = 4096
DATA = random.Random(1).randbytes(LENGTH_MAX + 8)


def reference_table() -> list[int]:
    """What one byte does to the sum, by the definition: eight steps of polynomial division."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ POLYNOMIAL * (crc & 1)
        table.append(crc)
    return table


def sums_of_prefixes(data: bytes) -> list[int]:
    """The sums of data[:0], data[:1], data[:2] …"""
    table = reference_table()
    crc = 0xFFFFFFFF
    sums = [0]
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
        sums.append(crc ^ 0xFFFFFFFF)
    return sums


@pytest.mark.parametrize("shift", [0, 1, 3, 5, 7])
@pytest.mark.parametrize("implementation", batch.crc32c_implementations())
def test_every_length_at_odd_addresses_is_summed_as_defined(implementation: str, shift: int) -> None:
    """For all lengths from 0 to 4,096 at any alignment each implementation gives the sum of the definition."""
    view = memoryview(DATA)[shift : shift + LENGTH_MAX]
    expected = sums_of_prefixes(bytes(view))
    found = [batch.crc32c(view[:length], 0, implementation) for length in range(LENGTH_MAX + 1)]
    assert found == expected


@pytest.mark.parametrize("implementation", batch.crc32c_implementations())
def test_a_sum_goes_on_from_any_split(implementation: str) -> None:
    """Summing in two pieces, split anywhere in a block, is summing at once."""
    data = DATA[:1700]
    whole = batch.crc32c(data, 0, implementation)
    for split in range(len(data) + 1):
        head = batch.crc32c(data[:split], 0, implementation)
        assert batch.crc32c(data[split:], head, implementation) == whole


def test_sums_are_those_of_kafkas_clients() -> None:
    """aiokafka and kafka-python sum the same bytes to the same number, also beyond our largest block."""
    for length in (1, 100, 4096, 12_288, 100_003):
        data = random.Random(length).randbytes(length)
        sums = {batch.crc32c(data, 0, name) for name in ("auto", *batch.crc32c_implementations())}
        assert sums == {aiokafka_crc32c(data)} == {kafka_python_crc32c(data)}


def test_read_only_and_writable_buffers_are_summed_alike() -> None:
    """bytes, bytearray and memoryview give one sum, and a buffer with gaps is refused."""
    assert batch.crc32c(DATA) == batch.crc32c(bytearray(DATA)) == batch.crc32c(memoryview(DATA))
    with pytest.raises(BufferError):
        batch.crc32c(memoryview(DATA)[::2])
