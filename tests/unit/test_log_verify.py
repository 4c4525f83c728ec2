"""Verify: every damaged place is named, nothing sound is, and nothing is changed."""

from __future__ import annotations

import errno
import time
from contextlib import closing
from pathlib import Path

import pytest
from gateway_native import batch, summary
from gateway_native.writer import Writer

import gateway
from gateway.clock import NS_PER_MS
from gateway.errors import FormatError, StreamNotFound
from gateway.log.layout import prepare
from gateway.log.repair import repair
from gateway.log.segment import Segment
from gateway.log.verify import Report, verify
from tests.support.partitions import T0, Partition, make_batches, summary_of
from tests.support.recording import Recording


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
    """An index that ends inside an entry is damaged; one that is gone is noted; both can be made again."""
    path = {"index": partition.index, "times": partition.times}[suffix](0)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert "the index ends inside an entry" in str(check(partition).damages[0])
    repair(partition.directory.parent)
    assert (path.read_bytes(), check(partition).sound) == (content, True)
    path.unlink()
    report = check(partition)
    assert (report.sound, report.notes) == (True, [(path, "is missing; the gateway makes it again")])
    repair(partition.directory.parent)
    assert (path.read_bytes(), check(partition).notes) == (content, [])


def test_short_indexes_are_damage_unless_their_summary_says_so(partition: Partition) -> None:
    """A gateway that could not write its indexes leaves them short, and says so; otherwise entries are missing."""
    partition.index(0).write_bytes(partition.index(0).read_bytes()[:-8])
    partition.times(0).write_bytes(partition.times(0).read_bytes()[:-12])
    assert places(check(partition)) == [(partition.index(0).name, 0), (partition.times(0).name, 0)]
    crcs = {"index_crc": batch.crc32c(partition.index(0).read_bytes())}
    crcs["time_crc"] = batch.crc32c(partition.times(0).read_bytes())
    partition.sums(0).write_bytes(summary.encode(summary_of(0, partition.segments[0])._replace(flags=0, **crcs)))
    report = check(partition)
    assert report.sound
    assert [note.path for note in report.notes] == [partition.times(0), partition.sums(0)]
    assert "has no final entry" in str(report.notes[0])
    assert "not whole" in str(report.notes[1])


@pytest.mark.parametrize("name", ["sums", "manifest"])
def test_every_flipped_bit_in_a_summary_or_the_manifest_is_named(partition: Partition, name: str) -> None:
    """Each of their bytes is covered by a checksum, or an entry is missing."""
    path = {"sums": partition.sums(0), "manifest": partition.manifest}[name]
    content = path.read_bytes()
    for position in range(len(content)):
        wrong = bytearray(content)
        wrong[position] ^= 1 << position % 8
        path.write_bytes(wrong)
        report = check(partition)
        assert places(report) == [(path.name, 0)]
        assert report.repairable[0].manifest == (name == "manifest")
        assert report.repairable[0].segments == ({0} if name == "sums" else set())


def test_summary_and_manifest_are_compared_with_the_log(partition: Partition) -> None:
    """A summary, or an entry, that is sound but of another log is named, with what it says and what is so."""
    right = summary_of(0, partition.segments[0])
    wrongs = (
        {"log_bytes": 1}, {"next_offset": 59}, {"first_timestamp": 0}, {"max_timestamp": T0}, {"base_offset": 1},
    )  # fmt: skip
    for wrong in wrongs:
        for path in (partition.sums(0), partition.manifest):
            content = path.read_bytes()
            path.write_bytes(summary.encode(right._replace(**wrong)))
            report = check(partition)
            if path == partition.manifest and "base_offset" in wrong:
                assert [note.path for note in report.notes] == [path]
            else:
                assert places(report) == [(path.name, 0)]
                assert next(iter(wrong)).replace("_", " ") in report.damages[0].problem
            path.write_bytes(content)


