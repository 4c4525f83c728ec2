"""Counts what the writer had to drop: refused on a full disk, lost with a stream that failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.ingest.gaps import EVERYTHING_ELSE, Gaps

logger = logging.getLogger("gateway.engine")


class RefusingWriter(Protocol):
    """What is needed of the native writer."""

    def partition_state(self, index: int) -> dict[str, Any]: ...

    def refusals(self, index: int) -> dict[str, tuple[int, int, int, int]]: ...


class Refusals:
    """Hands the writer's counts, as far as they have grown, to the account of losses."""

    def __init__(
        self,
        writer: RefusingWriter,
        gaps: Gaps,
        partitions: Callable[[], Mapping[str, int]],
        source_of: Callable[[str, str], str],
    ) -> None:
        """source_of(ring, stream): the source's name; several cameras share one ring."""
        self._writer = writer
        self._gaps = gaps
        self._partitions = partitions
        self._source_of = source_of
        self._seen: dict[tuple[str, str], tuple[int, int]] = {}
        self._refused: dict[str, int] = {}
        self._lost: dict[str, int] = {}

    def look(self) -> None:
        """Count what was dropped since the last look."""
        for stream, index in self._partitions().items():
            state = self._writer.partition_state(index)
            if state["refused"] != self._refused.get(stream, 0):
                self._refused[stream] = state["refused"]
                self._count_refused(stream, index)
            lost = state["lost"] - self._lost.get(stream, 0)
            if lost:
                self._lost[stream] = state["lost"]
                self._gaps.add_unwritable(stream, EVERYTHING_ELSE, "failed-disk", count=lost)

    def _count_refused(self, stream: str, index: int) -> None:
        for ring, (count, size, first_ns, last_ns) in self._writer.refusals(index).items():
            known_count, known_size = self._seen.get((stream, ring), (0, 0))
            self._seen[stream, ring] = (count, size)
            if count > known_count:
                self._say(stream, self._source_of(ring, stream), count - known_count)
                self._gaps.add(
                    stream,
                    self._source_of(ring, stream),
                    "full-disk",
                    count=count - known_count,
                    bytes=size - known_size,
                    first_ns=first_ns,
                    last_ns=last_ns,
                )

    @staticmethod
    def _say(stream: str, source: str, count: int) -> None:
        """A refusal may be over before the stream's state is looked at; what it cost is said in any case."""
        fields = {"source": source, "stream": stream, "records": count}
        logger.warning("records refused, the disk is full", extra={"fields": fields})
