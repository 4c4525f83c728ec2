"""What was offered is in the stream or in a gap record, to the last record, and the counters say the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_native.ring import Ring

import gateway
from gateway.config import from_dict
from gateway.ingest.engine import Engine
from gateway.log.layout import prepare
from tests.support.native import wait_until
from tests.support.small_disk import SmallDisk, small_disk

DISK_BYTES = 32 << 20
VALUE = bytes(1000)


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "data", request.param, DISK_BYTES) as made:
        yield made


def offer(ring: Ring, partition: int, count: int) -> int:
    """Put records into the ring for which nobody waits; how many that were."""
    for number in range(count):
        while not ring.append(partition, b"key", VALUE, b"", time.time_ns()):
            time.sleep(0.001)
        if number % 1000 == 0:
            time.sleep(0.001)
    return count


@pytest.mark.parametrize("when_full", ["refuse", "delete-oldest"])
def test_everything_offered_is_recorded_or_told(disk: SmallDisk, when_full: str) -> None:
    """Another file takes the disk and gives it back, twice: recorded + gaps = offered, and the statistics agree."""
    prepare(disk.path, "x", "UTC")
    streams = {"t": {"when_full": when_full, "segment_size": "1MiB"}}
    engine = Engine(from_dict({"data": str(disk.path), "disk": {"reserve": "2MiB"}, "streams": streams}))
    engine.start()
    partition, ring = engine.partition("t"), engine.ring("devices")
    offered = offer(ring, partition, 1_000)
    for _ in range(2):
        disk.leave(0)
        if when_full == "delete-oldest":  # nothing to delete, unless it has been sealed
            offered += offer(ring, partition, 20_000)
        wait_until(lambda: offer_refused(engine, ring, partition), "a record to be refused")
        disk.relieve()
        wait_until(lambda: not engine.writer.partition_state(partition)["refusing"], "room to be found")
        offered += offer(ring, partition, 500)
    assert engine.flush()
    deleted = engine.retainer.statistics()["deleted_segments"]
    state = engine.writer.partition_state(partition)
    assert engine.close()
    (loss,) = engine.statistics()["losses"]
    assert (loss["source"], loss["reason"], loss["unwritable"]) == ("devices", "full-disk", 0)
    assert loss["count"] == loss["written"] == state["refused"] > 0
    records = list(gateway.open(disk.path)["t"].read())
    gaps = [record.gap for record in records if record.gap is not None]
    assert loss["gap_records"] >= len(gaps) > 0
    if deleted == 0:
        assert sum(gap.count for gap in gaps) == loss["count"]
        assert sum(gap.bytes for gap in gaps) == loss["bytes"] == loss["count"] * (len(VALUE) + 3)
        assert len(records) - len(gaps) == ring.counters["records"] - loss["count"]
    assert ring.counters["records"] >= offered


def offer_refused(engine: Engine, ring: Ring, partition: int) -> bool:
    """One more record; is anything refused by now?"""
    offer(ring, partition, 1)
    time.sleep(0.005)
    return bool(engine.writer.partition_state(partition)["refusing"])
