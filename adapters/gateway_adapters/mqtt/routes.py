"""Routes: which stream an MQTT topic is recorded in. The first filter that matches decides."""

from __future__ import annotations

from collections.abc import Sequence

from gateway_native.mqtt import Routes

from gateway.config import Route
from gateway.errors import ConfigError
from gateway.ingest.engine import Engine
from gateway_adapters.mqtt.protocol import is_filter


def compile_routes(source: str, routes: Sequence[Route], engine: Engine) -> Routes:
    """The native table of these routes, their streams opened. Raises ConfigError for a filter that MQTT does not allow.

    A stream opened here costs nothing on disk until its first record.
    """
    compiled = []
    for route in routes:
        if not is_filter(route.filter) or "\0" in route.filter:
            raise ConfigError(
                f"Source {source!r}: the route filter {route.filter!r} is not a topic filter; '+' and '#' stand alone "
                "in their level, and '#' only in the last one."
            )
        compiled.append((plain_filter(route.filter).encode(), engine.partition(route.stream)))
    return Routes(compiled)


def plain_filter(topic_filter: str) -> str:
    """The filter that topics are matched with: a shared subscription's without its "$share/<group>/"."""
    if topic_filter.startswith("$share/"):
        _, _, plain = topic_filter.removeprefix("$share/").partition("/")
        return plain or topic_filter
    return topic_filter
