"""What a configuration needs of the machine is added up and refused where it does not fit."""

from __future__ import annotations

import mmap
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from gateway import clock
from gateway.config import from_dict
from gateway.errors import ConfigError
from gateway.ingest import disk, limits
from gateway.ingest.clock_watch import PAUSE_AFTER_JUMP_NS, ClockWatch
from gateway.log.holders import find_holders
from tests.support.keeping import FakeTime

MIB, GIB = 2**20, 2**30


def config(**more: Any) -> Any:
    listener = {"bind": "127.0.0.1:0", "routes": [{"filter": "a/#", "stream": "a"}, {"filter": "b/#", "stream": "b"}]}
    return from_dict({"data": "d", "mqtt": {"listeners": {"l": {**listener, **more.pop("listener", {})}}}, **more})


def test_descriptors_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six a stream, that of sessions too, one a connection, and others, against the hard limit; errors have sums."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    found = config(listener={"connections_max": 5000})
    assert limits.sums(found)[0].needed == 6 * 3 + 5000 + 68
    with pytest.raises(ConfigError) as caught:
        limits.check(found)
    (problem,) = caught.value.problems
    assert "needs 5,086 descriptors (6 × 3 streams + 5,000 connections + 68 others); there are 4,096. Raise" in problem
    limits.check(config(listener={"connections_max": 4000}))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    limits.check(found)


def test_mappings_count_only_where_segments_are_mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against vm.max_map_count, with and without [disk] append = "mapped"."""
    (tmp_path / "count").write_text("2004\n")
    monkeypatch.setattr(limits, "_MAP_COUNT", tmp_path / "count")
    limits.check(config())
    with pytest.raises(ConfigError, match=r"2,008 mappings \(2 × 3 streams \+ 2,002 others\); there are 2,004"):
        limits.check(config(disk={"append": "mapped"}))


def test_memory_is_what_the_machine_or_its_cgroup_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The least of what is available and of the control group's limits; "max" and missing files are no limit."""
    meminfo, group = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal: 9999999 kB\nMemAvailable: 204800 kB\n")
    monkeypatch.setattr(limits, "_MEMORY", meminfo)
    monkeypatch.setattr(limits, "_CGROUPS", (group, tmp_path / "none"))
    for text, fits in (("max\n", True), (f"{193 * MIB}\n", True), (f"{192 * MIB}\n", False)):
        group.write_text(text)
        assert limits.sums(config())[2].fits is fits
    parts = r"1 rings of 64.0 MiB \+ 1.00 MiB of small ones for sessions \+ 64.0 MiB of buffers"
    parts += r" \+ 64.0 MiB for key indexes"
    with pytest.raises(ConfigError, match=rf"193 MiB of memory \({parts}\)"):
        limits.check(config())


