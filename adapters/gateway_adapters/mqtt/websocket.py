"""MQTT over WebSocket (MQTT 5, section 6): unwraps what a client sends in binary frames, and wraps what it is sent.

`WebSocketProtocol` is the protocol object of the TCP or TLS connection. Inside it runs the same protocol object as on
plain TCP, which sees a transport and bytes: the boundaries of frames mean nothing in MQTT. Handshake and framing are
the `websockets` library's sans-I/O protocol (RFC 6455). No compression: a small frame could unfold into a huge one.
"""

from __future__ import annotations

import asyncio
import http
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from websockets.exceptions import InvalidHandshake
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from gateway_adapters.mqtt.connection import address_of

SUBPROTOCOL = Subprotocol("mqtt")
# A frame holds a packet of `max_packet` bytes at most, and its fixed header.
FRAME_OVERHEAD_BYTES = 5
# What one call hands on, as a receive buffer would.
CHUNK_BYTES_MAX = 256 * 1024


class Budget:
    """Bytes of frames that have only partly arrived, of all connections of a listener together."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0

    def change(self, more: int) -> bool:
        """Add (or give back) bytes. False: they are more than there may be."""
        self.bytes += more
        return self.bytes <= self.bytes_max


class WebSocketTransport(asyncio.Transport):
    """The transport that the inner protocol sees."""

    def __init__(self, outer: WebSocketProtocol, transport: asyncio.Transport) -> None:
        super().__init__()
        self._outer = outer
        self._transport = transport
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._outer.ended or self._transport.is_closing()

    def write(self, data: Any) -> None:
        if not self.is_closing():
            self._outer.send(bytes(data))

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """Say goodbye with a close frame; what was written before leaves first."""
        self._outer.finish(CloseCode.NORMAL_CLOSURE, "")

    def abort(self) -> None:
        self._transport.abort()

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self.reading = True
        self._outer.resume()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()


class WebSocketProtocol(asyncio.Protocol):
    """One connection. ``inner`` makes the protocol that gets MQTT's bytes; ``fault`` is told why one was refused."""

    def __init__(
        self,
        inner: Callable[[], asyncio.BufferedProtocol],
        *,
        packet_bytes_max: int,
        budget: Budget,
        origins: Sequence[str] | None = None,
        fault: Callable[[str, str], object],
    ) -> None:
        """origins: the pages of browsers that may connect; None: all. fault: peer and cause, for the log."""
        self._make_inner = inner
        self._fault = fault
        self._budget = budget
        self._budgeted = 0
        self._socket = ServerProtocol(
            subprotocols=[SUBPROTOCOL],
            # A program, other than a page in a browser, names no origin.
            origins=None if origins is None else [None, *(Origin(origin) for origin in origins)],
            max_size=packet_bytes_max + FRAME_OVERHEAD_BYTES,
        )
        self._transport: asyncio.Transport | None = None
        self._inner: asyncio.BufferedProtocol | None = None
        self._facade: WebSocketTransport | None = None
        self._waiting: deque[memoryview] = deque()  # came in one read with what made the inner protocol pause
        self._feeding = False
        self.ended = False

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._facade = WebSocketTransport(self, self._transport)
        self._inner = self._make_inner()
        self._inner.connection_made(self._facade)

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        self._socket.receive_data(data)
        self._after_receiving()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self._budget.change(-self._budgeted)
        self._budgeted = 0
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    # -- from the wire inwards

    def _after_receiving(self) -> None:
        events = self._socket.events_received()
        for event in events:
            if isinstance(event, Request):
                self._shake_hands(event)
            elif isinstance(event, Frame):
                self._take(event)
        self._flush()
        self._account()
        cause = self._socket.parser_exc or self._socket.handshake_exc
        if cause is not None and not self.ended:
            self._refuse(f"the client broke the WebSocket protocol ({type(cause).__name__})")
        self._feed()

    def _shake_hands(self, request: Request) -> None:
        response = self._socket.accept(request)
        if response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS and self._socket.subprotocol is None:
            text = "This speaks MQTT: offer the WebSocket subprotocol 'mqtt'.\n"
            response = self._socket.reject(http.HTTPStatus.BAD_REQUEST, text)
        self._socket.send_response(response)
        if self._socket.state is not OPEN:
            self._flush()
            cause = self._socket.handshake_exc
            named = f" ({type(cause).__name__})" if isinstance(cause, InvalidHandshake) else ""
            self._refuse(f"the WebSocket handshake was refused{named}")

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.TEXT:
            self._socket.fail(CloseCode.UNSUPPORTED_DATA, "MQTT comes in binary frames")
            self._refuse("the client sent a text frame; MQTT comes in binary ones")
        elif frame.opcode in (Opcode.BINARY, Opcode.CONT):
            self._waiting.append(memoryview(frame.data))
        elif frame.opcode is Opcode.CLOSE:
            self._end()

    def _account(self) -> None:
        """What this connection holds of frames, against what all may hold."""
        held = len(self._socket.reader.buffer) + sum(len(part) for part in self._waiting)
        more, self._budgeted = held - self._budgeted, held
        if not self._budget.change(more) and more > 0 and not self.ended:
            self._socket.fail(CloseCode.MESSAGE_TOO_BIG, "too much has only partly arrived")
            self._refuse("frames of all clients that have only partly arrived take too much memory")

    def resume(self) -> None:
        """The inner protocol reads again: first what had come already."""
        self._feed()
        if self._facade is not None and self._facade.reading and self._transport is not None:
            self._transport.resume_reading()

    def _feed(self) -> None:
        """Hand over what came, as long as the inner protocol reads. It may pause, or end, in any of these calls."""
        if self._feeding or self._inner is None or self._facade is None:
            return
        self._feeding = True
        try:
            while self._waiting and self._facade.reading and not self.ended:
                part = self._waiting.popleft()
                window = memoryview(self._inner.get_buffer(min(len(part), CHUNK_BYTES_MAX)))
                count = min(len(window), len(part))
                window[:count] = part[:count]
                if count < len(part):
                    self._waiting.appendleft(part[count:])
                self._inner.buffer_updated(count)
        finally:
            self._feeding = False
        if self.ended:
            self._waiting.clear()

    # -- from inside to the wire

    def send(self, data: bytes) -> None:
        """One binary frame."""
        if self._socket.state is OPEN:
            self._socket.send_binary(data)
            self._flush()

    def finish(self, code: int, reason: str) -> None:
        """Close frame, then the connection. Safe to call again."""
        if self.ended:
            return
        if self._socket.state is OPEN:
            self._socket.send_close(code, reason)
        self._end()

    def _refuse(self, cause: str) -> None:
        assert self._transport is not None
        self._fault(address_of(self._transport.get_extra_info("peername")), cause)
        self._end()

    def _end(self) -> None:
        self._flush()
        self.ended = True
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        if self._transport is None or self._transport.is_closing():
            self._socket.data_to_send()
            return
        for data in self._socket.data_to_send():
            if data:
                self._transport.write(data)
