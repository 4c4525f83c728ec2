"""What may be asked of a running gateway, and its answers. Requests come from whoever may publish at the broker.

{"id": 7, "command": "pause", "source": "devices"}   ->  {"id": 7, "command": "pause", …, "ok": true, …}
anything that is wrong                               ->  {"id": 7, …, "ok": false, "error": "a sentence"}
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.config import Config
from gateway.control.pictures import Picture, last_picture
from gateway.errors import GatewayError, UsageError
from gateway.ingest.source import Source

COMMANDS = ("status", "pause", "resume", "snapshot")
REQUEST_BYTES_MAX = 4 * 2**10
ID_CHARACTERS_MAX = 128
NAME_CHARACTERS_MAX = 249


class Controlled(Protocol):
    """What a control plane needs of the gateway; `gateway.app.App` is one."""

    config: Config
    sources: dict[str, Source]

    @property
    def held(self) -> frozenset[str]:
        """Sources that stand still because they were told to."""
        ...

    async def hold(self, name: str) -> None:
        """Let a source stand still. SourceError if there is none of that name."""

    async def release(self, name: str) -> None:
        """Let it go on."""

    def statistics(self) -> dict[str, Any]:
        """All counters."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A command that was understood. source is "" where none was given."""

    id: str | int | None
    command: str
    source: str = ""

    def echo(self) -> dict[str, Any]:
        """What an answer begins with, so that who asked knows what it answers."""
        return {"id": self.id, "command": self.command, **({"source": self.source} if self.source else {})}


class BadRequest(UsageError):
    """A request that is none. ``echo`` is what could be understood of it."""

    def __init__(self, message: str, echo: Mapping[str, Any] | None = None) -> None:
        self.echo = dict(echo or {"id": None})
        super().__init__(message)


def parse(payload: bytes) -> Request:
    """The request in a message. Raises BadRequest, which says what is wrong, for anything else."""
    if len(payload) > REQUEST_BYTES_MAX:
        raise BadRequest(f"A request has at most {REQUEST_BYTES_MAX} bytes; this one has {len(payload)}.")
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        raise BadRequest('A request is a JSON object in UTF-8, as {"id": 1, "command": "status"}.') from None
    if not isinstance(found, dict):
        raise BadRequest("A request is a JSON object; this is JSON, but no object.")
    echo = {"id": _identity(found.get("id"))}
    unknown = sorted(found.keys() - {"id", "command", "source"})
    if unknown:
        raise BadRequest(f"Unknown member {_shown(unknown[0])}; known are id, command and source.", echo)
    command, source = found.get("command"), found.get("source", "")
    if command not in COMMANDS:
        raise BadRequest(f"'command' is one of {', '.join(COMMANDS)}, not {_shown(command)}.", echo)
    echo["command"] = command
    if not isinstance(source, str) or len(source) > NAME_CHARACTERS_MAX:
        raise BadRequest("'source' is the name of a source, as text.", echo)
    if not source and command != "status":
        raise BadRequest(f"The command '{command}' needs a 'source'.", echo)
    return Request(echo["id"], command, source)


def _identity(value: object) -> str | int | None:
    """What the sender chose to recognise the answer by; None for what is not text or a whole number, or too long."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return value if len(str(value)) <= ID_CHARACTERS_MAX else None


def _shown(value: object) -> str:
    return repr(value)[:ID_CHARACTERS_MAX]


async def execute(request: Request, gateway: Controlled) -> tuple[dict[str, Any], Picture | None]:
    """Do what is asked: the answer, and the picture that goes with it. Raises GatewayError when it cannot be done."""
    if request.command == "pause":
        await gateway.hold(request.source)
        return {"paused": True}, None
    if request.command == "resume":
        await gateway.release(request.source)
        return {"paused": False}, None
    if request.command == "status" and not request.source:
        return {"status": "online", "sources": _states(gateway)}, None
    return await _of_source(request, gateway)


async def _of_source(request: Request, gateway: Controlled) -> tuple[dict[str, Any], Picture | None]:
    source = gateway.sources.get(request.source)
    if source is None:
        raise GatewayError(f"There is no source {_shown(request.source)} here; the command 'status' lists them.")
    camera = gateway.config.cameras.get(request.source)
    if request.command == "snapshot" and camera is not None:
        picture = await asyncio.to_thread(last_picture, gateway.config.data, camera.stream, request.source)
        about = {"width": picture.width, "height": picture.height, "bytes": len(picture.jpeg)}
        return {**about, "timestamp": picture.timestamp.isoformat(), "offset": picture.offset}, picture
    paused = request.source in gateway.held
    return {"kind": source.kind, "paused": paused, "statistics": source.statistics()}, None


def _states(gateway: Controlled) -> dict[str, dict[str, Any]]:
    return {
        name: {"kind": source.kind, "state": source.statistics().get("state"), "paused": name in gateway.held}
        for name, source in gateway.sources.items()
    }
