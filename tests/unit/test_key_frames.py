"""Key frames are found by looking at the heads of records, over whatever is damaged; an index is a help and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_native import batch
from gateway_native import key_frames as native

from gateway.log import key_frames, maintenance
from gateway.log.key_frame_finder import KeyFrameFinder
from gateway.log.key_frames import KeyFrame, Search
from gateway.log.layout import KEY_FRAMES_SUFFIX, prepare, segment_name
from gateway.log.partition import PartitionReader
from gateway.log.retention import delete_segment
from gateway.log.verify import verify
from tests.support.partitions import T0, Partition

CODEC = ("codec", b"h264")
KEY = ("keyframe", b"1")
GOP = 5


def picture(
    offset: int, *, camera: bytes = b"gate-1", value: int = 300
) -> tuple[int, bytes, bytes, list[tuple[str, bytes]]]:
    """Every fifth is a key frame; times are 40 ms apart."""
    headers = [CODEC, *([KEY] if offset % GOP == 0 else []), ("run", b"1")]
    return T0 + offset * 40, camera, bytes([offset % 251 + 1]) * value, headers


def batches(first: int, end: int, *, size: int = GOP, value: int = 300) -> list[bytes]:
    """Pictures in batches of `size`, beginning with `first`."""
    return [
        batch.encode([picture(offset, value=value) for offset in range(at, min(at + size, end))], at)
        for at in range(first, end, size)
    ]


@pytest.fixture(name="partition")
def partition_fixture(tmp_path: Path) -> Partition:
    """Three segments of 50, 50 and 20 pictures, the last of them active."""
    prepare(tmp_path / "data", "plant-7", "UTC")
    made = Partition(tmp_path / "data" / "gate-0")
    for first, end in ((0, 50), (50, 100), (100, 120)):
        made.add(batches(first, end), sealed=end < 120)
    made.mark_all()
    return made


def expected(partition: Partition, base: int) -> list[KeyFrame]:
    """The key frames of a segment by the decoder of records."""
    found, position = [], 0
    for data in partition.segments[base]:
        for offset, time, key, _, headers in batch.decode(data):
            if {"codec", "keyframe"} <= dict(headers).keys():
                found.append(KeyFrame(offset, time, position, len(data), batch.crc32c(key or b"")))
        position += len(data)
    return found


def search(directory: Path, base: int, end_offset: int = 2**40) -> Search:
    found = Search(directory, base)
    while found.step(key_frames.LOG_BYTES_MAX, end_offset):
        pass
    return found


def test_every_key_frame_of_a_segment_is_found(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one step or in many, with where its batch lies, its time and its camera."""
    assert list(search(partition.directory, 0).found) == expected(partition, 0)
    assert len(expected(partition, 0)) == 10
    monkeypatch.setattr(key_frames, "STEP_BYTES", 100)
    steps = Search(partition.directory, 50)
    count = 1
    while steps.step(key_frames.LOG_BYTES_MAX, 100):
        count += 1
    assert count == 10
    assert list(steps.found) == expected(partition, 50)
    assert (steps.next_offset, steps.position) == (100, partition.log(50).stat().st_size)


def test_what_is_no_picture_is_passed_by(tmp_path: Path) -> None:
    """Messages, gap records, huge keys and headers, empty values; a header of that name without a codec."""
    records = [
        (T0, None, None, [("gateway.gap", b"reason=overload count=1 bytes=1 first=1 last=1 source=x")]),
        (T0, b"k" * 40_000, b"value", [CODEC, KEY]),
        (T0, b"plant/line", b"", [CODEC, KEY]),
        (T0, b"plant/line", b"21.5", [KEY]),
        (T0, b"plant/line", b"x" * 9, [CODEC, KEY, ("user", b"y" * 20_000)]),
        (T0, b"gate-1", b"picture", [("a", b"b" * 700), CODEC, ("lost", b"2"), KEY]),
        (T0 + 9, b"", b"x", [KEY, CODEC]),
    ]
    partition = Partition(tmp_path / "gate-0")
    partition.add([batch.encode(records, 0), batch.encode(records[5:], 7)], sealed=False)
    partition.mark_all()
    assert [found.offset for found in search(partition.directory, 0).found] == [5, 6, 7, 8]
    assert [found.timestamp_ms for found in search(partition.directory, 0).found] == [T0, T0 + 9, T0, T0 + 9]


