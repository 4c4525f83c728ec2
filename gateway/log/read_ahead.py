"""Bring into the page cache what opening a partition reads, so that many of them can be opened one after the other.

After a cold start that is a handful of random reads for each: a hundred streams took five seconds one by one where it
was measured, most of them waiting for the disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway_native import watermark

from gateway.log.layout import (
    INDEX_SUFFIX,
    LOG_SUFFIX,
    MANIFEST_FILE,
    TIME_SUFFIX,
    WATERMARK_FILE,
    segment_name,
)

# Reads under way at a time. Below so many partitions it is not worth the threads.
THREADS = 16
PARTITIONS_MIN = 8
_LAST_BYTES = 4096


def read_ahead(directories: Iterable[Path]) -> None:
    """Read what `recover` will. What cannot be read is left to it to tell."""
    wanted = list(directories)
    if len(wanted) < PARTITIONS_MIN:
        return
    with ThreadPoolExecutor(THREADS, "gateway-read-ahead") as pool:
        list(pool.map(_read, wanted))


def _read(directory: Path) -> None:
    with contextlib.suppress(OSError):
        mark = watermark.parse((directory / WATERMARK_FILE).read_bytes())
        if mark is None:
            return
        for suffix in (INDEX_SUFFIX, TIME_SUFFIX):
            (directory / segment_name(mark.segment_base, suffix)).read_bytes()
        with (directory / segment_name(mark.segment_base, LOG_SUFFIX)).open("rb", buffering=0) as log:
            log.seek(max(mark.position - _LAST_BYTES, 0))
            log.read(_LAST_BYTES)
        (directory / MANIFEST_FILE).read_bytes()
