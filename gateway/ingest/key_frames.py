"""Makes the key-frame indexes of camera streams while the gateway runs. Nothing waits for it.

It follows each camera's stream every few seconds, so that what it reads is still in the page cache, and writes the
index when a segment is sealed. Sealed segments that have none, from before a restart, are done one after the other. A
thread of its own, because looking through an old segment waits for the disk, and the keeper must make room meanwhile.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gateway_native import watermark

from gateway.ingest.disk import space
from gateway.log import key_frames
from gateway.log.key_frames import Search
from gateway.log.layout import WATERMARK_FILE, list_segments, partition_path

logger = logging.getLogger("gateway.keyframes")

INTERVAL_S = 5.0
# Between two steps of catching up, so that a disk which is busy with recording stays free for it.
CATCHING_UP_S = 0.05
# A step that is under way is waited for no longer than this.
STOP_TIMEOUT_S = 5.0


class _Followed:
    """One stream: the search through its active segment, and the sealed ones that have no index."""

    def __init__(self, directory: Path, mark: watermark.Watermark) -> None:
        self.directory = directory
        self.active = Search(directory, mark.segment_base)
        self.left = self.without_index(0, mark)
        """Base offsets and ends, ascending; the newest is done first, as the oldest may be deleted meanwhile."""
        self.old: Search | None = None

    def sealed(self, base: int, mark: watermark.Watermark) -> list[tuple[int, int]]:
        """The sealed segments from the one at `base` on, with the offsets that they end before."""
        bases = [found for found in list_segments(self.directory) if base <= found <= mark.segment_base]
        return list(itertools.pairwise(bases))

    def without_index(self, base: int, mark: watermark.Watermark) -> list[tuple[int, int]]:
        return [each for each in self.sealed(base, mark) if not key_frames.stands_beside(self.directory, *each)]


class KeyFrameIndexer:
    """At most one thread, from the first camera's stream on until `stop`."""

    def __init__(
        self,
        data: Path,
        streams: Callable[[], Iterable[str]],
        *,
        reserve_bytes: int = 0,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """streams: names of the open streams that cameras write; asked again each time.

        reserve_bytes: what is kept free on the disk; where there is less, no index is written.
        """
        self._data = data
        self._streams = streams
        self._reserve_bytes = reserve_bytes
        self._interval_s = interval_s
        self._followed: dict[str, _Followed] = {}
        self._given_up: set[str] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # so that `stop` meets no thread that has not begun
        self.written = 0
        self.failures = 0

    def look(self) -> None:
        """See to it that the thread runs once there is something to follow."""
        with self._starting:
            if self._thread is None and not self._stopping.is_set() and any(True for _ in self._streams()):
                self._thread = threading.Thread(target=self._run, name="gateway-key-frames", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End after the step that is under way. What has no index yet gets one after the next start."""
        self._stopping.set()
        with self._starting:
            thread = self._thread
        if thread is not None:
            thread.join(STOP_TIMEOUT_S)

    def statistics(self) -> dict[str, Any]:
        """Indexes written and failures since the start, and how many sealed segments still wait for theirs."""
        waiting = sum(len(each.left) for each in list(self._followed.values()))
        return {"written": self.written, "waiting": waiting, "failures": self.failures}

    def _run(self) -> None:
        more = False
        while not self._stopping.wait(CATCHING_UP_S if more else self._interval_s):
            more = self.round()

    def round(self) -> bool:
        """Follow each stream one step, on the caller's thread; True if there is something to catch up with."""
        more = False
        names = set(self._streams()) - self._given_up
        for gone in self._followed.keys() - names:
            del self._followed[gone]
        for name in names:
            if self._stopping.is_set():
                return False
            try:
                more = self._follow(name) or more
            except FileNotFoundError:  # retention was faster: begin anew
                self._followed.pop(name, None)
            except Exception as error:
                self.failures += 1
                self._given_up.add(name)
                fields = {"source": name, "stream": name, "error": str(error)}
                logger.exception("key frames are not indexed until the next start", extra={"fields": fields})
        return more

    def _follow(self, name: str) -> bool:
        directory = partition_path(self._data, name)
        mark = watermark.read(directory / WATERMARK_FILE)
        if mark is None:
            return False
        followed = self._followed.get(name)
        if followed is None:
            followed = self._followed[name] = _Followed(directory, mark)
        if followed.active.base_offset == mark.segment_base:
            more = followed.active.step(mark.position, mark.durable_offset)
        else:
            more = self._turn(name, followed, mark)
        return self._catch_up(name, followed) or more

    def _turn(self, name: str, followed: _Followed, mark: watermark.Watermark) -> bool:
        """The segment that was followed is sealed: go to its end, write its index, follow the active one."""
        search = followed.active
        sealed = followed.sealed(search.base_offset, mark)
        if sealed and sealed[0][0] == search.base_offset:
            if search.step(key_frames.LOG_BYTES_MAX, sealed[0][1]):
                return True
            self._write(name, search, sealed[0][1])
        followed.left += followed.without_index(search.base_offset + 1, mark)
        followed.active = Search(followed.directory, mark.segment_base)
        return True

    def _catch_up(self, name: str, followed: _Followed) -> bool:
        """One step through the newest sealed segment that has no index."""
        if not followed.left:
            return False
        base, end_offset = followed.left[-1]
        if followed.old is None or followed.old.base_offset != base:
            followed.old = Search(followed.directory, base)
        try:
            if followed.old.step(key_frames.LOG_BYTES_MAX, end_offset):
                return True
            self._write(name, followed.old, end_offset)
        except FileNotFoundError:  # retention took it, and what lay before it
            followed.left.clear()
        else:
            followed.left.pop()
        followed.old = None
        return bool(followed.left)

    def _write(self, name: str, search: Search, end_offset: int) -> None:
        """An index that cannot be written is left to the next start: it is only a help."""
        try:
            if space(self._data).free_bytes < self._reserve_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.written += key_frames.write(search, end_offset)
        except OSError as error:
            self.failures += 1
            fields = {"source": name, "stream": name, "segment": search.base_offset, "error": str(error)}
            said = "a key-frame index cannot be written; looking for pictures takes longer"
            logger.warning(said, extra={"fields": fields})
