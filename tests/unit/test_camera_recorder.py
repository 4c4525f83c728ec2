"""One camera's way into the ring: headers, and what happens when there is no room."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from gateway_adapters.rtsp.access_units import AccessUnit
from gateway_adapters.rtsp.recorder import Recorder

from tests.support.recording import Recording

T0 = 1_790_000_000_000_000_000


def unit(size: int = 10, *, key: bool = False, ticks: int | None = 90) -> AccessUnit:
    return AccessUnit(b"x" * size, key, ticks, T0, source_time_ns=T0 + 5 if key else None)


def recorder_on(recording: Recording, *, record_bytes_max: int = 1 << 20, **more: Any) -> Recorder:
    return Recorder(
        "gate-1",
        "h264",
        ring=recording.ring("cameras"),
        partition=recording.partition("gate-1"),
        record_bytes_max=record_bytes_max,
        logger=logging.getLogger("gateway.camera"),
        **more,
    )


def test_records_carry_the_headers_of_the_format(tmp_path: Path) -> None:
    """Key, value and headers are read back as the design says; absent facts have no header."""
    recording = Recording(tmp_path)
    try:
        recorder = recorder_on(recording)
        recorder.begin_run(T0)
        assert recorder.put(unit(key=True))
        assert recorder.put(unit(ticks=None))
        key, delta = recording.records("gate-1")
        run = b"%d" % (T0 // 1_000_000)
        assert key[1:4] == (T0 // 1_000_000, b"gate-1", b"x" * 10)
        assert key[4] == (
            ("codec", b"h264"), ("keyframe", b"1"), ("pts", b"90"), ("run", run), ("source_time", b"%d" % (T0 + 5)),
        )  # fmt: skip
        assert delta[4] == (("codec", b"h264"), ("run", run))
    finally:
        recording.close()


def test_run_ids_grow_also_when_the_clock_does_not(tmp_path: Path) -> None:
    """Two runs in one millisecond, or after the clock was set back, have different and growing ids."""
    recording = Recording(tmp_path, start=False)
    recorder = recorder_on(recording)
    ids = [recorder.begin_run(T0), recorder.begin_run(T0), recorder.begin_run(T0 - 10**12)]
    assert ids == sorted(set(ids))
    recording.close()


def test_a_full_ring_costs_everything_up_to_the_next_key_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What follows a lost access unit cannot be decoded: it is dropped, counted, and told by the next record."""
    recording = Recording(tmp_path, ring_bytes=4096, start=False)
    recorder = recorder_on(recording)
    assert recorder.put(unit(1000, key=True))
    taken = 1
    while recorder.put(unit(1000)):
        taken += 1
    assert not recorder.put(unit(1)), "it would fit, but builds on a lost one"
    assert not recorder.put(unit(1000, key=True)), "still no room"
    assert recorder.lost_access_units == 3
    recording.start()
    recording.flush()
    assert not recorder.put(unit(1))
    assert recorder.put(unit(1, key=True))
    assert recorder.put(unit(1))
    try:
        records = recording.records("gate-1")
        assert len(records) == taken + 2
        assert [dict(row[4]).get("lost") for row in records[-2:]] == [b"4", None]
        assert recorder.lost_access_units == 4
        assert [entry.message for entry in caplog.records].count("no room, dropping to the next key frame") == 1
    finally:
        recording.close()


def test_an_access_unit_over_the_limit_is_lost_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The limit counts key, value and headers; the camera goes on with the next key frame."""
    recording = Recording(tmp_path)
    try:
        recorder = recorder_on(recording, record_bytes_max=1000)
        assert recorder.put(unit(key=True))
        assert not recorder.put(unit(1000))
        assert not recorder.put(unit(1))
        assert recorder.put(unit(key=True))
        assert (recorder.oversized, recorder.lost_access_units) == (1, 2)
        assert dict(recording.records("gate-1")[-1][4])["lost"] == b"2"
        assert "too large" in caplog.text
    finally:
        recording.close()


def test_what_is_lost_is_told_for_the_gap_record(tmp_path: Path) -> None:
    """Each access unit that finds no room or is too large, and each that depends on it, once."""
    recording = Recording(tmp_path)
    lost: list[AccessUnit] = []
    try:
        recorder = recorder_on(recording, record_bytes_max=1000, on_loss=lost.append)
        for each in (unit(key=True), unit(1000), unit(1), unit(key=True), unit(1)):
            recorder.put(each)
        assert [len(each.value) for each in lost] == [1000, 1]
    finally:
        recording.close()


def test_what_a_full_disk_refused_costs_everything_up_to_the_next_key_frame(tmp_path: Path) -> None:
    """The writer counts what it refuses; what builds on it is dropped here, and the next record tells of both."""
    recording = Recording(tmp_path)
    refused = [3]  # of an earlier run
    lost: list[AccessUnit] = []
    try:
        recorder = recorder_on(recording, refused=lambda: refused[0], on_loss=lost.append)
        assert recorder.put(unit(key=True))
        assert recorder.put(unit())
        refused[0] += 2
        assert not recorder.put(unit())
        assert recorder.put(unit(key=True))
        assert recorder.put(unit())
        assert (recorder.refused, recorder.lost_access_units, len(lost)) == (2, 1, 1)
        assert [dict(row[4]).get("lost") for row in recording.records("gate-1")] == [None, None, b"3", None]
    finally:
        recording.close()
