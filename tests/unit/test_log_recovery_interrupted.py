"""Recovery that crashes itself, and the log that goes on after one: with the real writer, seen by Kafka's clients."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_native import ring, watermark
from gateway_native.writer import Writer

from gateway.log.recovery import Recovered, recover
from tests.support.partitions import Partition, make_batches
from tests.support.segments import read_partition

SEGMENT_BYTES = 20_000


class Crash(BaseException):
    """The machine stops here."""


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    return Partition(tmp_path / "s-0")


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def torn_with_later_segments(partition: Partition) -> None:
    """Never acknowledged: a bad batch, then two more segments, one of them empty."""
    partition.add(make_batches(20, value_bytes=300))
    partition.add(make_batches(20, base_offset=60, value_bytes=300))
    partition.add(make_batches(5, base_offset=120, value_bytes=300), sealed=False)
    partition.add([], base=135, sealed=False)
    partition.mark(0, len(b"".join(partition.segments[0])), 60)
    partition.damage(60, 7 * len(partition.segments[60][0]) + 80)


def shorter_than_its_watermark(partition: Partition) -> None:
    """Acknowledged records are gone, and so are the indexes."""
    partition.add(make_batches(20, value_bytes=300))
    partition.add(make_batches(20, base_offset=60, value_bytes=300), sealed=False)
    partition.mark_all()
    os.truncate(partition.log(60), 5000)
    partition.index(60).unlink()
    partition.times(0).write_bytes(b"torn")


def without_watermark(partition: Partition) -> None:
    """A copy whose last segment is still preallocated and whose indexes are of another time."""
    partition.add(make_batches(20, value_bytes=300))
    partition.add(make_batches(20, base_offset=60, value_bytes=300), sealed=False, tail=b"garbage" + bytes(5000))
    for base in (0, 60):
        partition.index(base).write_bytes(bytes(range(80)))
        partition.times(base).write_bytes(b"")


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stop at the so-manieth call that changes or syncs anything; a write gets half its bytes out."""
    left = step

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                if function is pwrite:
                    descriptor, data, position = arguments
                    pwrite(descriptor, data[: len(data) // 2], position)
                raise Crash
            return function(*arguments, **named)

        return call

    pwrite = os.pwrite
    for name in ("fsync", "ftruncate", "pwrite"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


@pytest.mark.parametrize("state", [torn_with_later_segments, shorter_than_its_watermark, without_watermark])
def test_recovery_stopped_at_any_step_is_finished_by_the_next(
    partition: Partition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Callable[[Partition], None]
) -> None:
    """Wherever recovery itself is killed, the next one ends with the files and the state of one that was not."""
    state(partition)
    whole = tmp_path / "whole-0"
    shutil.copytree(partition.directory, whole)
    expected_state = recover(whole).writer_state()
    expected = content(whole)
    finished, steps = False, 0
    while not finished:
        again = tmp_path / f"at-{steps}"
        shutil.copytree(partition.directory, again)
        with monkeypatch.context() as patched:
            crash_at(patched, steps)
            try:
                recover(again)
                finished = True
            except Crash:
                steps += 1
        assert recover(again).writer_state() == expected_state
        assert content(again) == expected
    assert steps > 5, "too few steps were seen to be interrupted"


@contextmanager
def writing(directory: Path) -> Iterator[tuple[Callable[[int, int], None], Recovered]]:
    """A writer on a recovered partition: gives a function that appends numbers and waits until they are durable."""
    found = recover(directory)
    writer = Writer("pwrite", partitions_max=1)
    index = writer.add_partition(
        str(directory), segment_bytes=SEGMENT_BYTES, linger_ns=0, ack_memory=False, **found.writer_state()
    )
    source = writer.ring("test", 1 << 20)
    threads = [threading.Thread(target=body) for body in (writer.run_flusher, writer.run_writer)]
    for thread in threads:
        thread.start()

    def append(first: int, last: int) -> None:
        for number in range(first, last):
            flags = ring.KEYFRAME if number % 5 == 0 else 0  # begins a batch, so that there are many
            assert source.append(index, b"k", b"%d" % number * 30, b"", number * 1_000_000_000, flags)
        assert writer.flush()

    try:
        yield append, found
    finally:
        writer.stop()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("seed", range(12))
def test_a_log_goes_on_gapless_after_any_crash(tmp_path: Path, seed: int) -> None:
    """Whatever happened above the watermark, what was acknowledged is there and the next run's records follow it."""
    source = random.Random(seed)
    directory = tmp_path / "s-0"
    with writing(directory) as (append, _):
        append(0, 200)
        acknowledged = (directory / "watermark").read_bytes()
        append(200, 400)
    (directory / "watermark").write_bytes(acknowledged)  # the crash came right after the first 200
    mark = watermark.parse(acknowledged)
    assert mark is not None
    assert mark.durable_offset == 200
    later = [int(path.stem) for path in directory.glob("*.log") if int(path.stem) >= mark.segment_base]
    for base in source.sample(later, source.randrange(1, len(later) + 1)):
        wound(directory / f"{base:020d}.log", mark.position if base == mark.segment_base else 0, source)
    with writing(directory) as (append, found):
        assert (found.damages, found.lost_records) == ((), 0)
        assert 200 <= found.next_offset <= 400
        append(1000, 1100)
    values = [row.value for row in read_partition(directory)]
    expected = [*range(found.next_offset), *range(1000, 1100)]
    assert values == [b"%d" % number * 30 for number in expected]


def wound(path: Path, start: int, source: random.Random) -> None:
    """Do to the bytes from `start` on what a crash, or a disk, may do."""
    data = bytearray(path.read_bytes())
    at = source.randrange(start, len(data) + 1)
    match source.randrange(4):
        case 0:
            del data[at:]
        case 1:
            data[at:] = bytes(len(data) - at + source.randrange(5000))
        case 2:
            data[at:] = source.randbytes(source.randrange(1, 5000))
        case 3 if at < len(data):
            data[at] ^= 1 << source.randrange(8)
    path.write_bytes(data)
