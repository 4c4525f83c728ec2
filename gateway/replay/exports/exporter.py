"""Exports of records: one file, or a directory of files by stream and day that can be gone on with.

    out.parquet                                              one file: whole, or not there
    out/stream=telemetry/date=2026-11-23/<first offset>.parquet    the day in the site's zone
    out/_gateway-export.json                                  what the export is, and how far it has come

What is durable when: a file has its name once its content is on the disk, and the state is written behind it. So an
export that was interrupted, however, goes on with the first record that is in no file; a file that was finished but not
noted is written again, with the same name and content. Memory: some 32 MiB of values, whatever the range.
"""

from __future__ import annotations

import base64
import heapq
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from datetime import UTC, date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway_native import batch

from gateway.clock import NS_PER_MS, format_size, format_time
from gateway.errors import FormatError, GatewayError, UsageError
from gateway.log.files import FILES, replace
from gateway.log.layout import sync_directory
from gateway.replay.exports.writers import FORMATS, Format, WholeFile, format_named, format_of
from gateway.replay.records import GapReport, OnGap, moment, without_retained

if TYPE_CHECKING:
    from gateway_native.batch import Row

    from gateway.log.segment import Damage
    from gateway.replay.log import Keys, Stream

# Programs that read directories of Parquet pass over names that begin with _.
STATE_FILE = "_gateway-export.json"
STATE_FORMAT = 1
DEFAULT_FORMAT = "parquet"

# A file of a directory is ended at so many records, or bytes of values; then what was done so far is safe.
PART_ROWS_MAX = 2_000_000
PART_BYTES_MAX = 512 << 20

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class RecordsReport:
    """What was exported. bytes: of the files that were written now."""

    path: Path
    format: str
    records: int = 0
    bytes: int = 0
    files: int = 0
    resumed: bool = False
    offsets: dict[str, tuple[int, int]] = field(default_factory=dict)
    """For each stream the range that was read now."""
    damaged: int = 0
    """Places that could not be read."""

    def __str__(self) -> str:
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        resumed = ", going on with an earlier export" if self.resumed else ""
        damaged = f"; {self.damaged:,} damaged places were passed over" if self.damaged else ""
        return f"{self.records:,} records in {files}, {format_size(self.bytes)}{resumed}{damaged}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which records. Times in ns since 1970-01-01 UTC, half-open; None: no bound."""

    start_ns: int | None = None
    end_ns: int | None = None
    keys: Keys = None
    retained: bool = True
    damage: OnGap = "gap"
    on_gap: Callable[[Damage], None] | None = None


