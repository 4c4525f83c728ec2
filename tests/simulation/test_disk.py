"""The simulated disk keeps what it promises, loses the rest, and does it again the same."""

from __future__ import annotations

import errno
from collections import Counter

import pytest
from gateway_native.batch import scan
from gateway_native.ring import ACKED, WANTS_ACK
from gateway_native.simulated_disk import Disk
from gateway_native.writer import ManualClock, Writer

from tests.support.segments import parse

EXISTING, NEW, EMPTY = 0, 1, 2
PAGE = 4096
OLD, FRESH = b"o" * 3 * PAGE, b"n" * 3 * PAGE


def disk_with_file(seed: int, content: bytes = OLD, **options: int) -> tuple[Disk, int]:
    """A disk with one durable file."""
    disk = Disk(seed, **options)
    fd = disk.open("/disk/file", NEW)
    disk.write_at(fd, content, 0)
    disk.sync_all(fd)
    disk.sync_directory("/disk")
    return disk, fd


def after_power_loss(disk: Disk, path: str = "/disk/file") -> bytes | None:
    disk.restart(power_loss=True)
    return disk.read_file(path) if disk.exists(path) else None


def outcomes(prepare, seeds: int = 400) -> Counter[bytes | None]:
    """What is left after power loss, over many seeds."""
    found: Counter[bytes | None] = Counter()
    for seed in range(seeds):
        found[after_power_loss(prepare(seed))] += 1
    return found


def test_what_was_synced_is_kept():
    """Content, size and name survive once file and directory were synced; a kill loses nothing at all."""
    for seed in range(50):
        disk, _ = disk_with_file(seed)
        assert after_power_loss(disk) == OLD
        fd = disk.open("/disk/file")
        disk.write_at(fd, FRESH, 0)
        disk.restart(power_loss=False)
        assert disk.read_file("/disk/file") == FRESH


def test_a_page_that_was_not_synced_is_old_new_or_torn_at_a_sector():
    """Each page goes its own way, and no sector is ever a mixture."""

    def prepare(seed: int) -> Disk:
        disk, fd = disk_with_file(seed)
        disk.write_at(fd, FRESH, 0)
        return disk

    found = outcomes(prepare)
    assert found[OLD] > 20
    assert found[FRESH] > 20
    whole = [
        data for data in found if data and all(len(set(data[p : p + PAGE])) == 1 for p in range(0, len(data), PAGE))
    ]
    assert len(whole) == 8, "each of three pages old or new"
    assert len(found) > len(whole), "some are torn"
    for data in found:
        assert data is not None
        assert all(len(set(data[p : p + 512])) == 1 for p in range(0, len(data), 512))


def test_a_file_that_grew_may_have_either_size_and_zeros():
    """The new size without the new content, and the other way round."""

    def prepare(seed: int) -> Disk:
        disk, fd = disk_with_file(seed, OLD[:PAGE])
        disk.write_at(fd, FRESH[:PAGE], PAGE)
        return disk

    found = outcomes(prepare)
    assert found[OLD[:PAGE]]
    assert found[OLD[:PAGE] + FRESH[:PAGE]]
    assert found[OLD[:PAGE] + bytes(PAGE)]


def test_a_cut_that_was_not_synced_may_come_back():
    """sync_data does not make a cut durable, sync_all does; what was cut never appears behind later content."""

    def prepare(seed: int, sync: str = "sync_data") -> Disk:
        disk, fd = disk_with_file(seed)
        disk.truncate(fd, PAGE)
        getattr(disk, sync)(fd)
        return disk

    assert set(outcomes(prepare)) >= {OLD, OLD[:PAGE]}
    assert set(outcomes(lambda seed: prepare(seed, "sync_all"))) == {OLD[:PAGE]}

    def grown(seed: int) -> Disk:
        disk, fd = disk_with_file(seed)
        disk.truncate(fd, 0)
        disk.write_at(fd, FRESH[:PAGE], PAGE)
        disk.sync_data(fd)
        return disk

    assert set(outcomes(grown, 50)) == {bytes(PAGE) + FRESH[:PAGE]}


def test_names_are_kept_or_lost_until_their_directory_is_synced():
    """New, renamed and removed files: every outcome that POSIX allows, and a renamed file never vanishes."""

    def created(seed: int) -> Disk:
        disk = Disk(seed)
        fd = disk.open("/disk/file", NEW)
        disk.write_at(fd, OLD, 0)
        disk.sync_all(fd)
        return disk

    assert set(outcomes(created)) == {OLD, None}

    def removed(seed: int) -> Disk:
        disk, _ = disk_with_file(seed)
        disk.unlink("/disk/file")
        return disk

    assert set(outcomes(removed)) == {OLD, None}
    seen = set()
    for seed in range(200):
        disk, _ = disk_with_file(seed)
        fd = disk.open("/disk/.new", NEW)
        disk.write_at(fd, FRESH, 0)
        disk.sync_all(fd)
        disk.rename("/disk/.new", "/disk/file")
        content = after_power_loss(disk)
        seen.add((content, disk.exists("/disk/.new")))
    assert seen == {(OLD, True), (OLD, False), (FRESH, False)}


