"""Every API in every version that the endpoint advertises, asked and read with kio's schemas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch

from gateway.kafka import wire
from tests.support.kafka_endpoint import STREAM, running_endpoint
from tests.support.kafka_wire import WireClient, request

SECOND = timedelta(seconds=1)
VALUES = [b"one", b"two", b"three"]


def _versions(*apis: int) -> list[tuple[int, int]]:
    return [(api, version) for api in apis for version in range(wire.VERSIONS[api][0], wire.VERSIONS[api][1] + 1)]


async def _asked(data: Path, api: int, use: Callable[[WireClient, int], None], **kafka: Any) -> None:
    """Call `use` with a client and each version of the API, on an endpoint with three records."""
    async with running_endpoint(data, produce=["orders"], **kafka) as running:
        await running.record(VALUES)

        def ask() -> None:
            for _, version in _versions(api):
                with WireClient(running.port) as client:
                    use(client, version)

        await asyncio.to_thread(ask)
        assert running.endpoint.statistics().get("protocol_errors", 0) == 0
        assert running.endpoint.statistics().get("faults", 0) == 0


async def test_api_versions(tmp_path: Path) -> None:
    """All that is offered is said, with the same ranges in every version."""

    def use(client: WireClient, version: int) -> None:
        software = {"client_software_name": "test", "client_software_version": "1"}
        answer = client.call(wire.API_VERSIONS, version, **software)
        assert answer.error_code == 0
        offered = {one.api_key: (one.min_version, one.max_version) for one in answer.api_keys}
        sasl = (wire.SASL_HANDSHAKE, wire.SASL_AUTHENTICATE)
        assert offered == {key: found for key, found in wire.VERSIONS.items() if key not in sasl}

    await _asked(tmp_path / "data", wire.API_VERSIONS, use)


async def test_api_versions_of_an_unknown_version(tmp_path: Path) -> None:
    """A newer client is answered in version 0, with error 35 and what there is (KIP-511)."""
    async with running_endpoint(tmp_path / "data") as running:

        def use() -> None:
            with WireClient(running.port) as client:
                data = bytearray(
                    request(wire.API_VERSIONS, 4, {"client_software_name": "x", "client_software_version": "y"})
                )
                data[6:8] = (99).to_bytes(2, "big")
                client.socket.sendall(data)
                answer = client.response(wire.API_VERSIONS, 0)
                assert answer.error_code == 35
                assert len(answer.api_keys) > 10

        await asyncio.to_thread(use)


async def test_metadata(tmp_path: Path) -> None:
    """All topics, and some by name, those that are not there with an error of their own."""

    def use(client: WireClient, version: int) -> None:
        everything = None if version else []
        answer = client.call(wire.METADATA, version, topics=everything, include_topic_authorized_operations=False,
                             include_cluster_authorized_operations=False)  # fmt: skip
        assert {topic.name for topic in answer.topics} == {STREAM, "orders"}
        port = client.socket.getpeername()[1]
        assert [(one.host, one.port) for one in answer.brokers] == [("127.0.0.1", port)]
        names = [{"name": name, "topic_id": None} for name in (STREAM, "absent")]
        answer = client.call(wire.METADATA, version, topics=names, include_topic_authorized_operations=False,
                             include_cluster_authorized_operations=False)  # fmt: skip
        assert [(topic.name, topic.error_code, len(topic.partitions)) for topic in answer.topics] == [
            (STREAM, 0, 1), ("absent", 3, 0),
        ]  # fmt: skip

    await _asked(tmp_path / "data", wire.METADATA, use)


async def test_list_offsets(tmp_path: Path) -> None:
    """The beginning, the end, a time, and a partition that is not there."""

    def use(client: WireClient, version: int) -> None:
        def ask(timestamp: int, topic: str = STREAM, partition: int = 0) -> tuple[int, int]:
            partitions = [{"partition_index": partition, "timestamp": timestamp}]
            answer = client.call(wire.LIST_OFFSETS, version, replica_id=-1, isolation_level=0,
                                 topics=[{"name": topic, "partitions": partitions}])  # fmt: skip
            found = answer.topics[0].partitions[0]
            return found.error_code, found.offset

        assert [ask(-1), ask(-2), ask(0), ask(2**50)] == [(0, 3), (0, 0), (0, 0), (0, -1)]
        assert [ask(-1, "absent"), ask(-1, STREAM, 1)] == [(3, -1), (3, -1)]
        assert ask(-3)[0] == 0

    await _asked(tmp_path / "data", wire.LIST_OFFSETS, use)


async def test_fetch(tmp_path: Path) -> None:
    """Records from an offset; nothing at the end; errors for what is not there. Headers and bytes as kio reads them."""

    def use(client: WireClient, version: int) -> None:
        places = [(STREAM, 0, 1), (STREAM, 0, 3), (STREAM, 0, 4), (STREAM, 1, 0), ("absent", 0, 0)]
        wanted = [(topic, number, {"fetch_offset": at, "partition_max_bytes": 2**20}) for topic, number, at in places]
        answer = client.call(
            wire.FETCH, version, replica_id=-1, max_wait=timedelta(0), min_bytes=1, max_bytes=2**20, isolation_level=0,
            topics=[
                {"topic": topic, "partitions": [{"partition": number, **place}]}
                for topic, number, place in wanted
            ],
            forgotten_topics_data=[],
        )  # fmt: skip
        found = [one for topic in answer.responses for one in topic.partitions]
        assert [one.error_code for one in found] == [0, 0, 1, 3, 3]
        assert [one.high_watermark for one in found] == [3, 3, 3, -1, -1]
        # Whole batches, from the one on that holds the offset; how many records are in one nobody has promised.
        rows = [row for one in batch.scan(found[0].records)[0] for row in batch.decode(found[0].records, one[0])]
        assert [(row[0], row[3]) for row in rows if row[0] >= 1] == list(enumerate(VALUES))[1:]
        assert not found[1].records

    await _asked(tmp_path / "data", wire.FETCH, use)


async def test_groups(tmp_path: Path) -> None:
    """One member joins, shares out, lives, commits, reads what it committed, and leaves."""

    def use(client: WireClient, version: int) -> None:
        def at_most(api: int) -> int:
            lowest, highest = wire.VERSIONS[api]
            return min(max(version, lowest), highest)

        group = f"group-{version}"
        find = {"key": group, "key_type": 0, "coordinator_keys": [group]}
        found = client.call(wire.FIND_COORDINATOR, at_most(wire.FIND_COORDINATOR), **find)
        assert found.coordinators[0].port if hasattr(found, "coordinators") else found.port
        join = {
            "group_id": group, "session_timeout": 10 * SECOND, "rebalance_timeout": 10 * SECOND, "member_id": "",
            "protocol_type": "consumer", "protocols": [{"name": "range", "metadata": b"m"}],
        }  # fmt: skip
        joined = client.call(wire.JOIN_GROUP, at_most(wire.JOIN_GROUP), **join)
        if joined.error_code == 79:
            joined = client.call(wire.JOIN_GROUP, at_most(wire.JOIN_GROUP), **{**join, "member_id": joined.member_id})
        assert (joined.error_code, joined.leader, len(joined.members)) == (0, joined.member_id, 1)
        member = {"group_id": group, "generation_id": joined.generation_id, "member_id": joined.member_id}
        shares = [{"member_id": joined.member_id, "assignment": b"all"}]
        synced = client.call(wire.SYNC_GROUP, at_most(wire.SYNC_GROUP), **member, assignments=shares)
        assert (synced.error_code, synced.assignment) == (0, b"all")
        assert client.call(wire.HEARTBEAT, at_most(wire.HEARTBEAT), **member).error_code == 0
        _commit(client, at_most, member)
        leave = {"group_id": group, "member_id": joined.member_id, "members": [{"member_id": joined.member_id}]}
        assert client.call(wire.LEAVE_GROUP, at_most(wire.LEAVE_GROUP), **leave).error_code == 0
        assert client.call(wire.HEARTBEAT, at_most(wire.HEARTBEAT), **member).error_code == 25

    await _asked(tmp_path / "data", wire.OFFSET_COMMIT, use)
    await _asked(tmp_path / "more", wire.FIND_COORDINATOR, use)


def _commit(client: WireClient, at_most: Callable[[int], int], member: dict[str, Any]) -> None:
    partitions = [{"partition_index": 0, "committed_offset": 2, "committed_metadata": "here"}]
    committed = client.call(
        wire.OFFSET_COMMIT, at_most(wire.OFFSET_COMMIT), group_id=member["group_id"], member_id=member["member_id"],
        generation_id_or_member_epoch=member["generation_id"],
        topics=[{"name": STREAM, "partitions": partitions}, {"name": "absent", "partitions": partitions}],
    )  # fmt: skip
    assert [topic.partitions[0].error_code for topic in committed.topics] == [0, 3]
    fetched = client.call(
        wire.OFFSET_FETCH, at_most(wire.OFFSET_FETCH), group_id=member["group_id"],
        topics=[{"name": STREAM, "partition_indexes": (0, 1)}],
    )  # fmt: skip
    found = fetched.topics[0].partitions
    assert [(one.committed_offset, one.metadata) for one in found] == [(2, "here"), (-1, "")]


async def test_produce(tmp_path: Path) -> None:
    """A batch is recorded and gets its offset; one for a stream that is not open to producers is refused."""

    def use(client: WireClient, version: int) -> None:
        records = batch.encode([(1_000, None, b"value", [("name", b"text")]), (2_000, b"", None, [])])
        data = [{"index": 0, "records": records}]
        answer = client.call(
            wire.PRODUCE, version, transactional_id=None, acks=-1, timeout=10 * SECOND,
            topic_data=[{"name": "orders", "partition_data": data}, {"name": STREAM, "partition_data": data}],
        )  # fmt: skip
        found = [topic.partition_responses[0] for topic in answer.responses]
        number = version - wire.VERSIONS[wire.PRODUCE][0]
        assert [(one.error_code, one.base_offset) for one in found] == [(0, 2 * number), (29, -1)]

    await _asked(tmp_path / "data", wire.PRODUCE, use)


async def test_init_producer_id(tmp_path: Path) -> None:
    """Everybody gets an id of their own."""
    given: list[int] = []

    def use(client: WireClient, version: int) -> None:
        answer = client.call(wire.INIT_PRODUCER_ID, version, transactional_id=None, transaction_timeout=SECOND)
        assert (answer.error_code, answer.producer_epoch) == (0, 0)
        given.append(answer.producer_id)

    await _asked(tmp_path / "data", wire.INIT_PRODUCER_ID, use)
    await _asked(tmp_path / "data", wire.INIT_PRODUCER_ID, use)
    assert len(set(given)) == len(given)


@pytest.mark.parametrize(("api", "version"), [(wire.FETCH, 13), (wire.PRODUCE, 2), (47, 0)])
async def test_what_is_not_offered_closes_the_connection(tmp_path: Path, api: int, version: int) -> None:
    """A version or an API that is not advertised is a fault of the client's; it is told in the log."""
    async with running_endpoint(tmp_path / "data") as running:

        def use() -> None:
            with WireClient(running.port) as client:
                head = api.to_bytes(2, "big") + version.to_bytes(2, "big") + bytes(4) + b"\xff\xff"
                client.socket.sendall(wire.framed(head + bytes(20)))
                assert client.is_closed

        await asyncio.to_thread(use)
        assert running.endpoint.statistics()["protocol_errors"] == 1
        assert "not among those that are offered" in str(running.events.named("connection closed")[0]["cause"])
