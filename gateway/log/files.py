"""Every look at the disk, and every change to it, that opening and repairing a log takes.

A test gives recovery a simulated disk with the same methods. What is durable when: `sync` makes a file's content and
length durable, `sync_directory` makes the directory's entries durable (new, renamed and removed files); nothing else
makes anything durable.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

FULL = (errno.ENOSPC, errno.EDQUOT)


class ReadFile(Protocol):
    """A file open for reading. Only the caller's thread may use it."""

    @property
    def size(self) -> int:
        """Bytes in the file now."""

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`; fewer only at the end of the file. OSError for a bad sector."""

    def close(self) -> None: ...


class _ReadFile:
    """Read with seek and read, on an unbuffered file that nobody shares: that exists on every system."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    @property
    def size(self) -> int:
        return self._file.seek(0, 2)

    def read(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        data = self._file.read(size) or b""
        while len(data) < size:
            more = self._file.read(size - len(data))
            if not more:
                break
            data += more
        return data

    def fileno(self) -> int:
        return self._file.fileno()

    def next_data(self, position: int) -> int:
        """Where, from `position` on, something was written: what lies before it is a hole, or allocated, and zero."""
        try:
            return os.lseek(self._file.fileno(), position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self.size
            return position  # this file system cannot tell

    def map(self, position: int, size: int) -> mmap.mmap:
        """These bytes, mapped for reading: they stay even when the file is closed, or deleted.

        `position` is a multiple of mmap.ALLOCATIONGRANULARITY, and all `size` bytes are in the file.
        """
        return mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ, offset=position)

    def close(self) -> None:
        self._file.close()


class Files:
    """The real file system. Methods raise what the operating system says: FileNotFoundError, OSError."""

    def names(self, directory: Path) -> Iterator[str]:
        """Names in a directory, in no order, one after the other; a directory that is missing has none."""
        try:
            entries = os.scandir(directory)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                yield entry.name

    def exists(self, path: Path) -> bool:
        try:
            os.stat(path)  # noqa: PTH116  # asked 100,000 times at a start
        except FileNotFoundError:
            return False
        return True

    def size(self, path: Path) -> int:
        return os.stat(path).st_size  # noqa: PTH116

    def open_read(self, path: Path) -> ReadFile:
        return _ReadFile(path)

    def read_bytes(self, path: Path) -> bytes:
        with path.open("rb", buffering=0) as file:
            return file.read()

    def create(self, path: Path) -> None:
        """An empty file; one that is there is emptied."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644))

    def write_at(self, path: Path, data: bytes, position: int) -> None:
        """Write into a file that is there."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], position + written)
        finally:
            os.close(descriptor)

    def truncate(self, path: Path, size: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, replacing what had it."""
        old.replace(new)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is not there is no error."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


FILES = Files()


def replace(files: Files, path: Path, content: bytes) -> None:
    """Have exactly `content` in the file, on the disk; a crash leaves it as it was. The caller syncs the directory.

    If it fails, the file is as it was, and no half of a new one stays.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        files.create(new)
        files.write_at(new, content, 0)
        files.sync(new)
    except OSError:
        files.unlink(new)
        raise
    files.rename(new, path)
