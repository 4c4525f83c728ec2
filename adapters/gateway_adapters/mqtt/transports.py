"""Listening sockets: TCP addresses and Unix sockets, ready to be handed to whoever accepts."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

from gateway.config import ListenerConfig

BACKLOG = 1_024


def listening_sockets(config: ListenerConfig) -> list[socket.socket]:
    """Bound and listening, not blocking; several where the host's name has several addresses. Raises OSError."""
    if config.unix_path is not None:
        return [_unix_socket(config.unix_path, int(config.socket_mode, 8))]
    found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _, protocol, _, address in dict.fromkeys(found):
            sockets.append(_tcp_socket(family, protocol, address))
    except OSError:
        for one in sockets:
            one.close()
        raise
    return sockets


def remove_unix_socket(path: Path, inode: int) -> None:
    """Remove the file of a Unix socket that was closed, unless another gateway has meanwhile put its own there."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        return


def _tcp_socket(family: int, protocol: int, address: Any) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _unix_socket(path: Path, mode: int) -> socket.socket:
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listening.bind(str(path))
        path.chmod(mode)  # before anybody can connect, which takes listen()
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _remove_stale(path: Path) -> None:
    """A file that a killed gateway left is removed; a socket that somebody listens on, or another file, is not."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file of that name, which is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        # EAGAIN is a full queue: somebody listens.
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    path.unlink(missing_ok=True)
