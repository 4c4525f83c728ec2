"""Produce and InitProducerId: records of Kafka clients go the way of every other source's, and keep its promises.

Acknowledged, whatever `acks` says (0 apart, which wants no answer), when they are on disk. A record's time is the
gateway's receive time; the producer's own is kept in the header `source_time` (ns). What comes compressed
is recorded as it is without.
Where the configuration does not name the stream in `[kafka] produce`, TOPIC_AUTHORIZATION_FAILED is the answer.
Source: Apache Kafka, ProduceRequest.json; DefaultRecordBatch.java for the fields of a batch's header.
"""

from __future__ import annotations

import asyncio
import functools
import re
import struct
import time
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from gateway_native import batch
from gateway_native import ring as native_ring
from kio.schema.errors import ErrorCode

from gateway.clock import NS_PER_MS
from gateway.kafka import wire
from gateway.log.compression import CodecMissing, TooLarge, expanded
from gateway.serve.kafka.catalog import PARTITION
from gateway.serve.kafka.producers import Outcome, Position, StreamProducers, Verdict
from gateway.serve.kafka.waiting import Disk

# Producer ids are given out in blocks, of which the journal keeps the end.
PRODUCER_IDS_BLOCK = 1_000
# What a slot of the ring costs beside its record, rounded up.
SLOT_BYTES = 64
# Bytes that a gateway's own headers may add to a record.
HEADERS_BYTES_MAX = 128
# Names that only the gateway gives, and what others' become: taking one "user." away gives them back.
_RESERVED = re.compile(r"(user\.)*gateway\.")
# Batches that wait for the disk; each has two marks in the ring.
BATCHES_WAITING_MAX = native_ring.MARKS_MAX // 4

_ATTRIBUTES = struct.Struct(">h")
_PRODUCER = struct.Struct(">qhi")
_ATTRIBUTES_AT, _PRODUCER_AT = 21, 43
_CODEC, _TRANSACTIONAL, _CONTROL = 0x07, 0x10, 0x20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Values = Mapping[str, Any]


class Waits(NamedTuple):
    """A batch that is in the ring: sequences from `first` to `last` of that partition."""

    partition: int
    first: int
    last: int
    marks: tuple[int, int]
    skipped: int
    """Records of the batch that were in the log already; where its first one is: `head`."""
    head: int
    done: asyncio.Future[Outcome]


class Taken(NamedTuple):
    """A sound batch."""

    rows: list[batch.Row]
    position: Position | None


class Refused(Exception):
    """A batch is not taken: an error of Kafka's, and a sentence for people."""

    def __init__(self, error: int, message: str) -> None:
        super().__init__(message)
        self.error = error


