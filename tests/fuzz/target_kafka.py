"""What is fuzzed at the Kafka endpoint: connections, bodies of requests, produced and compressed batches, logins.

The first byte of an input chooses which of these, the second how; the rest is what the client sends. Whatever it is: no
fault of ours, answers in the order of the requests, nothing left behind when the client is gone, bounds kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway_native import batch

from gateway.config import from_dict
from gateway.errors import FormatError
from gateway.ingest.engine import Engine
from gateway.ingest.source import SourceContext
from gateway.kafka import wire
from gateway.log.compression import expanded
from gateway.log.layout import prepare
from gateway.serve.kafka import fetch, sasl
from gateway.serve.kafka.produce import Refused
from gateway.serve.kafka.server import Server
from gateway.serve.kafka.users import Credentials, Users
from tests.support.compressed import sealed, with_records
from tests.support.gateway import until

OPTION_BYTES = 2
STREAM, REQUEST, BATCH, COMPRESSED, LOGIN = range(5)
KINDS = 5
TOPIC = "orders"
# Every version of every API, in an order that stays.
APIS = [(api, version) for api, (low, high) in sorted(wire.VERSIONS.items()) for version in range(low, high + 1)]
EXPANDED_BYTES_MAX = 2**16
PASSWORD = "correct horse"
# How long answers are waited for: some requests wait for other members, or for records.
PATIENCE_S = 0.02
CONFIG = {
    "streams": {TOPIC: {"ack": "memory", "retention": "64MiB"}},
    "kafka": {"bind": "127.0.0.1:0", "produce": [TOPIC], "max_request": "64KiB"},
}
_PLAIN = batch.encode([(0, b"key", b"value", [])] * 3)
_LENGTH = struct.Struct(">i")


class Target:
    """Runs inputs, one after the other, on an endpoint of its own."""

    def __init__(self) -> None:
        self._wait_max_s, fetch.WAIT_MAX_S = fetch.WAIT_MAX_S, PATIENCE_S / 4
        self._directory = tempfile.TemporaryDirectory(prefix="fuzz-kafka-")
        data = Path(self._directory.name) / "data"
        data.mkdir()
        prepare(data, "fuzz", "UTC")
        users = Path(self._directory.name) / "users"
        users.write_text(Credentials.make(PASSWORD, iterations=4_096).line("etl") + "\n")
        self._users = Users(users)
        config = from_dict({"data": str(data), **CONFIG})
        assert config.kafka is not None
        self._engine = Engine(config)
        self._engine.start()
        self._loop = asyncio.new_event_loop()
        logging.getLogger("gateway.fuzz").setLevel(logging.CRITICAL)
        context = SourceContext(self._engine, config, logging.getLogger("gateway.fuzz"))
        self._server = self._loop.run_until_complete(self._start(Server, config.kafka, context))
        self._kinds: dict[int, Callable[[int, bytes], None]] = {
            STREAM: lambda options, sent: self._loop.run_until_complete(self._converse(list(_pieces(sent, options)))),
            REQUEST: self._request,
            BATCH: lambda options, sent: self._loop.run_until_complete(self._produce(sealed(sent), options)),
            COMPRESSED: self._compressed,
            LOGIN: self._login,
        }

    async def _start(self, make: Callable[..., Server], *arguments: object) -> Server:
        server = make(*arguments, None)
        await server.start(None)
        return server

    def close(self) -> None:
        fetch.WAIT_MAX_S = self._wait_max_s
        self._loop.run_until_complete(self._server.stop())
        self._loop.close()
        self._engine.close()
        self._directory.cleanup()

    def run(self, data: bytes) -> None:
        """One input. Raises whatever should not have happened."""
        if len(data) < OPTION_BYTES:
            return
        self._kinds[data[0] % KINDS](data[1], data[OPTION_BYTES:])
        assert self._server.counters["faults"] == 0, "a request could not be answered, which is a fault of ours"
        assert self._server.statistics()["requests_bytes"] == 0, "room stays reserved"

    # -- connections

    def _request(self, options: int, body: bytes) -> None:
        """A body of any API and version, behind a sound header."""
        api, version = APIS[options % len(APIS)]
        header = struct.pack(">hhih", api, version, 7, 4) + b"fuzz" + (b"\0" if wire.is_flexible(api, version) else b"")
        self._loop.run_until_complete(self._converse([wire.framed(header + body)]))

    async def _converse(self, pieces: list[bytes]) -> None:
        """Send these, read what is answered, and leave without a word."""
        asked = [struct.unpack_from(">i", one, 4)[0] for one in frames(b"".join(pieces)) if len(one) >= 8]
        reader, writer = await asyncio.open_connection(*self._server.address)
        # Without it every port stays taken for a minute.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answered: list[int] = []
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(PATIENCE_S):
                    while len(answered) < len(asked):
                        (size,) = _LENGTH.unpack(await reader.readexactly(4))
                        assert 4 <= size <= 2**25, f"an answer of {size} bytes"
                        answered.append(_LENGTH.unpack((await reader.readexactly(size))[:4])[0])
        finally:
            writer.transport.abort()
        remaining = iter(asked)
        assert all(one in remaining for one in answered), f"asked {asked}, answered {answered}"
        for _ in range(20):  # as a rule that is enough, and quicker than to wait
            await asyncio.sleep(0)
        await until(lambda: self._server.statistics()["connections"] == 0, "the connection is closed")

    # -- batches

    async def _produce(self, records: bytes, options: int) -> None:
        """A batch with a right length and checksum: refused, or recorded with as many records as it has."""
        before = self._server.intake.records
        begun = await self._server.intake.begin(TOPIC, 0, records)
        if isinstance(begun, Refused):
            assert str(begun)
            assert self._server.intake.records == before
            return
        async with asyncio.timeout(10):
            outcome = await begun
        assert outcome.error == 0
        (count,) = struct.unpack_from(">i", records, 57)
        assert self._server.intake.records - before in (0, count)

    def _compressed(self, options: int, sent: bytes) -> None:
        try:
            found = expanded(with_records(_PLAIN, options % 8, sent), bytes_max=EXPANDED_BYTES_MAX)
        except (FormatError, batch.BatchError) as error:
            assert str(error)
        else:
            assert len(found) <= batch.HEADER_BYTES + EXPANDED_BYTES_MAX
            with contextlib.suppress(batch.BatchError):
                batch.decode(found)

    # -- logins

    def _login(self, options: int, sent: bytes) -> None:
        """Messages behind each other, parted by 0xFF. The second may name what the server's first said: %r, %s."""
        exchange = sasl.begin((wire.PLAIN, wire.SCRAM_SHA_256)[options & 1], self._users)
        nonce = b""
        for message in sent.split(b"\xff")[:4]:
            try:
                answer = exchange.step(message.replace(b"%r", nonce))
            except sasl.Refused as error:
                assert PASSWORD not in str(error)
                return
            nonce = answer.partition(b"r=")[2].partition(b",")[0]
            assert not exchange.done or PASSWORD.encode() in sent, "let in without the password"


def _pieces(sent: bytes, cut: int) -> Iterator[bytes]:
    """In two where the option byte says, or whole."""
    places = sorted({0, cut % (len(sent) + 1), len(sent)})
    for start, end in itertools.pairwise(places):
        yield sent[start:end]


def frames(sent: bytes) -> Iterator[bytes]:
    """The whole requests in what is sent, without their lengths."""
    position = 0
    while position + 4 <= len(sent):
        (size,) = _LENGTH.unpack_from(sent, position)
        position += 4
        if not 0 < size <= len(sent) - position:
            return
        yield sent[position : position + size]
        position += size
