"""Real clients over every transport, with passwords and certificates; and what those hear who may not come in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_adapters.mqtt import admission, entrance
from gateway_adapters.mqtt.listener import create

from gateway.errors import ConfigError, SourceError
from tests.integration.mqtt_publishers import PUBLISHERS, Refused, Target, mosquitto, payloads
from tests.integration.peers import find
from tests.support.certificates import Authority
from tests.support.gateway import Running, on_uvloop, running, until
from tests.support.gateway_process import GatewayProcess
from tests.support.mqtt import PINGREQ, PINGRESP, binary, connect, publish, text

PASSWORD = "correct horse battery staple"
ROUTES = [{"filter": "plant/#", "stream": "telemetry"}]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def users_file(tmp_path_factory) -> Path:
    """Two users, as mosquitto_passwd writes them: one hash of each kind."""
    path = tmp_path_factory.mktemp("users") / "users"
    for arguments in (["-c", "-b", str(path), "press", PASSWORD], ["-H", "sha512", "-b", str(path), "lamp", PASSWORD]):
        subprocess.run([find("mosquitto_passwd"), *arguments], check=True, capture_output=True, timeout=30)
    assert {line.split("$")[1] for line in path.read_text().splitlines()} == {"7", "6"}
    return path


class Site:
    """How a listener is configured, and what its clients need to know."""

    def __init__(self, kind: str, authority: Authority, users_file: Path, directory: Path) -> None:
        self.settings: dict[str, Any] = {"bind": "127.0.0.1:0", "routes": ROUTES, "users_file": str(users_file)}
        self.client: dict[str, Any] = {"username": "press", "password": PASSWORD}
        transport, _, security = kind.partition("+")
        self.client["transport"] = transport
        if transport == "unix":
            self.client["path"] = str(directory / "mqtt.sock")
            self.settings["bind"] = f"unix:{self.client['path']}"
        elif transport == "websocket":
            self.settings["transport"] = "websocket"
        if security:
            certificate, key = authority.issue("server")
            self.settings |= {"tls_cert": str(certificate), "tls_key": str(key)}
            self.client["ca"] = str(authority.file)
        if security == "mutual":
            files = authority.issue("press-1")
            self.client |= {"certificate": str(files[0]), "key": str(files[1]), "username": None, "password": None}
            del self.settings["users_file"]
            self.settings |= {"tls_client_ca": str(authority.file), "client_certificates": "require"}

    def target(self, gateway: Running, version: int = 5, **changes: Any) -> Target:
        return Target(gateway.port, version, **{**self.client, **changes})


@pytest.fixture
def site(authority, users_file, tmp_path):
    return lambda kind: Site(kind, authority, users_file, tmp_path)


def listening(tmp_path: Path, settings: dict[str, Any], **more: Any) -> Any:
    return running(tmp_path / "data", create, "listeners", settings, **more)


CASES = [
    (name, f"{transport}{security}")
    for name, (_, transports) in PUBLISHERS.items()
    for transport in transports
    for security in (["", "+tls", "+mutual"] if transport != "unix" else [""])
]


@pytest.mark.integration
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(("name", "kind"), CASES)
@on_uvloop
async def test_client(tmp_path, site, name, kind, version):
    """A client of others logs in, publishes with every QoS, and everything is recorded once."""
    place = site(kind)
    async with listening(tmp_path, place.settings) as gateway:
        await asyncio.to_thread(PUBLISHERS[name][0], place.target(gateway, version))
        await until(lambda: gateway.source.statistics()["records"] == len(payloads()), "all are taken")
        values = [value for _, value in await gateway.contents()]
        assert len(values) == len(payloads())
        assert set(values) == payloads()
        assert gateway.source.statistics()["faults"] == 0
        assert not gateway.events.named("refused")


# -- who may not come in -----------------------------------------------------------------------------------------------


def secrets_in(gateway: Running) -> list[str]:
    """Everything that was logged with a password or a hash in it."""
    return [f"{event} {fields}" for event, fields in gateway.events.seen if "horse" in f"{event} {fields}"]


@pytest.mark.integration
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", [*PUBLISHERS])
@on_uvloop
async def test_wrong_password(tmp_path, site, name, version, monkeypatch):
    """Refused, logged once without the password; a client that is connected notices nothing."""
    monkeypatch.setattr(admission, "DELAY_S_FIRST", 0.001)
    place = site("tcp")
    async with listening(tmp_path, place.settings) as gateway, hand(gateway, place) as calm:
        wrong = place.target(gateway, version, password="incorrect horse")
        with pytest.raises(Refused):
            await asyncio.to_thread(PUBLISHERS[name][0], wrong)
        (line,) = gateway.events.named("wrong user name or password")
        assert line["reason"] == "0x86"
        assert not secrets_in(gateway)
        calm.write(publish("plant/calm", qos=1, packet_id=1, version=5))
        assert await calm.read(4) == b"\x40\x02\x00\x01"
        assert [key for key, _ in await gateway.contents()] == [b"plant/calm"]


class Hand:
    """A connection by hand, over TLS or not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.write = writer.write

    async def read(self, count: int) -> bytes:
        return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def hand(gateway: Running, place: Site, hello: bytes | None = None, **options: Any) -> Any:
    """Connected; with an accepted CONNECT unless `hello` says what to send instead."""
    if "path" in place.client:
        reader, writer = await asyncio.open_unix_connection(place.client["path"])
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, **options)
    found = Hand(reader, writer)
    try:
        found.write(log_in(5, "by-hand") if hello is None else hello)
        if hello is None:
            first, size = await found.read(2)
            assert (first, (await found.read(size))[1]) == (0x20, 0)
        yield found
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def log_in(version: int, client: str, password: str = PASSWORD, name: str = "press") -> bytes:
    return connect(version, client, flags=0xC2, rest=text(name) + binary(password.encode()))


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (log_in(4, "c", "wrong"), b"\x20\x02\x00\x04"),
        (log_in(5, "c", "wrong"), b"\x20\x03\x00\x86\x00"),
        (log_in(5, "c", name="nobody"), b"\x20\x03\x00\x86\x00"),
        (connect(4, "c"), b"\x20\x02\x00\x05"),
        (connect(5, "c"), b"\x20\x03\x00\x87\x00"),
    ],
)
@on_uvloop
async def test_reason_codes_of_logins(tmp_path, site, monkeypatch, hello, answer):
    """Bad credentials and no credentials, in both versions; what was sent behind CONNECT is not recorded."""
    monkeypatch.setattr(admission, "DELAY_S_FIRST", 0.001)
    place = site("tcp")
    async with listening(tmp_path, place.settings) as gateway:
        async with hand(gateway, place, hello + publish("plant/a", b"x")) as client:
            assert await client.rest() == answer
        assert await gateway.contents() == []
        assert gateway.source.statistics()["logins_refused"] == 1


