"""Reading: only what is durable, by offset, time and key, while others write, and on whatever a copy left."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch, ring
from gateway_native.writer import Writer

import gateway
from gateway.errors import DamageError, DamageWarning, StreamNotFound
from gateway.log.layout import prepare
from gateway.log.partition import PartitionReader
from gateway.log.recovery import recover
from tests.support.partitions import T0, Partition, make_batch, make_batches


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    prepare(tmp_path / "data", "plant-7", "Europe/Berlin")
    return Partition(tmp_path / "data" / "s-0")


def read(partition: Partition, **selection: object) -> list[int]:
    """The offsets that a fresh reader gives."""
    chunks = PartitionReader(partition.directory).chunks(batch.Selection(**selection))  # type: ignore[arg-type]
    return [row[0] for rows in chunks for row in rows]


def three_segments(partition: Partition) -> None:
    """Offsets 0 to 89 in segments at 0, 30 and 60; record n has time T0 + n and its batch three records."""
    for base in (0, 30, 60):
        partition.add(make_batches(10, base_offset=base, time=T0 + base, value_bytes=700), sealed=base != 60)
    partition.mark_all()


def test_reader_stops_at_the_watermark(partition: Partition) -> None:
    """Batches that are in the file but above the watermark are not seen, and are seen when it moves."""
    batches = make_batches(6)
    partition.add(batches, sealed=False)
    size = len(batches[0])
    reader = PartitionReader(partition.directory)
    for count in range(7):
        partition.mark(0, count * size, count * 3)
        assert reader.limit().offset == count * 3
        assert [row[0] for rows in reader.chunks(batch.Selection()) for row in rows] == list(range(count * 3))


def test_segment_beyond_the_watermark_is_not_seen(partition: Partition) -> None:
    """A segment that was begun but not committed does not exist for readers."""
    partition.add(make_batches(3))
    partition.add(make_batches(3, base_offset=9), sealed=False)
    partition.mark(0, partition.log(0).stat().st_size, 9)
    assert read(partition) == list(range(9))


def test_new_partition_shows_nothing_before_its_first_commit(partition: Partition) -> None:
    """With an empty watermark, sound batches in the file are not durable yet."""
    partition.add(make_batches(3), sealed=False)
    partition.watermark.touch()
    assert PartitionReader(partition.directory).limit().offset == 0
    assert read(partition) == []


def test_segment_that_appears_behind_its_watermark_is_not_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new partition has a watermark before it has a segment; what is in that segment a moment later is not seen."""
    made = Partition(tmp_path / "s-0")
    made.directory.mkdir()
    made.mark(0, 0, 0)
    look = PartitionReader.segments

    def appear(reader: PartitionReader) -> list[int]:
        made.add(make_batches(3), sealed=False)
        return look(reader)

    monkeypatch.setattr(PartitionReader, "segments", appear)
    assert PartitionReader(made.directory).limit() == (0, 0, 0)


def test_copy_without_watermark_is_read_to_its_first_bad_batch(partition: Partition) -> None:
    """Without a watermark the last segment's CRCs say how far the log goes, through zeros or a torn batch."""
    three_segments(partition)
    partition.watermark.unlink()
    assert read(partition) == list(range(90))
    for tail in (bytes(5000), make_batch(90)[:-1], make_batch(999)):
        with partition.log(60).open("ab") as file:
            file.write(tail)
        assert read(partition) == list(range(90))
        os.truncate(partition.log(60), partition.log(60).stat().st_size - len(tail))


def test_walk_without_watermark_goes_on_where_it_was(partition: Partition) -> None:
    """A log that grows without a watermark is followed, and one that was cut meanwhile is looked at again."""
    batches = make_batches(6)
    partition.add(batches[:2], sealed=False)
    reader = PartitionReader(partition.directory)
    assert reader.limit().offset == 6
    partition.add(batches, sealed=False)
    assert reader.limit().offset == 18
    partition.add(batches[:1], sealed=False)
    assert reader.limit().offset == 3


@pytest.mark.parametrize("copied", ["shorter", "zeros", "no segment"])
def test_watermark_newer_than_the_copied_log_is_not_believed(partition: Partition, copied: str) -> None:
    """A copy made while the gateway wrote has a log older than its watermark: it is read as far as it goes."""
    three_segments(partition)
    size = len(partition.segments[60][0])
    content = partition.log(60).read_bytes()
    match copied:
        case "shorter":
            partition.log(60).write_bytes(content[: 7 * size + 11])
        case "zeros":
            partition.log(60).write_bytes(content[: 7 * size] + bytes(3 * size))
        case "no segment":
            for path in (partition.log(60), partition.index(60), partition.times(60)):
                path.unlink()
    expected = 60 if copied == "no segment" else 81
    assert PartitionReader(partition.directory).limit().offset == expected
    assert read(partition) == list(range(expected))


