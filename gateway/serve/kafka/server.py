"""The endpoint as the app starts and stops it: a source like any other, with a thread of its own.

Why a thread: requests look at the disk, and what clients send is parsed in Python. On the gateway's event loop a
consumer that reads last week's data would hold up the devices; here it holds up other consumers at most, and those
hardly, as the disk is read on further threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from gateway.clock import NS_PER_S
from gateway.config import KafkaConfig, split_bind
from gateway.errors import FormatError, SourceError
from gateway.ingest import limits as machine_limits
from gateway.ingest.engine import Engine
from gateway.ingest.source import SourceContext
from gateway.kafka import wire
from gateway.log.layout import read_meta
from gateway.serve.kafka.catalog import Catalog
from gateway.serve.kafka.commits import Committer, Journal
from gateway.serve.kafka.connection import Connection, Response
from gateway.serve.kafka.coordinator import Coordinator
from gateway.serve.kafka.entrance import Entrance
from gateway.serve.kafka.fetch import Fetcher
from gateway.serve.kafka.produce import Intake, ProduceRequests
from gateway.serve.kafka.producer_log import ProducerLog
from gateway.serve.kafka.requests import Requests
from gateway.serve.kafka.users import Users
from gateway.serve.kafka.waiting import Disk, Waiting
from gateway.server_tls import server_context

# Of the ring through which produced records go, and commits are heard of.
RING = "kafka"
# How often the state of idempotent producers is kept.
CHECKPOINT_INTERVAL_S = 10.0
# How long stopping waits for responses that are on their way.
DRAIN_TIMEOUT_S = 2.0
# How long its thread may take to end.
_ENDED_S = 10.0

Result = TypeVar("Result")


class _EngineView:
    """What the catalog asks of the engine, from another thread; both are single loads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def streams(self) -> dict[str, int]:
        return self._engine.streams

    def durable_offset(self, index: int) -> int:
        offset: int = self._engine.writer.partition_state(index)["durable_offset"]
        return offset

    def follow(self, index: int, *, followed: bool) -> None:
        self._engine.writer.follow(index, followed)


class Settings:
    """The configuration's limits, in the units that are used here."""

    def __init__(self, config: KafkaConfig) -> None:
        self.request_bytes_max = config.max_request_bytes
        self.idle_timeout_s = config.idle_timeout_ns / NS_PER_S
        self.transfer_timeout_s = config.transfer_timeout_ns / NS_PER_S
        self.connect_timeout_s = config.connect_timeout_ns / NS_PER_S


