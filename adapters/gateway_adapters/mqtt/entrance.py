"""How TLS connections come in: counted before their handshakes, which are bounded in time, and logged if they fail.

An event loop's own TLS server tells nobody why a handshake failed, and counts no connection before it succeeded.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from typing import TYPE_CHECKING

from gateway_adapters.mqtt.connection import LINGER_S, address_of, host_of

if TYPE_CHECKING:
    from gateway_adapters.mqtt.listener import MqttListener

# Accepted in one turn of the event loop: a storm of connections must not hold up those that publish.
ACCEPTED_MAX = 64
# Without a free descriptor no connection can be accepted, and the listening socket stays readable: look again later.
FULL_PAUSE_S = 1.0
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class TlsServer:
    """Accepts at one listening socket, which it closes in the end."""

    def __init__(self, listener: MqttListener, listening: socket.socket) -> None:
        self._listener = listener
        self._listening = listening
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None
        self._loop.add_reader(listening, self._accept)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return (self._listening,)

    def close(self) -> None:
        """Accept nothing more. Safe to call again."""
        if self._resuming is not None:
            self._resuming.cancel()
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            self._listening.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_MAX):
            try:
                accepted, address = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._pause(error)
                return
            accepted.setblocking(False)
            Handshake(self._listener, accepted, address)

    def _pause(self, error: OSError) -> None:
        self._listener.say(logging.ERROR, "no connection can be accepted", error=error.strerror)
        self._loop.remove_reader(self._listening)
        self._resuming = self._loop.call_later(FULL_PAUSE_S, self._loop.add_reader, self._listening, self._accept)


class Handshake:
    """One connection until its TLS handshake is over; then its protocol has it."""

    def __init__(self, listener: MqttListener, accepted: socket.socket, address: object) -> None:
        self._listener = listener
        self.peer = address_of(address)
        self.host = host_of(address)
        self._task: asyncio.Task[None] | None = None
        if listener.admit(self):
            self._task = asyncio.create_task(self._shake_hands(accepted))
        else:
            accepted.close()

    def abort(self) -> None:
        """Close at once."""
        if self._task is not None:
            self._task.cancel()

    async def _shake_hands(self, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._listener.protocol,
                accepted,
                ssl=self._listener.door.tls,
                ssl_handshake_timeout=self._listener.connect_timeout_s,
                ssl_shutdown_timeout=LINGER_S,
            )
        except OSError as error:  # SSLError and TimeoutError are OSErrors
            self._say(error)
        finally:
            self._listener.remove(self)

    def _say(self, error: OSError) -> None:
        """One line; a connection that was cut before it began (a port scan, a health check) is no failure."""
        if isinstance(error, ConnectionAbortedError):  # the event loop's word for a time-out
            self._listener.count("timeouts")
            self._listener.say(logging.INFO, "connection closed: the TLS handshake did not end in time", peer=self.peer)
            return
        if isinstance(error, ConnectionError) and not self._listener.paused:
            self._listener.count("cut_off")
            return
        self._listener.count("handshakes_failed")
        self._listener.say(
            logging.WARNING, "connection closed: the TLS handshake failed", peer=self.peer, cause=_cause(error)
        )


def _cause(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "it broke off").lower().replace("_", " ")
    return str(error) or type(error).__name__