@on_uvloop
async def test_packets_behind_connect(tmp_path, site):
    """A client may publish without awaiting CONNACK: what it sends meanwhile waits for the password's check."""
    place = site("tcp")
    async with listening(tmp_path, place.settings) as gateway:
        many = b"".join(publish("plant/a", b"%d" % number) for number in range(1_000))
        async with hand(gateway, place, log_in(4, "c") + many + PINGREQ) as client:
            assert await client.read(6) == b"\x20\x02\x00\x00" + PINGRESP
        assert [value for _, value in await gateway.contents()] == [b"%d" % number for number in range(1_000)]


@on_uvloop
async def test_leaving_during_a_login(tmp_path, site):
    """Clients that go while their password is checked, or their refusal is held back, leave nothing behind."""
    place = site("tcp")
    async with listening(tmp_path, place.settings) as gateway:
        for password in (PASSWORD, "wrong"):
            async with hand(gateway, place, log_in(4, "c", password)) as client:
                client.writer.transport.abort()
        await until(lambda: not gateway.source._connections, "the sockets are gone")
        assert gateway.source.statistics()["connections"] == 0
        assert gateway.source.door.admission._sockets == {}


@on_uvloop
async def test_stop_during_a_login(tmp_path, site):
    """Refusals that are held back do not hold up the end."""
    place = site("tcp")
    async with listening(tmp_path, place.settings) as gateway, hand(gateway, place, log_in(4, "c", "wrong")) as client:
        await until(lambda: gateway.source.statistics()["logins_refused"] == 1, "the password was checked")
        await gateway.source.pause()
        await gateway.source.drain()
        await gateway.source.stop()
        assert await client.rest() == b""


