"""Reading without retained messages: in Python, following, and on the command line."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from gateway_native import batch

import gateway
from gateway import cli
from gateway.log.layout import prepare
from tests.support.partitions import Partition

T0 = 1_795_431_600_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five records, of which 1 and 3 are retained; 2 has a user property that only looks like it."""
    directory = tmp_path / "data"
    prepare(directory, "plant-7", "Europe/Berlin")
    headers = [[], [("qos", b"1"), ("retain", b"1")], [("user.retain", b"1")], [("retain", b"1")], [("qos", b"1")]]
    rows = [(T0 + 1_000 * number, b"plant/a", b"%d" % number, found) for number, found in enumerate(headers)]
    partition = Partition(directory / "telemetry-0")
    partition.add([batch.encode(rows, 0)], sealed=False)
    partition.mark_all()
    return directory


def test_retained_messages_are_left_out_if_one_asks(data: Path) -> None:
    """Records, rows and a range of times agree; by default everything comes."""
    stream = gateway.open(data)["telemetry"]
    assert [record.offset for record in stream.read()] == [0, 1, 2, 3, 4]
    assert [record.offset for record in stream.read(retained=False)] == [0, 2, 4]
    assert [row[0] for row in stream.read(offsets=(1, 4), retained=False).rows()] == [2]


def test_a_follower_can_do_without_them(data: Path) -> None:
    """The stop comes with the last record, so that the test ends."""
    stop = threading.Event()
    seen = []
    for record in gateway.open(data)["telemetry"].follow("start", retained=False, poll_s=0.001, stop=stop):
        seen.append(record.offset)
        if record.offset == 4:
            stop.set()
    assert seen == [0, 2, 4]


def test_the_command_line_has_an_option(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--no-retained; without it everything is printed."""
    for options, expected in (([], [0, 1, 2, 3, 4]), (["--no-retained"], [0, 2, 4])):
        assert cli.run(["read", "telemetry", "--data", str(data), "--json", *options]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert [json.loads(line)["offset"] for line in printed] == expected
