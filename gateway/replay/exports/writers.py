"""What writes one file of an export, whatever its format. It has its name when it is whole and on disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.errors import GatewayError, UsageError

if TYPE_CHECKING:
    from datetime import tzinfo

    from gateway_native.batch import Row


class Writer(Protocol):
    """One file being written. `close` makes the file complete, `abandon` only closes it."""

    def write(self, stream: str, rows: list[Row]) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None: ...


Opener = Callable[[Path, "tzinfo"], Writer]


class Format(NamedTuple):
    """A format: how its files are called, what opens one, and whether one may hold several streams."""

    name: str
    suffixes: tuple[str, ...]
    open: Opener
    several_streams: bool = False
    in_parts: bool = True
    """May an export be a directory of files of this format?"""


def _parquet(path: Path, zone: tzinfo) -> Writer:
    from gateway.replay.exports.tables import ParquetFile

    return ParquetFile(path)


def _arrow(path: Path, zone: tzinfo) -> Writer:
    from gateway.replay.exports.tables import ArrowFile

    return ArrowFile(path)


def _csv(path: Path, zone: tzinfo) -> Writer:
    from gateway.replay.exports.lines import CsvFile

    return CsvFile(path, zone)


def _json_lines(path: Path, zone: tzinfo) -> Writer:
    from gateway.replay.exports.lines import JsonLinesFile

    return JsonLinesFile(path, zone)


def _mcap(path: Path, zone: tzinfo) -> Writer:
    from gateway.replay.exports.mcap import McapFile

    return McapFile(path)


FORMATS = (
    Format("parquet", (".parquet",), _parquet),
    Format("arrow", (".arrow", ".feather"), _arrow),
    Format("csv", (".csv",), _csv),
    Format("jsonl", (".jsonl", ".ndjson"), _json_lines),
    Format("mcap", (".mcap",), _mcap, several_streams=True, in_parts=False),
)


def format_named(name: str) -> Format:
    """By its name. UsageError, which names those there are."""
    for each in FORMATS:
        if each.name == name:
            return each
    raise UsageError(f"There is no format {name!r}; there is: {', '.join(each.name for each in FORMATS)}.")


def format_of(path: Path) -> Format | None:
    """By the name of a file; None for a name without a known suffix, which is a directory's."""
    return next((each for each in FORMATS if path.suffix.lower() in each.suffixes), None)


class WholeFile:
    """A file of an export, under another name until it is finished."""

    def __init__(self, path: Path, opened: Format, zone: tzinfo) -> None:
        """GatewayError if it cannot be made."""
        self.path = path
        self.rows = 0
        self._partial = path.with_name(f".{path.name}.new")
        try:
            self._writer = opened.open(self._partial, zone)
        except OSError as error:
            raise _unwritable(path, error) from error
        except ModuleNotFoundError as error:
            raise GatewayError(
                f"Writing {opened.name} needs the package {str(error.name).partition('.')[0]!r}: "
                "pip install 'gateway[replay]' brings it."
            ) from error

    def write(self, stream: str, rows: list[Row]) -> None:
        try:
            self._writer.write(stream, rows)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.rows += len(rows)

    def finish(self) -> int:
        """Complete it, have it on the disk, give it its name; its size in bytes."""
        try:
            self._writer.close()
            with self._partial.open("rb+") as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            self._partial.replace(self.path)
            _sync_directory(self.path.parent)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        return size

    def abandon(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(Exception):  # it is thrown away, in whatever state it is
            self._writer.abandon()
        self._partial.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    from gateway.log.layout import sync_directory

    sync_directory(directory)


def _unwritable(path: Path, error: OSError) -> GatewayError:
    return GatewayError(f"{path} cannot be written: {error.strerror or error}.")
