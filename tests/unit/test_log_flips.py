"""Every byte of a small log flipped in turn: always detected, never served as good, everything else still served."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_native import batch

from gateway.log.layout import prepare
from gateway.log.partition import PartitionReader
from gateway.log.segment import Damage
from gateway.log.verify import verify
from tests.support.partitions import T0, Partition, make_batch, make_batches

RECORDS = 3
BATCHES = 5
SEED = 11


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    """Three segments of five batches of three records, the last one active; all durable."""
    prepare(tmp_path / "data", "plant-7", "Europe/Berlin")
    made = Partition(tmp_path / "data" / "s-0")
    step = BATCHES * RECORDS
    for number in range(3):
        base = number * step
        batches = make_batches(BATCHES, base_offset=base, time=T0 + base, value_bytes=900 if number < 2 else 40)
        made.add(batches, sealed=number < 2)
    made.mark_all()
    return made


def read(partition: Partition, **selection: int) -> tuple[list[batch.Row], list[Damage]]:
    """What a new reader gets, and the gaps."""
    gaps: list[Damage] = []
    chunks = PartitionReader(partition.directory).chunks(batch.Selection(**selection), on_damage=gaps.append)
    return [row for rows in chunks for row in rows], gaps


def flips(path: Path, bits: int) -> Iterator[tuple[int, int]]:
    """Flip so many random bits of each byte in turn; position and bit; afterwards the file is as it was."""
    source = random.Random(SEED)
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position in range(len(content)):
            for bit in source.sample(range(8), bits):
                file.seek(position)
                file.write(bytes([content[position] ^ 1 << bit]))
                yield position, bit
            file.seek(position)
            file.write(content[position : position + 1])


@pytest.mark.parametrize("base", [15, 30])
def test_every_flipped_byte_of_a_log_is_detected_and_costs_its_batch_only(partition: Partition, base: int) -> None:
    """Readers get every other record as it was and one gap with just the batch's offsets; verify names it."""
    whole, _ = read(partition)
    assert len(whole) == 3 * BATCHES * RECORDS
    batches = partition.segments[base]
    starts = [sum(map(len, batches[:number])) for number in range(BATCHES)]
    bits = 8 if base == 30 else 1  # all bits where batches are small
    for position, bit in flips(partition.log(base), bits):
        number = max(n for n in range(BATCHES) if starts[n] <= position)
        first = base + number * RECORDS
        rows, gaps = read(partition)
        expected = [row for row in whole if not first <= row[0] < first + RECORDS]
        assert rows == expected, (position, bit)
        assert [(gap.position, gap.offsets, gap.bytes) for gap in gaps] == [
            (starts[number], (first, first + RECORDS), len(batches[number]))
        ], (position, bit)
        if position % 11 == 0 or position - starts[number] < batch.HEADER_BYTES:
            found = verify(partition.directory.parent).damages
            assert [(each.position, each.offsets) for each in found if each.path == partition.log(base)] == [
                (starts[number], (first, first + RECORDS))
            ], (position, bit)


@pytest.mark.parametrize("name", ["index", "times", "sums", "manifest", "watermark"])
def test_no_flipped_byte_beside_the_log_changes_what_is_read(partition: Partition, name: str) -> None:
    """Indexes, summaries, manifest and watermark are hints with checks: readers give the same, verify names them."""
    path = {
        "index": partition.index(15),
        "times": partition.times(15),
        "sums": partition.sums(15),
        "manifest": partition.manifest,
        "watermark": partition.watermark,
    }[name]
    assert path.stat().st_size > 0
    selections: list[dict[str, int]] = [
        {},
        {"time_from": T0 + 17, "time_to": T0 + 26},
        {"time_from": T0 + 29},
        {"time_to": T0 + 3},
        {"offset_from": 22, "offset_to": 40},
    ]
    expected = [read(partition, **selection) for selection in selections]
    start = PartitionReader(partition.directory).log_start_offset
    for position, bit in flips(path, 8 if path.stat().st_size < 80 else 2):
        assert [read(partition, **selection) for selection in selections] == expected, (position, bit)
        assert PartitionReader(partition.directory).log_start_offset == start
        damages = verify(partition.directory.parent).damages
        assert {damage.path for damage in damages} == {path}, (position, bit)


def test_a_batch_inside_a_value_is_not_taken_for_the_next_one(partition: Partition) -> None:
    """A recorded piece of a log, with the very offsets that are missing, stays what it is: a value."""
    inner = b"".join(make_batches(3, base_offset=3))
    outer = batch.encode([(T0 + n, b"k", inner, []) for n in range(3)], 3)
    batches = [make_batch(0), outer, make_batch(6, time=T0 + 6), make_batch(9, time=T0 + 9)]
    partition.add(batches, base=0, sealed=False)
    partition.mark(0, sum(map(len, batches)), 12)
    for path in (partition.log(15), partition.log(30), partition.manifest, partition.sums(0)):
        path.unlink()
    whole, _ = read(partition)
    assert [row[0] for row in whole] == list(range(12))
    start = len(batches[0])
    for position in range(start, start + batch.HEADER_BYTES):
        if 12 <= position - start < 16:
            continue
        partition.damage(0, position, bit=position % 8)
        rows, gaps = read(partition)
        assert rows == [row for row in whole if not 3 <= row[0] < 6], position
        assert [gap.offsets for gap in gaps] == [(3, 6)], position
        partition.damage(0, position, bit=position % 8)


def test_two_wounds_cost_two_batches(partition: Partition) -> None:
    """A length that is wrong and, two batches on, a header that is: what lies between them is served."""
    whole, _ = read(partition)
    size = len(partition.segments[0][0])
    for wounds in ((1, 3), (0, 2), (2, 4)):
        partition.damage(0, wounds[0] * size + 10, bit=4)
        partition.damage(0, wounds[1] * size + 16, bit=0)
        rows, gaps = read(partition)
        lost = {number for wound in wounds for number in range(wound * RECORDS, (wound + 1) * RECORDS)}
        assert rows == [row for row in whole if row[0] not in lost]
        assert [gap.offsets for gap in gaps] == [(wound * RECORDS, (wound + 1) * RECORDS) for wound in wounds]
        partition.damage(0, wounds[0] * size + 10, bit=4)
        partition.damage(0, wounds[1] * size + 16, bit=0)