def test_what_a_failed_sync_left_behind_a_sealed_segment_is_noted(partition: Partition) -> None:
    """A segment ends where the next one begins: what could not be cut is neither read, counted nor called damage."""
    partition.add(make_batches(5, base_offset=90, time=T0 + 90, value_bytes=100), sealed=False)
    partition.mark_all()
    for path in (partition.sums(60), partition.manifest):
        path.unlink(missing_ok=True)
    report = check(partition)
    assert report.sound
    assert any("follows byte 15970 is in the next segment too" in str(note) for note in report.notes)
    assert report.partitions[0].records == 105
    stream = gateway.open(partition.directory.parent)["s"]
    assert [record.offset for record in stream.read()] == list(range(105))
    assert [record.offset for record in stream.read(offsets=(80, 95))] == list(range(80, 95))
    partition.damage(60, 12 * len(partition.segments[60][0]) + 100)
    records = stream.read()
    assert ([record.offset for record in records], records.gaps) == (list(range(105)), [])


def test_missing_segment_is_named_with_its_offsets(partition: Partition) -> None:
    """Records between two segments that are gone are reported with their offsets."""
    partition.add(make_batches(2, base_offset=150), sealed=False)
    partition.mark_all()
    report = check(partition)
    (damage,) = [damage for damage in report.damages if "records before this segment are missing" in str(damage)]
    assert (damage.path, damage.offsets) == (partition.log(150), (120, 150))
    assert str(damage).endswith("the 30 records before this segment are missing (offsets 120 to 149)")


def test_damaged_watermark_is_named(partition: Partition) -> None:
    """A watermark that is not sound is reported; a missing one is a copy, which is noted, and no damage."""
    partition.watermark.write_bytes(b"\1" * 64)
    assert places(check(partition)) == [("watermark", 0)]
    partition.watermark.unlink()
    report = check(partition)
    assert (report.sound, [note.path for note in report.notes]) == (True, [partition.watermark])


@pytest.mark.parametrize("tail", [b"", bytes(5000)], ids=["cut", "zeros"])
def test_log_that_ends_before_its_watermark_is_named(partition: Partition, tail: bytes) -> None:
    """Acknowledged records that are gone are damage, with their offsets, though what is left of the log is sound."""
    size = len(partition.segments[60][0])
    partition.log(60).write_bytes(b"".join(partition.segments[60][:15]) + tail)
    report = check(partition)
    (damage,) = [damage for damage in report.damages if damage.path == partition.log(60)]
    assert (damage.offsets, report.partitions[0].durable_offset) == ((105, 120), 105)
    assert "15 records before what its watermark calls durable" in str(damage)
    assert damage.position == 15 * size + len(tail)
    partition.log(60).unlink()
    assert [damage.offsets for damage in check(partition).damages] == [(60, 120)]


def test_watermark_that_disagrees_about_the_offset_is_named(partition: Partition) -> None:
    """A watermark whose position is right and whose offset is too small would have offsets given out twice."""
    partition.mark(60, partition.log(60).stat().st_size, 119)
    report = check(partition)
    assert places(report) == [("watermark", 0)]
    assert "offset 119 comes next where the log goes on with 120" in str(report.damages[0])


def test_damage_in_a_copy_without_watermark_is_not_taken_for_its_end(partition: Partition) -> None:
    """Without a watermark readers stop at the first bad batch of the last segment; verify looks on, and warns."""
    partition.watermark.unlink()
    size = len(partition.segments[0][0])
    partition.damage(60, 4 * size + 80)
    report = check(partition)
    assert places(report) == [(partition.log(60).name, 4 * size)]
    assert report.damages[0].offsets == (72, 75)
    assert "without a watermark the next start cuts the log here" in str(report.damages[0])
    assert report.partitions[0].records == 117
    with partition.log(60).open("ab") as file:
        file.write(bytes(4096))  # room
    assert places(check(partition)) == places(report)