@pytest.mark.parametrize("fault", ["expired", "of another authority", "missing", "not TLS"])
@on_uvloop
async def test_bad_handshake(tmp_path, site, authority, fault):
    """Ended in the handshake, logged once with the cause; who is connected notices nothing."""
    place = site("tcp+mutual")
    other = Authority(tmp_path / "other", "other")
    async with listening(tmp_path, place.settings) as gateway:
        good = place.target(gateway).context
        async with hand(gateway, place, connect(4, "calm"), ssl=good) as calm:
            assert await calm.read(4) == b"\x20\x02\x00\x00"
            context = ssl.create_default_context(cafile=str(authority.file))
            if fault == "expired":
                context.load_cert_chain(*authority.issue("old", expired=True))
            elif fault == "of another authority":
                context.load_cert_chain(*other.issue("stranger"))
            options = {} if fault == "not TLS" else {"ssl": context}
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                async with hand(gateway, place, connect(4, "c"), **options) as client:
                    assert b"\x20\x02" not in await client.rest()
            await until(lambda: gateway.source.statistics()["handshakes_failed"] == 1, "it failed")
            (line,) = gateway.events.named("the TLS handshake failed")
            assert line["peer"].startswith("127.0.0.1:")
            assert {"expired": "expired", "of another authority": "issuer", "missing": "did not return",
                    "not TLS": ""}[fault] in line["cause"]  # fmt: skip
            calm.write(publish("plant/calm", qos=1, packet_id=1))
            assert await calm.read(4) == b"\x40\x02\x00\x01"
        await until(lambda: not gateway.source._connections, "all are gone")
        assert gateway.source.door.admission._sockets == {}


@on_uvloop
async def test_handshake_that_never_ends(tmp_path, site):
    """A socket that says nothing, and one that begins and stops, are closed after `connect_timeout`."""
    place = site("tcp+tls")
    async with listening(tmp_path, {**place.settings, "connect_timeout": "1s"}) as gateway:
        async with hand(gateway, place, b"") as mute, hand(gateway, place, b"\x16\x03\x01\x02\x00\x01") as slow:
            assert await mute.rest() == b""
            assert await slow.rest() == b""
        await until(lambda: not gateway.source._entering, "both are gone")
        assert gateway.source.statistics()["timeouts"] == 2
        assert len(gateway.events.named("did not end in time")) == 2
        assert gateway.source.door.admission._sockets == {}


