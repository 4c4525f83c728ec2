"""Who keeps the room of deleted files: processes that still have them open or mapped. Linux's /proc tells.

A file's blocks are free only when nobody has it open. A reader that holds on to deleted segments can so fill a disk
that retention empties; then deleting more frees nothing, and whoever looks after the machine wants to know the process.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_DELETED = " (deleted)"
_MAPPING = re.compile(r"(?P<range>[0-9a-f]+-[0-9a-f]+) \S+ \S+ (?P<device>\S+) (?P<inode>\d+) +(?P<path>/.*)")

BLOCK_BYTES = 512  # of st_blocks, whatever the file system

_Inode = tuple[int, int]


class Holder(NamedTuple):
    """A process that keeps deleted files of ours from being freed."""

    pid: int
    command: str
    bytes: int
    files: int

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


class Held(NamedTuple):
    """All of it: bytes that are deleted and not free, and who holds them, the most first."""

    bytes: int
    holders: tuple[Holder, ...]


def find_holders(directory: Path, proc: Path = Path("/proc")) -> Held:
    """Deleted files below `directory` that somebody holds. Other users' processes are seen only by root."""
    prefix = f"{directory.resolve()}{os.sep}"
    everything: dict[_Inode, int] = {}
    holders = []
    for entry in _entries(proc):
        if not entry.name.isdigit():
            continue
        held = {**_mapped(Path(entry.path), prefix), **_opened(Path(entry.path), prefix)}
        if held:
            everything.update(held)
            holders.append(Holder(int(entry.name), _command(Path(entry.path)), sum(held.values()), len(held)))
    holders.sort(key=lambda holder: -holder.bytes)
    return Held(sum(everything.values()), tuple(holders))


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    """What is in it; nothing if it went, or may not be looked at."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        yield from entries


def _opened(process: Path, prefix: str) -> dict[_Inode, int]:
    held = {}
    for entry in _entries(process / "fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            target = os.readlink(entry.path)  # noqa: PTH115  # a Path would drop what the kernel adds
            if target.startswith(prefix) and target.endswith(_DELETED):
                found = os.stat(entry.path)  # noqa: PTH116  # likewise: through the link, to a file without a name
                held[found.st_dev, found.st_ino] = found.st_blocks * BLOCK_BYTES
    return held


def _mapped(process: Path, prefix: str) -> dict[_Inode, int]:
    held: dict[_Inode, int] = {}
    with contextlib.suppress(OSError), (process / "maps").open(encoding="utf-8", errors="replace") as maps:
        for line in maps:
            found = _MAPPING.fullmatch(line.rstrip("\n"))
            if found is None or not (found["path"].startswith(prefix) and found["path"].endswith(_DELETED)):
                continue
            major, minor = (int(part, 16) for part in found["device"].split(":"))
            inode = (os.makedev(major, minor), int(found["inode"]))
            held[inode] = max(held.get(inode, 0), _mapped_bytes(process, found["range"]))
    return held


def _mapped_bytes(process: Path, addresses: str) -> int:
    """The file's blocks; where only root may see them, as much as is mapped."""
    try:
        return (process / "map_files" / addresses).stat().st_blocks * BLOCK_BYTES
    except OSError:
        begin, end = (int(part, 16) for part in addresses.split("-"))
        return end - begin


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "?"
