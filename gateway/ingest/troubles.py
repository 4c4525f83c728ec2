"""What is wrong with streams and the disk, as sentences for people: what, since when, what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from gateway.clock import NS_PER_S, format_size, monotonic_ns
from gateway.ingest.disk import space
from gateway.ingest.retainer import Retainer

# The key of what concerns the whole disk; no stream can have this name.
DISK = "[disk]"
# While retention makes room a stream waits for some milliseconds now and then; that is no trouble.
WAIT_SAID_NS = 2 * NS_PER_S


class StateWriter(Protocol):
    """What is needed of the native writer."""

    def partition_state(self, index: int) -> dict[str, Any]: ...


class Troubles:
    """A sentence stays the same as long as its trouble does, so that it is logged once."""

    def __init__(self, writer: StateWriter, retainer: Retainer) -> None:
        self._writer = writer
        self._retainer = retainer
        self._since: dict[tuple[str, str], str] = {}
        self._waiting: dict[str, int] = {}

    def look(self, streams: Mapping[str, int]) -> dict[str, str]:
        """By stream, and under DISK for the whole disk: what is wrong now."""
        found: dict[str, str] = {}
        kinds: set[tuple[str, str]] = set()
        for name, index in streams.items():
            kind = self._kind(name, state := self._writer.partition_state(index))
            if kind:
                kinds.add((name, kind))
                found[name] = self._since.setdefault((name, kind), self._sentence(name, kind, state))
        self._since = {key: sentence for key, sentence in self._since.items() if key in kinds}
        if self._retainer.trouble:
            found[DISK] = self._retainer.trouble
        return found

    def _kind(self, name: str, state: Mapping[str, Any]) -> str:
        if state["failed"]:
            return "failed"
        if state["refusing"]:
            return "refusing"
        if not state["stalled_errno"]:
            self._waiting.pop(name, None)
            return ""
        since_ns = self._waiting.setdefault(name, monotonic_ns())
        return "waiting" if monotonic_ns() - since_ns >= WAIT_SAID_NS else ""

    def _sentence(self, name: str, kind: str, state: Mapping[str, Any]) -> str:
        if kind == "failed":
            return (
                f"The stream {name!r} failed while {state['failed_step']}: {os.strerror(state['failed_errno'])}. "
                "Nothing more is acknowledged from it; check the disk and start the gateway again."
            )
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        room = f"the disk has {format_size(space(self._retainer.data).free_bytes)} free"
        if self._retainer.plan.reserve_bytes:
            room += f", of which {format_size(self._retainer.plan.reserve_bytes)} are its reserve"
        if kind == "refusing":
            return (
                f"The stream {name!r} refuses records since {since}: {room}. Senders are told, and what is not sent "
                "again is counted as lost. Make room; the stream then goes on by itself."
            )
        return (
            f"The stream {name!r} waits for room on the disk since {since} ({os.strerror(state['stalled_errno'])}; "
            f"{room}). Nothing is acknowledged until there is some; it then goes on by itself."
        )
