"""Routes: which stream an MQTT topic is recorded in. The first filter that matches decides.

The look-up itself is native (`gateway_native/mqtt_routes.pxd` says how templates make names); here the streams are
opened: those that the configuration names at once, those that a template makes of a topic when the first message comes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gateway_native.mqtt import Routes

from gateway.config import OVERFLOW_STREAM, Route
from gateway.errors import ConfigError, GatewayError
from gateway.ingest.engine import Engine
from gateway_adapters.mqtt.protocol import is_filter

logger = logging.getLogger("gateway.mqtt")


class RoutedStreams:
    """The streams that a source's routes lead to.

    Raises ConfigError for a filter that MQTT does not allow. A stream opened here costs nothing on disk until its first
    record.
    """

    def __init__(self, source: str, routes: Sequence[Route], engine: Engine) -> None:
        self._source = source
        self._engine = engine
        self._names: dict[int, str] = {}
        self._not_opened = 0
        self.table = self._compile(routes)

    def _compile(self, routes: Sequence[Route]) -> Routes:
        compiled: list[tuple[bytes, int | bytes, bytes | None, bool]] = []
        for route in routes:
            if not is_filter(route.filter) or "\0" in route.filter:
                raise ConfigError(
                    f"Source {self._source!r}: the route filter {route.filter!r} is not a topic filter; '+' and '#' "
                    "stand alone in their level, and '#' only in the last one."
                )
            stream: int | bytes = route.stream.encode() if route.is_template else self._open(route.stream)
            key = None if route.key == "{topic}" else route.key.encode()
            compiled.append((plain_filter(route.filter).encode(), stream, key, route.overload == "drop-newest"))
        overflow = self._open(OVERFLOW_STREAM) if any(route.is_template for route in routes) else None
        return Routes(compiled, overflow=overflow)

    def _open(self, stream: str) -> int:
        partition = self._engine.partition(stream)
        self._names[partition] = stream
        return partition

    def resolve(self, name: bytes) -> int:
        """The partition of a stream that a template has named, opened if need be; overflow's if it cannot be opened.

        For ``Group.resolve``, which asks once for each name.
        """
        stream = name.decode("ascii")
        try:
            return self._open(stream)
        except GatewayError as error:
            self._not_opened += 1
            fields = {"source": self._source, "stream": stream, "cause": str(error)}
            logger.warning("stream not opened, its messages go to overflow", extra={"fields": fields})
            return self._open(OVERFLOW_STREAM)

    def find(self, topic: bytes) -> tuple[int, bytes] | None:
        """Partition and key for a message that is recorded from Python; None when no route takes its topic."""
        target = self.table.target(topic)
        if target is None:
            return None
        stream, key = target
        if stream is None:
            return self._open(OVERFLOW_STREAM), key
        return (self.resolve(stream) if isinstance(stream, bytes) else stream), key

    def name(self, partition: int) -> str:
        """Of a stream that was opened here."""
        return self._names[partition]

    def statistics(self) -> dict[str, int]:
        """How many streams this source records in, and how often one could not be opened."""
        return {"streams": len(self._names), "streams_not_opened": self._not_opened}


def plain_filter(topic_filter: str) -> str:
    """The filter that topics are matched with: a shared subscription's without its "$share/<group>/"."""
    if topic_filter.startswith("$share/"):
        _, _, plain = topic_filter.removeprefix("$share/").partition("/")
        return plain or topic_filter
    return topic_filter
