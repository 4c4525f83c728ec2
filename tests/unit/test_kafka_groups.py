"""A consumer group's states, with a clock that only tests move."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.serve.kafka import groups
from gateway.serve.kafka.groups import Group, Join, Joined, Protocol, State

UNKNOWN, ILLEGAL, REBALANCE, INCONSISTENT, ID_REQUIRED, FENCED, FULL = 25, 22, 27, 23, 79, 82, 81


def _join(member_id: str = "", **more: Any) -> Join:
    found = {
        "instance_id": None, "client_id": "test", "session_timeout_s": 10.0, "rebalance_timeout_s": 30.0,
        "protocol_type": "consumer", "protocols": (Protocol("range", b"r"), Protocol("sticky", b"s")), **more,
    }  # fmt: skip
    return Join(member_id, **found)


class Clock:
    """Drives one group."""

    def __init__(self) -> None:
        self.group = Group("group")
        self.now = 100.0

    def join(self, member_id: str = "", *, invite: bool = False, **more: Any) -> asyncio.Future[Joined]:
        return self.group.join(_join(member_id, **more), self.now, invite=invite)

    def move(self, seconds: float) -> list[str]:
        self.now += seconds
        return self.group.tick(self.now)

    def sync(self, member_id: str, shares: dict[str, bytes] | None = None) -> asyncio.Future[groups.Synced]:
        return self.group.sync(member_id, self.group.generation, (shares or {}).items(), self.now)

    def stable(self, count: int) -> list[str]:
        """So many members, with shares; the first is the leader."""
        waiting = [self.join() for _ in range(count)]
        self.move(groups.INITIAL_DELAY_S)
        ids = [future.result().member_id for future in waiting]
        synced = [self.sync(one) for one in ids[1:]]
        synced.append(self.sync(ids[0], {one: one.encode() for one in ids}))
        assert {future.result().assignment for future in synced} == {one.encode() for one in ids}
        assert self.group.state is State.STABLE
        return ids

    def beat(self, *ids: str) -> list[int]:
        return [self.group.heartbeat(one, self.group.generation, self.now) for one in ids]


@pytest.fixture
async def clock() -> Clock:
    return Clock()


async def test_the_leader_alone_is_told_who_there_is(clock: Clock) -> None:
    """All get one generation and one protocol, that which most like best."""
    first = clock.join()
    second = clock.join(protocols=(Protocol("sticky", b"2"), Protocol("range", b"x")))
    third = clock.join(protocols=(Protocol("sticky", b"3"), Protocol("range", b"y"), Protocol("other", b"")))
    assert not first.done()
    clock.move(groups.INITIAL_DELAY_S)
    answers = [future.result() for future in (first, second, third)]
    assert {(one.generation, one.protocol, one.leader) for one in answers} == {(1, "sticky", answers[0].member_id)}
    assert [metadata for _, _, metadata in answers[0].members] == [b"s", b"2", b"3"]
    assert not answers[1].members


async def test_a_new_member_comes_back_with_its_id(clock: Clock) -> None:
    """KIP-394: so that clients which give up leave nothing behind; unknown ids are turned away."""
    invited = clock.join(invite=True).result()
    assert (invited.error, bool(invited.member_id)) == (ID_REQUIRED, True)
    assert not clock.group.members
    assert clock.join("somebody-else").result().error == UNKNOWN
    joined = clock.join(invited.member_id, invite=True)
    clock.move(groups.INITIAL_DELAY_S)
    assert joined.result().member_id == invited.member_id
    late = clock.join(invite=True).result()
    clock.beat(invited.member_id)
    clock.move(9.9)
    clock.beat(invited.member_id)
    clock.move(0.2)
    assert clock.join(late.member_id).result().error == UNKNOWN


async def test_a_new_member_makes_all_join_again(clock: Clock) -> None:
    """The others hear of it by their heartbeats; the generation grows; the shares of before count no more."""
    ids = clock.stable(2)
    newcomer = clock.join()
    assert clock.group.state is State.PREPARING
    assert clock.beat(*ids) == [REBALANCE] * 2
    assert clock.sync(ids[0]).result().error == REBALANCE
    again = [clock.join(one) for one in ids]
    assert newcomer.result().generation == 2
    assert {future.result().leader for future in again} == {ids[0]}
    assert clock.group.check(ids[0], 1) == ILLEGAL


async def test_a_silent_member_is_out_after_its_session_timeout(clock: Clock) -> None:
    """The others share out anew; it is told that it is unknown."""
    ids = clock.stable(3)
    clock.move(9.0)
    clock.beat(*ids[1:])
    assert clock.move(1.0) == [ids[0]]
    assert clock.beat(*ids) == [UNKNOWN, REBALANCE, REBALANCE]
    again = [clock.join(one) for one in ids[1:]]
    assert {future.result().leader for future in again} == {ids[1]}


async def test_who_does_not_join_again_in_time_is_out(clock: Clock) -> None:
    """It lives, by its heartbeats, but the others wait no longer than the rebalance timeout."""
    ids = clock.stable(2)
    joined = clock.join(ids[0], protocols=(Protocol("range", b"new"),))
    for _ in range(29):
        clock.move(1.0)
        clock.beat(ids[1])
    assert not joined.done()
    clock.move(1.0)
    assert joined.result().error == 0
    assert list(clock.group.members) == [ids[0]]


async def test_a_leader_that_shares_nothing_out_is_out(clock: Clock) -> None:
    """It lives, but the others wait no longer than the rebalance timeout."""
    waiting = [clock.join() for _ in range(2)]
    clock.move(groups.INITIAL_DELAY_S)
    leader, other = (future.result().member_id for future in waiting)
    synced = clock.sync(other)
    for _ in range(31):
        clock.move(1.0)
        clock.beat(leader)
    assert synced.result().error == REBALANCE
    assert clock.beat(leader) == [UNKNOWN]


async def test_a_member_whose_connection_closed_while_it_joined(clock: Clock) -> None:
    """It holds the others up until its session is over, not longer."""
    ids = clock.stable(1)
    gone = clock.join()
    again = clock.join(ids[0])
    assert gone.done()
    newcomer = clock.join()
    newcomer.cancel()
    waiting = clock.join(ids[0], protocols=(Protocol("range", b"new"),))
    assert not waiting.done()
    clock.move(10.0)
    clock.move(0.1)
    assert waiting.done()
    assert again.done()


async def test_leaving(clock: Clock) -> None:
    """The rest share out anew at once; the last one leaves nothing behind; twice is an error."""
    ids = clock.stable(2)
    assert clock.group.leave(ids[0], None, clock.now) == 0
    assert clock.group.leave(ids[0], None, clock.now) == UNKNOWN
    assert clock.beat(ids[1]) == [REBALANCE]
    assert clock.group.leave(ids[1], None, clock.now) == 0
    assert clock.group.is_needless
    assert clock.group.state is State.EMPTY


async def test_the_same_instance_again_replaces_the_one_before(clock: Clock) -> None:
    """A consumer that was started anew (KIP-345); what still speaks for the old one is fenced off."""
    first = clock.join(instance_id="a")
    second = clock.join(instance_id="a")
    assert first.result().error == FENCED
    clock.move(groups.INITIAL_DELAY_S)
    assert list(clock.group.members) == [second.result().member_id]
    assert clock.group.leave("", "a", clock.now) == 0
    assert clock.group.is_needless


async def test_members_that_do_not_fit_together(clock: Clock) -> None:
    """No protocol in common, none at all, or another kind of group."""
    clock.stable(1)
    assert clock.join(protocols=(Protocol("other", b""),)).result().error == INCONSISTENT
    assert clock.join(protocols=()).result().error == INCONSISTENT
    assert clock.join(protocol_type="connect").result().error == INCONSISTENT
    assert clock.group.state is State.STABLE


async def test_a_group_that_is_full(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with an id on its way count."""
    monkeypatch.setattr(groups, "MEMBERS_MAX", 2)
    clock.stable(1)
    assert clock.join(invite=True).result().error == ID_REQUIRED
    assert clock.join(invite=True).result().error == FULL


async def test_committing(clock: Clock) -> None:
    """Members of the present generation may; outsiders only while there are none."""
    assert clock.group.may_commit("", -1, clock.now) == 0
    ids = clock.stable(1)
    assert clock.group.may_commit(ids[0], 1, clock.now) == 0
    assert clock.group.may_commit("", -1, clock.now) == UNKNOWN
    assert clock.group.may_commit(ids[0], 0, clock.now) == ILLEGAL
    clock.join(ids[0])
    assert clock.group.state is State.COMPLETING
    assert clock.group.may_commit(ids[0], 2, clock.now) == REBALANCE
