"""Bring a partition back into a state that can be appended to, whatever ended its last writer.

What is below the watermark was acknowledged: it is never cut. Damage there is reported and left in place, and the walk
goes on behind it. What lies above was never acknowledged: it is kept as far as it is sound, and cut at the first bad
batch; segments after a cut are set aside, renamed to ``*.cut``. Without a watermark (a copied directory) every segment
but the last counts as acknowledged, because the gateway syncs a segment before it commits to the next.

When `recover` returns, everything it kept is on the disk: the log, both indexes, the directory entries. If it raises,
nothing is promised, and calling it again starts over. It reads with seek and read, never through a mapping.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway_native import batch, watermark

from gateway.log.index import INDEX_ENTRY_BYTES, NO_TIMESTAMP, TIME_ENTRY_BYTES, IndexBuilder
from gateway.log.layout import (
    CUT_SUFFIX,
    INDEX_SUFFIX,
    LOG_SUFFIX,
    TIME_SUFFIX,
    WATERMARK_FILE,
    list_segments,
    segment_name,
    sync_directory,
)
from gateway.log.segment import Damage, Segment, Walk, WalkEnd

Progress = Callable[[int, int], None]

_FOREVER = 2**63 - 1
_OFFSETS_PER_SEGMENT = 2**31  # an index holds relative offsets as i32


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A partition as recovery left it: what a writer needs to go on, and what was found wrong."""

    epoch: int = 1
    """The next epoch for the watermark."""
    log_start_offset: int = 0
    next_offset: int = 0
    segment_base: int = -1
    """Base offset of the segment to append to; -1: there is none yet."""
    position: int = 0
    """Its length in bytes; the file ends there."""
    index_bytes: int = 0
    time_bytes: int = 0
    bytes_since_entry: int = 0
    first_timestamp: int = NO_TIMESTAMP
    max_timestamp: int = NO_TIMESTAMP
    offset_of_max: int = 0
    last_time_entry: int = NO_TIMESTAMP
    last_timestamp: int = NO_TIMESTAMP

    cut_bytes: int = 0
    """Bytes of content (not zeros) that were cut from the tail: never acknowledged."""
    cut: Damage | None = None
    """Why the tail was cut; None if it was not, or was only room that had been allocated."""
    set_aside: tuple[Path, ...] = ()
    """Segments after the cut, under their new names."""
    damages: tuple[Damage, ...] = ()
    """Damaged places among what was acknowledged, left as they are."""
    lost_records: int = 0
    """Acknowledged records that are gone: the log ends before the watermark. Their offsets are not used again."""

    def writer_state(self) -> dict[str, int]:
        """Arguments for ``Writer.add_partition``."""
        names = (
            "epoch",
            "next_offset",
            "segment_base",
            "position",
            "index_bytes",
            "time_bytes",
            "bytes_since_entry",
            "first_timestamp",
            "max_timestamp",
            "offset_of_max",
            "last_time_entry",
            "last_timestamp",
        )
        return {name: getattr(self, name) for name in names}


def recover(directory: Path, *, progress: Progress | None = None) -> Recovered:
    """Recover one partition. The caller holds the data directory's lock and no writer has the partition open.

    A directory that is missing or has no segments gives the state of a new partition. `progress(done, total)` counts
    bytes. OSError if something cannot be read, written or synced.
    """
    return _Recovery(Path(directory), progress).run()


@dataclass(slots=True)
class _Walked:
    """One segment after its walk."""

    base_offset: int
    size: int
    builder: IndexBuilder
    position: int
    next_offset: int
    first_timestamp: int
    last_timestamp: int
    stopped: WalkEnd | None
    """Why the walk ended before the end of the file."""


