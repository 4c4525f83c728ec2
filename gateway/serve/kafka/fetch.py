"""Fetch: records from an offset on, as soon as there are enough of them, sent from the files themselves.

The response is written by hand, in pieces: what lies between records is bytes, the records are places in files, which
the connection sends without having them in memory. Source: Apache Kafka, FetchRequest.json and FetchResponse.json.

Fetch sessions (KIP-227) are not kept: every response says session 0, with which clients send whole requests on.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any

from kio.schema.errors import ErrorCode

from gateway.kafka import wire
from gateway.serve.kafka.ahead import Ahead, Found, Wanted
from gateway.serve.kafka.catalog import PARTITION, Catalog
from gateway.serve.kafka.slices import Slice
from gateway.serve.kafka.waiting import Disk, Waiter, Waiting

# What one response holds at most, unless a single batch is larger. A slow client keeps so much of it in no memory.
RESPONSE_BYTES_MAX = 16 * 2**20
# The longest that a client may let us wait for records.
WAIT_MAX_S = 60.0
# Partitions in one request; more than a gateway has streams.
PARTITIONS_MAX = 100_000

_FIRST_FIELDS = struct.Struct(">i")
_PARTITION = struct.Struct(">ihqq")

Piece = bytes | Slice


class Fetcher:
    """Answers Fetch requests. `answer` runs on the event loop; the disk is read on its threads."""

    def __init__(self, catalog: Catalog, waiting: Waiting, disk: Disk) -> None:
        self._catalog = catalog
        self._waiting = waiting
        self._disk = disk
        self._ahead = Ahead(lambda wanted: self._find(wanted, wanted.bytes_max), disk)

    async def answer(self, header: wire.Header, request: Any) -> list[Piece]:
        """The pieces of the response. Their files are open: `close` them, whatever happens to the client."""
        error = _session_error(header, request)
        wanted = _wanted(request)
        if error:
            return _response(header, error, [], [])
        deadline = time.monotonic() + min(max(wire.milliseconds(request.max_wait), 0) / 1_000, WAIT_MAX_S)
        budget = min(max(request.max_bytes, 0), RESPONSE_BYTES_MAX)
        found = [Found()] * len(wanted)
        waiter: Waiter | None = None
        try:
            changed = await self._take_ahead(wanted, found, budget)
            while True:
                if changed:
                    await self._disk.run(self._look, wanted, found, changed, budget)
                if _is_enough(found, min(request.min_bytes, budget)) or time.monotonic() >= deadline:
                    self._look_ahead(wanted, found)
                    return _response(header, 0, wanted, found)
                waiter = _waiter(wanted, found, waiter)
                await self._waiting.wait(waiter, deadline)
                changed = [index for index, one in enumerate(wanted) if one.topic in waiter.grown]
        except BaseException:
            close(one.records for one in found if one.records is not None)
            raise

    def stop(self) -> None:
        """Nobody is answered any more."""
        self._ahead.stop()

    async def _take_ahead(self, wanted: Sequence[Wanted], found: list[Found], budget: int) -> list[int]:
        """Take what is there already, as far as it fits. Which partitions remain to be looked up."""
        remaining = list(range(len(wanted)))
        if not len(self._ahead):
            return remaining
        total = 0
        for index in tuple(remaining):
            there = await self._ahead.take(wanted[index])
            if there is None:
                continue
            if total and total + there.length > budget:
                there.close()
                continue
            found[index] = there
            total += there.length
            remaining.remove(index)
        return remaining

    def _look_ahead(self, wanted: Sequence[Wanted], found: Sequence[Found]) -> None:
        """Where a consumer goes on from one fetch to the next, look the following one up."""
        for one, there in zip(wanted, found, strict=True):
            if there.goes_on is not None and there.records is not None and there.records.follows:
                self._ahead.begin(one._replace(offset=there.goes_on))

    def _look(self, wanted: Sequence[Wanted], found: list[Found], changed: Iterable[int], budget: int) -> None:
        """Look those partitions up, on a thread that may read the disk. At least one record gets through."""
        total = sum(one.length for one in found)
        for index in changed:
            total -= found[index].length
            close([one] if (one := found[index].records) is not None else [])
            found[index] = Found()
            if total < budget or total == 0:
                found[index] = self._find(wanted[index], budget - total)
                total += found[index].length

    def _find(self, wanted: Wanted, left: int) -> Found:
        topic = self._catalog.topic(wanted.topic) if wanted.partition == PARTITION else None
        if topic is None:
            return Found(ErrorCode.unknown_topic_or_partition)
        try:
            start, end, records = topic.find(wanted.offset, min(max(wanted.bytes_max, 0), left))
        except OSError:
            return Found(ErrorCode.kafka_storage_error)
        if not start <= wanted.offset <= end:
            return Found(ErrorCode.offset_out_of_range, start, end)
        return Found(0, start, end, records)


def _waiter(wanted: Sequence[Wanted], found: Sequence[Found], before: Waiter | None) -> Waiter:
    """One that is woken by what is beyond all that was seen."""
    ends = {one.topic: there.high_watermark for one, there in zip(wanted, found, strict=True)}
    known = before.ends if before is not None else {}
    return Waiter({topic: max(end, known.get(topic, -1)) for topic, end in ends.items()})


def close(slices: Iterable[Slice]) -> None:
    """Close the files of slices that are not needed."""
    for one in slices:
        one.file.close()


def _session_error(header: wire.Header, request: Any) -> int:
    if header.version >= 7 and request.session_id:
        return ErrorCode.fetch_session_id_not_found
    return 0


def _wanted(request: Any) -> list[Wanted]:
    wanted = [
        Wanted(topic.topic, one.partition, one.fetch_offset, one.partition_max_bytes)
        for topic in request.topics
        for one in topic.partitions
    ]
    if len(wanted) > PARTITIONS_MAX:
        raise wire.ProtocolError(f"a fetch of {len(wanted)} partitions; at most {PARTITIONS_MAX} are answered")
    return wanted


def _is_enough(found: Sequence[Found], bytes_min: int) -> bool:
    return not found or any(one.error for one in found) or sum(one.length for one in found) >= bytes_min


# -- the response ------------------------------------------------------------------------------------------------------


def _response(header: wire.Header, error: int, wanted: Sequence[Wanted], found: Sequence[Found]) -> list[Piece]:
    layout = _Layout(header)
    pieces: list[Piece] = []
    text = bytearray(layout.begin(error))
    by_topic: dict[str, list[int]] = {}
    for index, one in enumerate(wanted):
        by_topic.setdefault(one.topic, []).append(index)
    text += layout.count(len(by_topic))
    for topic, indexes in by_topic.items():
        text += layout.string(topic) + layout.count(len(indexes))
        for index in indexes:
            text += layout.partition(wanted[index].partition, found[index])
            if (records := found[index].records) is not None:
                pieces += [bytes(text), records]
                text.clear()
            text += layout.tags
        text += layout.tags
    pieces.append(bytes(text + layout.tags))
    total = sum(piece.length if isinstance(piece, Slice) else len(piece) for piece in pieces)
    return [_FIRST_FIELDS.pack(total), *pieces]


class _Layout:
    """How one version writes its fields: FetchResponse.json."""

    def __init__(self, header: wire.Header) -> None:
        self._header = header
        self._version = header.version
        self._flexible = wire.is_flexible(header.api_key, header.version)
        self.tags = b"\0" if self._flexible else b""

    def begin(self, error: int) -> bytes:
        """Up to the array of topics: no throttling, error, no session."""
        head = wire.response_header(self._header) + bytes(4)
        return head + struct.pack(">hi", error, 0) if self._version >= 7 else head

    def count(self, number: int) -> bytes:
        """The length of an array."""
        return _unsigned_varint(number + 1) if self._flexible else struct.pack(">i", number)

    def string(self, text: str) -> bytes:
        data = text.encode()
        return _unsigned_varint(len(data) + 1) + data if self._flexible else struct.pack(">h", len(data)) + data

    def partition(self, number: int, found: Found) -> bytes:
        """One partition's fields up to its records, their length included. Without transactions all is stable."""
        text = _PARTITION.pack(number, found.error, found.high_watermark, found.high_watermark)
        if self._version >= 5:
            text += struct.pack(">q", found.log_start)
        text += self.count(0)  # aborted transactions
        if self._version >= 11:
            text += struct.pack(">i", -1)  # no replica is to be preferred
        return text + self.count(found.length)


def _unsigned_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
