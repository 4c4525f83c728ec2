"""Recovery: whatever a crash, a copy or a bad sector left, the log opens, and nothing acknowledged is cut."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch, watermark

from gateway.log import maintenance
from gateway.log.partition import PartitionReader
from gateway.log.recovery import recover
from tests.support.partitions import T0, Partition, kafka_indexes, make_batch, make_batches, summary_of


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    return Partition(tmp_path / "s-0")


def offsets_read(partition: Partition) -> list[int]:
    """Everything a reader sees, after recovery published its watermark as the writer does."""
    chunks = PartitionReader(partition.directory).chunks(batch.Selection(), on_damage=lambda _: None)
    return [row[0] for rows in chunks for row in rows]


def publish(partition: Partition) -> None:
    """What the writer does with the state it was given."""
    found = recover(partition.directory)
    partition.mark(found.segment_base, found.position, found.next_offset, epoch=found.epoch)


def test_missing_directory_is_a_new_partition(tmp_path: Path) -> None:
    """A stream that never was starts at offset 0, and nothing is created for it."""
    found = recover(tmp_path / "s-0")
    assert (found.segment_base, found.next_offset, found.epoch) == (-1, 0, 1)
    assert list(tmp_path.iterdir()) == []


def test_empty_directory_is_a_new_partition(partition: Partition) -> None:
    """A directory made just before a crash, with or without an empty watermark, is a new partition."""
    partition.directory.mkdir()
    assert recover(partition.directory).segment_base == -1
    partition.watermark.touch()
    assert recover(partition.directory).segment_base == -1


@pytest.mark.parametrize("marked", [True, False])
def test_sound_log_is_taken_as_it_is(partition: Partition, marked: bool) -> None:
    """A log that was closed cleanly loses nothing, with its watermark or, copied, without."""
    partition.add(make_batches(10))
    partition.add(make_batches(5, base_offset=30), sealed=False)
    if marked:
        partition.mark_all()
    before = partition.log(30).read_bytes()
    found = recover(partition.directory)
    assert (found.log_start_offset, found.next_offset, found.segment_base) == (0, 45, 30)
    assert (found.position, found.cut_bytes, found.cut, found.damages, found.lost_records) == (
        len(before),
        0,
        None,
        (),
        0,
    )
    assert partition.log(30).read_bytes() == before
    assert found.epoch == (2 if marked else 1)


def test_state_lets_the_writer_go_on_with_kafkas_rule(partition: Partition) -> None:
    """The state is that of a writer which appended all batches itself: lengths, bytes since the entry, times."""
    batches = make_batches(40, value_bytes=150)
    partition.add(batches, sealed=False)
    index, times = kafka_indexes(0, batches, sealed=False)
    found = recover(partition.directory)
    assert (found.index_bytes, found.time_bytes) == (len(index), len(times))
    assert found.first_timestamp == T0
    assert (found.index_crc, found.time_crc) == (batch.crc32c(index), batch.crc32c(times))
    assert (found.max_timestamp, found.offset_of_max) == (T0 + 119, 119)
    assert found.last_timestamp == T0 + 119
    assert found.last_time_entry == int.from_bytes(times[-12:-4], "big")
    since = 0
    for data in batches:
        since = (0 if since > 4096 else since) + len(data)
    assert found.bytes_since_entry == since


def test_torn_tail_is_cut_at_every_byte_of_the_last_batch(partition: Partition) -> None:
    """However much of the last batch reached the disk, the log ends before it, and what was acknowledged stays."""
    batches = make_batches(3)
    acknowledged = sum(map(len, batches[:2]))
    for length in range(1, len(batches[2])):
        partition.add(batches[:2], sealed=False, tail=batches[2][:length])
        partition.mark(0, acknowledged, 6)
        found = recover(partition.directory)
        assert (found.next_offset, found.position) == (6, acknowledged)
        assert partition.log(0).stat().st_size == acknowledged
        content = batches[2][:length].rstrip(b"\0")
        assert found.cut_bytes == len(content)
        assert (found.cut is not None) == bool(content)


@pytest.mark.parametrize("tail", [bytes(1), bytes(60), bytes(61), bytes(2**20 + 7)])
def test_zero_tail_is_cut_without_a_word(partition: Partition, tail: bytes) -> None:
    """Room that was allocated and never written is no loss: the file is cut to size and nothing is reported."""
    partition.add(make_batches(3), sealed=False, tail=tail)
    found = recover(partition.directory)
    assert (found.next_offset, found.cut_bytes, found.cut, found.damages) == (9, 0, None, ())
    assert partition.log(0).stat().st_size == found.position


def test_garbage_tail_is_cut(partition: Partition) -> None:
    """Random bytes, or an old batch of elsewhere, behind the last batch are cut and counted."""
    source = random.Random(4)
    for tail in (source.randbytes(5000), make_batch(4711), make_batch(3), b"\0" * 8 + b"\x7f\xff\xff\xff" + bytes(60)):
        partition.add(make_batches(2), sealed=False, tail=tail)
        found = recover(partition.directory)
        assert found.next_offset == 6
        assert 0 < found.cut_bytes <= len(tail)


def test_flipped_bit_above_the_watermark_cuts_there(partition: Partition) -> None:
    """A bad batch that was never acknowledged ends the log, also when sound batches follow it."""
    batches = make_batches(5)
    size = len(batches[0])
    for position in range(size):
        partition.add(batches, sealed=False)
        partition.damage(0, 3 * size + position, bit=position % 8)
        partition.mark(0, 2 * size, 6)
        found = recover(partition.directory)
        assert (found.next_offset, found.position) == (9, 3 * size)
        assert 0 < found.cut_bytes <= 2 * size


def test_flipped_bit_below_the_watermark_costs_only_its_batch(partition: Partition) -> None:
    """What was acknowledged is neither walked nor cut: recovery need not see it, and what follows it stays readable."""
    batches = make_batches(6)
    size = len(batches[0])
    for position in range(size):
        partition.add(batches, sealed=False)
        partition.damage(0, 2 * size + position, bit=position % 8)
        partition.mark(0, 5 * size, 15)
        found = recover(partition.directory)
        assert (found.damages, found.walked_bytes) == ((), size)
        assert (found.next_offset, found.position, found.cut_bytes) == (18, 6 * size, 0)
        partition.mark(0, found.position, found.next_offset)
        assert offsets_read(partition) == [*range(6), *range(9, 18)]


def test_last_acknowledged_batch_damaged_is_not_cut(partition: Partition) -> None:
    """Damage right below the watermark, with nothing or something sound behind it, takes no other record along."""
    batches = make_batches(4)
    size = len(batches[0])
    for count in (3, 4):
        partition.add(batches[:count], sealed=False)
        partition.damage(0, 3 * size - 1)
        partition.mark(0, 3 * size, 9)
        found = recover(partition.directory)
        assert (found.position, found.next_offset, found.lost_records) == (count * size, count * 3, 0)


def test_later_segments_are_set_aside_after_a_cut(partition: Partition) -> None:
    """Nothing is deleted silently: segments behind a cut are renamed, each time anew; only empty ones go."""
    batches = make_batches(3)
    size = len(batches[0])
    for attempt in range(2):
        partition.add(batches, sealed=False)
        partition.damage(0, 2 * size + 70)
        partition.add(make_batches(2, base_offset=9), sealed=False)
        partition.add([], base=15, sealed=False, tail=bytes(4096))
        partition.mark(0, size, 3)
        found = recover(partition.directory)
        assert (found.segment_base, found.next_offset) == (0, 6)
        number = f".{attempt}" if attempt else ""
        assert [path.name for path in found.set_aside] == [f"{9:020d}.log{number}.cut"]
        assert found.set_aside[0].read_bytes() == b"".join(make_batches(2, base_offset=9))
    assert sorted(path.suffix for path in partition.directory.iterdir()) == sorted(
        ["", ".cut", ".cut", ".index", ".log", ".timeindex"]
    )


def test_segment_rolled_but_empty_is_gone_on_with(partition: Partition) -> None:
    """A crash between rolling and the first append leaves an empty segment, which is appended to."""
    partition.add(make_batches(3))
    partition.add([], base=9, sealed=False, tail=bytes(1 << 20))
    partition.mark(0, partition.log(0).stat().st_size, 9)
    found = recover(partition.directory)
    assert (found.segment_base, found.position, found.next_offset, found.cut_bytes) == (9, 0, 9, 0)
    assert (found.index_bytes, found.time_bytes, found.first_timestamp, found.max_timestamp) == (0, 0, -1, -1)


def test_watermark_beyond_the_log_is_reported_and_offsets_are_not_used_again(partition: Partition) -> None:
    """Acknowledged records that are gone are counted; the log goes on in a new segment at the watermark's offset."""
    batches = make_batches(3)
    partition.add(batches, sealed=False)
    partition.mark(0, 10 * len(batches[0]), 30)
    found = recover(partition.directory)
    assert (found.lost_records, found.next_offset, found.segment_base, found.position) == (21, 30, 30, 0)
    assert partition.log(30).stat().st_size == 0
    again = recover(partition.directory)
    assert again.next_offset == 30


