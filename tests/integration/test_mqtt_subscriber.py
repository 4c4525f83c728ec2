"""The subscriber at a real Mosquitto: nothing the broker had is lost, and nothing is acknowledged too early."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gateway_adapters.mqtt.native_subscriber import NativeSubscriber
from gateway_adapters.mqtt.subscriber import create

from gateway.errors import SourceError
from tests.integration.peers import Mosquitto, find, free_port, mosquitto, mosquitto_pub
from tests.support.gateway import Running, on_uvloop, running, until
from tests.support.mqtt import publish, text

pytestmark = pytest.mark.integration

ROUTES = [{"filter": "plant/#", "stream": "telemetry"}]


@pytest.fixture(params=["native", "aiomqtt"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here is one of both engines: they promise the same."""
    name: str = request.param
    monkeypatch.setitem(DEFAULTS, "engine", name)
    return name


# What `subscribed` adds to each configuration.
DEFAULTS: dict[str, Any] = {}


def subscribed(tmp_path: Path, port: int, name: str = "data", *, scheme: str = "mqtt", **more: Any):
    """A subscriber that comes back quickly. `settings` and other sections of the configuration as in `running`."""
    settings = {
        "url": f"{scheme}://127.0.0.1:{port}",
        "routes": ROUTES,
        "reconnect_min": "100ms",
        "reconnect_max": "300ms",
        "client_id": "recorder",
        **DEFAULTS,
        **more.pop("settings", {}),
    }
    return running(tmp_path / name, create, "subscribers", settings, **more)


def die(source: Any) -> None:
    """End the connection without a word, as a kill would, and never connect again."""
    if isinstance(source, NativeSubscriber):
        source._tasks[0].cancel()
        assert source._link is not None
        source._link.abandon()
    else:
        source._client._client.socket().shutdown(socket.SHUT_RDWR)
        source._running.cancel()


async def connected(gateway: Running) -> None:
    await until(lambda: gateway.source.statistics()["state"] == "connected", "it is connected")


async def recorded(gateway: Running, count: int) -> None:
    await until(lambda: gateway.source.statistics()["records"] >= count, f"{count} messages are taken")


async def pub(port: int, *arguments: str, stdin: bytes | None = None) -> None:
    done = await asyncio.to_thread(mosquitto_pub, port, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr


@on_uvloop
async def test_messages_of_a_broker(tmp_path):
    """Topics, payloads, order, flags and properties of what others publish at the broker."""
    with mosquitto(tmp_path / "broker") as broker:
        async with subscribed(tmp_path, broker.port) as gateway:
            await connected(gateway)
            lines = [b"line %d" % number for number in range(300)]
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=b"\n".join([*lines, b""]))
            options = ["-D", "publish", "user-property", "k", "v", "-D", "publish", "content-type", "text/plain"]
            await pub(broker.port, "-V", "mqttv5", "-q", "1", "-t", "plant/b", "-m", "with properties", *options)
            await pub(broker.port, "-q", "0", "-t", "plant/c", "-n")
            await pub(broker.port, "-q", "1", "-t", "office/a", "-m", "nobody asked for it")
            await recorded(gateway, 302)
            rows = await gateway.records()
            assert [row[3] for row in rows] == [*lines, b"with properties", b""]
            assert {row[4] for row in rows[:300]} == {(("qos", b"1"),)}
            assert dict(rows[300][4]) == {"qos": b"1", "k": b"v", "content-type": b"text/plain"}
            assert rows[301][4] == ()
            await until(lambda: gateway.source.statistics()["acknowledged"] == 301, "all are acknowledged")
            assert gateway.source.statistics()["unacknowledged"] == 0


@on_uvloop
async def test_message_acknowledged_before_it_is_on_disk(tmp_path):
    """A gateway that dies before its disk had the records gets them again from the broker, marked as duplicates."""
    with mosquitto(tmp_path / "broker") as broker:
        async with subscribed(tmp_path, broker.port, "first", engine_starts=False) as gateway:
            await connected(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=b"1\n2\n3\n")
            await recorded(gateway, 3)
            assert gateway.source.statistics()["acknowledged"] == 0
            assert gateway.source.statistics()["unacknowledged"] == 3
            die(gateway.source)
        await pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=b"4\n5\n")
        async with subscribed(tmp_path, broker.port, "second") as gateway:
            await recorded(gateway, 5)
            rows = await gateway.records()
            assert [row[3] for row in rows] == [b"1", b"2", b"3", b"4", b"5"]
            assert [("dup", b"1") in row[4] for row in rows] == [True, True, True, False, False]
            await connected(gateway)  # a resumed session delivers before it is told
            assert gateway.events.named("connected")[-1]["session"] == "resumed"


