"""A Kafka client that reads: a gateway's endpoint, or any Kafka broker from 2.1 on. Blocking, for one thread at a time.

Fixed versions, which gateways and brokers of today share, so there is nothing to negotiate. Batches come as they are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
import socket
import ssl
import struct
import weakref
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from gateway.errors import GatewayError
from gateway.kafka import wire

CLIENT_ID = "gateway"
TIMEOUT_S = 30.0
FETCH_BYTES = 2**20
# One batch may be larger than what was asked for; nobody needs more than this.
RESPONSE_BYTES_MAX = 256 * 2**20
# Of SCRAM: some seconds of one core.
ITERATIONS_MAX = 10_000_000
OFFSET_OUT_OF_RANGE = 1


class KafkaError(GatewayError):
    """A broker cannot be reached, or does not do what it is asked. ``code`` is Kafka's, if it is an answer."""

    def __init__(self, message: str, code: int = 0) -> None:
        self.code = code
        super().__init__(message)


class Login(NamedTuple):
    """How to connect. Shows no password."""

    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"Login({self.username!r}, tls={self.tls is not None})"


class Partition(NamedTuple):
    """One partition and the address of its leader."""

    topic: str
    number: int
    leader: tuple[str, int]


class _Connection:
    """To one broker."""

    def __init__(self, address: tuple[str, int], login: Login) -> None:
        self.address = address
        try:
            self._socket = socket.create_connection(address, TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if login.tls is not None:
                self._socket = login.tls.wrap_socket(self._socket, server_hostname=address[0])
        except OSError as error:
            if hasattr(self, "_socket"):
                self._socket.close()
            raise KafkaError(f"{self.name} cannot be reached: {error.strerror or error}.") from error
        self._numbers = 0
        if login.username is not None:
            try:
                self._log_in(login.username, login.password or "", private=login.tls is not None)
            except BaseException:
                self.close()
                raise

    @property
    def name(self) -> str:
        host, port = self.address
        return f"The Kafka broker at {host}:{port}"

    def close(self) -> None:
        self._socket.close()

    def call(self, api_key: int, version: int, **values: Any) -> Any:
        """The response's body. Raises KafkaError; the connection is of no use then."""
        self._numbers += 1
        try:
            self._socket.sendall(wire.request(api_key, version, self._numbers, CLIENT_ID, values))
            size = int.from_bytes(self._exactly(4), "big")
            if not 4 <= size <= RESPONSE_BYTES_MAX:
                raise KafkaError(f"{self.name} answers with {size} bytes, which is no answer of Kafka's.")
            frame = self._exactly(size)
        except OSError as error:
            raise KafkaError(f"{self.name} does not answer: {error.strerror or error}.") from error
        try:
            return wire.parse_response(api_key, version, self._numbers, frame)
        except wire.ProtocolError as error:
            raise KafkaError(f"{self.name} is not understood: {error}.") from None

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        got = 0
        while got < size:
            count = self._socket.recv_into(view[got:])
            if not count:
                raise ConnectionResetError(
                    "it closed the connection; perhaps it asks for a login, or for TLS (kafkas://)"
                )
            got += count
        return bytes(data)

    # -- login

    def _log_in(self, username: str, password: str, *, private: bool) -> None:
        """By SCRAM-SHA-256 where it is offered; PLAIN only where nobody else can read it."""
        offered = self.call(wire.SASL_HANDSHAKE, 1, mechanism=wire.SCRAM_SHA_256)
        if not offered.error_code:
            self._scram(username, password)
            return
        if wire.PLAIN not in offered.mechanisms or not private:
            raise KafkaError(f"{self.name} offers no login that keeps the password; it has {offered.mechanisms}.")
        self.call(wire.SASL_HANDSHAKE, 1, mechanism=wire.PLAIN)
        self._step(f"\0{username}\0{password}".encode())

    def _scram(self, username: str, password: str) -> None:
        """RFC 5802, section 3."""
        name = username.replace("=", "=3D").replace(",", "=2C")
        own_nonce = secrets.token_urlsafe(18)
        bare = f"n={name},r={own_nonce}"
        answer = self._step(f"n,,{bare}".encode())
        try:
            first = answer.decode()
            fields = dict(part.split("=", 1) for part in first.split(",") if "=" in part)
            salt, iterations, nonce = base64.b64decode(fields["s"]), int(fields["i"]), fields["r"]
        except (KeyError, ValueError):
            iterations = 0
        if not 1 <= iterations <= ITERATIONS_MAX or not nonce.startswith(own_nonce):
            raise KafkaError(f"{self.name} does not answer the login as SCRAM-SHA-256 wants it.")
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        without_proof = f"c=biws,r={nonce}"
        signed = f"{bare},{first},{without_proof}".encode()
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(one ^ other for one, other in zip(client_key, signature, strict=True))
        final = self._step(f"{without_proof},p={base64.b64encode(proof).decode()}".encode())
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        expected = b"v=" + base64.b64encode(hmac.digest(server_key, signed, "sha256"))
        if not hmac.compare_digest(final, expected):
            raise KafkaError(f"{self.name} does not know the user itself: it is not the one it claims to be.")

    def _step(self, message: bytes) -> bytes:
        answer = self.call(wire.SASL_AUTHENTICATE, 1, auth_bytes=message)
        if answer.error_code:
            raise KafkaError(f"{self.name} refuses the login; check user name and password.", int(answer.error_code))
        found: bytes = answer.auth_bytes
        return found


class Client:
    """Of one cluster. Connections are made when they are needed."""

    def __init__(self, address: tuple[str, int], login: Login) -> None:
        self._address = address
        self._login = login
        self._connections: dict[tuple[str, int], _Connection] = {}
        weakref.finalize(self, _close_all, self._connections)

    @property
    def address(self) -> tuple[str, int]:
        """Of the broker that is asked first."""
        return self._address

    def close(self) -> None:
        """Close all connections; the next call makes new ones."""
        _close_all(self._connections)

    def _call(self, address: tuple[str, int], api_key: int, version: int, **values: Any) -> Any:
        """A connection that was closed meanwhile, as idle ones are, is made anew once."""
        known = self._connections.pop(address, None)
        if known is not None:
            with contextlib.suppress(KafkaError):
                return self._used(known, api_key, version, values)
        return self._used(_Connection(address, self._login), api_key, version, values)

    def _used(self, connection: _Connection, api_key: int, version: int, values: Mapping[str, Any]) -> Any:
        """Kept for the next call only if this one ends well."""
        try:
            answer = connection.call(api_key, version, **values)
        except BaseException:
            connection.close()
            raise
        self._connections[connection.address] = connection
        return answer

    def partitions(self) -> list[Partition]:
        """All that have a leader, of topics that are not internal, by name and number."""
        answer = self._call(self._address, wire.METADATA, 9, topics=None, **_NO_OPERATIONS)
        brokers = {broker.node_id: (broker.host, int(broker.port)) for broker in answer.brokers}
        return sorted(
            Partition(topic.name, one.partition_index, brokers[one.leader_id])
            for topic in answer.topics
            if not topic.is_internal and not topic.error_code
            for one in topic.partitions
            if one.leader_id in brokers
        )

    def offset(self, partition: Partition, timestamp: int) -> tuple[int, int]:
        """ListOffsets: offset and time (ms); (-1, -1) if there is none. -1 asks for the end, -2 for the beginning."""
        asked = [{"partition_index": partition.number, "timestamp": timestamp}]
        answer = self._call(
            partition.leader, wire.LIST_OFFSETS, 5, replica_id=-1, isolation_level=0,
            topics=[{"name": partition.topic, "partitions": asked}],
        )  # fmt: skip
        found = answer.topics[0].partitions[0]
        self._check(partition, found.error_code)
        return found.offset, found.timestamp

    def fetch(self, partition: Partition, offset: int, *, wait_ms: int = 0) -> bytes:
        """Record batches from the one with that offset on; the last one may be cut off."""
        place = {"partition": partition.number, "fetch_offset": offset, "partition_max_bytes": FETCH_BYTES}
        answer = self._call(
            partition.leader, wire.FETCH, 11, replica_id=-1, max_wait=timedelta(milliseconds=wait_ms), min_bytes=1,
            max_bytes=FETCH_BYTES, isolation_level=0, topics=[{"topic": partition.topic, "partitions": [place]}],
            forgotten_topics_data=[],
        )  # fmt: skip
        found = answer.responses[0].partitions[0]
        self._check(partition, found.error_code)
        return bytes(found.records or b"")

    @staticmethod
    def _check(partition: Partition, code: int) -> None:
        if code:
            host, port = partition.leader
            raise KafkaError(
                f"The Kafka broker at {host}:{port} gives error {int(code)} for {partition.topic}-{partition.number}.",
                int(code),
            )


def _close_all(connections: dict[tuple[str, int], _Connection]) -> None:
    for connection in connections.values():
        connection.close()
    connections.clear()


_NO_OPERATIONS: Mapping[str, bool] = {
    "include_topic_authorized_operations": False, "include_cluster_authorized_operations": False,
    "allow_auto_topic_creation": False,
}  # fmt: skip
_BATCH = struct.Struct(">qi")


def batches(data: bytes) -> list[tuple[int, int]]:
    """Where the whole batches in what was fetched begin, and their sizes."""
    found: list[tuple[int, int]] = []
    at = 0
    while at + _BATCH.size <= len(data):
        size = _BATCH.size + _BATCH.unpack_from(data, at)[1]
        if size <= _BATCH.size or at + size > len(data):
            break
        found.append((at, size))
        at += size
    return found
