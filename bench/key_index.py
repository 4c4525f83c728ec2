"""One key of many in a sealed segment: through its key index, beside walking all of it; and what the index costs.

Both read the same records; the walk is what reading did before there was an index, and does where there is none.
"""

from __future__ import annotations

import time
from pathlib import Path

from gateway_native import batch, watermark
from gateway_native.watermark import Watermark

from bench.common import PAYLOAD, Result, duration_s, median, scratch
from gateway.log.index import IndexBuilder
from gateway.log.key_index import key_index_path
from gateway.log.key_index_build import build_key_index
from gateway.log.partition import PartitionReader

KEYS = 100_000
BATCH_RECORDS = 2_500
T0_MS = 1_700_000_000_000


def run(rounds: int) -> Result:
    """Medians of the rounds, for one key, ten, and a filter that matches a hundredth."""
    result = Result(("keys read", "records", "index ms", "walk ms", "times faster"))
    size = int(duration_s(1 << 30, 64 << 20))
    with scratch() as directory:
        partition = directory / "telemetry-0"
        records = _make_segment(partition, size)
        started = time.thread_time()
        index_bytes = build_key_index(partition, 0)
        build_s = time.thread_time() - started
        for name, keys in _selections().items():
            walk_s = median([_read_s(partition, keys, indexed=False)[0] for _ in range(rounds)])
            times = [_read_s(partition, keys, indexed=True) for _ in range(rounds)]
            index_s = median([taken for taken, _ in times])
            result.rows.append(
                (name, f"{times[0][1]:,}", f"{index_s * 1e3:.2f}", f"{walk_s * 1e3:,.0f}", f"{walk_s / index_s:,.0f}")
            )
    result.facts = {
        "segment_bytes": size,
        "records": records,
        "index_share_of_the_log": f"{index_bytes / size:.1%}",
        "building_cpu_s": round(build_s, 2),
        "building_records_per_s": round(records / build_s),
    }
    return result


def _selections() -> dict[str, list[str]]:
    return {
        "one": [_key(777)],
        "ten": [_key(number * 991) for number in range(10)],
        "plant/line-7/+/temperature": ["plant/line-7/+/temperature"],
    }


def _key(number: int) -> str:
    return f"plant/line-{number % 1000}/{number // 1000}/temperature"


def _make_segment(directory: Path, size: int) -> int:
    """A sealed segment of about that size, in which every key has its turn, and an empty active one behind it."""
    directory.mkdir()
    keys = [_key(number).encode() for number in range(KEYS)]
    builder, position, offset = IndexBuilder(0), 0, 0
    with (directory / f"{0:020d}.log").open("wb") as log:
        while position < size:
            rows = [
                (T0_MS + (offset + n) // 10_000, keys[(offset + n) * 7919 % KEYS], PAYLOAD, ())
                for n in range(BATCH_RECORDS)
            ]
            data = batch.encode(rows, offset)
            builder.add(position, len(data), offset + BATCH_RECORDS - 1, rows[-1][0])
            log.write(data)
            position += len(data)
            offset += BATCH_RECORDS
    builder.seal()
    (directory / f"{0:020d}.index").write_bytes(builder.index)
    (directory / f"{0:020d}.timeindex").write_bytes(builder.times)
    (directory / f"{offset:020d}.log").write_bytes(b"")
    mark = Watermark(epoch=1, segment_base=offset, position=0, durable_offset=offset)
    (directory / "watermark").write_bytes(watermark.encode(mark))
    return offset


def _read_s(directory: Path, keys: list[str], *, indexed: bool) -> tuple[float, int]:
    """Seconds of opening and reading, and how many records there were. Not indexed: with the index out of the way."""
    path, aside = key_index_path(directory, 0), directory / "aside"
    if not indexed:
        path.rename(aside)
    try:
        started = time.perf_counter()
        reader = PartitionReader(directory)
        count = sum(len(rows) for rows in reader.chunks(batch.Selection(keys=keys)))
        return time.perf_counter() - started, count
    finally:
        if not indexed:
            aside.rename(path)
