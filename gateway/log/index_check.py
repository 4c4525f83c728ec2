"""Compare the indexes of one segment with its batches, while these are being walked. FORMAT.md, section 4."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from gateway.log.index import INDEX_ENTRY_BYTES, NO_TIMESTAMP, TIME_ENTRY_BYTES
from gateway.log.layout import INDEX_SUFFIX, TIME_SUFFIX, segment_name
from gateway.log.segment import Damage

_ENTRIES_READ = 4096  # index entries read at a time
REBUILD = "`gateway verify --repair` makes it again while the gateway is stopped"

OnDamage = Callable[[Damage], None]
OnNote = Callable[[Path, str], None]


class IndexCheck:
    """Checks both indexes of a segment in one pass beside the walk, with a bounded piece of each in memory.

    `batch` is called for each sound batch in order, `forgive` after batches were passed over, `finish` at the end. What
    is wrong goes to `on_damage`, what is only incomplete and costs look-ups time to `on_note`.
    """

    def __init__(
        self,
        directory: Path,
        base_offset: int,
        *,
        durable_offset: int,
        sealed: bool,
        on_damage: OnDamage,
        on_note: OnNote,
    ) -> None:
        self._base_offset = base_offset
        self._durable_offset = durable_offset
        self._sealed = sealed
        self._on_note = on_note
        index, times = (directory / segment_name(base_offset, suffix) for suffix in (INDEX_SUFFIX, TIME_SUFFIX))
        self._offsets = _Entries(index, ">ii", "offset +{0}, byte {1}", on_damage, on_note, whole=sealed)
        self._times = _Entries(times, ">qi", "time {0} ms, offset +{1}", on_damage, on_note, whole=sealed)
        assert (self._offsets.entry_bytes, self._times.entry_bytes) == (INDEX_ENTRY_BYTES, TIME_ENTRY_BYTES)
        self._max_timestamp = NO_TIMESTAMP
        self._forgiving = False
        self.entries = 0

    def __enter__(self) -> IndexCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._offsets.close()
        self._times.close()

    def forgive(self) -> None:
        """Batches were passed over: entries may point at them, and times are no longer known to be the largest."""
        self._forgiving = True

    def batch(self, position: int, last_offset: int, max_timestamp: int) -> None:
        """The walk found a sound batch."""
        relative = last_offset - self._base_offset
        while (entry := self._offsets.entry) is not None and entry[1] <= position:
            passed_over = self._forgiving and entry[1] < position
            if entry != (relative, position) and not passed_over:
                self._offsets.wrong(self._offsets.text((relative, position)), self._offsets.text(entry))
            self._take(self._offsets)
            if entry[1] == position:
                break
        newest = max(self._max_timestamp, max_timestamp)
        while (entry := self._times.entry) is not None and entry[1] <= relative:
            brought_it = max_timestamp > self._max_timestamp and entry == (max_timestamp, relative)
            if not brought_it and not self._forgiving:
                self._times.wrong(self._times.text((newest, relative)), self._times.text(entry))
            self._take(self._times)
        self._max_timestamp = newest

    def _take(self, entries: _Entries) -> None:
        entries.next()
        self.entries += 1

    def finish(self) -> None:
        """The segment is over: what is left in the indexes must speak of what is not durable yet."""
        if self._forgiving:
            return
        for entries, field_number in ((self._offsets, 0), (self._times, 1)):
            least = self._durable_offset - self._base_offset
            while (entry := entries.entry) is not None:
                if self._sealed or entry[field_number] < least:
                    entries.wrong("no entry beyond the last batch", entries.text(entry))
                    break
                least = entry[field_number] + 1
                self._take(entries)
        if self._sealed and self._times.complete and self._times.last[0] < self._max_timestamp:
            self._on_note(self._times.path, f"has no final entry, so look-ups by time are slower; {REBUILD}")


class _Entries:
    """The entries of one index file, one after the other."""

    def __init__(
        self, path: Path, layout: str, text: str, on_damage: OnDamage, on_note: OnNote, *, whole: bool
    ) -> None:
        self.path = path
        self._struct = struct.Struct(layout)
        self._text = text
        self._on_damage = on_damage
        self._position = 0
        self._pending: list[tuple[int, ...]] = []
        self.entry: tuple[int, ...] | None = None
        self.last: tuple[int, ...] = (NO_TIMESTAMP, -1)
        self.complete = False
        """The file is there, and all of it could be read."""
        self._file: FileIO | None = None
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            on_note(path, "is missing; the gateway makes it again")
            return
        self.complete = True
        size = self._file.seek(0, 2)
        if whole and size % self.entry_bytes:  # one that is being written may end anywhere
            start = size - size % self.entry_bytes
            on_damage(Damage(path, start, f"the index ends inside an entry; {REBUILD}", "a whole entry", "a part"))
        self._file.seek(0)
        self.next()

    @property
    def entry_bytes(self) -> int:
        return self._struct.size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def text(self, entry: tuple[int, ...]) -> str:
        return self._text.format(*entry)

    def next(self) -> None:
        """Move to the next entry; None after the last."""
        if self.entry is not None:
            self.last = self.entry
            self._position += self.entry_bytes
        if not self._pending:
            data = self._read()
            whole = len(data) - len(data) % self.entry_bytes
            self._pending = list(self._struct.iter_unpack(data[:whole]))[::-1]
        self.entry = self._pending.pop() if self._pending else None

    def _read(self) -> bytes:
        assert self._file is not None
        try:
            return self._file.read(_ENTRIES_READ * self.entry_bytes) or b""
        except OSError as error:  # a bad sector
            self.complete = False
            problem = f"the index cannot be read: {error.strerror}; {REBUILD}"
            self._on_damage(Damage(self.path, self._position, problem, "readable bytes", "an error"))
            return b""

    def wrong(self, expected: str, found: str) -> None:
        problem = f"the index entry says {found}, expected {expected}; {REBUILD}"
        self._on_damage(Damage(self.path, self._position, problem, expected, found))
