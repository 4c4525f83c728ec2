"""Load of several kinds for the partitions that Kafka's programs look at: tiny records at speed, and large values."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.peers import find, mosquitto_pub
from tests.support.publisher import QosOnePublisher

CLIENTS = 3
# Below and above the batch's 256 KiB, and above a whole segment of 1 MiB.
LARGE_BYTES = (0, 1_000, 70_000, 300_000, 1_500_000)
PATIENCE_S = 60.0


class LargeValues(threading.Thread):
    """mosquitto_pub with one value after the other, of changing size and with headers, until told to end."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__(daemon=True)
        find("mosquitto_pub")  # here, as a thread cannot end the test
        self._port = port
        self._random = random.Random(seed)
        self._ending = threading.Event()
        self.acknowledged = 0

    def run(self) -> None:
        for size in itertools.cycle(LARGE_BYTES):
            if self._ending.is_set():
                return
            properties = ("-D", "publish", "user-property", "size", str(size), "-D", "publish", "content-type", "bytes")
            done = mosquitto_pub(
                self._port, "-V", "5", "-q", "1", "-t", f"large/{size}", *properties, "-s",
                stdin=self._random.randbytes(size),
            )  # fmt: skip
            self.acknowledged += done.returncode == 0

    def finish(self) -> None:
        self._ending.set()
        self.join(PATIENCE_S)


class Publishers:
    """All that publish to one run of the gateway."""

    def __init__(self, port: int, first: list[int], seed: int) -> None:
        self.large = LargeValues(port, seed)
        self.small = [
            QosOnePublisher(port, f"client-{number}", f"load/{number}", first=begin)
            for number, begin in enumerate(first)
        ]

    @property
    def threads(self) -> list[QosOnePublisher | LargeValues]:
        return [*self.small, self.large]

    @property
    def acknowledged(self) -> int:
        """Messages that this run of the gateway has answered."""
        return self.large.acknowledged + sum(client.acknowledged - client.first for client in self.small)

    def wait(self, messages: int, *, large: int = 0) -> None:
        """Until so many are acknowledged, so many of them sent by mosquitto_pub."""
        deadline = time.monotonic() + PATIENCE_S
        while self.acknowledged < messages or self.large.acknowledged < large:
            assert time.monotonic() < deadline, f"{self.acknowledged} of {messages} messages were acknowledged"
            time.sleep(0.005)


class Traffic:
    """What was published to a gateway over several of its runs; nothing is published twice."""

    def __init__(self, seed: int = 1) -> None:
        self._sent = [0] * CLIENTS
        self._seed = seed
        self.acknowledged = 0
        """Messages that the gateway answered."""

    @contextmanager
    def to(self, port: int) -> Iterator[Publishers]:
        """Publishers at full speed until the block ends, or the gateway does."""
        self._seed += 1
        publishers = Publishers(port, self._sent, self._seed)
        for thread in publishers.threads:
            thread.start()
        try:
            yield publishers
        finally:
            for thread in publishers.threads:
                thread.finish()
                assert not thread.is_alive(), "a publisher does not end"
        for client in publishers.small:
            assert client.fault is None, client.fault
        self._sent = [client.sent for client in publishers.small]
        self.acknowledged += publishers.acknowledged

    def publish(self, port: int, messages: int) -> None:
        """At least so many, with several of each large size among them; all of them acknowledged."""
        with self.to(port) as publishers:
            publishers.wait(messages, large=3 * len(LARGE_BYTES))
