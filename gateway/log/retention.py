"""Which sealed segments a stream no longer keeps, and how one is deleted. Policy and files; no thread, no clock.

Only sealed segments below the watermark's are ever looked at, and only from the oldest on: the log keeps its end,
and has no hole. What is known of them comes from the manifest; where that lacks an entry, from what stands beside the
segment.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gateway_native.summary import Summary

from gateway.log.files import FILES, Files, replace
from gateway.log.index import SegmentIndexes
from gateway.log.layout import MANIFEST_FILE, SIDECAR_SUFFIXES, list_segments, segment_name
from gateway.log.manifest import ENTRY_BYTES, Manifest, read_summary

AGES_FILE = "ages"

# No gateway recorded anything before this (2024-01-01): such times come from a clock that had not been set yet.
PLAUSIBLE_MS = 1_704_067_200_000
# Shifts that are remembered for one stream; more are merged, so that what they speak of is kept rather too long.
SHIFTS_MAX = 64

_UNKNOWN = 2**63 - 1


class Sealed(NamedTuple):
    """A sealed segment: its base offset, the bytes of its log, the time of its newest record (ms)."""

    base_offset: int
    log_bytes: int
    newest_ms: int


class SegmentTable:
    """The sealed segments of one partition, oldest first, in 24 bytes each.

    `update` takes in what was sealed since; `drop_first` forgets what was deleted.
    """

    def __init__(self, directory: Path, files: Files = FILES) -> None:
        self.directory = directory
        self._files = files
        self._bases = array("q")
        self._sizes = array("q")
        self._newest = array("q")
        self._first = 0
        self._below = -1
        self._manifest_at = 0
        self.bytes = 0
        """Of all logs together."""

    def __len__(self) -> int:
        return len(self._bases) - self._first

    def __getitem__(self, number: int) -> Sealed:
        at = self._first + number
        if not 0 <= number < len(self):
            raise IndexError(number)
        return Sealed(self._bases[at], self._sizes[at], self._newest[at])

    def __iter__(self) -> Iterator[Sealed]:
        return (self[number] for number in range(len(self)))

    def update(self, below: int) -> None:
        """Take in the segments below that base offset, the durable segment's. OSError if they cannot be looked at."""
        if below <= self._below:
            return
        known = self._bases[-1] if self._bases else -1
        entries = self._read_manifest(below)
        if self._below < 0:
            first = entries.first_there(self.directory, self._files)
        else:
            first = bisect_right(entries.bases(), known)
        if _is_whole(entries, first, below):
            for number in range(first, len(entries)):
                self._take(entries[number])
        else:
            self._list(known, below, {each.base_offset: each for each in entries})
        self._below = below

    def drop_first(self) -> None:
        """The oldest segment is gone."""
        self.bytes -= self._sizes[self._first]
        self._first += 1
        if self._first > 1024 and self._first * 2 > len(self._bases):
            for column in (self._bases, self._sizes, self._newest):
                del column[: self._first]
            self._first = 0

    def _take(self, entry: Summary) -> None:
        self._bases.append(entry.base_offset)
        self._sizes.append(entry.log_bytes)
        self._newest.append(entry.max_timestamp if entry.max_timestamp >= 0 else _UNKNOWN)
        self.bytes += entry.log_bytes

    def _read_manifest(self, below: int) -> Manifest:
        """The entries behind those read before."""
        try:
            with contextlib.closing(self._files.open_read(self.directory / MANIFEST_FILE)) as file:
                found = Manifest(file.read(self._manifest_at, file.size), below=below)
        except FileNotFoundError:
            return Manifest()
        self._manifest_at += (len(found) + found.unsound) * ENTRY_BYTES
        return found

    def _list(self, known: int, below: int, entries: Mapping[int, Summary]) -> None:
        """The same from the directory itself; for a segment without an entry from what stands beside it."""
        bases = [base for base in list_segments(self.directory) if known < base < below]
        for base, end in itertools.pairwise([*bases, below]):
            self._take(entries.get(base) or self._look_at(base, end))

    def _look_at(self, base: int, end: int) -> Summary:
        found = read_summary(self.directory, base, self._files)
        if found is not None:
            return found
        last = SegmentIndexes(self.directory, base).last_time()
        size = self._files.size(self.directory / segment_name(base))
        return Summary(base, size, end, -1, last.timestamp if last else -1, 0, 0, 0)


def _is_whole(entries: Manifest, first: int, below: int) -> bool:
    """From that entry on, does each segment begin where the one before ends, up to the durable one?"""
    if first >= len(entries):
        return False
    ends = (entries[number].next_offset for number in range(first, len(entries)))
    begins = itertools.chain((entries.base(number) for number in range(first + 1, len(entries))), (below,))
    return all(end == begin for end, begin in zip(ends, begins, strict=True))


