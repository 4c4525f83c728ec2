"""What only the native subscriber has: sessions that are not asked twice, templates, dropping, and odd brokers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gateway_adapters.mqtt.subscriber import create

from tests.integration.peers import find, mosquitto, mosquitto_pub
from tests.support.gateway import Running, on_uvloop, read_stream, running, until
from tests.support.mqtt import packet, puback, publish

pytestmark = pytest.mark.integration

ROUTES = [{"filter": "plant/#", "stream": "telemetry"}]


def subscribed(tmp_path: Path, port: int, name: str = "data", **more: Any):
    settings = {
        "url": f"mqtt://127.0.0.1:{port}",
        "routes": ROUTES,
        "reconnect_min": "100ms",
        "reconnect_max": "200ms",
        "client_id": "recorder",
        **more.pop("settings", {}),
    }
    return running(tmp_path / name, create, "subscribers", settings, **more)


def statistic(gateway: Running, name: str) -> Any:
    return gateway.source.statistics()[name]


async def connected(gateway: Running, connects: int = 1) -> None:
    await until(
        lambda: statistic(gateway, "state") == "connected" and statistic(gateway, "connects") >= connects,
        "it is connected",
    )


async def recorded(gateway: Running, count: int) -> None:
    await until(lambda: statistic(gateway, "records") >= count, f"{count} messages are taken")


async def pub(port: int, *arguments: str, stdin: bytes | None = None) -> None:
    done = await asyncio.to_thread(mosquitto_pub, port, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr


async def read_lines(process: asyncio.subprocess.Process, lines: list[bytes]) -> None:
    """What it prints, until it ends."""
    assert process.stdout is not None
    async for line in process.stdout:
        lines.append(line.rstrip())  # noqa: PERF401  # each is wanted when it comes
    await process.wait()


class ScriptedBroker:
    """Answers CONNECT as told, counts requests, sends what it is told after SUBACK or a resumed session."""

    def __init__(self, *, version: int) -> None:
        self.version = version
        self.present = False
        self.answers_pings = True
        self.connects = 0
        self.subscribed: list[bytes] = []
        self.unsubscribed: list[bytes] = []
        self.received: list[bytes] = []
        self.publishes = b""
        self.once = False  # whatever it sends, it sends no second time
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first_byte, size = await reader.readexactly(2)
                body = await reader.readexactly(size)
                self.received.append(bytes((first_byte, size)) + body)
                for answer in self.answers(first_byte, body):
                    writer.write(answer)
        writer.close()

    def take_publishes(self) -> bytes:
        taken = self.publishes
        if self.once:
            self.publishes = b""
        return taken

    def answers(self, first_byte: int, body: bytes) -> list[bytes]:
        no_properties = b"\0" if self.version == 5 else b""
        if first_byte == 0x10:
            self.connects += 1
            if body[6] != self.version:
                return [packet(0x20, b"\0\1")]
            connack = packet(0x20, bytes((self.present, 0)) + no_properties)
            resumed, self.present = self.present, True
            return [connack, self.take_publishes()] if resumed else [connack]
        if first_byte == 0x82:
            self.subscribed.append(body)
            return [packet(0x90, body[:2] + no_properties + b"\1"), self.take_publishes()]
        if first_byte == 0xA2:
            self.unsubscribed.append(body)
            return [packet(0xB0, body[:2] + (b"\0\0" if self.version == 5 else b""))]
        return [b"\xd0\0"] if first_byte == 0xC0 and self.answers_pings else []


@contextlib.asynccontextmanager
async def scripted(version: int) -> AsyncIterator[ScriptedBroker]:
    broker = ScriptedBroker(version=version)
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield broker
    finally:
        server.close()


# -- the session at the broker -----------------------------------------------------------------------------------------


@on_uvloop
async def test_restart_with_a_session_that_is_there(tmp_path):
    """MQTT 3.1.1 repeats retained messages at every SUBSCRIBE: after a restart of the gateway there is none."""
    async with scripted(4) as broker:
        for _ in range(2):
            async with subscribed(tmp_path, broker.port) as gateway:
                await connected(gateway)
                assert len(broker.subscribed) == 1
                await gateway.stop()
        assert broker.received[-1] == b"\xe0\x00"


@on_uvloop
async def test_broker_that_has_forgotten_the_session(tmp_path):
    """It is subscribed to again, whatever the gateway remembers."""
    async with scripted(4) as broker:
        async with subscribed(tmp_path, broker.port) as gateway:
            await connected(gateway)
        broker.present = False
        async with subscribed(tmp_path, broker.port) as gateway:
            await connected(gateway)
        assert len(broker.subscribed) == 2


@on_uvloop
@pytest.mark.parametrize("version", [4, 5])
async def test_changed_routes(tmp_path, version):
    """Only the difference is asked for in MQTT 3.1.1; the old filter is given back in both."""
    async with scripted(version) as broker:
        async with subscribed(tmp_path, broker.port) as gateway:
            await connected(gateway)
        more = {"routes": [{"filter": "office/#", "stream": "telemetry"}]}
        async with subscribed(tmp_path, broker.port, settings=more) as gateway:
            await connected(gateway)
        assert [body.partition(b"office/#")[1] for body in broker.subscribed] == [b"", b"office/#"]
        assert len(broker.unsubscribed) == 1
        assert broker.unsubscribed[0].endswith(b"plant/#")


@on_uvloop
async def test_old_filters_deliver_no_more(tmp_path):
    """At Mosquitto: after a change of routes, nothing comes that the new ones do not want, and nothing is missing."""
    with mosquitto(tmp_path / "broker") as broker:
        async with subscribed(tmp_path, broker.port) as gateway:
            await connected(gateway)
            await gateway.stop()
        more = {"routes": [{"filter": "office/#", "stream": "telemetry"}]}
        async with subscribed(tmp_path, broker.port, settings=more) as gateway:
            await connected(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-m", "unwanted")
            await pub(broker.port, "-q", "1", "-t", "office/a", "-m", "wanted")
            await recorded(gateway, 1)
            assert await gateway.contents() == [(b"office/a", b"wanted")]
            assert statistic(gateway, "unrouted") == 0


@on_uvloop
async def test_shared_subscription(tmp_path):
    """Shared with a subscriber of another kind: what is published goes to one or the other, once."""
    share = "$share/recorders/plant/#"
    with mosquitto(tmp_path / "broker") as broker:
        command = [find("mosquitto_sub"), "-p", str(broker.port), "-h", "127.0.0.1", "-q", "1", "-t", share]
        other = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        theirs: list[bytes] = []
        reading = asyncio.create_task(read_lines(other, theirs))
        settings = {"routes": [{"filter": share, "stream": "telemetry"}]}
        async with subscribed(tmp_path, broker.port, settings=settings) as gateway:
            await connected(gateway)
            lines = [b"%d" % number for number in range(200)]
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=b"\n".join([*lines, b""]))
            await until(lambda: statistic(gateway, "records") + len(theirs) >= 200, "everything has come somewhere")
            other.terminate()
            await reading
            ours = [value for _, value in await gateway.contents()]
            assert sorted(ours + theirs) == sorted(lines)
            assert ours


# -- routes ------------------------------------------------------------------------------------------------------------


@on_uvloop
@pytest.mark.parametrize("engine", ["native", "aiomqtt"])
async def test_streams_and_keys_from_levels(tmp_path, engine):
    """A template makes the stream and the key, with both engines."""
    settings = {"engine": engine, "routes": [{"filter": "plant/+/#", "stream": "line-{2}", "key": "{3}"}]}
    with mosquitto(tmp_path / "broker") as broker:
        async with subscribed(tmp_path, broker.port, settings=settings) as gateway:
            await connected(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/7/hot", "-m", "a")
            await pub(broker.port, "-q", "1", "-t", "plant/8/cold", "-m", "b")
            await recorded(gateway, 2)
            assert await gateway.contents("line-7") == [(b"hot", b"a")]
            assert await gateway.contents("line-8") == [(b"cold", b"b")]


@on_uvloop
async def test_route_that_drops_the_newest(tmp_path):
    """With the writer stopped the broker is not held back; what had no room is acknowledged, counted and told."""
    settings = {"routes": [{"filter": "plant/#", "stream": "telemetry", "overload": "drop-newest"}]}
    small = {"ring": "1MiB", "largest_record": "64KiB"}
    with mosquitto(tmp_path / "broker") as broker:
        async with subscribed(tmp_path, broker.port, settings=settings, engine_starts=False, limits=small) as gateway:
            await connected(gateway)
            lines = b"".join(b"%06d%b\n" % (number, b"." * 2_000) for number in range(900))
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=lines)
            await until(lambda: statistic(gateway, "dropped") > 0, "something is dropped")
            gateway.engine.start()
            await until(lambda: statistic(gateway, "records") + statistic(gateway, "dropped") == 900, "all are seen")
            await until(lambda: statistic(gateway, "unacknowledged") == 0, "all are acknowledged")
            await until(
                lambda: sum(loss["written"] for loss in gateway.engine.gaps.statistics()) > 0, "a gap record is written"
            )
            assert statistic(gateway, "connects") == 1
            loss = gateway.engine.gaps.statistics()[0]
            assert (loss["source"], loss["reason"], loss["count"]) == ("it", "overload", statistic(gateway, "dropped"))


# -- brokers that are odd ----------------------------------------------------------------------------------------------


@on_uvloop
async def test_message_larger_than_the_largest_record(tmp_path):
    """A broker of MQTT 3.1.1 knows no limit: the message is counted, told and acknowledged, and others go on."""
    async with scripted(4) as broker:
        broker.publishes = publish("plant/large", b"x" * 200_000, qos=1, packet_id=1)
        broker.publishes += publish("plant/a", b"after", qos=1, packet_id=2)
        small = {"ring": "1MiB", "largest_record": "64KiB"}
        async with subscribed(tmp_path, broker.port, limits=small) as gateway:
            await recorded(gateway, 1)
            await until(lambda: broker.received[-2:] == [puback(1), puback(2)], "both are acknowledged")
            assert statistic(gateway, "lost") == 1
            assert gateway.events.named("larger than the largest record")[0]["topic"] == "plant/large"
            await until(
                lambda: sum(loss["written"] for loss in gateway.engine.gaps.statistics()) == 1, "it is in the stream"
            )
            rows = [row for row in await gateway.records() if row[2] is not None]
            assert [row[3] for row in rows] == [b"after"]


@on_uvloop
async def test_broker_that_falls_silent(tmp_path):
    """A broker that accepts and then says nothing more is left after one and a half keep-alive times."""
    async with scripted(5) as broker:
        broker.answers_pings = False
        async with subscribed(tmp_path, broker.port, settings={"keepalive": "1s"}) as gateway:
            await connected(gateway, connects=2)
            assert b"\xc0\x00" in broker.received
            assert "does not answer" in gateway.events.named("broker connection lost")[0]["cause"]


@on_uvloop
@pytest.mark.parametrize(
    ("last_word", "said"),
    [
        (packet(0x90, b"\0\x63\0\0"), "never made"),
        (publish("plant/a", b"", qos=3, packet_id=1, version=5), "QoS 3"),
        (packet(0x62, b"\0\0"), "packet identifier 0"),
        (packet(0x70, b"\0\1"), "PUBCOMP"),
        (packet(0xE0, b"\x8e"), "session taken over by another client"),
        (packet(0xE0, b"\x8b\0"), "server shutting down"),
    ],
)
async def test_last_word_of_a_broker(tmp_path, last_word, said):
    """What nobody asked for ends the connection with a sentence; DISCONNECT does with the broker's reason in words."""
    async with scripted(5) as broker:
        broker.publishes = last_word
        async with subscribed(tmp_path, broker.port) as gateway:
            await until(lambda: statistic(gateway, "failures") > 0, "the connection has ended")
            causes = [fields["cause"] for _, fields in gateway.events.seen if "cause" in fields]
            assert said in causes[0]
            assert read_stream(gateway.data, "telemetry") == []
