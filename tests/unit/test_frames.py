"""Finding and decoding pictures: the right one, or NoFrame that says why."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import numpy as np
import pytest

from gateway.clock import NS_PER_MS, NS_PER_S
from gateway.errors import GatewayError, NoFrame, UsageError
from gateway.replay import frames
from tests.pictures import T0_MS, FakeRecord, FakeStream, encode, white_columns

MAX_AGE = 2 * NS_PER_S


def shown(frame: frames.Frame) -> int:
    """The number of the frame that a picture shows."""
    return round(white_columns(frame.bgr) / 2)


def test_the_picture_at_an_instant_is_the_newest_received_by_then() -> None:
    """On the instant, between two, and in the middle of a group: always the one that was on screen."""
    stream = FakeStream().add(encode(60, gop=25))
    for index in (0, 1, 24, 25, 26, 49, 59):
        for later_ns in (0, 1, 39 * NS_PER_MS):
            frame = frames.at(stream, stream.time_ns(index) + later_ns, MAX_AGE)
            assert (frame.offset, shown(frame)) == (index, index)
            assert frame.keyframe == (index % 25 == 0)
            assert not frame.damaged


def test_with_b_frames_the_picture_is_still_the_right_one() -> None:
    """Decoders give pictures back in another order; the one of the record asked for is returned."""
    units = encode(30, gop=30, b_frames=3)
    stream = FakeStream().add(units)
    for index in (0, 5, 11, 29):
        frame = frames.at(stream, stream.time_ns(index), MAX_AGE)
        newest = max(n for n, record in enumerate(stream.records) if record.timestamp_ms <= stream.time_ns(index) / 1e6)
        assert frame.offset == newest
        assert shown(frame) == units[newest].pts // 3600


@pytest.mark.parametrize("codec", ["libx265", "jpeg"])
def test_other_codecs_decode_too(codec: str) -> None:
    """H.265 and JPEG records give pictures as H.264 ones do."""
    if codec == "jpeg":
        import cv2

        image = np.full((120, 160, 3), 40, np.uint8)
        image[:, :24] = 220
        value = cv2.imencode(".jpg", image)[1].tobytes()
        headers = (("codec", b"jpeg"), ("keyframe", b"1"), ("pts", b"0"), ("run", b"1"))
        stream = FakeStream([FakeRecord(0, T0_MS, b"gate-1", value, headers)])
        index = 0
    else:
        stream = FakeStream().add(encode(15, codec=codec), codec="h265")
        index = 12
    assert shown(frames.at(stream, stream.time_ns(index), MAX_AGE)) == 12


def test_a_frame_tells_where_it_is_from() -> None:
    """Times, size, both pixel orders, a PNG that decodes to the same pixels."""
    import cv2

    stream = FakeStream().add(encode(3))
    headers = (*stream.records[2].headers, ("source_time", b"1790000000123456789"))
    stream.records[2] = FakeRecord(2, T0_MS + 80, b"gate-1", stream.records[2].value, headers)
    frame = frames.at(stream, stream.time_ns(2), MAX_AGE)
    assert (frame.camera, frame.width, frame.height, frame.bgr.shape) == ("gate-1", 160, 120, (120, 160, 3))
    assert frame.timestamp == datetime.fromtimestamp((T0_MS + 80) / 1000, UTC)
    assert frame.source_time == datetime(2026, 9, 21, 14, 13, 20, 123456, UTC)
    assert (frame.rgb == frame.bgr[:, :, ::-1]).all()
    assert (cv2.imdecode(np.frombuffer(frame._repr_png_(), np.uint8), cv2.IMREAD_COLOR) == frame.bgr).all()


def test_never_a_picture_older_than_max_age() -> None:
    """One millisecond decides; the error names the neighbours and that the camera was away."""
    stream = FakeStream().add(encode(5), run="1").add(encode(5), run="2", begin_ms=T0_MS + 3_600_000)
    last_ns = stream.time_ns(4)
    assert frames.at(stream, last_ns + MAX_AGE, MAX_AGE).offset == 4
    with pytest.raises(NoFrame) as caught:
        frames.at(stream, last_ns + MAX_AGE + NS_PER_MS, MAX_AGE)
    assert caught.value.before == stream.records[4].timestamp
    assert caught.value.after == stream.records[5].timestamp
    assert "2.0 s earlier" in str(caught.value)
    assert "the camera was away" in str(caught.value)


def test_before_the_recording_and_after_it() -> None:
    """The error names the only neighbour there is; in an empty stream it says that."""
    stream = FakeStream().add(encode(5))
    with pytest.raises(NoFrame, match="there is none before") as early:
        frames.at(stream, stream.time_ns(0) - NS_PER_MS, MAX_AGE)
    assert (early.value.before, early.value.after) == (None, stream.records[0].timestamp)
    with pytest.raises(NoFrame, match="and none after") as late:
        frames.at(stream, stream.time_ns(4) + 86_400 * NS_PER_S, MAX_AGE)
    assert (late.value.before, late.value.after) == (stream.records[4].timestamp, None)
    with pytest.raises(NoFrame, match="holds no pictures"):
        frames.at(FakeStream(), stream.time_ns(0), MAX_AGE)


def test_without_a_key_frame_there_is_no_picture() -> None:
    """A log whose beginning was deleted within a group of pictures says so instead of showing rubbish."""
    stream = FakeStream().add(encode(20, gop=20))
    del stream.records[0]
    with pytest.raises(NoFrame, match="no key frame"):
        frames.at(stream, stream.time_ns(5), MAX_AGE)
    assert list(frames.iterate(stream, None, None)) == []


def test_a_long_group_is_searched_back_to_its_key_frame() -> None:
    """Half a minute between key frames, as cameras with smart codecs do."""
    stream = FakeStream().add(encode(120, gop=120, fps=4))
    assert shown(frames.at(stream, stream.time_ns(119), MAX_AGE)) == 119 % 80


def test_the_nearest_key_frame() -> None:
    """Before or after the instant, whichever is nearer, and never further away than allowed."""
    stream = FakeStream().add(encode(60, gop=25))

    def nearest(index: int, max_age_ns: int = MAX_AGE) -> int:
        return frames.at(stream, stream.time_ns(index), max_age_ns, nearest_key=True).offset

    assert [nearest(index) for index in (0, 12, 13, 25, 30, 59)] == [0, 0, 25, 25, 25, 50]
    with pytest.raises(NoFrame):
        nearest(12, 400 * NS_PER_MS)


def test_pictures_behind_a_loss_are_flagged_up_to_the_next_key_frame() -> None:
    """They may show rubbish, and say so; a key frame is clean whatever was lost before it."""
    stream = FakeStream().add(encode(30, gop=10), lost={5: 2, 20: 4})
    damaged = [frame.offset for frame in frames.iterate(stream, None, None) if frame.damaged]
    assert damaged == [5, 6, 7, 8, 9]
    assert frames.at(stream, stream.time_ns(7), MAX_AGE).damaged


def test_a_damaged_record_is_left_out_and_those_behind_it_are_flagged() -> None:
    """A record whose bytes are no picture costs itself; what builds on it is flagged."""
    stream = FakeStream().add(encode(20, gop=10))
    whole = stream.records[4]
    stream.records[4] = FakeRecord(4, whole.timestamp_ms, whole.key, b"\x00\x00\x00\x01\x41", whole.headers)
    found = {frame.offset: frame.damaged for frame in frames.iterate(stream, None, None)}
    assert 4 not in found
    assert not any(found[n] for n in (0, 1, 2, 3, *range(10, 20)))
    assert found[5]
    with pytest.raises(NoFrame, match="cannot be decoded"):
        frames.at(stream, stream.time_ns(4), MAX_AGE)


def test_all_pictures_of_a_range_in_order() -> None:
    """Half-open, beginning in the middle of a group; nothing outside is given."""
    stream = FakeStream().add(encode(60, gop=25))
    found = list(frames.iterate(stream, stream.time_ns(30), stream.time_ns(55)))
    assert [frame.offset for frame in found] == list(range(30, 55))
    assert [shown(frame) for frame in found] == list(range(30, 55))


def test_every_thins_out_from_the_start_of_the_range() -> None:
    """The first picture of each interval; intervals without one are skipped."""
    stream = FakeStream().add(encode(50, gop=10), run="1").add(encode(10), run="2", begin_ms=T0_MS + 5_000)
    found = frames.iterate(stream, stream.time_ns(0), None, every_ns=500 * NS_PER_MS)
    assert [(frame.timestamp_ms - T0_MS) for frame in found] == [0, 520, 1000, 1520, 5000]


def test_key_frames_alone_are_decoded_alone() -> None:
    """keys_only gives each key frame of the range, with `every` as many as asked."""
    stream = FakeStream().add(encode(60, gop=10))
    assert [frame.offset for frame in frames.iterate(stream, None, None, keys_only=True)] == [0, 10, 20, 30, 40, 50]
    found = frames.iterate(stream, stream.time_ns(5), None, 800 * NS_PER_MS, True)
    assert [frame.offset for frame in found] == [10, 30, 50]


def test_frames_come_as_they_are_asked_for() -> None:
    """The first frame of a long range is there without reading the range."""
    stream = FakeStream().add(encode(60, gop=10))
    found = frames.iterate(stream, None, None)
    next(found)
    assert stream.records_read < 30


def test_groups_too_large_to_hold_are_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that sends a key frame an hour does not fill the memory, and no picture is missing."""
    monkeypatch.setattr(frames, "_GROUP_RECORDS_MAX", 7)
    stream = FakeStream().add(encode(60, gop=30))
    found = list(frames.iterate(stream, None, None))
    assert [frame.offset for frame in found] == list(range(60))
    assert [shown(frame) for frame in found] == list(range(60))


