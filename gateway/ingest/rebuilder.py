"""Makes again, while the gateway runs, what a start found missing: indexes, summaries, manifests. Nothing waits for it.

A segment of 1 GiB takes seconds to walk, in which the keeper has to make room: so this has a thread of its own, which
lives only as long as there is something to do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.log import maintenance
from gateway.log.files import FILES, Files, ReadFile
from gateway.log.recovery import Recovered

logger = logging.getLogger("gateway.keeper")

# Between two reads the end of the gateway is noticed; this only keeps a disk that hangs from holding it up.
STOP_TIMEOUT_S = 5.0


class Stopped(Exception):  # no error
    """The gateway ends; what is not made again now is at the next start."""


class _Interruptible:
    """A file whose reading ends when it is time to."""

    def __init__(self, file: ReadFile, stopping: threading.Event) -> None:
        self._file = file
        self._stopping = stopping

    @property
    def size(self) -> int:
        return self._file.size

    def read(self, position: int, size: int) -> bytes:
        if self._stopping.is_set():
            raise Stopped
        return self._file.read(position, size)

    def close(self) -> None:
        self._file.close()


class _InterruptibleFiles(Files):
    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def open_read(self, path: Path) -> ReadFile:
        return _Interruptible(FILES.open_read(path), self._stopping)


class Rebuilder:
    """A queue of what is to be made again, at most one thread that does it."""

    def __init__(self, thread_name: str = "gateway-rebuilder", *, nice: int = 0) -> None:
        """nice: by how much the thread stands back behind others for the processor (Linux counts threads)."""
        self._thread_name = thread_name
        self._nice = nice
        self._work: deque[tuple[str, str, Callable[[Files], object]]] = deque()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # so that `stop` meets no thread that has not begun
        self.rebuilt = 0
        self.failures = 0

    def add(self, stream: str, directory: Path, found: Recovered) -> None:
        """What recovery left to do for a stream that was just opened."""
        for base in found.rebuild:
            self._work.append((stream, "indexes", _segment(directory, base)))
        if found.manifest_bytes < 0 and found.segment_base > 0:
            self._work.append((stream, "manifest", _manifest(directory, found.segment_base)))

    def put(self, stream: str, what: str, work: Callable[[Files], object]) -> None:
        """Something else to do, with files whose reading ends when the gateway does."""
        self._work.append((stream, what, work))

    def look(self) -> None:
        """See to it that somebody works on the queue."""
        with self._starting:
            if self._work and (self._thread is None or not self._thread.is_alive()) and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name=self._thread_name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End after the read that is under way. What was not made again stays as it was."""
        self._stopping.set()
        with self._starting:
            thread = self._thread
        if thread is not None:
            thread.join(STOP_TIMEOUT_S)

    def statistics(self) -> dict[str, Any]:
        return {"waiting": len(self._work), "rebuilt": self.rebuilt, "failures": self.failures}

    def _run(self) -> None:
        if self._nice:
            with contextlib.suppress(OSError):  # elsewhere than on Linux: then it has its share like everybody
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        files = _InterruptibleFiles(self._stopping)
        while self._work and not self._stopping.is_set():
            stream, what, rebuild = self._work.popleft()
            fields: dict[str, object] = {"source": stream, "stream": stream, "what": what}
            try:
                rebuild(files)
            except Stopped:
                return
            except FileNotFoundError:
                continue  # retention was faster
            except Exception as error:
                self.failures += 1
                fields["error"] = str(error)
                logger.exception("could not be made again; the next start tries again", extra={"fields": fields})
            else:
                self.rebuilt += 1
                logger.info("made again", extra={"fields": fields})


def _segment(directory: Path, base: int) -> Callable[[Files], object]:
    return lambda files: maintenance.rebuild_segment(directory, base, files=files)


def _manifest(directory: Path, upto_base: int) -> Callable[[Files], object]:
    return lambda files: maintenance.rebuild_manifest(directory, upto_base, files=files)
