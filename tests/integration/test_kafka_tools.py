"""Kafka's own DumpLogSegments judges segments, offset indexes and time indexes that a gateway wrote."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from tests.support.gateway_process import GatewayProcess
from tests.support.kafka_dump import Dumped, check_indexes, dump_segments
from tests.support.kafka_jars import resolve
from tests.support.kafka_traffic import Traffic

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

# The smallest segments there are, and commits as often as they come: many segments, batches and index entries.
SETTINGS = """
[disk]
reserve = "1MiB"
append = "{append}"
[streams.telemetry]
segment_size = "1MiB"
linger = "0ms"
"""
MESSAGES = 50_000
KILLS = 5
SEED = 20_261_123


@pytest.fixture(scope="module", autouse=True)
def _jars() -> None:
    """Said before any load is made."""
    resolve()


def _files(partition: Path, suffix: str) -> list[Path]:
    return sorted(partition.glob(f"*.{suffix}"))


def _size(part: bytes | None) -> int:
    return -1 if part is None else len(part)


def _ours(data: Path) -> Iterator[Dumped]:
    """What the tool should see, by our own reader."""
    for offset, timestamp, key, value, headers in gateway.open(data)["telemetry"].read().rows():
        names = tuple(name for name, _ in headers)
        yield Dumped(offset, timestamp, _size(key), _size(value), names)


def _judge(data: Path) -> int:
    """Let the tool look at every file of a stopped gateway's stream, and compare; the number of records."""
    partition = data / "telemetry-0"
    segments = _files(partition, "log")
    indexes, times = ([path.with_suffix(suffix) for path in segments] for suffix in (".index", ".timeindex"))
    # A kill between making a segment's indexes and its log leaves empty ones that belong to nothing.
    alone = {*_files(partition, "index"), *_files(partition, "timeindex")}.difference(indexes, times)
    assert not any(path.stat().st_size for path in alone)
    seen = dump_segments(segments)
    check_indexes(indexes + times)
    assert len(segments) > 3
    assert any(path.stat().st_size > 8 for path in indexes), "the indexes hold too little for this to show anything"
    assert seen.records == list(_ours(data))
    return len(seen.records)


@pytest.mark.parametrize("append", ["pwrite", "mapped"])
def test_no_fault_after_load_and_a_clean_stop(tmp_path: Path, append: str) -> None:
    """Records of all sizes, in many segments: every batch is valid, every index entry names what is there."""
    traffic = Traffic()
    with GatewayProcess(tmp_path, extra_toml=SETTINGS.format(append=append)) as process:
        process.start()
        traffic.publish(process.port, MESSAGES)
        assert process.end() == 0
    assert _judge(process.data) == traffic.acknowledged


@pytest.mark.parametrize("append", ["pwrite", "mapped"])
def test_no_fault_after_kill_9_under_load(tmp_path: Path, append: str) -> None:
    """The gateway is killed several times while publishers are at full speed, started again each time, then stopped."""
    randomness = random.Random(SEED)
    traffic = Traffic()
    with GatewayProcess(tmp_path, extra_toml=SETTINGS.format(append=append)) as process:
        process.start()
        for _ in range(KILLS):
            with traffic.to(process.port) as publishers:
                publishers.wait(1_000)
                time.sleep(randomness.uniform(0, 0.3))
                process.kill()
            process.start()
        assert process.end() == 0
    assert _judge(process.data) >= traffic.acknowledged > KILLS * 1_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A partition of a few segments."""
    with GatewayProcess(tmp_path_factory.mktemp("sound"), extra_toml=SETTINGS.format(append="pwrite")) as process:
        process.start()
        Traffic().publish(process.port, 5_000)
        assert process.end() == 0
    return process.data / "telemetry-0"


def _change(path: Path, position: int, bits: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)


def test_the_judge_notices_what_is_wrong(sound: Path, tmp_path: Path) -> None:
    """One flipped bit in a value, one in an index entry, one in a time index entry, and zeros at the end."""
    segment = max(_files(sound, "index"), key=lambda path: path.stat().st_size).with_suffix("")
    assert segment.with_suffix(".index").stat().st_size >= 80
    damaged: dict[str, Path] = {}
    for suffix in ("log", "index", "timeindex"):
        directory = tmp_path / suffix
        directory.mkdir()
        for file in _files(sound, "*index") + _files(sound, "log"):
            shutil.copy(file, directory)
        damaged[suffix] = directory / f"{segment.name}.{suffix}"
    _change(damaged["log"], 100, 1)
    with pytest.raises(AssertionError, match="isvalid: false"):
        dump_segments([damaged["log"]])
    _change(damaged["index"], 43, 1)  # the last byte of the sixth entry's offset
    with pytest.raises(AssertionError, match="Mismatches in"):
        check_indexes([damaged["index"]])
    _change(damaged["timeindex"], 7, 1)  # the last byte of the first entry's timestamp
    with pytest.raises(AssertionError, match="timestamp mismatch"):
        check_indexes([damaged["timeindex"]])
    with damaged["index"].with_suffix(".log").open("ab") as log:
        log.write(bytes(4096))
    with pytest.raises(AssertionError, match="CorruptRecordException"):
        dump_segments([damaged["index"].with_suffix(".log")])
