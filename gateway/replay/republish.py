"""Publishing recorded messages again, at the pace at which they came, faster, or as fast as the broker takes them.

A pace is kept against the first record, so that being late does not add up: after a stop of the broker what has become
due follows at once. Nothing is left out for being late; how late it was at most is told.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.clock import NS_PER_MS, NS_PER_S, format_duration, format_size, format_time
from gateway.log.message_headers import MessageHeaders, parse_message_headers

if TYPE_CHECKING:
    from gateway.replay.records import Record

# User properties of what is published again: when the gateway had received it (ISO 8601, UTC), and its offset.
TIME_PROPERTY = "original-time"
OFFSET_PROPERTY = "original-offset"

# Sleeping is done in steps, so that whoever wants it to end is heard.
STEP_S = 0.2

TOPIC_BYTES_MAX = 65_535
_NOT_IN_TOPICS = "+#\0"


class Message(NamedTuple):
    """What is to be published."""

    topic: str
    payload: bytes
    headers: MessageHeaders


class Target(Protocol):
    """Where messages go. `publish` waits while too much is under way; both raise GatewayError."""

    def publish(self, message: Message) -> None: ...

    def finish(self) -> tuple[int, int]:
        """Wait until everything has arrived; how many messages were refused, and how many lost."""


class Pace:
    """When each record is due. speed: 1 as it was, 10 ten times as fast; inf: at once."""

    def __init__(
        self,
        speed: float,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not speed > 0:
            raise ValueError(f"the speed {speed} is not above 0")
        self._speed = speed
        self._now = now
        self._sleep = sleep
        self._begun = 0.0
        self._first_ms: int | None = None
        self.latest_s = 0.0
        """By how much the latest record came later than it was due."""

    def wait(self, timestamp_ms: int) -> None:
        """Until the record of that time is due. Times that go back wait for nothing."""
        if math.isinf(self._speed):
            return
        if self._first_ms is None:
            self._first_ms, self._begun = timestamp_ms, self._now()
            return
        due = self._begun + (timestamp_ms - self._first_ms) / 1000 / self._speed
        while (left := due - self._now()) > 0:
            self._sleep(min(left, STEP_S))
        self.latest_s = max(self.latest_s, -left)


@dataclass(slots=True)
class RepublishReport:
    """What was published. skipped: records that are no messages (gaps, clock steps, keys that are no topics)."""

    messages: int = 0
    bytes: int = 0
    skipped: int = 0
    refused: int = 0
    lost: int = 0
    seconds: float = 0.0
    latest_seconds: float = 0.0

    def __str__(self) -> str:
        late = f", up to {format_duration(self.latest_seconds * NS_PER_S)} late" if self.latest_seconds > 1 else ""
        refused = f"; the broker refused {self.refused:,}" if self.refused else ""
        lost = f"; {self.lost:,} were lost with a connection" if self.lost else ""
        skipped = f"; {self.skipped:,} records are no messages" if self.skipped else ""
        return (
            f"{self.messages:,} messages, {format_size(self.bytes)}, in "
            f"{format_duration(self.seconds * NS_PER_S)}{late}{refused}{lost}{skipped}"
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """What is not as it was recorded. qos: None keeps each message's own."""

    prefix: str = ""
    """Before each topic, as "replay/"."""
    qos: int | None = None
    retain: bool = False
    """Keep retain flags: what is published last then stays at the broker."""

    def __post_init__(self) -> None:
        """ValueError for a prefix that no topic can begin with."""
        if any(character in self.prefix for character in _NOT_IN_TOPICS):
            raise ValueError(f"the prefix {self.prefix!r} cannot begin a topic: '+', '#' and NUL stand in none")


def republish(
    records: Iterable[Record],
    target: Target,
    pace: Pace,
    changes: Changes,
    report: RepublishReport,
    progress: Callable[[Record], None] | None = None,
) -> None:
    """Publish the records in their order; `report` counts as it goes, so it is right also when this is interrupted."""
    begun = time.monotonic()
    try:
        for record in records:
            message = to_message(record, changes)
            if message is None:
                report.skipped += 1
                continue
            pace.wait(record.timestamp_ms)
            target.publish(message)
            report.messages += 1
            report.bytes += len(message.payload)
            if progress is not None:
                progress(record)
        report.refused, report.lost = target.finish()
    finally:
        report.seconds = time.monotonic() - begun
        report.latest_seconds = pace.latest_s


def to_message(record: Record, changes: Changes) -> Message | None:
    """The message that a record was, with the original time and offset as user properties; None if it was none."""
    topic = _topic(record.key, changes.prefix)
    if topic is None or record.value is None:
        return None
    headers = parse_message_headers(record.headers)
    original = (
        (TIME_PROPERTY, format_time(record.timestamp_ms * NS_PER_MS, UTC)),
        (OFFSET_PROPERTY, str(record.offset)),
    )
    return Message(
        topic,
        record.value,
        headers._replace(
            qos=headers.qos if changes.qos is None else changes.qos,
            retain=headers.retain and changes.retain,
            user_properties=(*_without_original(headers.user_properties), *original),
        ),
    )


def _without_original(properties: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """What was published again once, recorded, and is now again: the last recording counts."""
    return tuple(each for each in properties if each[0] not in {TIME_PROPERTY, OFFSET_PROPERTY})


def _topic(key: bytes | None, prefix: str) -> str | None:
    """MQTT 5.0, section 4.7: not empty, UTF-8, without wildcards and NUL."""
    if not key:
        return None
    try:
        topic = prefix + key.decode()
    except UnicodeDecodeError:
        return None
    wrong = any(character in topic for character in _NOT_IN_TOPICS) or len(topic.encode()) > TOPIC_BYTES_MAX
    return None if wrong else topic
