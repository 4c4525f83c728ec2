"""Retention: what streams no longer keep by age or size, and what has to go so that the disk keeps its reserve.

Called by the keeper, on its thread. Everything that is deleted is a whole sealed segment below the durable one.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway.clock import NS_PER_MS, NS_PER_S, format_duration, format_size
from gateway.config import StreamConfig
from gateway.config.values import KIB, MIB
from gateway.ingest.clock_watch import ClockWatch
from gateway.ingest.disk import DiskPlan, Space
from gateway.ingest.disk import space as look_at_disk
from gateway.ingest.kept import Kept
from gateway.log.files import FILES, Files
from gateway.log.holders import Held, find_holders
from gateway.log.layout import list_partitions, partition_path
from gateway.log.retention import expired_by_age, expired_by_size, implausible

logger = logging.getLogger("gateway.retention")

# Deleted in one round; then the keeper's other work has its turn.
ROUND_SEGMENTS_MAX = 64
# Streams that nobody writes are looked for so often.
LIST_INTERVAL_NS = 60 * NS_PER_S
# /proc is searched, and deleting that freed nothing is tried again, no more often than this.
HOLDERS_INTERVAL_NS = 5 * NS_PER_S
# Rounds that free nothing, with nobody seen who holds it, before deleting slows down (records may have taken at once
# what was freed), and before it stops (file systems may free late).
USELESS_ROUNDS_FREE, USELESS_ROUNDS_MAX = 3, 8
USELESS_RETRY_NS = 600 * NS_PER_S
# An active segment with less than this is not worth sealing to get its room back.
ROLL_BYTES_MIN = 64 * KIB
# Room that lasts for less than this, at the rate at which it was taken last, is looked at again at once.
LOOK_AHEAD_NS = 3 * NS_PER_S
# Ages are looked at at least so often.
AGE_INTERVAL_NS_MAX = 60 * NS_PER_S
# A stream whose segments cannot be deleted is left alone for so long.
TROUBLE_NS = 60 * NS_PER_S


class RetentionWriter(Protocol):
    """What retention needs of the native writer."""

    def partition_state(self, index: int) -> dict[str, Any]: ...

    def roll(self, index: int) -> None: ...

    def retry(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Stop:
    """Deleting frees nothing."""

    held: Held
    free_bytes: int
    since_ns: int

    def __str__(self) -> str:
        if self.held.holders:
            who = ", ".join(map(str, self.held.holders[:3]))
            who = f"held by {who}"
            todo = "End that process, or let it close what it reads"
        else:
            who = "not given back, probably held by a process that this user may not look at"
            todo = "As root, 'lsof +L1' names it"
        return (
            f"Retention has stopped: {format_size(self.held.bytes)} of deleted segments are {who}, so that deleting "
            f"more frees nothing. {todo}; retention then goes on by itself. Until then records are refused once the "
            "disk is full."
        )


class Retainer:
    """Retention of all streams of one data directory."""

    def __init__(
        self,
        data: Path,
        plan: DiskPlan,
        writer: RetentionWriter,
        watch: ClockWatch,
        *,
        settings: Callable[[str], StreamConfig],
        partitions: Callable[[], Mapping[str, int]],
        files: Files = FILES,
        space: Callable[[Path], Space] = look_at_disk,
        holders: Callable[[Path], Held] = find_holders,
    ) -> None:
        self.data = data
        self.plan = plan
        self.watch = watch
        self._writer = writer
        self._settings = settings
        self._partitions = partitions
        self._files = files
        self._look_at_disk = space
        self._find_holders = holders
        self._kept: dict[Path, Kept] = {}
        self._listed_ns: int | None = None
        self._space = Space(0, 0)
        self._looked_ns = 0
        self._stop: _Stop | None = None
        self._useless_rounds = 0
        self._useless_bytes = 0
        self._useless_ns: int | None = None
        self._asked_holders_ns: int | None = None
        self._nothing_left = ""
        self._doubt = ""

    # -- one round -----------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """One round. True: there is more to do at once."""
        self._see_streams()
        jump_ns = self.watch.look()
        if jump_ns:
            self._clock_jumped(jump_ns)
        again = self._keep_room()
        self._say_doubt()
        for kept in list(self._kept.values()):
            again = self._guarded(kept, self._retain) or again
        for kept in self._kept.values():
            self._guarded(kept, Kept.save_ages)
        return again

    def _see_streams(self) -> None:
        for stream, index in self._partitions().items():
            self._of(stream, partition_path(self.data, stream)).see(index, self._writer.partition_state(index))
        now_ns = self._now_ns
        if self._listed_ns is not None and now_ns - self._listed_ns < LIST_INTERVAL_NS:
            return
        self._listed_ns = now_ns
        for name in list_partitions(self.data):
            kept = self._of(name.stream, name.path)
            if kept.index is None:
                kept.see_unwritten()

    def _of(self, stream: str, directory: Path) -> Kept:
        found = self._kept.get(directory)
        if found is None:
            found = self._kept[directory] = Kept(stream, directory, self._files)
        return found

    @property
    def _now_ns(self) -> int:
        """Boot time."""
        return self.watch.clocks.boottime_ns()

    def _guarded(self, kept: Kept, step: Callable[[Kept], bool]) -> bool:
        """Do it, unless this stream's files have just been trouble: the others' must not suffer."""
        if kept.trouble_ns is not None and self._now_ns - kept.trouble_ns < TROUBLE_NS:
            return False
        kept.trouble_ns = None
        try:
            return step(kept)
        except OSError as error:
            kept.trouble_ns = self._now_ns
            logger.exception(
                "retention cannot look after a stream, and tries again in a minute",
                extra={"fields": {"stream": kept.stream, "directory": str(kept.directory), "error": str(error)}},
            )
            return False

    # -- the clock -----------------------------------------------------------------------------------------------------

    def _clock_jumped(self, jump_ns: int) -> None:
        """What this run has recorded keeps its age, whatever the clock says now."""
        logger.warning(
            "the wall clock jumped; nothing is deleted by age for an hour",
            extra={"fields": {"jump": ("-" if jump_ns < 0 else "+") + format_duration(abs(jump_ns))}},
        )
        for kept in self._kept.values():
            if kept.index is not None and self._settings(kept.stream).retention.age_ns is not None:
                kept.ages.add(max(kept.run_base, 0), kept.base + 1, jump_ns // NS_PER_MS)

    def _say_doubt(self) -> None:
        """Say once that age retention waits, and once that it does no more; only where a stream has such a limit."""
        aged = any(self._settings(kept.stream).retention.age_ns is not None for kept in self._kept.values())
        doubt = self.watch.doubt if aged else ""
        if doubt and doubt != self._doubt:
            logger.warning("retention by age waits", extra={"fields": {"reason": doubt}})
        elif self._doubt and not doubt:
            logger.info("retention by age goes on")
        self._doubt = doubt

    # -- per stream ----------------------------------------------------------------------------------------------------

    def _retain(self, kept: Kept) -> bool:
        """Delete what the stream's own limits say; True if a round was not enough."""
        limits = self._settings(kept.stream).retention
        count, limit = 0, "size"
        if limits.size_bytes is not None:
            count = expired_by_size(kept.table, kept.position, limits.size_bytes, most=ROUND_SEGMENTS_MAX)
        if limits.age_ns is not None and not self._doubt:
            by_age = self._expired(kept, limits.age_ns)
            count, limit = (by_age, "age") if by_age > count else (count, limit)
        if not count:
            return False
        self._say_deleted(kept, count, sum(kept.delete_first() for _ in range(count)), limit)
        kept.aged_ns = None
        return count == ROUND_SEGMENTS_MAX

    def _expired(self, kept: Kept, age_ns: int) -> int:
        """How many segments are too old. Looked at no more often than such an age can make a difference."""
        interval_ns = min(AGE_INTERVAL_NS_MAX, max(NS_PER_S, age_ns // 1000))
        if kept.aged_ns is not None and self._now_ns - kept.aged_ns < interval_ns:
            return 0
        kept.aged_ns = self._now_ns
        now_ms, age_ms = self.watch.now_ms, age_ns // NS_PER_MS
        unset = list(implausible(kept.table, kept.ages))
        if unset:
            # From before the clock was set, by a run that did not live to see it set: their age begins now.
            shift_ms = now_ms - max(segment.newest_ms for segment in unset)
            kept.ages.add(unset[0].base_offset, unset[-1].base_offset + 1, shift_ms)
        self._roll_idle(kept, now_ms, age_ms)
        return expired_by_age(kept.table, kept.ages, now_ms, age_ms, most=ROUND_SEGMENTS_MAX)

    def _roll_idle(self, kept: Kept, now_ms: int, age_ms: int) -> None:
        """Seal an active segment in which nothing is young enough any more; a later round deletes it."""
        if kept.index is None or kept.position == 0 or kept.rolled_base == kept.base:
            return
        newest_ms = kept.active_newest_ms()
        if newest_ms is not None and newest_ms < now_ms - age_ms:
            self._roll(kept)

    def _roll(self, kept: Kept) -> None:
        assert kept.index is not None
        kept.rolled_base = kept.base
        self._writer.roll(kept.index)

    def _say_deleted(self, kept: Kept, segments: int, deleted_bytes: int, limit: str) -> None:
        logger.info(
            "segments deleted",
            extra={
                "fields": {
                    "source": kept.stream,
                    "stream": kept.stream,
                    "segments": segments,
                    "bytes": deleted_bytes,
                    "limit": limit,
                }
            },
        )

    # -- the disk ------------------------------------------------------------------------------------------------------

    def _keep_room(self) -> bool:
        """Delete the oldest segments of all streams that allow it until there is headroom; True: more to do."""
        soon = self._look_at_room()
        short_bytes = self.plan.free_wanted_bytes - self._space.free_bytes
        if short_bytes <= 0 and any(kept.stalled for kept in self._kept.values()):
            short_bytes = 1  # no room for another reason: inodes, a quota
        if short_bytes <= 0:
            self._resume("there is room")
            self._useless_rounds, self._nothing_left = 0, ""
            return soon
        if self._must_wait():
            return False
        deleted_bytes, before = self._delete_oldest(short_bytes), self._space.free_bytes
        if not deleted_bytes:
            return self._roll_largest()
        self._nothing_left = ""
        self._space = self._look_at_disk(self.data)
        self._judge(deleted_bytes, self._space.free_bytes - before)
        self._writer.retry()
        return True

    def _look_at_room(self) -> bool:
        """See what is free; True if it may be used up before the keeper's next look."""
        before, before_ns = self._space.free_bytes, self._looked_ns
        self._space, self._looked_ns = self._look_at_disk(self.data), self._now_ns
        elapsed_ns = max(self._looked_ns - before_ns, 1)
        taken_bytes = max(before - self._space.free_bytes, 0) * LOOK_AHEAD_NS // elapsed_ns
        return self._space.free_bytes - self.plan.reserve_bytes < taken_bytes

    def _delete_oldest(self, wanted_bytes: int) -> int:
        """The oldest first, across streams; how many bytes that were."""
        now_ms = self.watch.now_ms
        waiting: list[tuple[int, Path]] = []
        for kept in self._kept.values():
            if self._settings(kept.stream).when_full == "delete-oldest":
                self._guarded(kept, lambda kept: _enter(waiting, kept, now_ms))
        deleted: dict[Path, tuple[int, int]] = {}
        total_bytes = count = 0
        while waiting and total_bytes < wanted_bytes and count < ROUND_SEGMENTS_MAX:
            _, directory = heapq.heappop(waiting)
            kept = self._kept[directory]
            before = kept.deleted_bytes
            self._guarded(kept, lambda kept: bool(kept.delete_first()))
            freed_bytes = kept.deleted_bytes - before
            count += 1
            total_bytes += freed_bytes
            if freed_bytes or kept.trouble_ns is None:
                segments, so_far = deleted.get(directory, (0, 0))
                deleted[directory] = (segments + 1, so_far + freed_bytes)
                self._guarded(kept, lambda kept: _enter(waiting, kept, now_ms))
        for directory, (segments, freed_bytes) in deleted.items():
            self._say_deleted(self._kept[directory], segments, freed_bytes, "disk")
        return total_bytes

    def _roll_largest(self) -> bool:
        """Nothing is sealed: have the largest active segment sealed, if it is worth it; the next round deletes it."""
        able = [
            kept
            for kept in self._kept.values()
            if kept.index is not None
            and not kept.failed
            and kept.position >= ROLL_BYTES_MIN
            and self._settings(kept.stream).when_full == "delete-oldest"
        ]
        if not able:
            self._say_nothing_left()
            return False
        largest = max(able, key=lambda kept: kept.position)
        if largest.rolled_base != largest.base:
            self._roll(largest)
        return True

    def _say_nothing_left(self) -> None:
        if not self._nothing_left and self._space.free_bytes < self.plan.reserve_bytes:
            self._nothing_left = (
                f"The disk of {self.data} has only {format_size(self._space.free_bytes)} free, less than the reserve "
                f"of {format_size(self.plan.reserve_bytes)}, and no segment is left that may be deleted. Make room: "
                'other files, or streams with when_full = "refuse", fill it.'
            )

    # -- deleted, but held ---------------------------------------------------------------------------------------------

    def _judge(self, deleted_bytes: int, freed_bytes: int) -> None:
        """Deleting must free something; if not, somebody holds what was deleted, and more would be for nothing."""
        if freed_bytes >= deleted_bytes // 2 or deleted_bytes < MIB:
            self._useless_rounds = self._useless_bytes = 0
            return
        self._useless_rounds += 1
        self._useless_ns = self._now_ns
        self._useless_bytes += deleted_bytes
        held = Held(0, ())
        if self._holders_are_due():
            held = self._find_holders(self.data)
        if held.bytes < deleted_bytes // 2:
            if self._useless_rounds < USELESS_ROUNDS_MAX:
                return
            held = Held(self._useless_bytes, ())
        self._stop = _Stop(held, self._space.free_bytes, self._now_ns)

    def _holders_are_due(self) -> bool:
        now_ns = self._now_ns
        if self._asked_holders_ns is not None and now_ns - self._asked_holders_ns < HOLDERS_INTERVAL_NS:
            return False
        self._asked_holders_ns = now_ns
        return True

    def _must_wait(self) -> bool:
        """Deleting freed nothing when it was last tried: is it to be tried again?"""
        if self._stop is None:
            if self._useless_rounds < USELESS_ROUNDS_FREE or self._useless_ns is None:
                return False
            return self._now_ns - self._useless_ns < HOLDERS_INTERVAL_NS
        if self._stop.held.holders:
            if not self._holders_are_due() or self._find_holders(self.data).bytes > self._stop.held.bytes // 2:
                return True
        elif (
            self._space.free_bytes < self._stop.free_bytes + MIB
            and self._now_ns - self._stop.since_ns < USELESS_RETRY_NS
        ):
            return True
        self._resume("what was deleted is no longer held")
        return False

    def _resume(self, reason: str) -> None:
        if self._stop is not None:
            logger.info("retention goes on", extra={"fields": {"reason": reason}})
        self._stop = None
        self._useless_rounds = self._useless_bytes = 0

    # -- telling -------------------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """What is wrong with the disk as a whole, in a sentence that stays the same as long as it is; or nothing."""
        return str(self._stop) if self._stop is not None else self._nothing_left

    def statistics(self) -> dict[str, Any]:
        """The disk, what was deleted, and what keeps retention from deleting."""
        stop = self._stop
        return {
            "total_bytes": self._space.total_bytes,
            "free_bytes": self._space.free_bytes,
            "reserve_bytes": self.plan.reserve_bytes,
            "headroom_bytes": self.plan.headroom_bytes,
            "deleted_segments": sum(kept.deleted_segments for kept in self._kept.values()),
            "deleted_bytes": sum(kept.deleted_bytes for kept in self._kept.values()),
            "age_retention_waits": self._doubt,
            "clock_jumps": self.watch.jumps,
            "held_bytes": stop.held.bytes if stop else 0,
            "holders": [holder._asdict() for holder in stop.held.holders] if stop else [],
        }


def _enter(waiting: list[tuple[int, Path]], kept: Kept, now_ms: int) -> bool:
    """Into the queue of what may be deleted, by age."""
    if len(kept.table):
        heapq.heappush(waiting, (kept.oldest_ms(now_ms), kept.directory))
    return False
