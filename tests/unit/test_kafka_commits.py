"""The journal of committed offsets: what is in it after a crash, damage, a full disk."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from gateway.errors import FormatError
from gateway.log.files import Files
from gateway.serve.kafka import commits
from gateway.serve.kafka.commits import Commit, Committer, Fact, Journal, fact_of
from gateway.serve.kafka.waiting import Disk


def _write(journal: Journal, *facts: Fact) -> None:
    journal.write(facts)
    journal.take(facts)


def _fact(group: str, offset: int, topic: str = "telemetry") -> Fact:
    return fact_of(group, topic, Commit(offset, "meta\nü", 1_000))


def test_the_last_commit_counts_after_a_restart(tmp_path: Path) -> None:
    """Of each group and topic; a group that was forgotten has none; producer ids only grow."""
    journal = Journal(tmp_path)
    _write(journal, _fact("a", 1), _fact("a", 2), _fact("a", 9, "other"), _fact("b", 3))
    _write(journal, {"producer_ids": 1_000}, {"group": "b"})
    again = Journal(tmp_path)
    expected = {"a": {"telemetry": Commit(2, "meta\nü", 1_000), "other": Commit(9, "meta\nü", 1_000)}}
    assert (again.commits, again.producer_ids, again.count) == (expected, 1_000, 2)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_what_a_crash_left_half_is_cut(tmp_path: Path, cut: int) -> None:
    """The commits before it count, and those after the restart follow them."""
    journal = Journal(tmp_path)
    _write(journal, _fact("a", 1))
    whole = journal.path.read_bytes()
    _write(journal, _fact("a", 2))
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    again = Journal(tmp_path)
    assert again.commits["a"]["telemetry"].offset == 1
    assert again.path.read_bytes() == whole
    _write(again, _fact("a", 3))
    assert Journal(tmp_path).commits["a"]["telemetry"].offset == 3


def test_a_flipped_bit_ends_the_reading(tmp_path: Path) -> None:
    """A line that is not what was written is never taken for a commit."""
    journal = Journal(tmp_path)
    _write(journal, _fact("a", 1))
    at = journal.path.stat().st_size
    _write(journal, _fact("a", 222))
    data = bytearray(journal.path.read_bytes())
    data[at + 60] ^= 1
    journal.path.write_bytes(data)
    assert Journal(tmp_path).commits["a"]["telemetry"].offset == 1


def test_it_does_not_grow_with_the_number_of_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written anew when most of it counts no more."""
    monkeypatch.setattr(commits, "REWRITE_BYTES_MIN", 2_000)
    journal = Journal(tmp_path)
    for offset in range(500):
        _write(journal, _fact("a", offset))
        assert journal.path.stat().st_size < 2_500
    assert Journal(tmp_path).commits["a"]["telemetry"].offset == 499


class FullDisk(Files):
    """Takes part of a write, then fails."""

    full = False

    def write_at(self, path: Path, data: bytes, position: int) -> None:
        super().write_at(path, data[: len(data) // 2] if self.full else data, position)
        if self.full:
            raise OSError(errno.ENOSPC, "full")


async def test_a_full_disk_fails_the_commit_and_spoils_nothing(tmp_path: Path) -> None:
    """What was not written does not count; with room again everything goes on."""
    files, disk = FullDisk(), Disk()
    committer = Committer(Journal(tmp_path, files), disk)
    assert await committer.write([_fact("a", 1)])
    files.full = True
    assert not await committer.write([_fact("a", 2)])
    assert committer.journal.commits["a"]["telemetry"].offset == 1
    files.full = False
    assert await committer.write([_fact("b", 3)])
    await committer.finish()
    disk.close()
    again = Journal(tmp_path)
    assert [again.commits[name]["telemetry"].offset for name in ("a", "b")] == [1, 3]


async def test_commits_of_one_moment_share_a_sync(tmp_path: Path) -> None:
    """A hundred that come while one is written are on the disk after one more."""
    syncs: list[Path] = []

    class Counting(Files):
        def sync(self, path: Path) -> None:
            syncs.append(path)
            super().sync(path)

    disk = Disk()
    committer = Committer(Journal(tmp_path, Counting()), disk)
    assert all(await asyncio.gather(*(committer.write([_fact(f"g{number}", number)]) for number in range(100))))
    disk.close()
    assert len(syncs) <= 4
    assert Journal(tmp_path).count == 100


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    """Rather than misunderstood."""
    journal = Journal(tmp_path)
    _write(journal, _fact("a", 1))
    journal.path.write_bytes(commits._line({"format": 2}) + journal.path.read_bytes())
    with pytest.raises(FormatError, match="newer Gateway"):
        Journal(tmp_path)