def test_all_segments_gone_keeps_the_offsets(partition: Partition) -> None:
    """A directory that lost its segments but not its watermark never gives an offset out twice."""
    partition.directory.mkdir()
    partition.mark(0, 100, 7)
    found = recover(partition.directory)
    assert (found.segment_base, found.next_offset, found.lost_records, found.log_start_offset) == (7, 7, 7, 7)


@pytest.mark.parametrize("damage", ["missing", "short", "torn", "garbage", "long"])
def test_indexes_come_back_as_kafka_writes_them(partition: Partition, damage: str) -> None:
    """Whatever happened to the indexes of a copy, recovery and maintenance make them, byte for byte, Kafka's."""
    sealed = make_batches(50, value_bytes=200)
    active = make_batches(50, base_offset=150, value_bytes=200)
    partition.add(sealed)
    partition.add(active, sealed=False)
    partition.sums(0).unlink()
    for path in (partition.index(0), partition.times(0), partition.index(150), partition.times(150)):
        spoil(path, damage)
    recover(partition.directory)
    assert maintenance.missing(partition.directory) == [0]
    assert maintenance.rebuild_segment(partition.directory, 0) == summary_of(0, sealed)
    assert maintenance.missing(partition.directory) == []
    for base, batches in ((0, sealed), (150, active)):
        index, times = kafka_indexes(base, batches, sealed=base == 0)
        assert partition.index(base).read_bytes() == index
        assert partition.times(base).read_bytes() == times


