"""What the native writer leaves and recovery takes over: clean stops, summaries, the manifest, crashes in between."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway_native import summary, watermark
from gateway_native.writer import Writer

from gateway.log import maintenance
from gateway.log.layout import prepare
from gateway.log.manifest import Manifest
from gateway.log.recovery import Recovered, recover
from gateway.log.verify import verify
from tests.support.segments import read_partition

SEGMENT_BYTES = 20_000


class Log:
    """A writer on a recovered partition."""

    def __init__(self, directory: Path) -> None:
        self.found = recover(directory)
        self.writer = Writer("pwrite", partitions_max=1)
        self.index = self.writer.add_partition(
            str(directory), segment_bytes=SEGMENT_BYTES, linger_ns=0, **self.found.writer_state()
        )
        self.ring = self.writer.ring("test", 1 << 20)

    def append(self, first: int, last: int) -> None:
        """Records with these numbers, durable when it returns."""
        for number in range(first, last):
            assert self.ring.append(self.index, b"k", b"%d" % number * 30, b"", number * 1_000_000_000, 0)
            if number % 10 == 9:
                assert self.writer.flush()
        assert self.writer.flush()


@contextmanager
def running(directory: Path) -> Iterator[Log]:
    """Closed cleanly at the end."""
    log = Log(directory)
    threads = [threading.Thread(target=body) for body in (log.writer.run_flusher, log.writer.run_writer)]
    for thread in threads:
        thread.start()
    try:
        yield log
    finally:
        log.writer.stop()
        for thread in threads:
            thread.join()


def data_directory(tmp_path: Path) -> Path:
    prepare(tmp_path / "data", "plant-7", "Europe/Berlin")
    return tmp_path / "data" / "s-0"


def test_what_the_writer_wrote_of_sealed_segments_is_what_is_made_again(tmp_path: Path) -> None:
    """Indexes, summaries and manifest, as the writer left them, are byte for byte those made from the logs."""
    directory = data_directory(tmp_path)
    with running(directory) as log:
        log.append(0, 700)
    names = {path.name: path.read_bytes() for path in directory.iterdir()}
    bases = Manifest(names["manifest"]).bases()
    assert len(bases) >= 3
    for base in bases:
        for suffix in (".index", ".timeindex", ".sums"):
            (directory / f"{base:020d}{suffix}").unlink()
    (directory / "manifest").unlink()
    mark = watermark.read(directory / "watermark")
    assert mark is not None
    maintenance.rebuild_manifest(directory, mark.segment_base)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == names
    report = verify(directory.parent, deep=True)
    assert (report.damages, report.notes) == ([], [])


def test_a_clean_stop_is_seen_and_gone_on_with(tmp_path: Path) -> None:
    """Several runs with clean stops give one gapless log; each start walks nothing, and the manifest grows on."""
    directory = data_directory(tmp_path)
    for start in range(0, 1000, 200):
        with running(directory) as log:
            assert (log.found.clean, log.found.next_offset, log.found.walked_bytes) == (start > 0, start, 0)
            assert log.found.manifest_bytes >= 0
            log.append(start, start + 200)
    assert [row.offset for row in read_partition(directory)] == list(range(1000))
    entries = list(Manifest((directory / "manifest").read_bytes()))
    assert [entry.base_offset for entry in entries] == sorted(int(path.stem) for path in directory.glob("*.sums"))
    assert all(entry.flags == summary.INDEXES_WHOLE for entry in entries)
    report = verify(directory.parent, deep=True)
    assert (report.damages, report.notes) == ([], [])


def test_a_killed_writer_leaves_what_the_next_one_goes_on_with(tmp_path: Path) -> None:
    """Copies of the directory while it is written open like after a kill: indexes go on behind the watermark."""
    directory = data_directory(tmp_path)
    copies: list[Path] = []
    with running(directory) as log:
        for start in range(0, 600, 60):
            log.append(start, start + 60)
            copies.append(tmp_path / f"copy-{start}" / "s-0")
            shutil.copytree(directory, copies[-1])
    for number, copy in enumerate(copies):
        end = (number + 1) * 60
        found = recover(copy)
        assert (found.clean, found.next_offset, found.indexes_whole) == (False, end, True)
        assert found.walked_bytes == 0
        assert (found.rebuild, found.skipped, found.lost_records) == ((), (), 0)
        with running(copy) as log:
            log.append(end, end + 100)
        assert [row.offset for row in read_partition(copy)] == list(range(end + 100))
        prepare(copy.parent, "plant-7", "Europe/Berlin")
        report = verify(copy.parent, deep=True)
        assert (report.damages, report.notes) == ([], [])


def test_torn_indexes_are_made_again_once_their_segment_is_sealed(tmp_path: Path) -> None:
    """A power cut may take the active segment's indexes: the log goes on at once, and maintenance has the rest."""
    directory = data_directory(tmp_path)
    with running(directory) as log:
        log.append(0, 150)
    mark = watermark.read(directory / "watermark")
    assert mark is not None
    torn = directory / f"{mark.segment_base:020d}.index"
    torn.write_bytes(bytes(torn.stat().st_size))
    with running(directory) as log:
        assert (log.found.indexes_whole, log.found.clean, log.found.next_offset) == (False, True, 150)
        log.append(150, 400)
        assert maintenance.missing(directory) == [mark.segment_base]
        maintenance.rebuild_segment(directory, mark.segment_base)
        assert maintenance.missing(directory) == []
    assert [row.offset for row in read_partition(directory)] == list(range(400))
    report = verify(directory.parent, deep=True)
    assert report.sound


def state_of(found: Recovered) -> dict[str, int]:
    return {name: value for name, value in found.writer_state().items() if name != "epoch"}


def test_recovery_of_a_clean_log_gives_the_state_that_walking_it_gives(tmp_path: Path) -> None:
    """The watermark's state and the one made from the log alone are the same, field by field."""
    directory = data_directory(tmp_path)
    for end in (5, 90, 333):
        with running(directory) as log:
            log.append(log.found.next_offset, end)
        copy = tmp_path / f"copy-{end}"
        shutil.copytree(directory, copy)
        (copy / "watermark").unlink()
        assert state_of(recover(directory)) == state_of(recover(copy))