@pytest.mark.parametrize("field", [0, 8, 16, 57, 61])
def test_a_damaged_batch_costs_its_own_key_frames(partition: Partition, field: int) -> None:
    """Base offset, length, magic byte, count, first record: the search goes on with the next sound batch."""
    at = len(partition.segments[0][0]) * 3
    partition.damage(0, at + field, bit=3)
    found = search(partition.directory, 0, 50).found
    assert [each.offset for each in found] == [offset for offset in range(0, 50, GOP) if offset != 15]


def test_a_file_that_ends_early_ends_the_search(partition: Partition) -> None:
    """In the middle of a batch; nothing behind its end is made up."""
    size = len(partition.segments[0][0])
    partition.log(0).write_bytes(partition.log(0).read_bytes()[: size * 4 + 200])
    assert [each.offset for each in search(partition.directory, 0, 50).found] == [0, 5, 10, 15]


def test_too_many_key_frames_are_no_index(partition: Partition) -> None:
    """The search ends there and says so, and no file is written."""
    found = Search(partition.directory, 0, entries_max=4)
    while found.step(key_frames.LOG_BYTES_MAX, 50):
        pass
    assert (found.whole, len(found.found)) == (False, 4)
    assert not key_frames.write(found, 50)
    assert not (partition.directory / segment_name(0, KEY_FRAMES_SUFFIX)).exists()


def test_bounds_that_make_no_sense_are_refused(partition: Partition) -> None:
    """Before anything is read."""
    with partition.log(0).open("rb") as log, pytest.raises(ValueError, match="no part of a segment"):
        native.scan(log.fileno(), -1, 10, segment_base=0, next_offset=0)
    with pytest.raises(ValueError, match="no part of a segment"):
        native.scan(-1, 0, 2**32, segment_base=0, next_offset=0)
    unreadable = native.scan(-1, 0, 100, segment_base=0, next_offset=0)
    assert (unreadable.stopped, unreadable.entries) == (native.UNREADABLE, b"")


def test_the_file_is_what_format_md_says() -> None:
    """Byte for byte."""
    entries = (0).to_bytes(4, "little") + (7).to_bytes(4, "little") + (1_700_000_000_000).to_bytes(8, "little")
    entries += (61).to_bytes(4, "little") + batch.crc32c(b"gate-1").to_bytes(4, "little")
    head = b"GWKEYFR1" + b"".join(value.to_bytes(8, "little") for value in (10, 61, 18)) + (1).to_bytes(4, "little")
    data = key_frames.encode(10, 61, 18, entries)
    assert data == head + batch.crc32c(head + entries).to_bytes(4, "little") + entries
    found = key_frames.parse(data)
    assert found is not None
    assert found[:3] == (10, 61, 18)
    assert list(found.key_frames) == [KeyFrame(17, 1_700_000_000_000, 0, 61, batch.crc32c(b"gate-1"))]


def test_a_flipped_bit_in_an_index_is_noticed(partition: Partition) -> None:
    """Wherever it is; and so is an end that is missing."""
    data = key_frames.encode(0, 61, 50, search(partition.directory, 0).found.entries)
    assert key_frames.parse(data) is not None
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        assert key_frames.parse(bytes(damaged)) is None
        assert key_frames.parse(data[:position]) is None


@pytest.fixture(name="finder", params=["indexes", "none"])
def finder_fixture(partition: Partition, request: pytest.FixtureRequest) -> KeyFrameFinder:
    """The same partition with and without indexes beside its sealed segments."""
    if request.param == "indexes":
        for base, end in ((0, 50), (50, 100)):
            assert key_frames.write(search(partition.directory, base), end)
    return KeyFrameFinder(PartitionReader(partition.directory))


