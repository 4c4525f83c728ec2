"""Which segments a partition has, for readers: by its manifest, and where that is silent by listing the directory.

The manifest is a hint. After a failed sync a segment may have been written again, and then the manifest's last entries
speak of what is no more, until the next start. So their files' lengths are compared before any of it is believed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gateway_native.summary import Summary

from gateway.log.files import FILES
from gateway.log.layout import MANIFEST_FILE, list_segments, segment_name
from gateway.log.manifest import Manifest

FOREVER = 2**63 - 1

# So many of the manifest's last entries are compared with their files each time.
LAST_ENTRIES = 64


class Span(NamedTuple):
    """One segment, the offset with which what follows it begins, and what is known of it if it need not be opened."""

    base_offset: int
    end_offset: int
    summary: Summary | None = None


class SegmentList:
    """The segments of one partition's directory. It holds no file open, and looks anew at each call."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._manifest = Manifest()
        self._version: tuple[int, int, int] | None = None
        self._oldest: int | None = None
        self._complete = False
        """Every sealed segment up to the manifest's last has its entry."""

    def list(self) -> list[int]:
        """Base offsets of all segments, ascending, those that are not durable included."""
        bases = list_segments(self.directory)
        if bases:
            self._oldest = bases[0]
        return bases

    def log_start(self) -> int:
        """The first offset that is there; 0 for an empty partition."""
        manifest = self._look()
        if self._knows_the_front():
            first = manifest.first_there(self.directory, FILES)
            if first < len(manifest):
                return manifest.base(first)
        bases = self.list()
        return bases[0] if bases else 0

    def spans(self, last_base: int, end_offset: int, offset_from: int, offset_to: int) -> Iterator[Span]:
        """The segments up to the one at `last_base` that may hold offsets in [offset_from, offset_to), in order.

        `end_offset` is where that last one ends. Segments that retention has deleted may be among them.
        """
        manifest = self._look()
        stop = manifest.at(last_base - 1) + 1
        believed = self._count_believed(manifest, stop)
        if stop and believed == stop and self._complete and self._reaches(manifest[stop - 1], last_base):
            first = max(manifest.at(offset_from), manifest.first_there(self.directory, FILES))
            if offset_from >= last_base:
                first = stop
            if manifest.base(0) <= offset_from or self._knows_the_front():
                yield from self._by_manifest(manifest, first, stop, Span(last_base, end_offset), offset_to)
                return
        yield from self._by_listing(believed, Span(last_base, end_offset), offset_from, offset_to)

    def _count_believed(self, manifest: Manifest, stop: int) -> int:
        """How many of the first `stop` entries are of segments that are still as they say."""
        for number in range(max(stop - LAST_ENTRIES, 0), stop):
            entry = manifest[number]
            try:
                size = FILES.size(self.directory / segment_name(entry.base_offset))
            except OSError:  # gone, as the one at the front may be that retention has just deleted
                size = -1
            if size != entry.log_bytes:
                return number
        return stop

    @staticmethod
    def _by_manifest(manifest: Manifest, first: int, stop: int, last: Span, offset_to: int) -> Iterator[Span]:
        for number in range(first, stop):
            entry = manifest[number]
            if entry.base_offset >= offset_to:
                return
            end = manifest.base(number + 1) if number + 1 < stop else last.base_offset
            yield Span(entry.base_offset, end, entry)
        if last.base_offset < offset_to:
            yield last

    def _by_listing(self, stop: int, last: Span, offset_from: int, offset_to: int) -> Iterator[Span]:
        bases = [base for base in self.list() if base <= last.base_offset]
        first = max(bisect_right(bases, offset_from) - 1, 0)
        for number in range(first, len(bases)):
            base = bases[number]
            if base >= offset_to:
                return
            after_last = last.end_offset if base == last.base_offset else last.base_offset
            yield Span(base, bases[number + 1] if number + 1 < len(bases) else after_last, self._entry(base, stop))

    def _entry(self, base: int, stop: int) -> Summary | None:
        number = self._manifest.at(base)
        entry = self._manifest[number] if 0 <= number < stop else None
        return entry if entry is not None and entry.base_offset == base else None

    # -- the manifest --------------------------------------------------------------------------------------------------

    def _look(self) -> Manifest:
        """The manifest as it is now, read again if it changed."""
        path = self.directory / MANIFEST_FILE
        try:
            status = path.stat()
        except OSError:  # there is none
            self._manifest, self._version, self._complete = Manifest(), None, False
            return self._manifest
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if version != self._version:
            self._manifest = Manifest.load(self.directory, FILES) or Manifest()
            self._version = version
            self._complete = self._manifest.unsound == 0 and not self._has_holes()
        return self._manifest

    def _has_holes(self) -> bool:
        """Is there a segment where the manifest goes from one to another that does not follow it?"""
        end = -1
        for entry in self._manifest:
            if end >= 0 and entry.base_offset != end and self._exists(end):
                return True
            end = entry.next_offset
        return False

    def _reaches(self, entry: Summary, last_base: int) -> bool:
        """Does the segment at `last_base` follow this one?"""
        return entry.next_offset == last_base or (entry.next_offset < last_base and not self._exists(entry.next_offset))

    def _knows_the_front(self) -> bool:
        """Is there no segment before the manifest's first? Nothing older than what was there once ever appears."""
        if not len(self._manifest):
            return False
        first = self._manifest.base(0)
        return first == 0 or (self._oldest is not None and self._oldest >= first)

    def _exists(self, base: int) -> bool:
        return FILES.exists(self.directory / segment_name(base))