@on_uvloop
async def test_stop_forgets_acknowledgements(tmp_path):
    """A clean stop acknowledges what has become durable, so that nothing comes twice."""
    with mosquitto(tmp_path / "broker") as broker:
        async with subscribed(tmp_path, broker.port, "first", engine_starts=False) as gateway:
            await connected(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=b"1\n2\n3\n")
            await recorded(gateway, 3)
            gateway.engine.start()
            await gateway.stop()
            assert gateway.source.statistics()["acknowledged"] == 3
            assert gateway.source.statistics()["state"] == "stopped"
        await pub(broker.port, "-q", "1", "-t", "plant/a", "-m", "4")
        async with subscribed(tmp_path, broker.port, "second") as gateway:
            await recorded(gateway, 1)
            assert [value for _, value in await gateway.contents()] == [b"4"]


@on_uvloop
async def test_broker_goes_away(tmp_path):
    """Connection state and cause are told; it reconnects by itself, and a kill -9 of the broker loses nothing here."""
    persistence = ["persistence true", f"persistence_location {tmp_path}/broker/", "autosave_interval 1",
                   "autosave_on_changes true"]  # fmt: skip
    broker = Mosquitto(tmp_path / "broker", settings=persistence)
    try:
        async with subscribed(tmp_path, broker.port) as gateway:
            await until(lambda: gateway.source.statistics()["state"] == "waiting", "it has tried")
            assert "refused" in gateway.source.statistics()["cause"]
            broker.start()
            await connected(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-m", "before")
            await recorded(gateway, 1)
            broker.stop(kill=True)
            await until(lambda: gateway.source.statistics()["state"] != "connected", "it has noticed")
            await asyncio.to_thread(broker.start)
            await connected(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-m", "after")
            await until(lambda: gateway.source.statistics()["connects"] == 2, "it is back")
            await until(lambda: gateway.source.statistics()["records"] >= 2, "it records again")
            values = [value for _, value in await gateway.contents()]
            assert values[0] == b"before"
            assert values[-1] == b"after"
            assert gateway.events.named("broker not reached")
            assert gateway.events.named("broker connection lost")[0]["cause"]
    finally:
        broker.stop()


@on_uvloop
async def test_retained_messages(tmp_path):
    """Flagged, and not repeated when the broker still has the session."""
    with mosquitto(tmp_path / "broker") as broker:
        await pub(broker.port, "-r", "-q", "1", "-t", "plant/state", "-m", "kept")
        for name, count in (("first", 1), ("second", 0)):
            async with subscribed(tmp_path, broker.port, name) as gateway:
                await connected(gateway)
                await pub(broker.port, "-q", "1", "-t", "plant/now", "-m", "fresh")
                await recorded(gateway, count + 1)
                rows = await gateway.records()
                assert [row[3] for row in rows if ("retain", b"1") in row[4]] == [b"kept"] * count
                assert gateway.source.statistics()["retained"] == count
                assert rows[-1][3] == b"fresh"
                await gateway.stop()


@on_uvloop
async def test_routes(tmp_path):
    """The first route decides; a shared subscription is matched by its filter; refused subscriptions are named."""
    routes = [
        {"filter": "plant/+/hot", "stream": "hot"},
        {"filter": "$share/recorders/plant/#", "stream": "telemetry"},
    ]
    with mosquitto(tmp_path / "broker") as broker:
        async with subscribed(tmp_path, broker.port, settings={"routes": routes}) as gateway:
            await connected(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/1/cold", "-m", "c")
            await pub(broker.port, "-q", "1", "-t", "plant/1/hot", "-m", "h")
            # The broker delivers the second once for each subscription that it matches.
            await recorded(gateway, 3)
            assert await gateway.contents("telemetry") == [(b"plant/1/cold", b"c")]
            assert await gateway.contents("hot") == [(b"plant/1/hot", b"h")] * 2


@on_uvloop
async def test_full_ring_holds_the_broker_back(tmp_path):
    """With the writer stopped reading stops, the connection stays; afterwards nothing is missing or twice."""
    body = b"." * 2_000
    small = {"ring": "1MiB", "largest_record": "64KiB"}
    with mosquitto(tmp_path / "broker") as broker:
        settings = {"keepalive": "2s", "routes": [{"filter": "plant/#", "stream": "telemetry", "qos": 0}]}
        async with subscribed(tmp_path, broker.port, settings=settings, engine_starts=False, limits=small) as gateway:
            await connected(gateway)
            lines = b"".join(b"%06d%b\n" % (number, body) for number in range(4_000))
            publishing = asyncio.create_task(pub(broker.port, "-q", "1", "-t", "plant/a", "-l", stdin=lines))
            await until(lambda: gateway.source.statistics()["paused"] > 0, "reading has stopped")
            await asyncio.sleep(4)  # twice the keep-alive time
            assert gateway.source.statistics()["state"] == "connected"
            assert gateway.source.statistics()["waiting_for_room"] <= 1_100
            gateway.engine.start()
            await recorded(gateway, 4_000)
            await publishing
            numbers = [int((value or b"")[:6]) for _, value in await gateway.contents()]
            assert numbers == list(range(4_000))
            assert gateway.source.statistics()["connects"] == 1
            assert gateway.source.statistics()["lost"] == 0


@on_uvloop
async def test_failed_stream(tmp_path):
    """Nothing is acknowledged when its stream fails: the broker keeps it for a gateway that is well again."""
    with mosquitto(tmp_path / "broker") as broker:
        obstacle = tmp_path / "first" / "telemetry-0"
        async with subscribed(tmp_path, broker.port, "first") as gateway:
            obstacle.write_text("a file where a directory is wanted")
            await connected(gateway)
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-m", "precious")
            await until(lambda: bool(gateway.events.named("has failed")), "it says so")
            assert gateway.source.statistics()["acknowledged"] == 0
        async with subscribed(tmp_path, broker.port, "second") as gateway:
            await recorded(gateway, 1)
            assert [value for _, value in await gateway.contents()] == [b"precious"]


# -- credentials and TLS -----------------------------------------------------------------------------------------------


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    """One user, "gateway", in Mosquitto's own format."""
    users = tmp_path / "users"
    subprocess.run([find("mosquitto_passwd"), "-b", "-c", str(users), "gateway", "S3cr3t!"], check=True, timeout=30)
    return users


@on_uvloop
async def test_credentials(tmp_path, password_file):
    """The right password gets in; the wrong one is a cause that does not contain it."""
    settings = ["allow_anonymous false", f"password_file {password_file}"]
    with mosquitto(tmp_path / "broker", settings=settings) as broker:
        good = {"username": "gateway", "password": "S3cr3t!"}
        async with subscribed(tmp_path, broker.port, "good", settings=good) as gateway:
            await connected(gateway)
        bad = {"username": "gateway", "password": "Wr0ng!"}
        async with subscribed(tmp_path, broker.port, "bad", settings=bad) as gateway:
            await until(lambda: gateway.source.statistics()["state"] == "waiting", "it was refused")
            cause = gateway.source.statistics()["cause"]
            assert "authori" in cause.lower()
            assert "Wr0ng!" not in repr(gateway.events.seen) + repr(gateway.source.statistics())


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """A certificate authority, and a server's certificate for 127.0.0.1."""
    openssl = find("openssl")
    names = {name: str(tmp_path / name) for name in ("ca.pem", "ca.key", "server.pem", "server.key", "server.csr")}

    def make(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True, timeout=60, cwd=tmp_path)

    make("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
         "-subj", "/CN=Test CA")  # fmt: skip
    make("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=broker")
    (tmp_path / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    make("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
         "-out", "server.pem", "-extfile", "san")  # fmt: skip
    return names


@pytest.mark.filterwarnings(
    "ignore:.*ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)  # paho leaves it to the GC
@on_uvloop
async def test_tls(tmp_path, certificates):
    """mqtts:// with a known authority gets in and records; without it the certificate is refused, which is told."""
    settings = [f"certfile {certificates['server.pem']}", f"keyfile {certificates['server.key']}"]
    with mosquitto(tmp_path / "broker", settings=settings) as broker:
        trusting = {"tls_ca": certificates["ca.pem"]}
        async with subscribed(tmp_path, broker.port, "good", scheme="mqtts", settings=trusting) as gateway:
            await connected(gateway)
            lines = [b"line %d" % number for number in range(300)]
            await pub(
                broker.port, "--cafile", certificates["ca.pem"], "-q", "1", "-t", "plant/a", "-l",
                stdin=b"\n".join([*lines, b""]),
            )  # fmt: skip
            await recorded(gateway, 300)
            assert [value for _, value in await gateway.contents()] == lines
            await gateway.stop()
        async with subscribed(tmp_path, broker.port, "bad", scheme="mqtts") as gateway:
            await until(lambda: gateway.source.statistics()["state"] == "waiting", "it was refused")
            assert "certificate" in gateway.source.statistics()["cause"].lower()


@on_uvloop
async def test_tls_files_that_cannot_be_used(tmp_path):
    """A certificate file that is none is a sentence at the start, naming the settings."""
    (tmp_path / "nonsense.pem").write_text("nonsense")
    settings = {"tls_ca": str(tmp_path / "nonsense.pem")}
    with pytest.raises(SourceError, match=r"it: the TLS files cannot be used .*check tls_ca, tls_cert and tls_key"):
        async with subscribed(tmp_path, free_port(), scheme="mqtts", settings=settings):
            pass


# -- brokers that are not Mosquitto ------------------------------------------------------------------------------------


class OldBroker:
    """A broker of MQTT 3.1.1 only: refuses version 5 as the older standard says, and keeps sessions."""

    def __init__(self) -> None:
        self.levels: list[int] = []
        self.subscribed = 0
        self.acknowledged: list[bytes] = []
        self.publishes: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first_byte, size = await reader.readexactly(2)
                body = await reader.readexactly(size)
                if first_byte == 0x10:
                    self.levels.append(body[6])
                    if body[6] != 4:
                        writer.write(b"\x20\x02\x00\x01")
                        break
                    writer.write(b"\x20\x02" + (b"\x01" if self.subscribed else b"\x00") + b"\x00")
                elif first_byte == 0x82:
                    self.subscribed += 1
                    writer.write(b"\x90\x03" + body[:2] + b"\x01")
                    for packet in self.publishes:
                        writer.write(packet)
                elif first_byte == 0x40:
                    self.acknowledged.append(body)
                    if body == b"\x00\x02":
                        break
        writer.close()


@contextlib.asynccontextmanager
async def old_broker() -> AsyncIterator[OldBroker]:
    broker = OldBroker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield broker
    finally:
        server.close()


@on_uvloop
async def test_broker_of_mqtt_3_1_1_only(tmp_path):
    """The older version is used at once and kept; a session that is there is not subscribed again."""
    async with old_broker() as broker:
        broker.publishes = [publish("plant/a", b"1", qos=1, packet_id=1), publish("plant/a", b"2", qos=1, packet_id=2)]
        async with subscribed(tmp_path, broker.port) as gateway:
            await until(lambda: len(broker.levels) >= 3 and broker.subscribed == 1, "it came back after the hang-up")
            await connected(gateway)
            assert broker.levels[:3] == [5, 4, 4]
            assert broker.subscribed == 1
            assert broker.acknowledged == [b"\0\1", b"\0\2"]
            assert [value for _, value in await gateway.contents()] == [b"1", b"2"]


@on_uvloop
async def test_topic_without_route_blocks_the_broker(tmp_path):
    """A broker may send what no route takes (an old session): counted, named, and acknowledged in its turn."""
    async with old_broker() as broker:
        broker.publishes = [publish("office/a", b"1", qos=1, packet_id=1), publish("plant/a", b"2", qos=1, packet_id=2)]
        async with subscribed(tmp_path, broker.port) as gateway:
            await until(lambda: broker.acknowledged == [b"\0\1", b"\0\2"], "both are acknowledged")
            assert gateway.source.statistics()["unrouted"] == 1
            await until(lambda: bool(gateway.events.named("no route takes")), "it says so")
            assert gateway.events.named("no route takes")[0]["topic"] == "office/a"


@on_uvloop
async def test_broker_that_sends_nonsense(tmp_path, engine):
    """Garbage ends the connection, is named, and is tried again; the source lives on."""
    async with old_broker() as broker:
        broker.publishes = [b"\x30\x05\x00\xff" + text("x")]  # a topic of 255 bytes in a packet of five
        async with subscribed(tmp_path, broker.port) as gateway:
            await until(lambda: gateway.source.statistics()["failures"] == 1, "the connection has ended")
            await connected(gateway)
            said = "Protocol error" if engine == "aiomqtt" else "broke the protocol: a field reaches beyond the end"
            events = gateway.events.named("broker not reached") + gateway.events.named("broker connection lost")
            assert said in events[0]["cause"]