def export(
    streams: Sequence[Stream],
    path: str | Path,
    choice: Choice,
    *,
    format_name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RecordsReport:
    """Write the records of `streams` to `path`: a file if its name ends like a format's, else a directory.

    format_name: for a directory; None is Parquet, or what the export was begun with. resume: go on with an export in
    that directory, also with what became durable since. progress gets offsets done, and of how many. UsageError for
    what does not go together, GatewayError for what cannot be written.
    """
    target = Path(path)
    single = format_of(target)
    if single is None:
        _check_directory_name(target, format_name, resume=resume)
    run = _Run(streams, target, choice, progress)
    if single is None:
        return _Directory(run, format_name, resume=resume).export()
    if format_name is not None and format_name != single.name:
        raise UsageError(f"{target} is called like a file of {single.name}, not of {format_name}; give one of the two.")
    if resume:
        raise UsageError("Only an export into a directory can be gone on with; name a directory, and --format.")
    return _export_file(run, single, overwrite)


def _check_directory_name(target: Path, format_name: str | None, *, resume: bool) -> None:
    """UsageError for a name that looks like a file's: `data.xlsx` shall not become a directory unasked."""
    if target.suffix and format_name is None and not resume and not target.is_dir():
        known = ", ".join(suffix for each in FORMATS for suffix in each.suffixes)
        raise UsageError(
            f"{target} ends like no format that is written here ({known}, and .mp4 for pictures); if it shall be a "
            "directory, say in which format its files are (--format)."
        )


class _Run:
    """What one export reads, up to what was durable when it began."""

    def __init__(self, streams: Sequence[Stream], target: Path, choice: Choice, progress: Progress | None) -> None:
        if not streams:
            raise UsageError("There is nothing to export: name at least one stream.")
        self.streams = streams
        self.target = target
        self.choice = choice
        self.stops = {stream.name: self._stop(stream) for stream in streams}
        self._progress = progress
        self._report = GapReport(choice.damage, set(), choice.on_gap)
        self._total = self._done = 0
        self.damaged = 0

    def go_on_with(self, start_ns: int | None, keys: Keys, *, retained: bool) -> None:
        """Choose as an earlier run did."""
        self.choice = replace_fields(self.choice, start_ns=start_ns, keys=keys, retained=retained)

    def _stop(self, stream: Stream) -> int:
        """The offset with which the range ends.

        In a directory it is that of the first record that is not before the end, so that it can be gone on with from
        there. One file has what `read` gives, also records behind that, of a clock that was set back.
        """
        return stream.durable_offset if format_of(self.target) is not None else self._end(stream)

    def _end(self, stream: Stream) -> int:
        """The first offset that is not before the end in time."""
        if self.choice.end_ns is None:
            return stream.durable_offset
        return stream.offset_at(stream.stamp(self.choice.end_ns + NS_PER_MS - 1))

    def first(self, stream: Stream) -> int:
        """The offset with which the range begins."""
        if self.choice.start_ns is None:
            return stream.log_start_offset
        return stream.offset_at(stream.stamp(self.choice.start_ns + NS_PER_MS - 1))

    def plan(self, firsts: dict[str, int]) -> None:
        """Progress is told of the ranges that begin there, as far as times go forward."""
        self._total = sum(max(0, self._end(stream) - firsts[stream.name]) for stream in self.streams)

    def rows(self, stream: Stream, first: int) -> Iterator[list[Row]]:
        """The chosen records from offset `first` on."""
        selection = batch.Selection(
            offset_from=first,
            offset_to=self.stops[stream.name],
            time_from=_milliseconds(self.choice.start_ns),
            time_to=_milliseconds(self.choice.end_ns),
            keys=self.choice.keys,
        )
        position = first
        for rows in stream.reader.chunks(selection, on_damage=self._passes_over()):
            yield rows if self.choice.retained else without_retained(rows)
            self._step(rows[-1][0] + 1 - position)
            position = rows[-1][0] + 1
        self._step(self.stops[stream.name] - position)

    def _passes_over(self) -> Callable[[Damage], None] | None:
        tell = self._report.passes_over
        if tell is None:
            return None

        def count(damage: Damage) -> None:
            self.damaged += 1
            tell(damage)

        return count

    def _step(self, offsets: int) -> None:
        self._done += max(0, offsets)
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _milliseconds(instant_ns: int | None) -> int | None:
    return None if instant_ns is None else -(-instant_ns // NS_PER_MS)


# -- one file ---------------------------------------------------------------------------------------------------------


def _export_file(run: _Run, opened: Format, overwrite: bool) -> RecordsReport:
    if len(run.streams) > 1 and not opened.several_streams:
        raise UsageError(f"A file of {opened.name} holds one stream; for several name a directory, or an .mcap file.")
    if run.target.exists() and (run.target.is_dir() or not overwrite):
        raise GatewayError(f"{run.target} exists already; choose another name, or overwrite it (--overwrite).")
    if not run.target.parent.is_dir():
        raise GatewayError(f"The directory {run.target.parent} does not exist; create it first.")
    firsts = {stream.name: run.first(stream) for stream in run.streams}
    run.plan(firsts)
    file = WholeFile(run.target, opened, run.streams[0].zone)
    try:
        for name, rows in _in_order(run, firsts):
            file.write(name, rows)
        size = file.finish()
    except BaseException:
        file.abandon()
        raise
    ranges = {name: (first, max(first, run.stops[name])) for name, first in firsts.items()}
    return RecordsReport(run.target, opened.name, file.rows, size, 1, False, ranges, run.damaged)


def _in_order(run: _Run, firsts: dict[str, int]) -> Iterator[tuple[str, list[Row]]]:
    """The records of one stream piece by piece; of several one by one, in the order of time."""
    if len(run.streams) == 1:
        stream = run.streams[0]
        yield from ((stream.name, rows) for rows in run.rows(stream, firsts[stream.name]))
        return
    yield from merged_rows([(stream.name, run.rows(stream, firsts[stream.name])) for stream in run.streams])


def merged_rows(sources: Sequence[tuple[str, Iterator[list[Row]]]]) -> Iterator[tuple[str, list[Row]]]:
    """Rows of several streams in the order of time, each in a list of its own."""

    def named(name: str, pieces: Iterator[list[Row]]) -> Iterator[tuple[str, Row]]:
        return ((name, row) for rows in pieces for row in rows)

    for name, row in heapq.merge(*(named(*source) for source in sources), key=lambda each: each[1][1]):
        yield name, [row]


# -- a directory ------------------------------------------------------------------------------------------------------


class _Directory:
    """An export into files by stream and day."""

    def __init__(self, run: _Run, format_name: str | None, *, resume: bool) -> None:
        self._run = run
        self._path = run.target
        state = self._state(resume)
        self._format = format_named(format_name or state.get("format") or DEFAULT_FORMAT)
        if not self._format.in_parts:
            raise UsageError(f"{self._format.name} is for one file; name one that ends in {self._format.suffixes[0]}.")
        self._content: dict[str, Any] = {
            "state": STATE_FORMAT,
            "format": self._format.name,
            "start_ns": run.choice.start_ns,
            "keys": _keys_as_json(run.choice.keys),
            "retained": run.choice.retained,
        }
        self._next: dict[str, int] = {}
        if state:
            self._take_over(state)
            self._next = {name: int(offset) for name, offset in state["next"].items()}
        self._report = RecordsReport(self._path, self._format.name, resumed=bool(state))

    def export(self) -> RecordsReport:
        firsts = {
            stream.name: self._next[stream.name] if stream.name in self._next else self._run.first(stream)
            for stream in self._run.streams
        }
        self._run.plan(firsts)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._save()
            for stream in self._run.streams:
                self._export_stream(stream, firsts[stream.name])
        except OSError as error:
            raise GatewayError(
                f"{error.filename or self._path} cannot be written: {error.strerror or error}."
            ) from error
        self._report.damaged = self._run.damaged
        return self._report

    def _export_stream(self, stream: Stream, first: int) -> None:
        part: _Part | None = None
        try:
            for rows in self._run.rows(stream, first):
                for day, piece in _by_day(rows, stream):
                    if part is not None and (part.day != day or part.full):
                        self._finish(stream, part, piece[0][0])
                        part = None
                    if part is None:
                        part = _Part(self._directory(stream, day), self._format, stream, day, piece[0][0])
                    part.write(piece)
            stop = max(first, self._run.stops[stream.name])
            if part is not None:
                self._finish(stream, part, stop)
                part = None
            self._note(stream, stop)
        except BaseException:
            if part is not None:
                part.file.abandon()
            raise
        self._report.offsets[stream.name] = (first, stop)

    def _directory(self, stream: Stream, day: date) -> Path:
        found = self._path / f"stream={stream.name}" / f"date={day.isoformat()}"
        if not found.is_dir():
            found.mkdir(parents=True, exist_ok=True)
            for above in (found.parent, self._path):
                sync_directory(above)
        return found

    def _finish(self, stream: Stream, part: _Part, following: int) -> None:
        self._report.bytes += part.file.finish()
        self._report.files += 1
        self._report.records += part.file.rows
        self._note(stream, following)

    def _note(self, stream: Stream, following: int) -> None:
        self._next[stream.name] = following
        self._save()

    # -- the state -----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        content = {**self._content, "next": self._next}
        replace(FILES, self._path / STATE_FILE, json.dumps(content, indent=1).encode() + b"\n")
        sync_directory(self._path)

    def _state(self, resume: bool) -> dict[str, Any]:
        """What an earlier run left; empty if this is the first."""
        path = self._path / STATE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir())):
                raise GatewayError(f"{self._path} exists and is no export; name a new or an empty directory.") from None
            return {}
        except (OSError, ValueError) as error:
            raise FormatError(f"{path} cannot be read ({error}); export into another directory.") from None
        if not isinstance(content, dict) or content.get("state") != STATE_FORMAT or "next" not in content:
            raise FormatError(f"{path} is not the state of an export that this version knows; use another directory.")
        if not resume:
            raise GatewayError(f"{self._path} holds an export already; go on with it (--resume), or name another one.")
        return content

    def _take_over(self, state: dict[str, Any]) -> None:
        """What is left out is as the export was begun; what is given must be the same."""
        for name, given in list(self._content.items()):
            was = state.get(name)
            left_out = given is None or (name == "retained" and given is True)
            if left_out:
                self._content[name] = was
            elif given != was:
                raise UsageError(
                    f"The export in {self._path} was begun with {_told(name, was)}; leave it out to go on with that, "
                    "or name another directory."
                )
        kept = self._content
        self._run.go_on_with(kept["start_ns"], _keys_from_json(kept["keys"]), retained=kept["retained"])


