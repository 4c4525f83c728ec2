"""CSV and JSON lines, as `gateway read --csv` and `--json` print them: `gateway.replay.text` is the specification."""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.replay import text
from gateway.replay.records import Record, make_record

if TYPE_CHECKING:
    from gateway_native.batch import Row


class _LinesFile:
    def __init__(self, path: Path, zone: tzinfo, line: Callable[[Record], str], heading: str = "") -> None:
        self._zone = zone
        self._line = line
        self._file = path.open("w", encoding="utf-8", newline="")
        self._file.write(heading)

    def write(self, stream: str, rows: list[Row]) -> None:
        self._file.writelines(self._line(make_record(row, self._zone)) for row in rows)

    def close(self) -> None:
        self._file.close()

    abandon = close


class CsvFile(_LinesFile):
    """With a heading."""

    def __init__(self, path: Path, zone: tzinfo) -> None:
        super().__init__(path, zone, text.as_csv, text.csv_line(text.CSV_COLUMNS))


class JsonLinesFile(_LinesFile):
    """One object a line."""

    def __init__(self, path: Path, zone: tzinfo) -> None:
        super().__init__(path, zone, text.as_json)
