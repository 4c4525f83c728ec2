"""Pictures out of a real log: found by key frames wherever they lie, and never rubbish without saying so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.clock import NS_PER_MS, NS_PER_S
from gateway.errors import NoFrame, UsageError
from gateway.log import key_frames
from gateway.log.gap import Gap
from gateway.log.key_frames import Search
from gateway.replay import export, frames
from gateway.replay.camera_records import Pictures, moment
from tests.pictures import T0_MS, FakeStream, encode, white_columns
from tests.support.camera_log import CameraLog, camera_log

FPS = 2
GOP = 30  # 15 s
COUNT = 75


@pytest.fixture(name="log", scope="module")
def log_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CameraLog]:
    """75 pictures in three segments, two a second, a key frame every 15 s: longer than what is looked at in one go."""
    fake = FakeStream().add(encode(COUNT, gop=GOP, fps=FPS))
    with camera_log(tmp_path_factory.mktemp("log"), fake, roll_at=[20, 50]) as made:
        yield made


def time_of(number: int) -> Any:
    return moment(T0_MS + number * 1000 // FPS)


def shown(frame: frames.Frame) -> int:
    """The number of the frame that a picture shows."""
    return round(white_columns(frame.bgr) / 2)


def test_every_picture_is_found_in_the_log(log: CameraLog) -> None:
    """Across segments, in the active one, between two pictures."""
    stream = log.stream
    for number in (0, 1, 19, 20, 29, 30, 49, 50, 59, 60, 74):
        frame = stream.at(time_of(number) + timedelta(milliseconds=3))
        assert (frame.offset, shown(frame), frame.keyframe) == (number, number, number % GOP == 0)


def test_only_what_decoding_takes_is_read(log: CameraLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record between a picture and the key frame before it is read twice, or at all for a key frame."""
    stream = log.stream
    read: list[int] = []
    original = Pictures._camera_records

    def counting(self: Pictures, records: Any) -> Any:
        for record in original(self, records):
            read.append(record.offset)
            yield record

    monkeypatch.setattr(Pictures, "_camera_records", counting)
    assert stream.at(time_of(58)).offset == 58
    assert [read.count(offset) for offset in range(31, 54)] == [1] * 23  # the last two seconds are looked at before
    read.clear()
    assert stream.at(time_of(58), nearest_key=True, max_age="20s").offset == 60
    assert set(read) >= {30, 60}
    assert len(set(read) & set(range(31, 54))) < 6  # where halving the time looked


def test_the_nearest_key_frame_in_the_log(log: CameraLog) -> None:
    """Before or after the instant, and none if it is too far away."""
    stream = log.stream
    nearest = [stream.at(time_of(number), nearest_key=True, max_age="20s").offset for number in (0, 14, 16, 44, 46, 74)]
    assert nearest == [0, 0, 30, 30, 60, 60]
    with pytest.raises(NoFrame):
        stream.at(time_of(45), nearest_key=True)


@pytest.mark.parametrize("every", ["1s", "5s", "7s", "16s", "30s"])
@pytest.mark.parametrize("keys_only", [False, True])
def test_looking_for_pictures_and_reading_through_give_the_same(log: CameraLog, every: str, *, keys_only: bool) -> None:
    """Also where the range begins and ends between two."""
    stream = log.stream

    class Plain:
        """The same stream without a finder, so that everything is read."""

        name, zone, read = stream.name, stream.zone, stream.read

    for start, end in ((None, None), (time_of(3) + timedelta(milliseconds=1), time_of(70)), (time_of(31), None)):
        found = [frame.offset for frame in stream.frames(start, end, every=every, keys_only=keys_only)]
        ns = [None if each is None else stream.instant_ns(each) for each in (start, end)]
        every_ns = int(every[:-1]) * NS_PER_S
        assert found == [frame.offset for frame in frames.iterate(Plain(), *ns, every_ns, keys_only)]
        assert all(frame.keyframe for frame in stream.frames(start, end, keys_only=keys_only)) == keys_only
    assert [frame.offset for frame in stream.frames(keys_only=True)] == [0, 30, 60]


