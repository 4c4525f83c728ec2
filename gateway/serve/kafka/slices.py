"""Where in the segments the records of a fetch lie: whole batches, sound ones, in one file.

The bytes on disk are what Kafka sends over the wire, so a fetch is a place in a file. Before it is handed out each
batch's CRC-32C is checked: a client that meets a bad one stops for ever at it, whereas what is left out here it takes
for records that were compacted away. What is damaged is reported once, and passed over. Consumers that read the same
after each other cost one check, not one each.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gateway_native import batch

from gateway.log.layout import segment_name
from gateway.log.partition import Limit, PartitionReader, Place
from gateway.log.segment import Walk

logger = logging.getLogger("gateway.kafka")

# Where consumers that read on will ask next is remembered for so many of them.
HINTS_MAX = 256
# What is looked at in one piece; consumers ask for as much, 1 MiB, by default.
BUFFER_BYTES = 2**20
# Runs of batches that were checked lately: of all topics together, and for so long. A disk that goes bad later is found
# by the next check, or by `gateway verify`.
CHECKED_MAX = 4_096
CHECKED_AGE_S = 600.0
# Damaged places that are remembered, so as to be reported once.
REPORTED_MAX = 1_024


_BUFFERS = threading.local()


class Slice(NamedTuple):
    """Bytes of an open file. Whoever has it closes the file."""

    file: BinaryIO
    position: int
    length: int
    next_offset: int
    """What comes behind it."""
    follows: bool
    """It begins where another one ended: somebody reads on."""


class _Run(NamedTuple):
    """Batches that follow each other in a file."""

    position: int
    end: int
    next_offset: int


class Checked:
    """Where runs end that were found sound, by segment, position and the most bytes they may have. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[tuple[Path, int, int], tuple[_Run, float]] = {}

    def find(self, segment: Path, position: int, bytes_max: int) -> _Run | None:
        """The run that was checked there, unless that is long ago."""
        with self._lock:
            run, until = self._runs.get((segment, position, bytes_max), (None, 0.0))
            return run if time.monotonic() < until else None

    def add(self, segment: Path, bytes_max: int, run: _Run) -> None:
        """It is sound, and no more fits into so many bytes, whatever is written behind it."""
        key = (segment, run.position, bytes_max)
        with self._lock:
            self._runs.pop(key, None)
            if len(self._runs) >= CHECKED_MAX:
                del self._runs[next(iter(self._runs))]
            self._runs[key] = run, time.monotonic() + CHECKED_AGE_S