@on_uvloop
async def test_no_descriptor_is_left(tmp_path, site, monkeypatch):
    """Accepting pauses and goes on by itself; the log says what is wrong, once a second at most."""
    monkeypatch.setattr(entrance, "FULL_PAUSE_S", 0.05)
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))] * 3
    accept = socket.socket.accept

    def without_descriptors(listening: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return accept(listening)

    place = site("tcp+tls")
    async with listening(tmp_path, place.settings) as gateway:
        monkeypatch.setattr(socket.socket, "accept", without_descriptors)
        async with hand(gateway, place, ssl=place.target(gateway).context) as client:
            client.write(PINGREQ)
            assert await client.read(2) == PINGRESP
        assert len(gateway.events.named("no connection can be accepted")) == 3


@on_uvloop
async def test_certificate_renewed(tmp_path, site, authority):
    """After a refresh new connections see the new certificate; a broken file changes nothing; old ones go on."""
    place = site("tcp+tls")
    certificate, key = authority.issue("renewed")
    place.settings |= {"tls_cert": str(certificate), "tls_key": str(key)}

    def shown(client: Hand) -> Any:
        return client.writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]

    async with listening(tmp_path, place.settings) as gateway:
        context = place.target(gateway).context
        async with hand(gateway, place, ssl=context) as old:
            authority.issue("renewed")
            gateway.source.refresh()
            async with hand(gateway, place, log_in(5, "second"), ssl=context) as new:
                await new.read(2)
                assert shown(new) != shown(old)
            certificate.write_text("broken", encoding="utf-8")
            with pytest.raises(ConfigError):
                gateway.source.refresh()
            async with hand(gateway, place, log_in(5, "third"), ssl=context) as third:
                await third.read(2)
                assert shown(third) == shown(new)
            old.write(PINGREQ)
            assert await old.read(2) == PINGRESP


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "tcp+tls"])
@on_uvloop
async def test_connections_of_one_address(tmp_path, site, kind):
    """Beyond the limit a socket is closed at once; when one leaves, the next may come."""
    place = site(kind)
    async with listening(tmp_path, {**place.settings, "connections_per_address_max": 2}) as gateway:
        options = {"ssl": place.target(gateway).context} if "tls" in kind else {}
        async with hand(gateway, place, log_in(5, "a"), **options) as first, contextlib.AsyncExitStack() as stack:
            await first.read(2)
            second = await stack.enter_async_context(hand(gateway, place, log_in(5, "b"), **options))
            await second.read(2)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                async with hand(gateway, place, log_in(5, "c"), **options) as third:
                    await third.read(2)
            (line,) = gateway.events.named("connections_per_address_max")
            assert line["peer"].startswith("127.0.0.1:")
            await stack.aclose()
            await until(lambda: gateway.source.door.admission._sockets == {"127.0.0.1": 1}, "one has left")
            async with hand(gateway, place, log_in(5, "d"), **options) as fourth:
                assert (await fourth.read(2))[0] == 0x20


@on_uvloop
async def test_packet_that_never_becomes_whole(tmp_path, site):
    """Bytes that trickle in keep no connection: a packet has `packet_timeout` to become whole."""
    place = site("tcp")
    async with listening(tmp_path, {**place.settings, "packet_timeout": "1s"}) as gateway:
        async with hand(gateway, place) as slow, hand(gateway, place, log_in(5, "calm")) as calm:
            await calm.read(2)

            async def trickle() -> None:
                slow.write(b"\x30\x7f")
                while True:
                    slow.write(b"\x00")
                    await asyncio.sleep(0.1)

            async def publish_always() -> None:
                while True:
                    calm.write(publish("plant/a", b"x" * 500, version=5))
                    await asyncio.sleep(0.01)

            tasks = [asyncio.create_task(trickle()), asyncio.create_task(publish_always())]
            assert (await slow.rest())[0] == 0xE0
            for task in tasks:
                task.cancel()
        (line,) = gateway.events.named("packet_timeout")
        assert line["client"] == "by-hand"


# -- what a client may publish, and how fast ---------------------------------------------------------------------------


ACCESS = """
topic write plant/public
user press
topic plant/press/#
topic deny plant/press/setup
pattern write plant/clients/%c
"""


@pytest.mark.integration
@pytest.mark.parametrize("name", [*PUBLISHERS])
@on_uvloop
async def test_forbidden_topic(tmp_path, site, name):
    """MQTT 5 hears 0x87 for each message and stays; nothing is recorded; the log names a topic and how many."""
    place = site("tcp")
    acl = tmp_path / "acl"
    acl.write_text(ACCESS, encoding="utf-8")
    async with listening(tmp_path, {**place.settings, "access_file": str(acl)}) as gateway:
        with contextlib.suppress(Refused):  # some clients call the refusal of a message an error
            await asyncio.to_thread(PUBLISHERS[name][0], place.target(gateway, topic="plant/lamp/x"))
        count = gateway.source.statistics()["forbidden"]
        assert count
        await until(lambda: bool(gateway.events.named("may not publish")), "it is logged")
        assert gateway.events.named("may not publish")[0]["topic"] == "plant/lamp/x"
        await asyncio.to_thread(PUBLISHERS[name][0], place.target(gateway, topic="plant/press/x"))
        assert len(await gateway.contents()) == len(payloads())
        assert gateway.source.statistics()["forbidden"] == count


