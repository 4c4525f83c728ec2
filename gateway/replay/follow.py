"""Following a stream, or several, live: what becomes durable, as it does, from any offset or time on.

Nothing is pushed: a follower looks at the watermark, so it works beside the gateway in any process, and one that is
slow holds up nobody. It has at most one piece of the log (512 KiB, or one large record) in memory.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import tzinfo
from typing import TYPE_CHECKING, NamedTuple

from gateway_native import batch

from gateway.replay.records import GapReport, Record, make_record, without_retained

if TYPE_CHECKING:
    from gateway_native.batch import Row

    from gateway.log.partition import PartitionReader
    from gateway.replay.remote import RemoteReader


class Follower:
    """One stream being followed. Only one thread at a time may use it."""

    def __init__(
        self,
        reader: PartitionReader | RemoteReader,
        position: int,
        zone: tzinfo,
        report: GapReport,
        keys: batch.KeyFilter | None = None,
        *,
        retained: bool = True,
    ) -> None:
        """position: the first offset that is wanted."""
        self._reader = reader
        self._zone = zone
        self._report = report
        self._keys = keys
        self._retained = retained
        self.position = position
        """Everything below it has been handed out, or left out as not wanted."""

    def available(self) -> Iterator[list[Row]]:
        """What is durable now and was not handed out yet, piece by piece; nothing if nothing is."""
        limit = self._reader.limit()
        if limit.offset <= self.position:
            return
        selection = batch.Selection(offset_from=self.position, offset_to=limit.offset, keys=self._keys)
        for rows in self._reader.chunks(selection, limit, on_damage=self._report.passes_over):
            yield rows if self._retained else without_retained(rows)
            self.position = rows[-1][0] + 1  # asking for more means that these were taken
        self.position = limit.offset

    def records(self) -> Iterator[Record]:
        """The same as records."""
        return (make_record(row, self._zone) for rows in self.available() for row in rows)

    def run(self, poll_s: float, stop: threading.Event) -> Iterator[Record]:
        """Records until `stop` is set, looking for more every `poll_s` seconds when there is none."""
        while not stop.is_set():
            before = self.position
            yield from self.records()
            if self.position == before:
                stop.wait(poll_s)

    async def run_async(self, poll_s: float) -> AsyncIterator[Record]:
        """The same on an event loop, which goes on meanwhile: reading is done in threads, a piece at a time."""
        while True:
            before = self.position
            pieces = self.available()
            while (rows := await asyncio.to_thread(next, pieces, None)) is not None:
                for row in rows:
                    yield make_record(row, self._zone)
            if self.position == before:
                await asyncio.sleep(poll_s)


class Merged(NamedTuple):
    """A record, and the stream that it is of."""

    stream: str
    record: Record


def merge(streams: Sequence[tuple[str, Iterator[Record]]]) -> Iterator[Merged]:
    """The records of several streams in the order of their times; of equal times, in the order of the streams.

    Each stream's own order is kept: where its clock was set back, the records behind that come late.
    """
    return heapq.merge(
        *(_named(name, records) for name, records in streams), key=lambda merged: merged.record.timestamp_ms
    )


def _named(name: str, records: Iterator[Record]) -> Iterator[Merged]:
    return (Merged(name, record) for record in records)


def follow_merged(followers: Sequence[tuple[str, Follower]], poll_s: float, stop: threading.Event) -> Iterator[Merged]:
    """What becomes durable in several streams. What one look finds is in the order of times, one look after another."""
    while not stop.is_set():
        before = [follower.position for _, follower in followers]
        yield from merge([(name, follower.records()) for name, follower in followers])
        if before == [follower.position for _, follower in followers]:
            stop.wait(poll_s)
