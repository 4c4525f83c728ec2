"""What waits to be published: bounded in number and in bytes, and never waited for by whoever puts something in."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

MESSAGES_MAX = 64
BYTES_MAX = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message. replaceable: a newer one of the same topic says all that it would have said (statistics)."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    content_type: str = ""
    correlation: bytes | None = None
    replaceable: bool = False

    @property
    def size(self) -> int:
        return len(self.topic) + len(self.payload) + len(self.correlation or b"")


class Outbox:
    """First in, first out. When it is full the oldest statistics go first, then the oldest of the rest; counted."""

    def __init__(self) -> None:
        self._waiting: deque[Outgoing] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def bytes(self) -> int:
        """Of everything that waits."""
        return self._bytes

    def put(self, message: Outgoing) -> None:
        """Add this one; what has to go for it is dropped, itself if it fits in no outbox."""
        if message.replaceable:
            for older in [each for each in self._waiting if each.replaceable and each.topic == message.topic]:
                self._drop(older)
        if message.size > BYTES_MAX:
            self.dropped += 1
            return
        while len(self._waiting) >= MESSAGES_MAX or self._bytes + message.size > BYTES_MAX:
            self._drop(next((each for each in self._waiting if each.replaceable), self._waiting[0]))
        self._waiting.append(message)
        self._bytes += message.size
        self._filled.set()

    async def first(self) -> Outgoing:
        """The oldest, once there is one. It stays until `done`."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        return self._waiting[0]

    def done(self, message: Outgoing) -> None:
        """It has left."""
        self._take(message)

    def _drop(self, message: Outgoing) -> None:
        self._take(message)
        self.dropped += 1

    def _take(self, message: Outgoing) -> None:
        for index, each in enumerate(self._waiting):
            if each is message:  # it may have been dropped while it was being sent
                del self._waiting[index]
                self._bytes -= message.size
                return

    def statistics(self) -> dict[str, Any]:
        return {"waiting": len(self), "waiting_bytes": self._bytes, "dropped": self.dropped}