def test_the_last_key_frame_before_each_picture(finder: KeyFrameFinder) -> None:
    """In sealed segments, in the active one, and across their borders."""
    for end in range(1, 121):
        found = finder.last_before(end)
        assert found is not None
        assert found.offset == (end - 1) // GOP * GOP
    assert finder.last_before(0) is None
    beyond = finder.last_before(10**9)
    assert beyond is not None
    assert beyond.offset == 115


def test_key_frames_of_a_range(finder: KeyFrameFinder) -> None:
    """Half-open, over segments, as they are asked for."""
    assert [found.offset for found in finder.between(45, 106)] == [45, *range(50, 106, GOP)]
    assert [found.offset for found in finder.between(0, 10**9)] == list(range(0, 120, GOP))
    assert list(finder.between(46, 50)) == []
    assert list(finder.between(120, 130)) == []


def test_each_camera_of_a_stream_has_its_own(tmp_path: Path) -> None:
    """Two cameras in turns; one that is not there has none."""
    partition = Partition(tmp_path / "gate-0")
    records = [picture(number // 2 * GOP, camera=b"gate-%d" % (number % 2)) for number in range(40)]
    partition.add([batch.encode(records[at : at + 4], at) for at in range(0, 40, 4)], sealed=False)
    partition.mark_all()
    finder = KeyFrameFinder(PartitionReader(partition.directory))
    assert [found.offset for found in finder.between(0, 40, b"gate-1")] == list(range(1, 40, 2))
    last = finder.last_before(30, b"gate-0")
    assert last is not None
    assert last.offset == 28
    assert finder.last_before(30, b"gate-7") is None


def test_only_what_is_durable_is_found(partition: Partition) -> None:
    """A key frame above the watermark is not there yet."""
    partition.mark(100, len(partition.segments[100][0]) * 2, 110)
    finder = KeyFrameFinder(PartitionReader(partition.directory))
    last = finder.last_before(10**9)
    assert last is not None
    assert last.offset == 105


def test_the_search_backwards_has_an_end(partition: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without key frames is not looked through as a whole."""
    monkeypatch.setattr("gateway.log.key_frame_finder.RECORDS_BACK_MAX", 3)
    finder = KeyFrameFinder(PartitionReader(partition.directory))
    assert finder.last_before(119) is not None  # 116 to 118 are looked at, and what their batch begins with
    monkeypatch.setattr("gateway.log.key_frame_finder.RECORDS_BACK_MAX", 0)
    assert finder.last_before(119) is None


def test_a_segment_that_retention_took_is_passed_over(finder: KeyFrameFinder, partition: Partition) -> None:
    """Its index goes with it; what follows is found."""
    delete_segment(partition.directory, 0)
    assert [path.suffix for path in partition.directory.glob(f"{0:020d}.*")] == []
    assert [found.offset for found in finder.between(0, 60)] == [50, 55]
    assert finder.last_before(40) is None


def test_readers_create_nothing(partition: Partition) -> None:
    """Not even where nothing but reading is allowed would it be noticed."""
    before = sorted(partition.directory.iterdir())
    finder = KeyFrameFinder(PartitionReader(partition.directory))
    assert finder.last_before(80) is not None
    assert len(list(finder.between(0, 120))) == 24
    assert sorted(partition.directory.iterdir()) == before


@pytest.mark.parametrize("damage", ["bit", "empty", "other segment's", "directory"])
def test_a_damaged_index_is_done_without(partition: Partition, damage: str) -> None:
    """Found are the same key frames; verify notes it, and calls nothing damaged."""
    path = partition.directory / segment_name(0, KEY_FRAMES_SUFFIX)
    key_frames.write(search(partition.directory, 0), 50)
    if damage == "bit":
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        key_frames.write(search(partition.directory, 50), 100)
        path.write_bytes((partition.directory / segment_name(50, KEY_FRAMES_SUFFIX)).read_bytes())
    finder = KeyFrameFinder(PartitionReader(partition.directory))
    assert [found.offset for found in finder.between(0, 50)] == list(range(0, 50, GOP))
    report = verify(partition.directory.parent)
    assert report.sound
    assert any(note.path == path for note in report.notes) == (damage != "other segment's")
    assert maintenance.missing(partition.directory) == []
