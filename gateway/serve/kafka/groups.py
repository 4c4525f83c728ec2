"""Consumer groups: who is a member, in which generation, with which share of the partitions. No I/O, no clock.

One group goes through these states (Apache Kafka, GroupMetadata.scala and GroupCoordinator.scala, the classic
protocol):

    EMPTY ──join──► PREPARING ──all have joined, or time is over──► COMPLETING ──the leader's shares──► STABLE
                        ▲                                               │                                │
                        └──────────── someone joins, leaves or dies ────┴────────────────────────────────┘

Times are seconds of any clock that only goes forward. Answers that have to wait are futures of the caller's event loop;
a future that is cancelled (its connection closed) counts as a member that has gone back to sending nothing.

A member with an instance id (KIP-345) is replaced by the next one with the same id. Unlike at a broker of Kafka's that
makes a rebalance, which is never wrong, and costs one.
"""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from kio.schema.errors import ErrorCode

# What a member may ask for. Kafka's own default is 45 s, its bounds 6 s and 30 min.
SESSION_TIMEOUT_MIN_S, SESSION_TIMEOUT_MAX_S = 1.0, 1_800.0
REBALANCE_TIMEOUT_MAX_S = 1_800.0
# After the first member of an empty group so long is waited for more of them, instead of a rebalance for each.
INITIAL_DELAY_S = 0.5
GROUPS_MAX = 1_000
MEMBERS_MAX = 1_000
# Of one member: the names and contents of its protocols; and of one share.
METADATA_BYTES_MAX = 256 * 2**10
GROUP_ID_BYTES_MAX = 1_024


Answer = TypeVar("Answer")


class State(enum.Enum):
    """Of a group."""

    EMPTY = "empty"
    PREPARING = "preparing"
    COMPLETING = "completing"
    STABLE = "stable"


class Protocol(NamedTuple):
    """A way to share partitions out that a member knows, and what it has to say for it."""

    name: str
    metadata: bytes


class Joined(NamedTuple):
    """The answer to a join. `members` is the leader's alone: (member id, instance id, metadata)."""

    error: int
    member_id: str
    generation: int = -1
    protocol_type: str | None = None
    protocol: str | None = None
    leader: str = ""
    members: Sequence[tuple[str, str | None, bytes]] = ()


class Synced(NamedTuple):
    """The answer to a sync: the member's share."""

    error: int
    assignment: bytes = b""
    protocol_type: str | None = None
    protocol: str | None = None


class Join(NamedTuple):
    """What a member says when it joins."""

    member_id: str
    instance_id: str | None
    client_id: str
    session_timeout_s: float
    rebalance_timeout_s: float
    protocol_type: str
    protocols: tuple[Protocol, ...]


class Member:
    """One consumer. It is alive until `deadline`, and as long as it waits for an answer."""

    def __init__(self, asked: Join, member_id: str, now: float) -> None:
        self.id = member_id
        self.assignment = b""
        self.joining: asyncio.Future[Joined] | None = None
        self.syncing: asyncio.Future[Synced] | None = None
        self.update(asked, now)

    def update(self, asked: Join, now: float) -> None:
        """It has joined, again."""
        self.asked = asked
        self.alive(now)

    def alive(self, now: float) -> None:
        """It has been heard of."""
        self.deadline = now + self.asked.session_timeout_s

    @property
    def waits(self) -> bool:
        return _is_open(self.joining) or _is_open(self.syncing)

    @property
    def has_joined(self) -> bool:
        return _is_open(self.joining)

    def metadata(self, protocol: str) -> bytes:
        """What it said for that protocol."""
        return next(known.metadata for known in self.asked.protocols if known.name == protocol)