def test_torn_batch_in_a_copy_without_watermark_is_named(partition: Partition) -> None:
    """Nobody knows whether its records were acknowledged, so a copy that ends inside a batch is not sound."""
    partition.watermark.unlink()
    with partition.log(60).open("r+b") as file:
        file.truncate(partition.log(60).stat().st_size - 9)
    assert places(check(partition)) == [(partition.log(60).name, 19 * len(partition.segments[60][0]))]


def test_what_is_not_durable_is_noted_and_not_judged(partition: Partition) -> None:
    """A torn tail, zeros and index entries above the watermark are the business of recovery, and no damage."""
    size = partition.log(60).stat().st_size
    torn = make_batches(1, base_offset=120)[0][:-9]
    with partition.log(60).open("ab") as file:
        file.write(torn + bytes(4096))
    with partition.index(60).open("ab") as file:
        file.write((200).to_bytes(4, "big") + (10**6).to_bytes(4, "big") + b"\0\0")
    partition.log(123).write_bytes(b"x")
    report = check(partition)
    assert report.sound
    assert [(note.path, note.text.split()[0]) for note in report.notes] == [
        (partition.log(60), str(len(torn))),
        (partition.log(123), "1"),
    ]
    assert f"from byte {size} on are not durable yet" in str(report.notes[0])


def test_room_behind_the_watermark_needs_no_word(partition: Partition) -> None:
    """Allocated zeros are there whenever a gateway runs."""
    with partition.log(60).open("ab") as file:
        file.write(bytes(1 << 20))
    report = check(partition)
    assert (report.damages, report.notes) == ([], [])


def test_what_recovery_set_aside_is_noted(partition: Partition) -> None:
    """Segments named .cut are no part of the log, and nobody should have to find them by chance."""
    aside = partition.directory / f"{120:020d}.log.cut"
    aside.write_bytes(b"x")
    report = check(partition)
    assert (report.sound, [note.path for note in report.notes]) == (True, [aside])


def test_zeros_behind_a_sealed_segment_are_named(partition: Partition) -> None:
    """A sealed segment that was not cut to size is reported: Kafka's tools stop at it."""
    with partition.log(0).open("ab") as file:
        file.write(bytes(300))
    report = check(partition)
    assert [damage.found for damage in report.damages] == ["zeros"]
    assert "300 zero bytes" in str(report.damages[0])


def test_several_wounds_are_all_named(partition: Partition) -> None:
    """Damage does not hide what lies behind it, and says which offsets it costs, once each."""
    size = len(partition.segments[0][0])
    wounds = [(0, 2), (0, 3), (0, 11), (60, 0), (60, 19)]
    for base, number in wounds:
        partition.damage(base, number * size + 100)
    report = check(partition)
    assert [(damage.path, damage.position, damage.offsets) for damage in report.damages] == [
        (partition.log(0), 2 * size, (6, 12)),
        (partition.log(0), 11 * size, (33, 36)),
        (partition.log(60), 0, (60, 63)),
        (partition.log(60), 19 * size, (117, 120)),
    ]
    assert report.partitions[0].records == (40 - len(wounds)) * 3
    assert str(report.damages[0]).endswith("(offsets 6 to 11)")