@pytest.mark.parametrize(
    ("total", "set_to", "reserve", "headroom"),
    [
        (100 * GIB, None, 2 * GIB, GIB),
        (10_000 * GIB, None, 2 * GIB, 4 * GIB),
        (20 * GIB, None, GIB, 204 * MIB),
        (1 * GIB, None, GIB // 20, 121 * MIB),
        (64 * MIB, "0B", 0, 8 * MIB),
        (100 * GIB, "50GiB", 50 * GIB, GIB),
        (0, None, 0, 0),
    ],
)
def test_the_disk_is_divided_by_its_size(total: int, set_to: str | None, reserve: int, headroom: int) -> None:
    """A reserve of 2 GiB or a twentieth, headroom of 128 MiB to 4 GiB, less on small disks."""
    plan = disk.plan(config(disk={"reserve": set_to} if set_to else {}), total)
    assert plan.reserve_bytes == reserve
    assert abs(plan.headroom_bytes - headroom) < MIB
    assert plan.free_wanted_bytes == plan.reserve_bytes + plan.headroom_bytes


def test_a_reserve_that_does_not_fit_is_refused() -> None:
    """Only one that was set; the sum is shown."""
    with pytest.raises(
        ConfigError, match=r"99.0 GiB of reserve \+ .* \+ 3.00 MiB for a segment of each stream are more"
    ):
        disk.plan(config(disk={"reserve": "99GiB"}), 99 * GIB)
    assert disk.plan(config(), 8 * MIB).reserve_bytes == 8 * MIB // 20


@pytest.mark.parametrize(
    ("stream", "total", "expected"),
    [
        ({}, 100 * GIB, GIB),
        ({}, 4 * GIB, (4 * GIB - 4 * GIB // 20) // 16),
        ({"segment_size": "8MiB"}, 100 * GIB, 8 * MIB),
        ({"retention": "80MiB"}, 100 * GIB, 10 * MIB),
        ({"retention": "1MiB"}, 100 * GIB, MIB),
        ({}, 0, GIB),
    ],
)
def test_segments_are_small_enough_to_be_deleted(stream: dict[str, str], total: int, expected: int) -> None:
    """An eighth of the stream's own limit, a sixteenth of the disk, at least 1 MiB."""
    found = config(streams={"a": stream})
    assert disk.plan(found, total).segment_bytes(found.stream("a")) == expected


def test_the_clock_is_doubted_while_it_is_not_synchronised_and_after_jumps() -> None:
    """Asked every ten seconds; a jump of over an hour either way makes it doubtful for an hour."""
    time = FakeTime(synchronised=None)
    watch = ClockWatch("ntp", time.clocks)
    assert watch.look() == 0
    assert "unsynchronised" in watch.doubt
    time.synchronised = True
    time.pass_by(11)
    assert watch.look() == 0
    assert watch.doubt == ""
    time.real_s += 3500
    assert watch.look() == 0, "less than an hour is no jump"
    for jump in (4000, -4000):
        time.real_s += jump
        assert watch.look() == jump * 10**9
        assert "jumped" in watch.doubt
        time.pass_by(PAUSE_AFTER_JUMP_NS / 1e9 + 1)
        assert watch.look() == 0
        assert watch.doubt == ""
    assert watch.jumps == 2


def test_the_kernel_is_asked_without_changing_anything() -> None:
    """True or false on Linux; both clocks move."""
    assert clock.is_synchronised() in (True, False)
    assert clock.boottime_ns() <= clock.boottime_ns()


def test_holders_of_deleted_files_are_found(tmp_path: Path) -> None:
    """Open or mapped, counted once, with the process's name; files that are there, or lie elsewhere, do not count."""
    data = tmp_path / "data"
    data.mkdir()
    assert find_holders(data).bytes == 0
    opened, mapped, there, elsewhere = (data / "opened", data / "mapped", data / "there", tmp_path / "elsewhere")
    for path in (opened, mapped, there, elsewhere):
        path.write_bytes(b"x" * 8192)
    with opened.open("rb") as one, there.open("rb"), elsewhere.open("rb"):
        with mapped.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        for path in (opened, mapped, elsewhere):
            path.unlink()
        held = find_holders(data)
        (holder,) = held.holders
        assert (holder.pid, holder.files) == (os.getpid(), 2)
        assert held.bytes == holder.bytes >= 2 * 8192
        assert str(holder) == f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
        mapping.close()
        assert find_holders(data).holders[0].files == 1
        assert one.read(1) == b"x"
    assert find_holders(data).holders == ()


def test_proc_may_be_missing_or_hold_anything(tmp_path: Path) -> None:
    """No /proc, processes that end, and lines that nobody expects are no error."""
    assert find_holders(tmp_path, tmp_path / "none").bytes == 0
    process = tmp_path / "proc" / "1"
    process.mkdir(parents=True)
    (process / "maps").write_text("nonsense\n7f-80 r--p 0 08:01 5                 /somewhere else (deleted)\n")
    (tmp_path / "proc" / "self").mkdir()
    assert find_holders(tmp_path, tmp_path / "proc").holders == ()
