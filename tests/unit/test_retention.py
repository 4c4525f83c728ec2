"""What of a stream is too old or too much, and how it is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from gateway_native import summary
from gateway_native.summary import Summary

from gateway.log.files import Files
from gateway.log.retention import (
    PLAUSIBLE_MS,
    SHIFTS_MAX,
    Ages,
    SegmentTable,
    age_base_ms,
    delete_segment,
    expired_by_age,
    expired_by_size,
    implausible,
)
from tests.support.partitions import Partition, make_batches, summary_of

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000
YEAR_2036_MS = 2_090_000_000_000


def sparse(directory: Path, newest: Sequence[int], *, bytes_each: int = 1 << 20) -> int:
    """Sealed segments of ten offsets each, known to the manifest only; returns where the durable one begins."""
    directory.mkdir(exist_ok=True)
    entries = b""
    for number, newest_ms in enumerate(newest):
        base = number * 10
        (directory / f"{base:020d}.log").touch()
        entries += summary.encode(Summary(base, bytes_each, base + 10, newest_ms - 5, newest_ms, 0, 0))
    (directory / "manifest").write_bytes(entries)
    return len(newest) * 10


def table_of(directory: Path, newest: Sequence[int]) -> SegmentTable:
    table = SegmentTable(directory)
    table.update(sparse(directory, newest))
    return table


def expired(directory: Path, newest: Sequence[int], age_ms: int, ages: Ages | None = None) -> int:
    return expired_by_age(table_of(directory, newest), ages or Ages(directory), NOW_MS, age_ms, most=1000)


def partition(tmp_path: Path) -> tuple[Partition, int]:
    """Three real segments, sealed, with everything that stands beside them, and an active one."""
    made = Partition(tmp_path / "t-0")
    entries = b""
    for number in range(3):
        batches = make_batches(40, base_offset=number * 120, value_bytes=200, time=NOW_MS + number * 1000)
        base = made.add(batches)
        encoded = summary.encode(summary_of(base, batches))
        (made.directory / f"{base:020d}.sums").write_bytes(encoded)
        entries += encoded
    (made.directory / "manifest").write_bytes(entries)
    made.add(make_batches(1, base_offset=360), sealed=False)
    return made, 360


def test_what_the_manifest_says_can_be_found_without_it(tmp_path: Path) -> None:
    """The same table from the manifest, from the sidecars, and from the time indexes."""
    made, below = partition(tmp_path)
    tables = []
    for gone in ("nothing", "manifest", "*.sums"):
        for path in made.directory.glob(gone):
            path.unlink()
        table = SegmentTable(made.directory)
        table.update(below)
        tables.append(list(table))
    assert [found.base_offset for found in tables[0]] == [0, 120, 240]
    assert tables[0] == tables[1] == tables[2]
    assert SegmentTable(made.directory).bytes == 0


@pytest.mark.parametrize("torn", [False, True])
def test_what_is_sealed_later_is_taken_in(tmp_path: Path, torn: bool) -> None:
    """Only new entries are read; a torn one, or one that is missing, costs a look at the directory."""
    directory = tmp_path / "t-0"
    table = table_of(directory, [NOW_MS] * 3)
    below = sparse(directory, [NOW_MS] * 5)
    if torn:
        manifest = directory / "manifest"
        manifest.write_bytes(manifest.read_bytes()[:-3])
    table.update(below)
    assert [found.base_offset for found in table] == [0, 10, 20, 30, 40]
    table.update(below)
    assert len(table) == 5
    assert table.bytes >= 4 << 20


def test_entries_of_deleted_segments_and_of_the_active_one_are_passed_over(tmp_path: Path) -> None:
    """The manifest may begin with what retention took, and speak of what is not durable yet."""
    directory = tmp_path / "t-0"
    below = sparse(directory, [NOW_MS] * 9)
    for base in (0, 10, 20):
        (directory / f"{base:020d}.log").unlink()
    table = SegmentTable(directory)
    table.update(below - 20)
    assert [found.base_offset for found in table] == [30, 40, 50, 60]
    for _ in range(4):
        table.drop_first()
    assert (len(table), table.bytes) == (0, 0)
    table.update(below)
    assert [found.base_offset for found in table] == [70, 80]


@pytest.mark.parametrize(
    ("newest_days_ago", "expected"),
    [
        ([], 0),
        ([40, 35, 31, 29, 1], 3),
        ([29, 1], 0),
        ([40, -3650, 20], 1),  # one jump to 2036: it is as old as what follows
        ([40, -3650, -3649, 35, 20], 4),
        ([40, -3650], 1),  # nothing follows: not before it is known
        ([40, 20, 20_000, 10], 1),  # a start in 1970 takes nothing with it that was recorded before
        ([40, None, 35, 10], 3),  # a time that nobody knows
        ([20_000, 10], 1),
    ],
)
def test_age_survives_a_clock_that_steps(tmp_path: Path, newest_days_ago: Sequence[int | None], expected: int) -> None:
    """Thirty days are kept: each segment by its own time, one that cannot be right by what follows."""
    newest = [-1 if days is None else NOW_MS - days * DAY_MS for days in newest_days_ago]
    assert expired(tmp_path / "t-0", newest, 30 * DAY_MS) == expected


def test_what_was_recorded_before_the_clock_was_set_keeps_its_age(tmp_path: Path) -> None:
    """Boot in 1970, set an hour later: the shift makes the segments as old as they are, also after a restart."""
    directory = tmp_path / "t-0"
    newest = [60_000, 120_000, NOW_MS - 1000]
    assert expired(directory, newest, DAY_MS) == 2
    ages = Ages(directory)
    ages.add(0, 20, NOW_MS - 3_600_000)
    ages.save()
    assert expired(directory, newest, DAY_MS, Ages(directory)) == 0
    assert expired(directory, newest, 3_000_000, Ages(directory)) == 2
    table = table_of(directory, newest)
    assert [found.base_offset for found in implausible(table, Ages(tmp_path))] == [0, 10]
    assert list(implausible(table, ages)) == []
    assert newest[1] < PLAUSIBLE_MS < newest[2]


def test_a_jump_ahead_and_back_leaves_ages_as_they_were(tmp_path: Path) -> None:
    """To 2036 and back within one run: what was recorded meanwhile is as old as it is."""
    directory = tmp_path / "t-0"
    jump_ms = YEAR_2036_MS - NOW_MS
    table = table_of(directory, [NOW_MS - 2 * DAY_MS, YEAR_2036_MS - DAY_MS, NOW_MS - 1000])
    ages = Ages(directory)
    ages.add(0, 10, jump_ms)
    ages.add(0, 20, -jump_ms)
    assert [age_base_ms(table, ages, number, NOW_MS) for number in range(3)] == [
        NOW_MS - 2 * DAY_MS,
        NOW_MS - DAY_MS,
        NOW_MS - 1000,
    ]


def test_shifts_are_bounded_and_go_with_their_segments(tmp_path: Path) -> None:
    """More than SHIFTS_MAX are merged to the one that keeps longest; with the last segment the file goes too."""
    ages = Ages(tmp_path)
    for number in range(SHIFTS_MAX + 10):
        ages.add(number * 10, number * 10 + 10, number)
    ages.add(5, 5, 1)
    ages.save()
    again = Ages(tmp_path)
    assert [again.shift_of(base) for base in (0, 100, 110, 730, 740)] == [10, 10, 11, 73, 0]
    again.forget(500)
    again.save()
    assert [Ages(tmp_path).shift_of(base) for base in (100, 499, 500)] == [0, 0, 50]
    again.forget(10_000)
    again.save()
    assert not (tmp_path / "ages").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"shifts": [[1]]}', b'{"shifts": 7}', b"\xff"])
def test_a_damaged_ages_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    """It is a help, and never keeps a stream from being looked after."""
    (tmp_path / "ages").write_bytes(content)
    assert Ages(tmp_path).shift_of(0) == 0


@pytest.mark.parametrize(("limit_mib", "expected"), [(100, 0), (6, 0), (5, 1), (3, 3), (1, 5), (0, 5)])
def test_size_counts_what_is_active_too(tmp_path: Path, limit_mib: int, expected: int) -> None:
    """Five sealed segments of 1 MiB and one that is being written."""
    table = table_of(tmp_path / "t-0", [NOW_MS] * 5)
    assert expired_by_size(table, 1 << 20, limit_mib << 20, most=1000) == expected
    assert expired_by_size(table, 1 << 20, limit_mib << 20, most=2) == min(expected, 2)


class _Recorded(Files):
    """Notes what is changed."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def unlink(self, path: Path) -> None:
        self.calls.append(path.suffix)
        super().unlink(path)

    def sync_directory(self, directory: Path) -> None:
        self.calls.append("sync")
        super().sync_directory(directory)


def test_the_log_goes_first_and_durably(tmp_path: Path) -> None:
    """A crash in between leaves what belongs to nothing, never a log that is not there while an older one is."""
    made, _ = partition(tmp_path)
    files = _Recorded()
    delete_segment(made.directory, 0, files)
    assert files.calls == [".log", "sync", ".index", ".timeindex", ".sums", ".keyframes"]
    assert not list(made.directory.glob("00000000000000000000.*"))
    delete_segment(made.directory, 0, files)
