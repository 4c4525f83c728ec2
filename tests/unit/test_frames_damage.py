"""Pictures over damage in the log: what it hit is missing, what builds on that is flagged, all others are as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_native import batch

import gateway
from gateway import cli
from gateway.errors import DamageWarning
from gateway.log.layout import prepare
from tests.pictures import FakeStream, encode
from tests.support.partitions import Partition

GOP = 10


@pytest.fixture
def stream(tmp_path: Path) -> gateway.Stream:
    """Thirty pictures in a group of ten each, one a batch; the batch of picture 14 is damaged."""
    prepare(tmp_path / "data", "plant-7", "Europe/Berlin")
    partition = Partition(tmp_path / "data" / "gate-0")
    records = FakeStream().add(encode(30, gop=GOP)).records
    batches = [
        batch.encode([(record.timestamp_ms, record.key, record.value, list(record.headers))], record.offset)
        for record in records
    ]
    partition.add(batches, sealed=False)
    partition.mark_all()
    partition.damage(0, sum(map(len, batches[:14])) + 90)
    return gateway.open(tmp_path / "data")["gate"]


def test_a_range_of_pictures_goes_on_behind_damage(stream: gateway.Stream) -> None:
    """The pictures behind it are flagged up to the next key frame."""
    with pytest.warns(DamageWarning, match="offset 14"):
        found = {frame.offset: frame.damaged for frame in stream.frames()}
    assert sorted(found) == [number for number in range(30) if number != 14]
    assert [number for number, damaged in found.items() if damaged] == [15, 16, 17, 18, 19]


def test_a_picture_behind_damage_is_found_and_flagged(stream: gateway.Stream) -> None:
    """So is the one before it, without a flag; and at the damaged one's own time the one before it is shown."""
    times = {record.offset: record.timestamp for record in stream.read(damage="skip")}
    with pytest.warns(DamageWarning):
        assert stream.at(times[17]).damaged
    assert not stream.at(times[13]).damaged
    assert not stream.at(times[25]).damaged
    assert stream.at(times[13] + (times[15] - times[13]) / 2).offset == 13


def test_a_clip_over_damage_says_what_is_lost(stream: gateway.Stream, tmp_path: Path) -> None:
    """Everything else is in it."""
    with pytest.warns(DamageWarning):
        report = stream.export(tmp_path / "clip.mp4")
    assert report.lost == 1


def test_commands_say_what_was_passed_over_in_a_sentence(
    stream: gateway.Stream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clip is made, and stderr names the place, not a line of our code."""
    assert stream.durable_offset == 30
    code = cli.run(["export", "gate", str(tmp_path / "clip.mp4"), "--data", str(tmp_path / "data")])
    err = capsys.readouterr().err
    assert code == 0
    assert "(offset 14) was passed over; `gateway verify` lists every such place." in err
    assert err.startswith("gateway: ")
    assert "records.py" not in err
