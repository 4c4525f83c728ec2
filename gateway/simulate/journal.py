"""What simulated cameras sent, for tests to compare with what was recorded: byte for byte and loss for loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gateway.errors import SourceError
from gateway.simulate.coded import Shaped


@dataclass(frozen=True, slots=True)
class Sent:
    """One access unit as it was handed to one client's connection.

    path: the camera. connection: numbers them from 1 over the whole server. index: its place in the feed. shaped: its
    bytes. ticks: 90 kHz, unwrapped, since the feed's start; timestamp: the same as RTP time stamp, not yet cut to 32
    bits. wall_ns: when it was taken; sent_ns: when its last packet was given to the kernel; ns since 1970. packets: how
    many it has, lost: how many of those were not sent.
    """

    path: str
    connection: int
    index: int
    shaped: Shaped
    key: bool
    ticks: int
    timestamp: int
    wall_ns: int
    sent_ns: int
    packets: int
    lost: int

    @property
    def nals(self) -> tuple[bytes, ...]:
        """Its NAL units, or the one JPEG image."""
        return self.shaped.nals

    @property
    def digest(self) -> str:
        """What it hashes to in the form it is recorded in; see `gateway.simulate.coded.digest`."""
        return self.shaped.digest

    def as_json(self) -> str:
        """One object on one line."""
        return (
            f'{{"camera":{json.dumps(self.path)},"connection":{self.connection},"index":{self.index},'
            f'"digest":"{self.digest}","key":{"true" if self.key else "false"},"timestamp":{self.timestamp},'
            f'"wall_ns":{self.wall_ns},"sent_ns":{self.sent_ns},"packets":{self.packets},"lost":{self.lost}}}'
        )


class JournalFile:
    """A line for every access unit sent. It grows for as long as cameras play, and is on disk after `close` only."""

    def __init__(self, path: Path) -> None:
        """Raises SourceError when the file cannot be written."""
        self._path = path
        try:
            self._file: IO[str] = path.open("w", encoding="ascii")
        except OSError as error:
            raise SourceError(f"The journal {path} cannot be written: {error.strerror}.") from error

    def add(self, sent: Sent) -> None:
        self._file.write(sent.as_json())
        self._file.write("\n")

    def flush(self) -> None:
        """Let others read what was added."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Line:
    """One access unit in a journal file; the fields are those of `Sent`."""

    camera: str
    connection: int
    index: int
    digest: str
    key: bool
    timestamp: int
    wall_ns: int
    sent_ns: int
    packets: int
    lost: int


def read_journal(path: Path) -> Iterator[Line]:
    """All whole lines of a journal file, in the order of sending."""
    with path.open(encoding="ascii") as file:
        for line in file:
            if line.endswith("\n"):
                yield Line(**json.loads(line))
