"""What a source of records is, and what it is given.

Adapters plug in through the entry point group ``gateway.sources``; the entry point's name is the source's kind
("mqtt.listener", "mqtt.subscriber", "camera") and its object is a Factory. The gateway never imports an adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from gateway.config import Config
from gateway.errors import SourceError
from gateway.ingest.engine import Engine

ENTRY_POINTS = "gateway.sources"


class Source(Protocol):
    """One configured origin of records: a listener, a broker subscription, a camera.

    The shutdown order is `pause` (read no more input), then the engine makes everything taken durable, then `drain`
    (send the acknowledgements that thereby became due), then `stop` (close sockets, end threads).
    """

    name: str
    kind: str

    async def start(self) -> None:
        """Begin. Raises SourceError when it can never work as configured (port taken…), not when a peer is away."""

    async def pause(self) -> None:
        """Take no more input; everything already taken is in a ring when this returns."""

    async def drain(self) -> None:
        """Send the acknowledgements that have become due."""

    async def stop(self) -> None:
        """Close everything. Safe after any of the others, also when `start` failed half way."""

    def statistics(self) -> dict[str, Any]:
        """Counters and state, units in their names; plain values that JSON can show, no secrets."""
        ...


@runtime_checkable
class Refreshing(Protocol):
    """A source that reads files by itself, such as certificates."""

    def refresh(self) -> None:
        """Read them again, because SIGHUP asks for it. After a ConfigError everything is as before."""


@runtime_checkable
class Holdable(Protocol):
    """A source that can stand still for a while without being stopped: its connections stay.

    One that cannot is stopped instead, and started anew.
    """

    async def hold(self) -> None:
        """Read nothing until `release`; who sends is held back by TCP. Acknowledgements still leave."""

    async def release(self) -> None:
        """Read on."""


@dataclass(frozen=True)
class SourceContext:
    """What a source may use."""

    engine: Engine
    config: Config
    logger: logging.Logger


Factory = Callable[[str, Any, SourceContext], Source]


@runtime_checkable
class CameraFinder(Protocol):
    """A factory of cameras that can also look at them without recording. Reports are plain values for JSON."""

    async def probe(self, config: Any, *, seconds: float) -> dict[str, Any]:
        """What the camera of this configuration offers, and sends within some seconds: `state`, `cause`, `tracks`…"""
        ...

    async def discover(
        self,
        *,
        hosts: Sequence[str],
        address: tuple[str, int] | None,
        interface: str | None,
        username: str | None,
        password: str | None,
        wait_s: float,
        timeout_s: float,
    ) -> list[dict[str, Any]]:
        """The cameras on the network: `service`, `name`, `hardware`, `problem`, `profiles` (`name`, `url`…)."""
        ...


def load_factory(kind: str) -> Factory:
    """The factory of a kind of source. Raises SourceError when no installed package provides it."""
    for entry_point in entry_points(group=ENTRY_POINTS, name=kind):
        factory: Factory = entry_point.load()
        return factory
    raise SourceError(
        f"No installed package provides sources of kind {kind!r} (entry point group {ENTRY_POINTS}); "
        "install the gateway with 'pip install .' so that its own adapters are registered."
    )
