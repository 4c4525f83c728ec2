"""How a TLS connection comes in: counted before its handshake, which is bounded in time, and logged if it fails.

An event loop's own TLS server tells nobody why a handshake failed, and counts no connection before it succeeded.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any, cast

from gateway_adapters.mqtt.connection import LINGER_S, address_of, host_of

if TYPE_CHECKING:
    from gateway_adapters.mqtt.listener import MqttListener


class TlsEntrance(asyncio.Protocol):
    """The protocol of one TCP connection until its TLS handshake is over."""

    def __init__(self, listener: MqttListener) -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._shaking: asyncio.Task[None] | None = None
        self.peer = "?"
        self.host = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.peer = address_of(transport.get_extra_info("peername"))
        self.host = host_of(transport.get_extra_info("peername"))
        if self._listener.admit(self):
            self._shaking = asyncio.create_task(self._shake_hands(self._transport))
        else:
            self._transport.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._shaking is not None:
            self._shaking.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        context = self._listener.door.tls
        assert context is not None, "an entrance of a listener without TLS"
        early = _Early()
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                early,
                context,
                server_side=True,
                ssl_handshake_timeout=self._listener.connect_timeout_s,
                ssl_shutdown_timeout=LINGER_S,
            )
        except (OSError, asyncio.CancelledError) as error:  # SSLError and TimeoutError are OSErrors
            transport.abort()
            self._listener.remove(self)
            if isinstance(error, asyncio.CancelledError):
                raise
            self._say(error)
            return
        if secured is not None and not early.lost:
            early.hand_over(secured, self._listener.protocol())
        self._listener.remove(self)

    def _say(self, error: OSError) -> None:
        """One line; a connection that was simply cut before it began (a port scan, a health check) is no failure."""
        if isinstance(error, ConnectionError) or not (isinstance(error, ssl.SSLError | TimeoutError) or str(error)):
            return
        self._listener.count("handshakes_failed")
        cause = "it took too long" if isinstance(error, TimeoutError) else _reason(error)
        self._listener.say(logging.WARNING, "connection closed: the TLS handshake failed", peer=self.peer, cause=cause)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not accepted: {error.verify_message}"
    return str(getattr(error, "reason", None) or type(error).__name__).lower().replace("_", " ")


class _Early(asyncio.Protocol):
    """Takes what comes between the end of the handshake and the hand-over to the real protocol, at most one read."""

    def __init__(self) -> None:
        self.lost = False
        self._data: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._data.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def hand_over(self, transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        for data in self._data:
            feed(protocol, data)


def feed(protocol: Any, data: bytes) -> None:
    """Give a protocol bytes as its transport would."""
    if not isinstance(protocol, asyncio.BufferedProtocol):
        protocol.data_received(data)
        return
    part = memoryview(data)
    while part:
        window = memoryview(protocol.get_buffer(len(part)))
        count = min(len(window), len(part))
        window[:count] = part[:count]
        protocol.buffer_updated(count)
        part = part[count:]