def spoil(path: Path, damage: str) -> None:
    """Do that to an index file."""
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "short":
            path.write_bytes(content[:-12])
        case "torn":
            path.write_bytes(content[:-5])
        case "garbage":
            path.write_bytes(os.urandom(len(content)))
        case "long":
            path.write_bytes(content + bytes(24))


@pytest.mark.parametrize("end", ["lost", "half an entry", "written", "garbage behind"])
def test_indexes_go_on_behind_what_the_watermark_vouches_for(partition: Partition, end: str) -> None:
    """After a crash the index files are cut to what the watermark's checksum covers, and get what the walk finds."""
    batches = make_batches(60, value_bytes=200)
    partition.add(batches, sealed=False)
    position = sum(map(len, batches[:40]))
    partition.mark(0, position, 120)
    mark = watermark.read(partition.watermark)
    assert mark is not None
    index, times = kafka_indexes(0, batches, sealed=False)
    for path, size in ((partition.index(0), mark.index_bytes), (partition.times(0), mark.time_bytes)):
        content = path.read_bytes()
        match end:
            case "lost":
                path.write_bytes(content[:size])
            case "half an entry":
                path.write_bytes(content[: size + 5])
            case "garbage behind":
                path.write_bytes(content[:size] + os.urandom(100))
    found = recover(partition.directory)
    assert (found.indexes_whole, found.walked_bytes) == (True, sum(map(len, batches[40:])))
    assert (partition.index(0).read_bytes(), partition.times(0).read_bytes()) == (index, times)
    assert (found.index_bytes, found.time_bytes) == (len(index), len(times))
    assert (found.index_crc, found.time_crc) == (batch.crc32c(index), batch.crc32c(times))
    assert (found.first_timestamp, found.max_timestamp, found.last_timestamp) == (T0, T0 + 179, T0 + 179)


@pytest.mark.parametrize("damage", ["missing", "short", "torn", "garbage"])
@pytest.mark.parametrize("which", ["index", "times"])
def test_torn_indexes_of_the_active_segment_do_not_hold_up_the_start(
    partition: Partition, damage: str, which: str
) -> None:
    """What the watermark vouches for is not there: both are emptied and left to be made again after sealing."""
    batches = make_batches(60, value_bytes=200)
    partition.add(batches, sealed=False)
    partition.mark(0, sum(map(len, batches[:50])), 150)
    path = {"index": partition.index, "times": partition.times}[which](0)
    mark = watermark.read(partition.watermark)
    assert mark is not None
    path.write_bytes(path.read_bytes()[: {"index": mark.index_bytes, "times": mark.time_bytes}[which]])
    spoil(path, damage)
    found = recover(partition.directory)
    assert (found.next_offset, found.walked_bytes) == (180, sum(map(len, batches[50:])))
    assert (found.indexes_whole, found.index_bytes, found.time_bytes, found.index_crc) == (False, 0, 0, 0)
    assert (partition.index(0).read_bytes(), partition.times(0).read_bytes()) == (b"", b"")
    assert (found.first_timestamp, found.max_timestamp) == (T0, T0 + 179)


def test_indexes_of_old_segments_are_left_to_maintenance(partition: Partition) -> None:
    """Segments below the watermark's are not looked at by a start; what is missing there is found and made later."""
    batches = make_batches(50, value_bytes=200)
    partition.add(batches)
    partition.add(make_batches(2, base_offset=150), sealed=False)
    partition.mark_all()
    partition.index(0).unlink()
    times = partition.times(0).read_bytes()
    assert recover(partition.directory).rebuild == ()
    assert maintenance.missing(partition.directory) == [0]
    maintenance.rebuild_segment(partition.directory, 0)
    assert partition.index(0).read_bytes() == kafka_indexes(0, batches, sealed=True)[0]
    assert partition.times(0).read_bytes() == times


