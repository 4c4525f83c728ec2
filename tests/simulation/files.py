"""The simulated disk as recovery and retention see one; and its content as real files, for the shipped readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gateway_native.simulated_disk import Disk

from gateway.log.files import Files, ReadFile

EXISTING, EMPTY = 0, 2


class SimulatedReadFile:
    """A file open for reading."""

    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path
        disk.size(path)  # FileNotFoundError

    @property
    def size(self) -> int:
        return self._disk.size(self._path)

    def read(self, position: int, size: int) -> bytes:
        return self._disk.read(self._path, position, size)

    def close(self) -> None: ...


class SimulatedFiles(Files):
    """Every change is one operation of the disk, or a few: the power can fail between any two of them."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def names(self, directory: Path) -> Iterator[str]:
        return iter(self.disk.names(str(directory)))

    def exists(self, path: Path) -> bool:
        return self.disk.exists(str(path))

    def size(self, path: Path) -> int:
        return self.disk.size(str(path))

    def open_read(self, path: Path) -> ReadFile:
        return SimulatedReadFile(self.disk, str(path))

    def read_bytes(self, path: Path) -> bytes:
        return self.disk.read_file(str(path))

    def create(self, path: Path) -> None:
        self.disk.close(self.disk.open(str(path), EMPTY))

    def write_at(self, path: Path, data: bytes, position: int) -> None:
        descriptor = self.disk.open(str(path), EXISTING)
        try:
            self.disk.write_at(descriptor, data, position)
        finally:
            self.disk.close(descriptor)

    def truncate(self, path: Path, size: int) -> None:
        descriptor = self.disk.open(str(path), EXISTING)
        try:
            self.disk.truncate(descriptor, size)
        finally:
            self.disk.close(descriptor)

    def sync(self, path: Path) -> None:
        descriptor = self.disk.open(str(path), EXISTING)
        try:
            self.disk.sync_all(descriptor)
        finally:
            self.disk.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        self.disk.rename(str(old), str(new))

    def unlink(self, path: Path) -> None:
        if self.disk.exists(str(path)):
            self.disk.unlink(str(path))

    def sync_directory(self, directory: Path) -> None:
        self.disk.sync_directory(str(directory))


def materialize(disk: Disk, directory: str, target: Path) -> None:
    """Write the volatile state of `directory` and what is below it to real files."""
    target.mkdir(exist_ok=True)
    for name in disk.names(directory):
        path = f"{directory}/{name}"
        if disk.is_directory(path):
            materialize(disk, path, target / name)
        else:
            (target / name).write_bytes(disk.read_file(path))
