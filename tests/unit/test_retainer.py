"""Retention and the disk's budget, with a writer, a disk and clocks that do what the test says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config, from_dict
from gateway.ingest.clock_watch import ClockWatch
from gateway.ingest.disk import DiskPlan
from gateway.ingest.retainer import Retainer
from gateway.log.files import Files
from gateway.log.holders import Held, Holder
from tests.support.keeping import MIB, FakeDisk, FakeTime, FakeWriter, make_stream, segments

DAY_MS = 86_400_000


class Bench:
    """A retainer and everything around it."""

    def __init__(self, data: Path, streams: dict[str, Any], *, clock: str = "ntp", files: Files | None = None) -> None:
        self.data = data
        self.time = FakeTime()
        self.writer = FakeWriter()
        self.disk = FakeDisk(data)
        self.config: Config = from_dict({"data": str(data), "site": {"clock": clock}, "streams": streams})
        self.indexes: dict[str, int] = {}
        self.held = Held(0, ())
        self.retainer = Retainer(
            data,
            DiskPlan(self.disk.total_bytes, 10 * MIB, 20 * MIB),
            self.writer,
            ClockWatch(self.config.site.clock, self.time.clocks),
            settings=self.config.stream,
            partitions=lambda: self.indexes,
            files=files or Files(),
            space=self.disk.look,
            holders=lambda _: self.held,
        )

    def stream(self, name: str, ages_days: list[float], *, active_bytes: int = 0, open_: bool = True) -> None:
        """With a sealed segment of each of those ages."""
        newest = [self.time.ms - int(days * DAY_MS) for days in ages_days]
        below = make_stream(self.data, name, newest, active_bytes=active_bytes)
        if open_:
            self.indexes[name] = self.writer.add(segment_base=below, position=active_bytes)

    def state(self, name: str) -> dict[str, Any]:
        return self.writer.states[self.indexes[name]]

    def run(self, rounds: int = 20, *, step_s: float = 1.0) -> None:
        for _ in range(rounds):
            self.retainer.look()
            self.time.pass_by(step_s)

    def count(self, name: str) -> int:
        """Segments, the active one included."""
        return len(segments(self.data, name))


def test_a_stream_keeps_what_its_own_limits_say(tmp_path: Path) -> None:
    """By age, by size, by both, and one without limits."""
    bench = Bench(
        tmp_path,
        {
            "old": {"retention": "30d"},
            "large": {"retention": "3MiB"},
            "both": {"retention": ["30d", "100MiB"]},
            "all": {},
        },
    )
    for name in ("old", "large", "both", "all"):
        bench.stream(name, [50, 40, 35, 20, 10], active_bytes=MIB)
    bench.run()
    assert [bench.count(name) for name in ("old", "large", "both", "all")] == [3, 3, 3, 6]
    assert bench.retainer.statistics()["deleted_segments"] == 9
    assert bench.retainer.trouble == ""


def test_the_durable_segment_and_what_follows_it_are_never_deleted(tmp_path: Path) -> None:
    """However old and large: the watermark's segment stays, and so do segments that are not durable yet."""
    bench = Bench(tmp_path, {"s": {"retention": ["1d", "1MiB"]}})
    bench.stream("s", [50, 40, 30, 20], active_bytes=MIB)
    bench.state("s")["segment_base"] = 20
    bench.disk.others_bytes = bench.disk.total_bytes
    bench.run()
    assert segments(tmp_path, "s") == [20, 30, 40]


def test_an_idle_stream_is_sealed_when_its_last_record_is_too_old(tmp_path: Path) -> None:
    """Asked for once for each segment; a stream that gets records, and an empty segment, are left alone."""
    bench = Bench(tmp_path, {"s": {"retention": "30d"}, "empty": {"retention": "30d"}, "young": {"retention": "60d"}})
    for name, active_bytes in (("s", 5), ("empty", 0), ("young", 5)):
        bench.stream(name, [50, 40], active_bytes=active_bytes)
    bench.run(200)
    assert bench.writer.rolled == [bench.indexes["s"]]


