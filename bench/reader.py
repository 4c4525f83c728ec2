"""A process that subscribes at a broker and discards: `python -m bench.reader eager|patient|aiomqtt PORT SECONDS`.

Prints messages, seconds and CPU seconds of a window that begins a second after the first message. The first two know
that all messages have the same size and count bytes: nothing can receive with less. "eager" always waits in recv(2) and
wakes for nearly every message, which costs the broker, too; "patient" rests a millisecond after each.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time

import aiomqtt

from bench.common import connect_mqtt, publish_packets

WARM_UP_S = 1.0
RECEIVE_BYTES = 2**18
REST_S = 0.001


def subscribed(port: int) -> socket.socket:
    connection = connect_mqtt(port, "bench-reader")
    connection.sendall(b"\x82\x0c\0\1\0\7plant/#\0")
    assert connection.recv(5) == b"\x90\3\0\1\0"
    return connection


def bare(port: int, seconds: float, rest_s: float) -> tuple[int, float, float]:
    size = len(publish_packets(1))
    buffer = bytearray(RECEIVE_BYTES)
    with subscribed(port) as connection:
        connection.recv_into(buffer, 1)
        begin = time.perf_counter() + WARM_UP_S
        while time.perf_counter() < begin:
            connection.recv_into(buffer)
        received, start, cpu_s = 0, time.perf_counter(), time.process_time()
        while (elapsed_s := time.perf_counter() - start) < seconds:
            received += connection.recv_into(buffer)
            if rest_s:
                time.sleep(rest_s)
    return received // size, elapsed_s, time.process_time() - cpu_s


async def with_aiomqtt(port: int, seconds: float) -> tuple[int, float, float]:
    async with aiomqtt.Client("127.0.0.1", port, identifier="bench-aiomqtt", max_queued_incoming_messages=0) as client:
        await client.subscribe("plant/#", qos=0)
        received, start, cpu_s, begin = 0, 0.0, 0.0, 0.0
        async for _ in client.messages:
            now = time.perf_counter()
            begin = begin or now + WARM_UP_S
            if now < begin:
                continue
            if not start:
                start, cpu_s = now, time.process_time()
            received += 1
            if now - start >= seconds:
                break
    return received, now - start, time.process_time() - cpu_s


def main() -> None:
    what, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    if what == "aiomqtt":
        found = asyncio.run(with_aiomqtt(port, seconds))
    else:
        found = bare(port, seconds, {"eager": 0.0, "patient": REST_S}[what])
    print(*found)


if __name__ == "__main__":
    main()
