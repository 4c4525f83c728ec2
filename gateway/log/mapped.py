"""A segment that is mapped instead of read, for analysts whose columns point into it. The gateway itself maps nothing.

A page that the disk cannot give would be a signal (SIGBUS) that ends the process. So the kernel is asked for each piece
before it is looked at (MADV_POPULATE_READ, Linux 5.14 and newer), which answers with an error instead; that piece is
then read, which names the bad sector as always. Where the kernel cannot be asked, everything is read. What remains:
pages that were evicted, and that the disk can no longer give when somebody looks at them again.

Bytes that are mapped stay until the last column that points to them is gone, also when retention deletes the file
meanwhile; the gateway counts them as used until then (`gateway.log.holders`).
"""

from __future__ import annotations

import mmap
from pathlib import Path

from gateway.log.files import FILES, Files
from gateway.log.segment import Segment

# One mapping. Columns keep whole ones, so this, not the segment, is what a few rows hold of a deleted file; each takes
# a descriptor.
WINDOW_BYTES = 64 << 20

_POPULATE_READ = 22  # madvise(2): MADV_POPULATE_READ, which Python has no name for


class MappedSegment(Segment):
    """An open segment whose pieces are mapped, where that can be done safely. Only the caller's thread may use it."""

    def __init__(self, directory: Path, base_offset: int, files: Files = FILES) -> None:
        super().__init__(directory, base_offset, files)
        self._window: mmap.mmap | None = None
        self._window_at = 0
        self._maps = hasattr(mmap.mmap, "madvise") and hasattr(self._file, "map")

    def close(self) -> None:
        """Columns keep what they point to."""
        self._window = None
        super().close()

    def piece(self, position: int, size: int) -> tuple[bytes | memoryview, int]:
        size = min(size, self.size - position)
        if self._maps and size > 0:
            try:
                return self._mapped(position, size), 0
            except ValueError:
                pass  # the file was cut behind its last batch between asking for its size and mapping that
            except OSError:  # no such advice, a bad sector, no descriptor left: reading tells, or succeeds
                self._maps = self._window is not None  # a bad sector is no reason to map no more
        return self.read_some(position, size)

    def _mapped(self, position: int, size: int) -> memoryview:
        window = self._window
        if window is None or not self._window_at <= position <= self._window_at + len(window) - size:
            self._window = None
            self._window_at = position - position % mmap.ALLOCATIONGRANULARITY
            length = min(max(WINDOW_BYTES, position + size - self._window_at), self.size - self._window_at)
            window = self._file.map(self._window_at, length)  # type: ignore[attr-defined]
            window.madvise(_POPULATE_READ, 0, 0)  # OSError from a kernel that does not know it
            self._window = window
        begin = position - self._window_at
        page = begin - begin % mmap.PAGESIZE
        window.madvise(_POPULATE_READ, page, begin + size - page)
        return memoryview(window)[begin : begin + size]
