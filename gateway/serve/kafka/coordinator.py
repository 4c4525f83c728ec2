"""The requests of consumer groups: joining, sharing out, committing offsets.

Everything here runs on the endpoint's event loop; only the journal's writes are on a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from kio.schema.errors import ErrorCode

from gateway.kafka import wire
from gateway.serve.kafka import groups
from gateway.serve.kafka.catalog import PARTITION, Catalog
from gateway.serve.kafka.commits import COMMITS_MAX, METADATA_BYTES_MAX, Commit, Committer, Fact, fact_of
from gateway.serve.kafka.groups import Group, Join, Joined, Protocol
from gateway.serve.kafka.waiting import Disk

# Offsets of a group that nobody has been in, or committed for, for so long are forgotten: Kafka's own default.
OFFSETS_KEPT_S = 7 * 86_400
# How often groups are told that time has passed, and forgotten offsets are looked for.
TICK_S = 0.1
EXPIRY_INTERVAL_S = 600.0

Values = Mapping[str, Any]


class Coordinator:
    """All groups. `handlers` says which request goes where."""

    def __init__(self, catalog: Catalog, committer: Committer, disk: Disk) -> None:
        self._catalog = catalog
        self._committer = committer
        self._journal = committer.journal
        self._disk = disk
        self._groups: dict[str, Group] = {}
        self._producer_ids = 0
        self._ticking: asyncio.Task[None] | None = None
        self.commits = 0
        self.failed_commits = 0
        self.members_lost = 0

    def start(self) -> None:
        """Let time pass."""
        self._ticking = asyncio.get_running_loop().create_task(self._tick(), name="kafka-groups")

    async def stop(self) -> None:
        """Answer nobody any more; what was committed is on the disk."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        await self._committer.finish()

    def statistics(self) -> dict[str, int]:
        """Counters and the present state."""
        return {
            "groups": len(self._groups),
            "group_members": sum(len(group.members) for group in self._groups.values()),
            "group_members_lost": self.members_lost,
            "offsets_committed": self.commits,
            "commits_failed": self.failed_commits,
        }

    @property
    def handlers(self) -> dict[int, Callable[[wire.Header, Any], Any]]:
        """By API: a coroutine function that gives the response's fields."""
        return {
            wire.JOIN_GROUP: self._join,
            wire.SYNC_GROUP: self._sync,
            wire.HEARTBEAT: self._heartbeat,
            wire.LEAVE_GROUP: self._leave,
            wire.OFFSET_COMMIT: self._commit,
            wire.OFFSET_FETCH: self._fetch,
        }

    # -- time

    async def _tick(self) -> None:
        next_expiry = time.monotonic() + EXPIRY_INTERVAL_S
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for group in tuple(self._groups.values()):
                self.members_lost += len(group.tick(now))
                if group.is_needless:
                    del self._groups[group.name]
            if now >= next_expiry:
                next_expiry = now + EXPIRY_INTERVAL_S
                await self._forget_old()

    async def _forget_old(self) -> None:
        oldest = int(time.time()) - OFFSETS_KEPT_S
        old = [
            group
            for group, topics in self._journal.commits.items()
            if group not in self._groups and all(commit.time < oldest for commit in topics.values())
        ]
        if old:
            await self._committer.write([{"group": group} for group in old])

    # -- members

    async def _join(self, header: wire.Header, request: Any) -> Values:
        asked = _asked(header, request)
        error = self._join_error(request.group_id, asked)
        if error:
            return _join_response(header, Joined(error, asked.member_id))
        group = self._groups.get(request.group_id)
        if group is None:
            group = self._groups[request.group_id] = Group(request.group_id)
        joined = await group.join(asked, time.monotonic(), invite=header.version >= 4)
        return _join_response(header, joined)

    def _join_error(self, group_id: str, asked: Join) -> int:
        if not group_id or len(group_id.encode()) > groups.GROUP_ID_BYTES_MAX:
            return ErrorCode.invalid_group_id
        if not groups.SESSION_TIMEOUT_MIN_S <= asked.session_timeout_s <= groups.SESSION_TIMEOUT_MAX_S:
            return ErrorCode.invalid_session_timeout
        if sum(len(one.name) + len(one.metadata) for one in asked.protocols) > groups.METADATA_BYTES_MAX:
            return ErrorCode.inconsistent_group_protocol
        if group_id not in self._groups and len(self._groups) >= groups.GROUPS_MAX:
            return ErrorCode.coordinator_not_available
        return ErrorCode.none

    async def _sync(self, header: wire.Header, request: Any) -> Values:
        group = self._groups.get(request.group_id)
        if group is None:
            return {"error_code": ErrorCode.unknown_member_id, "assignment": b""}
        shares = [(one.member_id, one.assignment) for one in request.assignments]
        synced = await group.sync(request.member_id, request.generation_id, shares, time.monotonic())
        return {
            "error_code": ErrorCode(synced.error),
            "assignment": synced.assignment,
            "protocol_type": synced.protocol_type,
            "protocol_name": synced.protocol,
        }

    async def _heartbeat(self, header: wire.Header, request: Any) -> Values:
        group = self._groups.get(request.group_id)
        if group is None:
            return {"error_code": ErrorCode.unknown_member_id}
        error = group.heartbeat(request.member_id, request.generation_id, time.monotonic())
        return {"error_code": ErrorCode(error)}

    async def _leave(self, header: wire.Header, request: Any) -> Values:
        group = self._groups.get(request.group_id)
        if header.version < 3:
            leaving = [(request.member_id, None)]
        else:
            leaving = [(one.member_id, one.group_instance_id) for one in request.members]
        outcomes = [
            (member_id, instance_id, self._left(group, member_id, instance_id)) for member_id, instance_id in leaving
        ]
        return {
            "error_code": ErrorCode(outcomes[0][2]) if header.version < 3 else ErrorCode.none,
            "members": [
                {"member_id": member_id, "group_instance_id": instance_id, "error_code": ErrorCode(error)}
                for member_id, instance_id, error in outcomes
            ],
        }

    @staticmethod
    def _left(group: Group | None, member_id: str, instance_id: str | None) -> int:
        if group is None:
            return ErrorCode.unknown_member_id
        return group.leave(member_id, instance_id, time.monotonic())

    # -- offsets

    async def _commit(self, header: wire.Header, request: Any) -> Values:
        error = self._commit_error(request)
        taken: list[Fact] = []
        answers: dict[str, list[tuple[int, int]]] = {}
        for topic in request.topics:
            known = await self._disk.run(self._catalog.topic, topic.name) is not None
            for one in topic.partitions:
                code = error or _offset_error(one, known=known)
                if not code:
                    commit = Commit(one.committed_offset, one.committed_metadata or "", int(time.time()))
                    taken.append(fact_of(request.group_id, topic.name, commit))
                answers.setdefault(topic.name, []).append((one.partition_index, code))
        failed = bool(taken) and not await self._committer.write(taken)
        self.failed_commits += failed
        self.commits += 0 if failed else len(taken)
        return {"topics": [_commit_answer(name, partitions, failed=failed) for name, partitions in answers.items()]}

    def _commit_error(self, request: Any) -> int:
        if not request.group_id or len(request.group_id.encode()) > groups.GROUP_ID_BYTES_MAX:
            return ErrorCode.invalid_group_id
        generation = request.generation_id_or_member_epoch
        group = self._groups.get(request.group_id)
        if group is not None:
            error = group.may_commit(request.member_id, generation, time.monotonic())
        else:
            error = ErrorCode.none if generation < 0 else ErrorCode.illegal_generation
        if not error and request.group_id not in self._journal.commits and self._journal.count >= COMMITS_MAX:
            return ErrorCode.coordinator_not_available
        return error

    async def new_producer_ids(self, count: int) -> int | None:
        """The first of so many producer ids that nobody ever got; None if the disk does not take it."""
        first = self._producer_ids = max(self._producer_ids, self._journal.producer_ids)
        self._producer_ids += count
        return first if await self._committer.write([{"producer_ids": self._producer_ids}]) else None

    async def _fetch(self, header: wire.Header, request: Any) -> Values:
        commits = self._journal.commits.get(request.group_id, {})
        if request.topics is None:
            asked = dict.fromkeys(commits, (PARTITION,))
        else:
            asked = {topic.name: topic.partition_indexes for topic in request.topics}
        return {
            "error_code": ErrorCode.none,
            "topics": [
                {"name": name, "partitions": [_committed(commits.get(name), number) for number in numbers]}
                for name, numbers in asked.items()
            ],
        }


