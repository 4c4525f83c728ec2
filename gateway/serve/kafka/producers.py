"""Which sequence number each idempotent producer has reached in a stream, so that nothing is recorded twice. No I/O.

A record of such a producer carries ``gateway.producer = <id>:<epoch>:<sequence>`` as a header, so that what is known
here comes back from the log itself, as far as it is durable, record by record: after a crash in the middle of a batch,
too. Source: Apache Kafka, ProducerStateManager and ProducerAppendInfo. Sequence numbers go from 0 to 2^31 - 1, then
begin anew.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kio.schema.errors import ErrorCode

HEADER = "gateway.producer"
# Those that have not written for the longest are forgotten beyond so many, in each stream.
PRODUCERS_MAX = 10_000
# A client has at most so many batches on their way.
BATCHES_REMEMBERED = 5
SEQUENCES = 2**31

_VALUE = re.compile(rb"([0-9]{1,19}):([0-9]{1,5}):([0-9]{1,10})")


class Position(NamedTuple):
    """What stands in a record's header."""

    producer_id: int
    epoch: int
    sequence: int

    def plus(self, count: int) -> Position:
        """So many records further."""
        return self._replace(sequence=(self.sequence + count) % SEQUENCES)

    def header(self) -> tuple[str, bytes]:
        return HEADER, b"%d:%d:%d" % self


def parse(value: bytes) -> Position | None:
    """A header's value; None if it is not one of ours."""
    found = _VALUE.fullmatch(value)
    return Position(*map(int, found.groups())) if found else None


class Outcome(NamedTuple):
    """What became of a batch. `offset` -1: not known, or its records do not follow each other."""

    error: int
    offset: int = -1


class Sent(NamedTuple):
    """A batch that is on its way or was just recorded."""

    first: int
    last: int
    outcome: asyncio.Future[Outcome]


@dataclass(slots=True)
class Producer:
    """One producer in one stream. `run`: since this (sequence, offset) both count up together."""

    epoch: int
    last: int
    offset: int
    """Of the record with the sequence `last`; -1 while that is on its way."""
    run: tuple[int, int]
    sent: deque[Sent] = field(default_factory=lambda: deque(maxlen=BATCHES_REMEMBERED))

    def offset_of(self, sequence: int) -> int:
        """Where it is in the log, as far as that is known."""
        behind = (sequence - self.run[0]) % SEQUENCES
        return self.run[1] + behind if self.run[1] >= 0 and behind <= (self.last - self.run[0]) % SEQUENCES else -1


class Verdict(NamedTuple):
    """What to do with a batch: refuse it, answer as before, or record all but the first `skip` records."""

    error: int = 0
    skip: int = 0
    head: int = -1
    """With `skip`: the offset of the batch's first record, which is in the log already."""
    known: asyncio.Future[Outcome] | Outcome | None = None


class StreamProducers:
    """All producers of one stream."""

    def __init__(self) -> None:
        self._producers: OrderedDict[int, Producer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._producers)

    def restored(self, position: Position, offset: int) -> None:
        """A record in the log says so."""
        known = self._producers.pop(position.producer_id, None)
        run = (position.sequence, offset)
        follows = known is not None and (known.epoch, known.offset + 1) == (position.epoch, offset)
        if known is not None and follows and (known.last + 1) % SEQUENCES == position.sequence:
            run = known.run
        self._put(position.producer_id, Producer(position.epoch, position.sequence, offset, run))

    def state(self) -> list[list[int]]:
        """Of each, as far as it is recorded: id, epoch, sequence, offset, and where its run begins."""
        return [[key, one.epoch, one.last, one.offset, *one.run] for key, one in self._producers.items()]

    @classmethod
    def load(cls, state: Iterable[Sequence[int]]) -> StreamProducers:
        """The same again. Raises ValueError or TypeError for what is no such state."""
        made = cls()
        for producer_id, epoch, last, offset, *run in state:
            first, at = run
            made._put(int(producer_id), Producer(int(epoch), int(last), int(offset), (int(first), int(at))))
        return made

    def check(self, position: Position, count: int) -> Verdict:
        """position: of the batch's first record."""
        known = self._producers.get(position.producer_id)
        if known is None:
            return Verdict()  # a new one, or one that was forgotten: what it says is believed
        if position.epoch < known.epoch:
            return Verdict(ErrorCode.invalid_producer_epoch)
        if position.epoch > known.epoch:
            return Verdict(0 if position.sequence == 0 else ErrorCode.out_of_order_sequence_number)
        behind = (known.last + 1 - position.sequence) % SEQUENCES
        if behind == 0:
            return Verdict()
        if behind > SEQUENCES // 2:
            return Verdict(ErrorCode.out_of_order_sequence_number)
        return self._again(known, position, count, behind)

    @staticmethod
    def _again(known: Producer, position: Position, count: int, behind: int) -> Verdict:
        """So many of its records are recorded, or on their way."""
        last = (position.sequence + count - 1) % SEQUENCES
        for sent in known.sent:
            if (sent.first, sent.last) == (position.sequence, last):
                return Verdict(known=sent.outcome)
        if behind >= count:
            return Verdict(known=Outcome(0, known.offset_of(position.sequence)))
        # A crash came in the middle of the batch.
        return Verdict(skip=behind, head=known.offset_of(position.sequence))

    def sent(self, position: Position, count: int, outcome: asyncio.Future[Outcome]) -> None:
        """A batch is on its way."""
        last = (position.sequence + count - 1) % SEQUENCES
        known = self._producers.pop(position.producer_id, None)
        if known is None or known.epoch != position.epoch:
            known = Producer(position.epoch, last, -1, (position.sequence, -1))
        known.run = (position.sequence, -1)
        known.sent.append(Sent(position.sequence, last, outcome))
        known.last, known.offset = last, -1
        self._put(position.producer_id, known)

    def failed(self, position: Position) -> None:
        """A batch was not recorded, so nothing behind it is either: it may come again."""
        known = self._producers.get(position.producer_id)
        if known is None or known.epoch != position.epoch:
            return
        if (known.last + 1 - position.sequence) % SEQUENCES <= SEQUENCES // 2:
            known.last = (position.sequence - 1) % SEQUENCES
        kept = [sent for sent in known.sent if sent.first != position.sequence]
        known.sent = deque(kept, BATCHES_REMEMBERED)

    def _put(self, producer_id: int, producer: Producer) -> None:
        self._producers[producer_id] = producer
        while len(self._producers) > PRODUCERS_MAX:
            self._producers.popitem(last=False)
