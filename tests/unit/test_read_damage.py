"""``gateway read`` over damage: everything else is printed, what is missing is named, and the exit code is 4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway import cli
from gateway.log.layout import prepare
from tests.support.partitions import Partition, make_batches


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Result]:
    """Runs ``gateway read s`` as `main` does."""

    def run(*arguments: object) -> Result:
        code = cli.run(["read", "s", "--data", str(tmp_path / "data"), *map(str, arguments)])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    """Ten batches of three records, of which the fifth is damaged."""
    prepare(tmp_path / "data", "plant-7", "Europe/Berlin")
    made = Partition(tmp_path / "data" / "s-0")
    made.add(make_batches(10), sealed=False)
    made.mark_all()
    made.damage(0, 4 * len(made.segments[0][0]) + 100)
    return made


def test_all_other_records_are_printed_and_the_gap_is_a_sentence_on_stderr(
    read: Callable[..., Result], partition: Partition
) -> None:
    """One line names file, byte, problem and offsets; stdout has the records alone, as text and as CSV."""
    position = 4 * len(partition.segments[0][0])
    for shape, heading in ((), 0), (("--csv",), 1):
        result = read(*shape)
        assert (result.code, len(result.out.splitlines())) == (4, 27 + heading)
        (line,) = result.err.splitlines()
        assert line.startswith(f"{partition.log(0)}, byte {position}: the CRC-32C is ")
        assert line.endswith("(offsets 12 to 14); going on behind it.")


def test_in_json_the_gap_stands_where_the_records_would(read: Callable[..., Result], partition: Partition) -> None:
    """An object of its own, in the order of the stream, with everything that is known of it."""
    size = len(partition.segments[0][0])
    result = read("--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 4
    assert [line.get("offset", "gap") for line in lines] == [*range(12), "gap", *range(15, 30)]
    gap = lines[12]["gap"]
    assert gap.pop("problem").startswith("the CRC-32C is ")
    assert gap == {
        "first_offset": 12, "end_offset": 15, "bytes": size, "file": str(partition.log(0)), "position": 4 * size,
    }  # fmt: skip


def test_damage_outside_of_what_is_asked_for_is_no_matter(read: Callable[..., Result], partition: Partition) -> None:
    """A range before or behind it reads as always, and so does one that a limit ends before it."""
    assert partition.log(0).exists()
    for arguments in (("--offsets", "0:12"), ("--offsets", "15:30"), ("--limit", "12")):
        result = read(*arguments)
        assert (result.code, result.err) == (0, "")
    assert read("--offsets", "10:13").code == 4
