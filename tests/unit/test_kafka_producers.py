"""Idempotent producers: what is sent again is not recorded again, across restarts and in the middle of a batch."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch

import gateway
from gateway.kafka import wire
from gateway.serve.kafka.producers import Outcome, Position, StreamProducers, Verdict, parse
from tests.support.compressed import CODECS, compressed, with_records
from tests.support.kafka_endpoint import RunningEndpoint, running_endpoint
from tests.support.kafka_wire import WireClient, request

OUT_OF_ORDER, OLD_EPOCH, CORRUPT, COMPRESSED, TOO_LARGE, INVALID_TXN = 45, 47, 2, 76, 10, 48
OTHER_FORMAT = 43


def _batch(values: Sequence[bytes], sequence: int = -1, *, producer_id: int = -1, epoch: int = -1) -> bytes:
    """As a producer sends it; its CRC covers the producer's fields."""
    data = bytearray(batch.encode([(1_000, b"key", value, []) for value in values]))
    struct.pack_into(">qhi", data, 43, producer_id, epoch, sequence)
    return _sealed(data)


def _sealed(data: bytearray) -> bytes:
    struct.pack_into(">I", data, 17, batch.crc32c(data[21:]))
    struct.pack_into(">i", data, 12, -1)  # producers do not know the leader's epoch
    return bytes(data)


async def _produce(running: RunningEndpoint, records: bytes | None, **more: Any) -> tuple[int, int]:
    """Error and offset."""
    values: dict[str, Any] = {
        "transactional_id": None, "acks": -1, "timeout": timedelta(seconds=10),
        "topic_data": [{"name": "orders", "partition_data": [{"index": 0, "records": records}]}], **more,
    }  # fmt: skip

    def call() -> Any:
        with WireClient(running.port) as client:
            return client.call(wire.PRODUCE, 9, **values)

    found = (await asyncio.to_thread(call)).responses[0].partition_responses[0]
    return found.error_code, found.base_offset


def _values(data: Path) -> list[bytes | None]:
    return [record.value for record in gateway.open(data)["orders"].read()]


async def test_a_batch_that_is_sent_again(tmp_path: Path) -> None:
    """It gets the offset that it got the first time, and is recorded once; one that is missing is noticed."""
    async with running_endpoint(tmp_path / "data", produce=["orders"]) as running:

        async def send(values: Sequence[bytes], sequence: int, epoch: int = 0) -> tuple[int, int]:
            return await _produce(running, _batch(values, sequence, producer_id=7, epoch=epoch))

        assert await send([b"0", b"1"], 0) == (0, 0)
        assert await send([b"2"], 2) == (0, 2)
        assert await send([b"0", b"1"], 0) == (0, 0)
        assert await send([b"2"], 2) == (0, 2)
        assert await send([b"4"], 4) == (OUT_OF_ORDER, -1)
        assert await send([b"3"], 0, epoch=1) == (0, 3)
        assert await send([b"x"], 3) == (OLD_EPOCH, -1)
        assert await send([b"x"], 5, epoch=2) == (OUT_OF_ORDER, -1)
        assert running.endpoint.statistics()["batches_sent_again"] == 2
    assert _values(tmp_path / "data") == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("checkpoint", [True, False])
async def test_the_state_comes_back_with_the_log(tmp_path: Path, checkpoint: bool) -> None:
    """After a restart, with its checkpoint or without it; also of a batch that a crash cut in its middle."""
    data = tmp_path / "data"
    async with running_endpoint(data, produce=["orders"]) as running:
        assert await _produce(running, _batch([b"0", b"1"], 0, producer_id=7, epoch=3)) == (0, 0)
        assert await _produce(running, _batch([b"other"], 0, producer_id=8, epoch=0)) == (0, 2)
        assert await _produce(running, _batch([b"2", b"3"], 2, producer_id=7, epoch=3)) == (0, 3)
    if not checkpoint:
        (data / "kafka" / "producers.json").unlink()
    async with running_endpoint(data, produce=["orders"]) as running:
        assert await _produce(running, _batch([b"2", b"3"], 2, producer_id=7, epoch=3)) == (0, 3)
        assert await _produce(running, _batch([b"3", b"4", b"5"], 3, producer_id=7, epoch=3)) == (0, 4)
        assert await _produce(running, _batch([b"8"], 8, producer_id=7, epoch=3)) == (OUT_OF_ORDER, -1)
        assert await _produce(running, _batch([b"x"], 2, producer_id=7, epoch=2)) == (OLD_EPOCH, -1)
    assert _values(data) == [b"0", b"1", b"other", b"2", b"3", b"4", b"5"]


