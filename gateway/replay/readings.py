"""Readings as they were at the moments of other records, above all of frames: an as-of join.

Both sides are in time order, and are walked once, together. In memory: the latest record of each key, and those within
`around` of the current moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gateway.replay.records import Record

# So many keys are remembered; a filter that matches more is refused, instead of taking whatever memory they need.
KEYS_MAX = 100_000


class Timed(Protocol):
    """Anything with the gateway's receive time: a frame, a record."""

    @property
    def timestamp_ms(self) -> int: ...


T = TypeVar("T", bound=Timed)


@dataclass(frozen=True, slots=True)
class WithReadings(Generic[T]):
    """A frame (or record) and what the sensors said."""

    item: T
    latest: dict[bytes, Record]
    """For each key the newest record at or before the item's time."""
    around: tuple[Record, ...]
    """Every record within the asked distance of the item's time, before and after, in time order."""


def with_readings(
    items: Iterable[T], readings: Iterable[Record], *, within_ms: int | None = None, around_ms: int = 0
) -> Iterator[WithReadings[T]]:
    """Each item with the readings at its time.

    within_ms: readings older than that are not taken for the latest; None: any age. around_ms: how far from an item's
    time the readings in `around` may be; 0: only those of the same ms. Both sides in time order; items that go back in
    time (a clock that was set) get the readings known by then. ValueError for more than 100,000 keys.
    """
    source = iter(readings)
    upcoming = next(source, None)
    latest: dict[bytes, Record] = {}
    ahead: deque[Record] = deque()  # later than the item, near enough for `around`
    near: deque[Record] = deque()
    for item in items:
        now = item.timestamp_ms
        while upcoming is not None and upcoming.timestamp_ms <= now + around_ms:
            ahead.append(upcoming)
            upcoming = next(source, None)
        while ahead and ahead[0].timestamp_ms <= now:
            _take(latest, ahead[0])
            near.append(ahead.popleft())
        while near and near[0].timestamp_ms < now - around_ms:
            near.popleft()
        found = {
            key: record for key, record in latest.items() if within_ms is None or record.timestamp_ms >= now - within_ms
        }
        yield WithReadings(
            item, found, (*near, *(record for record in ahead if record.timestamp_ms <= now + around_ms))
        )


def _take(latest: dict[bytes, Record], record: Record) -> None:
    if record.key is None:
        return  # the gateway's own
    latest[record.key] = record
    if len(latest) > KEYS_MAX:
        raise ValueError(f"the readings have more than {KEYS_MAX:,} keys; choose some by `keys`")
