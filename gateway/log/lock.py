"""One writer per data directory. Readers never look at the lock."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType

from gateway.errors import LockedError
from gateway.log.layout import LOCK_FILE

PID_BYTES_MAX = 32

# A fork copies the descriptor, and the lock with it: a child that lives on would keep out the next writer.
_held: weakref.WeakSet[DataLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_forget_in_child)


class DataLock:
    """The exclusive right to write a data directory, held until `release` or the end of the process.

    It is a ``flock`` on ``<data>/lock``, so a process that is killed leaves no stale lock behind. The file holds the
    writer's process id for the one who is refused; it stays when the lock is gone.
    """

    def __init__(self, data: Path) -> None:
        """Take the lock, making the directory if it is missing. LockedError, naming the pid, if another holds it."""
        data.mkdir(parents=True, exist_ok=True)
        self.path = data / LOCK_FILE
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, PID_BYTES_MAX).decode("ascii", "replace").strip()
            self._close()
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise LockedError(
                f"{data} already has a writer: {who} holds {self.path}. Stop it first, or use another data directory."
            ) from None
        except BaseException:
            self._close()
            raise
        _held.add(self)
        self._write_pid()

    def _write_pid(self) -> None:
        os.ftruncate(self._descriptor, 0)
        try:
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._close()
                raise
            # The lock holds without it; a gateway must start on a full disk too.

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> DataLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
