"""Where a fetch finds its records: across segments, past damage, and while retention deletes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from gateway_native import batch

from gateway.log.partition import PartitionReader
from gateway.serve.kafka import slices
from gateway.serve.kafka.catalog import EARLIEST, LATEST, Topic
from gateway.serve.kafka.connection import read_slice
from tests.support.partitions import Partition, make_batches


def _read(topic: Topic, offset: int, bytes_max: int = 2**20) -> list[int]:
    """The offsets in one slice."""
    _, _, found = topic.find(offset, bytes_max)
    if found is None:
        return []
    data = read_slice(found, 0, found.length)
    found.file.close()
    batches, end, problem, *_ = batch.scan(data)
    assert (end, problem) == (len(data), batch.PROBLEM_NONE)
    return [row[0] for one in batches for row in batch.decode(data, one[0])]


def _all(topic: Topic, bytes_max: int) -> list[int]:
    """As a consumer reads that begins at the start: on with what follows the last it got."""
    position, end = topic.bounds()
    offsets: list[int] = []
    while position < end:
        more = [offset for offset in _read(topic, position, bytes_max) if offset >= position]
        if not more:
            break
        offsets += more
        position = more[-1] + 1
    return offsets


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    """Three segments of ten batches of ten records each, durable."""
    made = Partition(tmp_path / "orders-0")
    for base in (0, 100, 200):
        made.add(make_batches(10, base_offset=base, records=10, time=1_000 + base), sealed=base < 200)
    made.mark_all()
    return made


@pytest.mark.parametrize("bytes_max", [0, 700, 5_000, 2**20])
def test_a_consumer_gets_everything_once(partition: Partition, bytes_max: int) -> None:
    """Whatever the size that it asks for: whole batches, at least one."""
    assert _all(Topic("orders", partition.directory), bytes_max) == list(range(300))


def test_it_begins_with_the_batch_that_holds_the_offset(partition: Partition) -> None:
    """From any offset on; at the end and beyond there is nothing."""
    topic = Topic("orders", partition.directory)
    for offset in (0, 9, 10, 55, 99, 100, 299):
        assert _read(topic, offset, 0)[0] == offset - offset % 10
    assert _read(topic, 300) == []
    assert topic.find(300, 1)[:2] == (0, 300)
    assert topic.offset_at(LATEST) == (300, -1)
    assert topic.offset_at(EARLIEST) == (0, -1)
    assert topic.offset_at(1_150) == (150, 1_150)


def test_damage_is_passed_over_and_reported_once(partition: Partition, caplog: pytest.LogCaptureFixture) -> None:
    """A batch with a flipped bit is left out, one at the end of a segment too; a client would never get past it."""
    size = partition.log(0).stat().st_size // 10
    partition.damage(0, 3 * size + 80)
    partition.damage(100, 9 * size + 80)
    topic = Topic("orders", partition.directory)
    expected = [offset for offset in range(300) if not 30 <= offset < 40 and not 190 <= offset < 200]
    with caplog.at_level(logging.ERROR):
        assert _all(topic, 700) == expected
        assert _all(topic, 2**20) == expected
    assert len([record for record in caplog.records if "damage" in record.message]) == 2


def test_what_retention_took_is_out_of_range(partition: Partition) -> None:
    """And a slice that was found before can still be read to its end."""
    topic = Topic("orders", partition.directory)
    _, _, found = topic.find(0, 2**20)
    assert found is not None
    for suffix in ("log", "index", "timeindex"):
        (partition.directory / f"{0:020d}.{suffix}").unlink(missing_ok=True)
    assert len(read_slice(found, 0, found.length)) == found.length
    found.file.close()
    start, end, gone = topic.find(50, 2**20)
    assert (start, end, gone) == (100, 300, None)
    assert _all(topic, 2**20) == list(range(100, 300))


def test_only_what_is_durable(partition: Partition) -> None:
    """Bytes behind the watermark are there, and are not given out."""
    size = partition.log(200).stat().st_size // 10
    partition.mark(200, 4 * size, 240)
    topic = Topic("orders", partition.directory)
    assert topic.bounds() == (0, 240)
    assert _all(topic, 2**20) == list(range(240))


def test_a_stream_without_records(tmp_path: Path) -> None:
    """It has no directory yet, and is empty."""
    topic = Topic("orders", tmp_path / "orders-0")
    assert topic.bounds() == (0, 0)
    assert topic.find(0, 1) == (0, 0, None)
    assert topic.offset_at(LATEST) == (0, -1)
    assert topic.offset_at(0) == (-1, -1)
    assert PartitionReader(tmp_path / "orders-0").segments() == []


BYTES_MAX = 500


def test_what_one_consumer_read_is_not_checked_again_for_the_next(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a while, and only where nothing that is written later could belong to it."""
    quick = slices._quick
    looks: list[int] = []
    monkeypatch.setattr(
        slices, "_quick", lambda file, position, *more: looks.append(position) or quick(file, position, *more)
    )
    topic = Topic("orders", partition.directory)
    assert _all(topic, BYTES_MAX) == list(range(300))
    first = len(looks)
    assert _all(topic, BYTES_MAX) == list(range(300))
    second = len(looks) - first
    assert 0 < second < first / 2
    monkeypatch.setattr(slices, "CHECKED_AGE_S", 0.0)
    other = Topic("orders", partition.directory)
    for _ in range(2):
        looks.clear()
        assert _all(other, BYTES_MAX) == list(range(300))
        assert len(looks) == first


def test_no_more_is_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes."""
    monkeypatch.setattr(slices, "CHECKED_MAX", 3)
    checked = slices.Checked()
    for number in range(5):
        checked.add(Path("segment"), 1_000, slices._Run(number, number + 1, number))
    assert [checked.find(Path("segment"), number, 1_000) is not None for number in range(5)] == [False] * 2 + [True] * 3
    assert checked.find(Path("segment"), 4, 2_000) is None
