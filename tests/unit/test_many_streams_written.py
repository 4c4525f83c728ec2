"""Where many streams are written at once, index entries wait until they are worth a write: what readers find then."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_native import watermark
from gateway_native.writer import Writer

import gateway
from gateway.log.layout import prepare
from gateway.log.recovery import recover
from gateway.log.verify import verify

STREAMS = 20  # more than the writer calls few
ROUNDS = 60
VALUE = bytes(3_000)  # an index entry every other commit


@pytest.fixture(name="data")
def data_fixture(tmp_path: Path) -> Path:
    prepare(tmp_path / "data", "plant-7", "UTC")
    return tmp_path / "data"


@contextmanager
def writing(data: Path, rounds: int) -> Iterator[None]:
    """One record a stream and round, each round durable. Closed cleanly at the end."""
    writer = Writer("pwrite", partitions_max=STREAMS)
    found = {f"s{number}": recover(data / f"s{number}-0") for number in range(STREAMS)}
    indexes = [
        writer.add_partition(str(data / f"{name}-0"), segment_bytes=2**20, linger_ns=0, **state.writer_state())
        for name, state in found.items()
    ]
    first = found["s0"].next_offset
    ring = writer.ring("test", 1 << 20)
    threads = [threading.Thread(target=body) for body in (writer.run_flusher, writer.run_writer)]
    for thread in threads:
        thread.start()
    try:
        for number in range(first, first + rounds):
            for index in indexes:
                assert ring.append(index, b"k", VALUE, b"", number * 1_000_000_000, 0)
            assert writer.flush()
        yield
    finally:
        writer.stop()
        for thread in threads:
            thread.join()


def entries(data: Path, stream: str) -> tuple[int, int]:
    """Entries of the offset index that are in the file, and that the watermark vouches for."""
    mark = watermark.read(data / f"{stream}-0" / "watermark")
    assert mark is not None
    path = data / f"{stream}-0" / f"{mark.segment_base:020d}.index"
    return len(path.read_bytes().rstrip(b"\0")) // 8, mark.index_bytes // 8


def check(data: Path, records: int) -> None:
    """Everything is read, found by time, and sound."""
    log = gateway.open(data)
    for number in range(STREAMS):
        stream = log[f"s{number}"]
        assert [record.offset for record in stream.read()] == list(range(records))
        assert next(iter(stream.read(start="1970-01-01T00:00:50Z"))).offset == 50
    report = verify(data, deep=True)
    assert (report.damages, report.notes) == ([], [])


def test_a_kill_costs_the_entries_that_waited_and_nothing_else(data: Path, tmp_path: Path) -> None:
    """The log goes on behind what the indexes had; everything is found, only a little later."""
    copy = tmp_path / "copy"
    with writing(data, ROUNDS):
        shutil.copytree(data, copy)
        assert entries(copy, "s3") == (0, 0), "the test needs entries that wait"
    check(copy, ROUNDS)
    with writing(copy, ROUNDS):
        pass
    assert entries(copy, "s3")[1] > 0
    check(copy, 2 * ROUNDS)


def test_a_clean_stop_writes_the_entries_that_waited(data: Path) -> None:
    """What is closed cleanly has all its entries, and its watermark vouches for them."""
    with writing(data, ROUNDS):
        pass
    for number in range(STREAMS):
        written, promised = entries(data, f"s{number}")
        assert written == promised >= ROUNDS // 3
    check(data, ROUNDS)
