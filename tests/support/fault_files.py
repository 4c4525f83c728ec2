"""A file system that says what was asked of it, has no room, or has bad sectors."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.log.files import Files, ReadFile


class WatchedFiles(Files):
    """Notes what is listed, read and changed."""

    def __init__(self) -> None:
        self.listed = 0
        self.changed: list[tuple[str, str]] = []
        self.read: list[tuple[str, int, int]] = []

    def names(self, directory: Path) -> Iterator[str]:
        self.listed += 1
        return super().names(directory)

    def open_read(self, path: Path) -> ReadFile:
        return _WatchedFile(super().open_read(path), path.name, self.read)

    def create(self, path: Path) -> None:
        self.change("create", path)
        super().create(path)

    def write_at(self, path: Path, data: bytes, position: int) -> None:
        self.change("write", path)
        super().write_at(path, data, position)

    def truncate(self, path: Path, size: int) -> None:
        self.change("truncate", path)
        super().truncate(path, size)

    def rename(self, old: Path, new: Path) -> None:
        self.change("rename", old)
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self.change("unlink", path)
        super().unlink(path)

    def change(self, what: str, path: Path) -> None:
        """Called before anything is changed."""
        self.changed.append((what, path.name))


class _WatchedFile:
    def __init__(self, file: ReadFile, name: str, read: list[tuple[str, int, int]]) -> None:
        self._file, self._name, self._read = file, name, read

    @property
    def size(self) -> int:
        return self._file.size

    def read(self, position: int, size: int) -> bytes:
        data = self._file.read(position, size)
        self._read.append((self._name, position, len(data)))
        return data

    def close(self) -> None:
        self._file.close()


class FullFiles(WatchedFiles):
    """The disk has no room: from the so-manieth write or new file on."""

    def __init__(self, room_for: int = 0) -> None:
        super().__init__()
        self._left = room_for

    def change(self, what: str, path: Path) -> None:
        super().change(what, path)
        if what in ("create", "write"):
            self._left -= 1
            if self._left < 0:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))


class BadSectors:
    """Patches `Segment.read`, so that it works for every reader: these byte ranges of these files give EIO."""

    def __init__(self, read: Callable[..., bytes], bad: dict[Path, list[tuple[int, int]]]) -> None:
        self._read = read
        self.bad = bad
        self.errors = 0

    def __call__(self, segment: object, position: int, size: int) -> bytes:
        for start, end in self.bad.get(segment.path, []):  # type: ignore[attr-defined]
            if position < end and start < position + size:
                self.errors += 1
                raise OSError(errno.EIO, "Input/output error")
        return self._read(segment, position, size)
