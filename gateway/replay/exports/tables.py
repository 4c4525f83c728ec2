"""Parquet and Arrow IPC, through pyarrow. One row a record; every value exactly as it was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from gateway.clock import NS_PER_MS

if TYPE_CHECKING:
    from gateway_native.batch import Row

# offset, timestamp (the gateway's receive time), key, value; headers in their order, names may repeat.
SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", pa.timestamp("ns", "UTC"), nullable=False),
        pa.field("key", pa.large_binary()),
        pa.field("value", pa.large_binary()),
        pa.field("headers", pa.map_(pa.string(), pa.large_binary()), nullable=False),
    ]
)

# Rows, or bytes of values, of one group: what is in memory at a time, and what readers can skip.
GROUP_ROWS_MAX = 100_000
GROUP_BYTES_MAX = 32 << 20


def to_batch(rows: list[Row]) -> pa.RecordBatch:
    """Decoded rows as a record batch with SCHEMA."""
    offsets, times, keys, values, headers = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    columns = [
        pa.array(offsets, pa.int64()),
        pa.array([time * NS_PER_MS for time in times], pa.int64()).cast(SCHEMA.field("timestamp").type),
        pa.array(keys, pa.large_binary()),
        pa.array(values, pa.large_binary()),
        pa.array([[(_text(name), value) for name, value in each] for each in headers], SCHEMA.field("headers").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _text(name: str) -> str:
    """Header names are text; bytes of others that are none come as replacement characters."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


class _TableFile:
    """Collects rows into groups of bounded size."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened
        self._rows: list[Row] = []
        self._bytes = 0

    def write(self, stream: str, rows: list[Row]) -> None:
        for row in rows:
            self._rows.append(row)
            self._bytes += len(row[3] or b"")
            if len(self._rows) >= GROUP_ROWS_MAX or self._bytes >= GROUP_BYTES_MAX:
                self._write_group()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._opened.close()

    def abandon(self) -> None:
        self._opened.close()

    def _write_group(self) -> None:
        self._opened.write_batch(to_batch(self._rows))
        self._rows, self._bytes = [], 0


class ParquetFile(_TableFile):
    """zstd, a row group for each group of rows, with statistics of offset, timestamp and key."""

    def __init__(self, path: Path) -> None:
        statistics = ["offset", "timestamp", "key"]
        super().__init__(pq.ParquetWriter(str(path), SCHEMA, compression="zstd", write_statistics=statistics))


class ArrowFile(_TableFile):
    """The IPC file format (also called Feather 2), uncompressed, so that readers can map it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        super().__init__(pa.ipc.new_file(self._file, SCHEMA))

    def close(self) -> None:
        super().close()
        self._file.close()

    def abandon(self) -> None:
        super().abandon()
        self._file.close()