class Intake:
    """What is produced, on its way through the ring. On the endpoint's event loop."""

    def __init__(
        self,
        ring: native_ring.Ring,
        partitions: Mapping[str, int],
        disk: Disk,
        *,
        record_bytes_max: int,
        batch_bytes_max: int,
    ) -> None:
        """partitions: by stream, those that may be produced to. batch_bytes_max: of a compressed batch, expanded."""
        self._ring = ring
        self._partitions = partitions
        self._record_bytes_max = min(record_bytes_max, ring.largest_record)
        self._producers: Mapping[str, StreamProducers] = {name: StreamProducers() for name in partitions}
        self._waiting: list[Waits] = []
        self._turn = asyncio.Lock()  # a batch's records follow each other in the ring
        self._disk = disk
        self._batch_bytes_max = batch_bytes_max
        self._expanding = asyncio.Lock()  # what a compressed batch holds takes memory: one at a time
        self._moved = asyncio.Event()
        self._mark = 0
        self.paused = False
        """Whether nothing more is taken."""
        self.records = 0
        self.duplicates = 0

    def restore(self, producers: Mapping[str, StreamProducers]) -> None:
        """What the log says of idempotent producers, before anybody produces."""
        self._producers = producers

    @property
    def waiting(self) -> int:
        """Batches that are not on disk yet."""
        return len(self._waiting)

    async def begin(self, stream: str, partition: int, records: bytes | None) -> Awaitable[Outcome] | Refused:
        """Put a batch into the ring. The outcome comes when it is on disk.

        What has begun is done to its end when the caller is cancelled: half a batch would be worse.
        """
        return await asyncio.shield(asyncio.ensure_future(self._begin(stream, partition, records)))

    async def _begin(self, stream: str, partition: int, records: bytes | None) -> Awaitable[Outcome] | Refused:
        try:
            index = self._allowed(stream, partition)
            checked = _check(records)
            if not _is_compressed(checked):
                return await self._put_in_turn(stream, index, checked)
            async with self._expanding:
                plain = await self._disk.run(_expand, checked, self._batch_bytes_max)
                return await self._put_in_turn(stream, index, plain)
        except Refused as refused:
            return refused

    async def _put_in_turn(self, stream: str, index: int, data: bytes) -> Awaitable[Outcome]:
        taken = _take(data)
        self._check_sizes(taken)
        async with self._turn:
            return await self._put(stream, index, taken)

    def _allowed(self, stream: str, partition: int) -> int:
        index = self._partitions.get(stream)
        if self.paused:
            raise Refused(ErrorCode.not_leader_or_follower, "The gateway is stopping; try again.")
        if index is None:
            raise Refused(
                ErrorCode.topic_authorization_failed,
                f"The gateway does not let Kafka clients write to {stream!r}; name it in [kafka] produce.",
            )
        if partition != PARTITION:
            raise Refused(ErrorCode.unknown_topic_or_partition, "A stream has one partition, number 0.")
        return index

    def _check_sizes(self, taken: Taken) -> None:
        for _, _, key, value, headers in taken.rows:
            size = len(key or b"") + len(value or b"") + sum(len(name) * 4 + len(text) + 20 for name, text in headers)
            if size + HEADERS_BYTES_MAX > self._record_bytes_max:
                raise Refused(
                    ErrorCode.message_too_large,
                    f"A record has {size} bytes; at most {self._record_bytes_max - HEADERS_BYTES_MAX} are taken.",
                )

    async def _put(self, stream: str, index: int, taken: Taken) -> Awaitable[Outcome]:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        rows, position = taken
        verdict = Verdict()
        if position is not None:
            producers = self._producers[stream]
            verdict = producers.check(position, len(rows))
            if verdict.error:
                raise Refused(verdict.error, "The sequence number or the epoch does not follow what is recorded.")
            if verdict.known is not None:
                self.duplicates += 1
                return _settled(verdict.known)
            producers.sent(position, len(rows), done)
            done.add_done_callback(functools.partial(_forget, producers, position))
            rows = rows[verdict.skip :]
            position = position.plus(verdict.skip)
        await self._append(index, rows, position, verdict, done)
        return done

    async def _append(
        self,
        index: int,
        rows: Sequence[batch.Row],
        position: Position | None,
        verdict: Verdict,
        done: asyncio.Future[Outcome],
    ) -> None:
        while len(self._waiting) >= BATCHES_WAITING_MAX:
            await self._move()
        marks = (self._mark + 1, self._mark + 2)
        self._mark += 2
        now_ns = time.time_ns()
        first = last = 0
        for number, row in enumerate(rows):
            mark = marks[0] if number == 0 else marks[1] if number == len(rows) - 1 else 0
            headers = _headers(row, position, number)
            while not (last := self._append_row(index, row, headers, now_ns, mark)):
                await self._move()
            first = first or last
        self.records += len(rows)
        if len(rows) == 1:
            marks = (marks[0], marks[0])
        self._waiting.append(Waits(index, first, last, marks, verdict.skip, verdict.head, done))
        self.look()  # perhaps it is there already

    def _append_row(self, index: int, row: batch.Row, headers: bytes, now_ns: int, mark: int) -> int:
        _, _, key, value, _ = row
        flags = native_ring.WANTS_ACK
        flags |= native_ring.NULL_KEY if key is None else 0
        flags |= native_ring.NULL_VALUE if value is None else 0
        return self._ring.append(index, key or b"", value or b"", headers, now_ns, flags, mark)

    async def _move(self) -> None:
        """Until the ring reports something: room, or what is on disk."""
        self._moved.clear()
        await self._moved.wait()

    def look(self) -> None:
        """The ring reports: something is on disk or refused, or there is room again."""
        self._moved.set()
        refusals = self._ring.refusals_pending
        waiting: list[Waits] = []
        for one in self._waiting:
            outcome = self._outcome(one, refusals=refusals)
            if outcome is None:
                waiting.append(one)
            elif not one.done.done():
                one.done.set_result(outcome)
        self._waiting = waiting
        if refusals:
            self._ring.confirm_refusals()

    def _outcome(self, one: Waits, *, refusals: bool) -> Outcome | None:
        """None: nothing is known yet. Refused is a batch of which any record was."""
        verdict = self._ring.verdict(one.partition, one.last)
        if refusals and verdict != native_ring.FAILED:
            verdicts = (self._ring.verdict(one.partition, sequence) for sequence in range(one.first, one.last + 1))
            if any(found == native_ring.REFUSED for found in verdicts):
                verdict = native_ring.REFUSED
        if verdict == native_ring.PENDING:
            return None
        if verdict != native_ring.ACKED:
            return Outcome(ErrorCode.kafka_storage_error)
        first, last = map(self._ring.offset_of, one.marks)
        follow_each_other = last - first == one.last - one.first
        if one.skipped:
            return Outcome(0, one.head if follow_each_other and one.head == first - one.skipped else -1)
        return Outcome(0, first if follow_each_other else -1)