def test_two_cameras_in_one_stream_need_a_choice() -> None:
    """Without it the error names both; with it each has its own pictures."""
    stream = FakeStream().add(encode(5), camera="gate-1").add(encode(5), camera="gate-2", begin_ms=T0_MS + 1)
    stream.records.sort(key=lambda record: record.timestamp_ms)
    stream.records = [
        FakeRecord(n, record.timestamp_ms, record.key, record.value, record.headers)
        for n, record in enumerate(stream.records)
    ]
    with pytest.raises(UsageError, match=r"gate-1.*gate-2"):
        list(frames.iterate(stream, None, None))
    found = list(frames.iterate(stream, None, None, camera="gate-2"))
    assert [frame.camera for frame in found] == ["gate-2"] * 5
    assert [shown(frame) for frame in found] == list(range(5))


def test_records_that_are_no_pictures_are_passed_over() -> None:
    """A sensor's message in the same stream disturbs nothing."""
    stream = FakeStream().add(encode(5))
    stream.records.append(FakeRecord(5, T0_MS + 200, b"plant/1", b"21.5"))
    assert frames.at(stream, stream.time_ns(5), MAX_AGE).offset == 4


@pytest.mark.parametrize(("library", "call"), [("numpy", "bgr"), ("cv2", "png")])
def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, library: str, call: str) -> None:
    """One sentence instead of an ImportError from somewhere inside."""
    stream = FakeStream().add(encode(1))
    frame = frames.at(stream, stream.time_ns(0), MAX_AGE)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(GatewayError, match=r"pip install 'gateway\[replay\]'"):
        frame.png() if call == "png" else frame.bgr
