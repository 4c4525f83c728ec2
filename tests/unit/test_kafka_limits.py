"""What a slow or hostile client meets at the Kafka endpoint, and that the others notice nothing."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.ingest import limits
from gateway.kafka import wire
from tests.support.certificates import Authority
from tests.support.gateway import until
from tests.support.kafka_endpoint import STREAM, RunningEndpoint, running_endpoint
from tests.support.kafka_wire import WireClient, request

FETCH = {"replica_id": -1, "min_bytes": 1, "isolation_level": 0, "forgotten_topics_data": []}


def _fetch(offset: int, *, wait_ms: int = 0, bytes_max: int = 2**24) -> dict[str, Any]:
    partitions = [{"partition": 0, "fetch_offset": offset, "partition_max_bytes": bytes_max}]
    wait = timedelta(milliseconds=wait_ms)
    return {**FETCH, "max_wait": wait, "max_bytes": bytes_max, "topics": [{"topic": STREAM, "partitions": partitions}]}


def _statistics(running: RunningEndpoint, name: str) -> int:
    found: int = running.endpoint.statistics().get(name, 0)
    return found


async def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    """After transfer_timeout; meanwhile another one is served, and what it left open is closed."""
    async with running_endpoint(tmp_path / "data", transfer_timeout="1s") as running:
        await running.record([bytes(2**20)] * 12)
        slow = WireClient(running.port)
        slow.socket.sendall(request(wire.FETCH, 11, _fetch(0)))
        with WireClient(running.port) as other:
            answer = await asyncio.to_thread(lambda: other.call(wire.FETCH, 11, **_fetch(0)))
            assert len(answer.responses[0].partitions[0].records) > 10 * 2**20
        await until(lambda: _statistics(running, "slow_clients") == 1, "it is cut off")
        slow.socket.close()
        assert "did not take a response" in str(running.events.named("connection closed")[0]["cause"])


async def test_the_end_of_a_response_waits_for_nothing(tmp_path: Path) -> None:
    """TCP_NODELAY: what is smaller than a packet would wait for the client's acknowledgement, 40 ms."""
    async with running_endpoint(tmp_path / "data") as running:
        with WireClient(running.port):
            await until(lambda: _statistics(running, "connections") == 1, "it has come in")
            assert running.endpoint._server is not None
            (connection,) = running.endpoint._server._connections
            assert connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_silent_client_is_cut_off(tmp_path: Path) -> None:
    """After idle_timeout, whether it sends nothing or half a request."""
    async with running_endpoint(tmp_path / "data", idle_timeout="1s") as running:

        def use() -> None:
            with WireClient(running.port) as silent, WireClient(running.port) as half:
                half.socket.sendall(request(wire.METADATA, 1, {"topics": None})[:-3])
                assert silent.is_closed
                assert half.is_closed

        await asyncio.to_thread(use)
        assert _statistics(running, "timeouts") == 2


@pytest.mark.parametrize("size", [-1, 0, 2**20, 2**31 - 1])
async def test_a_request_of_a_size_that_is_not_allowed(tmp_path: Path, size: int) -> None:
    """It is refused by its length alone, before any of it is kept."""
    async with running_endpoint(tmp_path / "data", max_request="64KiB") as running:

        def use() -> None:
            with WireClient(running.port) as client:
                client.socket.sendall(struct.pack(">i", size))
                assert client.is_closed

        await asyncio.to_thread(use)
        assert _statistics(running, "protocol_errors") == 1


