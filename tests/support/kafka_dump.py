"""Kafka's DumpLogSegments on segments and indexes: what it saw, and all that it does not say of sound files.

Source: core/src/main/scala/kafka/tools/DumpLogSegments.scala, Apache Kafka 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.kafka_jars import run

TOOL = "kafka.tools.DumpLogSegments"
FAULTS_SHOWN = 20

_FILE = re.compile(r"Dumping (.+)")
_LOG_START = re.compile(r"Log starting offset: (\d+)")
_BATCH = re.compile(
    r"baseOffset: (\d+) lastOffset: (\d+) count: (\d+) baseSequence: -1 lastSequence: -1 producerId: -1 "
    r"producerEpoch: -1 partitionLeaderEpoch: 0 isTransactional: false isControl: false "
    r"deleteHorizonMs: OptionalLong\.empty position: (\d+) CreateTime: (\d+) size: (\d+) magic: 2 "
    r"compresscodec: none crc: \d+ isvalid: true"
)
_RECORD = re.compile(
    r"\| offset: (\d+) CreateTime: (\d+) keySize: (-?\d+) valueSize: (-?\d+) sequence: -1 headerKeys: \[(.*)\]"
)


class Dumped(NamedTuple):
    """One record as the tool shows it; a size of -1 stands for null."""

    offset: int
    timestamp_ms: int
    key_bytes: int
    value_bytes: int
    header_names: tuple[str, ...]


class Segments:
    """What the tool saw in some .log files."""

    def __init__(self) -> None:
        self.records: list[Dumped] = []
        self.batches = 0
        self.bytes_of: dict[Path, int] = {}
        self.faults: list[str] = []

    def add(self, line: str) -> None:
        """One line of output. Whatever is none of the lines of a sound segment is a fault."""
        if record := _RECORD.fullmatch(line):
            offset, timestamp, key, value = (int(number) for number in record.groups()[:4])
            names = tuple(record[5].split(",")) if record[5] else ()
            self.records.append(Dumped(offset, timestamp, key, value, names))
        elif batch := _BATCH.fullmatch(line):
            self._add_batch(*(int(number) for number in batch.groups()), line=line)
        elif file := _FILE.fullmatch(line):
            self._path = Path(file[1])
            self.bytes_of[self._path] = 0
        elif start := _LOG_START.fullmatch(line):
            if int(start[1]) != int(self._path.stem):
                self.faults.append(line)
        else:
            self.faults.append(line)

    def _add_batch(self, base: int, last: int, count: int, position: int, _time: int, size: int, *, line: str) -> None:
        if position != self.bytes_of[self._path] or count != last - base + 1:
            self.faults.append(line)
        self.bytes_of[self._path] = position + size
        self.batches += 1


def dump_segments(paths: Iterable[Path]) -> Segments:
    """Every record of these segments, with CRCs checked; fails at whatever the tool objects to."""
    files = list(paths)
    seen = Segments()
    for line in run(TOOL, "--deep-iteration", "--files", _joined(files)).splitlines():
        seen.add(line)
    _none(seen.faults)
    assert seen.bytes_of == {path: path.stat().st_size for path in files}, "it did not look at every byte"
    return seen


def check_indexes(paths: Iterable[Path]) -> None:
    """The check that a broker makes at its start, and each entry against its batch; fails at any objection."""
    files = list(paths)
    for option in ("--index-sanity-check", "--verify-index-only"):
        seen: list[Path] = []
        faults: list[str] = []
        for line in run(TOOL, option, "--files", _joined(files)).splitlines():
            if file := _FILE.fullmatch(line):
                seen.append(Path(file[1]))
            elif line != f"{seen[-1]} passed sanity check." and not (
                line == f"{seen[-1]} is empty." and not seen[-1].stat().st_size
            ):
                faults.append(line)
        _none(faults)
        assert seen == files, "it did not look at every file"


def _joined(files: list[Path]) -> str:
    assert files, "there is nothing to look at"
    return ",".join(map(str, files))


def _none(faults: list[str]) -> None:
    assert not faults, f"DumpLogSegments objects, {len(faults)} times:\n" + "\n".join(faults[:FAULTS_SHOWN])
