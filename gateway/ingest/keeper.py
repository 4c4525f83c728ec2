"""The keeper: one thread that looks after what no record waits for.

It waits on the writer's health descriptor, a second at most, and then does its jobs in turn. A job that raises is
logged and counted; the others, and ingest, do not notice. Nothing here holds up a record: the writer decides by itself
what it refuses, and looks by itself whether there is room again.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.clock import NS_PER_S

logger = logging.getLogger("gateway.keeper")

INTERVAL_S = 1.0
# A job that has more to do is called again so soon.
BUSY_INTERVAL_S = 0.05
# … and no round follows another sooner, however often the writer's health changes.
SPACING_S = 0.02
# Jobs are bounded; this only keeps a disk that hangs from holding up the end of the process.
STOP_TIMEOUT_S = 10.0


class HealthWriter(Protocol):
    """What the keeper itself needs of the native writer."""

    @property
    def health_fd(self) -> int: ...

    def clear_health(self) -> None: ...


@dataclass(slots=True)
class Job:
    """Something to do about once a second. `run` returns True if there is more to do at once.

    on_health: also as soon as the writer's health changes. interval_ns: at most so often otherwise.
    """

    name: str
    run: Callable[[], bool | None]
    interval_ns: int = 0
    on_health: bool = False
    runs: int = 0
    failures: int = 0
    longest_ns: int = 0
    last_ns: int | None = None


class Keeper:
    """Runs jobs on a thread of its own, from `start` to `stop`."""

    def __init__(self, writer: HealthWriter, jobs: Sequence[Job], on_health: Callable[[], None] | None = None) -> None:
        """on_health: called on the keeper's thread when the writer's health changed, and about once a second."""
        self._writer = writer
        self._jobs = list(jobs)
        self._on_health = on_health
        self._wake = -1
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="gateway-keeper", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """End after the job that is running; False if it does not come to an end."""
        self._stopping.set()
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    @property
    def running(self) -> bool:
        """The thread has been started and has not ended."""
        return self._thread is not None

    def close(self) -> None:
        """After `stop`: give the descriptor back."""
        if self._thread is None and self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def look(self, *, changed: bool = True) -> bool:
        """One round on the caller's thread; True if a job has more to do. changed: the writer's health has."""
        more = False
        now_ns = time.monotonic_ns()
        for job in self._jobs:
            if self._stopping.is_set():
                return False
            due = job.last_ns is None or now_ns - job.last_ns >= job.interval_ns
            if due or (changed and job.on_health):
                more = self._do(job, now_ns) or more
        return more

    def _do(self, job: Job, now_ns: int) -> bool:
        job.runs += 1
        more: bool | None = False
        try:
            more = job.run()
        except Exception:
            job.failures += 1
            logger.exception("keeper's job failed", extra={"fields": {"source": job.name, "failures": job.failures}})
        # Of one that has more to do the interval has not begun.
        job.last_ns = None if more else now_ns
        job.longest_ns = max(job.longest_ns, time.monotonic_ns() - now_ns)
        return bool(more)

    def _run(self) -> None:
        waiting = select.poll()
        waiting.register(self._writer.health_fd, select.POLLIN)
        waiting.register(self._wake, select.POLLIN)
        more = False
        while not self._stopping.is_set():
            ready = waiting.poll((BUSY_INTERVAL_S if more else INTERVAL_S) * 1000)
            changed = any(fd == self._writer.health_fd for fd, _ in ready)
            if changed:
                self._writer.clear_health()
            more = self.look(changed=changed)
            self._tell()
            self._stopping.wait(SPACING_S)

    def _tell(self) -> None:
        if self._on_health is None or self._stopping.is_set():
            return
        try:
            self._on_health()
        except Exception:
            logger.exception("what listens to the engine's health failed")

    def statistics(self) -> dict[str, Any]:
        """For each job: how often it ran and failed, and how long it took at most."""
        return {
            job.name: {"runs": job.runs, "failures": job.failures, "longest_s": round(job.longest_ns / NS_PER_S, 6)}
            for job in self._jobs
        }
