"""Cursors: how far a reader has come in a stream, in a file of its own, so that it goes on there after a restart.

A cursor is committed by the reader, after it has done its work with the records: so each is handed out at least once,
and again if the reader ended between its work and the commit. Two readers have two files and do not know of each other.
At a distance (``kafka://``) the broker is known by its address. What is durable when: `commit` returns when the
position is on the disk; a crash leaves the old one or the new.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gateway_native import batch

from gateway.errors import FormatError
from gateway.log.files import FILES, replace
from gateway.replay.follow import Follower
from gateway.replay.records import GapReport, OnGap, Record

if TYPE_CHECKING:
    from gateway.log.segment import Damage
    from gateway.replay.log import Keys, Stream

FORMAT = 1


class Cursor:
    """A reader's place in one stream. Iterate over `read()`, `follow()` or `follow_async()`, and `commit()`.

    committed: the position that is in the file; None before the first commit.
    """

    def __init__(self, stream: Stream, path: str | Path, start: int | Literal["start", "end"] | str = "start") -> None:
        """start: where to begin when there is no file yet: an offset, "start", "end", or a time.

        FormatError if the file is no cursor, or one of another stream or data directory, or of a longer log than this.
        """
        self.path = Path(path)
        self.stream = stream
        self._identity = {"stream": stream.name, "log": stream.reader.identity}
        self.committed = self._load()
        self._position = stream.position_of(start) if self.committed is None else self._still_there(self.committed)
        self._following: Follower | None = None

    def __repr__(self) -> str:
        return f"<gateway.Cursor {str(self.path)!r} of {self.stream.name!r} at {self.position}, lag {self.lag}>"

    @property
    def position(self) -> int:
        """The offset that comes next: everything below it was handed out, or is not among the keys asked for."""
        passed = self._following.position if self._following is not None else 0
        return max(self._position, passed)

    @property
    def lag(self) -> int:
        """Records that are durable and not yet handed out."""
        return max(0, self.stream.durable_offset - max(self.position, self.stream.log_start_offset))

    @property
    def missed(self) -> int:
        """Records that retention has deleted before they were handed out."""
        return max(0, self.stream.log_start_offset - self.position)

    def describe(self) -> dict[str, Any]:
        """Position, committed position, lag in records, records missed, and the time of the next record."""
        selection = batch.Selection(offset_from=self.position)
        rows = next(self.stream.reader.chunks(selection, on_damage=lambda _: None), None)
        return {
            "stream": self.stream.name,
            "position": self.position,
            "committed": self.committed,
            "durable_offset": self.stream.durable_offset,
            "lag": self.lag,
            "missed": self.missed,
            "next": None if not rows else self.stream.moment(rows[0][1]),
        }

    def read(
        self,
        *,
        keys: Keys = None,
        retained: bool = True,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> Iterator[Record]:
        """The records from the position on that are durable now; the position moves with each that is handed out."""
        return self._moving(self._follower(keys, retained, damage, on_gap).records())

    def follow(
        self,
        *,
        keys: Keys = None,
        retained: bool = True,
        poll_s: float = 0.05,
        stop: threading.Event | None = None,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> Iterator[Record]:
        """The same, and then what becomes durable, until `stop` is set."""
        follower = self._follower(keys, retained, damage, on_gap)
        return self._moving(follower.run(poll_s, stop or threading.Event()))

    async def follow_async(
        self,
        *,
        keys: Keys = None,
        retained: bool = True,
        poll_s: float = 0.05,
        damage: OnGap = "gap",
        on_gap: Callable[[Damage], None] | None = None,
    ) -> AsyncIterator[Record]:
        """The same on an event loop."""
        async for record in self._follower(keys, retained, damage, on_gap).run_async(poll_s):
            self._position = record.offset + 1
            yield record

    def commit(self) -> None:
        """Everything handed out so far is done: on the disk when this returns. OSError leaves the file as it was."""
        content = {"format": FORMAT, **self._identity, "offset": self.position}
        replace(FILES, self.path, json.dumps(content).encode() + b"\n")
        FILES.sync_directory(self.path.parent)
        self.committed = self.position

    def _moving(self, records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            self._position = record.offset + 1
            yield record

    def _follower(self, keys: Keys, retained: bool, damage: OnGap, on_gap: Callable[[Damage], None] | None) -> Follower:
        report = GapReport(damage, set(), on_gap)
        self._following = self.stream.follower(self.position, keys=keys, retained=retained, report=report)
        return self._following

    def _still_there(self, committed: int) -> int:
        """FormatError for a position behind the end: what will be recorded up to there would never be handed out."""
        end = self.stream.durable_offset
        if committed > end:
            raise FormatError(
                f"{self.path} stands at offset {committed}, but {self.stream.name!r} ends at {end}: this is an older "
                "copy of the log. Use another file, which begins where you say."
            )
        return committed

    def _load(self) -> int | None:
        try:
            content = parse_cursor(self.path)
        except FileNotFoundError:
            return None
        if {name: content[name] for name in self._identity} != self._identity:
            raise FormatError(
                f"{self.path} is a cursor of {_told(content)}, not of {_told(self._identity)}; use another file."
            )
        return int(content["offset"])


def _told(identity: Mapping[str, Any]) -> str:
    """A stream, and the log that it is in."""
    log = identity["log"]
    place = f"at {log}" if "://" in log else f"in a data directory made {log}"
    return f"the stream {identity['stream']!r} {place}"


def parse_cursor(path: Path) -> dict[str, Any]:
    """What a cursor's file says: stream, log, offset. FormatError if it is none, FileNotFoundError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, IsADirectoryError):
        content = None
    wanted = {"format": int, "stream": str, "log": str, "offset": int}
    if not isinstance(content, dict) or any(type(content.get(name)) is not kind for name, kind in wanted.items()):
        raise FormatError(f"{path} is no cursor; name another file, or remove it to begin anew.")
    if content["format"] > FORMAT or content["offset"] < 0:
        raise FormatError(f"{path} is a cursor that this version does not understand; a newer Gateway wrote it.")
    return content


def position_of(stream: Stream, where: Any) -> int:
    """An offset: a number, "start" (the oldest there is), "end" (the next one), or that of a time."""
    if isinstance(where, int) and not isinstance(where, bool):
        if where < 0:
            raise ValueError(f"offset {where} is negative")
        return where
    if isinstance(where, str) and where in {"start", "end"}:
        return stream.log_start_offset if where == "start" else stream.durable_offset
    return stream.offset_at(where)
