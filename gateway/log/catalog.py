"""What a start learns of a partition's old segments without looking at each: its manifest, and one listing at most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gateway.log.files import Files, replace
from gateway.log.index import NO_TIMESTAMP
from gateway.log.layout import (
    CUT_SUFFIX,
    MANIFEST_FILE,
    NEW_SUFFIX,
    SEGMENT_DIGITS,
    segment_base,
    segment_name,
    sidecar_base,
)
from gateway.log.manifest import DEAD_ENTRIES_MAX, Manifest, read_summary

_FOREVER = 2**63 - 1

OnSkip = Callable[[Path, OSError], None]

# So many entries at the end of a manifest are made good at a start, each by reading 64 bytes; more are left to others.
ENTRIES_COMPLETED_MAX = 256
# So many files that belong to no segment are removed at a start.
ORPHANS_MAX = 10_000


class Catalog:
    """The old segments of one partition, at a start."""

    def __init__(self, directory: Path, files: Files, mark_base: int | None, on_skip: OnSkip) -> None:
        self.directory = directory
        self.files = files
        self._mark_base = mark_base
        self._on_skip = on_skip
        self._path = directory / MANIFEST_FILE
        below = _FOREVER if mark_base is None else mark_base
        self.manifest = Manifest.load(directory, files, below=below) or Manifest()
        self._first = self.manifest.first_there(directory, files)
        self._scanned = False
        self._oldest: int | None = None
        self.last_base: int | None = None
        """After `scan`: the last segment's."""
        self.cut_base: int | None = None
        """After `scan`: the last segment's among those that were set aside."""
        self._orphans: list[Path] = []
        self.manifest_bytes = -1
        """Where the next entry goes, once the manifest is complete; -1: it is not."""

    @property
    def first_base(self) -> int | None:
        """After `scan`: the first segment's."""
        return self._oldest

    @property
    def has_segments(self) -> bool:
        """After `scan`: there is a segment."""
        return self.last_base is not None

    # -- the listing ---------------------------------------------------------------------------------------------------

    def scan(self) -> list[int]:
        """List the directory, keeping next to nothing: segments that begin behind the watermark's, ascending."""
        later: list[int] = []
        sidecars: list[str] = []
        above = "" if self._mark_base is None else f"{self._mark_base:0{SEGMENT_DIGITS}d}"
        below = f"{self.manifest.base(self._first):0{SEGMENT_DIGITS}d}" if self._first < len(self.manifest) else ""
        first = last = cut = ""
        for name in self.files.names(self.directory):
            digits = name[:SEGMENT_DIGITS]
            if name.endswith(".log"):
                if segment_base(name) is None:
                    continue
                first = digits if not first or digits < first else first
                last = max(last, digits)
                if above and digits > above:
                    later.append(int(digits))
            elif name.endswith(CUT_SUFFIX) and digits.isdecimal():
                cut = max(cut, digits)
            elif (digits < below or (above and digits > above)) and len(sidecars) < ORPHANS_MAX:
                sidecars.append(name)
        self._scanned = True
        self.cut_base = int(cut) if cut else None
        if first:
            self._oldest, self.last_base = int(first), int(last)
        there = set(later)
        for name in sidecars:
            base = sidecar_base(name)
            left_new = name.startswith(".") and name.endswith(NEW_SUFFIX)
            if left_new or (base is not None and base not in there):
                self._orphans.append(self.directory / name)
        return sorted(later)

    def remove_orphans(self) -> None:
        """Remove what an interrupted retention, roll or replacement left: files beside a log that is not there."""
        for path in self._orphans:
            base = sidecar_base(path.name)
            if base is not None and self.files.exists(self.directory / segment_name(base)):
                continue
            try:
                self.files.unlink(path)
            except OSError as error:
                self._on_skip(path, error)

    def log_start_offset(self, active_base: int) -> int:
        """The first offset that is there, by the manifest, or by the listing where that knows better."""
        start = self.manifest.base(self._first) if self._first < len(self.manifest) else active_base
        return min(start, self._oldest) if self._oldest is not None else start

    def last_timestamp(self, base: int) -> int:
        """The latest time in the segment before the one at `base`, as far as that is known."""
        number = self.manifest.at(base - 1)
        return self.manifest[number].max_timestamp if number >= 0 else NO_TIMESTAMP

    # -- the manifest --------------------------------------------------------------------------------------------------

    def complete(self, active_base: int) -> None:
        """Bring the manifest up to the segment that is appended to; where that takes long, leave it to others."""
        self._drop_stale()
        kept = len(self.manifest.data)
        if self.manifest.unsound or not self._knows_the_front(active_base) or not self._fill(active_base):
            return
        try:
            if self._first > max(DEAD_ENTRIES_MAX, len(self.manifest) // 2):
                self.manifest.drop_first(self._first)
                self._first = kept = 0
            self._write(kept)
        except OSError as error:
            self._on_skip(self._path, error)
            return
        self.manifest_bytes = len(self.manifest.data)

    def _drop_stale(self) -> None:
        """Entries of segments that were written again after a failed sync stand at the end: drop them."""
        for _ in range(ENTRIES_COMPLETED_MAX):
            if len(self.manifest) <= self._first:
                return
            last = self.manifest[-1]
            if read_summary(self.directory, last.base_offset, self.files) == last:
                return
            self.manifest.drop_last()

    def _knows_the_front(self, active_base: int) -> bool:
        """Does the manifest begin with the oldest segment there is? If it has nothing of use, it is begun there."""
        if self._first < len(self.manifest):
            # Without a listing: it was complete when the last one looked, and nothing older appears.
            return self._oldest is None or self._oldest >= self.manifest.base(self._first)
        if active_base > 0 and not self._scanned:
            self.scan()
        if self._oldest is None or self._oldest >= active_base:
            return True
        found = read_summary(self.directory, self._oldest, self.files)
        if found is None:
            return False
        self.manifest.append(found)
        return True

    def _fill(self, active_base: int) -> bool:
        """Add what is missing at the end, from the sidecars of the segments. False: too much, or one is not there."""
        expected = self.manifest[-1].next_offset if len(self.manifest) else None
        for _ in range(ENTRIES_COMPLETED_MAX):
            if expected is None or expected >= active_base:
                return True
            if not self.files.exists(self.directory / segment_name(expected)):
                return True  # offsets are missing here: FORMAT.md, section 2
            found = read_summary(self.directory, expected, self.files)
            if found is None or found.next_offset <= expected:
                return False
            self.manifest.append(found)
            expected = found.next_offset
        return False

    def _write(self, kept: int) -> None:
        """Have these entries in the file, whose first `kept` bytes are right: the common case adds a few at its end."""
        data = self.manifest.data
        if not kept and data:
            replace(self.files, self._path, data)
        if not self.files.exists(self._path):
            return
        size = self.files.size(self._path)
        if kept < len(data) and kept:
            self.files.write_at(self._path, data[kept:], kept)
        if size > len(data):
            self.files.truncate(self._path, len(data))
        if size != len(data):
            self.files.sync(self._path)
