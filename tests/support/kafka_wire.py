"""A Kafka client of the plainest kind: one request at a time, of any API and version, with kio's schemas."""

from __future__ import annotations

import io
import socket
import ssl
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from kio.serial import entity_reader, entity_writer
from kio.static.constants import EntityType

from gateway.kafka import wire

TIMEOUT_S = 20.0


def request(api_key: int, version: int, values: Mapping[str, Any], *, correlation_id: int = 7) -> bytes:
    """A whole request, its length included."""
    body = io.BytesIO()
    schema = wire._schema(api_key, version, EntityType.request)
    entity_writer(schema)(body, wire._shaped(schema, values))
    header = struct.pack(">hhih", api_key, version, correlation_id, 4) + b"test"
    if schema.__flexible__:
        header += b"\0"
    return wire.framed(header + body.getvalue())


class WireClient:
    """Connected to 127.0.0.1. Times out rather than waits for ever."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")

    def __enter__(self) -> WireClient:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def call(self, api_key: int, version: int, **values: Any) -> Any:
        """The response's body as kio reads it; nothing may be left over."""
        self.socket.sendall(request(api_key, version, values))
        return self.response(api_key, version)

    def response(self, api_key: int, version: int) -> Any:
        """The next one that comes."""
        payload = self.receive()
        schema = wire._schema(api_key, version, EntityType.response)
        head = 4 + (schema.__flexible__ and api_key != wire.API_VERSIONS)
        assert payload[:4] == struct.pack(">i", 7)
        body, size = entity_reader(schema)(payload, head)
        assert head + size == len(payload), f"{len(payload) - head - size} bytes behind the body"
        return body

    def receive(self) -> bytes:
        """One response without its length."""
        (size,) = struct.unpack(">i", self._exactly(4))
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionResetError("the server closed the connection")
            data += more
        return data

    @property
    def is_closed(self) -> bool:
        """The server closes it, now or before the time is over."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