def test_damaged_watermark_counts_as_none(partition: Partition) -> None:
    """A watermark with a wrong CRC is not believed: the log itself says how far it goes."""
    partition.add(make_batches(4), sealed=False)
    partition.mark(0, 1, 10**9)
    content = bytearray(partition.watermark.read_bytes())
    content[33] ^= 1
    partition.watermark.write_bytes(content)
    assert watermark.read(partition.watermark) is None
    found = recover(partition.directory)
    assert (found.next_offset, found.lost_records) == (12, 0)


def test_damage_in_a_sealed_segment_without_a_watermark_keeps_what_follows(partition: Partition) -> None:
    """In a copied directory a flipped bit in an old segment costs its batch, not all later segments."""
    batches = make_batches(5)
    partition.add(batches)
    partition.add(make_batches(5, base_offset=15), sealed=False)
    partition.damage(0, 2 * len(batches[0]) + 80)
    found = recover(partition.directory)
    assert (found.next_offset, found.damages, found.set_aside) == (30, (), ())
    partition.mark(15, found.position, 30)
    assert offsets_read(partition) == [*range(6), *range(9, 30)]


def test_recovery_twice_changes_nothing_more(partition: Partition) -> None:
    """Recovery that is itself interrupted can start over: a second one finds what the first one left."""
    partition.add(make_batches(30, value_bytes=200), sealed=False, tail=b"torn" * 20)
    first = recover(partition.directory)
    files = {path.name: path.read_bytes() for path in partition.directory.iterdir()}
    second = recover(partition.directory)
    assert {path.name: path.read_bytes() for path in partition.directory.iterdir()} == files
    assert second.writer_state() == first.writer_state()
    assert (first.cut_bytes, second.cut_bytes) == (80, 0)


def test_what_recovery_keeps_is_synced_before_it_returns(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every walked log and the directory are synced, and indexes that are complete, before a reader may see records."""
    partition.add(make_batches(3), sealed=False)
    partition.add(make_batches(3, base_offset=9), sealed=False)
    partition.mark(0, 0, 0)
    synced: set[str] = set()
    real = os.fsync

    def recording_fsync(descriptor: int) -> None:
        kind = "/" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else ""
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name + kind)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    recover(partition.directory)
    names = {f"{0:020d}{suffix}" for suffix in (".log", ".index", ".timeindex")} | {f".{0:020d}.sums.new"}
    assert synced >= {*names, f"{9:020d}.log", "s-0/", f"{partition.directory.parent.name}/"}


def test_what_is_on_the_disk_already_is_not_synced_again(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed gateway with many streams starts without a sync for each that kept or cut nothing behind its mark."""
    batches = make_batches(3)

    def syncs(**arguments: Any) -> int:
        partition.add(sealed=False, **arguments)
        partition.mark(0, sum(map(len, batches)), 9)
        calls: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", calls.append)
            recover(partition.directory)
        return len(calls)

    assert syncs(batches=batches) == 0
    assert syncs(batches=batches, tail=bytes(1 << 20)) == 0
    assert syncs(batches=batches, tail=b"torn") == 1
    assert syncs(batches=batches, tail=bytes(5000) + b"torn") == 1
    assert syncs(batches=[*batches, make_batch(9)]) == 1


def test_failing_sync_is_an_error(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk refuses a sync, recovery raises instead of promising what it cannot."""
    partition.add(make_batches(3), sealed=False)

    def failing_fsync(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing_fsync)
    with pytest.raises(OSError, match="Input/output"):
        recover(partition.directory)


def test_random_damage_never_stops_the_log_from_opening(partition: Partition) -> None:
    """Many random wounds in all files: recovery comes up every time, its result is walkable, and offsets only grow."""
    source = random.Random(11)
    for _ in range(150):
        for path in partition.directory.glob("*"):
            path.unlink()
        partition.segments.clear()
        partition.add(make_batches(6))
        partition.add(make_batches(6, base_offset=18), sealed=False, tail=bytes(source.randrange(300)))
        if source.random() < 0.7:
            partition.mark(18, 3 * len(partition.segments[18][0]), 27, epoch=3)
        for path in list(partition.directory.iterdir()):
            content = bytearray(path.read_bytes())
            for _ in range(source.randrange(3) if content else 0):
                content[source.randrange(len(content))] = source.randrange(256)
            path.write_bytes(content[: source.randrange(len(content) + 1)] if source.random() < 0.2 else content)
        publish(partition)
        seen = offsets_read(partition)
        assert seen == sorted(set(seen))
        again = recover(partition.directory)
        assert again.next_offset >= (seen[-1] + 1 if seen else 0)
