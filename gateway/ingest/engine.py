"""The engine: the native writer with its two threads, the rings that feed it, the partitions it writes, its keeper.

    sources ── rings ──► writer thread ──► flusher thread ──► durable offset, acknowledgements
       │                     │ refusals, failures, jumps of the clock
       └── losses ──► keeper thread: gap records, retention, room on the disk

Everything here runs at start, at stop, and when something changes; records never pass through this module.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

from gateway_native.ring import Ring
from gateway_native.storage import filesystem
from gateway_native.writer import Writer

from gateway.clock import NS_PER_MS, format_time
from gateway.config import Config, StreamConfig
from gateway.errors import ConfigError, GatewayError
from gateway.ingest import disk
from gateway.ingest.clock_watch import Clocks, ClockWatch
from gateway.ingest.gaps import Gaps
from gateway.ingest.keeper import Job, Keeper
from gateway.ingest.rebuilder import Rebuilder
from gateway.ingest.refusals import Refusals
from gateway.ingest.retainer import Retainer
from gateway.ingest.troubles import Troubles
from gateway.log.layout import partition_path
from gateway.log.recovery import Recovered, recover

# How long `close` lets the disk finish what it was given before the rest is left behind (it was never acknowledged).
CLOSE_TIMEOUT_S = 30.0
# A full disk may stay so for days: whoever ends the gateway then waits no longer than this for room.
FULL_DISK_TIMEOUT_S = 2.0
# How often the two above are looked at.
FLUSH_STEP_S = 0.25

# No source can have this name, so no source's ring.
GAP_RING, GAP_RING_BYTES = "(gateway)", 2**16
# Gap records of one stream, source and reason are at least so far apart.
GAP_INTERVAL_NS = 1_000_000_000
# The rings that cameras share, one for each engine, in which their streams tell them apart.
CAMERA_RINGS = ("(cameras)", "(cameras, pyav)")

logger = logging.getLogger("gateway.engine")


class Engine:
    """Owns the writer and flusher threads of one data directory, whose lock the caller holds.

    Durable when: `flush` returned True, a ring's verdict is ACKED, or a reader sees the record. Not before.
    """

    def __init__(
        self,
        config: Config,
        *,
        storage: str | None = None,
        on_health: Callable[[], None] | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        """storage: "mapped" or "pwrite"; None takes the configuration's choice.

        on_health: called on the keeper's thread when `troubles` may have changed. Raises ConfigError when the disk
        cannot be used as configured.
        """
        self.config = config
        self.data = Path(config.data)
        self.disk = disk.plan(config, disk.space(self.data).total_bytes)
        self.filesystem, preallocation_holds = filesystem(str(self.data))
        self.storage = storage or config.disk.append
        if self.storage == "mapped" and not preallocation_holds:
            raise ConfigError(
                f'[disk] append = "mapped" needs preallocated blocks that stay, which {self.filesystem} (of '
                f'{self.data}) does not promise; use append = "pwrite".'
            )
        self.writer = Writer(
            self.storage,
            buffer_bytes=config.limits.buffer_bytes,
            partitions_max=config.limits.max_streams,
            reserve_bytes=self.disk.reserve_bytes,
            syncfs_files=disk.syncfs_files(config),
        )
        self._partitions: dict[str, int] = {}
        self._opening = threading.Lock()
        self._recovered: dict[str, Recovered] = {}
        self._rings: dict[str, Ring] = {}
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()
        self.gaps = Gaps(self.writer.ring(GAP_RING, GAP_RING_BYTES), lambda: self.streams)
        self.retainer = Retainer(
            self.data,
            self.disk,
            self.writer,
            ClockWatch(config.site.clock, clocks),
            settings=self._settings,
            partitions=lambda: self.streams,
        )
        self._rebuilder = Rebuilder()
        self._troubles = Troubles(self.writer, self.retainer)
        self._clock_steps = 0
        refusals = Refusals(self.writer, self.gaps, lambda: self.streams, self._source_of)
        self.keeper = Keeper(
            self.writer,
            [
                Job("retention", self.retainer.look, on_health=True),
                Job("refusals", refusals.look, GAP_INTERVAL_NS, on_health=True),
                Job("gaps", self.gaps.flush, GAP_INTERVAL_NS),
                Job("clock", self._say_clock_steps, GAP_INTERVAL_NS),
                Job("rebuilding", self._rebuilder.look, GAP_INTERVAL_NS),
            ],
            on_health,
        )
        self._count_refusals = refusals.look

    def start(self) -> None:
        """Start the threads. Partitions and rings may be added before and after."""
        for name, body in (("gateway-writer", self.writer.run_writer), ("gateway-flusher", self.writer.run_flusher)):
            thread = threading.Thread(target=body, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self.keeper.start()

    def partition(self, stream: str) -> int:
        """The index of a stream's partition for ring slots; recovers what an earlier run left of it.

        A new stream costs nothing on disk until its first record. Raises GatewayError when there are too many streams
        or its files cannot be used.
        """
        with self._opening:
            known = self._partitions.get(stream)
            return known if known is not None else self._open(stream)

    def _open(self, stream: str) -> int:
        settings = self.config.stream(stream)
        directory = partition_path(self.data, stream)
        try:
            found = recover(directory)
            index = self.writer.add_partition(
                str(directory),
                segment_bytes=self.disk.segment_bytes(settings),
                segment_age_ms=settings.segment_age_ns // NS_PER_MS,
                linger_ns=settings.linger_ns,
                ack_memory=settings.ack == "memory",
                refuse_when_full=settings.when_full == "refuse",
                **found.writer_state(),
            )
        except ValueError as error:
            raise GatewayError(f"The stream {stream!r} cannot be opened: {error}.") from error
        except OSError as error:
            raise GatewayError(
                f"The stream {stream!r} cannot be opened in {directory}: {error.strerror or error}. Check that the "
                "gateway may write there and that the disk is not full."
            ) from error
        self._partitions[stream] = index
        self._recovered[stream] = found
        self._count_damage(stream, found)
        self._rebuilder.add(stream, directory, found)
        return index

    def _count_damage(self, stream: str, found: Recovered) -> None:
        """What recovery found missing among acknowledged records is a loss like any other."""
        spans = [damage.offsets for damage in found.damages if damage.offsets is not None]
        missing = found.lost_records + sum(end - first for first, end in spans)
        if missing or found.damages:
            self.gaps.add(stream, "recovery", "damage", count=missing, bytes=0)

    def ring(self, name: str, ring_bytes: int | None = None) -> Ring:
        """The ring of that name, for one producing thread (or for several that hold the GIL while they append).

        ring_bytes: None takes the configured size. A source that was stopped and started again gets the ring it had.
        Raises ConfigError when there are too many.
        """
        if name in self._rings:
            return self._rings[name]
        try:
            ring = self.writer.ring(name, ring_bytes or self.config.limits.ring_bytes)
        except ValueError as error:
            raise ConfigError(
                f"{error}. Let some listeners or subscribers share one address and one set of routes."
            ) from error
        self._rings[name] = ring
        return ring

    @property
    def streams(self) -> dict[str, int]:
        """Streams opened so far, with their partition indexes."""
        return dict(self._partitions)

    @property
    def recovered(self) -> dict[str, Recovered]:
        """What recovery found when each stream was opened."""
        return dict(self._recovered)

    def flush(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Wait until everything in the rings is durable, or its stream failed.

        False: not within the time, or the disk is full and FULL_DISK_TIMEOUT_S brought no room.
        """
        started = time.monotonic()
        while True:
            waited_s = time.monotonic() - started
            if self.writer.flush(min(FLUSH_STEP_S, max(0.0, timeout_s - waited_s))):
                return True
            if waited_s >= self._patience_s(timeout_s) or not any(thread.is_alive() for thread in self._threads):
                return False

    def _patience_s(self, timeout_s: float) -> float:
        """How long to wait for the disk, considering its state."""
        states = map(self.writer.partition_state, self._partitions.values())
        full = any(state["stalled_errno"] for state in states)
        return min(timeout_s, FULL_DISK_TIMEOUT_S) if full else timeout_s

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Make everything durable, seal cleanly, end the threads. False: the disk did not take everything in time.

        What was left behind was never acknowledged, unless its stream has ack = "memory".
        """
        if os.getpid() != self._pid or not self._threads:
            return True
        self._close_keeper()
        self.writer.stop()
        started = time.monotonic()
        while any(thread.is_alive() for thread in self._threads):
            if time.monotonic() - started >= self._patience_s(timeout_s):
                break
            for thread in self._threads:
                thread.join(FLUSH_STEP_S)
        complete = not any(thread.is_alive() for thread in self._threads)
        if not complete:
            self.writer.stop(abandon=True)
            for thread in self._threads:
                thread.join(2.0)
        self._threads.clear()
        self._say_unwritten()
        return complete

    def _close_keeper(self) -> None:
        """End the keeper; then write what losses are still to be written, as far as there is room."""
        self._rebuilder.stop()
        if not self.keeper.stop():
            return  # its disk hangs; what it has to write would not be written either
        self.keeper.close()
        self._count_refusals()
        self.gaps.flush()
        self.writer.flush(FLUSH_STEP_S)

    def _say_unwritten(self) -> None:
        if self.keeper.running:
            return
        self.gaps.settle()
        if self.gaps.unwritten:
            lost = [loss for loss in self.gaps.statistics() if loss["count"] > loss["written"] + loss["unwritable"]]
            for loss in lost:
                logger.error("lost records of which no gap record tells, for want of room", extra={"fields": loss})

    def statistics(self) -> dict[str, Any]:
        """Counters of the writer, of each ring, and of each stream opened."""
        return {
            "storage": self.storage,
            "filesystem": self.filesystem,
            "writer": self.writer.counters,
            "rings": {
                name: {**ring.counters, "used_bytes": ring.used, "capacity_bytes": ring.capacity}
                for name, ring in self._rings.items()
            },
            "streams": {name: self.writer.partition_state(index) for name, index in self.streams.items()},
            "disk": self.retainer.statistics(),
            "losses": self.gaps.statistics(),
            "keeper": self.keeper.statistics(),
            "rebuilding": self._rebuilder.statistics(),
        }

    def troubles(self) -> dict[str, str]:
        """One sentence for each stream that is not well: failed, refusing, waiting for room; and for the disk."""
        return self._troubles.look(self.streams)

    def _settings(self, stream: str) -> StreamConfig:
        """A stream's settings as they are now: the configuration may be replaced while the engine runs."""
        return self.config.stream(stream)

    def _source_of(self, ring: str, stream: str) -> str:
        """Whose records of that stream came through that ring."""
        if ring not in CAMERA_RINGS:
            return ring
        return next((name for name, camera in self.config.cameras.items() if camera.stream == stream), ring)

    def _say_clock_steps(self) -> None:
        old_ns, new_ns, steps = self.writer.clock_step
        if steps != self._clock_steps:
            self._clock_steps = steps
            logger.warning(
                "the wall clock stepped; each stream goes on in a new segment",
                extra={"fields": {"old": format_time(old_ns, UTC), "new": format_time(new_ns, UTC), "steps": steps}},
            )
