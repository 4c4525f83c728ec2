"""One member of a consumer group, as a process that can be killed: `python -m tests.support.kafka_member CLIENT …`.

It prints `topic offset` for each record, commits after printing, and ends with its input. Arguments: which client
(confluent, aiokafka or kafka-python), address, group, topics.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import warnings

SESSION_MS, HEARTBEAT_MS = 3_000, 500


def _say(topic: str, offset: int) -> None:
    print(topic, offset, flush=True)


def confluent(address: str, group: str, topics: list[str]) -> None:
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            "bootstrap.servers": address, "group.id": group, "auto.offset.reset": "earliest",
            "enable.auto.commit": False, "session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": HEARTBEAT_MS,
            "partition.assignment.strategy": "roundrobin",
        }
    )  # fmt: skip
    consumer.subscribe(topics)
    while not ended.is_set():
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            _say(message.topic(), message.offset())
            consumer.commit(message, asynchronous=False)
    consumer.close()


def kafka_python(address: str, group: str, topics: list[str]) -> None:
    warnings.simplefilter("ignore")
    import kafka
    from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

    consumer = kafka.KafkaConsumer(
        *topics, bootstrap_servers=address, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False,
        session_timeout_ms=SESSION_MS, heartbeat_interval_ms=HEARTBEAT_MS,
        partition_assignment_strategy=[RoundRobinPartitionAssignor],
    )  # fmt: skip
    while not ended.is_set():
        for messages in consumer.poll(timeout_ms=100, max_records=50).values():
            for message in messages:
                _say(message.topic, message.offset)
            consumer.commit()
    consumer.close()


async def _aiokafka(address: str, group: str, topics: list[str]) -> None:
    from aiokafka import AIOKafkaConsumer
    from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

    consumer = AIOKafkaConsumer(
        *topics, bootstrap_servers=address, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False,
        session_timeout_ms=SESSION_MS, heartbeat_interval_ms=HEARTBEAT_MS,
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
    )  # fmt: skip
    await consumer.start()
    try:
        while not ended.is_set():
            found = await consumer.getmany(timeout_ms=100, max_records=50)
            for messages in found.values():
                for message in messages:
                    _say(message.topic, message.offset)
            if found:
                await consumer.commit()
    finally:
        await consumer.stop()


ended = threading.Event()


def _wait_for_the_end() -> None:
    while os.read(0, 1):
        continue
    ended.set()


if __name__ == "__main__":
    threading.Thread(target=_wait_for_the_end, daemon=True).start()
    client, where, of_group, *of_topics = sys.argv[1:]
    if client == "aiokafka":
        asyncio.run(_aiokafka(where, of_group, of_topics))
    else:
        {"confluent": confluent, "kafka-python": kafka_python}[client](where, of_group, of_topics)