def test_age_waits_for_a_synchronised_clock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said once in the log and in the statistics; then it goes on. `clock = "trusted"` does not wait."""
    caplog.set_level(logging.INFO)
    bench = Bench(tmp_path / "a", {"s": {"retention": "30d"}})
    bench.stream("s", [50, 40, 1])
    bench.time.synchronised = False
    bench.run()
    assert bench.count("s") == 4
    assert "unsynchronised" in bench.retainer.statistics()["age_retention_waits"]
    assert caplog.text.count("retention by age waits") == 1
    bench.time.synchronised = True
    bench.run()
    assert bench.count("s") == 2
    assert caplog.text.count("retention by age goes on") == 1
    trusted = Bench(tmp_path / "b", {"s": {"retention": "30d"}}, clock="trusted")
    trusted.stream("s", [50, 40, 1])
    trusted.time.synchronised = None
    trusted.run()
    assert trusted.count("s") == 2


def test_a_jump_of_the_clock_deletes_nothing_that_was_just_recorded(tmp_path: Path) -> None:
    """Boot in 1970, the time an hour later: age retention pauses, and then knows how old this run's records are."""
    bench = Bench(tmp_path, {"s": {"retention": "1d"}})
    bench.time.real_s = 1000.0
    bench.stream("s", [0, 0, 0], active_bytes=MIB)
    bench.run()
    bench.time.real_s += 1_800_000_000
    bench.run()
    assert "jumped" in bench.retainer.statistics()["age_retention_waits"]
    bench.time.pass_by(3700)
    bench.run()
    assert bench.retainer.statistics()["age_retention_waits"] == ""
    assert bench.count("s") == 4
    again = Bench(tmp_path, {"s": {"retention": "1d"}})
    again.time = bench.time
    again.retainer.watch = ClockWatch("ntp", bench.time.clocks)
    again.indexes, again.writer.states = bench.indexes, bench.writer.states
    again.run()
    assert again.count("s") == 4, "the shift was not kept over a restart"
    again.time.pass_by(90_000)
    again.run()
    assert segments(tmp_path, "s") == [30]


def test_what_an_unset_clock_recorded_in_an_earlier_run_gets_its_whole_time(tmp_path: Path) -> None:
    """The run that recorded in 1970 never saw the clock set: its segments are as old as they are found."""
    bench = Bench(tmp_path, {"s": {"retention": "1d"}})
    below = make_stream(tmp_path, "s", [50_000, 60_000, 70_000])
    bench.indexes["s"] = bench.writer.add(segment_base=below)
    bench.run()
    assert bench.count("s") == 4
    bench.time.pass_by(86_500)
    bench.run()
    assert segments(tmp_path, "s") == [below]


def test_the_oldest_segments_of_all_streams_make_room(tmp_path: Path) -> None:
    """Below reserve and headroom: by age across streams, also of one that nobody writes; what refuses keeps all."""
    bench = Bench(tmp_path, {"kept": {"when_full": "refuse"}})
    bench.stream("a", [50, 30, 10], active_bytes=MIB)
    bench.stream("b", [40, 20, 5], active_bytes=MIB)
    bench.stream("gone", [60, 45, 1], open_=False)
    bench.stream("kept", [99, 98], active_bytes=MIB)
    free = bench.disk.look(tmp_path).free_bytes
    bench.disk.others_bytes = free - 30 * MIB + 5 * MIB - 1
    bench.run()
    assert segments(tmp_path, "a") == [20, 30]
    assert segments(tmp_path, "b") == [10, 20, 30]
    assert segments(tmp_path, "gone") == [20, 30]
    assert bench.count("kept") == 3
    assert bench.writer.retries > 0
    assert bench.disk.look(tmp_path).free_bytes >= 30 * MIB


def test_when_only_active_segments_are_left_the_largest_is_sealed(tmp_path: Path) -> None:
    """Once for each segment; a stream that refuses, one that failed and a nearly empty one are not touched."""
    bench = Bench(tmp_path, {"kept": {"when_full": "refuse"}})
    for name, active_bytes in (("small", MIB), ("large", 3 * MIB), ("kept", 9 * MIB), ("failed", 9 * MIB), ("tiny", 9)):
        bench.stream(name, [], active_bytes=active_bytes)
    bench.state("failed")["failed"] = True
    bench.disk.others_bytes = bench.disk.total_bytes
    bench.run()
    assert bench.writer.rolled == [bench.indexes["large"]]
    for name in ("small", "large"):
        bench.state(name)["position"] = 0
    bench.run()
    assert "no segment is left that may be deleted" in bench.retainer.trouble
    bench.disk.others_bytes = 0
    bench.run(1)
    assert bench.retainer.trouble == ""


def test_a_full_disk_that_is_not_short_of_bytes_makes_room_too(tmp_path: Path) -> None:
    """Out of inodes, or over a quota: the writer says full though the disk has room; one segment a round goes."""
    bench = Bench(tmp_path, {})
    bench.stream("s", [50, 40, 30])
    bench.state("s")["stalled_errno"] = 122
    bench.run(1)
    assert bench.count("s") == 3
    bench.state("s")["stalled_errno"] = 0
    bench.run()
    assert bench.count("s") == 3