class Server:
    """Everything that lives on the endpoint's thread. Made there; nothing of it is for other threads but `counters`."""

    def __init__(self, config: KafkaConfig, context: SourceContext, users: Users | None) -> None:
        """Raises FormatError or OSError when committed offsets cannot be read."""
        self.config = config
        self.limits = Settings(config)
        self.counters: Counter[str] = Counter()
        self.disk = Disk()
        engine = context.engine
        self.catalog = Catalog(context.config, _EngineView(engine))
        self.waiting = Waiting(self.catalog)
        self.fetcher = Fetcher(self.catalog, self.waiting, self.disk)
        data = Path(context.config.data)
        self.coordinator = Coordinator(self.catalog, Committer(Journal(data), self.disk), self.disk)
        self.cluster_id = _cluster_id(data)
        self._users = users
        self._logger = context.logger
        self._ring = engine.ring(RING, machine_limits.kafka_ring_bytes(context.config))
        partitions = {name: engine.partition(name) for name in config.produce}
        self.intake = Intake(
            self._ring,
            partitions,
            self.disk,
            record_bytes_max=context.config.limits.record_bytes_max,
            batch_bytes_max=config.max_request_bytes,
        )
        self.produce = ProduceRequests(self.intake, self.coordinator.new_producer_ids, allowed=bool(config.produce))
        self._producer_log = ProducerLog(data, config.produce)
        self._checkpoints: asyncio.Task[None] | None = None
        self.offered = self._offered()
        self._connections: set[Connection] = set()
        self._reserved_bytes = 0
        self._wanting: dict[Connection, None] = {}  # that wait for room, in the order in which they came
        self._closing = False
        self._entrance: Entrance | None = None
        self._emptied = asyncio.Event()

    def _offered(self) -> dict[int, tuple[int, int]]:
        """Produce is offered even where nobody may: librdkafka takes its absence for a broker too old to fetch from."""
        left_out = set() if self._users is not None else {wire.SASL_HANDSHAKE, wire.SASL_AUTHENTICATE}
        return {key: versions for key, versions in wire.VERSIONS.items() if key not in left_out}

    # -- life, on its own event loop

    async def start(self, tls: ssl.SSLContext | None) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        if self.config.produce:
            self.intake.restore(await self.disk.run(self._producer_log.restore))
            self._checkpoints = loop.create_task(self._checkpoint(), name="kafka-producers")
        self._entrance = Entrance(self, lambda accepted: Connection(self, accepted), tls, self.limits.connect_timeout_s)
        await self._entrance.open(self.config.host, self.config.port)
        loop.add_reader(self._ring.event_fd, self._committed)
        self._ring.set_ack_interest(True)
        self.coordinator.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are bound."""
        assert self._entrance is not None, "asked before it listens"
        return self._entrance.address

    def _committed(self) -> None:
        """Something has become durable."""
        self._ring.clear_event()
        self.waiting.commit()
        self.intake.look()

    async def _checkpoint(self) -> None:
        """What a start has to read again stays short."""
        while True:
            await asyncio.sleep(CHECKPOINT_INTERVAL_S)
            await self.disk.run(self._save_producers)

    def _save_producers(self) -> None:
        try:
            self._producer_log.checkpoint()
        except OSError as error:
            self.say(logging.WARNING, "producers not saved; the next start reads more", error=error.strerror)

    async def pause(self) -> None:
        """Let nobody in any more."""
        self._closing = self.intake.paused = True
        if self._entrance is not None:
            self._entrance.close()

    async def stop(self) -> None:
        """Let responses on their way leave, then close everything."""
        await self.pause()
        for connection in tuple(self._connections):
            connection.shut()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), DRAIN_TIMEOUT_S)
        for connection in tuple(self._connections):
            connection.abort()
        if self._connections:
            await self._emptied.wait()  # the transports tell their connections
        if self._entrance is not None:
            await self._entrance.closed()
            self._ring.set_ack_interest(False)
            asyncio.get_running_loop().remove_reader(self._ring.event_fd)
        self.waiting.stop()
        self.fetcher.stop()
        await self.produce.stop()
        await self.coordinator.stop()
        if self._checkpoints is not None:
            self._checkpoints.cancel()
            await asyncio.wait([self._checkpoints])
            await self.disk.run(self._save_producers)
        self.disk.close()

    # -- what connections ask

    def admit(self, connection: Connection) -> bool:
        """False: there are too many connections."""
        assert self._entrance is not None
        self._entrance.came_in(connection)
        if not self.has_room(0):
            self.count("refused")
            return False
        self.count("accepted")
        self._connections.add(connection)
        self._emptied.clear()
        connection.authenticated = self._users is None
        if self._users is not None:
            asyncio.get_running_loop().call_later(self.limits.connect_timeout_s, self._check_known, connection)
        return True

    def has_room(self, entering: int) -> bool:
        """May one more come in, beside so many that are at the door?"""
        return not self._closing and len(self._connections) + entering < self.config.connections_max

    def _check_known(self, connection: Connection) -> None:
        if connection in self._connections and not connection.authenticated:
            connection.fail("did not prove in time who it is")

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self._connections.discard(connection)
        self._wanting.pop(connection, None)
        if not self._connections:
            self._emptied.set()

    def reserve(self, connection: Connection, size: int) -> bool:
        """Have room for a large request. False: not now; `connection.room` is called when there may be."""
        if self._reserved_bytes + size <= machine_limits.KAFKA_REQUESTS_BYTES:
            self._reserved_bytes += size
            self._wanting.pop(connection, None)
            return True
        self._wanting[connection] = None
        return False

    def release(self, size: int) -> None:
        """That request is dealt with. Who has waited longest comes first."""
        self._reserved_bytes -= size
        if size:
            for connection in tuple(self._wanting):
                asyncio.get_running_loop().call_soon(connection.room)

    def requests(self, connection: Connection) -> Callable[[bytes], Awaitable[Response]]:
        """What answers the connection's requests."""
        return Requests(self, connection, self._users).answer

    def advertised(self, connection: Connection) -> tuple[str, int]:
        """Where this client is told to come to."""
        if self.config.advertise is not None:
            return split_bind(self.config.advertise)
        return connection.local

    def count(self, name: str, amount: int = 1) -> None:
        """For the statistics."""
        self.counters[name] += amount

    def say(self, level: int, event: str, **fields: object) -> None:
        """One line in the log."""
        self._logger.log(level, event, extra={"fields": {"source": "kafka", **fields}})

    def statistics(self) -> dict[str, Any]:
        """Counters and the present state."""
        return {
            **dict(self.counters),
            "connections": len(self._connections),
            "fetches_waiting": len(self.waiting),
            "requests_bytes": self._reserved_bytes,
            "batches_waiting": self.intake.waiting,
            "records": self.intake.records,
            "batches_sent_again": self.intake.duplicates,
            **self.coordinator.statistics(),
        }