class Group:
    """One group. Every method is told what time it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = State.EMPTY
        self.generation = 0
        self.protocol_type: str | None = None
        self.protocol: str | None = None
        self.leader = ""
        self.members: dict[str, Member] = {}
        self._invited: dict[str, float] = {}  # member ids given out, until when they may be used
        self._deadline = 0.0  # of the rebalance under way
        self._not_before = 0.0  # the first one waits for more members

    # -- join

    def join(self, asked: Join, now: float, *, invite: bool) -> asyncio.Future[Joined]:
        """invite: a new member gets its id first, and has to come back with it (KIP-394)."""
        future: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        error = self._refusal(asked)
        if error:
            future.set_result(Joined(error, asked.member_id))
        elif not asked.member_id:
            self._join_new(asked, now, future, invite=invite and asked.instance_id is None)
        elif asked.member_id in self.members:
            self._join_again(self.members[asked.member_id], asked, now, future)
        elif self._invited.pop(asked.member_id, 0.0) > now:
            self._add(asked, asked.member_id, now, future)
        else:
            future.set_result(Joined(ErrorCode.unknown_member_id, asked.member_id))
        return future

    def _refusal(self, asked: Join) -> int:
        known = asked.member_id in self.members
        others = [member for member in self.members.values() if member.id != asked.member_id]
        if not known and len(self.members) + len(self._invited) >= MEMBERS_MAX and asked.member_id not in self._invited:
            return ErrorCode.group_max_size_reached
        if not asked.protocols or (others and asked.protocol_type != self.protocol_type):
            return ErrorCode.inconsistent_group_protocol
        common = _common(member.asked.protocols for member in others) if others else None
        if common is not None and not common & {one.name for one in asked.protocols}:
            return ErrorCode.inconsistent_group_protocol
        return ErrorCode.none

    def _join_new(self, asked: Join, now: float, future: asyncio.Future[Joined], *, invite: bool) -> None:
        member_id = f"{asked.instance_id or asked.client_id}-{uuid.uuid4()}"
        if invite:
            self._invited[member_id] = now + asked.session_timeout_s
            future.set_result(Joined(ErrorCode.member_id_required, member_id))
            return
        if asked.instance_id is not None:
            self._fence(asked.instance_id)
        self._add(asked, member_id, now, future)

    def _fence(self, instance_id: str) -> None:
        """The member with that instance id is replaced."""
        for old in [member for member in self.members.values() if member.asked.instance_id == instance_id]:
            self._remove(old, ErrorCode.fenced_instance_id)

    def _add(self, asked: Join, member_id: str, now: float, future: asyncio.Future[Joined]) -> None:
        if not self.members:
            self.protocol_type = asked.protocol_type
            self._not_before = now + INITIAL_DELAY_S
        member = self.members[member_id] = Member(asked, member_id, now)
        member.joining = future
        self._prepare(now)

    def _join_again(self, member: Member, asked: Join, now: float, future: asyncio.Future[Joined]) -> None:
        unchanged = asked.protocols == member.asked.protocols
        member.update(asked, now)
        if unchanged and (self.state is State.COMPLETING or (self.state is State.STABLE and member.id != self.leader)):
            future.set_result(self._joined(member))  # it has missed the answer
            return
        _settle(member.joining, Joined(ErrorCode.rebalance_in_progress, member.id))
        member.joining = future
        self._prepare(now)

    # -- rebalance

    def _prepare(self, now: float) -> None:
        """Everybody has to join again."""
        if self.state is not State.PREPARING:
            self.state = State.PREPARING
            self._deadline = now + self._patience_s
            for member in self.members.values():
                _settle(member.syncing, Synced(ErrorCode.rebalance_in_progress))
                member.syncing = None
        self._complete_join(now)

    @property
    def _patience_s(self) -> float:
        """How long a rebalance waits for everybody's next request."""
        return max(member.asked.rebalance_timeout_s for member in self.members.values())

    def _complete_join(self, now: float) -> None:
        """The next generation, if all have joined or the time is over; who has not joined then is out."""
        if self.state is not State.PREPARING:
            return
        everybody = all(member.has_joined for member in self.members.values())
        if not (everybody and now >= self._not_before) and now < self._deadline:
            return
        for member in [member for member in self.members.values() if not member.has_joined]:
            del self.members[member.id]
        self.generation += 1
        if not self.members:
            self._become_empty()
            return
        self.state = State.COMPLETING
        self._deadline = now + self._patience_s
        self.protocol = _choose(self.members.values())
        if self.leader not in self.members:
            self.leader = next(iter(self.members))
        for member in self.members.values():
            member.assignment = b""
            member.alive(now)
            _settle(member.joining, self._joined(member))
            member.joining = None

    def _joined(self, member: Member) -> Joined:
        members: list[tuple[str, str | None, bytes]] = []
        if member.id == self.leader and self.protocol is not None:
            members = [(one.id, one.asked.instance_id, one.metadata(self.protocol)) for one in self.members.values()]
        return Joined(0, member.id, self.generation, self.protocol_type, self.protocol, self.leader, members)

    def sync(
        self, member_id: str, generation: int, shares: Iterable[tuple[str, bytes]], now: float
    ) -> asyncio.Future[Synced]:
        """The leader's brings everybody's shares; the others wait for it."""
        future: asyncio.Future[Synced] = asyncio.get_running_loop().create_future()
        error = self.check(member_id, generation)
        if error or self.state is State.PREPARING:
            future.set_result(Synced(error or ErrorCode.rebalance_in_progress))
            return future
        member = self.members[member_id]
        member.alive(now)
        if self.state is State.COMPLETING:
            _settle(member.syncing, Synced(ErrorCode.rebalance_in_progress))
            member.syncing = future
            if member_id == self.leader:
                self._share_out(dict(shares), now)
        else:
            future.set_result(self._synced(member))
        return future

    def _share_out(self, shares: dict[str, bytes], now: float) -> None:
        self.state = State.STABLE
        for member in self.members.values():
            member.assignment = shares.get(member.id, b"")
            if _is_open(member.syncing):
                member.alive(now)
                _settle(member.syncing, self._synced(member))
            member.syncing = None

    def _synced(self, member: Member) -> Synced:
        return Synced(0, member.assignment, self.protocol_type, self.protocol)

    # -- staying and leaving

    def check(self, member_id: str, generation: int) -> int:
        """Is this a member of the present generation? Else the error."""
        if member_id not in self.members:
            return ErrorCode.unknown_member_id
        return ErrorCode.none if generation == self.generation else ErrorCode.illegal_generation

    def heartbeat(self, member_id: str, generation: int, now: float) -> int:
        """It lives. The error tells it to join again."""
        error = self.check(member_id, generation)
        if error:
            return error
        self.members[member_id].alive(now)
        return ErrorCode.rebalance_in_progress if self.state is State.PREPARING else ErrorCode.none

    def may_commit(self, member_id: str, generation: int, now: float) -> int:
        """May it commit offsets? Outside of a group everybody may as long as it has no members: generation -1."""
        if generation < 0 and not self.members:
            return ErrorCode.none
        error = self.check(member_id, generation)
        if error:
            return error
        self.members[member_id].alive(now)
        return ErrorCode.rebalance_in_progress if self.state is State.COMPLETING else ErrorCode.none

    def leave(self, member_id: str, instance_id: str | None, now: float) -> int:
        """It goes; the others share out anew."""
        if self._invited.pop(member_id, None) is not None:
            return ErrorCode.none
        if instance_id is not None and not member_id:
            found = [one for one in self.members.values() if one.asked.instance_id == instance_id]
            member_id = found[0].id if found else ""
        member = self.members.get(member_id)
        if member is None:
            return ErrorCode.unknown_member_id
        self._remove(member, ErrorCode.unknown_member_id)
        self._after_removal(now)
        return ErrorCode.none

    def _remove(self, member: Member, error: int) -> None:
        del self.members[member.id]
        _settle(member.joining, Joined(error, member.id))
        _settle(member.syncing, Synced(error))

    def _after_removal(self, now: float) -> None:
        if not self.members:
            self._become_empty()
        elif self.state is State.PREPARING:
            self._complete_join(now)
        else:
            self._prepare(now)

    def _become_empty(self) -> None:
        self.state = State.EMPTY
        self.protocol = None
        self.leader = ""

    def tick(self, now: float) -> list[str]:
        """Time has passed. Who has been silent for too long, or has not asked for its share, is out: their ids."""
        for member_id in [one for one, until in self._invited.items() if until <= now]:
            del self._invited[member_id]
        dead = [member for member in self.members.values() if member.deadline <= now and not member.waits]
        if self.state is State.COMPLETING and self._deadline <= now:
            dead += [member for member in self.members.values() if not member.waits and member not in dead]
        for member in dead:
            self._remove(member, ErrorCode.unknown_member_id)
        if dead:
            self._after_removal(now)
        else:
            self._complete_join(now)
        return [member.id for member in dead]

    @property
    def is_needless(self) -> bool:
        """Nobody is in it, or about to be."""
        return not self.members and not self._invited


def _is_open(future: asyncio.Future[Answer] | None) -> bool:
    return future is not None and not future.done()


def _settle(future: asyncio.Future[Answer] | None, answer: Answer) -> None:
    if future is not None and not future.done():
        future.set_result(answer)


def _common(protocols: Iterable[tuple[Protocol, ...]]) -> set[str]:
    names = [{one.name for one in known} for known in protocols]
    return set.intersection(*names)


def _choose(members: Iterable[Member]) -> str:
    """The protocol that most members like best, of those that all of them know."""
    members = list(members)
    common = _common(member.asked.protocols for member in members)
    votes: dict[str, int] = {}
    for member in members:
        favourite = next(one.name for one in member.asked.protocols if one.name in common)
        votes[favourite] = votes.get(favourite, 0) + 1
    return max(votes, key=lambda name: votes[name])