def _asked(header: wire.Header, request: Any) -> Join:
    session_s = wire.milliseconds(request.session_timeout) / 1_000
    rebalance_s = wire.milliseconds(request.rebalance_timeout) / 1_000
    return Join(
        request.member_id,
        getattr(request, "group_instance_id", None),
        header.client_id,
        session_s,
        min(rebalance_s if rebalance_s >= 0 else session_s, groups.REBALANCE_TIMEOUT_MAX_S),
        request.protocol_type,
        tuple(Protocol(one.name, one.metadata) for one in request.protocols),
    )


def _join_response(header: wire.Header, joined: Joined) -> Values:
    return {
        "error_code": ErrorCode(joined.error),
        "generation_id": joined.generation,
        "protocol_type": joined.protocol_type,
        # Nullable since version 7.
        "protocol_name": joined.protocol if joined.protocol is not None or header.version >= 7 else "",
        "leader": joined.leader,
        "member_id": joined.member_id,
        "members": [
            {"member_id": member_id, "group_instance_id": instance_id, "metadata": metadata}
            for member_id, instance_id, metadata in joined.members
        ],
    }


def _offset_error(one: Any, *, known: bool) -> int:
    if not known or one.partition_index != PARTITION:
        return ErrorCode.unknown_topic_or_partition
    if len((one.committed_metadata or "").encode()) > METADATA_BYTES_MAX:
        return ErrorCode.offset_metadata_too_large
    return ErrorCode.none if one.committed_offset >= 0 else ErrorCode.invalid_request


def _commit_answer(name: str, partitions: list[tuple[int, int]], *, failed: bool) -> Values:
    """A commit that the disk did not take may be tried again: that is what this error tells clients."""
    return {
        "name": name,
        "partitions": [
            {
                "partition_index": number,
                "error_code": ErrorCode(code or (ErrorCode.coordinator_not_available if failed else 0)),
            }
            for number, code in partitions
        ],
    }


def _committed(commit: Commit | None, number: int) -> Values:
    """-1: nothing was committed, which is no error."""
    found = commit if number == PARTITION else None
    return {
        "partition_index": number,
        "committed_offset": found.offset if found is not None else -1,
        "committed_leader_epoch": -1,
        "metadata": found.metadata if found is not None else "",
        "error_code": ErrorCode.none,
    }
