"""Simulated sensors: many of them over few MQTT connections, to try Gateway (or any MQTT server) with.

    sensors = SensorSimulator("mqtt://127.0.0.1:1883", count=1000, rate=5000, qos=1)
    await sensors.start()
    ...
    await sensors.stop()            # waits for the acknowledgements that are due
    sensors.statistics()["acknowledged"]

Values change slowly, as real ones do, so that what is recorded looks like something when drawn. The same seed gives
the same values.
"""

from __future__ import annotations

import asyncio
import math
import random
import struct
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import cycle
from typing import Literal
from urllib.parse import urlsplit

from gateway.errors import SourceError
from gateway.simulate.mqtt_publisher import Publisher, encode_text

DEFAULT_TOPIC = "plant/{line}/{sensor}/{quantity}"
SENSORS_PER_LINE = 50
CONNECTIONS_MAX = 1_000
# Messages built and written at once: larger batches cost less, smaller ones are smoother.
BATCH_MAX = 500
# How far behind its rate a connection may fall (a slow server) and still catch up.
BACKLOG_MAX_S = 1.0
PAUSE_MIN_S = 0.005

# Name, unit, middle, swing, noise, period in seconds.
QUANTITIES: tuple[tuple[str, str, float, float, float, float], ...] = (
    ("temperature", "°C", 21.0, 4.0, 0.05, 600.0),
    ("humidity", "%", 45.0, 10.0, 0.2, 900.0),
    ("pressure", "hPa", 1013.0, 6.0, 0.1, 3_600.0),
    ("vibration", "mm/s", 1.2, 0.6, 0.1, 30.0),
    ("current", "A", 8.0, 3.0, 0.15, 120.0),
    ("flow", "l/min", 32.0, 5.0, 0.3, 240.0),
)

# Binary payload: big-endian sequence number, Unix time in ms, value.
BINARY = struct.Struct(">QQd")

Payload = Literal["json", "binary"]


class Sensor:
    """One sensor: its topic and its next value."""

    __slots__ = ("_middle", "_noise", "_phase", "_rate", "_seq", "_swing", "_unit", "topic")

    def __init__(self, number: int, topic: str, randomness: random.Random) -> None:
        """number: from 0. topic: a pattern that may name line, sensor, quantity and number."""
        quantity, unit, middle, swing, noise, period_s = QUANTITIES[number % len(QUANTITIES)]
        line, sensor = f"line-{number // SENSORS_PER_LINE + 1}", f"sensor-{number + 1}"
        name = topic.format(line=line, sensor=sensor, quantity=quantity, number=number + 1)
        self.topic = encode_text(name)
        self._unit = f',"unit":"{unit}","ts":"'.encode()
        self._middle = middle + randomness.uniform(-0.3, 0.3) * swing
        self._swing = swing
        self._noise = noise
        self._rate = math.tau / (period_s * randomness.uniform(0.7, 1.4))
        self._phase = randomness.uniform(0, math.tau)
        self._seq = 0

    def value(self, now_s: float, noise: float) -> float:
        """noise: uniform in -1 … 1."""
        return self._middle + self._swing * math.sin(self._phase + now_s * self._rate) + self._noise * noise

    def json(self, now_s: float, stamp: bytes, noise: float) -> bytes:
        """{"value", "unit", "ts" (ISO 8601, UTC), "seq" (from 1)}."""
        self._seq += 1
        return b'{"value":%.3f%b%b","seq":%d}' % (self.value(now_s, noise), self._unit, stamp, self._seq)

    def binary(self, now_s: float, _stamp: bytes, noise: float) -> bytes:
        """BINARY: sequence number (from 1), Unix time in ms, value."""
        self._seq += 1
        return BINARY.pack(self._seq, int(now_s * 1_000), self.value(now_s, noise))


