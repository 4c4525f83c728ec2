"""Reading ahead changes nothing and complains of nothing."""

from __future__ import annotations

from pathlib import Path

from gateway.log.read_ahead import PARTITIONS_MIN, read_ahead
from tests.support.partitions import Partition, make_batches


def test_whatever_is_there_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    """Whole partitions, missing ones, and some without a watermark or an index: no error, no change."""
    directories = [tmp_path / f"s{number}-0" for number in range(PARTITIONS_MIN + 2)]
    for directory in directories[2:]:
        partition = Partition(directory)
        partition.add(make_batches(3), sealed=False)
        partition.mark_all()
    (directories[2] / "watermark").unlink()
    next(directories[3].glob("*.index")).unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read_ahead(directories)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