def _forget(producers: StreamProducers, position: Position, done: asyncio.Future[Outcome]) -> None:
    if done.cancelled() or done.result().error:
        producers.failed(position)


def _settled(known: asyncio.Future[Outcome] | Outcome) -> Awaitable[Outcome]:
    if not isinstance(known, Outcome):
        return asyncio.shield(known)
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    future.set_result(known)
    return future


def _check(records: bytes | None) -> bytes:
    """The batch as it would be here, if it is one, sound as far as the CRC says. Raises Refused."""
    if not records or len(records) < batch.HEADER_BYTES or records[16] != batch.MAGIC:
        raise Refused(ErrorCode.unsupported_for_message_format, "Only record batches of version 2 are taken.")
    (attributes,) = _ATTRIBUTES.unpack_from(records, _ATTRIBUTES_AT)
    if attributes & (_TRANSACTIONAL | _CONTROL):
        raise Refused(ErrorCode.invalid_txn_state, "There are no transactions here.")
    # The leader epoch is not the producer's to say, and not under the CRC; ours is 0.
    data = records[:12] + bytes(4) + records[16:]
    found, end, *_ = batch.scan(data, expected_offset=0)
    if len(found) != 1 or end != len(data):
        raise Refused(ErrorCode.corrupt_message, "There is not exactly one sound batch, with the base offset 0.")
    return data


def _is_compressed(data: bytes) -> bool:
    return bool(_ATTRIBUTES.unpack_from(data, _ATTRIBUTES_AT)[0] & _CODEC)


def _expand(data: bytes, bytes_max: int) -> bytes:
    """The same without compression; on a thread, as it takes its time. Raises Refused."""
    try:
        return expanded(data, bytes_max=bytes_max)
    except CodecMissing as error:
        raise Refused(ErrorCode.unsupported_compression_type, f"It is not recorded: {error}.") from None
    except TooLarge as error:
        raise Refused(ErrorCode.message_too_large, f"It is not recorded: {error}.") from None
    except batch.BatchError as error:
        raise Refused(ErrorCode.corrupt_message, f"It is not recorded: {error}.") from None


def _take(data: bytes) -> Taken:
    """The records of a sound batch without compression. Raises Refused."""
    found, *_ = batch.scan(data, expected_offset=0, check_records=True)
    if len(found) != 1:
        raise Refused(ErrorCode.corrupt_message, "A record of the batch is not sound, although its checksum is right.")
    producer_id, epoch, sequence = _PRODUCER.unpack_from(data, _PRODUCER_AT)
    position = Position(producer_id, epoch, sequence) if producer_id >= 0 else None
    if position is not None and (epoch < 0 or sequence < 0):
        raise Refused(ErrorCode.invalid_record, "An idempotent producer's batch has an epoch and a sequence number.")
    return Taken(batch.decode(data), position)


def _headers(row: batch.Row, position: Position | None, number: int) -> bytes:
    """The record's own; then its producer's time, unless it brings one, and its place among the producer's records.

    No client can forge what only the gateway says: headers of that kind get another name, as they do in MQTT.
    """
    _, timestamp, _, _, headers = row
    own = [(f"user.{name}" if _RESERVED.match(name) else name, value) for name, value in headers]
    if timestamp >= 0 and all(name != "source_time" for name, _ in headers):
        own.append(("source_time", b"%d" % (timestamp * NS_PER_MS)))
    if position is not None:
        own.append(position.plus(number).header())
    return batch.encode_headers(own)


