"""Reading ahead of consumers: nothing is left out or held for ever, however they come and go."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gateway_native import batch

from gateway.kafka import wire
from gateway.kafka.client import batches
from gateway.serve.kafka import ahead as module
from gateway.serve.kafka.ahead import Ahead, Found, Wanted
from gateway.serve.kafka.slices import Slice
from gateway.serve.kafka.waiting import Disk
from tests.support.gateway import until
from tests.support.kafka_endpoint import STREAM, running_endpoint
from tests.support.kafka_wire import WireClient

END = 100
STEP = 10


class Log:
    """Records 0 to 99, ten a fetch. Its look-ups can be held up."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(STEP))
        self._path = path
        self.looked: list[int] = []
        self.files: list[Any] = []
        self.may_look = threading.Event()
        self.may_look.set()

    def find(self, wanted: Wanted) -> Found:
        self.may_look.wait()
        self.looked.append(wanted.offset)
        self.files.append(self._path.open("rb", buffering=0))
        return Found(0, 0, END, Slice(self.files[-1], 0, STEP, wanted.offset + STEP, True))

    @property
    def open_files(self) -> int:
        return sum(not file.closed for file in self.files)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """It may look at once."""
    return Log(tmp_path / "log")


@pytest.fixture
async def ahead(log: Log) -> AsyncIterator[Ahead]:
    """Stopped at the end."""
    disk = Disk()
    made = Ahead(log.find, disk)
    yield made
    made.stop()
    log.may_look.set()
    disk.close()
    assert log.open_files == 0


def _wanted(offset: int, topic: str = "orders") -> Wanted:
    return Wanted(topic, 0, offset, STEP)


async def test_a_consumer_that_reads_on_gets_all_up_to_the_end(ahead: Ahead, log: Log) -> None:
    """Each fetch once, in order; what it took is its own to close."""
    ahead.begin(_wanted(20))
    for offset in range(20, END, STEP):
        found = await ahead.take(_wanted(offset))
        assert found is not None
        assert found.records is not None
        assert found.records.next_offset == offset + STEP
        assert not found.records.file.closed
        found.close()
    assert len(ahead) == 0
    assert await ahead.take(_wanted(END)) is None
    assert log.looked == list(range(20, END, STEP))


async def test_who_asks_for_something_else_gets_nothing(ahead: Ahead, log: Log) -> None:
    """Another offset, another size, another topic: these have to be looked up."""
    ahead.begin(_wanted(20))
    for other in (_wanted(30), _wanted(20)._replace(bytes_max=STEP + 1), _wanted(20, "others")):
        assert await ahead.take(other) is None


async def test_consumers_beyond_the_limit_do_without(ahead: Ahead, log: Log) -> None:
    """Those for whom something was looked up keep it."""
    for number in range(module.CONSUMERS_MAX + 5):
        ahead.begin(_wanted(20, f"topic-{number}"))
    assert len(ahead) == module.CONSUMERS_MAX
    assert await ahead.take(_wanted(20, f"topic-{module.CONSUMERS_MAX}")) is None
    found = await ahead.take(_wanted(20, "topic-0"))
    assert found is not None
    found.close()
    assert log.open_files <= module.CONSUMERS_MAX * (module.FETCHES + module.FETCHES_LEFT)


async def test_two_at_the_same_place_leave_nothing_open(ahead: Ahead, log: Log) -> None:
    """One of them has it looked up for itself from there on."""
    ahead.begin(_wanted(20))
    ahead.begin(_wanted(30))
    found = await ahead.take(_wanted(20))
    assert found is not None
    found.close()
    assert len(ahead) == 1


async def test_a_consumer_that_does_not_come_is_forgotten(
    ahead: Ahead, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened for it is closed."""
    monkeypatch.setattr(module, "AGE_S", 0.05)
    ahead.begin(_wanted(20))
    await until(lambda: len(ahead) == 0 and bool(log.files), "it is forgotten")
    await until(lambda: log.open_files == 0, "its files are closed")


async def test_who_leaves_while_it_is_looked_up_leaves_nothing_open(ahead: Ahead, log: Log) -> None:
    """The look-up ends by itself, and is closed then."""
    log.may_look.clear()
    ahead.begin(_wanted(20))
    taking = asyncio.create_task(ahead.take(_wanted(20)))
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    log.may_look.set()
    assert len(ahead) == 0


def _open_segments() -> int:
    links = (Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).endswith(".log") for link in links if link.is_symlink())


def _read(client: WireClient, offset: int, version: int) -> list[batch.Row]:
    partitions = [{"partition": 0, "fetch_offset": offset, "partition_max_bytes": 2**17}]
    answer = client.call(
        wire.FETCH, version, replica_id=-1, max_wait=timedelta(seconds=5), min_bytes=1, max_bytes=2**24,
        isolation_level=0, forgotten_topics_data=[], topics=[{"topic": STREAM, "partitions": partitions}],
    )  # fmt: skip
    found = answer.responses[0].partitions[0]
    assert found.error_code == 0
    records = bytes(found.records)
    return [row for at, size in batches(records) for row in batch.decode(records[at : at + size]) if row[0] >= offset]


@pytest.mark.parametrize("version", [11, 12])
async def test_a_log_that_grows_is_read_whole(tmp_path: Path, version: int) -> None:
    """By a client that reads on, up to the end and beyond it; of segments nothing stays open that was not before."""
    async with running_endpoint(tmp_path / "data") as running:
        seen: list[bytes | None] = []

        def read(count: int) -> None:
            while len(seen) < count:
                seen.extend(row[3] for row in _read(client, len(seen), version))

        await running.record([b"%08d" % number * 4_000 for number in range(20)])
        before = _open_segments()
        with WireClient(running.port) as client:
            for count in (20, 40, 60):
                await asyncio.to_thread(read, count)
                if count < 60:
                    await running.record([b"%08d" % number * 4_000 for number in range(count, count + 20)])
        assert seen == [b"%08d" % number * 4_000 for number in range(60)]
        await until(lambda: _open_segments() == before, "what was looked up ahead is closed")
