"""The storage tables and what is known about file systems."""

from __future__ import annotations

import pytest
from gateway_native.ring import KEYFRAME
from gateway_native.storage import filesystem

from tests.support.native import RunningWriter, put
from tests.support.segments import read_partition, segment_file


def test_the_file_system_of_a_path_is_named():
    """/proc is on none that we know, and never one on which preallocation holds."""
    name, holds = filesystem("/proc")
    assert name.startswith("type 0x")
    assert holds is False


def test_a_path_that_cannot_be_looked_at_is_an_error(tmp_path):
    """The error names the path."""
    with pytest.raises(FileNotFoundError) as caught:
        filesystem(str(tmp_path / "missing"))
    assert caught.value.filename == str(tmp_path / "missing")


@pytest.mark.parametrize("storage", ["mapped", "pwrite"])
def test_a_running_segment_is_preallocated_and_a_closed_one_exact(tmp_path, storage):
    """While the gateway runs the file may be longer than its batches, zeros after the last; closed, it is not."""
    directory = tmp_path / "a-0"
    with RunningWriter(storage) as running:
        partition = running.writer.add_partition(str(directory))
        put(running.ring(), partition, b"key", b"value")
        assert running.writer.flush()
        data = segment_file(directory, 0).read_bytes()
        used = len(data.rstrip(b"\0"))
        assert len(data) >= used
    assert len(read_partition(directory)) == 1
    assert segment_file(directory, 0).stat().st_size <= used + 8


def test_both_tables_write_the_same_bytes(tmp_path):
    """Which table appends is invisible on disk (a batch per record, so that timing decides nothing)."""
    for storage in ("mapped", "pwrite"):
        running = RunningWriter(storage)
        partition = running.writer.add_partition(str(tmp_path / f"{storage}-0"), segment_bytes=300_000)
        ring = running.ring(4 << 20)
        for number in range(1000):
            put(ring, partition, b"%d" % number, b"v" * (number * 7 % 3000), timestamp_ms=number, flags=KEYFRAME)
        with running:
            assert running.writer.flush()
    files = {
        storage: {path.name: path.read_bytes() for path in (tmp_path / f"{storage}-0").iterdir()}
        for storage in ("mapped", "pwrite")
    }
    assert files["mapped"] == files["pwrite"]
    assert len(files["mapped"]) > 6