@on_uvloop
async def test_rules_on_the_wire(tmp_path, site):
    """Allowed, denied and unmentioned topics, in both versions; a will may not go where its client may not publish."""
    place = site("tcp")
    acl = tmp_path / "acl"
    acl.write_text(ACCESS, encoding="utf-8")
    async with listening(tmp_path, {**place.settings, "access_file": str(acl)}) as gateway:
        async with hand(gateway, place) as client:
            for index, (topic, answer) in enumerate(
                [("plant/press/a", b"\x40\x02"), ("plant/press/setup", b"\x40\x03"), ("plant/public", b"\x40\x03"),
                 ("plant/clients/by-hand", b"\x40\x02"), ("plant/clients/other", b"\x40\x03")], 1
            ):  # fmt: skip
                client.write(publish(topic, qos=1, packet_id=index, version=5))
                expected = answer + index.to_bytes(2, "big") + (b"\x87" if answer[1] == 3 else b"")
                assert await client.read(len(expected)) == expected, topic
        async with hand(gateway, place, log_in(4, "old") + publish("plant/public", qos=1, packet_id=1)) as client:
            assert await client.rest() == b"\x20\x02\x00\x00"
        (line,) = gateway.events.named("connection closed")
        assert (line["client"], line["topic"], line["reason"]) == ("old", "plant/public", "0x87")
        for topic, code in (("plant/press/will", 0), ("plant/other", 5)):
            will = text(topic) + binary(b"gone") + text("press") + binary(PASSWORD.encode())
            async with hand(gateway, place, connect(4, "w", flags=0xC6, rest=will)) as client:
                assert await client.read(4) == bytes((0x20, 2, 0, code))
        recorded = {key for key, _ in await gateway.contents()}
        assert recorded <= {b"plant/press/a", b"plant/clients/by-hand", b"plant/press/will"}


@pytest.mark.parametrize("key", ["messages_per_second", "messages_per_second_total"])
@on_uvloop
async def test_message_rate(tmp_path, site, key):
    """A client that publishes faster than it may is held back: everything is recorded, and others are not held up."""
    place = site("tcp")
    async with listening(tmp_path, {**place.settings, key: 200}) as gateway:
        many = b"".join(publish("plant/a", b"%d" % number) for number in range(450))
        async with hand(gateway, place, log_in(4, "fast") + many + PINGREQ) as fast:
            assert await fast.read(4) == b"\x20\x02\x00\x00"
            async with hand(gateway, place, log_in(4, "calm") + PINGREQ) as calm:
                assert await calm.read(6) == b"\x20\x02\x00\x00" + PINGRESP
                assert gateway.source.statistics()["records"] < 450, "it was not held back"
            assert await fast.read(2) == PINGRESP
        assert [value for _, value in await gateway.contents()] == [b"%d" % number for number in range(450)]


# -- Unix sockets ------------------------------------------------------------------------------------------------------


def there(path: Path) -> bool:
    return os.path.lexists(path)


@on_uvloop
async def test_unix_socket_file(tmp_path, site):
    """It has its mode, is gone after the end, and replaces one that a killed gateway left."""
    place = site("unix")
    path = Path(place.client["path"])
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with listening(tmp_path, {**place.settings, "socket_mode": "0600"}) as gateway:
        assert os.stat(path).st_mode & 0o777 == 0o600
        async with hand(gateway, place) as client:
            client.write(PINGREQ)
            assert await client.read(2) == PINGRESP
    assert not there(path)


@pytest.mark.parametrize("what", ["listener", "file"])
@on_uvloop
async def test_unix_socket_taken(tmp_path, site, what):
    """A socket that somebody listens on is left alone, and so is a file that is no socket."""
    place = site("unix")
    path = Path(place.client["path"])
    with socket.socket(socket.AF_UNIX) as other:
        if what == "listener":
            other.bind(str(path))
            other.listen()
        else:
            os.close(os.open(path, os.O_CREAT))
        with pytest.raises(SourceError, match="cannot listen on unix:"):
            async with listening(tmp_path, place.settings):
                pass
        assert there(path)