def test_retention_stops_while_deleting_frees_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A reader holds what is deleted: retention stops after one round, names it, and goes on when it lets go."""
    caplog.set_level(logging.INFO)
    bench = Bench(tmp_path, {})
    bench.stream("s", [float(n) for n in range(80, 0, -1)], active_bytes=MIB)
    bench.disk.others_bytes = bench.disk.look(tmp_path).free_bytes - 25 * MIB
    bench.held = Held(5 * MIB, (Holder(4711, "python3", 5 * MIB, 5),))
    bench.disk.held_bytes = 5 * MIB  # as much as the first round deletes
    bench.disk.others_bytes -= 5 * MIB

    def hold(_directory: Path) -> Any:
        found = FakeDisk.look(bench.disk, tmp_path)
        return found._replace(free_bytes=min(found.free_bytes, 25 * MIB)) if bench.held.bytes else found

    bench.retainer._look_at_disk = hold
    bench.run(1)
    left = bench.count("s")
    assert left == 81 - 5
    assert "5.00 MiB of deleted segments are held by process 4711 (python3)" in bench.retainer.trouble
    sentence = bench.retainer.trouble
    bench.run(50)
    assert (bench.count("s"), bench.retainer.trouble) == (left, sentence)
    assert bench.retainer.statistics()["holders"][0]["pid"] == 4711
    bench.held = Held(0, ())
    bench.disk.held_bytes = 0
    bench.run(10)
    assert bench.retainer.trouble == ""
    assert "retention goes on" in caplog.text


def test_room_that_is_held_by_nobody_one_may_see_stops_retention_too(tmp_path: Path) -> None:
    """Some rounds, seconds apart, then it stops and says how to find out; later it tries again."""
    bench = Bench(tmp_path, {})
    bench.stream("s", [float(n) for n in range(80, 0, -1)], active_bytes=MIB)
    bench.retainer._look_at_disk = lambda _: FakeDisk.look(bench.disk, tmp_path)._replace(free_bytes=25 * MIB)
    bench.run(2)
    bench.run(2, step_s=0.1)
    assert bench.count("s") == 81 - 3 * 5, "it slows down"
    bench.run(60)
    assert bench.count("s") == 81 - 8 * 5
    assert "as root" in bench.retainer.trouble.lower()
    bench.run(5, step_s=100)
    assert bench.count("s") == 81 - 8 * 5
    bench.run(5, step_s=100)
    assert bench.count("s") < 81 - 8 * 5


def test_records_that_take_at_once_what_is_freed_do_not_hold_retention_up(tmp_path: Path) -> None:
    """Nothing more is free after a round, because the writer was quick: the next one deletes again."""
    bench = Bench(tmp_path, {})
    bench.stream("s", [float(n) for n in range(80, 0, -1)], active_bytes=MIB)
    free = [25 * MIB, 25 * MIB, 25 * MIB, 26 * MIB, 25 * MIB, 31 * MIB, 31 * MIB]
    bench.retainer._look_at_disk = lambda _: FakeDisk.look(bench.disk, tmp_path)._replace(free_bytes=free.pop(0))
    bench.run(4, step_s=0.1)
    assert bench.count("s") == 81 - 3 * 5
    assert bench.retainer.trouble == ""


class _Unwilling(Files):
    """One stream's directory cannot be changed."""

    def unlink(self, path: Path) -> None:
        if path.parent.name == "bad-0":
            raise PermissionError(1, "Operation not permitted", str(path))
        super().unlink(path)


def test_trouble_with_one_streams_files_does_not_keep_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, tried again after a minute, and the others are looked after."""
    bench = Bench(tmp_path, {"bad": {"retention": "1d"}, "good": {"retention": "1d"}}, files=_Unwilling())
    for name in ("bad", "good"):
        bench.stream(name, [50, 40])
    bench.run(50)
    assert (bench.count("bad"), bench.count("good")) == (3, 1)
    assert caplog.text.count("retention cannot look after a stream") == 1


def test_settings_that_are_changed_while_it_runs_apply(tmp_path: Path) -> None:
    """A shorter retention takes effect within a minute."""
    bench = Bench(tmp_path, {"s": {"retention": "90d"}})
    bench.stream("s", [50, 40, 10])
    bench.run()
    assert bench.count("s") == 4
    bench.retainer._settings = from_dict({"data": "d", "streams": {"s": {"retention": "20d"}}}).stream
    bench.run(61)
    assert bench.count("s") == 2