class KafkaEndpoint:
    """`Source` of the app: the server on a thread of its own. Its methods are called on the app's event loop."""

    kind = "kafka"

    def __init__(self, name: str, config: KafkaConfig, context: SourceContext) -> None:
        """Raises ConfigError for files that cannot be used."""
        self.name = name
        self.config = config
        self._context = context
        self._users = Users(config.users_file) if config.users_file is not None else None
        self._tls = server_context(config.tls_cert, config.tls_key) if config.tls_cert is not None else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: Server | None = None

    # -- the source's life

    async def start(self) -> None:
        """Listen. Raises SourceError when the address cannot be bound, or committed offsets cannot be read."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gateway-kafka", daemon=True)
        self._thread.start()
        try:
            await self._call(self._start())
        except OSError as error:
            raise SourceError(
                f"cannot listen on {self.config.bind}, or not read what groups have committed: "
                f"{error.strerror or error}. Choose another 'bind', or end the program that uses it.",
                source=self.name,
            ) from error
        except FormatError as error:
            raise SourceError(str(error), source=self.name) from error
        host, port = self.address
        self._context.logger.info("listening", extra={"fields": {"source": self.name, "address": f"{host}:{port}"}})

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None, "started before"
        asyncio.set_event_loop(loop)
        loop.run_forever()
        loop.close()

    async def _start(self) -> None:
        self._server = Server(self.config, self._context, self._users)
        await self._server.start(self._tls)

    async def _call(self, what: Coroutine[Any, Any, Result]) -> Result:
        """Run it on the server's event loop and wait for it here."""
        assert self._loop is not None, "started before"
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(what, self._loop))

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are bound."""
        assert self._server is not None, "started before"
        return self._server.address

    def refresh(self) -> None:
        """Read users and certificates again, for connections to come. After a ConfigError all is as before."""
        if self.config.tls_cert is not None and self._tls is not None:
            server_context(self.config.tls_cert, self.config.tls_key)  # are they sound?
            self._tls.load_cert_chain(self.config.tls_cert, self.config.tls_key or self.config.tls_cert)
        if self._users is not None:
            self._users.reload()

    async def pause(self) -> None:
        """Accept no more clients and no more records."""
        if self._server is not None:
            await self._call(self._server.pause())

    async def drain(self) -> None:
        """Acknowledgements leave as soon as they are due; `stop` waits for them."""

    async def stop(self) -> None:
        """Close everything. Safe after any of the others."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        if self._server is not None:
            await self._call(self._server.stop())
        self._loop = self._thread = None
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join, _ENDED_S)

    def statistics(self) -> dict[str, Any]:
        """Counters and the present state."""
        return self._server.statistics() if self._server is not None else {}


def create(name: str, config: KafkaConfig, context: SourceContext) -> KafkaEndpoint:
    """The factory; see `gateway.ingest.source`."""
    return KafkaEndpoint(name, config, context)


def _cluster_id(data: Path) -> str:
    """The same for as long as the data directory lives; in the form of Kafka's: 22 characters."""
    meta = read_meta(data)
    return hashlib.sha256(f"{meta.site}\n{meta.created}".encode()).hexdigest()[:22]
