"""The gateway's own part of the stream of sessions: that one begins, what it is, that it ends.

Records of the stream `SESSIONS_STREAM`: key `<source>/<client id, escaped>`, value ASCII lines:

    open <seconds>              the session is there, and outlives its connection by so long (0: not at all)
    end <delivery>              it is over; all up to that delivery number is forgotten
    release <packet id> <delivery>    PUBREL: that packet identifier is free again, up to that number

The source is a listener, or a subscriber, whose one session is its broker's. The last line is the parser's, and goes
through the source's ring; the others go through a ring of their own, because they come from the event loop. Their order
among each other counts, and is kept; against `release` the delivery numbers decide (they grow).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from gateway_native import ring as native_ring

from gateway.config import SESSIONS_STREAM
from gateway.ingest.engine import Engine
from gateway.ingest.limits import SESSION_RING_BYTES
from gateway_adapters.mqtt.headers import escape

# Of a lasting session. Every byte may become three when escaped.
CLIENT_ID_BYTES_MAX = 1_024


def key_of(source: str, client_id: str) -> bytes:
    """The key of a session's records."""
    return source.encode() + b"/" + escape(client_id)


class Journal:
    """Writes for one source. Durable when: the future that `write` returned has the result True."""

    def __init__(self, source: str, engine: Engine) -> None:
        self.partition = engine.partition(SESSIONS_STREAM)
        self._source = source
        self._ring = engine.ring(f"{source} (sessions)", SESSION_RING_BYTES)
        self._waiting: deque[tuple[bytes, bytes, asyncio.Future[bool] | None]] = deque()  # for room
        self._written: deque[tuple[int, asyncio.Future[bool]]] = deque()  # for the disk: sequence

    def start(self) -> None:
        """Let the event loop hear of what has become durable."""
        asyncio.get_running_loop().add_reader(self._ring.event_fd, self.look)

    def stop(self) -> None:
        """Whoever still waits hears that it failed."""
        asyncio.get_running_loop().remove_reader(self._ring.event_fd)
        for _, future in self._written:
            _settle(future, False)
        for _, _, waiting in self._waiting:
            _settle(waiting, False)
        self._written.clear()
        self._waiting.clear()
        self._ring.set_ack_interest(False)

    def write(self, client_id: str, *lines: str, awaited: bool) -> asyncio.Future[bool] | None:
        """One record. awaited: return a future, True once it is on disk, False when it never will be."""
        future = asyncio.get_running_loop().create_future() if awaited else None
        self._waiting.append((key_of(self._source, client_id), "\n".join(lines).encode("ascii"), future))
        self._put()
        return future

    def look(self) -> None:
        """The ring reports: something is durable, or refused, or there is room again."""
        self._ring.clear_event()
        verdicts = [(self._ring.verdict(self.partition, sequence), future) for sequence, future in self._written]
        if self._ring.refusals_pending:
            self._ring.confirm_refusals()
        pending = deque(
            (sequence, future)
            for (verdict, future), (sequence, _) in zip(verdicts, self._written, strict=True)
            if verdict == native_ring.PENDING
        )
        self._written = pending
        if not pending:
            self._ring.set_ack_interest(False)
        for verdict, future in verdicts:
            if verdict != native_ring.PENDING:
                _settle(future, verdict == native_ring.ACKED)
        self._put()

    def _put(self) -> None:
        while self._waiting:
            key, value, future = self._waiting[0]
            flags = 0
            if future is not None:
                flags = native_ring.WANTS_ACK
                self._ring.set_ack_interest(True)
            sequence = self._ring.append(self.partition, key, value, b"", time.time_ns(), flags)
            if not sequence:
                return
            self._waiting.popleft()
            if future is not None:
                self._written.append((sequence, future))


def _settle(future: asyncio.Future[bool] | None, outcome: bool) -> None:
    if future is not None and not future.done():
        future.set_result(outcome)