async def test_large_requests_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients together keep no more than that. Who only reads is served meanwhile; who dawdles is cut off."""
    monkeypatch.setattr(limits, "KAFKA_REQUESTS_BYTES", 2**20)
    async with running_endpoint(tmp_path / "data", transfer_timeout="1s") as running:
        clients = [WireClient(running.port) for _ in range(3)]
        for client in clients[:2]:
            await asyncio.to_thread(client.socket.sendall, struct.pack(">i", 700_000) + bytes(600_000))
        await until(lambda: _statistics(running, "requests_bytes") == 700_000, "one has room, the other waits")
        answer = await asyncio.to_thread(lambda: clients[2].call(wire.METADATA, 1, topics=None))
        assert answer.brokers
        await until(lambda: _statistics(running, "timeouts") == 2, "the first is cut off, then the second")
        await until(lambda: _statistics(running, "requests_bytes") == 0, "all is given back")
        for client in clients:
            client.socket.close()


async def test_connections_count_before_their_handshakes(tmp_path: Path) -> None:
    """Those that never begin one are as many as any, and are cut off after connect_timeout."""
    certificate, key = Authority(tmp_path / "certificates").issue("gateway")
    settings = {"tls_cert": str(certificate), "tls_key": str(key), "connect_timeout": "1s", "connections_max": 2}
    async with running_endpoint(tmp_path / "data", **settings) as running:
        first, second, third = (WireClient(running.port) for _ in range(3))
        assert await asyncio.to_thread(lambda: third.is_closed)
        assert await asyncio.to_thread(lambda: first.is_closed)
        await until(lambda: _statistics(running, "handshakes_failed") == 2, "both are cut off")
        for client in (first, second, third):
            client.socket.close()
        assert _statistics(running, "refused") == 1


async def test_more_connections_than_allowed_are_closed(tmp_path: Path) -> None:
    """At once, and counted; when one of the others goes there is room again."""
    async with running_endpoint(tmp_path / "data", connections_max=2) as running:
        first, second, third = (WireClient(running.port) for _ in range(3))
        assert await asyncio.to_thread(lambda: third.is_closed)
        first.socket.close()
        await until(lambda: _statistics(running, "connections") == 1, "one is gone")
        with WireClient(running.port) as fourth:
            assert (await asyncio.to_thread(lambda: fourth.call(wire.API_VERSIONS, 0))).error_code == 0
        second.socket.close()
        third.socket.close()
        assert _statistics(running, "refused") == 1


async def test_noise_closes_connections_and_nothing_else(tmp_path: Path) -> None:
    """Damaged requests of every API: answered or refused, never a fault of ours."""
    source = random.Random(7)
    async with running_endpoint(tmp_path / "data", produce=["orders"]) as running:
        await running.record([b"value"])

        def use() -> None:
            for _ in range(400):
                api = source.choice(list(wire.VERSIONS))
                version = source.randint(*wire.VERSIONS[api])
                head = struct.pack(">hhih", api, version, 7, 0) + (b"\0" if wire.is_flexible(api, version) else b"")
                body = bytearray(source.randbytes(source.randint(0, 60)))
                for at in range(0, len(body), 3):
                    body[at] = 0
                with WireClient(running.port) as client:
                    client.socket.sendall(wire.framed(head + bytes(body)))
                    client.socket.settimeout(0.02)
                    try:
                        client.socket.recv(100)
                    except TimeoutError:
                        continue

        await asyncio.to_thread(use)
        assert _statistics(running, "faults") == 0
        with WireClient(running.port) as client:
            answer = await asyncio.to_thread(lambda: client.call(wire.FETCH, 11, **_fetch(0)))
        assert answer.responses[0].partitions[0].high_watermark == 1


async def test_a_waiting_fetch_ends_with_the_next_record(tmp_path: Path) -> None:
    """It waits for what is durable, and for no longer than it asked to."""
    async with running_endpoint(tmp_path / "data") as running:
        await running.record([b"first"])
        with WireClient(running.port) as client:
            waiting = asyncio.create_task(
                asyncio.to_thread(lambda: client.call(wire.FETCH, 12, **_fetch(1, wait_ms=15_000)))
            )
            await until(lambda: _statistics(running, "fetches_waiting") == 1, "the fetch waits")
            await running.record([b"second"])
            found = (await waiting).responses[0].partitions[0]
            assert (found.high_watermark, b"second" in bytes(found.records)) == (2, True)
            empty = await asyncio.to_thread(lambda: client.call(wire.FETCH, 12, **_fetch(2, wait_ms=50)))
            assert not empty.responses[0].partitions[0].records


async def test_a_client_that_goes_away_while_it_waits(tmp_path: Path) -> None:
    """Nothing of it is left."""
    async with running_endpoint(tmp_path / "data") as running:
        await running.record([b"first"])
        client = WireClient(running.port)
        client.socket.sendall(request(wire.FETCH, 12, _fetch(1, wait_ms=60_000)))
        await until(lambda: _statistics(running, "fetches_waiting") == 1, "the fetch waits")
        client.socket.close()
        await until(lambda: _statistics(running, "connections") == 0, "it is forgotten")
        assert _statistics(running, "fetches_waiting") == 0


async def test_a_fetch_holds_no_more_than_it_may(tmp_path: Path) -> None:
    """The first batch whole, however large; no second one beyond the maximum."""
    async with running_endpoint(tmp_path / "data") as running:
        for _ in range(4):
            await running.record([bytes(300_000)])
        with WireClient(running.port) as client:

            def records(bytes_max: int) -> int:
                answer = client.call(wire.FETCH, 11, **_fetch(0, bytes_max=bytes_max))
                return len(answer.responses[0].partitions[0].records)

            sizes = await asyncio.to_thread(lambda: [records(1), records(350_000), records(650_000)])
        assert [size // 300_000 for size in sizes] == [1, 1, 2]


@pytest.mark.parametrize("piece", [1, 3, 10_000])
async def test_requests_may_come_in_any_pieces(tmp_path: Path, piece: int) -> None:
    """A byte at a time or many requests at once: each is answered, in order."""
    async with running_endpoint(tmp_path / "data", produce=["orders"]) as running:
        await running.record([b"value"])
        asked = [
            (wire.METADATA, 9, {"topics": None, "include_topic_authorized_operations": False,
                                "include_cluster_authorized_operations": False}),
            (wire.FETCH, 12, _fetch(0)), (wire.API_VERSIONS, 0, {}), (wire.FETCH, 4, _fetch(0)),
            (wire.INIT_PRODUCER_ID, 4, {"transactional_id": None, "transaction_timeout": timedelta(seconds=1)}),
        ] * 5  # fmt: skip
        data = b"".join(request(api, version, values) for api, version, values in asked)

        def use() -> None:
            with WireClient(running.port) as client:
                for at in range(0, len(data), piece):
                    client.socket.sendall(data[at : at + piece])
                for api, version, _ in asked:
                    client.response(api, version)

        await asyncio.to_thread(use)
        assert _statistics(running, "requests") == len(asked)