def _told(name: str, value: Any) -> str:
    """What an earlier export was asked for, in words."""
    if name == "start_ns":
        return "no start" if value is None else f"the start {format_time(value, UTC)}"
    if name == "keys":
        return "all keys" if value is None else f"the keys {', '.join(map(str, value))}"
    return f"the {name} {value}"


@dataclass(slots=True)
class _Part:
    """A file of a directory that is being written."""

    directory: Path
    format: Format
    stream: Stream
    day: date
    first: int
    file: WholeFile = field(init=False)
    bytes: int = 0

    def __post_init__(self) -> None:
        path = self.directory / f"{self.first:020d}{self.format.suffixes[0]}"
        self.file = WholeFile(path, self.format, self.stream.zone)

    @property
    def full(self) -> bool:
        return self.file.rows >= PART_ROWS_MAX or self.bytes >= PART_BYTES_MAX

    def write(self, rows: list[Row]) -> None:
        self.file.write(self.stream.name, rows)
        self.bytes += sum(len(row[3] or b"") for row in rows)


def _by_day(rows: list[Row], stream: Stream) -> Iterator[tuple[date, list[Row]]]:
    """Pieces of one day each, in order."""
    start = 0
    while start < len(rows):
        day = _day(rows[start][1], stream)
        end = len(rows) if _day(rows[-1][1], stream) == day and _sorted(rows, start) else start + 1
        while end < len(rows) and _day(rows[end][1], stream) == day:
            end += 1
        yield day, rows[start:end]
        start = end


def _sorted(rows: list[Row], start: int) -> bool:
    """Do times not go back from there on?"""
    return all(rows[at][1] <= rows[at + 1][1] for at in range(start, len(rows) - 1))


def _day(timestamp_ms: int, stream: Stream) -> date:
    return moment(timestamp_ms, stream.zone).date()


def _keys_as_json(keys: Keys) -> list[str | dict[str, str]] | None:
    """Filters as text, exact keys in base64."""
    if keys is None:
        return None
    given = (keys,) if isinstance(keys, str | bytes) else keys
    return [{"exact": base64.b64encode(each).decode()} if isinstance(each, bytes) else each for each in given]


def _keys_from_json(keys: list[str | dict[str, str]] | None) -> Keys:
    if keys is None:
        return None
    return [each if isinstance(each, str) else base64.b64decode(each["exact"]) for each in keys]
