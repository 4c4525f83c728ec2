"""The ring between one producing thread and the writer."""

from __future__ import annotations

import select

import pytest
from gateway_native.ring import ACKED, CAPACITY_MAX, PENDING
from gateway_native.writer import Writer

from tests.support.native import RunningWriter, put, verdict_of, wait_until
from tests.support.segments import read_partition

SLOT_BYTES = 48


def readable(fd: int) -> bool:
    """Is the eventfd set?"""
    return bool(select.select([fd], [], [], 0)[0])


@pytest.fixture
def idle(tmp_path):
    """A writer whose threads do not run: what is put into its rings stays there."""
    writer = Writer("pwrite", partitions_max=4)
    writer.add_partition(str(tmp_path / "a-0"))
    writer.add_partition(str(tmp_path / "b-0"))
    return writer


@pytest.mark.parametrize("capacity", [0, 2048, 4097, 12288, CAPACITY_MAX * 2])
def test_capacity_that_is_no_power_of_two_in_bounds_is_refused(idle, capacity):
    """A ring's size must be a power of two from 4 KiB to 4 GiB."""
    with pytest.raises(ValueError, match="power of two"):
        idle.ring("bad", capacity)


def test_more_rings_than_the_writer_drains_are_refused(idle):
    """The number of producing threads is bounded."""
    for number in range(32):
        idle.ring(f"ring-{number}", 4096)
    with pytest.raises(ValueError, match="32 producing threads"):
        idle.ring("one-more", 4096)


def test_full_ring_takes_nothing_more_and_counts_it(idle):
    """A full ring answers 0, changes nothing, and counts the refusal."""
    ring = idle.ring("full", 4096)
    taken = 0
    while ring.append(0, b"key", b"v" * 100, b"", 0):
        taken += 1
    slot = (SLOT_BYTES + 103 + 7) // 8 * 8
    assert taken == 4096 // slot
    assert ring.counters == {"records": taken, "bytes": taken * 103, "full": 1, "restarts": 0}
    assert ring.used == taken * slot
    assert ring.append(0, b"key", b"v" * 100, b"", 0) == 0
    assert ring.counters["full"] == 2


def test_record_that_could_never_fit_is_refused_by_name(idle):
    """A record over half the ring could wait for ever, so it is an error, not a full ring."""
    ring = idle.ring("small", 4096)
    assert ring.largest_record == 2048 - SLOT_BYTES
    assert ring.append(0, b"", b"v" * ring.largest_record, b"", 0) == 1
    with pytest.raises(ValueError, match="exceeds"):
        ring.append(0, b"", b"v" * (ring.largest_record + 1), b"", 0)


def test_unknown_partition_is_refused(idle):
    """A partition that the writer does not know never reaches it, although its table has room for more."""
    ring = idle.ring("ring", 4096)
    for index in (2, 3, 4, 1 << 31):
        with pytest.raises(IndexError):
            ring.append(index, b"", b"", b"", 0)
    with pytest.raises(IndexError):
        ring.verdict(4, 1)


def test_sequences_count_per_ring_and_partition(idle):
    """Sequence numbers are 1, 2, 3 … for each pair of ring and partition, also after a refusal."""
    first, second = idle.ring("first", 4096), idle.ring("second", 4096)
    assert [first.append(0, b"", b"", b"", 0) for _ in range(3)] == [1, 2, 3]
    assert [first.append(1, b"", b"", b"", 0) for _ in range(2)] == [1, 2]
    assert [second.append(0, b"", b"", b"", 0) for _ in range(2)] == [1, 2]
    while sequence := first.append(0, b"", b"", b"", 0):
        last = sequence
    assert first.verdict(0, last) == PENDING


def test_room_that_comes_back_wakes_a_producer_that_waits(tmp_path):
    """event_fd becomes readable when a full ring has room again, without any interest in acknowledgements."""
    running = RunningWriter()
    partition = running.writer.add_partition(str(tmp_path / "a-0"))
    ring = running.ring(4096)
    while ring.append(partition, b"", b"v" * 100, b"", 0):
        pass
    assert not readable(ring.event_fd)
    with running:
        wait_until(lambda: readable(ring.event_fd), "the event")
        ring.clear_event()
        assert not readable(ring.event_fd)
        assert ring.append(partition, b"", b"v" * 100, b"", 0)


def test_acknowledgements_wake_only_those_who_asked(tmp_path):
    """event_fd tells of acknowledgements while there is interest in them, and not otherwise."""
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring()
        assert verdict_of(ring, partition, put(ring, partition, b"", b"one")) == ACKED
        assert running.writer.flush()
        assert not readable(ring.event_fd)
        ring.set_ack_interest(True)
        sequence = put(ring, partition, b"", b"two")
        wait_until(lambda: readable(ring.event_fd), "the event")
        ring.clear_event()
        assert verdict_of(ring, partition, sequence) == ACKED
        ring.set_ack_interest(False)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, 1990])
def test_records_of_every_size_pass_the_end_of_the_ring(tmp_path, size):
    """Slots never wrap: whatever their size, records that meet the end of the buffer come out whole and in order."""
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring(4096)
        for number in range(50):
            put(ring, partition, b"%d" % number, bytes([number]) * size)
    rows = read_partition(tmp_path / "a-0")
    assert [(row.key, row.value) for row in rows] == [(b"%d" % n, bytes([n]) * size) for n in range(50)]


def test_a_verdict_is_never_taken_back(tmp_path):
    """What was acknowledged stays so; what was not published yet waits."""
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring()
        for _ in range(20):
            last = put(ring, partition, b"", b"x")
        assert verdict_of(ring, partition, last) == ACKED
        assert all(ring.verdict(partition, sequence) == ACKED for sequence in range(1, last + 1))
        assert ring.verdict(partition, last + 1) == PENDING