@pytest.mark.integration
@on_uvloop
async def test_mosquitto_pub_without_password(tmp_path, site, monkeypatch):
    """What the client prints is the reason that MQTT has for it."""
    monkeypatch.setattr(admission, "DELAY_S_FIRST", 0.001)
    place = site("tcp")
    async with listening(tmp_path, place.settings) as gateway:
        for version, said in ((4, "not authorised"), (5, "Not authorized")):
            with pytest.raises(Refused, match=said):
                await asyncio.to_thread(mosquitto, place.target(gateway, version, username=None, password=None))


# -- nonsense, over every transport ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "tcp+tls", "tcp+mutual", "unix"])
@pytest.mark.parametrize(
    ("nonsense", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "0x82"),
        (bytes(range(256)), "0x82"),
        (b"\x10\xff\xff\xff\xff\x7f", "0x81"),
        (b"\x10\xff\xff\xff\x7f", "0x95"),
    ],
)
@on_uvloop
async def test_garbage(tmp_path, site, kind, nonsense, reason):
    """Ends one connection with one line in the log; who is connected notices nothing."""
    place = site(kind)
    async with listening(tmp_path, place.settings) as gateway:
        options = {"ssl": place.target(gateway).context} if "+" in kind else {}
        async with hand(gateway, place, **options) as calm:
            async with hand(gateway, place, nonsense, **options) as client:
                await client.rest()
            (line,) = gateway.events.named("connection closed")
            assert line["reason"] == reason
            assert line["peer"].startswith("127.0.0.1:" if kind != "unix" else "a Unix socket")
            calm.write(publish("plant/a", qos=1, packet_id=1, version=5))
            assert await calm.read(4) == b"\x40\x02\x00\x01"


@pytest.mark.parametrize("version", [4, 5])
@on_uvloop
async def test_oversized_packet(tmp_path, site, version):
    """MQTT 5 hears 0x95, MQTT 3.1.1 is closed; one line says so."""
    place = site("tcp")
    async with listening(tmp_path, {**place.settings, "max_packet": "1KiB"}) as gateway:
        large = publish("plant/a", b"x" * 2_000, version=version)
        async with hand(gateway, place, log_in(version, "large") + large) as client:
            first, size = await client.read(2)
            assert (first, (await client.read(size))[1]) == (0x20, 0)
            rest = await client.rest()
            assert rest[:1] + rest[2:3] == (b"\xe0\x95" if version == 5 else b"")
        (line,) = gateway.events.named("connection closed")
        assert (line["client"], line["reason"]) == ("large", "0x95")


# -- the whole program -------------------------------------------------------------------------------------------------


def try_login(port: int, password: str) -> int:
    """The return code of an MQTT 3.1.1 login."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(log_in(4, "c", password))
        return client.recv(4, socket.MSG_WAITALL)[3]


@pytest.mark.integration
def test_users_changed_while_it_runs(tmp_path, users_file):
    """SIGHUP makes `gateway run` read the password file again; a broken one is named, and changes nothing."""
    users = tmp_path / "users"
    users.write_bytes(users_file.read_bytes())
    users.chmod(0o600)
    with GatewayProcess(tmp_path, extra_toml=f'users_file = "{users}"').start() as gateway:
        assert gateway.process is not None
        assert try_login(gateway.port, PASSWORD) == 0
        command = [find("mosquitto_passwd"), "-b", str(users), "press", "another horse"]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        for text_of_file, wanted, said in (
            (users.read_bytes(), "another horse", "configuration applied"),
            (b"press:another secret\n", "another horse", "files not read again"),
        ):
            users.write_bytes(text_of_file)
            gateway.process.send_signal(signal.SIGHUP)
            wait_for(lambda said=said: said in gateway.log, said)
            assert try_login(gateway.port, wanted) == 0
            assert try_login(gateway.port, PASSWORD) == 4
        assert f"{users}:1: " in gateway.log
        assert "secret" not in gateway.log
        assert "horse" not in gateway.log
        assert gateway.end() == 0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Polled; this only keeps a test from hanging for ever."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
