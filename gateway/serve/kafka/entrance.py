"""How connections come in: counted from the moment they are accepted, TLS handshakes bounded in time and in number.

An event loop's own server counts none before its handshake has succeeded, and keeps no hold of those that go on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

BACKLOG = 128
# Without a free descriptor no connection can be accepted: look again later.
FULL_PAUSE_S = 1.0
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Host(Protocol):
    """What the entrance needs of the server."""

    def has_room(self, entering: int) -> bool: ...
    def count(self, name: str, amount: int = 1) -> None: ...
    def say(self, level: int, event: str, **fields: object) -> None: ...


class Entrance:
    """Listens at one address, and hands over what comes in."""

    def __init__(
        self,
        host: Host,
        protocol: Callable[[socket.socket], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
        timeout_s: float,
    ) -> None:
        self._host = host
        self._protocol = protocol
        self._tls = tls
        self._timeout_s = timeout_s
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._entering: set[asyncio.Task[None]] = set()
        self._at_the_door: set[asyncio.BaseProtocol] = set()  # accepted, and not in yet

    async def open(self, host: str, port: int) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                self._sockets.append(_listening(family, address))
        except OSError:
            self.close()
            raise
        self._accepting = [loop.create_task(self._accept(one), name="kafka-accept") for one in self._sockets]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are bound."""
        host, port = self._sockets[0].getsockname()[:2]
        return host, port

    def came_in(self, connection: asyncio.BaseProtocol) -> None:
        """Its handshake is done: the host counts it from here on."""
        self._at_the_door.discard(connection)

    def close(self) -> None:
        """Let nobody in any more, nor those who are still at the door."""
        for task in (*self._accepting, *self._entering):
            task.cancel()
        for one in self._sockets:
            one.close()

    async def closed(self) -> None:
        """After `close`: nothing is left."""
        if tasks := [*self._accepting, *self._entering]:
            await asyncio.wait(tasks)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._host.say(logging.ERROR, "no connection can be accepted", error=error.strerror)
                await asyncio.sleep(FULL_PAUSE_S)
                continue
            if not self._host.has_room(len(self._at_the_door)):
                self._host.count("refused")
                accepted.close()
                continue
            # asyncio does so only for sockets that were made with the protocol's number.
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self._protocol(accepted)
            self._at_the_door.add(connection)
            peer = f"{address[0]}:{address[1]}"
            entering = loop.create_task(self._enter(connection, accepted, peer), name="kafka-enter")
            self._entering.add(entering)
            entering.add_done_callback(self._entering.discard)

    async def _enter(self, connection: asyncio.BaseProtocol, accepted: socket.socket, peer: str) -> None:
        handshake_s = self._timeout_s if self._tls is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, accepted, ssl=self._tls, ssl_handshake_timeout=handshake_s
            )
        except OSError as error:  # SSLError and TimeoutError are OSErrors
            self._host.count("handshakes_failed")
            cause = getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
            self._host.say(logging.WARNING, "connection closed: the TLS handshake failed", peer=peer, cause=cause)
        finally:
            self._at_the_door.discard(connection)


def _listening(family: int, address: object) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gives it
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
