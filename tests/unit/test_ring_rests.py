"""What a ring and a writer with little to do spare: memory, and being woken."""

from __future__ import annotations

import random
import time
from pathlib import Path

from gateway_native.ring import ACKED, WANTS_ACK, Ring

from tests.support.native import RunningWriter, put, verdict_of, wait_until
from tests.support.segments import read_partition

CAPACITY = 1 << 16
# Far longer than any test: no commit of records that nobody waits for comes in between.
LINGER_NS = 3_600_000_000_000


def taken(ring: Ring) -> bool:
    """Nothing waits in the ring."""
    return ring.used == 0


def test_an_empty_ring_begins_again_and_loses_nothing(tmp_path: Path) -> None:
    """Records of all sizes, with and without rests in between: read back as they were."""
    rng = random.Random(20)
    sent = []
    with RunningWriter() as running:
        running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring(CAPACITY)
        for number in range(2_000):
            sent.append(bytes([number % 256]) * rng.choice((1, 50, 3_000, rng.randrange(20_000))))
            put(ring, 0, b"%d" % number, sent[-1], flags=WANTS_ACK if rng.random() < 0.2 else 0)
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.001)
        assert running.writer.flush()
        assert ring.counters["restarts"] > 0
    records = read_partition(tmp_path / "a-0")
    assert [record.key for record in records] == [b"%d" % number for number in range(len(sent))]
    assert [record.value for record in records] == sent


def test_a_ring_that_is_seldom_full_uses_little_of_its_memory(tmp_path: Path) -> None:
    """Each record finds the ring empty and the writer at rest, but it would go round fifty times."""
    with RunningWriter() as running:
        running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring(CAPACITY)
        for _ in range(400):
            verdict_of(ring, 0, put(ring, 0, b"", bytes(8_000), flags=WANTS_ACK))
        assert ring.counters["restarts"] > 100


def test_what_nobody_waits_for_stays_in_the_ring_until_it_is_much(tmp_path: Path) -> None:
    """The writer naps over single records; a quarter of the ring wakes it, and so does one that somebody waits for."""
    with RunningWriter() as running:
        running.writer.add_partition(str(tmp_path / "a-0"), linger_ns=LINGER_NS)
        ring = running.ring(CAPACITY)
        put(ring, 0, b"", b"what there is to commit later")
        wait_until(lambda: taken(ring), "the first record wakes the writer")
        napped = woken = 0
        for _ in range(400):
            put(ring, 0, b"", bytes(100))
            napped = max(napped, ring.used)
            time.sleep(0.0005)
            woken += taken(ring)
        assert napped > 1_000
        assert 1 <= woken < 100
        put(ring, 0, b"", b"waited for", flags=WANTS_ACK)
        wait_until(lambda: taken(ring), "who waits for an acknowledgement wakes it")


def test_who_waits_to_read_wakes_the_writer(tmp_path: Path) -> None:
    """And while somebody does it does not nap."""
    with RunningWriter() as running:
        running.writer.add_partition(str(tmp_path / "a-0"), linger_ns=LINGER_NS)
        ring = running.ring(CAPACITY)
        for followed in (True, False, True):
            running.writer.follow(0, followed)
            running.writer.follow(0, followed)  # said twice, it counts once
        wait_until(lambda: taken(ring), "nothing there yet")
        for _ in range(20):
            put(ring, 0, b"", b"reading")
            wait_until(lambda: taken(ring), "each record is taken, though no commit is due")


def test_a_full_ring_wakes_a_napping_writer(tmp_path: Path) -> None:
    """A record larger than what is left must not wait for a commit that is an hour away."""
    with RunningWriter() as running:
        running.writer.add_partition(str(tmp_path / "a-0"), linger_ns=LINGER_NS)
        ring = running.ring(CAPACITY)
        for _ in range(50):
            put(ring, 0, b"", bytes(100))
            last = put(ring, 0, b"", bytes(CAPACITY // 2 - 200))
        assert running.writer.flush()
        assert verdict_of(ring, 0, last) == ACKED
