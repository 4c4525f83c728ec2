"""One run: several lives of a gateway on one simulated disk, all of it decided by a seed.

The shipped recovery, writer, flusher and retention do the work; the model keeps the books. A life begins with recovery,
goes on with records, faults and clocks, and ends cleanly, by a kill, or by power loss: also in the middle of recovery.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from gateway_native.ring import FAILED, GAP, KEYFRAME, PENDING, REFUSED, WANTS_ACK, Ring
from gateway_native.simulated_disk import Disk
from gateway_native.writer import ManualClock, Writer

from gateway.log import recovery
from gateway.log.maintenance import missing, rebuild_segment
from gateway.log.recovery import Recovered
from gateway.log.retention import delete_segment
from tests.simulation.files import SimulatedFiles
from tests.simulation.model import Life, PartitionModel, Record, Violation, describe, gap_headers, require, value_of
from tests.simulation.reading import (
    LogContent,
    bases_of,
    entries_problem,
    index_problem,
    path_of,
    read_if_there,
    read_log,
    read_mark,
    read_segment,
)

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
PLENTY = 1 << 30
RING_BYTES = 1 << 17
LARGEST_VALUE = 40 << 10
FAULTS = (
    ("append", "write"),
    ("sync_data", "sync_all"),
    ("sync_data", "sync_all"),
    ("sync_data", "sync_all", "sync_directory", "sync_filesystem"),
    ("sync_directory",),
    ("sync_filesystem",),
    ("truncate",),
    ("open", "rename", "unlink", "make_directory"),
    ("allocate", "reserve"),
)
# A clean end takes a few rounds; one that takes so many never comes.
ROUNDS_MAX = 2000


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays the same through a run."""

    flavour: str
    lives: int
    partitions: int
    rings: int
    segment_bytes: int
    segment_age_ms: int
    linger_ns: int
    refuse_when_full: bool
    ack_memory: bool
    reserve_bytes: int
    syncfs_files: int
    buffer_bytes: int
    faults: bool
    full: bool
    interleave: int
    value_bytes: int
    """Of every record; -1: they differ. Where all batches are alike, one that is left over may fit behind another."""

    @classmethod
    def make(cls, dice: random.Random) -> Plan:
        return cls(
            flavour=dice.choice(("mapped", "pwrite")),
            lives=dice.randint(2, 4),
            partitions=dice.choice((1, 1, 2, 3)),
            rings=dice.choice((1, 1, 2, 3)),
            segment_bytes=dice.choice((1, 3000, 9000, 30_000, 100_000)),
            segment_age_ms=dice.choice((0, 0, 0, 500)),
            linger_ns=dice.choice((1, 5 * NS_PER_MS)),
            refuse_when_full=dice.random() < 0.5,
            ack_memory=dice.random() < 0.05,
            reserve_bytes=dice.choice((0, 0, 16 << 10)),
            syncfs_files=dice.choice((0, 0, 0, 1, 2)),
            buffer_bytes=dice.choice((300_000, 1 << 20, 1 << 22)),
            faults=dice.random() < 0.5,
            full=dice.random() < 0.4,
            interleave=dice.choice((0, 30, 128)),
            value_bytes=dice.choice((-1, -1, -1, 40)),
        )


