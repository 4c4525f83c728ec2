"""Verify: every damaged place is named, nothing sound is, and nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_native import batch

from gateway.errors import FormatError
from gateway.log.layout import prepare
from gateway.log.recovery import recover
from gateway.log.verify import Report, verify
from tests.support.partitions import T0, Partition, make_batches


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    """Segments 0 and 60, of 20 batches of three records each, all durable."""
    prepare(tmp_path / "data", "plant-7", "Europe/Berlin")
    made = Partition(tmp_path / "data" / "s-0")
    made.add(make_batches(20, value_bytes=500))
    made.add(make_batches(20, base_offset=60, time=T0 + 60, value_bytes=500), sealed=False)
    made.mark_all()
    return made


def check(partition: Partition, *, deep: bool = False) -> Report:
    return verify(partition.directory.parent, deep=deep)


def places(report: Report) -> list[tuple[str, int]]:
    return [(damage.path.name, damage.position) for damage in report.damages]


def test_sound_directory_is_sound_and_counted(partition: Partition) -> None:
    """Nothing is reported of a directory as it was written, everything is counted, and progress reaches its total."""
    steps: list[tuple[int, int]] = []
    report = verify(partition.directory.parent, deep=True, progress=lambda done, total: steps.append((done, total)))
    assert (report.sound, report.damages) == (True, [])
    counted = report.partitions[0]
    assert (counted.stream, counted.segments, counted.batches, counted.records) == ("s", 2, 40, 120)
    size = partition.log(0).stat().st_size + partition.log(60).stat().st_size
    assert counted.bytes == size
    assert steps[-1] == (size, size)
    entries = sum(path.stat().st_size // 8 for path in partition.directory.glob("*.index"))
    entries += sum(path.stat().st_size // 12 for path in partition.directory.glob("*.timeindex"))
    assert counted.index_entries == entries > 10


def test_every_flipped_bit_in_a_log_is_named(partition: Partition) -> None:
    """One flipped bit anywhere in a batch gives one damaged place, the batch's start, in either segment."""
    size = len(partition.segments[0][0])
    for base in (0, 60):
        for position in [*range(70), *range(70, size, 61)]:
            partition.damage(base, 7 * size + position, bit=position % 8)
            report = check(partition)
            assert places(report) == [(partition.log(base).name, 7 * size)]
            partition.damage(base, 7 * size + position, bit=position % 8)
    assert check(partition).sound


def test_every_flipped_bit_in_an_index_is_named(partition: Partition) -> None:
    """An index entry that names anything else than what lies there is reported, in both indexes."""
    for path in (partition.index(0), partition.times(0), partition.index(60), partition.times(60)):
        sound = path.read_bytes()
        for position in range(len(sound)):
            content = bytearray(sound)
            content[position] ^= 1 << (position % 8)
            path.write_bytes(content)
            report = check(partition)
            if path == partition.times(60) and position >= len(sound) - 4 and report.sound:
                continue  # the last entry of an active segment may speak of what is not durable yet
            assert not report.sound
            assert {damage.path for damage in report.damages} == {path}
        path.write_bytes(sound)
    assert check(partition).sound


@pytest.mark.parametrize("suffix", ["index", "times"])
def test_missing_and_torn_indexes_are_named(partition: Partition, suffix: str) -> None:
    """An index that is gone or ends inside an entry is reported, and is in order again after the next start."""
    path = {"index": partition.index, "times": partition.times}[suffix](0)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert "the index ends inside an entry" in str(check(partition).damages[0])
    path.unlink()
    assert "the index is missing" in str(check(partition).damages[0])
    recover(partition.directory)
    assert check(partition).sound


def test_missing_segment_is_named_with_its_offsets(partition: Partition) -> None:
    """Records between two segments that are gone are reported with their offsets."""
    partition.add(make_batches(2, base_offset=150), sealed=False)
    partition.mark_all()
    report = check(partition)
    text = next(str(damage) for damage in report.damages if "missing before" in str(damage))
    assert "the 30 records from offset 120 to 149 are missing" in text


def test_watermark_beyond_the_log_and_damaged_watermark_are_named(partition: Partition) -> None:
    """A watermark that is not sound is reported; a missing one is a copy, and no damage."""
    partition.watermark.write_bytes(b"\1" * 64)
    assert places(check(partition)) == [("watermark", 0)]
    partition.watermark.unlink()
    assert check(partition).sound


def test_what_is_not_durable_is_not_looked_at(partition: Partition) -> None:
    """A torn tail, zeros and index entries above the watermark are the business of recovery, and no damage."""
    with partition.log(60).open("ab") as file:
        file.write(make_batches(1, base_offset=120)[0][:-9] + bytes(4096))
    with partition.index(60).open("ab") as file:
        file.write((200).to_bytes(4, "big") + (10**6).to_bytes(4, "big") + b"\0\0")
    assert check(partition).sound


def test_zeros_behind_a_sealed_segment_are_named(partition: Partition) -> None:
    """A sealed segment that was not cut to size is reported: Kafka's tools stop at it."""
    with partition.log(0).open("ab") as file:
        file.write(bytes(300))
    report = check(partition)
    assert [damage.found for damage in report.damages] == ["zeros"]
    assert "300 zero bytes" in str(report.damages[0])


def test_several_wounds_are_all_named(partition: Partition) -> None:
    """Damage does not hide what lies behind it."""
    size = len(partition.segments[0][0])
    wounds = [(0, 2), (0, 3), (0, 11), (60, 0), (60, 19)]
    for base, number in wounds:
        partition.damage(base, number * size + 100)
    expected = [(partition.log(base).name, number * size) for base, number in wounds if (base, number) != (0, 3)]
    found = places(check(partition))
    assert set(found) >= set(expected)
    assert check(partition).partitions[0].records == (40 - len(wounds)) * 3


def test_deep_finds_what_a_right_crc_hides(partition: Partition) -> None:
    """Records that do not parse inside a batch with a right CRC are found by the deep check only."""
    data = bytearray(partition.log(0).read_bytes())
    size = len(partition.segments[0][0])
    data[61] ^= 4
    data[17:21] = batch.crc32c(data[21:size]).to_bytes(4, "big")
    partition.log(0).write_bytes(data)
    assert check(partition).sound
    assert places(check(partition, deep=True)) == [(partition.log(0).name, 0)]


def test_verify_changes_nothing(partition: Partition) -> None:
    """Not a byte and not a name is different afterwards, damaged or not."""
    partition.damage(0, 1000)
    data = partition.directory.parent
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    check(partition, deep=True)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_directory_without_meta_is_refused(tmp_path: Path) -> None:
    """Verifying something else than a data directory is a mistake, not a sound result."""
    with pytest.raises(FormatError):
        verify(tmp_path)
