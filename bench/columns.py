"""How fast do records become columns?

10 million records of 64 B (keys of 22 B, 100 of them) in a log as the gateway writes it, read with a warm page cache,
on one core: this process is bound to one. Beside it the same columns out of a Parquet file (pyarrow, uncompressed, and
with its default), the rows of the log as Python objects, and, where a Kafka broker's jars and Java are there, a
confluent-kafka consumer that takes the same records from a Kafka broker on this machine, whose own work has the other
cores. Every round reads everything; the median counts.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from gateway_native import batch, summary, watermark

import gateway
from bench.common import QUICK_VARIABLE, Result, Skipped, median, scratch
from bench.disk import free_bytes
from gateway.log.layout import prepare

RECORDS = 10_000_000
RECORDS_QUICK = 500_000
BATCH_RECORDS = 2_600  # 256 KiB
SEGMENT_BATCHES = 4_000  # 1 GiB
KEYS = [b"plant/line-%d/sensor-%03d" % (number % 10, number) for number in range(100)]
T0_MS = 1_790_000_000_000
RECORD_BYTES = 100  # in the log
FLAT_BYTES = 10 * 2**30
FLAT_BYTES_QUICK = 2**29


def write_log(data: Path, records: int) -> None:
    """A stream `t`: a batch is made once and goes on with its offsets, as their CRC allows; times are all the same."""
    prepare(data, "bench", "UTC")
    directory = data / "t-0"
    directory.mkdir()
    rows = [(T0_MS, KEYS[n % 100], b"%063d" % n + b".", ()) for n in range(BATCH_RECORDS)]
    model = bytearray(batch.encode(rows))
    count = -(-records // BATCH_RECORDS)
    bases = range(0, count, SEGMENT_BATCHES)
    entries = []
    for first in bases:
        batches = min(SEGMENT_BATCHES, count - first)
        with (directory / f"{first * BATCH_RECORDS:020d}.log").open("wb") as file:
            for number in range(first, first + batches):
                model[:8] = (number * BATCH_RECORDS).to_bytes(8, "big")
                file.write(model)
        if first + batches < count:
            entries.append(_summary(first * BATCH_RECORDS, batches * len(model), (first + batches) * BATCH_RECORDS))
    (directory / "manifest").write_bytes(b"".join(entries))
    last = bases[-1]
    mark = watermark.Watermark(
        epoch=1,
        segment_base=last * BATCH_RECORDS,
        position=(count - last) * len(model),
        durable_offset=count * BATCH_RECORDS,
        last_timestamp=T0_MS,
        first_timestamp=T0_MS,
        max_timestamp=T0_MS,
        offset_of_max=last * BATCH_RECORDS,
        flags=watermark.CLEAN,
    )
    (directory / "watermark").write_bytes(watermark.encode(mark))


def _summary(base: int, size: int, next_offset: int) -> bytes:
    return summary.encode(summary.Summary(base, size, next_offset, T0_MS, T0_MS, 0, 0))


class Rate(NamedTuple):
    """Records for each second that went by, and for each second of this process's CPU: medians."""

    wall: float
    cpu: float


def measured(rounds: int, read: Callable[[], int], expected: int) -> Rate:
    """Each round must have them all. The CPU's own figure is fair on a machine that does something else besides."""
    rates = []
    for _ in range(rounds + 1):  # the first one warms up
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        found = read()
        rates.append((expected / (time.perf_counter() - wall), expected / (time.process_time() - cpu)))
        assert found == expected, f"{found} records instead of {expected}"
    return Rate(*(median([rate[which] for rate in rates[1:]]) for which in (0, 1)))


def ways(stream: gateway.Stream) -> dict[str, Callable[[], int]]:
    """Everything that reads the log itself; each returns how many records it had."""
    return {
        "to_arrow(view=True)": lambda: stream.read().to_arrow(view=True).num_rows,
        "to_arrow()": lambda: stream.read().to_arrow().num_rows,
        "to_arrow(key='dictionary')": lambda: stream.read().to_arrow(key="dictionary").num_rows,
        "to_batches(view=True), one at a time": lambda: _count(stream.read().to_batches(view=True)),
        "to_batches(), one at a time": lambda: _count(stream.read().to_batches()),
        "to_polars, then group_by(key).len()": lambda: int(
            stream.read().to_polars().group_by("key").len()["len"].sum()
        ),
        "to_duckdb, then count(*) group by key": lambda: sum(
            row[1] for row in stream.read().to_duckdb(_duckdb()).aggregate("key, count(*)").fetchall()
        ),
        "values='float'": lambda: stream.read().to_arrow(values="float", key="dictionary").num_rows,
    }


def _count(batches: pa.RecordBatchReader) -> int:
    return sum(len(batch) for batch in batches)


def _duckdb() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def parquet_ways(path: Path, table: pa.Table) -> dict[str, Callable[[], int]]:
    """The same columns out of Parquet files."""
    plain, default = path / "plain.parquet", path / "default.parquet"
    pyarrow.parquet.write_table(table, plain, compression="none", use_dictionary=["key"])
    pyarrow.parquet.write_table(table, default)
    return {
        "Parquet, uncompressed": lambda: pyarrow.parquet.read_table(plain, use_threads=False).num_rows,
        "Parquet, default (snappy)": lambda: pyarrow.parquet.read_table(default, use_threads=False).num_rows,
    }


