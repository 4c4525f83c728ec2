"""Bring a partition back into a state that can be appended to, whatever ended its last writer, in bounded time.

The watermark is the recovery point: everything below its position was acknowledged, and is neither walked nor touched.
Only what lies behind it is: the rest of that segment, and segments that follow. That was never acknowledged, as far as
the watermark on the disk knows: it is kept as far as it is sound, and cut at the first bad batch; segments after a cut
are set aside, renamed to ``*.cut``. Without a watermark (a copied directory) every segment but the last counts as
acknowledged, because the gateway syncs a segment before it commits to the next, and only the last is walked.

When `recover` returns, the log that it kept is on the disk, with its directory entries; the active segment's indexes
need not be, since the watermark has their checksums. Indexes, summaries and the manifest can be made again: where the
disk has no room for them, or a power failure tore them, they are left to `gateway.log.maintenance`, and the log opens
without. If `recover` raises, nothing is promised, and calling it again starts over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_native import watermark
from gateway_native.watermark import Watermark

from gateway.log.catalog import Catalog
from gateway.log.files import FILES, FULL, Files
from gateway.log.index import NO_TIMESTAMP, IndexBuilder
from gateway.log.index_files import begin_files, continue_indexes, keeps_indexes, summarize, write_indexes
from gateway.log.layout import CUT_SUFFIX, SIDECAR_SUFFIXES, WATERMARK_FILE, segment_name
from gateway.log.segment import CHUNK_BYTES, Damage
from gateway.log.tail import Tail, TailWalk

Progress = Callable[[int, int], None]

# Acknowledged bytes directly below the watermark that are looked at: a copy may have zeros there.
_LAST_BYTES = 4096


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
    index_crc: int = 0
    time_crc: int = 0
    indexes_whole: bool = True
    """The segment's indexes have all their entries; otherwise they are made again once it is sealed."""
    bytes_since_entry: int = 0
    first_timestamp: int = NO_TIMESTAMP
    max_timestamp: int = NO_TIMESTAMP
    offset_of_max: int = 0
    last_time_entry: int = NO_TIMESTAMP
    last_timestamp: int = NO_TIMESTAMP
    manifest_bytes: int = 0
    """Where the manifest's next entry goes; -1: it is not complete, and must not be gone on with."""

    clean: bool = False
    """The log was closed cleanly, so nothing was walked."""
    walked_bytes: int = 0
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
    rebuild: tuple[int, ...] = ()
    """Base offsets of sealed segments whose indexes and summary are to be made again."""
    skipped: tuple[str, ...] = ()
    """What could not be written, a sentence each; none of it is needed to go on."""

    def writer_state(self) -> dict[str, Any]:
        """Arguments for ``Writer.add_partition``."""
        names = (
            "epoch",
            "next_offset",
            "segment_base",
            "position",
            "index_bytes",
            "time_bytes",
            "index_crc",
            "time_crc",
            "indexes_whole",
            "bytes_since_entry",
            "first_timestamp",
            "max_timestamp",
            "offset_of_max",
            "last_time_entry",
            "last_timestamp",
            "manifest_bytes",
        )
        return {name: getattr(self, name) for name in names}


def recover(directory: Path, *, progress: Progress | None = None, files: Files = FILES) -> Recovered:
    """Recover one partition. The caller holds the data directory's lock and no writer has the partition open.

    A directory that is missing or has no segments gives the state of a new partition. `progress(done, total)` counts
    bytes. OSError if the log cannot be read, cut or synced.
    """
    return _Recovery(Path(directory), progress, files).run()


