"""Clips: MP4 files that hold exactly what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import pytest

from gateway import nal
from gateway.clock import NS_PER_MS
from gateway.errors import GatewayError, NoFrame
from gateway.replay import export
from tests.pictures import T0_MS, FakeStream, Unit, encode

FRAME = 3_600


def play(path: Path) -> tuple[str, list[int], float]:
    """Sample entry, presentation times of the decoded frames in 90 kHz ticks, duration in seconds."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        assert stream.time_base.denominator == 90_000
        frames = list(container.decode(stream))
        assert not any(frame.is_corrupt for frame in frames)
        return stream.codec_context.codec_tag, [frame.pts for frame in frames], container.duration / av.time_base


def samples(path: Path) -> list[list[bytes]]:
    """NAL units of each sample, as stored (four-byte lengths)."""
    with av.open(str(path)) as container:
        found = []
        for packet in container.demux(video=0):
            data, nals = bytes(packet), []
            while data:
                length = int.from_bytes(data[:4], "big")
                nals.append(data[4 : 4 + length])
                data = data[4 + length :]
            if nals:
                found.append(nals)
        return found


def test_the_clip_is_what_was_recorded(tmp_path: Path) -> None:
    """Every access unit, NAL for NAL, at its exact 90 kHz stamp; PyAV decodes them all."""
    units = encode(60, gop=25)
    stream = FakeStream().add(units)
    report = export.mp4(stream, tmp_path / "clip.mp4", None, None)
    tag, stamps, duration_s = play(tmp_path / "clip.mp4")
    assert (tag, stamps, duration_s) == ("avc1", [n * FRAME for n in range(60)], pytest.approx(2.4, abs=0.001))
    assert samples(tmp_path / "clip.mp4") == [list(unit.nals) for unit in units]
    assert (report.frames, report.duration_s, report.width, report.height, report.begins) == (
        60,
        2.4,
        160,
        120,
        "at start",
    )
    assert (report.runs, report.gaps, report.lost, report.left_out, report.parameter_changes) == (1, 0, 0, 0, 0)
    assert report.bytes == (tmp_path / "clip.mp4").stat().st_size
    assert list(tmp_path.iterdir()) == [tmp_path / "clip.mp4"]


@pytest.mark.parametrize("b_frames", [2, 3])
def test_b_frames_keep_their_order_of_display(tmp_path: Path, b_frames: int) -> None:
    """Stamps are those of the camera although pictures are sent in another order than shown."""
    export.mp4(FakeStream().add(encode(50, gop=25, b_frames=b_frames)), tmp_path / "clip.mp4", None, None)
    assert play(tmp_path / "clip.mp4")[1] == [n * FRAME for n in range(50)]


def test_h265_and_its_in_band_sets(tmp_path: Path) -> None:
    """H.265 is marked hev1, which allows parameter sets in the samples."""
    export.mp4(FakeStream().add(encode(20, codec="libx265"), codec="h265"), tmp_path / "clip.mp4", None, None)
    assert play(tmp_path / "clip.mp4")[:2] == ("hev1", [n * FRAME for n in range(20)])


def test_the_clip_begins_with_the_key_frame_before_the_start(tmp_path: Path) -> None:
    """A range that begins within a group takes the group's key frame along and says so."""
    stream = FakeStream().add(encode(60, gop=25))
    report = export.mp4(stream, tmp_path / "clip.mp4", stream.time_ns(30), stream.time_ns(40))
    assert (report.begins, report.frames, report.start) == ("before start", 15, stream.records[25].timestamp)
    assert report.end == stream.records[39].timestamp
    assert len(play(tmp_path / "clip.mp4")[1]) == 15
    assert "key frame before the start asked for" in str(report)


def test_without_a_key_frame_before_it_begins_with_the_next(tmp_path: Path) -> None:
    """What cannot be decoded is not in the clip."""
    stream = FakeStream().add(encode(60, gop=25))
    del stream.records[0]
    report = export.mp4(stream, tmp_path / "clip.mp4", None, None)
    assert (report.begins, report.frames) == ("after start", 35)


def test_the_time_a_camera_was_away_is_in_the_clip(tmp_path: Path) -> None:
    """The second run starts where the wall clock says, not where the file would be seamless."""
    stream = FakeStream().add(encode(25), run="1").add(encode(25), run="2", begin_ms=T0_MS + 10_000)
    report = export.mp4(stream, tmp_path / "clip.mp4", None, None)
    stamps = play(tmp_path / "clip.mp4")[1]
    assert stamps == [*(n * FRAME for n in range(25)), *(900_000 + n * FRAME for n in range(25))]
    assert (report.runs, report.gaps, report.duration_s) == (2, 1, 11.0)


