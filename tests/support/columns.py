"""A small data directory with a stream that each test fills as it likes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway_native import batch

import gateway
from gateway.log.layout import prepare
from tests.support.partitions import T0, Partition

Headers = Sequence[tuple[str, bytes]]


class Put(NamedTuple):
    """A record to be. time: ms after T0."""

    time: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def make_stream(
    data: Path, records: Iterable[Put], *, name: str = "s", per_batch: int = 5, per_segment: int = 20
) -> gateway.Stream:
    """A stream with these records in several batches and segments, all durable."""
    if not (data / "meta.json").exists():
        prepare(data, "site", "UTC")
    partition = Partition(data / f"{name}-0")
    rows = [(T0 + put.time, put.key, put.value, list(put.headers)) for put in records]
    for first in range(0, len(rows), per_segment):
        segment = rows[first : first + per_segment]
        batches = [batch.encode(segment[at : at + per_batch], first + at) for at in range(0, len(segment), per_batch)]
        partition.add(batches, sealed=first + per_segment < len(rows))
    partition.mark_all()
    return gateway.open(data)[name]


def readings(count: int, *, sensors: int = 3) -> list[Put]:
    """Readings of some sensors in turn, 100 ms apart: numbers as text."""
    return [Put(100 * n, f"plant/{n % sensors}/temperature".encode(), str(n / 4).encode()) for n in range(count)]
