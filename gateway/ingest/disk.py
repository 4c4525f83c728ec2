"""How the data directory's file system is divided: what is never filled, and what retention keeps free.

0 ────────────────────────────── records ──────────────────────────────│── headroom ──│── reserve ──│ total
                                                 retention deletes here ┘    refused here ┘
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from gateway.clock import format_size
from gateway.config import Config, StreamConfig
from gateway.config.values import GIB, MIB, SEGMENT_BYTES_MIN
from gateway.errors import ConfigError

# Where the configuration sets no reserve: this, or that part of a smaller file system.
RESERVE_BYTES, RESERVE_PART = 2 * GIB, 20
# From where retention begins to the reserve. Streams grow in steps of up to 64 MiB; the keeper looks every second.
HEADROOM_BYTES_MIN, HEADROOM_BYTES_MAX, HEADROOM_PART = 128 * MIB, 4 * GIB, 100
# … but never more than this part of what may be used at all.
HEADROOM_PART_MAX = 8
# Retention deletes whole segments, so it needs several of them.
SEGMENTS_MIN, SEGMENTS_OF_RETENTION_MIN = 16, 8

# From so many dirty streams on, one syncfs instead of an fdatasync each. It won from 3 to 10 on where it was measured
# (`python -m bench log_many_streams`).
SYNCFS_FILES = 16
# Before this syncfs(2) reported no errors.
SYNCFS_KERNEL = (5, 8)


class Space(NamedTuple):
    """A file system's bytes: all of it, and what an unprivileged writer may still take."""

    total_bytes: int
    free_bytes: int


class DiskPlan(NamedTuple):
    """What of the file system is for what, in bytes. All zero where it does not say how large it is."""

    total_bytes: int
    reserve_bytes: int
    headroom_bytes: int

    @property
    def free_wanted_bytes(self) -> int:
        """Below this retention deletes the oldest segments."""
        return self.reserve_bytes + self.headroom_bytes

    def segment_bytes(self, settings: StreamConfig) -> int:
        """At which size a stream's segments are sealed: as set, or earlier, so that retention finds something."""
        most = [settings.segment_bytes]
        if settings.retention.size_bytes is not None:
            most.append(settings.retention.size_bytes // SEGMENTS_OF_RETENTION_MIN)
        if self.total_bytes:
            most.append((self.total_bytes - self.reserve_bytes) // SEGMENTS_MIN)
        return max(SEGMENT_BYTES_MIN, min(most))


def space(directory: Path) -> Space:
    """What there is, and what is free, where the directory is. OSError if it cannot be told."""
    found = os.statvfs(directory)
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def plan(config: Config, total_bytes: int) -> DiskPlan:
    """Divide a file system of that size. ConfigError if the configured reserve leaves no room for records."""
    reserve_bytes = config.disk.reserve_bytes
    if not total_bytes:
        return DiskPlan(0, reserve_bytes or 0, 0)
    if reserve_bytes is None:
        reserve_bytes = min(RESERVE_BYTES, total_bytes // RESERVE_PART)
    usable_bytes = max(0, total_bytes - reserve_bytes)
    headroom_bytes = min(
        max(HEADROOM_BYTES_MIN, min(total_bytes // HEADROOM_PART, HEADROOM_BYTES_MAX)),
        usable_bytes // HEADROOM_PART_MAX,
    )
    segments_bytes = max(1, len(config.written_streams())) * SEGMENT_BYTES_MIN
    if config.disk.reserve_bytes and reserve_bytes + headroom_bytes + segments_bytes > total_bytes:
        raise ConfigError(
            f"disk.reserve: does not fit: {format_size(reserve_bytes)} of reserve + {format_size(headroom_bytes)} of "
            f"headroom + {format_size(segments_bytes)} for a segment of each stream are more than the "
            f"{format_size(total_bytes)} of the file system of {config.data}; choose a smaller reserve."
        )
    return DiskPlan(total_bytes, reserve_bytes, headroom_bytes)


def syncfs_files(config: Config) -> int:
    """From how many dirty streams on one syncfs(2) stands for the sync of each; 0: never.

    It also writes what others left dirty, so unasked it is used only where the data directory, or the one above it, is
    the root of a file system.
    """
    if config.disk.syncfs == "never" or _kernel() < SYNCFS_KERNEL:
        return 0
    directory = config.data.absolute()
    own = directory.is_mount() or (directory.parent.is_mount() and directory.parent != directory.parent.parent)
    return SYNCFS_FILES if own or config.disk.syncfs == "always" else 0


def _kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