def rows_rate(stream: gateway.Stream, records: int) -> Rate:
    """Iterating over records, over a tenth of them: it is the slow way."""
    some = records // 10
    return measured(1, lambda: sum(1 for _ in stream.read(offsets=(0, some)).rows()), some)


# -- a Kafka consumer ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def broker_with(directory: Path, partition: Path) -> Iterator[str]:
    """A real broker that serves the log's own files; gives its address. Skipped without its jars, or its client."""
    try:
        import confluent_kafka  # noqa: F401

        from tests.support.kafka_broker import KraftBroker
    except ImportError as error:
        raise Skipped(f"{error.name} is missing") from error
    broker = KraftBroker(directory / "broker")
    try:
        broker.format()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Skipped(f"Kafka's jars, or Java, are missing: {error}") from error
    with broker:
        _create_topic(broker.address)
    broker.replace_files("t", partition.glob("*.log"))
    broker.forget_clean_stop()
    with broker:
        yield broker.address


def _create_topic(address: str) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = NewTopic("t", 1, 1, config={"retention.ms": "-1"})
    client = AdminClient({"bootstrap.servers": address})
    client.create_topics([topic])["t"].result(60)


def consumer_rate(address: str, records: int, rounds: int) -> Rate:
    """A consumer of librdkafka that takes keys and values, 100,000 messages at a time."""
    from confluent_kafka import Consumer, TopicPartition

    def read() -> int:
        consumer = Consumer({"bootstrap.servers": address, "group.id": "bench", "fetch.message.max.bytes": 8 << 20})
        consumer.assign([TopicPartition("t", 0, 0)])
        found, size = 0, 0
        while found < records:
            messages = consumer.consume(min(100_000, records - found), 30)
            assert messages, f"only {found} of {records} messages came"
            size += sum(len(message.key()) + len(message.value()) for message in messages)
            found += len(messages)
        consumer.close()
        return found

    return measured(rounds, read, records)


# -- memory ------------------------------------------------------------------------------------------------------------


def add_memory(result: Result, size: int) -> None:
    """How much more a process needs at its largest while it reads a long log than for the first twenty batches."""
    with scratch() as directory:
        if free_bytes(directory) < size:
            result.facts["memory"] = "skipped: the disk has no room"
            return
        write_log(directory / "data", size // RECORD_BYTES)
        for way in ("copy", "view"):
            grown = _growth_mib(directory / "data", way)
            result.facts[f"to_batches, {way}: MiB_more_for_{size / 2**30:g}_GiB"] = f"{grown:.1f}"


def _growth_mib(data: Path, way: str) -> float:
    """In a process of its own, since the kernel tells only the largest size ever. Pages of the log's mapping count."""
    code = (
        "import resource, sys, gateway\n"
        "batches = gateway.open(sys.argv[1])['t'].read().to_batches(view=sys.argv[2] == 'view')\n"
        "records = sum(len(next(batches)) for _ in range(20))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "records += sum(len(batch) for batch in batches)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-c", code, str(data), way]
    return int(subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout) / 1024


def run(rounds: int) -> Result:
    quick = bool(os.environ.get(QUICK_VARIABLE))
    wanted = RECORDS_QUICK if quick else RECORDS
    records = -(-wanted // BATCH_RECORDS) * BATCH_RECORDS
    result = Result(("way", "million records/s", "beside to_arrow(view=True)", "million records/s of CPU", "beside it"))
    rates: dict[str, Rate] = {}
    with scratch() as directory, one_core():
        write_log(directory / "data", records)
        stream = gateway.open(directory / "data")["t"]
        for name, read in ways(stream).items():
            rates[name] = measured(rounds, read, records)
        table = stream.read().to_arrow()
        assert pc.count_distinct(table["key"]).as_py() == len(KEYS)
        for name, read in parquet_ways(directory, table).items():
            rates[name] = measured(rounds, read, records)
        del table
        rates["rows (Python objects)"] = rows_rate(stream, records)
        try:
            with broker_with(directory, stream.reader.directory) as address:
                some = records // 5
                rates["confluent-kafka, from Kafka's broker"] = consumer_rate(address, some, min(rounds, 2))
        except Skipped as reason:
            result.facts["Kafka"] = f"skipped: {reason}"
    best = rates["to_arrow(view=True)"]
    for name, rate in rates.items():
        result.rows.append((
            name, f"{rate.wall / 1e6:.2f}", f"{rate.wall / best.wall:.3f}",
            f"{rate.cpu / 1e6:.2f}", f"{rate.cpu / best.cpu:.3f}",
        ))  # fmt: skip
    add_memory(result, FLAT_BYTES_QUICK if quick else FLAT_BYTES)
    return result


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Bind this process, and what it starts, to one core: nothing may be faster for having several."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        pa.set_cpu_count(len(before))
