"""What a listener or subscriber knows of its sessions after a restart: a checkpoint, and what the log says since.

A checkpoint bounds the work of a start. It is taken so that reading on from its offsets may find again what it knows
already, and never misses anything: offsets first, then sessions. The numbers of deliveries grow, so what is found twice
changes nothing: a packet identifier is unreleased exactly if the last delivery under it is above the last release.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gateway_native import batch

from gateway.config import SESSIONS_STREAM
from gateway.log.files import FILES, replace
from gateway.log.layout import list_partitions, partition_path, sync_directory
from gateway.log.partition import PartitionReader

DIRECTORY = "mqtt-sessions"
VERSION = 1

# The upper bits of a delivery number tell the source: two may record in one stream, and have clients of one name.
NUMBER_BITS = 48


def delivery_origin(source: str) -> int:
    """The upper bits of all delivery numbers of this listener or subscriber."""
    return (batch.crc32c(source.encode()) & 0xFFFF) << NUMBER_BITS


@dataclass
class SessionState:
    """One lasting session, without a connection."""

    expiry_s: int
    away_s: int  # since when it has no connection
    unreleased: dict[int, int] = field(default_factory=dict)  # delivery numbers by packet identifier

    def deliver(self, packet_id: int, delivery: int) -> None:
        """A record of this delivery is on disk."""
        self.unreleased[packet_id] = max(self.unreleased.get(packet_id, 0), delivery)


@dataclass
class State:
    """All lasting sessions of one source, the next delivery number, and offsets by stream from which to read on."""

    delivery_next: int
    sessions: dict[str, SessionState] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)


class CheckpointError(Exception):
    """The checkpoint cannot be used; the text says why."""


def checkpoint_path(data: Path, source: str) -> Path:
    """Where the checkpoint of a listener or subscriber is."""
    return data / DIRECTORY / f"{source}.json"


def save(data: Path, source: str, state: State) -> None:
    """Replace the checkpoint. Durable when this returns; after a crash before, the old one is there. Raises OSError."""
    path = checkpoint_path(data, source)
    content = {
        "version": VERSION,
        "listener": source,
        "saved_s": int(time.time()),
        "delivery_next": state.delivery_next,
        "offsets": state.offsets,
        "sessions": [
            [client, one.expiry_s, one.away_s, sorted(one.unreleased.items())] for client, one in state.sessions.items()
        ],
    }
    text = json.dumps(content, separators=(",", ":"))
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
        sync_directory(data)
    replace(FILES, path, f'{{"crc32c":{batch.crc32c(text.encode())},"content":{text}}}\n'.encode())
    sync_directory(path.parent)


def load(data: Path, source: str, *, now_s: int | None = None) -> State | None:
    """The last checkpoint; None if there is none. Raises CheckpointError for a damaged one, or one that is not ours."""
    try:
        text = checkpoint_path(data, source).read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(str(error)) from None
    try:
        whole = json.loads(text)
        content = whole["content"]
        if batch.crc32c(json.dumps(content, separators=(",", ":")).encode()) != whole["crc32c"]:
            raise CheckpointError("its checksum is wrong")
        if (content["version"], content["listener"]) != (VERSION, source):
            raise CheckpointError(f"it is of version {content['version']}, for listener {content['listener']!r}")
        return _state(content, int(time.time()) if now_s is None else now_s)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"it is not what was written ({error})") from None


def _state(content: dict[str, Any], now_s: int) -> State:
    passed_s = max(0, now_s - content["saved_s"])
    sessions = {
        client: SessionState(expiry_s, away_s + passed_s, {int(key): number for key, number in unreleased})
        for client, expiry_s, away_s, unreleased in content["sessions"]
    }
    return State(content["delivery_next"], sessions, dict(content["offsets"]))


def restore(data: Path, source: str, checkpoint: State | None, *, skip: Collection[str] = ()) -> State:
    """The sessions as they are now: the checkpoint, brought up to date by what the log says since.

    skip: streams in which nothing of MQTT is recorded. Damaged places are passed over. Raises OSError.
    """
    origin = delivery_origin(source)
    state = checkpoint or State(origin + 1)
    state.delivery_next = max(state.delivery_next, origin + 1)
    reading = _Reading(state, f"{source}/", origin)
    reading.stream(data, SESSIONS_STREAM, reading.journal)
    for partition in list_partitions(data):
        if partition.partition == 0 and partition.stream not in (SESSIONS_STREAM, *skip):
            reading.stream(data, partition.stream, reading.record if reading.needs_records else None)
    reading.finish()
    return state


class _Reading:
    """Brings a state up to date."""

    def __init__(self, state: State, key_prefix: str, origin: int) -> None:
        self._state = state
        self._prefix = key_prefix.encode()
        self._origin = origin
        self._released: dict[tuple[str, int], int] = {}
        self._over: dict[str, int] = {}

    @property
    def needs_records(self) -> bool:
        """Without a lasting session no delivery counts; that was learned before any other stream is read."""
        return bool(self._state.sessions)

    def stream(self, data: Path, stream: str, take: Callable[[batch.Row], None] | None) -> None:
        """Take what the stream has beyond the known offset, and remember how far that is."""
        reader = PartitionReader(partition_path(data, stream))
        limit = reader.limit()
        start = self._state.offsets.get(stream, 0)
        if start > limit.offset:  # the stream was deleted, and began anew
            start = 0
        if take is not None:
            for rows in reader.chunks(batch.Selection(offset_from=start), limit, on_damage=lambda _: None):
                for row in rows:
                    take(row)
        self._state.offsets[stream] = limit.offset

    def journal(self, row: batch.Row) -> None:
        """A record of the stream of sessions."""
        key, value = row[2], row[3]
        if key is None or value is None or not key.startswith(self._prefix):
            return
        client = unquote(key[len(self._prefix) :].decode("ascii"))
        for line in value.decode("ascii").splitlines():
            word, *numbers = line.split(" ")
            self._line(client, word, [int(number) for number in numbers])

    def _line(self, client: str, word: str, numbers: list[int]) -> None:
        if word == "open":
            known = self._state.sessions.get(client)
            if known is None:
                self._state.sessions[client] = SessionState(numbers[0], 0)
            else:
                known.expiry_s, known.away_s = numbers[0], 0
        elif word == "end":
            self._state.sessions.pop(client, None)
            self._over[client] = max(self._over.get(client, 0), numbers[0])
            self._count(numbers[0])
        elif word == "release":
            key = client, numbers[0]
            self._released[key] = max(self._released.get(key, 0), numbers[1])
            self._count(numbers[1])

    def record(self, row: batch.Row) -> None:
        """A record of any other stream: it may be a QoS 2 publish of a lasting session."""
        headers = row[4]
        if not any(name == "delivery" for name, _ in headers):
            return
        found = dict(headers)
        try:
            delivery, packet_id = int(found["delivery"]), int(found["packet-id"])
            client = unquote(found["client"].decode("ascii"))
        except (KeyError, ValueError):
            return  # another program's record
        if delivery >> NUMBER_BITS != self._origin >> NUMBER_BITS:
            return
        self._count(delivery)
        session = self._state.sessions.get(client)
        if session is not None:
            session.deliver(packet_id, delivery)

    def _count(self, delivery: int) -> None:
        if delivery >> NUMBER_BITS == self._origin >> NUMBER_BITS:
            self._state.delivery_next = max(self._state.delivery_next, delivery + 1)

    def finish(self) -> None:
        """Take off what was released or forgotten, and the sessions that ended with their connection."""
        sessions = self._state.sessions
        for client, session in list(sessions.items()):
            if session.expiry_s <= session.away_s:
                del sessions[client]
                continue
            over = self._over.get(client, 0)
            session.unreleased = {
                packet_id: delivery
                for packet_id, delivery in session.unreleased.items()
                if delivery > max(over, self._released.get((client, packet_id), 0))
            }
            for delivery in session.unreleased.values():  # one that was answered without a record is only here
                self._count(delivery)
