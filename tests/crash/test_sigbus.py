"""A file that is cut or deleted under somebody who has it open is an error or a gap, never a SIGBUS."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

import gateway
from tests.support.gateway_process import GatewayProcess
from tests.support.native import wait_until
from tests.support.publisher import QosOnePublisher

SEGMENTS = '[streams.telemetry]\nsegment_size = "1MiB"\n'


def active_segment(data: Path) -> Path:
    return max((data / "telemetry-0").glob("*.log"))


@pytest.mark.parametrize("append", ["mapped", "pwrite"])
def test_somebody_cuts_the_segment_that_is_being_written(tmp_path: Path, append: str) -> None:
    """The active log is cut to nothing again and again under load: the gateway lives, and acknowledges later ones."""
    with GatewayProcess(tmp_path, extra_toml=f'[disk]\nappend = "{append}"\n{SEGMENTS}') as process:
        process.start()
        publisher = QosOnePublisher(process.port, "c", "load/0")
        publisher.start()
        for _ in range(10):
            before = publisher.acknowledged
            wait_until(lambda: publisher.acknowledged > before, "an acknowledgement")  # noqa: B023
            os.truncate(active_segment(process.data), 0)
        before = publisher.acknowledged
        wait_until(lambda: publisher.acknowledged > before + 1000 or not publisher.is_alive(), "acknowledgements")
        publisher.finish()
        assert publisher.fault is None
        assert publisher.acknowledged > before + 1000, process.log
        assert process.end() == 0, process.log


def test_somebody_cuts_and_deletes_segments_under_a_reader(tmp_path: Path) -> None:
    """Readers in the middle of segments that are cut, or taken away, go on with what is left."""
    with GatewayProcess(tmp_path, extra_toml=SEGMENTS) as process:
        process.start()
        publisher = QosOnePublisher(process.port, "c", "load/0", window=2000)
        publisher.start()
        wait_until(lambda: len(list((process.data / "telemetry-0").glob("*.log"))) >= 6, "six segments")
        publisher.finish()
        assert process.end() == 0
    segments = sorted((process.data / "telemetry-0").glob("*.log"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = gateway.open(process.data)["telemetry"].read().rows()
        offsets = [next(rows)[0] for _ in range(10)]
        os.truncate(segments[0], 4096)
        os.truncate(segments[2], 100_000)
        for suffix in ("log", "index", "timeindex"):
            segments[3].with_suffix(f".{suffix}").unlink()
        offsets += [row[0] for row in rows]
    assert offsets == sorted(set(offsets))
    for number in (1, 4):
        first, after = int(segments[number].stem), int(segments[number + 1].stem)
        assert set(range(first, after)) <= set(offsets), "a segment that nobody touched was not served whole"
    assert not any(int(segments[3].stem) <= offset < int(segments[4].stem) for offset in offsets)
