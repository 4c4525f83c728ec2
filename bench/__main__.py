"""`python -m bench [NAME …] [--json] [--rounds N] [--quick]`: measure; what has no peer here is skipped by name."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys

from bench.common import QUICK_VARIABLE, Skipped, machine

MODULES = {
    "mqtt_listener": "messages/s into the log, beside an aiomqtt receive loop behind Mosquitto",
    "mqtt_subscriber": "share of what readers that discard get behind Mosquitto, CPU per message beside aiomqtt",
    "mqtt_costs": "messages/s and CPU a message over payload, topics and connections, beside Mosquitto",
    "mqtt_acks": "acknowledged messages/s of 16 connections by window, beside Mosquitto and NATS JetStream",
    "mqtt_connections": "10,000 connections of 3 messages/s: CPU, p99, memory, beside a bare echo server and Mosquitto",
    "storage_append": "ring to durable by record size, mapped and pwrite",
    "log_throughput": "ring to durable beside fio, 1 KiB and 16 KiB records",
    "log_small_records": "writer CPU per 64 B record and records/s, over 1 to 1,000 partitions",
    "log_latency": "ring to durable at 100,000 records/s, beside a loop of pwrite and fdatasync",
    "log_amplification": "bytes to the disk per byte of payload, fsyncs and batches, by rate",
    "log_many_streams": "a commit of 10 to 1,000 streams, fdatasync of each against syncfs",
    "key_index": "one key of 100,000 in a segment of 1 GiB, beside walking it",
    "camera_seek": "a picture out of a day of footage: at() beside PyAV decoding the same access units",
    "columns": "records/s into Arrow, Polars and DuckDB, beside Parquet and a consumer of Kafka's broker; memory",
    "cameras": "CPU and memory of 1 to 200 cameras of 1080p25, beside ffmpeg and PyAV, and the latency to the disk",
    "kafka_fetch": "records/s and MB/s that consumers get from the endpoint, beside a Kafka broker with the same bytes",
    "kafka_latency": "from PUBLISH at the MQTT listener to the record at a waiting Kafka consumer",
    "kafka_spark": "records/s of Spark's Kafka source, every offset once, beside a Kafka broker with the same bytes",
    "log_startup": "time until a gateway with 100,000 segments accepts, and after kill -9",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="\n".join(f"{name}: {what}" for name, what in MODULES.items()),
    )
    parser.add_argument("names", nargs="*", choices=[*MODULES, []], help="which; default: all")
    parser.add_argument("--rounds", type=int, help="rounds, of which the median counts; default: 5, quick: 1")
    parser.add_argument("--quick", action="store_true", help="short rounds: a look at whether it works, no figures")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    if arguments.quick:
        os.environ[QUICK_VARIABLE] = "1"
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    about = machine()
    report: dict[str, object] = {"machine": about}
    print(", ".join(f"{key} {value}" for key, value in about.items()), file=sys.stderr)
    for name in arguments.names or MODULES:
        print(f"\n{name}: {MODULES[name]}", file=sys.stderr)
        try:
            result = importlib.import_module(f"bench.{name}").run(rounds)
        except Skipped as reason:
            report[name] = {"skipped": str(reason)}
            print(f"  skipped: {reason}", file=sys.stderr)
            continue
        report[name] = result.as_json()
        print(result.as_text(), file=sys.stderr)
    if arguments.json:
        print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