class Run:
    """Everything of one seed. `go` raises Violation when a promise is broken."""

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.plan = Plan.make(self.dice)
        self.disk = Disk(seed, capacity=PLENTY, writeback=self.dice.choice((0, 4, 30)), tracing=tracing)
        self.files = SimulatedFiles(self.disk)
        self.clock = ManualClock()
        self.models = [
            PartitionModel(f"/disk/s{number}-0", self.plan.ack_memory and number == 0)
            for number in range(self.plan.partitions)
        ]
        self.life = 0
        self.sent = 0
        self.story: list[str] = []

    def go(self) -> None:
        for life in range(self.plan.lives):
            self.life = life
            _Life(self, self._start()).go()
        self.disk.capacity = PLENTY
        _Life(self, self._recover_all()).take_over()

    def tell(self, text: str) -> None:
        self.story.append(f"[life {self.life}, operation {self.disk.operations}] {text}")

    def restart(self, *, power_loss: bool) -> None:
        self.tell("power loss" if power_loss else "the process ends")
        self.disk.restart(power_loss=power_loss)
        for model in self.models if power_loss else ():
            model.power_lost()

    # -- the beginning of a life ---------------------------------------------------------------------------------------

    def _start(self) -> list[Recovered]:
        """Recover everything; before it succeeds, the power may fail in the middle of it, or the disk."""
        for _ in range(3):
            if self.dice.random() >= 0.35:
                break
            if self.plan.faults and self.dice.random() < 0.4:
                self.break_something()
            else:
                self.disk.crash_after(self.dice.randint(0, 25))
            try:
                self._recover_all()
            except OSError as error:
                require(self.disk.crashed or self.plan.faults, f"recovery fails on a sound disk: {error}")
                self.tell(f"recovery: {error}")
            self.disk.heal()
            if self.disk.crashed or self.dice.random() < 0.5:
                self.restart(power_loss=self.disk.crashed or self.dice.random() < 0.5)
        self._forget_crash()
        try:
            return self._recover_all()
        except OSError as error:
            raise Violation(f"recovery fails on a sound disk: {error}") from error

    def break_something(self) -> None:
        """Some operations to come will fail."""
        kinds = self.dice.choice(FAULTS)
        suffix = self.dice.choice(("", "", ".log", ".index", "watermark", ".sums", "manifest"))
        after, count = self.dice.randint(0, 5), self.dice.choice((1, 1, 2, 4))
        if self.dice.random() < 0.3:  # what the shipped code has most to say about
            kinds, suffix = ("sync_data", "sync_all"), self.dice.choice((".log", "watermark"))
            after, count = after // 3, 1
        self.disk.heal()
        self.disk.fail(*kinds, after=after, count=count, suffix=suffix)
        self.tell(f"{kinds} of …{suffix} will fail")

    def _forget_crash(self) -> None:
        if self.disk.crashed:
            self.restart(power_loss=True)
        self.disk.crash_after(1 << 60)

    def _recover_all(self) -> list[Recovered]:
        return [self._recover(model) for model in self.models]

    def _recover(self, model: PartitionModel) -> Recovered:
        mark = read_mark(self.disk, model.name)
        found = recovery.recover(Path(model.name), files=self.files)
        self.tell(f"{model.name}: recovered from {mark}: {found}")
        if self.disk.crashed:
            return found
        require(not found.damages, f"{model.name}: recovery reports damage: {found.damages}")
        require(found.lost_records == 0, f"{model.name}: recovery reports {found.lost_records} lost records")
        base = found.segment_base if found.segment_base >= 0 else found.next_offset
        content = read_log(self.disk, model.name, base, found.position)
        model.recovered(content, found.next_offset, found.epoch)
        model.life_counts = None
        self._check_indexes(model, content, found, base)
        return found

    def _check_indexes(self, model: PartitionModel, content: LogContent, found: Recovered, active: int) -> None:
        for segment in content.segments:
            if segment.base == active and found.indexes_whole:
                index = read_if_there(self.disk, path_of(model.name, active, "index"))[: found.index_bytes]
                times = read_if_there(self.disk, path_of(model.name, active, "timeindex"))[: found.time_bytes]
                problem = entries_problem(segment, index, times)
            elif segment.base == active or self.plan.faults:
                continue  # one that could not be synced is counted, and rebuilt by others
            else:
                problem = index_problem(self.disk, model.name, segment)
            require(not problem, f"{model.name}: {problem}")