# Stream, partition, and what becomes of the batch.
Begun = list[tuple[str, int, Awaitable[Outcome] | Refused]]


class ProduceRequests:
    """The two requests."""

    def __init__(self, intake: Intake, new_producer_ids: Any, *, allowed: bool) -> None:
        """new_producer_ids: a coroutine function that gives the first of so many new ones, or None."""
        self._intake = intake
        self._new_producer_ids = new_producer_ids
        self._allowed = allowed
        self._ids = range(0)
        self._giving = asyncio.Lock()
        self._answering: set[asyncio.Future[Values]] = set()

    async def produce(self, header: wire.Header, request: Any) -> Awaitable[Values]:
        """All its batches are in the ring when this returns, in order; the fields of the response come later."""
        begun: Begun = []
        if request.transactional_id is not None:
            refused = Refused(ErrorCode.transactional_id_authorization_failed, "There are no transactions here.")
            begun = [(t.name, one.index, refused) for t in request.topic_data for one in t.partition_data]
            return self._answer(begun, 0.0)
        for topic in request.topic_data:
            for one in topic.partition_data:
                begun.append((topic.name, one.index, await self._intake.begin(topic.name, one.index, one.records)))
        patience_s = max(wire.milliseconds(request.timeout), 0) / 1_000
        return self._answer(begun, patience_s)

    def _answer(self, begun: Begun, patience_s: float) -> asyncio.Future[Values]:
        answering = asyncio.ensure_future(_response(begun, patience_s))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)
        return answering

    async def stop(self) -> None:
        """Nobody is answered any more."""
        answering = tuple(self._answering)
        for one in answering:
            one.cancel()
        if answering:
            await asyncio.wait(answering)

    async def init_producer_id(self, header: wire.Header, request: Any) -> Values:
        """An id that nobody ever got, with epoch 0; or the next epoch of one's own."""
        error, producer_id, epoch = ErrorCode.none, -1, -1
        if request.transactional_id is not None or not self._allowed:
            error = ErrorCode.cluster_authorization_failed
        elif getattr(request, "producer_id", -1) >= 0 and 0 <= request.producer_epoch < 2**15 - 2:
            producer_id, epoch = request.producer_id, request.producer_epoch + 1
        else:
            found = await self._next_id()
            error = ErrorCode.none if found is not None else ErrorCode.coordinator_not_available
            producer_id, epoch = (found, 0) if found is not None else (-1, -1)
        return {"error_code": error, "producer_id": producer_id, "producer_epoch": epoch}

    async def _next_id(self) -> int | None:
        async with self._giving:
            if not self._ids:
                first = await self._new_producer_ids(PRODUCER_IDS_BLOCK)
                if first is None:
                    return None
                self._ids = range(first, first + PRODUCER_IDS_BLOCK)
            found, self._ids = self._ids[0], self._ids[1:]
            return found


async def _response(begun: Begun, patience_s: float) -> Values:
    topics: dict[str, list[Values]] = {}
    deadline = time.monotonic() + patience_s
    for name, number, one in begun:
        if isinstance(one, Refused):
            outcome, message = Outcome(one.error), str(one)
        else:
            outcome, message = await _within(one, deadline), None
        taken_at = _EPOCH + timedelta(milliseconds=time.time_ns() // NS_PER_MS)
        topics.setdefault(name, []).append(
            {
                "index": number,
                "error_code": ErrorCode(outcome.error),
                "base_offset": outcome.offset,
                "log_append_time": taken_at if not outcome.error else None,
                "log_start_offset": -1,
                "record_errors": (),
                "error_message": message,
            }
        )
    return {"responses": [{"name": name, "partition_responses": answers} for name, answers in topics.items()]}


async def _within(outcome: Awaitable[Outcome], deadline: float) -> Outcome:
    """A batch that comes too late may be recorded all the same; an idempotent producer that sends it again is safe."""
    try:
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            return await asyncio.shield(asyncio.ensure_future(outcome))
    except TimeoutError:
        return Outcome(ErrorCode.request_timed_out)
