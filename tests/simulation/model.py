"""What a partition's producers were told, what its readers saw, and what must therefore be in its log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from gateway_native.batch import encode_headers
from gateway_native.ring import ACKED, GAP, PENDING, REFUSED, WANTS_ACK

from tests.simulation.reading import LogContent

GAP_HEADER = "gateway.gap"


class Violation(AssertionError):
    """Gateway broke a promise."""


def require(condition: bool, text: str) -> None:
    if not condition:
        raise Violation(text)


@dataclass(slots=True)
class Record:
    """One record that was put into a ring, and what its producer knows of it."""

    identity: bytes
    life: int
    ring: int
    sequence: int
    size: int
    flags: int
    verdict: int = PENDING

    @property
    def is_promised(self) -> bool:
        """Does anybody wait for a verdict? Only then is it one."""
        return bool(self.flags & (WANTS_ACK | GAP))


def value_of(identity: bytes, size: int) -> bytes:
    """What a record's value must be: size bytes that tell which record it is."""
    return (identity * (size // len(identity) + 1))[:size]


def gap_headers(identity: bytes) -> bytes:
    return encode_headers([(GAP_HEADER, identity.hex().encode())])


class Life(NamedTuple):
    """What the writer counted in one life of a partition."""

    number: int
    refused: int
    lost: int
    failed: bool
    clean: bool


@dataclass(slots=True)
class PartitionModel:
    """One partition through all its lives."""

    name: str
    ack_memory: bool
    records: dict[bytes, Record] = field(default_factory=dict)
    waiting: list[list[Record]] = field(default_factory=list)
    """By ring: records of this life whose producer still waits for a verdict."""
    durable: dict[int, bytes | None] = field(default_factory=dict)
    """By offset: what a reader saw, and will see again until it is deleted."""
    durable_offset: int = 0
    start: int = 0
    start_max: int = 0
    """The log starts at one of these: between them a deletion was under way."""
    gone: set[bytes] = field(default_factory=set)
    """Records that a restart did not find before the last commit: they must not come back."""
    missing: set[bytes] = field(default_factory=set)
    """Records that a restart did not find: until the next commit, a power failure may bring back what was put aside."""
    deleted: set[bytes] = field(default_factory=set)
    epoch: int = 0
    """The last that readers saw."""
    epoch_on_disk: int = 0
    """… and the last under which anything was committed, which comes after the watermark is synced."""
    life_counts: Life | None = None

    # -- while it runs -------------------------------------------------------------------------------------------------

    def begin_life(self, rings: int) -> None:
        self.waiting = [[] for _ in range(rings)]
        self.life_counts = None

    def add(self, record: Record) -> None:
        self.records[record.identity] = record
        if record.is_promised:
            self.waiting[record.ring].append(record)

    def tell(self, record: Record, verdict: int) -> None:
        """The producer learns what became of a record; the answer leaves, so there is no way back."""
        record.verdict = verdict

    def saw(self, content: LogContent, durable_offset: int) -> None:
        """A reader saw this log, which ends at the durable offset."""
        where = f"{self.name}: a reader"
        require(
            durable_offset >= self.durable_offset,
            f"{where} saw the durable offset go back from {self.durable_offset} to {durable_offset}",
        )
        require(
            content.next_offset == durable_offset,
            f"{where} was promised offsets up to {durable_offset}, and found them up to {content.next_offset}",
        )
        self._compare_with_durable(content, where)
        self._check_rows(content, where)
        self.durable_offset = durable_offset
        self._remember(content)

    # -- deleting ------------------------------------------------------------------------------------------------------

    def begin_deletion(self, next_base: int, content: LogContent) -> None:
        """The segment before `next_base` is being deleted: it may be there or not."""
        self._remember(content)
        self.start_max = max(self.start_max, next_base)

    def end_deletion(self) -> None:
        self.forget_below(self.start_max)

    def forget_below(self, start: int) -> None:
        """The log starts there."""
        self.start = start
        for offset in [offset for offset in self.durable if offset < start]:
            identity = self.durable.pop(offset)
            if identity is not None:
                self.deleted.add(identity)

    # -- after a restart -----------------------------------------------------------------------------------------------

    def recovered(self, content: LogContent, next_offset: int, epoch: int) -> None:
        """Recovery came to this log: is everything there that was promised, and nothing else?"""
        where = f"{self.name}: after recovery the log"
        require(
            next_offset >= self.durable_offset,
            f"{where} ends at offset {next_offset}; up to {self.durable_offset} it had been durable",
        )
        require(
            content.next_offset == next_offset,
            f"{where} is said to end at offset {next_offset} and ends at {content.next_offset}: {content.problem}",
        )
        require(epoch > self.epoch, f"{self.name}: epoch {epoch} follows {self.epoch}")
        start_max = max(self.start, self.start_max)
        lost_front = content.start > start_max
        if all(offset < start_max for offset in self.durable):
            # Of what never was committed, the first segments may be lost and a later one not.
            start_max = content.start
        require(
            self.start <= content.start <= start_max,
            f"{where} starts at offset {content.start}, not between {self.start} and {start_max}",
        )
        if content.start > self.start:
            self.forget_below(content.start)
        self._compare_with_durable(content, where)
        there = self._check_rows(content, where)
        self.missing -= there
        for record in self.records.values():
            if record.identity in there or record.identity in self.deleted:
                continue
            if record.verdict == ACKED and not self.ack_memory:
                raise Violation(f"{where} has lost {describe(record)}, which was acknowledged")
            self.missing.add(record.identity)
        if not lost_front:
            self._check_prefixes(there, where)
        self._check_counts(there, where)
        self.durable_offset = next_offset
        self._remember(content)

    def ended(self, durable_offset: int) -> None:
        """The life is over; this is what its writer called durable."""
        if durable_offset > self.durable_offset:
            self.epoch_on_disk = self.epoch
            for identity in self.missing:
                self.records.pop(identity, None)
            self.gone |= self.missing
            self.missing = set()
        self.durable_offset = max(self.durable_offset, durable_offset)

    def power_lost(self) -> None:
        """Readers are gone too."""
        self.epoch = self.epoch_on_disk

    def _remember(self, content: LogContent) -> None:
        for offset, identity, _ in content.rows:
            self.durable[offset] = identity

    def _compare_with_durable(self, content: LogContent, where: str) -> None:
        for offset, identity, _ in content.rows:
            before = self.durable.get(offset, identity)
            require(before == identity, f"{where} has {identity!r} at offset {offset}, where {before!r} had been seen")

    def _check_rows(self, content: LogContent, where: str) -> set[bytes]:
        """Every record is known, whole, there once, in its ring's order, and was not refused."""
        there: set[bytes] = set()
        last: dict[tuple[int, int], int] = {}
        for offset, identity, value in content.rows:
            if identity is None:
                continue
            record = self.records.get(identity)
            require(
                identity not in self.gone, f"{where} has {identity!r} at offset {offset} again; it had not been there"
            )
            if record is None:
                raise Violation(f"{where} has {identity!r} at offset {offset}, which was never sent")
            require(identity not in there, f"{where} has {describe(record)} twice, the second time at offset {offset}")
            require(record.verdict != REFUSED, f"{where} has {describe(record)} at offset {offset}; it was refused")
            require(
                value is None or value == value_of(identity, record.size),
                f"{where} has other bytes in {describe(record)} at offset {offset}",
            )
            place = (record.life, record.ring)
            require(
                record.sequence > last.get(place, 0),
                f"{where} has {describe(record)} at offset {offset}, behind "
                f"sequence {last.get(place)} of the same ring",
            )
            last[place] = record.sequence
            there.add(identity)
        return there

    def _check_prefixes(self, there: set[bytes], where: str) -> None:
        """In a life in which nothing was refused, each ring's records are there up to one of them, without holes."""
        counts = self.life_counts
        if counts is None or counts.refused or counts.failed:
            return
        missing: dict[int, Record] = {}
        for record in self.records.values():
            if record.life != counts.number or record.identity in self.deleted or record.flags & GAP:
                continue
            if record.identity not in there:
                missing.setdefault(record.ring, record)
            elif record.ring in missing:
                raise Violation(f"{where} has {describe(record)}, but not {describe(missing[record.ring])} before it")

    def _check_counts(self, there: set[bytes], where: str) -> None:
        """After a clean end every record of that life is in the log, or was counted as refused or lost."""
        counts = self.life_counts
        if counts is None or not counts.clean:
            return
        of_life = [
            record for record in self.records.values() if record.life == counts.number and not record.flags & GAP
        ]
        absent = sum(record.identity not in there and record.identity not in self.deleted for record in of_life)
        require(
            absent <= counts.refused + counts.lost,
            f"{where} lacks {absent} records of a life that ended cleanly, of "
            f"which {counts.refused} were counted as refused and {counts.lost} as lost",
        )


def describe(record: Record) -> str:
    return f"record {record.sequence} of ring {record.ring}, life {record.life} ({record.size} bytes)"
