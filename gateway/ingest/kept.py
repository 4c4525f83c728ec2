"""One stream's directory as retention sees it: what is sealed, what is active, how old it really is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway_native import watermark

from gateway.log.files import FILES, Files
from gateway.log.layout import WATERMARK_FILE, list_segments
from gateway.log.retention import Ages, SegmentTable, age_base_ms, delete_segment


class Kept:
    """A partition's directory, whether the gateway writes it now or the configuration no longer names it.

    Nothing is read before it is needed: a stream that keeps everything costs nothing while the disk has room.
    """

    def __init__(self, stream: str, directory: Path, files: Files = FILES) -> None:
        self.stream = stream
        self.directory = directory
        self.index: int | None = None
        """The partition's number at the writer; None: nobody writes it."""
        self.base = -1
        """Base offset of the durable segment; what lies below is sealed and durable. -1: there is none."""
        self.position = 0
        """Durable bytes of that segment."""
        self.failed = False
        self.stalled = False
        self.run_base = -1
        """`base` when this gateway first saw it: what it writes itself lies in this segment or behind it."""
        self.rolled_base = -1
        """The segment that sealing was asked for."""
        self.aged_ns: int | None = None
        """Boot time at which its age was looked at last."""
        self.trouble_ns: int | None = None
        self.deleted_segments = 0
        self.deleted_bytes = 0
        self._files = files
        self._table: SegmentTable | None = None
        self._ages: Ages | None = None

    def see(self, index: int, state: Mapping[str, Any]) -> None:
        """What the writer says of it now."""
        self.index = index
        self.base, self.position = state["segment_base"], state["position"]
        self.failed, self.stalled = state["failed"], bool(state["stalled_errno"])
        if self.run_base < 0:
            self.run_base = self.base

    def see_unwritten(self) -> None:
        """Nobody writes it: its last segment, or the watermark's if that is earlier, stays."""
        mark = watermark.read(self.directory / WATERMARK_FILE)
        if mark is not None:
            self.base = mark.segment_base
        else:
            self.base = max(list_segments(self.directory), default=-1)
        self.position = 0

    @property
    def table(self) -> SegmentTable:
        """What is sealed. OSError if the directory cannot be looked at."""
        if self._table is None:
            self._table = SegmentTable(self.directory, self._files)
        if self.base > 0:
            self._table.update(self.base)
        return self._table

    @property
    def ages(self) -> Ages:
        if self._ages is None:
            self._ages = Ages(self.directory, self._files)
        return self._ages

    def save_ages(self) -> bool:
        """Have on the disk what is known of the ages, if anything changed; False, as nothing is left to do."""
        if self._ages is not None:
            self._ages.save()
        return False

    def oldest_ms(self, now_ms: int) -> int:
        """When the newest record of the oldest sealed segment was recorded; `now_ms` if nothing is sealed."""
        return age_base_ms(self.table, self.ages, 0, now_ms)

    def active_newest_ms(self) -> int | None:
        """The time of the newest record in the active segment; None if there is none, or it is not known."""
        mark = watermark.read(self.directory / WATERMARK_FILE)
        if mark is None or mark.segment_base != self.base or mark.position == 0 or mark.max_timestamp < 0:
            return None
        return mark.max_timestamp + self.ages.shift_of(self.base)

    def delete_first(self) -> int:
        """Delete the oldest sealed segment; the bytes of its log."""
        segment = self.table[0]
        delete_segment(self.directory, segment.base_offset, self._files)
        self.table.drop_first()
        self.ages.forget(self.table[0].base_offset if len(self.table) else self.base)
        self.deleted_segments += 1
        self.deleted_bytes += segment.log_bytes
        return segment.log_bytes
