"""Does Spark read a stream through its Kafka source, and how fast, beside a Kafka broker that holds the same segments?

Structured Streaming on one core takes everything there is, 200,000 records a trigger, and counts it: every offset once.
Needs `pip install 'pyspark>=3.5,<4'` and Java; Spark brings its connector from Maven Central by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

from bench.common import Result, Skipped, duration_s, median, scratch
from bench.kafka_fetch import TOPIC, rounds_of

CONNECTOR = "org.apache.spark:spark-sql-kafka-0-10_2.12:3.5.7"
SIZES = {"64 B": (64, round(duration_s(1_000_000, 50_000))), "16 KiB": (16_384, round(duration_s(40_000, 3_000)))}
RECORDS_PER_TRIGGER = 200_000
SETTINGS = {
    "spark.jars.packages": CONNECTOR, "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "1g", "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "1", "spark.log.level": "ERROR",
}  # fmt: skip


def session() -> Any:
    """One in this process."""
    builder = importlib.import_module("pyspark.sql").SparkSession.builder.master("local[1]").appName("bench")
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def reader(spark: Any) -> Callable[[int, int], None]:
    """Reads all of the topic; fails unless every offset comes once."""

    def read(port: int, count: int) -> None:
        stream = (
            spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", f"127.0.0.1:{port}")
            .option("subscribe", TOPIC)
            .option("startingOffsets", "earliest")
            .option("maxOffsetsPerTrigger", RECORDS_PER_TRIGGER)
            .load()
        )
        counted = stream.selectExpr("count(1)", "min(offset)", "max(offset)", "sum(length(value))")
        query = (
            counted.writeStream.format("memory").queryName("counted").outputMode("complete")
            .trigger(availableNow=True).start()
        )  # fmt: skip
        query.awaitTermination()
        found = spark.table("counted").first()
        if tuple(found)[:3] != (count, 0, count - 1):
            raise RuntimeError(f"Spark read {found}, not {count} records")

    return read


def run(rounds: int) -> Result:
    if importlib.util.find_spec("pyspark") is None:
        raise Skipped("pyspark is not installed")
    if shutil.which("java") is None:
        raise Skipped("java is not installed")
    spark = session()
    result = Result(("values", "gateway k records/s", "broker k records/s", "ratio"))
    try:
        for size, (value_bytes, count) in SIZES.items():
            with scratch() as directory:
                found = rounds_of(directory, value_bytes, count, rounds, {"spark": reader(spark)})
            ours, theirs = (median([took.seconds for took in found[one, "spark"]]) for one in ("gateway", "broker"))
            result.rows.append(
                (size, f"{count / ours / 1e3:,.0f}", f"{count / theirs / 1e3:,.0f}", f"{theirs / ours:.2f}")
            )
    finally:
        spark.stop()
    return result