class Slices:
    """Looks places up in one partition. Not for two threads at a time."""

    def __init__(self, directory: Path, checked: Checked | None = None) -> None:
        """checked: what is shared with other partitions."""
        self._directory = directory
        self._checked = checked if checked is not None else Checked()
        # By offset: base offset of its segment, position, and the offset behind the segment if that is sealed.
        self._hints: dict[int, tuple[int, int, int]] = {}
        self._reported: set[tuple[Path, int]] = set()

    def find(self, reader: PartitionReader, limit: Limit, offset: int, bytes_max: int) -> Slice | None:
        """Batches from the one with `offset` on: at least one, and no more than fit into `bytes_max`.

        None if everything from there on is damaged, or went with retention just now. Raises OSError.
        """
        found = self.go_on(limit, offset, bytes_max)
        if found is not None:
            return found
        for place in reader.places(offset, limit):
            try:
                file = place.segment.path.open("rb", buffering=0)
            except FileNotFoundError:
                continue
            try:
                run = _quick(file, place.position, place.end, place.base_offset, offset, bytes_max, place.offset_max)
                run = run if run is not None else self._run(place, offset, bytes_max)
            except BaseException:
                file.close()
                raise
            if run is not None:
                return self._slice(file, run, limit, place.segment.base_offset, place.offset_max)
            file.close()
        return None

    def go_on(self, limit: Limit, offset: int, bytes_max: int) -> Slice | None:
        """Where the last fetch ended, if this one goes on there: spares looking through segments and indexes."""
        base, position, offset_max = self._hints.get(offset, (-1, 0, 0))
        is_active = base == limit.segment_base
        if base < 0 or not (is_active or offset_max):
            return None
        path = self._directory / segment_name(base)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        run = self._checked.find(path, position, bytes_max)
        if run is None:
            end = limit.position if is_active else os.fstat(file.fileno()).st_size
            run = _quick(file, position, end, offset, offset, bytes_max, limit.offset if is_active else offset_max)
            if run is None:
                file.close()
                return None
            if end - position >= bytes_max:
                self._checked.add(path, bytes_max, run)
        return self._slice(file, run, limit, base, offset_max, follows=True)

    def _slice(
        self, file: BinaryIO, run: _Run, limit: Limit, base: int, offset_max: int, *, follows: bool = False
    ) -> Slice:
        """What was found. Whoever reads on will ask for what follows it."""
        self._hints.pop(run.next_offset, None)
        if len(self._hints) >= HINTS_MAX:
            del self._hints[next(iter(self._hints))]
        # Where a segment ends is known when it is sealed.
        self._hints[run.next_offset] = (base, run.end, 0 if base == limit.segment_base else offset_max)
        return Slice(file, run.position, run.end - run.position, run.next_offset, follows)

    def _run(self, place: Place, offset: int, bytes_max: int) -> _Run | None:
        """The wanted batches behind `place`, up to the first damage; damage before the first of them is passed over."""
        position, base_offset = place.position, place.base_offset
        while position < place.end:
            walk = Walk(place.segment, position, place.end, expected_offset=base_offset)
            run = _collect(walk, offset, bytes_max, place.offset_max)
            if run is not None:
                return run
            if walk.end.clean or walk.end.next_offset >= place.offset_max:
                return None
            self._report(walk, place)
            lowest = max(walk.end.next_offset, base_offset)
            found = place.segment.find_batch(walk.end.position + 1, place.end, lowest, place.offset_max)
            header = place.segment.header(found) if found is not None else None
            if found is None or header is None:
                return None
            position, base_offset = found, header.base_offset
        return None

    def _report(self, walk: Walk, place: Place) -> None:
        damage = walk.end.damage(place.segment.path)
        where = (damage.path, damage.position)
        if where in self._reported or len(self._reported) >= REPORTED_MAX:
            return
        self._reported.add(where)
        logger.error(
            "consumers are led past damage; `gateway verify` says more", extra={"fields": {"place": str(damage)}}
        )


def _quick(
    file: BinaryIO, position: int, end: int, base_offset: int, offset: int, bytes_max: int, offset_max: int
) -> _Run | None:
    """As a rule all is well, and what is wanted fits into a thread's buffer. None: it takes a longer look.

    position, base_offset: of a batch at or before the wanted one, in a segment that may be read up to `end`.
    """
    view = _buffer()[: max(min(bytes_max, end - position), 0)]
    try:
        count = os.preadv(file.fileno(), [view], position)
    except OSError:
        return None  # a bad sector, perhaps, which can be passed over
    found = batch.scan(view[:count], origin=position, expected_offset=base_offset)[0]
    return _take(None, found, offset, bytes_max, offset_max)[0]


def _collect(walk: Walk, offset: int, bytes_max: int, offset_max: int) -> _Run | None:
    run: _Run | None = None
    for batches in walk:
        run, is_over = _take(run, batches, offset, bytes_max, offset_max)
        if is_over:
            return run
    return run


def _take(
    run: _Run | None, batches: Iterable[batch.Batch], offset: int, bytes_max: int, offset_max: int
) -> tuple[_Run | None, bool]:
    """Those of the batches that are wanted go on with the run. Whether it is complete."""
    for position, length, base_offset, last_offset, *_ in batches:
        if last_offset < offset:
            continue
        if base_offset >= offset_max or (run is not None and position + length - run.position > bytes_max):
            return run, True
        run = _Run(position if run is None else run.position, position + length, last_offset + 1)
    return run, run is not None and run.end - run.position >= bytes_max


def _buffer() -> memoryview:
    """This thread's. A new one each time would cost more than reading into it."""
    found: memoryview | None = getattr(_BUFFERS, "view", None)
    if found is None:
        found = _BUFFERS.view = memoryview(bytearray(BUFFER_BYTES))
    return found
