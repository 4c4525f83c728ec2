"""Makes key indexes of sealed segments while the gateway runs. Nothing waits for them.

The keeper looks once a second which streams have sealed a segment; a thread that stands back behind all others then
lists their directories, makes what is missing, the newest first, and ends when nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gateway.ingest.disk import space
from gateway.ingest.rebuilder import Rebuilder
from gateway.log.files import Files
from gateway.log.key_index_build import build_key_index, missing_key_indexes
from gateway.log.layout import partition_path, segment_name

# An index takes hardly more than this part of its segment (15 % with values of 64 bytes); without so much room above
# the reserve it is left out.
INDEX_SHARE = 0.25
NICE = 19


class KeyIndexer:
    """Which streams have segments without a key index, and the thread that makes them."""

    def __init__(
        self,
        data: Path,
        reserve_bytes: int,
        *,
        state: Callable[[int], Mapping[str, Any]],
        wanted: Callable[[str], bool],
    ) -> None:
        """state: of a partition, as the writer tells it. wanted: is the stream to have indexes?"""
        self._data = data
        self._reserve_bytes = reserve_bytes
        self._state = state
        self._wanted = wanted
        self._seen: dict[str, int] = {}
        self._thread = Rebuilder("gateway-key-indexer", nice=NICE)
        self.made = 0
        self.made_bytes = 0
        self.left_out = 0
        """Segments for whose index there was no room."""

    def look(self, streams: Mapping[str, int]) -> None:
        """See which streams have sealed a segment since the last look, and have somebody work on them."""
        for stream, index in streams.items():
            base = self._state(index)["segment_base"]
            if self._seen.get(stream) != base and self._wanted(stream):
                self._seen[stream] = base
                if base > 0:
                    self._thread.put(stream, "key indexes", self._work(partition_path(self._data, stream)))
        self._thread.look()

    def stop(self) -> None:
        """End after the read that is under way. The next start goes on."""
        self._thread.stop()

    def statistics(self) -> dict[str, Any]:
        return {
            **self._thread.statistics(),
            "made": self.made,
            "bytes": self.made_bytes,
            "left_out": self.left_out,
        }

    def _work(self, directory: Path) -> Callable[[Files], None]:
        return lambda files: self._make(directory, files)

    def _make(self, directory: Path, files: Files) -> None:
        for base in missing_key_indexes(directory, files):
            try:
                if not self._has_room(directory, base, files):
                    self.left_out += 1
                    continue
                self.made_bytes += build_key_index(directory, base, files)
                self.made += 1
            except FileNotFoundError:
                continue  # retention was faster

    def _has_room(self, directory: Path, base: int, files: Files) -> bool:
        needed = INDEX_SHARE * files.size(directory / segment_name(base))
        return space(self._data).free_bytes - self._reserve_bytes > needed
