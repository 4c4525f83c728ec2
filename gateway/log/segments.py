"""Which segments a partition has, for readers: by its manifest, and where that is silent by listing the directory.

The manifest is a hint. Before a segment is left out by what it says, the length of its file is compared: after a failed
sync, a segment may have been written again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gateway_native.summary import Summary

from gateway.log.files import FILES
from gateway.log.layout import MANIFEST_FILE, list_segments, segment_name
from gateway.log.manifest import Manifest

FOREVER = 2**63 - 1


class Span(NamedTuple):
    """One segment, the offset with which what follows it begins, and what the manifest says of it."""

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
        if stop and self._complete and self._reaches(manifest[stop - 1], last_base):
            first = max(manifest.at(offset_from), manifest.first_there(self.directory, FILES))
            if manifest.base(0) <= offset_from or self._knows_the_front():
                yield from self._by_manifest(manifest, first, stop, Span(last_base, end_offset), offset_to)
                return
        yield from self._by_listing(last_base, end_offset, offset_from, offset_to)

    def is_as_described(self, span: Span) -> bool:
        """Is the file as long as the manifest says? Then its times are right too."""
        if span.summary is None:
            return False
        try:
            return FILES.size(self.directory / segment_name(span.base_offset)) == span.summary.log_bytes
        except OSError:  # whoever opens it will say so
            return False

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

    def _by_listing(self, last_base: int, end_offset: int, offset_from: int, offset_to: int) -> Iterator[Span]:
        bases = [base for base in self.list() if base <= last_base]
        first = max(sum(base <= offset_from for base in bases) - 1, 0)
        for number in range(first, len(bases)):
            base = bases[number]
            if base >= offset_to:
                return
            after_last = end_offset if base == last_base else last_base
            yield Span(base, bases[number + 1] if number + 1 < len(bases) else after_last, self._entry(base))

    def _entry(self, base: int) -> Summary | None:
        number = self._manifest.at(base)
        entry = self._manifest[number] if number >= 0 else None
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
        if not self.is_as_described(Span(entry.base_offset, last_base, entry)):
            return False
        return entry.next_offset == last_base or (entry.next_offset < last_base and not self._exists(entry.next_offset))

    def _knows_the_front(self) -> bool:
        """Is there no segment before the manifest's first? Nothing older than what was there once ever appears."""
        if not len(self._manifest):
            return False
        first = self._manifest.base(0)
        return first == 0 or (self._oldest is not None and self._oldest >= first)

    def _exists(self, base: int) -> bool:
        return FILES.exists(self.directory / segment_name(base))