def test_a_directory_that_is_lost_takes_its_files_along():
    """A file whose own directory was synced is gone if that directory's name was not."""
    seen = set()
    for seed in range(100):
        disk = Disk(seed)
        disk.make_directory("/disk/a")
        fd = disk.open("/disk/a/file", NEW)
        disk.write_at(fd, OLD, 0)
        disk.sync_all(fd)
        disk.sync_directory("/disk/a")
        disk.restart(power_loss=True)
        seen.add((disk.is_directory("/disk/a"), disk.exists("/disk/a/file")))
    assert seen == {(True, True), (False, False)}


def test_a_failed_sync_is_not_made_good_by_the_next():
    """After EIO the pages are clean: a second sync succeeds, and they may be lost all the same."""
    lost = 0
    for seed in range(100):
        disk, fd = disk_with_file(seed, writeback=0)
        disk.write_at(fd, FRESH, 0)
        disk.fail("sync_data", suffix="file")
        with pytest.raises(OSError) as caught:
            disk.sync_data(fd)
        assert caught.value.errno == errno.EIO
        disk.sync_data(fd)
        lost += after_power_loss(disk) != FRESH
    assert lost > 50


def test_a_failed_sync_of_the_file_system_is_told_by_the_file_too():
    """syncfs says that something failed; only the file's own sync says that it was this one."""
    told = 0
    for seed in range(40):
        disk, fd = disk_with_file(seed)
        disk.write_at(fd, FRESH, 0)
        disk.fail("sync_filesystem")
        with pytest.raises(OSError):
            disk.sync_filesystem(fd)
        try:
            disk.sync_data(fd)
            assert after_power_loss(disk) == FRESH
        except OSError:
            told += 1
    assert 0 < told < 40


def test_power_fails_in_the_middle_of_an_operation():
    """From then on nothing works; what had been written of it may be there."""
    sizes = set()
    for seed in range(200):
        disk, fd = disk_with_file(seed, b"")
        disk.crash_after(1)
        disk.write_at(fd, b"first", 0)
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                disk.write_at(fd, b"x" * 1200, 5)
            assert caught.value.errno == errno.EIO
        assert disk.crashed
        assert (b"first" + b"x" * 1200).startswith(disk.read_file("/disk/file"))
        sizes.add(disk.size("/disk/file"))
        disk.restart(power_loss=True)
        assert not disk.crashed
    assert sizes == {5, 512, 1024}, "whole sectors; all of it is as rare as nothing"


def test_a_full_disk():
    """Blocks are taken by writing and reserving, given back by cutting and removing; a page that has one fits."""
    disk = Disk(1, capacity=4)
    fd = disk.open("/disk/a", NEW)
    disk.reserve(fd, 2 * PAGE)
    assert (disk.used, disk.size("/disk/a")) == (2, 0)
    other = disk.open("/disk/b", NEW)
    with pytest.raises(OSError) as caught:
        disk.write_at(other, b"x" * 3 * PAGE, 0)
    assert caught.value.errno == errno.ENOSPC
    assert disk.size("/disk/b") == 2 * PAGE, "what there was room for"
    disk.write_at(fd, OLD[: 2 * PAGE], 0)
    disk.unlink("/disk/b")
    assert disk.used == 4, "it is still open"
    disk.close(other)
    assert disk.used == 2
    disk.truncate(fd, PAGE)
    assert disk.used == 1


@pytest.mark.parametrize("flavour", ["mapped", "pwrite"])
def test_the_writer_runs_on_it(flavour):
    """Records go through rings, writer and flusher to the disk, and an acknowledged one survives every crash."""
    for seed in range(30):
        disk, clock = Disk(seed, tracing=True), ManualClock()
        writer = Writer(disk.table(flavour), clock=clock, partitions_max=2, buffer_bytes=1 << 20)
        partition = writer.add_partition("/disk/a-0", segment_bytes=8192)
        ring = writer.ring("test", 1 << 16)
        disk.interleave(writer, 128)
        disk.crash_after(20 + seed)
        sequences = {}
        for number in range(40):
            if disk.crashed:
                break
            sequences[ring.append(partition, b"%d" % number, b"v" * 500, b"", clock.realtime_ns, WANTS_ACK)] = number
            clock.monotonic_ns += 10_000_000
            writer.step_writer()
            writer.step_flusher()
        acked = {number for sequence, number in sequences.items() if ring.verdict(partition, sequence) == ACKED}
        disk.restart(power_loss=True)
        assert disk.bus_errors == 0
        found = set()
        for name in sorted(disk.names("/disk/a-0")):
            if name.endswith(".log"):
                data = disk.read_file(f"/disk/a-0/{name}")
                batches = scan(data)[0]
                end = batches[-1][0] + batches[-1][1] if batches else 0
                found |= {int(row.key or b"") for batch in parse(data[:end], both=False) for row in batch.rows}
        assert acked <= found
        del writer, ring


def test_the_same_seed_does_the_same():
    """Two runs agree in every operation and every byte; another seed does not."""

    def run(seed: int) -> tuple[int, bytes | None]:
        disk, fd = disk_with_file(seed)
        for number in range(50):
            disk.write_at(fd, b"%d" % number, number * 300)
            if number % 7 == 0:
                disk.sync_data(fd)
        content = after_power_loss(disk)
        return disk.digest, content

    assert run(5) == run(5)
    assert len({run(seed) for seed in range(20)}) == 20