def test_another_size_within_the_clip_plays_on(tmp_path: Path) -> None:
    """New parameter sets stay in the samples, and the file says that they do (avc3)."""
    stream = FakeStream().add(encode(20)).add(encode(20, width=320, height=240), begin_ms=T0_MS + 800, run="2")
    report = export.mp4(stream, tmp_path / "clip.mp4", None, None)
    assert report.parameter_changes == 1
    with av.open(str(tmp_path / "clip.mp4")) as container:
        video: Any = container.streams.video[0]
        assert video.codec_context.codec_tag == "avc3"
        assert [frame.width for frame in container.decode(video)] == [160] * 20 + [320] * 20


def test_another_codec_is_refused_by_name(tmp_path: Path) -> None:
    """The error says from what to what and when, and no file is left."""
    stream = FakeStream().add(encode(5)).add(encode(5, codec="libx265"), codec="h265", run="2", begin_ms=T0_MS + 999)
    with pytest.raises(GatewayError, match=r"h264 to h265 at 2026-09-21T14:13:20\.999"):
        export.mp4(stream, tmp_path / "clip.mp4", None, None)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_range_is_said_to_be_empty(tmp_path: Path) -> None:
    """No file, but a sentence with the range in the site's time; likewise when there is no key frame."""
    stream = FakeStream().add(encode(5))
    with pytest.raises(NoFrame, match="no picture is recorded in 'gate' from 2026-09-21T14:13:21"):
        export.mp4(stream, tmp_path / "clip.mp4", T0_MS * NS_PER_MS + 10**9, None)
    del stream.records[0]
    with pytest.raises(NoFrame, match="no key frame"):
        export.mp4(stream, tmp_path / "clip.mp4", None, None)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    """Nor is anything written beside it; a directory and a missing one are named."""
    stream, path = FakeStream().add(encode(5)), tmp_path / "clip.mp4"
    path.write_text("precious")
    with pytest.raises(GatewayError, match="exists already"):
        export.mp4(stream, path, None, None)
    assert path.read_text() == "precious"
    export.mp4(stream, path, None, None, overwrite=True)
    assert len(play(path)[1]) == 5
    with pytest.raises(GatewayError, match="is a directory"):
        export.mp4(stream, tmp_path, None, None, overwrite=True)
    with pytest.raises(GatewayError, match="does not exist"):
        export.mp4(stream, tmp_path / "no" / "clip.mp4", None, None)


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file appears whole or not at all."""
    stream = FakeStream().add(encode(30))
    read = stream.read

    def broken(*arguments: Any, **options: Any) -> Any:
        for record in read(*arguments, **options):
            if record.offset == 20 and options.get("offsets"):
                raise OSError(5, "Input/output error")
            yield record

    monkeypatch.setattr(stream, "read", broken)
    with pytest.raises(GatewayError, match="Input/output error"):
        export.mp4(stream, tmp_path / "clip.mp4", None, None)
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    """Rising, ending with 1.0, a hundred calls at most."""
    calls: list[float] = []
    export.mp4(FakeStream().add(encode(250, gop=25)), tmp_path / "clip.mp4", None, None, calls.append)
    assert calls == sorted(calls)
    assert calls[-1] == 1.0
    assert 20 < len(calls) <= 102


def test_lost_access_units_are_in_the_report(tmp_path: Path) -> None:
    """Those before the clip's first one are not in it, so they are not counted."""
    report = export.mp4(FakeStream().add(encode(30), lost={0: 9, 10: 3}), tmp_path / "clip.mp4", None, None)
    assert report.lost == 3
    assert "3 access units lost" in str(report)


def test_flapping_parameter_sets_cost_nothing(tmp_path: Path) -> None:
    """A camera that alternates between two sets of the same size gives one clip that plays."""
    units: list[Unit] = []
    for turn in range(4):
        source: Sequence[Unit] = encode(10, b_frames=0) if turn % 2 else encode(10, b_frames=2)
        part = [Unit(unit.nals, unit.pts + turn * 36_000, unit.key) for unit in source]
        units += part
    report = export.mp4(FakeStream().add(units), tmp_path / "clip.mp4", None, None)
    assert report.parameter_changes == 3
    assert play(tmp_path / "clip.mp4")[1] == [n * FRAME for n in range(40)]
    assert nal.H264.parameter_sets(units[0].nals) != nal.H264.parameter_sets(units[10].nals)
