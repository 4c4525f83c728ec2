"""What becomes of a request: parsed, answered, refused. One object for each connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kio.schema.errors import ErrorCode

from gateway.kafka import wire
from gateway.serve.kafka import sasl
from gateway.serve.kafka.catalog import PARTITION, Topic
from gateway.serve.kafka.fetch import Piece
from gateway.serve.kafka.users import Users

if TYPE_CHECKING:
    from gateway.serve.kafka.connection import Connection, Response
    from gateway.serve.kafka.server import Server

# The only broker there is.
NODE_ID = 1
# Answers of who could not prove who they are come late, so that guessing takes time.
REFUSAL_DELAY_S = 0.5
# Partitions in one ListOffsets request; each is a look at the disk.
PARTITIONS_MAX = 100_000
# So many are looked up before it is another request's turn.
PARTITIONS_AT_ONCE = 100

_OPEN_TO_STRANGERS = (wire.API_VERSIONS, wire.SASL_HANDSHAKE, wire.SASL_AUTHENTICATE)
_GROUP = 0

Values = Mapping[str, Any]
Handler = Callable[[wire.Header, Any], Awaitable[Values]]


class Requests:
    """Answers what one connection asks."""

    def __init__(self, server: Server, connection: Connection, users: Users | None) -> None:
        self._server = server
        self._connection = connection
        self._users = users
        self._exchange: sasl.Exchange | None = None
        self._handlers: dict[int, Handler] = {
            wire.API_VERSIONS: self._api_versions,
            wire.METADATA: self._metadata,
            wire.LIST_OFFSETS: self._list_offsets,
            wire.FIND_COORDINATOR: self._find_coordinator,
            wire.SASL_HANDSHAKE: self._sasl_handshake,
            wire.SASL_AUTHENTICATE: self._sasl_authenticate,
            **server.coordinator.handlers,
            wire.INIT_PRODUCER_ID: server.produce.init_producer_id,
        }

    async def answer(self, frame: bytes) -> Response:
        """The response, or what will become one. Raises ProtocolError, after which the connection is closed."""
        header = wire.parse_header(frame)
        self._connection.client_id = header.client_id or self._connection.client_id
        if not wire.is_supported(header.api_key, header.version):
            return [wire.unsupported_api_versions(header)]
        if header.api_key not in self._server.offered:
            raise wire.ProtocolError(f"API {header.api_key} is not offered here")
        if not self._connection.authenticated and header.api_key not in _OPEN_TO_STRANGERS:
            raise wire.ProtocolError(f"API {header.api_key} before it has proved who it is")
        request = wire.parse_body(header, frame)
        self._server.count("requests")
        if header.api_key == wire.FETCH:
            return await self._server.fetcher.answer(header, request)
        if header.api_key == wire.PRODUCE:
            later = await self._server.produce.produce(header, request)
            return None if request.acks == 0 else _later(header, later)
        return [wire.response(header, await self._handlers[header.api_key](header, request))]

    async def _api_versions(self, header: wire.Header, request: Any) -> Values:
        return {"error_code": ErrorCode.none, "api_keys": wire.api_ranges(self._server.offered)}

    # -- where everything is

    @property
    def _node(self) -> dict[str, Any]:
        host, port = self._server.advertised(self._connection)
        return {"node_id": NODE_ID, "host": host, "port": port}

    async def _metadata(self, header: wire.Header, request: Any) -> Values:
        asked = request.topics
        # All topics: null, and before that could be said, none.
        everything = asked is None or (header.version == 0 and not asked)
        names = await self._server.disk.run(self._server.catalog.names)
        known = set(names)
        topics = (
            [_topic(name, known=True) for name in names] if everything else [_asked(topic, known) for topic in asked]
        )
        return {
            "brokers": [self._node],
            "cluster_id": self._server.cluster_id,
            "controller_id": NODE_ID,
            "topics": topics,
        }

    async def _find_coordinator(self, header: wire.Header, request: Any) -> Values:
        """It is always this gateway. Transactions have none."""
        is_group = getattr(request, "key_type", _GROUP) == _GROUP
        place = {
            **self._node,
            "error_code": ErrorCode.none if is_group else ErrorCode.coordinator_not_available,
            "error_message": None if is_group else "There are no transactions here.",
        }
        keys = getattr(request, "coordinator_keys", ())
        return {**place, "coordinators": [{**place, "key": key} for key in keys]}

    async def _list_offsets(self, header: wire.Header, request: Any) -> Values:
        asked = [(topic.name, one) for topic in request.topics for one in topic.partitions]
        if len(asked) > PARTITIONS_MAX:
            raise wire.ProtocolError(f"offsets of {len(asked)} partitions; at most {PARTITIONS_MAX} are answered")
        topics: dict[str, list[Values]] = {}
        for start in range(0, len(asked), PARTITIONS_AT_ONCE):
            some = asked[start : start + PARTITIONS_AT_ONCE]
            answers = await self._server.disk.run(self._offsets, some)
            for (name, _), answer in zip(some, answers, strict=True):
                topics.setdefault(name, []).append(answer)
        return {"topics": [{"name": name, "partitions": partitions} for name, partitions in topics.items()]}

    def _offsets(self, asked: Sequence[tuple[str, Any]]) -> list[Values]:
        """On a thread that may read the disk."""
        return [self._offset(name, one.partition_index, one.timestamp) for name, one in asked]

    def _offset(self, name: str, partition: int, timestamp: int) -> Values:
        """On a thread that may read the disk."""
        topic: Topic | None = self._server.catalog.topic(name) if partition == PARTITION else None
        found, error = (-1, -1), ErrorCode.none
        if topic is None:
            error = ErrorCode.unknown_topic_or_partition
        else:
            try:
                found = topic.offset_at(timestamp)
            except OSError:
                error = ErrorCode.kafka_storage_error
        return {"partition_index": partition, "error_code": error, "offset": found[0], "timestamp": found[1]}

    # -- who it is

    @property
    def _mechanisms(self) -> tuple[str, ...]:
        """PLAIN sends the password as it is: only where nobody else can read it."""
        if self._users is None:
            return ()
        private = self._connection.tls or self._server.config.is_local
        return (wire.SCRAM_SHA_256, wire.PLAIN) if private else (wire.SCRAM_SHA_256,)

    async def _sasl_handshake(self, header: wire.Header, request: Any) -> Values:
        offered = self._mechanisms
        if self._connection.authenticated or self._users is None:
            return {"error_code": ErrorCode.illegal_sasl_state, "mechanisms": offered}
        if request.mechanism not in offered:
            return {"error_code": ErrorCode.unsupported_sasl_mechanism, "mechanisms": offered}
        self._exchange = sasl.begin(request.mechanism, self._users)
        return {"error_code": ErrorCode.none, "mechanisms": offered}

    async def _sasl_authenticate(self, header: wire.Header, request: Any) -> Values:
        exchange = self._exchange
        if exchange is None:
            return _refusal(ErrorCode.illegal_sasl_state, "There was no SaslHandshake before.")
        try:
            answer = await self._server.disk.run(exchange.step, request.auth_bytes)
        except sasl.Refused as refused:
            return await self._refuse(exchange.user, str(refused))
        if exchange.done:
            self._exchange = None
            self._connection.user = exchange.user
            self._connection.authenticated = True
        return {"error_code": ErrorCode.none, "error_message": None, "auth_bytes": answer}

    async def _refuse(self, user: str, cause: str) -> Values:
        """Late, and the last answer on this connection."""
        self._exchange = None
        self._server.count("logins_refused")
        self._server.say(logging.WARNING, "login refused", peer=self._connection.peer, user=user[:255], cause=cause)
        await asyncio.sleep(REFUSAL_DELAY_S)
        self._connection.shut()
        return _refusal(ErrorCode.sasl_authentication_failed, "Name or password is wrong, or not well sent.")


async def _later(header: wire.Header, values: Awaitable[Values]) -> Sequence[Piece]:
    return [wire.response(header, await values)]


def _asked(topic: Any, known: set[str]) -> Values:
    if topic.name is None:
        # By an id: none of ours has one. Kafka's broker answers so, too.
        return {**_topic("", known=False), "error_code": ErrorCode.unknown_topic_id, "topic_id": topic.topic_id}
    return _topic(topic.name, known=topic.name in known)


def _topic(name: str, *, known: bool) -> Values:
    partition = {
        "error_code": ErrorCode.none,
        "partition_index": PARTITION,
        "leader_id": NODE_ID,
        "replica_nodes": (NODE_ID,),
        "isr_nodes": (NODE_ID,),
    }
    return {
        "error_code": ErrorCode.none if known else ErrorCode.unknown_topic_or_partition,
        "name": name,
        "topic_id": None,
        "partitions": [partition] if known else [],
    }


def _refusal(error: ErrorCode, message: str) -> Values:
    return {"error_code": error, "error_message": message, "auth_bytes": b""}
