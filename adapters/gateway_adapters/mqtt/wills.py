"""Wills: what clients left to be recorded for the case that they vanish, waiting for their time and for room."""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from gateway_native import mqtt
from gateway_native.batch import encode_headers

from gateway.ingest.gaps import Gaps
from gateway_adapters.mqtt.headers import message_headers
from gateway_adapters.mqtt.protocol import Will
from gateway_adapters.mqtt.shown import shown

# Wills that wait: for their delay to pass, or for room in the ring.
WAITING_BYTES_MAX = 4 * 2**20
# Revoked wills stay in the heap until it has so many more entries than wills.
REVOKED_MAX = 1_024


class Host(Protocol):
    """The source, as far as wills and sessions need it."""

    name: str

    def count(self, counter: str, more: int = 1) -> None: ...

    def say(self, level: int, event: str, **fields: object) -> None: ...


class DelayedWill:
    """A will whose time has not come (MQTT 5 section 3.1.3.2.2); `Wills.cancel` revokes it."""

    __slots__ = ("size", "will")

    def __init__(self, will: Will, size: int) -> None:
        self.will: Will | None = will
        self.size = size


class Wills:
    """The wills of one listener's clients. Everything runs on the event loop."""

    def __init__(self, host: Host, native: mqtt.Group, gaps: Gaps, streams: Callable[[], dict[int, str]]) -> None:
        """streams: names by partition, for gap records."""
        self._host = host
        self._native = native
        self._gaps = gaps
        self._streams = streams
        self._ready: deque[tuple[int, bytes, bytes, bytes]] = deque()  # partition, key, value, headers
        # Where another thread fills the ring: hands it a record. `recorded` follows.
        self.record: Callable[[int, bytes, bytes, bytes], None] | None = None
        self._delayed: list[tuple[int, int, DelayedWill]] = []  # a heap: tick, number, will
        self._numbers = itertools.count()
        self._bytes = 0
        self._delayed_count = 0

    def __bool__(self) -> bool:
        """Do some wait for room?"""
        return bool(self._ready)

    @property
    def delayed(self) -> int:
        """Wills whose time has not come."""
        return self._delayed_count

    def delay(self, will: Will, seconds: int) -> DelayedWill | None:
        """Record it in so many seconds; at once, with None, when too many wait already."""
        size = len(will.payload) + len(will.topic)
        if self._bytes + size > WAITING_BYTES_MAX:
            self.publish(will)
            return None
        delayed = DelayedWill(will, size)
        self._bytes += size
        self._delayed_count += 1
        if len(self._delayed) > 2 * self._delayed_count + REVOKED_MAX:
            self._delayed = [entry for entry in self._delayed if entry[2].will is not None]
            heapq.heapify(self._delayed)
        heapq.heappush(self._delayed, (self._native.tick + seconds, next(self._numbers), delayed))
        return delayed

    def cancel(self, delayed: DelayedWill) -> None:
        """Its client is back in time."""
        self._take(delayed)

    def hasten(self, delayed: DelayedWill) -> None:
        """Its session has ended, and with it the delay."""
        will = self._take(delayed)
        if will is not None:
            self.publish(will)

    def advance(self, *, all_of_them: bool = False) -> None:
        """Record those whose time has come: once a second, and all when the gateway stops."""
        while self._delayed and (all_of_them or self._delayed[0][0] <= self._native.tick):
            self.hasten(heapq.heappop(self._delayed)[2])

    def _take(self, delayed: DelayedWill) -> Will | None:
        will, delayed.will = delayed.will, None
        if will is not None:
            self._bytes -= delayed.size
            self._delayed_count -= 1
        return will

    def publish(self, will: Will) -> None:
        """Record it now, or when there is room."""
        topic = will.topic.encode()
        target = self._native.routes.target(topic)
        if target is None:
            self._host.count("lost")
            self._host.say(logging.WARNING, "will not recorded: no route takes its topic", topic=shown(will.topic))
            return
        partition, key = self._partition(target[0]), target[1]
        properties: dict[str, Any] = {name: value for name, value in will.properties.items() if name != "will_delay"}
        headers = encode_headers(message_headers(qos=will.qos, retain=will.retain, will=True, **properties))
        size = len(key) + len(will.payload) + len(headers)
        if self._bytes + size > WAITING_BYTES_MAX:
            self._lose(partition, size)
            self._host.say(logging.WARNING, "will not recorded: too many wait for room", topic=shown(will.topic))
            return
        self._ready.append((partition, key, will.payload, headers))
        self._bytes += size
        if self.record is not None:
            self.record(*self._ready[-1])
        elif not self._native.crowded:
            self.put()

    def _partition(self, stream: int | bytes | None) -> int:
        """Where the route leads; a name that is too long, or one stream too many, leads to the overflow."""
        if isinstance(stream, int):
            return stream
        assert self._native.resolve is not None, "routes with templates need `resolve`"
        return self._native.resolve(stream or b"overflow")

    def put(self) -> None:
        """Bring those that wait for room into the ring, until it is full again."""
        while self._ready:
            partition, key, value, headers = self._ready[0]
            if not self._native.ring.append(partition, key, value, headers, time.time_ns()):
                self._native.crowd()
                return
            self.recorded()

    def recorded(self) -> None:
        """The first of those that waited is in the ring."""
        _, key, value, headers = self._ready.popleft()
        self._bytes -= len(key) + len(value) + len(headers)
        self._host.count("wills")

    def lose_all(self) -> None:
        """There will be no room any more."""
        for partition, key, value, headers in self._ready:
            self._lose(partition, len(key) + len(value) + len(headers))
            self._bytes -= len(key) + len(value) + len(headers)
        self._ready.clear()

    def _lose(self, partition: int, size: int) -> None:
        self._host.count("lost")
        self._gaps.add(self._streams()[partition], self._host.name, "overload", count=1, bytes=size)
