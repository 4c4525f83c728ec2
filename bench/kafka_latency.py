"""How long from a PUBLISH at the MQTT listener until a Kafka consumer that waits for it has the record?

One device publishes at QoS 0 and at QoS 1, paced, with the time in the payload; confluent-kafka consumes in the same
process, so there is one clock. The record is durable before it is seen. The consumer waits in Fetch (fetch.wait.max.ms
500, its default).
"""

from __future__ import annotations

import statistics
import threading
import time

from confluent_kafka import OFFSET_END, Consumer, TopicPartition

from bench.common import Result, connect_mqtt, duration_s, median, scratch
from tests.support.kafka_gateway import Gateway

RATE = 200
TOPIC = b"plant/line-1/temperature"
SECONDS = duration_s(10.0, 2.0)


def publish(port: int, qos: int) -> None:
    connection = connect_mqtt(port, f"bench-{qos}")
    due = time.perf_counter()
    for number in range(round(RATE * SECONDS)):
        time.sleep(max(0.0, due - time.perf_counter()))
        due += 1 / RATE
        identifier = (number % 65_535 + 1).to_bytes(2, "big") if qos else b""
        body = len(TOPIC).to_bytes(2, "big") + TOPIC + identifier + b"%020d" % time.perf_counter_ns()
        connection.sendall(bytes([0x30 | qos << 1, len(body)]) + body)
        if qos:
            connection.recv(4)
    connection.close()


def one_round(process: Gateway, qos: int) -> list[float]:
    """Milliseconds, of each record."""
    consumer = Consumer({"bootstrap.servers": process.address, "group.id": "bench", "enable.auto.commit": False})
    consumer.assign([TopicPartition("telemetry", 0, OFFSET_END)])
    consumer.poll(1.0)
    thread = threading.Thread(target=publish, args=(process.port, qos))
    thread.start()
    took: list[float] = []
    while len(took) < round(RATE * SECONDS):
        message = consumer.poll(10.0)
        if message is None:
            raise RuntimeError(f"{len(took)} records came")
        if message.error() is None:
            took.append((time.perf_counter_ns() - int(message.value())) / 1e6)
    thread.join()
    consumer.close()
    return took


def run(rounds: int) -> Result:
    result = Result(("publishes", "p50 ms", "p99 ms", "max ms"))
    for qos in (0, 1):
        with scratch() as directory, Gateway(directory) as process:
            process.start()
            one_round(process, qos)
            found = [one_round(process, qos) for _ in range(rounds)]
            process.end()
        p50, p99 = (median([statistics.quantiles(one, n=100)[at] for one in found]) for at in (49, 98))
        result.rows.append((f"QoS {qos}", f"{p50:.2f}", f"{p99:.2f}", f"{median([max(one) for one in found]):.2f}"))
    result.facts["published_per_second"] = RATE
    return result
