"""Losses: counted where they happen, written into their stream as gap records, and kept until they are.

sources, keeper ── add ──► pending, merged by (stream, source, reason) ── flush, once a second ──► ring ──► stream
                               ▲                                                                     │
                               └────────────────── refused: the disk has no room even for it ────────┘
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway_native import ring as native_ring
from gateway_native.ring import Ring

from gateway.clock import NS_PER_MS, NS_PER_S, realtime_ns
from gateway.log.gap import Gap, Reason, encode_gap

# Streams, sources and reasons are bounded by the configuration; whatever adds to them, no more than this is told apart.
KEYS_MAX = 10_000
EVERYTHING_ELSE = "*"


class LossKey(NamedTuple):
    """What losses are counted by."""

    stream: str
    source: str
    reason: Reason


@dataclass(slots=True)
class _Amount:
    """So many records, so many bytes, between two times (ns)."""

    count: int = 0
    bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add(self, other: _Amount) -> None:
        if not self:
            self.first_ns, self.last_ns = other.first_ns, other.last_ns
        elif other:
            self.first_ns, self.last_ns = min(self.first_ns, other.first_ns), max(self.last_ns, other.last_ns)
        self.count += other.count
        self.bytes += other.bytes

    def __bool__(self) -> bool:
        return self.count > 0 or self.last_ns > 0


@dataclass(slots=True)
class _Loss:
    """One key's: all of it = written + unwritable + on its way + pending."""

    total: _Amount
    pending: _Amount
    written: int = 0
    unwritable: int = 0
    gaps: int = 0
    on_its_way: _Amount | None = None
    partition: int = 0
    sequence: int = 0


class Gaps:
    """The engine's account of losses. Any thread may `add`; one at a time may `flush` (the keeper).

    Durable when: a loss is counted `written` once its gap record is on the disk. A crash before that forgets it.
    """

    def __init__(
        self, ring: Ring, partitions: Callable[[], Mapping[str, int]], *, now_ns: Callable[[], int] = realtime_ns
    ) -> None:
        """ring: for gap records only. partitions: the indexes of the streams that are open."""
        self._ring = ring
        self._partitions = partitions
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._losses: dict[LossKey, _Loss] = {}

    def add(
        self,
        stream: str,
        source: str,
        reason: Reason,
        *,
        count: int,
        bytes: int,  # noqa: A002  # as the gap record calls it
        first_ns: int | None = None,
        last_ns: int | None = None,
    ) -> None:
        """Records were lost. Times (ns) are receive times; None: not known, so that of finding out is taken."""
        now_ns = self._now_ns()
        first_ns = now_ns if first_ns is None else first_ns
        amount = _Amount(count, bytes, first_ns, first_ns if last_ns is None else last_ns)
        with self._lock:
            loss = self._loss(LossKey(stream, source, reason))
            loss.total.add(amount)
            loss.pending.add(amount)

    def add_unwritable(self, stream: str, source: str, reason: Reason, *, count: int) -> None:
        """The same where nothing can be written any more, because the stream has failed: it is only counted."""
        now_ns = self._now_ns()
        with self._lock:
            loss = self._loss(LossKey(stream, source, reason))
            loss.total.add(_Amount(count, 0, now_ns, now_ns))
            loss.unwritable += count

    def _loss(self, key: LossKey) -> _Loss:
        found = self._losses.get(key)
        if found is None:
            if len(self._losses) >= KEYS_MAX and key.source != EVERYTHING_ELSE:
                return self._loss(key._replace(source=EVERYTHING_ELSE))
            found = self._losses[key] = _Loss(_Amount(), _Amount())
        return found

    # -- writing -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Settle what was put into the ring before, then put in what is pending: one record for each key.

        The caller sees to it that this happens at most once a second.
        """
        with self._lock:
            self._settle()
            partitions = self._partitions()
            for key, loss in self._losses.items():
                index = partitions.get(key.stream)
                if index is not None and loss.pending and loss.on_its_way is None:
                    self._put(key, loss, index)

    def settle(self) -> None:
        """Only the first half of `flush`."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        """What became of the records on their way."""
        refusals = self._ring.refusals_pending  # before the verdicts: what is refused later is not confirmed unseen
        for loss in self._losses.values():
            if loss.on_its_way is None:
                continue
            match self._ring.verdict(loss.partition, loss.sequence):
                case native_ring.ACKED:
                    loss.written += loss.on_its_way.count
                    loss.gaps += 1
                case native_ring.FAILED:
                    loss.unwritable += loss.on_its_way.count
                case native_ring.REFUSED:
                    loss.pending.add(loss.on_its_way)
                case _:
                    continue
            loss.on_its_way = None
        if refusals:
            self._ring.confirm_refusals()

    def _put(self, key: LossKey, loss: _Loss, index: int) -> None:
        amount = loss.pending
        gap = Gap(
            key.reason,
            amount.count,
            amount.bytes,
            amount.first_ns // NS_PER_MS,
            amount.last_ns // NS_PER_MS,
            key.source,
        )
        sequence = self._ring.append(index, b"", b"", encode_gap(gap), self._now_ns(), native_ring.GAP)
        if sequence:  # 0: the ring is full; the next flush tries again
            loss.on_its_way, loss.partition, loss.sequence = amount, index, sequence
            loss.pending = _Amount()

    # -- telling -------------------------------------------------------------------------------------------------------

    @property
    def unwritten(self) -> int:
        """Losses of which no gap record is on the disk yet, though there may be one."""
        with self._lock:
            return sum(bool(loss.pending) + (loss.on_its_way is not None) for loss in self._losses.values())

    def statistics(self) -> list[dict[str, Any]]:
        """For each stream, source and reason: records and bytes lost, and how many of them gap records tell."""
        with self._lock:
            return [
                {
                    **key._asdict(),
                    "count": loss.total.count,
                    "bytes": loss.total.bytes,
                    "last_s": loss.total.last_ns / NS_PER_S,
                    "written": loss.written,
                    "unwritable": loss.unwritable,
                    "gap_records": loss.gaps,
                }
                for key, loss in self._losses.items()
            ]
