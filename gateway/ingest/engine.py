"""The engine: the native writer with its two threads, the rings that feed it, the partitions it writes.

    sources ── rings ──► writer thread ──► flusher thread ──► durable offset, acknowledgements

Everything here runs at start, at stop, and when something changes; records never pass through this module.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from gateway_native.ring import Ring
from gateway_native.storage import filesystem
from gateway_native.writer import Writer

from gateway.clock import NS_PER_MS
from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.log.layout import partition_path
from gateway.log.recovery import Recovered, recover

# How long `close` lets the disk finish what it was given before the rest is left behind (it was never acknowledged).
CLOSE_TIMEOUT_S = 30.0
# A full disk may stay so for days: whoever ends the gateway then waits no longer than this for room.
FULL_DISK_TIMEOUT_S = 2.0
# How often the two above are looked at.
FLUSH_STEP_S = 0.25


class Engine:
    """Owns the writer and flusher threads of one data directory, whose lock the caller holds.

    Durable when: `flush` returned True, a ring's verdict is ACKED, or a reader sees the record. Not before.
    """

    def __init__(self, config: Config, *, storage: str | None = None) -> None:
        """storage: "mapped" or "pwrite"; None takes the configuration's choice."""
        self.config = config
        self.data = Path(config.data)
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
        )
        self._partitions: dict[str, int] = {}
        self._recovered: dict[str, Recovered] = {}
        self._rings: dict[str, Ring] = {}
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()

    def start(self) -> None:
        """Start both threads. Partitions and rings may be added before and after."""
        for name, body in (("gateway-writer", self.writer.run_writer), ("gateway-flusher", self.writer.run_flusher)):
            thread = threading.Thread(target=body, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def partition(self, stream: str) -> int:
        """The index of a stream's partition for ring slots; recovers what an earlier run left of it.

        A new stream costs nothing on disk until its first record. Raises GatewayError when there are too many streams
        or its files cannot be used.
        """
        known = self._partitions.get(stream)
        if known is not None:
            return known
        settings = self.config.stream(stream)
        directory = partition_path(self.data, stream)
        try:
            found = recover(directory)
            index = self.writer.add_partition(
                str(directory),
                segment_bytes=settings.segment_bytes,
                segment_age_ms=settings.segment_age_ns // NS_PER_MS,
                linger_ns=settings.linger_ns,
                ack_memory=settings.ack == "memory",
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
        return index

    def ring(self, name: str) -> Ring:
        """The ring of that name, for one producing thread (or for several that hold the GIL while they append).

        A source that was stopped and started again gets the ring it had. Raises ConfigError when there are too many.
        """
        if name in self._rings:
            return self._rings[name]
        try:
            ring = self.writer.ring(name, self.config.limits.ring_bytes)
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
        return complete

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
            "streams": {name: self.writer.partition_state(index) for name, index in self._partitions.items()},
        }

    def troubles(self) -> dict[str, str]:
        """One sentence for each stream that is not well: failed, or waiting for room on the disk."""
        found: dict[str, str] = {}
        for name, index in self._partitions.items():
            state = self.writer.partition_state(index)
            if state["failed"]:
                reason = os.strerror(state["failed_errno"])
                found[name] = (
                    f"The stream {name!r} failed while {state['failed_step']}: {reason}. Nothing more is "
                    "acknowledged from it; check the disk and start the gateway again."
                )
            elif state["stalled_errno"]:
                reason = os.strerror(state["stalled_errno"])
                found[name] = (
                    f"The stream {name!r} waits for room on the disk ({reason}). Nothing is acknowledged until there "
                    "is some; it then goes on by itself."
                )
        return found