def test_read_only_directory_can_be_read_and_nothing_is_created(partition: Partition) -> None:
    """Readers need read permission only, and leave no trace."""
    three_segments(partition)
    data = partition.directory.parent
    before = sorted(data.rglob("*"))
    for path in [data, *before]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    script = (
        "import sys; sys.path[:0] = sys.argv[2].split(':')\n"
        "import os, zoneinfo, gateway\n"
        "zoneinfo.ZoneInfo('Europe/Berlin'); read = gateway.open\n"  # what is imported late, while it may be
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "print(sum(1 for _ in read(sys.argv[1])['s'].read()))\n"
    )
    try:
        for parent in list(data.parents)[:3]:
            if parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o055)
        arguments = [sys.executable, "-c", script, str(data), ":".join(sys.path)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.stdout == "90\n", done.stderr
        assert sorted(data.rglob("*")) == before
    finally:
        for path in [data, *before]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_offsets_are_found_through_the_index(partition: Partition) -> None:
    """Any half-open range of offsets gives exactly its records, across segments and beyond both ends."""
    three_segments(partition)
    for first in range(0, 95, 7):
        for last in range(0, 100, 9):
            assert read(partition, offset_from=first, offset_to=last) == list(range(first, min(last, 90)))


def test_times_are_found_through_the_time_index(partition: Partition) -> None:
    """Any half-open range of times gives exactly its records; offset_of_time gives the first of them."""
    three_segments(partition)
    reader = PartitionReader(partition.directory)
    for first in range(-5, 95, 7):
        assert reader.offset_of_time(T0 + first) == min(max(first, 0), 90)
        for last in range(0, 100, 9):
            expected = list(range(max(first, 0), min(last, 90)))
            assert read(partition, time_from=T0 + first, time_to=T0 + last) == expected


@pytest.mark.parametrize("wound", ["missing", "torn", "garbage", "beyond", "zeros"])
def test_wrong_index_costs_time_but_no_record(partition: Partition, wound: str) -> None:
    """The offset index is a hint: whatever stands in it, a range of offsets is right."""
    three_segments(partition)
    for base in (0, 30, 60):
        path = partition.index(base)
        content = path.read_bytes()
        assert len(content) >= 16
        match wound:
            case "missing":
                path.unlink()
            case "torn":
                path.write_bytes(content[:-3])
            case "garbage":
                path.write_bytes(random.Random(base).randbytes(len(content)))
            case "beyond":
                path.write_bytes(content + (29).to_bytes(4, "big") + (10**9).to_bytes(4, "big"))
            case "zeros":
                path.write_bytes(bytes(len(content)))
    for first in range(0, 90, 8):
        assert read(partition, offset_from=first, offset_to=first + 10) == list(range(first, min(first + 10, 90)))


@pytest.mark.parametrize("wound", ["missing", "short", "torn"])
def test_short_time_index_costs_time_but_no_record(partition: Partition, wound: str) -> None:
    """A time index that lost its end, or is gone, hides nothing: what follows its last entry is looked at."""
    three_segments(partition)
    for base in (0, 30, 60):
        path = partition.times(base)
        content = path.read_bytes()
        match wound:
            case "missing":
                path.unlink()
            case "short":
                path.write_bytes(content[: len(content) // 24 * 12])
            case "torn":
                path.write_bytes(content[:-5])
    for first in range(0, 90, 8):
        assert read(partition, time_from=T0 + first, time_to=T0 + first + 10) == list(range(first, min(first + 10, 90)))


def test_clock_that_steps_between_segments_spoils_no_lookup(partition: Partition) -> None:
    """One segment recorded with a clock in 2036 hides neither the earlier nor the later ones."""
    far = T0 + 400_000_000_000
    partition.add(make_batches(10, time=T0, value_bytes=700))
    partition.add(make_batches(10, base_offset=30, time=far, value_bytes=700))
    partition.add(make_batches(10, base_offset=60, time=T0 + 60, value_bytes=700), sealed=False)
    partition.mark_all()
    assert read(partition, time_from=T0 + 20, time_to=T0 + 70) == [*range(20, 30), *range(60, 70)]
    assert read(partition, time_from=far + 5) == list(range(35, 60))
    assert PartitionReader(partition.directory).time_range() == (T0, far + 29)


def test_small_steps_back_inside_a_segment_lose_nothing(partition: Partition) -> None:
    """Records out of order by less than the slack are all found by their own times."""
    source = random.Random(3)
    times = [T0 + n * 50 - source.randrange(4000) for n in range(300)]
    batches = [batch.encode([(t, b"k", b"v" * 300, [])], n) for n, t in enumerate(times)]
    partition.add(batches, sealed=False)
    partition.mark_all()
    for first in range(0, 15_000, 1700):
        expected = [n for n, t in enumerate(times) if T0 + first <= t < T0 + first + 1000]
        assert read(partition, time_from=T0 + first, time_to=T0 + first + 1000) == expected


def test_damage_is_a_gap_with_offsets_bytes_file_and_position(partition: Partition) -> None:
    """Reading goes on behind a damaged batch, says so in a warning, once, and lists what is missing."""
    three_segments(partition)
    size = len(partition.segments[30][0])
    partition.damage(30, 4 * size + 200)
    stream = gateway.open(partition.directory.parent)["s"]
    records = stream.read()
    with pytest.warns(DamageWarning, match=rf"{30:020d}\.log, byte {4 * size}: the CRC-32C is") as warned:
        assert [record.offset for record in records] == [*range(42), *range(45, 90)]
    (gap,) = records.gaps
    assert (gap.path, gap.position, gap.offsets, gap.bytes) == (partition.log(30), 4 * size, (42, 45), size)
    assert [message.message.damage for message in warned] == [gap]
    assert [record.offset for record in stream.read(offsets=(40, 50))] == [40, 41, 45, 46, 47, 48, 49]


def test_damage_can_be_an_error_or_silent(partition: Partition) -> None:
    """With "raise" everything before the damage is read, then DamageError names the place; "skip" only lists it."""
    three_segments(partition)
    size = len(partition.segments[30][0])
    partition.damage(30, 4 * size + 200)
    stream = gateway.open(partition.directory.parent)["s"]
    seen: list[int] = []
    with pytest.raises(DamageError, match=rf"{30:020d}\.log, byte {4 * size}: the CRC-32C is"):
        seen.extend(record.offset for record in stream.read(damage="raise"))
    assert seen == list(range(42))
    records = stream.read(damage="skip")
    assert [record.offset for record in records] == [*range(42), *range(45, 90)]
    assert [(damage.path.name, damage.position) for damage in records.damages] == [(f"{30:020d}.log", 4 * size)]
    with pytest.raises(ValueError, match='"gap", "raise" or "skip"'):
        stream.read(damage="ignore")


def test_gaps_are_told_in_the_order_of_the_records(partition: Partition) -> None:
    """`on_gap` is called after the last record before the damage and before the first one after it, by follow too."""
    three_segments(partition)
    size = len(partition.segments[30][0])
    partition.damage(30, 4 * size + 200)
    partition.damage(60, 70)
    stream = gateway.open(partition.directory.parent)["s"]
    expected = [*range(42), (42, 45), *range(45, 60), (60, 63), *range(63, 90)]
    seen: list[Any] = []
    seen.extend(record.offset for record in stream.read(on_gap=lambda gap: seen.append(gap.offsets)))
    assert seen == expected
    stop = threading.Event()
    followed: list[Any] = []
    for record in stream.follow("start", stop=stop, on_gap=lambda gap: followed.append(gap.offsets)):
        followed.append(record.offset)
        if record.offset == 89:
            stop.set()
    assert followed == expected


def test_damaged_time_in_a_header_hides_nothing(partition: Partition) -> None:
    """A flipped bit in a batch's times is found as damage, not taken for a time far away."""
    three_segments(partition)
    size = len(partition.segments[30][0])
    for position in (27, 35):
        partition.damage(30, 2 * size + position, bit=6)
        with pytest.raises(DamageError):
            read(partition, time_from=T0 + 31, time_to=T0 + 59)
        partition.damage(30, 2 * size + position, bit=6)


def test_record_larger_than_a_chunk_is_read(partition: Partition) -> None:
    """A batch larger than one read is read in a second, larger one."""
    batches = [
        make_batch(0),
        batch.encode([(T0, b"cam", bytes(3_000_000), [])], 3),
        make_batch(4),
        batch.encode([(T0, b"cam", bytes(700_000), [])], 7),
    ]
    partition.add(batches, sealed=False, tail=bytes(9))
    partition.mark_all()
    assert read(partition) == list(range(8))


def test_segment_that_retention_removes_while_reading_is_passed_over(partition: Partition) -> None:
    """A reader that meets a missing segment goes on with those that are there."""
    three_segments(partition)
    chunks = PartitionReader(partition.directory).chunks(batch.Selection())
    seen = [row[0] for row in next(chunks)]
    for path in (partition.log(0), partition.log(30), partition.index(30), partition.times(30)):
        path.unlink()
    seen += [row[0] for rows in chunks for row in rows]
    assert seen == [*range(30), *range(60, 90)]


def test_public_names_give_records_with_the_sites_times(partition: Partition) -> None:
    """A record has offset, key, value, headers and its time in the site's zone, which times without zone mean too."""
    partition.add([batch.encode([(T0, b"a/b", b"1", [("qos", b"1")])], 0), make_batch(1, time=T0 + 1000)], sealed=False)
    partition.mark_all()
    log = gateway.open(partition.directory.parent)
    assert log.streams() == ["s"]
    record = next(iter(log["s"].read()))
    assert (record.offset, record.key, record.value, record.headers) == (0, b"a/b", b"1", (("qos", b"1"),))
    assert record.timestamp.isoformat() == "2023-11-14T23:13:20+01:00"
    assert record.header("qos") == b"1"
    assert [found.offset for found in log["s"].read(start="2023-11-14 23:13:21")] == [1, 2, 3]
    assert [found.offset for found in log["s"].read(end="2023-11-14T22:13:21Z", keys="a/+")] == [0]
    described = log["s"].describe()
    assert (described["records"], described["log_start_offset"], described["durable_offset"]) == (4, 0, 4)
    assert (described["segments"], described["bytes"]) == (1, partition.log(0).stat().st_size)
    assert described["newest"].isoformat() == "2023-11-14T23:13:21.002000+01:00"
    with pytest.raises(StreamNotFound, match=r"'t'.*s"):
        log["t"]


class Gateway:
    """A writer with its two threads on one partition, as the engine runs it."""

    def __init__(self, directory: Path) -> None:
        self.writer = Writer("pwrite")
        self.index = self.writer.add_partition(
            str(directory), segment_bytes=30_000, linger_ns=0, **recover(directory).writer_state()
        )
        self.ring = self.writer.ring("test", 1 << 20)
        self.threads = [threading.Thread(target=body) for body in (self.writer.run_writer, self.writer.run_flusher)]
        for thread in self.threads:
            thread.start()

    def append(self, first: int, last: int) -> None:
        for number in range(first, last):
            value = b"%d" % number
            while not self.ring.append(self.index, b"k", value * 20, b"", time.time_ns(), ring.WANTS_ACK):
                time.sleep(0.001)
            if number % 50 == 0:
                time.sleep(0.001)
        assert self.writer.flush()

    def close(self) -> None:
        self.writer.stop()
        for thread in self.threads:
            thread.join()


def test_other_process_follows_while_the_gateway_writes(partition: Partition) -> None:
    """A reader in another process gets every record once and in order, across rolled segments."""
    script = (
        "import sys; sys.path[:0] = sys.argv[2].split(':')\n"
        "import gateway\n"
        "for record in gateway.open(sys.argv[1])['s'].follow(0):\n"
        "    number = b'%d' % record.offset\n"
        "    assert record.value == number * 20, record\n"
        "    if record.offset == 2999: break\n"
        "print('all')\n"
    )
    running = Gateway(partition.directory)
    try:
        running.append(0, 10)
        follower = subprocess.Popen(
            [sys.executable, "-c", script, str(partition.directory.parent), ":".join(sys.path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with follower:
            running.append(10, 3000)
            out, errors = follower.communicate(timeout=60)
        assert (out, follower.returncode) == ("all\n", 0), errors
        assert len(list(partition.directory.glob("*.log"))) > 2
    finally:
        running.close()


def test_copies_taken_while_the_gateway_writes_are_readable(partition: Partition, tmp_path: Path) -> None:
    """A directory copied file by file at any moment opens, and gives a gapless beginning of the log."""
    running = Gateway(partition.directory)
    try:
        running.append(0, 5)
        thread = threading.Thread(target=running.append, args=(5, 2000))
        thread.start()
        for number in range(8):
            target = tmp_path / f"copy-{number}"
            shutil.copytree(partition.directory.parent, target, ignore=shutil.ignore_patterns("lock"))
            seen = [record.offset for record in gateway.open(target)["s"].read()]
            assert seen == list(range(len(seen)))
            assert len(seen) >= 5
        thread.join()
    finally:
        running.close()


def test_writer_goes_on_after_recovery_with_indexes_as_if_uninterrupted(partition: Partition) -> None:
    """Closing and opening again between records leaves one gapless log whose sealed indexes follow Kafka's rule."""
    from tests.support.partitions import kafka_indexes

    for start in range(0, 900, 300):
        running = Gateway(partition.directory)
        running.append(start, start + 300)
        running.close()
    assert read(partition) == list(range(900))
    reader = PartitionReader(partition.directory)
    for base in reader.segments():
        data = partition.log(base).read_bytes()
        batches = [data[found[0] : found[0] + found[1]] for found in batch.scan(data)[0]]
        index, times = kafka_indexes(base, batches, sealed=True)
        assert partition.index(base).read_bytes() == index
        assert partition.times(base).read_bytes() == times