class _Life:
    """From recovery to the end."""

    def __init__(self, run: Run, states: list[Recovered]) -> None:
        self.run = run
        self.dice = run.dice
        self.disk = run.disk
        self.clock = run.clock
        self.models = run.models
        plan = run.plan
        self.filled = run.disk.capacity < PLENTY
        self.writer = Writer(
            self.disk.table(plan.flavour),
            buffer_bytes=plan.buffer_bytes,
            partitions_max=4,
            reserve_bytes=plan.reserve_bytes,
            syncfs_files=plan.syncfs_files,
            clock=self.clock,
        )
        self.states = states
        self.rings: list[Ring] = [self.writer.ring(f"ring {number}", RING_BYTES) for number in range(plan.rings)]
        for model in self.models:
            model.begin_life(plan.rings)

    def go(self) -> None:
        dice = self.dice
        if dice.random() < 0.8:
            self.disk.crash_after(int(dice.expovariate(1 / 150)))
        try:
            self.take_over()
        except OSError as error:
            if not self.disk.crashed:
                raise Violation(f"a partition cannot be opened on a sound disk: {error}") from error
        else:
            if self.run.plan.faults and dice.random() < 0.5:
                self.run.break_something()  # the first commit is unlike the others
            for _ in range(dice.randint(0, dice.choice((5, 40, 120, 120)))):
                if self.disk.crashed:
                    break
                self._step()
            if not self.disk.crashed and dice.random() < 0.6:
                self._end_cleanly()
        self._end()

    def take_over(self) -> None:
        plan = self.run.plan
        for model, state in zip(self.models, self.states, strict=True):
            self.writer.add_partition(
                model.name,
                **state.writer_state(),
                segment_bytes=plan.segment_bytes,
                segment_age_ms=plan.segment_age_ms,
                linger_ns=plan.linger_ns,
                ack_memory=model.ack_memory,
                refuse_when_full=plan.refuse_when_full,
            )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        roll = self.dice.random()
        if roll < 0.35:
            self._produce()
        elif roll < 0.60:
            self.writer.step_writer()
        elif roll < 0.78:
            self._flush()
        elif roll < 0.88:
            self._ask_verdicts()
        elif roll < 0.93:
            self._pass_time(self.dice.choice((0, 1, 6, 120, 300)) * NS_PER_MS)
        elif roll < 0.95:
            self._read()
        else:
            self._disturb(self.dice.random())

    def _flush(self) -> None:
        """While the flusher syncs, the writer goes on."""
        self.disk.interleave(self.writer, self.run.plan.interleave)
        self.writer.step_flusher()
        self.disk.interleave(None)

    def _disturb(self, roll: float) -> None:
        plan = self.run.plan
        if roll < 0.15:
            step = self.dice.choice((-7200, -3, 3, 7200, 300_000_000, -300_000_000)) * NS_PER_S
            self.clock.realtime_ns = max(self.clock.realtime_ns + step, 1)
            self.run.tell(f"the wall clock steps by {step} ns")
        elif roll < 0.30:
            index = self.dice.randrange(len(self.models))
            self.writer.roll(index)
            self.run.tell(f"roll {index}")
        elif roll < 0.45:
            self._delete_oldest(self.dice.randrange(len(self.models)))
        elif roll < 0.52:
            self._maintain(Path(self.dice.choice(self.models).name))
        elif roll < 0.74 and plan.full:
            self._change_room()
        elif roll >= 0.74 and plan.faults:
            self.run.break_something()

    def _produce(self) -> None:
        for _ in range(self.dice.randint(1, 6)):
            partition = self.dice.randrange(len(self.models))
            self._put(partition, self.dice.randrange(len(self.rings)), self._size())

    def _size(self) -> int:
        roll = self.dice.random()
        if self.run.plan.value_bytes >= 0:
            return self.run.plan.value_bytes
        if roll < 0.80:
            return self.dice.randint(0, 120)
        if roll < 0.97:
            return self.dice.randint(0, 3000)
        return self.dice.randint(0, LARGEST_VALUE)

    def _put(self, partition: int, ring: int, size: int) -> None:
        run, dice = self.run, self.dice
        run.sent += 1
        identity = run.sent.to_bytes(4, "big")
        flags = (WANTS_ACK if dice.random() < 0.7 else 0) | (KEYFRAME if dice.random() < 0.05 else 0)
        key, value, headers = identity, value_of(identity, size), b""
        if dice.random() < 0.02:
            flags, key, value, headers = GAP, b"", b"", gap_headers(identity)
        sequence = self.rings[ring].append(partition, key, value, headers, self.clock.realtime_ns, flags)
        if sequence:
            self.models[partition].add(Record(identity, run.life, ring, sequence, size, flags))

    def _pass_time(self, duration_ns: int) -> None:
        self.clock.monotonic_ns += duration_ns
        self.clock.realtime_ns += duration_ns

    def _ask_verdicts(self) -> None:
        """What every producer does, by the rules of the ring."""
        for number, ring in enumerate(self.rings):
            pending = ring.refusals_pending
            for partition, model in enumerate(self.models):
                model.waiting[number] = [
                    record for record in model.waiting[number] if not self._answered(ring, partition, model, record)
                ]
            if pending:
                ring.confirm_refusals()

    def _answered(self, ring: Ring, partition: int, model: PartitionModel, record: Record) -> bool:
        verdict = ring.verdict(partition, record.sequence)
        if verdict == PENDING:
            return False
        model.tell(record, verdict)
        if verdict in (REFUSED, FAILED):
            self.run.tell(f"{model.name}: {describe(record)} got verdict {verdict}")
        return True

    def _read(self) -> None:
        """Another process reads a partition, up to what its watermark says."""
        model = self.dice.choice(self.models)
        mark = read_mark(self.disk, model.name)
        # Where a write of the watermark failed, retention may be ahead of it until the next.
        if mark is not None and mark.durable_offset > 0 and mark.segment_base >= model.start_max:
            content = read_log(self.disk, model.name, mark.segment_base, mark.position)
            if mark.position == 0 and content.next_offset < mark.segment_base:
                content.next_offset = mark.segment_base
            model.saw(content, mark.durable_offset)

    def _delete_oldest(self, partition: int) -> None:
        """Retention, by the gateway's own rule for it: the log first, and durably."""
        model = self.models[partition]
        bases = bases_of(self.disk, model.name)
        if len(bases) < 2 or bases[1] > self.writer.partition_state(partition)["segment_base"]:
            return
        self.run.tell(f"{model.name}: segment {bases[0]} is deleted")
        content = LogContent()
        read_segment(content, bases[0], self.disk.read_file(path_of(model.name, bases[0])), bases[1])
        model.begin_deletion(bases[1], content)
        try:
            delete_segment(Path(model.name), bases[0], self.run.files)
        except OSError as error:
            self.run.tell(f"{model.name}: deleting: {error}")
        else:
            model.end_deletion()

    def _maintain(self, directory: Path) -> None:
        """What the keeper does beside the writer: indexes and summaries that are missing are made again."""
        try:
            for base in missing(directory, files=self.run.files):
                rebuild_segment(directory, base, files=self.run.files)
                self.run.tell(f"{directory}: made the indexes of segment {base} again")
        except OSError as error:
            self.run.tell(f"{directory}: maintenance: {error}")

    def _change_room(self) -> None:
        if self.filled:
            self.disk.capacity = PLENTY
            self.writer.retry()
        else:
            self.disk.capacity = self.disk.used + self.dice.randint(0, 6)
        self.filled = not self.filled
        self.run.tell(f"the disk has {self.disk.capacity} pages, {self.disk.used} are used")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _end_cleanly(self) -> None:
        self.run.tell("asked to end")
        self.disk.heal()
        abandon = self.filled and self.dice.random() < 0.5
        if self.filled and not abandon:
            self._change_room()
        self.writer.stop(abandon=abandon)
        for _ in range(ROUNDS_MAX):
            self.writer.step_writer()
            self._flush()
            self._ask_verdicts()
            if self.disk.crashed or self.writer.finish():
                break
            self._pass_time(10 * NS_PER_MS)
        else:
            raise Violation("the writer does not come to an end")
        if self.disk.crashed:
            return
        self.run.tell("ended cleanly")
        for index, model in enumerate(self.models):
            state = self.writer.partition_state(index)
            model.life_counts = Life(self.run.life, state["refused"], state["lost"], state["failed"], clean=not abandon)
            waiting = [record for records in model.waiting for record in records]
            require(
                abandon or state["failed"] or not waiting,
                f"{model.name}: the writer ended, and {len(waiting)} records have no verdict",
            )

    def _end(self) -> None:
        """Producers see what they can still see, then everything is gone."""
        power_loss = self.disk.crashed or self.dice.random() < 0.6
        self._ask_verdicts()
        for model in self.models:
            mark = read_mark(self.disk, model.name)
            model.epoch = mark.epoch if mark is not None else model.epoch
        require(self.disk.bus_errors == 0, "a write through the mapping had no block behind it: a SIGBUS")
        for index, model in enumerate(self.models):
            try:
                state = self.writer.partition_state(index)
            except IndexError:  # the crash came before it was opened
                continue
            if model.life_counts is None:
                model.life_counts = Life(self.run.life, state["refused"], state["lost"], state["failed"], clean=False)
            require(
                state["durable_offset"] >= model.durable_offset or state["durable_offset"] == 0,
                f"{model.name}: the durable offset went back to {state['durable_offset']}",
            )
            model.ended(state["durable_offset"])
        self.run.tell(f"{self.writer.counters}")
        if self.dice.random() < 0.5:
            self.disk.capacity = PLENTY
        self.run.restart(power_loss=power_loss)
        self._reboot()

    def _reboot(self) -> None:
        self.clock.monotonic_ns = NS_PER_S
        self._pass_time(self.dice.choice((0, 5000, 3_600_000)) * NS_PER_MS)