# -- ages -------------------------------------------------------------------------------------------------------------


class Shift(NamedTuple):
    """Segments from `first` to before `end` are really younger (or older) than their times say, by so many ms."""

    first: int
    end: int
    shift_ms: int


class Ages:
    """What has to be added to the times of segments that were recorded before the wall clock was set.

    Kept in the partition's file `ages`: a gateway that starts in 1970, and is told the time an hour later, must not
    take what it has just recorded for fifty years old.
    """

    def __init__(self, directory: Path, files: Files = FILES) -> None:
        self._path = directory / AGES_FILE
        self._directory = directory
        self._files = files
        self._shifts: list[Shift] = []
        self._dirty = False
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):  # it is only a help
            content = json.loads(files.read_bytes(self._path))
            self._shifts = [Shift(*map(int, item)) for item in content["shifts"]][:SHIFTS_MAX]

    def shift_of(self, base_offset: int) -> int:
        return sum(shift.shift_ms for shift in self._shifts if shift.first <= base_offset < shift.end)

    def add(self, first: int, end: int, shift_ms: int) -> None:
        """The clock moved by `shift_ms` behind the segments [first, end)."""
        if first >= end:
            return
        self._shifts.append(Shift(first, end, shift_ms))
        self._dirty = True
        while len(self._shifts) > SHIFTS_MAX:
            one, other = self._shifts[0], self._shifts[1]
            self._shifts[:2] = [
                Shift(min(one.first, other.first), max(one.end, other.end), max(one.shift_ms, other.shift_ms))
            ]

    def forget(self, below: int) -> None:
        """Segments below that base offset are gone."""
        kept = [shift for shift in self._shifts if shift.end > below]
        self._dirty = self._dirty or len(kept) != len(self._shifts)
        self._shifts = kept

    def save(self) -> None:
        """Have it on the disk, if anything changed. OSError leaves what is there, and the next call tries again."""
        if not self._dirty:
            return
        if self._shifts:
            content = json.dumps({"shifts": self._shifts}).encode()
            replace(self._files, self._path, content)
        else:
            self._files.unlink(self._path)
        self._files.sync_directory(self._directory)
        self._dirty = False


# -- what has to go ---------------------------------------------------------------------------------------------------


def age_base_ms(table: SegmentTable, ages: Ages, number: int, now_ms: int) -> int:
    """When the newest record of a segment was recorded, as far as can be told.

    A time ahead of the clock cannot be right: what follows was recorded later, so the least of what follows is taken,
    and one jump to 2036 spoils nothing. A time behind its predecessors' is taken as it is, but deletes nothing before
    them, because segments go from the oldest on only.
    """
    for at in range(number, len(table)):
        segment = table[at]
        time_ms = segment.newest_ms + ages.shift_of(segment.base_offset) if segment.newest_ms != _UNKNOWN else _UNKNOWN
        if time_ms <= now_ms:
            return time_ms
    return now_ms


def expired_by_age(table: SegmentTable, ages: Ages, now_ms: int, age_ms: int, *, most: int) -> int:
    """How many of the oldest segments hold nothing younger than that; no more than `most` are looked at."""
    count = 0
    while count < min(len(table), most) and age_base_ms(table, ages, count, now_ms) < now_ms - age_ms:
        count += 1
    return count


def expired_by_size(table: SegmentTable, active_bytes: int, size_bytes: int, *, most: int) -> int:
    """How many of the oldest segments have to go until the stream has no more than that; at most `most`."""
    total, count = table.bytes + active_bytes, 0
    while count < min(len(table), most) and total > size_bytes:
        total -= table[count].log_bytes
        count += 1
    return count


def implausible(table: SegmentTable, ages: Ages) -> Iterable[Sealed]:
    """The oldest segments, as far as their times come from a clock that had not been set."""
    for segment in table:
        if segment.newest_ms + ages.shift_of(segment.base_offset) >= PLAUSIBLE_MS:
            return
        yield segment


def delete_segment(directory: Path, base_offset: int, files: Files = FILES) -> None:
    """Delete a segment. When this returns, its log is gone from the disk.

    The log goes first, and durably: a crash then leaves indexes that belong to nothing, which recovery removes, and
    never a log with a hole. Ascending calls move the log start offset; nobody else has to be told.
    """
    files.unlink(directory / segment_name(base_offset))
    files.sync_directory(directory)
    for suffix in SIDECAR_SUFFIXES:
        files.unlink(directory / segment_name(base_offset, suffix))
