"""Committed offsets of consumer groups, and other small facts of the endpoint that outlive it, in one file.

The file is a journal of JSON lines, each with the CRC-32C of its text in front:

    4b1c2f08 {"format": 1}
    9d0e7731 {"group": "etl", "topic": "telemetry", "offset": 1234, "metadata": "", "time": 1764000000}
    77aa0213 {"group": "etl"}                                the group's offsets were forgotten
    0c51d9e2 {"producer_ids": 2000}                          producer ids below it have been given out

The last line about something counts. It is read up to the first line that is not whole or not sound: that is what a
crash left of a write that was never answered. When it has grown to several times of what counts in it, it is written
anew.

Durable when: `Journal.write` has returned, or a future of `Committer.write` has the result True.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gateway_native import batch

from gateway.errors import FormatError
from gateway.log.files import FILES, Files, replace
from gateway.serve.kafka.waiting import Disk

logger = logging.getLogger("gateway.kafka")

Fact = dict[str, Any]

DIRECTORY = "kafka"
FILE = "offsets.journal"
FORMAT = 1
# Groups times topics. Each takes some 300 bytes of memory.
COMMITS_MAX = 100_000
# What a client may write beside an offset: Kafka's offset.metadata.max.bytes.
METADATA_BYTES_MAX = 4_096
# The file is written anew when it is larger, and larger than …
REWRITE_BYTES_MIN = 2**20
# … so many times what counts in it.
REWRITE_FACTOR = 4


class Commit(NamedTuple):
    """Where a group goes on in a topic. `time`: when it was committed, s since 1970."""

    offset: int
    metadata: str
    time: int


class Journal:
    """The file, and what counts in it. For one thread at a time."""

    def __init__(self, data: Path, files: Files = FILES) -> None:
        """Read it. FormatError if a newer version wrote it; OSError."""
        self.path = data / DIRECTORY / FILE
        self.commits: dict[str, dict[str, Commit]] = {}
        """By group, then topic."""
        self.producer_ids = 0
        """Producer ids from here on are free."""
        self._files = files
        self._size = 0
        self._live_bytes = 0  # what counted when that was last looked at
        self._load()

    @property
    def count(self) -> int:
        """Commits that are kept."""
        return sum(map(len, self.commits.values()))

    # -- reading

    def _load(self) -> None:
        if not self._files.exists(self.path):
            return
        data = self._files.read_bytes(self.path)
        for line in data.splitlines(keepends=True):
            fact = _parse(line)
            if fact is None:
                break
            self._check_format(fact)
            self.take([fact])
            self._size += len(line)
        if self._size < len(data):
            self._files.truncate(self.path, self._size)
            self._files.sync(self.path)
        self._live_bytes = sum(map(len, self._lines()))

    def _check_format(self, fact: Fact) -> None:
        if fact.get("format", FORMAT) > FORMAT:
            raise FormatError(
                f"{self.path} was written by a newer Gateway: it has format {fact['format']}, this version knows "
                f"formats up to {FORMAT}. Use that version, or a newer one."
            )

    def take(self, facts: Iterable[Fact]) -> None:
        """Let them count. Not while `write` runs."""
        for fact in facts:
            if "producer_ids" in fact:
                self.producer_ids = max(self.producer_ids, fact["producer_ids"])
            elif "topic" in fact:
                topics = self.commits.setdefault(fact["group"], {})
                topics[fact["topic"]] = Commit(fact["offset"], fact["metadata"], fact["time"])
            elif "group" in fact:
                self.commits.pop(fact["group"], None)

    # -- writing

    def write(self, facts: Iterable[Fact]) -> None:
        """Have them on the disk; then the caller has to `take` them. Raises OSError; none of them is there then."""
        text = b"".join(map(_line, facts))
        if self._size == 0 or self._size + len(text) > max(REWRITE_BYTES_MIN, REWRITE_FACTOR * self._live_bytes):
            self._rewrite()
        try:
            self._files.write_at(self.path, text, self._size)
            self._files.sync(self.path)
        except OSError:
            self._cut()
            raise
        self._size += len(text)

    def _cut(self) -> None:
        """Part of the failed write may be there, and must not be taken for more when the next one follows it."""
        try:
            self._files.truncate(self.path, self._size)
        except OSError:
            self._size = 0  # the next write begins the file anew

    def _rewrite(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        content = b"".join(self._lines())
        replace(self._files, self.path, content)
        self._files.sync_directory(self.path.parent)
        self._files.sync_directory(self.path.parent.parent)
        self._size = self._live_bytes = len(content)

    def _lines(self) -> Iterable[bytes]:
        yield _line({"format": FORMAT})
        if self.producer_ids:
            yield _line({"producer_ids": self.producer_ids})
        for group, topics in self.commits.items():
            for topic, commit in topics.items():
                yield _line(fact_of(group, topic, commit))


class Committer:
    """Writes to the journal for all who ask, from an event loop: what is asked for meanwhile shares the next sync."""

    def __init__(self, journal: Journal, disk: Disk) -> None:
        self.journal = journal
        self._disk = disk
        self._waiting: list[tuple[list[Fact], asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    def write(self, facts: list[Fact]) -> asyncio.Future[bool]:
        """True: they are on the disk, and count. False: the disk did not take them."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((facts, done))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write_all(), name="kafka-commits")
        return done

    async def finish(self) -> None:
        """Wait until all that was asked for is written."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _write_all(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            facts = [fact for one, _ in waiting for fact in one]
            written = await self._disk.run(self._write, facts)
            if written:
                self.journal.take(facts)
            for _, done in waiting:
                if not done.done():
                    done.set_result(written)
        self._task = None

    def _write(self, facts: list[Fact]) -> bool:
        try:
            self.journal.write(facts)
        except OSError as error:
            logger.error("offsets could not be committed", extra={"fields": {"error": error.strerror or str(error)}})
            return False
        return True


def fact_of(group: str, topic: str, commit: Commit) -> Fact:
    """A commit as a line of the journal says it."""
    return {"group": group, "topic": topic, **commit._asdict()}


def _line(fact: Fact) -> bytes:
    text = json.dumps(fact, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return b"%08x %b\n" % (batch.crc32c(text), text)


def _parse(line: bytes) -> Fact | None:
    """None for a line that is not whole, or not what was written."""
    text = line[9:].rstrip(b"\n")
    if not line.endswith(b"\n") or line[:9] != b"%08x " % batch.crc32c(text):
        return None
    fact = json.loads(text)
    return fact if isinstance(fact, dict) else None
