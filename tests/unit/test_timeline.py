"""Where access units lie in a clip: exact stamps, kept gaps, decode times that every muxer takes."""

from __future__ import annotations

import itertools
from dataclasses import replace

from gateway.replay.camera_records import CameraRecord
from gateway.replay.timeline import Placed, Timeline, with_decode_times, with_durations
from tests.pictures import T0_MS, FakeStream, encode

FRAME = 3_600


def records(stream: FakeStream) -> list[CameraRecord]:
    return [record for each in stream.records if (record := CameraRecord.of(each)) is not None]


def place(timeline: Timeline, given: list[CameraRecord]) -> list[int | None]:
    return [None if (placed := timeline.place(record)) is None else placed.pts for record in given]


def test_within_a_run_the_cameras_stamps_decide() -> None:
    """Receive times jitter, the clip does not: every stamp is the camera's, to the tick."""
    given = records(FakeStream().add(encode(10)))
    jittered = [replace(record, timestamp_ms=record.timestamp_ms + 7 * (n % 3)) for n, record in enumerate(given)]
    assert place(Timeline(), jittered) == [n * FRAME for n in range(10)]


def test_between_runs_the_wall_clock_decides() -> None:
    """The time a camera was away is in the clip, whatever its own clock says after it came back."""
    stream = FakeStream().add(encode(5), run="1").add(encode(5), run="2", begin_ms=T0_MS + 60_000)
    timeline = Timeline()
    assert place(timeline, records(stream)) == [
        *(n * FRAME for n in range(5)), *(60_000 * 90 + n * FRAME for n in range(5)),
    ]  # fmt: skip
    assert (timeline.runs, timeline.gaps) == (2, 1)


def test_runs_that_overlap_do_not_go_back() -> None:
    """A run whose receive time lies before the end of its predecessor follows it directly."""
    stream = FakeStream().add(encode(5), run="1").add(encode(2), run="2", begin_ms=T0_MS + 1)
    stamps = [stamp for stamp in place(Timeline(), records(stream)) if stamp is not None]
    assert stamps == sorted(set(stamps))


def test_access_units_without_stamps_lie_at_their_receive_time() -> None:
    """Rather the gateway's clock than no place at all."""
    stream = FakeStream().add(encode(5), with_pts=False)
    assert place(Timeline(), records(stream)) == [n * 40 * 90 for n in range(5)]


def test_leading_pictures_of_an_open_group_are_left_out() -> None:
    """What is shown before the run's key frame builds on pictures that are not in the clip."""
    key, leading, following = records(FakeStream().add(encode(3)))
    assert key.pts is not None
    timeline = Timeline()
    assert place(timeline, [key, replace(leading, pts=key.pts - 1), following]) == [0, None, 2 * FRAME]
    assert timeline.left_out == 1


def test_decode_times_rise_and_never_exceed_presentation_times() -> None:
    """Also with B-frames, as x264 orders them; without any they are the presentation times."""
    for b_frames in (0, 2, 3):
        given = records(FakeStream().add(encode(60, b_frames=b_frames, gop=30)))
        timeline = Timeline()
        placed = [each for record in given if (each := timeline.place(record)) is not None]
        done = list(with_durations(with_decode_times(iter(placed))))
        assert [each.pts for each in done] == [each.pts for each in placed]
        assert all(each.dts <= each.pts for each in done)
        assert all(a.dts < b.dts for a, b in itertools.pairwise(done))
        assert all(a.dts + a.duration == b.dts for a, b in itertools.pairwise(done))
        if not b_frames:
            assert [each.dts for each in done] == [each.pts for each in done]


def test_the_last_picture_lasts_as_long_as_the_one_before() -> None:
    """Nothing follows it that could tell."""
    given = records(FakeStream().add(encode(3)))
    done = list(with_durations(iter([Placed(record, n * FRAME, n * FRAME) for n, record in enumerate(given)])))
    assert [each.duration for each in done] == [FRAME] * 3