def test_pictures_that_are_far_apart_show_what_they_should(log: CameraLog) -> None:
    """Decoded on from the one before, or from a key frame."""
    numbers = [(frame.offset, shown(frame)) for frame in log.stream.frames(time_of(4), every="6s")]
    assert numbers == [(number, number) for number in range(4, COUNT, 12)]


def test_frames_come_as_they_are_asked_for(log: CameraLog) -> None:
    """The first one of a day costs no more than itself."""
    for options in ({}, {"every": "6s"}, {"keys_only": True}):
        iterator = log.stream.frames(**options)
        assert next(iterator).offset == 0


def test_a_size_of_ones_own(log: CameraLog) -> None:
    """Both sides, or one that the other follows from; what cannot be a size is refused before anything is read."""
    stream = log.stream
    assert stream.at(time_of(3), size=(80, 50)).bgr.shape == (50, 80, 3)
    small = stream.at(time_of(30), size=(80, None))
    assert (small.width, small.height, small.rgb.shape) == (80, 60, (60, 80, 3))
    assert round(white_columns(small.bgr)) == pytest.approx(30, abs=1)
    assert [frame.bgr.shape for frame in stream.frames(keys_only=True, size=(None, 30))] == [(30, 40, 3)] * 3
    for size in ((0, 10), (None, None), (10, 100_000)):
        with pytest.raises(UsageError, match="pixels"):
            stream.at(time_of(3), size=size)
        with pytest.raises(UsageError, match="pixels"):
            stream.frames(size=size)


def test_progress_of_a_long_group(log: CameraLog) -> None:
    """Rising, up to 1."""
    calls: list[float] = []
    log.stream.at(time_of(59), progress=calls.append)
    assert calls == sorted(calls)
    assert (len(calls), calls[-1]) == (30, 1.0)


def test_a_wrong_index_is_not_believed(tmp_path: Path) -> None:
    """A sound one that names a picture which is no key frame: the records decide."""
    with camera_log(tmp_path, FakeStream().add(encode(40, gop=10)), roll_at=[30]) as log:
        search = Search(log.directory, 0)
        while search.step(key_frames.LOG_BYTES_MAX, 30):
            pass
        entry = search.found[1]
        wrong = (entry.position.to_bytes(4, "little") + (13).to_bytes(4, "little")
                 + entry.timestamp_ms.to_bytes(8, "little") + entry.size.to_bytes(4, "little")
                 + entry.key_crc.to_bytes(4, "little"))  # fmt: skip
        (log.directory / f"{0:020d}.keyframes").write_bytes(key_frames.encode(0, search.position, 30, wrong))
        frame = log.stream.at(moment(T0_MS + 15 * 40))
        assert (frame.offset, shown(frame), frame.damaged) == (15, 15, False)


def test_the_newest_picture(tmp_path: Path) -> None:
    """A snapshot is the last one on disk, and none when that is too old."""
    with camera_log(tmp_path, FakeStream().add(encode(12))) as log:
        with pytest.raises(NoFrame, match="and none after"):
            log.stream.snapshot()
        assert log.stream.snapshot(max_age="50000d").offset == 11


def test_damaged_pictures_say_so_up_to_the_next_whole_key_frame(tmp_path: Path) -> None:
    """A flag in the record, packets lost before it, and a key frame that is damaged itself."""
    fake = FakeStream().add(encode(50, gop=10))
    for offset, header in ((5, ("lost_packets", b"3")), (20, ("damaged", b"1")), (34, ("damaged", b"1"))):
        fake.records[offset] = replace(fake.records[offset], headers=(*fake.records[offset].headers, header))
    with camera_log(tmp_path, fake) as log:
        damaged = [frame.offset for frame in log.stream.frames() if frame.damaged]
        assert damaged == [*range(5, 10), *range(20, 30), *range(34, 40)]
        assert log.stream.at(moment(T0_MS + 22 * 40)).damaged
        report = export.mp4(log.stream, tmp_path / "clip.mp4", None, None)
        assert report.damaged == 2
        assert "2 damaged" in str(report)


