"""When the writer commits where nobody waits for an acknowledgement. The test is the clock and takes each step."""

from __future__ import annotations

from pathlib import Path

from gateway_native.ring import WANTS_ACK
from gateway_native.writer import ManualClock, Writer

MS = 1_000_000
T0_NS = 1_700_000_000_000 * MS
BUFFERS = 4 << 20
MANY = 20  # more partitions than the writer calls few
VALUE = bytes(10_000)


class Stepped:
    """A writer whose threads are the test, on a disk that is as slow as the test wants."""

    def __init__(self, directory: Path, partitions: int) -> None:
        directory.mkdir(exist_ok=True)
        self.clock = ManualClock(realtime_ns=T0_NS)
        self.writer = Writer("pwrite", clock=self.clock, buffer_bytes=BUFFERS)
        for number in range(partitions):
            self.writer.add_partition(str(directory / f"s{number}-0"))
        self.ring = self.writer.ring("r", 8 << 20)
        self.partitions = partitions
        # Every partition's first record has its files made and its first commit.
        self.put_each(b"first")
        self.take()
        self.sync()
        self.take()
        assert all(self.writer.partition_state(number)["durable_offset"] == 1 for number in range(partitions))

    def pass_time(self, milliseconds: int) -> None:
        self.clock.monotonic_ns += milliseconds * MS
        self.clock.realtime_ns += milliseconds * MS

    def put_each(self, value: bytes, flags: int = 0) -> None:
        for number in range(self.partitions):
            assert self.ring.append(number, b"", value, b"", self.clock.realtime_ns, flags)

    def take(self) -> None:
        """The writer alone: a commit that it begins stays under way."""
        for _ in range(16):
            self.writer.step_writer()

    def sync(self) -> None:
        self.writer.step_flusher()

    @property
    def commits(self) -> int:
        return int(self.writer.counters["commits"])


def test_the_spacing_counts_from_the_end_of_a_slow_commit(tmp_path: Path) -> None:
    """Else the next would begin at once with next to nothing in it, as often as a slow disk allows."""
    stepped = Stepped(tmp_path, 1)
    stepped.pass_time(100)
    stepped.put_each(b"1")
    stepped.take()
    began = stepped.commits
    stepped.pass_time(300)  # so long it takes
    stepped.put_each(b"2")
    stepped.sync()
    stepped.take()
    stepped.pass_time(99)
    stepped.take()
    assert stepped.commits == began
    stepped.pass_time(1)
    stepped.take()
    assert stepped.commits == began + 1


def test_who_waits_for_an_acknowledgement_is_not_held_up_by_a_slow_commit(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, 1)
    stepped.pass_time(100)
    stepped.put_each(b"1", WANTS_ACK)
    stepped.take()
    began = stepped.commits
    stepped.pass_time(300)
    stepped.put_each(b"2", WANTS_ACK)
    stepped.sync()
    stepped.take()
    assert stepped.commits == began + 1


def test_few_partitions_wait_for_company(tmp_path: Path) -> None:
    def commits(records: int) -> int:
        stepped = Stepped(tmp_path / str(records), 1)
        began = stepped.commits
        stepped.pass_time(10)
        for _ in range(records):
            stepped.put_each(VALUE)
        stepped.take()
        return stepped.commits - began

    assert commits(38) == 0
    assert commits(42) == 1


def after_a_commit_of(milliseconds: int, directory: Path, *, partitions: int, records_each: int) -> int:
    """How many ms after the end of a slow commit the next begins, when so many records of 10 kB have come meanwhile."""
    stepped = Stepped(directory, partitions)
    stepped.pass_time(100)
    stepped.put_each(b"1")
    stepped.take()
    began = stepped.commits
    stepped.pass_time(milliseconds)
    for _ in range(records_each):
        stepped.put_each(VALUE)
    stepped.sync()
    stepped.take()
    waited = 0
    while stepped.commits == began:
        stepped.pass_time(1)
        stepped.take()
        waited += 1
    return waited


def test_many_partitions_leave_half_the_time_that_a_commit_takes(tmp_path: Path) -> None:
    """Each costs a batch and a file to be synced, so more is to come together, until half of the buffers are full."""
    assert MANY * 11 * len(VALUE) > BUFFERS // 2
    assert after_a_commit_of(60, tmp_path / "a", partitions=MANY, records_each=6) == 30
    assert after_a_commit_of(4, tmp_path / "b", partitions=MANY, records_each=6) == 2
    assert after_a_commit_of(60, tmp_path / "c", partitions=MANY, records_each=11) == 0
    assert after_a_commit_of(60, tmp_path / "d", partitions=MANY, records_each=1) == 100
    assert after_a_commit_of(60, tmp_path / "e", partitions=1, records_each=120) == 0


# -- clients that each wait for their last acknowledgement ------------------------------------------------------------

GROUP = 16
LINGER_US = 5_000
QUIET_US = 150


class Group(Stepped):
    """Sixteen records that wait for their acknowledgements come together, at whatever time the test says."""

    def pass_us(self, microseconds: int) -> None:
        self.clock.monotonic_ns += microseconds * 1_000
        self.clock.realtime_ns += microseconds * 1_000

    def publish(self) -> None:
        for _ in range(GROUP):
            self.put_each(b"reading", WANTS_ACK)
        self.take()

    def commit_after_us(self) -> int:
        """How long after a group published its commit begins; the commit is ended, too."""
        began, waited = self.commits, 0
        self.publish()
        while self.commits == began:
            self.pass_us(10)
            self.take()
            waited += 10
        self.sync()
        self.take()
        return waited


def in_lock_step(group: Group, rounds: int) -> list[int]:
    """Acknowledged together, the clients publish again 100 us later."""
    waited = []
    for _ in range(rounds):
        group.pass_us(100)
        waited.append(group.commit_after_us())
    return waited


def publish_every(group: Group, microseconds: int, *, times: int) -> None:
    """Whatever was acknowledged; the disk is quick."""
    for _ in range(times):
        group.publish()
        for _ in range(microseconds // 10):
            group.pass_us(10)
            group.take()
            group.sync()
            group.take()


def test_who_falls_silent_together_waits_for_no_spacing(tmp_path: Path) -> None:
    group = Group(tmp_path, 1)
    group.pass_time(100)
    waited = in_lock_step(group, 300)
    # The spacing is kept where it is looked whether they still do, and only there.
    kept = [number for number, us in enumerate(waited) if us > QUIET_US]
    assert all(waited[number] > LINGER_US // 2 for number in kept)
    assert kept == [1, 130, 259]  # the first met a disk at rest


def test_who_publishes_on_unacknowledged_waits_for_the_spacing(tmp_path: Path) -> None:
    """A burst every millisecond, whatever was acknowledged: as many commits as the spacing allows, and no more."""
    group = Group(tmp_path, 1)
    group.pass_time(100)
    began = group.commits
    publish_every(group, 1_000, times=1_000)
    assert 150 <= group.commits - began <= 201


def test_a_burst_long_after_the_last_commit_is_no_answer_to_it(tmp_path: Path) -> None:
    """Every 3 ms: the spacing allows every second burst a commit of its own, though nothing comes for most of it."""
    group = Group(tmp_path, 1)
    group.pass_time(100)
    in_lock_step(group, 10)
    began = group.commits
    publish_every(group, 3_000, times=100)
    assert group.commits - began <= 61
