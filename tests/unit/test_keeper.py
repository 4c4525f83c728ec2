"""The keeper's thread: jobs in turn, none of which can stop the others or the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.ingest.keeper import Job, Keeper
from gateway.ingest.troubles import DISK, Troubles
from tests.support.keeping import FakeWriter
from tests.support.native import wait_until


class Bell:
    """A writer that is nothing but its health descriptor."""

    def __init__(self) -> None:
        self.health_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.cleared = 0

    def ring(self) -> None:
        os.eventfd_write(self.health_fd, 1)

    def clear_health(self) -> None:
        os.eventfd_read(self.health_fd)
        self.cleared += 1


@pytest.fixture
def bell() -> Iterator[Bell]:
    made = Bell()
    yield made
    os.close(made.health_fd)


def end(keeper: Keeper) -> None:
    assert keeper.stop()
    keeper.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "gateway-keeper"]


def test_a_job_that_fails_is_counted_and_the_others_go_on(bell: Bell, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises, every time; also what listens to the health."""
    done: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError("oops")

    keeper = Keeper(bell, [Job("bad", fail, on_health=True), Job("good", lambda: done.append(1), on_health=True)], fail)
    keeper.start()
    for expected in (1, 2, 3):
        bell.ring()
        wait_until(lambda: len(done) >= expected, "the other job to run")  # noqa: B023
    end(keeper)
    found = keeper.statistics()
    assert found["bad"]["failures"] == found["bad"]["runs"] >= 3
    assert found["good"]["failures"] == 0
    assert "keeper's job failed" in caplog.text
    assert "what listens to the engine's health failed" in caplog.text


def test_a_change_of_health_is_looked_at_at_once(bell: Bell) -> None:
    """Jobs that want to know, and the listener, are called long before their interval is over; the bell is cleared."""
    told = threading.Event()
    jobs = [Job("wants to know", lambda: None, 10**18, on_health=True), Job("does not", lambda: None, 10**18)]
    keeper = Keeper(bell, jobs, told.set)
    keeper.start()
    wait_until(lambda: all(job.runs for job in jobs), "the first round")
    told.clear()
    bell.ring()
    wait_until(lambda: jobs[0].runs == 2, "the job to run again")
    assert told.wait(30)
    assert (jobs[1].runs, bell.cleared) == (1, 1)
    end(keeper)


def test_a_job_with_more_to_do_is_called_again_soon(bell: Bell) -> None:
    """Until it says that it is done, whatever its interval."""
    left = [0] * 5
    job = Job("much", lambda: bool(left.pop() or left), 10**18)
    keeper = Keeper(bell, [job])
    keeper.start()
    wait_until(lambda: not left, "all to be done")
    end(keeper)
    assert job.runs == 5


def test_it_ends_promptly_also_when_it_never_ran(bell: Bell) -> None:
    """Waiting, it is woken; a second stop, and one before the start, do nothing."""
    keeper = Keeper(bell, [])
    assert keeper.stop()
    keeper = Keeper(bell, [Job("slow", lambda: time.sleep(0.01))])
    keeper.start()
    assert keeper.running
    end(keeper)
    end(keeper)
    assert not keeper.running


def test_intervals_are_kept(bell: Bell) -> None:
    """A job is not called before its interval is over, in rounds without a change."""
    job = Job("rare", lambda: None, 10**18)
    keeper = Keeper(bell, [job])
    for _ in range(3):
        keeper.look(changed=False)
    assert job.runs == 1


def retainer(trouble: Callable[[], str] = lambda: "") -> Any:
    return SimpleNamespace(data="/", plan=SimpleNamespace(reserve_bytes=5 << 20), trouble=trouble())


def test_troubles_are_whole_sentences_that_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What, since when, how much is free, what to do; the same words until it is over, other words the next time."""
    now = [0]
    monkeypatch.setattr("gateway.ingest.troubles.monotonic_ns", lambda: now[0])
    writer = FakeWriter()
    streams = {name: writer.add() for name in ("well", "refusing", "failed", "waiting")}
    states = {name: writer.states[index] for name, index in streams.items()}
    states["refusing"]["refusing"] = True
    states["failed"].update(failed=True, failed_errno=5, failed_step="syncing the active segment")
    states["waiting"]["stalled_errno"] = 28
    troubles = Troubles(writer, retainer(lambda: "The disk is held."))
    first = troubles.look(streams)
    assert set(first) == {"refusing", "failed", DISK}, "waiting for a moment is no trouble"
    now[0] += 3 * 10**9
    second = troubles.look(streams)
    assert {name: second[name] for name in first} == first
    for part in ("'refusing' refuses records since 2", "free, of which 5.00 MiB are its reserve", "by itself"):
        assert part in first["refusing"]
    assert "failed while syncing the active segment: Input/output error" in first["failed"]
    assert "No space left on device" in second["waiting"]
    assert first[DISK] == "The disk is held."
    for state in states.values():
        state.update(refusing=False, failed=False, stalled_errno=0)
    assert set(troubles.look(streams)) == {DISK}