def test_bad_sector_is_named_and_the_other_segments_checked(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment of which nothing can be read costs all of its offsets, and nothing else."""
    sound = Segment.read

    def read(segment: Segment, position: int, size: int) -> bytes:
        if segment.base_offset == 0:
            raise OSError(errno.EIO, "Input/output error")
        return sound(segment, position, size)

    monkeypatch.setattr(Segment, "read", read)
    report = check(partition)
    (damage,) = report.damages
    assert (damage.path, damage.position, damage.offsets) == (partition.log(0), 0, (0, 60))
    assert "cannot be read here: Input/output error" in str(damage)
    assert report.partitions[0].records == 60


def test_bad_sector_costs_the_batches_in_it(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around it everything is checked, and the report says which offsets and how many bytes it costs."""
    sound = Segment.read
    size = len(partition.segments[60][0])

    def read(segment: Segment, position: int, size: int) -> bytes:
        if segment.base_offset == 60 and position < 12288 and position + size > 8192:
            raise OSError(errno.EIO, "Input/output error")
        return sound(segment, position, size)

    monkeypatch.setattr(Segment, "read", read)
    report = check(partition)
    (damage,) = report.damages
    first, last = 8192 // size, 12287 // size
    assert (damage.path, damage.position, damage.bytes) == (partition.log(60), first * size, (last + 1 - first) * size)
    assert damage.offsets == (60 + first * 3, 60 + (last + 1) * 3)
    assert report.partitions[0].records == 120 - (last + 1 - first) * 3


def test_bad_sector_in_a_copy_without_watermark_is_damage(
    partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even finding out how far the log goes may fail; that is a line of the report too."""
    sound = Segment.read

    def read(segment: Segment, position: int, size: int) -> bytes:
        if segment.base_offset == 60:
            raise OSError(errno.EIO, "Input/output error")
        return sound(segment, position, size)

    partition.watermark.unlink()
    monkeypatch.setattr(Segment, "read", read)
    report = check(partition)
    assert [damage.path for damage in report.damages] == [partition.log(60)]
    assert report.partitions[0].records == 60


def test_times_that_run_back_inside_a_segment_are_noted(partition: Partition) -> None:
    """Such a log, of another writer, is sound, but ranges of times may miss some of it."""
    partition.add(
        [*make_batches(2, base_offset=120, time=T0 + 60_000), *make_batches(2, base_offset=126)], sealed=False
    )
    partition.mark_all()
    report = check(partition)
    assert [note.path for note in report.notes if "times run back" in note.text] == [partition.log(120)]


def test_only_the_streams_asked_for_are_checked(partition: Partition) -> None:
    """Damage elsewhere is not looked for; a stream that is not there is a mistake."""
    other = Partition(partition.directory.parent / "other-0")
    other.add(make_batches(3), sealed=False)
    other.mark_all()
    partition.damage(0, 100)
    data = partition.directory.parent
    assert not verify(data).sound
    report = verify(data, streams=["other"])
    assert (report.sound, [part.stream for part in report.partitions]) == (True, ["other"])
    with pytest.raises(StreamNotFound, match="other, s"):
        verify(data, streams=["other", "nope"])


def test_lists_are_bounded_and_the_rest_is_counted(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk full of damage does not fill the memory."""
    monkeypatch.setattr("gateway.log.verify.DAMAGES_MAX", 2)
    for number in (2, 5, 9):
        partition.damage(0, number * len(partition.segments[0][0]))
    report = check(partition)
    assert (len(report.damages), report.damage_count) == (2, 3)


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


@pytest.mark.parametrize("storage", ["mapped", "pwrite"])
def test_verify_beside_a_writer_finds_nothing(tmp_path: Path, storage: str) -> None:
    """While segments fill, roll and are committed, every look finds a sound log, and in the end all of it."""
    prepare(tmp_path, "plant-7", "Europe/Berlin")
    with closing(Recording(tmp_path, start=False)) as recording:
        recording.writer = Writer(storage, partitions_max=4)
        partition = recording.writer.add_partition(str(tmp_path / "s-0"), segment_bytes=1 << 20, linger_ns=0)
        ring = recording.ring("test")
        recording.start()
        records = 0
        for _ in range(12):
            for _ in range(300):
                while not ring.append(partition, b"a/b", bytes(1000), b"", (T0 + records) * NS_PER_MS):
                    time.sleep(0.001)  # the ring is full
                records += 1
            report = verify(tmp_path, deep=True)
            assert report.damages == []
        recording.flush()
        report = verify(tmp_path, deep=True)
        assert (report.damages, report.partitions[0].records) == ([], records)
        assert report.partitions[0].segments > 1