async def test_what_is_not_taken(tmp_path: Path) -> None:
    """Each with the error that tells the client why; nothing of it is recorded."""
    flipped = bytearray(_batch([b"value"]))
    flipped[-1] ^= 1
    plain = batch.encode([(0, None, b"v" * 100, [])] * 3)
    unknown, damaged = with_records(plain, 5, b"x"), with_records(plain, 1, b"no gzip")
    bomb = with_records(plain, 4, CODECS["zstd"][1](bytes(21 * 2**20)))
    unsound = with_records(plain, 1, CODECS["gzip"][1](plain[batch.HEADER_BYTES :] + b"x"))
    transactional = bytearray(batch.encode([(0, None, b"v", [])]))
    transactional[22] |= 0x10
    moved = bytearray(_batch([b"value"]))
    moved[7] = 1
    async with running_endpoint(tmp_path / "data", produce=["orders"], max_request="20MiB") as running:
        cases = [
            (None, OTHER_FORMAT), (b"", OTHER_FORMAT), (bytes(100), OTHER_FORMAT), (bytes(flipped), CORRUPT),
            (_batch([b"1"]) + _batch([b"2"]), CORRUPT), (_batch([b"1"])[:-1], CORRUPT), (bytes(moved), CORRUPT),
            (unknown, COMPRESSED), (damaged, CORRUPT), (bomb, TOO_LARGE), (unsound, CORRUPT),
            (_sealed(transactional), INVALID_TXN), (_batch([bytes(16 * 2**20 + 1)]), TOO_LARGE),
        ]  # fmt: skip
        for records, error in cases:
            assert await _produce(running, records) == (error, -1), records and records[:20]
        assert (await _produce(running, _batch([b"v"]), transactional_id="t"))[0] == 53
        assert running.endpoint.statistics()["records"] == 0
        assert running.endpoint.statistics().get("faults", 0) == 0


@pytest.mark.parametrize("codec", CODECS)
async def test_compressed_batches_are_recorded_without(tmp_path: Path, codec: str) -> None:
    """Also sent again, and by several at once; what reads the log needs no codec."""
    data = tmp_path / "data"
    async with running_endpoint(data, produce=["orders"]) as running:
        first = compressed(_batch([b"0", b"1" * 5_000], 0, producer_id=7, epoch=0), codec)
        assert await _produce(running, first) == (0, 0)
        assert await _produce(running, first) == (0, 0)
        found = await asyncio.gather(*(_produce(running, compressed(_batch([b"2"] * 3), codec)) for _ in range(4)))
        assert sorted(found) == [(0, 2 + 3 * number) for number in range(4)]
    assert _values(data) == [b"0", b"1" * 5_000, *[b"2"] * 12]


async def test_a_batch_larger_than_the_ring(tmp_path: Path) -> None:
    """It goes through in pieces, in order, however much of it waits."""
    values = [bytes([number]) * 2**20 for number in range(15)]
    async with running_endpoint(tmp_path / "data", produce=["orders"], max_request="20MiB") as running:
        found = await asyncio.gather(*(_produce(running, _batch(values)) for _ in range(6)))
    assert sorted(found) == [(0, 15 * number) for number in range(6)]
    assert _values(tmp_path / "data") == values * 6