class SensorSimulator:
    """`count` sensors that publish `rate` messages a second together.

    url: mqtt://host[:port]. rate: messages/s of all sensors; None: one from each sensor every second; inf: as fast as
    the server takes them. qos: 0 or 1. payload: "json" or "binary" (`BINARY`). connections: TCP connections that the
    sensors share; None: one for every 100 sensors, at most 10. topic: pattern, see `Sensor`. window: unacknowledged
    publishes per connection with QoS 1. seed: of the values.
    """

    def __init__(
        self,
        url: str = "mqtt://127.0.0.1:1883",
        *,
        count: int = 100,
        rate: float | None = None,
        qos: int = 0,
        payload: Payload = "json",
        connections: int | None = None,
        topic: str = DEFAULT_TOPIC,
        window: int = 1_000,
        username: str | None = None,
        password: str | None = None,
        client_id: str = "gateway-sensors",
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if connections is None:
            connections = max(1, min(10, count // 100))
        _check(count, rate, payload, connections)
        host, port = _address(url)
        self.rate = float(count if rate is None else rate)
        self._clock = clock
        self._payload: Payload = payload
        self._randomness = random.Random(seed)
        try:
            sensors = [Sensor(number, topic, self._randomness) for number in range(count)]
        except (KeyError, IndexError, ValueError) as error:
            raise SourceError(
                f"The topic pattern {topic!r} cannot be used ({error}); it may name {{line}}, {{sensor}}, {{quantity}} "
                "and {number}."
            ) from None
        # Sensors stay with their connection, so that each one's messages stay in order.
        self._shares = [sensors[index::connections] for index in range(min(connections, count))]
        self._publishers = [
            Publisher(
                host, port, f"{client_id}-{index + 1}", qos=qos, window=window, username=username, password=password
            )
            for index in range(len(self._shares))
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._started_s = 0.0
        self.late = 0  # messages not published because the server was too slow for the rate

    async def start(self) -> None:
        """Connect everything and begin. Raises SourceError when there is no server or it refuses."""
        try:
            await asyncio.gather(*(publisher.open() for publisher in self._publishers))
        except SourceError:
            await self.stop()
            raise
        self._started_s = time.monotonic()
        total = sum(len(share) for share in self._shares)
        for publisher, share in zip(self._publishers, self._shares, strict=True):
            rate = self.rate * len(share) / total
            self._tasks.append(asyncio.create_task(publisher.run(), name="simulated-connection"))
            self._tasks.append(asyncio.create_task(self._play(publisher, share, rate), name="simulated-sensors"))

    async def stop(self) -> None:
        """Publish no more, wait for the acknowledgements that are due, disconnect."""
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(publisher.close() for publisher in self._publishers))
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def statistics(self) -> dict[str, int | float]:
        """Counters since the start; rates are messages per second."""
        elapsed_s = time.monotonic() - self._started_s if self._started_s else 0.0
        published = sum(publisher.published for publisher in self._publishers)
        return {
            "sensors": sum(len(share) for share in self._shares),
            "connections": sum(publisher.is_connected for publisher in self._publishers),
            "published": published,
            "acknowledged": sum(publisher.acknowledged for publisher in self._publishers),
            "resent": sum(publisher.resent for publisher in self._publishers),
            "reconnects": sum(publisher.reconnects for publisher in self._publishers),
            "late": self.late,
            "bytes": sum(publisher.bytes for publisher in self._publishers),
            "published_per_s": round(published / elapsed_s, 1) if elapsed_s else 0.0,
        }

    async def _play(self, publisher: Publisher, share: list[Sensor], rate: float) -> None:
        """One connection's sensors in turn, at their common rate."""
        turns = cycle(share)
        begun_s, played = time.monotonic(), 0
        while True:
            due = BATCH_MAX
            if rate != math.inf:
                due = int((time.monotonic() - begun_s) * rate) - played
                if due > rate * BACKLOG_MAX_S + 1:
                    skipped = due - int(rate * BACKLOG_MAX_S) - 1
                    self.late += skipped
                    played += skipped
                if due <= 0:
                    await asyncio.sleep(max(PAUSE_MIN_S, (played + 1) / rate - (time.monotonic() - begun_s)))
                    continue
            count = min(due, BATCH_MAX)
            await publisher.publish(self._messages(turns, count))
            played += count
            await asyncio.sleep(0)  # let others have their turn, and acknowledgements come in

    def _messages(self, turns: Iterator[Sensor], count: int) -> list[tuple[bytes, bytes]]:
        now_s = self._clock()
        stamp = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
        noise = self._randomness.random
        batch = [next(turns) for _ in range(count)]
        if self._payload == "json":
            return [(sensor.topic, sensor.json(now_s, stamp, 2 * noise() - 1)) for sensor in batch]
        return [(sensor.topic, sensor.binary(now_s, stamp, 2 * noise() - 1)) for sensor in batch]


def _check(count: int, rate: float | None, payload: str, connections: int) -> None:
    if count < 1:
        raise SourceError(f"{count} sensors are none; use at least 1.")
    if rate is not None and not rate > 0:
        raise SourceError(f"A rate of {rate:g} messages per second publishes nothing; use more than 0.")
    if payload not in ("json", "binary"):
        raise SourceError(f"There is no payload {payload!r}; there are 'json' and 'binary'.")
    if not 1 <= connections <= CONNECTIONS_MAX:
        raise SourceError(f"{connections} connections; use 1 to {CONNECTIONS_MAX}.")


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 1883
    except ValueError:
        host, port, parts = None, 0, urlsplit("")
    if parts.scheme != "mqtt" or not host or "@" in parts.netloc:
        raise SourceError(
            "The address must be like 'mqtt://127.0.0.1:1883'; user name and password are given beside it."
        )
    return host, port