class _Recovery:
    def __init__(self, directory: Path, progress: Progress | None) -> None:
        self.directory = directory
        self.progress = progress
        self.mark = watermark.read(directory / WATERMARK_FILE)
        self.bases = list_segments(directory)
        self.damages: list[Damage] = []
        self.set_aside: list[Path] = []
        self.done_bytes = 0
        self.total_bytes = 0

    def run(self) -> Recovered:
        epoch = self.mark.epoch + 1 if self.mark else 1
        durable = self.mark.durable_offset if self.mark else 0
        if not self.bases:
            if durable == 0:
                return Recovered(epoch=epoch)
            return self._state(epoch, self._begin_segment(durable), lost=durable, cut=None)
        first = max(sum(base <= self.mark.segment_base for base in self.bases) - 1, 0) if self.mark else 0
        for base in self.bases[:first]:
            self._complete(base)
        walked = self._walk_all(self.bases[first:])
        last = walked[-1]
        cut = self._cut(last)
        for segment in walked:
            self._sync_log(segment)  # first, since what it cuts off may be the last room on the disk
            self._write_indexes(segment, sealed=segment is not last or last.next_offset < durable)
        lost = max(durable - last.next_offset, 0)
        if lost:
            last = self._begin_segment(durable)
        sync_directory(self.directory)
        sync_directory(self.directory.parent)
        return self._state(epoch, last, lost=lost, cut=cut)

    def _state(self, epoch: int, last: _Walked, *, lost: int, cut: tuple[int, Damage | None] | None) -> Recovered:
        builder = last.builder
        return Recovered(
            epoch=epoch,
            log_start_offset=self.bases[0] if self.bases else last.base_offset,
            next_offset=last.next_offset,
            segment_base=last.base_offset,
            position=last.position,
            index_bytes=len(builder.index),
            time_bytes=len(builder.times),
            bytes_since_entry=builder.bytes_since_entry,
            first_timestamp=last.first_timestamp,
            max_timestamp=builder.max_timestamp,
            offset_of_max=builder.offset_of_max,
            last_time_entry=builder.last_time_entry,
            last_timestamp=last.last_timestamp,
            cut_bytes=cut[0] if cut else 0,
            cut=cut[1] if cut else None,
            set_aside=tuple(self.set_aside),
            damages=tuple(self.damages),
            lost_records=lost,
        )

    # -- walking -------------------------------------------------------------------------------------------------------

    def _walk_all(self, bases: list[int]) -> list[_Walked]:
        """Walk the segment that the watermark points into and all later ones; set aside what cannot stay."""
        self.total_bytes = sum((self.directory / segment_name(base)).stat().st_size for base in bases)
        walked: list[_Walked] = []
        for number, base in enumerate(bases):
            if walked and not self._follows(walked[-1], base):
                for later in bases[number:]:
                    self._put_aside(later)
                break
            walked.append(self._walk(base))
        return walked

    def _follows(self, before: _Walked, base: int) -> bool:
        """May the segment at `base` stay? One that holds acknowledged records stays even after a gap."""
        if self.mark is None or base <= self.mark.segment_base:
            if base != before.next_offset:
                path = self.directory / segment_name(base)
                problem = f"the segment begins at offset {base}, the one before ends before offset {before.next_offset}"
                self.damages.append(Damage(path, 0, problem, str(before.next_offset), str(base)))
            return True
        return before.stopped is None and base == before.next_offset

    def _trusted_end(self, base: int, size: int) -> int:
        """Up to which byte of the segment everything was acknowledged."""
        if self.mark is None:
            return size if base != self.bases[-1] else 0
        if base == self.mark.segment_base:
            return min(self.mark.position, size)
        return size if base < self.mark.segment_base else 0

    def _walk(self, base: int) -> _Walked:
        with Segment(self.directory, base) as segment:
            size = segment.size
            trusted_end = self._trusted_end(base, size)
            found = _Walked(base, size, IndexBuilder(base), 0, base, NO_TIMESTAMP, NO_TIMESTAMP, None)
            position: int | None = 0
            offset = base
            while position is not None:
                end = self._walk_sound(segment, position, offset, found)
                position = None
                if end.clean:
                    break
                if end.position >= trusted_end or self._only_zeros(segment, end, size):
                    found.stopped = end
                    break
                self.damages.append(end.damage(segment.path))
                position, offset = self._behind(segment, end, trusted_end)
                # What was passed over was acknowledged, so it is not cut: not even when nothing sound follows.
                found.position = trusted_end if position is None else position
                found.next_offset = offset
        return found

    @staticmethod
    def _only_zeros(segment: Segment, end: WalkEnd, size: int) -> bool:
        return end.problem == batch.PROBLEM_ZEROS and segment.is_zero(end.position, size)

    def _walk_sound(self, segment: Segment, position: int, offset: int, found: _Walked) -> WalkEnd:
        """Take sound batches into `found` until one is bad."""
        walk = Walk(segment, position, found.size, expected_offset=offset)
        for batches in walk:
            if found.first_timestamp == NO_TIMESTAMP:
                found.first_timestamp = batches[0][5]
            for start, length, _, last_offset, _, max_timestamp, _ in batches:
                found.builder.add(start, length, last_offset, max_timestamp)
            start, length, _, last_offset, _, found.last_timestamp, _ = batches[-1]
            found.position = start + length
            found.next_offset = last_offset + 1
            self._report(sum(one[1] for one in batches))
        return walk.end

    def _behind(self, segment: Segment, end: WalkEnd, trusted_end: int) -> tuple[int | None, int]:
        """Where to go on after damage among what was acknowledged: position, None for nowhere, and base offset."""
        mark, base = self.mark, segment.base_offset
        durable = mark.durable_offset if mark else _FOREVER
        # A base offset is covered by no CRC: one that belongs to a later segment, or to none, is damage too.
        offset_max = min([durable, base + _OFFSETS_PER_SEGMENT, *(later for later in self.bases if later > base)])
        found = segment.find_batch(end.position + 1, trusted_end, end.next_offset, offset_max)
        if found is not None:
            header = segment.header(found)
            assert header is not None
            return found, header.base_offset
        if mark and (base, trusted_end) == (mark.segment_base, mark.position):
            return trusted_end, durable
        return None, end.next_offset

    def _report(self, size: int) -> None:
        self.done_bytes += size
        if self.progress is not None:
            self.progress(self.done_bytes, self.total_bytes)

    def _complete(self, base: int) -> None:
        """Rebuild the indexes of a sealed segment if one is missing or torn; its log is not looked at otherwise."""
        for suffix, entry_bytes in ((INDEX_SUFFIX, INDEX_ENTRY_BYTES), (TIME_SUFFIX, TIME_ENTRY_BYTES)):
            path = self.directory / segment_name(base, suffix)
            if not path.exists() or path.stat().st_size % entry_bytes:
                self._write_indexes(self._walk(base), sealed=True)
                return

    # -- writing -------------------------------------------------------------------------------------------------------

    def _put_aside(self, base: int) -> None:
        """Take a segment out of the log: renamed if it holds anything, removed if it does not; its indexes go."""
        path = self.directory / segment_name(base)
        with Segment(self.directory, base) as segment:
            empty = segment.is_zero(0, segment.size)
        # The log comes last: without it, an interrupted recovery would leave indexes that nobody removes.
        for suffix in (INDEX_SUFFIX, TIME_SUFFIX):
            (self.directory / segment_name(base, suffix)).unlink(missing_ok=True)
        if empty:
            path.unlink()
        else:
            target = path.with_name(path.name + CUT_SUFFIX)
            number = 1
            while target.exists():
                target = path.with_name(f"{path.name}.{number}{CUT_SUFFIX}")
                number += 1
            path.rename(target)
            self.set_aside.append(target)

    def _cut(self, last: _Walked) -> tuple[int, Damage | None] | None:
        """What the tail of the last segment loses: bytes of content and the reason."""
        if last.stopped is None:
            return None
        with Segment(self.directory, last.base_offset) as segment:
            content = segment.content_end(last.position, last.size) - last.position
            return content, last.stopped.damage(segment.path) if content else None

    def _sync_log(self, segment: _Walked) -> None:
        """End the file after its last batch, and make all of it durable: a reader may see it as soon as we return."""
        path = self.directory / segment_name(segment.base_offset, LOG_SUFFIX)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != segment.position:
                os.ftruncate(descriptor, segment.position)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _write_indexes(self, segment: _Walked, *, sealed: bool) -> None:
        if sealed:
            segment.builder.seal()
        for suffix, content in ((INDEX_SUFFIX, segment.builder.index), (TIME_SUFFIX, segment.builder.times)):
            _write_durably(self.directory / segment_name(segment.base_offset, suffix), bytes(content))

    def _begin_segment(self, base: int) -> _Walked:
        """An empty segment at `base`: offsets that were given out once are never given out again."""
        for suffix in (INDEX_SUFFIX, TIME_SUFFIX, LOG_SUFFIX):
            _write_durably(self.directory / segment_name(base, suffix), b"")
        sync_directory(self.directory)
        return _Walked(base, 0, IndexBuilder(base), 0, base, NO_TIMESTAMP, NO_TIMESTAMP, None)


def _write_durably(path: Path, content: bytes) -> None:
    """Have exactly `content` in the file, on the disk; a crash leaves it as it was. The caller syncs the directory.

    Half an index could end after a whole entry: nobody would see that the rest is missing. Only a disk without room
    for a second copy is written in place: after a crash there, the next recovery walks the same segment again.
    """
    if _holds(path, content):
        _fill(path, content, os.O_RDWR)
        return
    new = path.with_name(f".{path.name}.new")
    try:
        _fill(new, content, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        new.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fill(path, content, os.O_RDWR | os.O_CREAT)
    else:
        new.replace(path)


def _fill(path: Path, content: bytes, flags: int) -> None:
    """Write what differs, into the blocks that the file has, and sync."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            old = file.read(len(content) + 1) or b""
        if old != content:
            written = 0
            while written < len(content):
                written += os.pwrite(descriptor, content[written:], written)
            os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holds(path: Path, content: bytes) -> bool:
    """Is that what the file holds?"""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except FileNotFoundError:
        return False
