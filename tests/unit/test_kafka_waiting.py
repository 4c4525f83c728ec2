"""What wakes a fetch that waits, and what it knows when its time is over."""

from __future__ import annotations

import asyncio
import time

from gateway.serve.kafka.waiting import Waiter, Waiting


class Streams:
    """Streams that grow when the test says so."""

    def __init__(self, **durable: int) -> None:
        self.durable = durable
        self.followed: set[str] = set()

    def durable_offset(self, name: str) -> int | None:
        return self.durable.get(name)

    def follow(self, name: str, *, followed: bool) -> None:
        (self.followed.add if followed else self.followed.discard)(name)


def in_seconds(seconds: float) -> float:
    return time.monotonic() + seconds


async def test_what_grows_wakes_who_waits_for_it() -> None:
    streams = Streams(a=1, b=1)
    waiting = Waiting(streams)
    waiters = {name: Waiter({name: 1}) for name in streams.durable}
    tasks = {name: asyncio.create_task(waiting.wait(waiter, in_seconds(60))) for name, waiter in waiters.items()}
    await asyncio.sleep(0)
    assert streams.followed == {"a", "b"}
    streams.durable["b"] = 5
    waiting.commit()
    await tasks["b"]
    assert (waiters["b"].grown, waiters["b"].ends) == ({"b"}, {"b": 5})
    assert not tasks["a"].done()
    assert len(waiting) == 1
    tasks["a"].cancel()
    await asyncio.gather(tasks["a"], return_exceptions=True)
    waiting.stop()
    assert not streams.followed


async def test_what_grew_before_it_waited_counts() -> None:
    waiting = Waiting(Streams(a=2))
    waiter = Waiter({"a": 1, "written elsewhere": 7})
    await waiting.wait(waiter, in_seconds(60))
    assert waiter.grown == {"a"}
    waiting.stop()


async def test_when_its_time_is_over_it_looks_once_more() -> None:
    """Nobody has told of the commit yet: the answer is of the moment in which it leaves."""
    streams = Streams(a=1)
    waiting = Waiting(streams)
    waiter = Waiter({"a": 1})
    waits = asyncio.create_task(waiting.wait(waiter, in_seconds(0.02)))
    await asyncio.sleep(0)
    streams.durable["a"] = 2
    await waits
    assert waiter.grown == {"a"}
    silent = Waiter({"a": 2})
    await waiting.wait(silent, in_seconds(0.01))
    assert (silent.grown, len(waiting)) == (set(), 0)
    waiting.stop()
