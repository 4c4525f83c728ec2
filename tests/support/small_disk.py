"""A small file system of its own, to be filled up. Needs root; without it, tests that want one are skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PIECE_BYTES = 64 * 1024


class SmallDisk:
    """A mounted file system that a ballast file can fill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def leave(self, free_bytes: int) -> None:
        """Fill it until only so much is free. What others free meanwhile is left to them."""
        wanted = self.free_bytes - free_bytes
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while (room := min(wanted, self.free_bytes - free_bytes)) > 0:
                wanted -= file.write(bytes(min(room, PIECE_BYTES))) or 0
            os.fsync(file.fileno())

    def relieve(self) -> None:
        """Take the ballast away."""
        self._ballast.unlink()

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True, capture_output=True)


@contextlib.contextmanager
def small_disk(path: Path, kind: str, size_bytes: int) -> Iterator[SmallDisk]:
    """kind: "tmpfs", or "ext4" in a file beside `path`."""
    path.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    else:
        image = path.with_name(f"{path.name}.image")
        command = ["mount", "-o", "loop", str(image), str(path)]
        _make_ext4(image, size_bytes)
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"{kind} cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)


def _make_ext4(image: Path, size_bytes: int) -> None:
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip("mkfs.ext4 is not installed")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([program, "-q", "-F", "-m", "0", str(image)], check=True, capture_output=True)