async def test_nobody_forges_what_the_gateway_says(tmp_path: Path) -> None:
    """Headers of the gateway's own get another name: no gap is invented, and no other producer's state is moved."""
    headers = [
        ("gateway.gap", b"reason=disk count=1"),
        ("user.gateway.x", b""),
        ("gateway.producer", b"7:0:99"),
        ("mine", b"1"),
    ]
    forged = _sealed(bytearray(batch.encode([(1_000, None, None, headers)])))
    async with running_endpoint(tmp_path / "data", produce=["orders"]) as running:
        assert await _produce(running, forged) == (0, 0)
    async with running_endpoint(tmp_path / "data", produce=["orders"]) as running:
        assert await _produce(running, _batch([b"first"], 0, producer_id=7, epoch=0)) == (0, 1)
    record = next(iter(gateway.open(tmp_path / "data")["orders"].read()))
    assert record.gap is None
    names = [name for name, _ in record.headers]
    assert names == ["user.gateway.gap", "user.user.gateway.x", "user.gateway.producer", "mine", "source_time"]


async def test_without_an_answer(tmp_path: Path) -> None:
    """acks = 0: the records are taken, and the next request on the connection is answered."""
    async with running_endpoint(tmp_path / "data", produce=["orders"]) as running:
        topics = [{"name": "orders", "partition_data": [{"index": 0, "records": _batch([b"v"])}]}]

        def use() -> None:
            values = {"transactional_id": None, "acks": 0, "timeout": timedelta(seconds=1), "topic_data": topics}
            with WireClient(running.port) as client:
                client.socket.sendall(request(wire.PRODUCE, 9, values))
                assert client.call(wire.API_VERSIONS, 0).error_code == 0

        await asyncio.to_thread(use)
    assert _values(tmp_path / "data") == [b"v"]


async def test_a_client_at_fault_leaves_nothing_of_what_is_due(tmp_path: Path) -> None:
    """Its batches are recorded; answers that nobody takes any more are given up, not forgotten: that would warn."""
    topics = [{"name": "orders", "partition_data": [{"index": 0, "records": _batch([b"v"])}]}]
    values = {"transactional_id": None, "acks": -1, "timeout": timedelta(seconds=10), "topic_data": topics}
    async with running_endpoint(tmp_path / "data", produce=["orders"]) as running:

        def use() -> None:
            with WireClient(running.port) as client:
                client.socket.sendall(request(wire.PRODUCE, 9, values) * 5 + wire.framed(b"nonsense"))
                while client.socket.recv(1_000):
                    continue

        await asyncio.to_thread(use)
        gc.collect()
        assert running.endpoint.statistics()["protocol_errors"] == 1
    assert _values(tmp_path / "data") == [b"v"] * 5


def test_sequence_numbers_begin_anew_after_the_largest() -> None:
    """2^31 - 1 is followed by 0, for what comes next as for what comes again."""
    producers = StreamProducers()
    last = 2**31 - 1
    producers.restored(Position(1, 0, last - 1), 10)
    producers.restored(Position(1, 0, last), 11)
    assert producers.check(Position(1, 0, 0), 5) == Verdict()
    producers.restored(Position(1, 0, 0), 12)
    assert producers.check(Position(1, 0, last), 2).known == Outcome(0, 11)
    assert producers.check(Position(1, 0, last), 4)[1:3] == (2, 11)
    assert producers.check(Position(1, 0, 2), 1).error == OUT_OF_ORDER


async def test_a_failed_batch_may_come_again() -> None:
    """What was not recorded does not count, nor what came behind it."""
    producers = StreamProducers()
    outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    producers.restored(Position(1, 0, 4), 10)
    producers.sent(Position(1, 0, 5), 3, outcome)
    producers.sent(Position(1, 0, 8), 2, outcome)
    assert producers.check(Position(1, 0, 5), 3).known is outcome
    producers.failed(Position(1, 0, 5))
    producers.failed(Position(1, 0, 8))
    assert producers.check(Position(1, 0, 5), 3) == Verdict()
    assert producers.check(Position(1, 0, 8), 2).error == OUT_OF_ORDER


@pytest.mark.parametrize("value", [b"", b"1:2", b"1:2:3:4", b"a:b:c", b"-1:0:0", b"1:2:" + b"9" * 11])
def test_a_header_of_somebody_elses(value: bytes) -> None:
    """It is no place among a producer's records."""
    assert parse(value) is None
