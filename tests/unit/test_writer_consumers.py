"""What the writer does for those who read at once, and for producers that want to know their offsets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_native.ring import ACKED, MARKS_MAX, NULL_KEY, NULL_VALUE, PENDING, WANTS_ACK
from gateway_native.writer import ManualClock, Writer

from tests.support.recording import Recording
from tests.support.stepped import SteppedRecording


@pytest.fixture
def stepped(tmp_path: Path) -> Iterator[SteppedRecording]:
    """A writer that moves when the test says so."""
    made = SteppedRecording(tmp_path / "data")
    yield made
    made.close()


def _durable_after_ms(writer: Writer, clock: ManualClock, partition: int) -> int:
    """Step until the partition's records are durable; how much time that took."""
    before = writer.partition_state(partition)["durable_offset"]
    for waited_ms in range(200):
        for _ in range(4):
            writer.step_writer()
            writer.step_flusher()
        if writer.partition_state(partition)["durable_offset"] > before:
            return waited_ms
        clock.monotonic_ns += 1_000_000
        clock.realtime_ns += 1_000_000
    raise AssertionError("not durable within 200 ms")


def test_who_waits_for_a_stream_gets_its_records_without_leisure(stepped: SteppedRecording) -> None:
    """Records that no sender waits for are committed up to 100 ms later, and at once while somebody follows."""
    partition, other = stepped.partition("followed"), stepped.partition("other")
    ring = stepped.ring("ring")
    took: list[int] = []
    for followed in (None, partition, other):
        for index in (partition, other):
            stepped.writer.follow(index, index == followed)
        stepped.flush()
        ring.append(other, b"", b"spacing is counted from this commit", b"", 1, WANTS_ACK)
        _durable_after_ms(stepped.writer, stepped.clock, other)
        ring.append(partition, b"", b"value", b"", 1)
        took.append(_durable_after_ms(stepped.writer, stepped.clock, partition))
    assert took[0] == took[2] > 90
    assert took[1] <= 1


def test_a_mark_tells_the_offset(recording: Recording) -> None:
    """Of the records that have one, once they are acknowledged, whatever else is written between them."""
    partition = recording.partition("a")
    ring, between = recording.ring("marked"), recording.ring("between")
    sequences = []
    for number in range(3 * MARKS_MAX):
        if number % 3 == 0:
            between.append(partition, b"", b"between", b"", 1)
        sequences.append(ring.append(partition, b"", b"%d" % number, b"", 1, WANTS_ACK, number + 1))
        if number % 500 == 499:
            recording.flush()
            _compare(recording, ring, partition, sequences, number)
    assert ring.verdict(partition, sequences[-1]) in (ACKED, PENDING)


def _compare(recording: Recording, ring, partition: int, sequences: list[int], number: int) -> None:
    values = {row[3]: row[0] for row in recording.records("a")}
    for one in range(number - 499, number + 1):
        assert ring.verdict(partition, sequences[one]) == ACKED
        assert ring.offset_of(one + 1) == values[b"%d" % one]


def test_null_is_not_empty(recording: Recording) -> None:
    """A record without key or value is told from one whose key or value is empty."""
    partition, ring = recording.partition("a"), recording.ring("ring")
    for flags in (0, NULL_KEY, NULL_VALUE, NULL_KEY | NULL_VALUE):
        ring.append(partition, b"", b"", b"", 1, flags)
    found = [(row[2], row[3]) for row in recording.records("a")]
    assert found == [(b"", b""), (None, b""), (b"", None), (None, None)]