class _Recovery:
    def __init__(self, directory: Path, progress: Progress | None, files: Files) -> None:
        self.directory = directory
        self.files = files
        self.progress = progress
        self.walk = TailWalk(directory, files, self._report)
        self.mark = self._read_mark()
        self.catalog = Catalog(directory, files, self.mark.segment_base if self.mark else None, self._skip)
        self.damages: list[Damage] = []
        self.set_aside: list[Path] = []
        self.skipped: list[str] = []
        self.rebuild: list[int] = []
        self.done_bytes = 0
        self.total_bytes = 0
        self.cut_bytes = 0
        self.cut: Damage | None = None

    def _read_mark(self) -> Watermark | None:
        try:
            return watermark.parse(self.files.read_bytes(self.directory / WATERMARK_FILE))
        except FileNotFoundError:
            return None

    def run(self) -> Recovered:
        if self.mark is None:
            return self._run_unmarked()
        if self.mark.flags & watermark.CLEAN and self._is_as_closed(self.mark):
            return self._run_clean(self.mark)
        return self._run_marked(self.mark)

    # -- closed cleanly ------------------------------------------------------------------------------------------------

    def _is_as_closed(self, mark: Watermark) -> bool:
        """Nothing was appended since: not to the segment, and no next one was begun."""
        try:
            if self.files.size(self._log(mark.segment_base)) != mark.position:
                return False
        except FileNotFoundError:
            return False
        return mark.durable_offset == mark.segment_base or not self.files.exists(self._log(mark.durable_offset))

    def _run_clean(self, mark: Watermark) -> Recovered:
        tail = self._from_mark(mark)
        continue_indexes(self.directory, self.files, tail, self._skip)
        self.catalog.complete(mark.segment_base)
        return self._state(tail, mark.epoch + 1, lost=0, clean=True)

    def _from_mark(self, mark: Watermark) -> Tail:
        """The watermark's segment in the state that it tells."""
        builder = IndexBuilder(
            mark.segment_base,
            max_timestamp=mark.max_timestamp,
            offset_of_max=mark.offset_of_max,
            last_time_entry=mark.last_time_entry,
            bytes_since_entry=mark.bytes_since_entry,
        )
        tail = Tail(mark.segment_base, mark.position, builder, mark.position, mark.durable_offset)
        tail.first_timestamp = mark.first_timestamp
        tail.last_timestamp = mark.last_timestamp
        if mark.position > 0:
            keeps_indexes(self.directory, self.files, tail, mark)
        return tail

    # -- after a crash -------------------------------------------------------------------------------------------------

    def _run_marked(self, mark: Watermark) -> Recovered:
        later = self.catalog.scan()
        self.total_bytes = sum(self.files.size(self._log(base)) for base in later)
        tails = self._walk_on(self._walk_marked(mark, later), later, mark.durable_offset)
        last = tails[-1]
        if not last.in_file and mark.durable_offset == 0 and not self.catalog.has_segments:
            return Recovered(epoch=mark.epoch + 1)
        lost = max(mark.durable_offset - tails[0].next_offset, 0)
        if mark.position > 0 and not tails[0].in_file and self._behind_deleted(mark, later) is None:
            lost = mark.durable_offset - mark.segment_base
        return self._finish(tails, mark.epoch + 1, mark.durable_offset, lost)

    def _walk_marked(self, mark: Watermark, later: list[int]) -> Tail:
        base = mark.segment_base
        try:
            size = self.files.size(self._log(base))
        except FileNotFoundError:
            next_offset = self._behind_deleted(mark, later) or mark.durable_offset
            gone = Tail(base, 0, IndexBuilder(base), 0, next_offset, in_file=False)
            gone.last_timestamp = mark.last_timestamp
            return gone
        self.total_bytes += max(size - mark.position, 0)
        without_state = mark.position > 0 and mark.first_timestamp == NO_TIMESTAMP
        if size < mark.position or without_state or self._turns_to_zeros(mark):
            # Acknowledged bytes are gone, so nobody knows where the last batch ends; or the disk had no room for a
            # segment that this one's state could be of. Only then what was acknowledged is walked.
            self.total_bytes += min(size, mark.position)
            return self._walk_all_of(mark, min(size, mark.position), set(later))
        return self.walk.run(self._from_mark(mark), set(later))

    def _behind_deleted(self, mark: Watermark, later: list[int]) -> int | None:
        """Where the log goes on if retention deleted the watermark's segment; None: it did not.

        It deletes from the front, however old the watermark on the disk is. If all that followed was set aside, because
        the disk failed, its name still tells which offsets were given out.
        """
        following = later[0] if later else self.catalog.cut_base
        if following is None or following < mark.durable_offset or following == mark.segment_base:
            return None
        return following if self.catalog.first_base in {following, None} else None

    def _walk_all_of(self, mark: Watermark, end: int, stops: set[int]) -> Tail:
        tail = Tail(mark.segment_base, 0, IndexBuilder(mark.segment_base), 0, mark.segment_base)
        durable = mark.durable_offset if end == mark.position else None
        self.damages += self.walk.run_over_damage(tail, end, mark.durable_offset, stops, end_offset=durable)
        return self.walk.run(tail, stops) if tail.position == mark.position else tail

    def _turns_to_zeros(self, mark: Watermark) -> bool:
        return mark.position > 0 and self.walk.ends_in_zeros(mark.segment_base, mark.position, _LAST_BYTES)

    def _walk_on(self, first: Tail, later: list[int], durable_offset: int) -> list[Tail]:
        """Walk the segments that follow; set aside what cannot stay."""
        tails = [first]
        broken = False
        for number, base in enumerate(later):
            before = tails[-1]
            expected = max(before.next_offset, durable_offset)
            # What follows the last sound batch of a segment that another goes on from was written again, there.
            if broken or base != expected:
                # One below the durable offset contradicts the watermark; nothing in it was ever read.
                broken = broken or base >= durable_offset
                self._put_aside(base)
                continue
            tail = Tail(base, 0, IndexBuilder(base), 0, base)
            tail.last_timestamp = before.last_timestamp
            tails.append(self.walk.run(tail, set(later[number + 1 :])))
        return tails

    # -- without a watermark -------------------------------------------------------------------------------------------

    def _run_unmarked(self) -> Recovered:
        self.catalog.scan()
        base = self.catalog.last_base
        if base is None:
            return Recovered()
        self.total_bytes = self.files.size(self._log(base))
        tail = Tail(base, 0, IndexBuilder(base), 0, base)
        tail.last_timestamp = self.catalog.last_timestamp(base)
        return self._finish([self.walk.run(tail)], 1, 0, 0)

    # -- writing -------------------------------------------------------------------------------------------------------

    def _finish(self, tails: list[Tail], epoch: int, durable_offset: int, lost: int) -> Recovered:
        last = tails[-1]
        self._note_cut(last)
        begins_anew = not last.in_file or last.next_offset < durable_offset
        for tail in tails:
            if tail.in_file:  # the log first, since what it cuts off may be the last room on the disk
                self._cut_log(tail, goes_on=tail is last and not begins_anew)
        sealed = [tail for tail in tails if tail.in_file and (tail is not last or begins_anew)]
        for tail in sealed:
            write_indexes(self.directory, self.files, tail, self._skip, sealed=True)
            if not summarize(self.directory, self.files, tail, self._skip):
                self.rebuild.append(tail.base_offset)
        if begins_anew:
            last = self._begin(max(durable_offset, last.next_offset), last.last_timestamp)
        else:
            write_indexes(self.directory, self.files, last, self._skip, sealed=False)
        self.catalog.complete(last.base_offset)
        self.catalog.remove_orphans()
        if self._may_have_new_entries(tails):
            self.files.sync_directory(self.directory)
            self.files.sync_directory(self.directory.parent)
        return self._state(last, epoch, lost=lost, clean=False)

    def _state(self, last: Tail, epoch: int, *, lost: int, clean: bool) -> Recovered:
        builder = last.builder
        return Recovered(
            epoch=epoch,
            log_start_offset=self.catalog.log_start_offset(last.base_offset),
            next_offset=last.next_offset,
            segment_base=last.base_offset if last.in_file else -1,
            position=last.position,
            index_bytes=last.index_bytes,
            time_bytes=last.time_bytes,
            index_crc=last.index_crc,
            time_crc=last.time_crc,
            indexes_whole=last.indexes_whole,
            bytes_since_entry=builder.bytes_since_entry,
            first_timestamp=last.first_timestamp,
            max_timestamp=builder.max_timestamp,
            offset_of_max=builder.offset_of_max,
            last_time_entry=builder.last_time_entry,
            last_timestamp=last.last_timestamp,
            manifest_bytes=self.catalog.manifest_bytes,
            clean=clean,
            walked_bytes=self.done_bytes,
            cut_bytes=self.cut_bytes,
            cut=self.cut,
            set_aside=tuple(self.set_aside),
            damages=tuple(self.damages),
            lost_records=lost,
            rebuild=tuple(self.rebuild),
            skipped=tuple(self.skipped),
        )

    def _note_cut(self, last: Tail) -> None:
        if last.damage is not None and last.content_bytes:
            self.cut_bytes = last.content_bytes
            self.cut = last.damage._replace(bytes=last.content_bytes)

    def _cut_log(self, tail: Tail, *, goes_on: bool) -> None:
        """End the file after its last batch, and make all of it durable: a reader may see it as soon as we return.

        What the watermark speaks of is durable already, and that zeros were cut off a segment that goes on may be
        forgotten; anything else may not: a sound batch behind the cut could otherwise come back behind one that is
        written there next, and zeros inside the log would be taken for damage.
        """
        path = self._log(tail.base_offset)
        cut = tail.size != tail.position
        if cut:
            self.files.truncate(path, tail.position)
        trusted = self._trusted_bytes(tail)
        if trusted == 0 or tail.position > trusted or tail.has_more or (cut and not goes_on):
            self._write_again(path, trusted, tail.position)
            self.files.sync(path)

    def _trusted_bytes(self, tail: Tail) -> int:
        """So much of the segment was synced before the watermark spoke of it."""
        return self.mark.position if self.mark is not None and self.mark.segment_base == tail.base_offset else 0

    def _write_again(self, path: Path, position: int, end: int) -> None:
        """Make pages dirty that a sync of the last writer may have failed to write: they are clean since, and what was
        read here may be in memory only. It is little: a writer syncs often, and its watermark every 64 MiB.
        """
        file = self.files.open_read(path)
        try:
            while position < end:
                data = file.read(position, min(CHUNK_BYTES, end - position))
                if not data:
                    return
                self.files.write_at(path, data, position)
                position += len(data)
        except OSError as error:
            if error.errno not in FULL:  # a file system that never writes in place has no room for it
                raise
            self._skip(path, error)
        finally:
            file.close()

    def _may_have_new_entries(self, tails: list[Tail]) -> bool:
        """Was a file made since the last commit? Those that the watermark speaks of were synced before it."""
        return (
            self.mark is None
            or self.mark.position == 0
            or len(tails) > 1
            or not tails[0].in_file
            or bool(self.set_aside)
        )

    def _begin(self, base: int, last_timestamp: int) -> Tail:
        """An empty segment at `base`: offsets that were given out once are never given out again."""
        tail = Tail(base, 0, IndexBuilder(base), 0, base, last_timestamp=last_timestamp)
        try:
            begin_files(self.directory, self.files, base)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._skip(self._log(base), error)
            tail.in_file = False  # the writer makes it as soon as there is room
        return tail

    def _put_aside(self, base: int) -> None:
        """Take a segment out of the log: renamed if it holds anything, removed if it does not; its indexes go."""
        path = self._log(base)
        empty = self.walk.is_empty(base)
        # The log comes last: without it, an interrupted recovery would leave indexes that nobody removes.
        for suffix in SIDECAR_SUFFIXES:
            self.files.unlink(self.directory / segment_name(base, suffix))
        if empty:
            self.files.unlink(path)
            return
        target = path.with_name(path.name + CUT_SUFFIX)
        number = 1
        while self.files.exists(target):
            target = path.with_name(f"{path.name}.{number}{CUT_SUFFIX}")
            number += 1
        self.files.rename(path, target)
        self.set_aside.append(target)

    def _log(self, base: int) -> Path:
        return self.directory / segment_name(base)

    def _skip(self, path: Path, error: OSError) -> None:
        """Something that can be made again could not be written."""
        self.skipped.append(f"{path} could not be written: {error.strerror or error}; it is made again later.")

    def _report(self, size: int) -> None:
        self.done_bytes += size
        if self.progress is not None:
            self.progress(self.done_bytes, max(self.total_bytes, self.done_bytes))