def test_the_cameras_clock_before_its_first_report(tmp_path: Path) -> None:
    """Worked out from the first later picture of the same run that has it; a run that ended earlier has none."""
    early = FakeStream().add(encode(5), run="1")
    fake = early.add(encode(30, gop=10), run="2", begin_ms=T0_MS + 10_000)
    source_ns = 1_790_000_123_000_000_000
    for offset in range(20, 35):
        header = ("source_time", b"%d" % (source_ns + (offset - 20) * 40 * NS_PER_MS))
        fake.records[offset] = replace(fake.records[offset], headers=(*fake.records[offset].headers, header))
    with camera_log(tmp_path, fake) as log:
        found = [frame.source_time_ns for frame in log.stream.frames()]
        assert found[:5] == [None] * 5
        assert found[5:] == [source_ns + (offset - 20) * 40 * NS_PER_MS for offset in range(5, 35)]
        frame = log.stream.at(moment(T0_MS + 10_000))
        assert frame.source_time == moment((source_ns - 15 * 40 * NS_PER_MS) // NS_PER_MS)


@pytest.mark.parametrize(
    ("reason", "said"),
    [("overload", "the gateway was overloaded (7 access units"), ("full-disk", "the disk was full (7 access units")],
)
def test_a_gap_record_tells_why_there_is_no_picture(tmp_path: Path, reason: Any, said: str) -> None:
    """The gateway's own word about the loss goes before what can be guessed."""
    fake = FakeStream().add(encode(10))
    later = FakeStream().add(encode(10), begin_ms=T0_MS + 60_000, run="2")
    with camera_log(tmp_path, fake) as log:
        log.write(later.records[:5])
        for count, source in ((7, "gate-1"), (9, "recovery")):
            log.gap(Gap(reason, count, 700, T0_MS + 500, T0_MS + 600, source))
        log.write(later.records[5:])
        log.gap(Gap(reason, 11, 700, T0_MS + 70_500, T0_MS + 70_600, "gate-1"))
        log.gap(Gap("packet-loss", 1, 700, T0_MS + 510, T0_MS + 520, "gate-1"))
        with pytest.raises(NoFrame) as caught:
            log.stream.at(moment(T0_MS + 30_000))
        assert said in str(caught.value)
        assert caught.value.before == moment(T0_MS + 9 * 40)


@pytest.mark.parametrize("every", ["1s", "6s"])
def test_what_cannot_be_decoded_is_left_out(tmp_path: Path, every: str) -> None:
    """A log that begins within a group, and a key frame that is broken: the next that can be shown takes its place."""
    fake = FakeStream().add(encode(COUNT, gop=GOP, fps=FPS))
    fake.records[0] = replace(fake.records[0], headers=(("codec", b"h264"), ("run", b"1")))
    fake.records[30] = replace(fake.records[30], value=b"\0\0\0\1\x65" + bytes(40))
    with camera_log(tmp_path, fake) as log:
        found = [(frame.offset, shown(frame)) for frame in log.stream.frames(every=every) if not frame.damaged]
    assert found[0] == (60, 60)
    assert all(offset == number for offset, number in found)


def test_reading_beside_the_writer(tmp_path: Path) -> None:
    """A stream that was opened once sees what becomes durable, also over the border of a segment."""
    units = encode(60, gop=10)
    fake = FakeStream().add(units)
    with camera_log(tmp_path, FakeStream()) as log:
        log.write(fake.records[:1])
        stream = log.stream
        for first in range(1, 60, 7):
            log.write(fake.records[first : first + 7], roll_at=[22, 43])
            newest = min(first + 6, 59)
            assert shown(stream.at(moment(T0_MS + newest * 40))) == newest
            assert [frame.offset for frame in stream.frames(keys_only=True)] == list(range(0, newest + 1, 10))


def test_pictures_that_are_far_apart_with_b_frames(tmp_path: Path) -> None:
    """A decoder that gives pictures back later, in another order, gives the right ones, and goes on from there."""
    units = encode(90, gop=60, fps=FPS, b_frames=3)
    with camera_log(tmp_path, FakeStream().add(units), roll_at=[40]) as log:
        found = [(frame.offset, shown(frame)) for frame in log.stream.frames(every="5s")]
        times = [record.timestamp_ms - T0_MS for record in log.stream.read()]
    expected, due = [], 0
    for offset, time_ms in enumerate(times):
        if time_ms >= due:
            expected.append(offset)
            due = time_ms // 5_000 * 5_000 + 5_000
    assert found == [(offset, units[offset].pts * FPS // 90_000 % 80) for offset in expected]
