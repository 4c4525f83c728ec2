"""Sessions of the listener's clients: resumed, expired, taken over, restored after a restart; QoS 2, and wills."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import paho.mqtt.client as paho
import pytest
from gateway_adapters.mqtt.listener import create

from gateway.ingest.source import SourceContext
from tests.support.gateway import Running, on_uvloop, running, until
from tests.support.mqtt import PINGREQ, PINGRESP, binary, connect, packet, properties, publish, text

ROUTES = [{"filter": "plant/#", "stream": "telemetry"}]
LASTING = [b"\x11\0\0\x0e\x10"]  # session expiry: 3,600 s
DISCONNECT = b"\xe0\x00"
PUBACK, PUBREC, PUBREL, PUBCOMP = 0x40, 0x50, 0x62, 0x70


def listening(tmp_path, **settings: Any):
    wanted = {"bind": "127.0.0.1:0", "routes": ROUTES, **settings}
    return running(tmp_path / "data", create, "listeners", wanted)


class Client:
    """A connection without any client library, and what CONNACK said of its session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.present = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def take(self) -> tuple[int, bytes]:
        head = await self.reader.readexactly(2)
        return head[0], await self.reader.readexactly(head[1])

    async def deliver(self, packet_id: int, payload: bytes, *, dup: bool = False) -> None:
        """Publish with QoS 2, up to PUBREC."""
        await self.send(publish("plant/a", payload, qos=2, packet_id=packet_id, dup=dup))
        assert await self.take() == (PUBREC, packet_id.to_bytes(2, "big"))

    async def release(self, packet_id: int) -> None:
        await self.send(packet(PUBREL, packet_id.to_bytes(2, "big")))
        assert await self.take() == (PUBCOMP, packet_id.to_bytes(2, "big"))

    async def settled(self) -> None:
        """All that was sent has been looked at."""
        await self.send(PINGREQ)
        assert await self.take() == (PINGRESP[0], b"")


@contextlib.asynccontextmanager
async def client(gateway: Running, hello: bytes) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    found = Client(reader, writer)
    try:
        await found.send(hello)
        first_byte, body = await found.take()
        assert (first_byte, body[1]) == (0x20, 0)
        found.present = bool(body[0])
        yield found
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def away(gateway: Running) -> None:
    await until(lambda: gateway.source.statistics()["connections"] == 0, "the client is gone")


def lasting(client_id: str = "c", *, clean: bool = False, version: int = 4, **more: Any) -> bytes:
    flags = more.pop("flags", 0) | (2 if clean else 0)
    return connect(version, client_id, flags=flags, props=LASTING if version == 5 else (), **more)


# -- who may go on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5])
@on_uvloop
async def test_session_present(tmp_path, version):
    """There is none at first; it is there after the connection broke; a clean start ends it."""
    async with listening(tmp_path) as gateway:
        present = []
        for clean in (False, False, True, False):
            async with client(gateway, lasting(version=version, clean=clean)) as device:
                present.append(device.present)
            await away(gateway)
        # MQTT 5 asks for a lasting session with its expiry, 3.1.1 by not starting clean.
        assert present == [False, True, False, version == 5]


@on_uvloop
async def test_session_without_expiry(tmp_path):
    """Without an expiry interval the session ends with the connection, and DISCONNECT can end a lasting one."""
    async with listening(tmp_path) as gateway:
        for hello, goodbye in (
            (connect(5, "a", flags=0), b""),
            (lasting("b", version=5), b"\xe0\x07\0\x05\x11\0\0\0\0"),
        ):
            async with client(gateway, hello) as device:
                await device.send(goodbye)
            await away(gateway)
            async with client(gateway, hello) as device:
                assert not device.present
            await away(gateway)


@on_uvloop
async def test_disconnect_makes_a_session_last(tmp_path):
    """What CONNECT did not ask for DISCONNECT cannot: a protocol error."""
    async with listening(tmp_path) as gateway, client(gateway, connect(5, "a")) as device:
        await device.send(b"\xe0\x07\0\x05\x11\0\0\0\x09")
        first_byte, body = await device.take()
        assert (first_byte, body[0]) == (0xE0, 0x82)


@pytest.mark.slow
@on_uvloop
async def test_session_expires(tmp_path):
    """After its expiry interval it is gone; session_expiry_max bounds what clients ask for."""
    async with listening(tmp_path, session_expiry_max="1s") as gateway:
        for version in (4, 5):
            async with client(gateway, lasting(version=version)):
                pass
            assert gateway.source.statistics()["sessions"] == 1
            await until(lambda: gateway.source.statistics()["sessions"] == 0, "it has expired")
            async with client(gateway, lasting(version=version)) as device:
                assert not device.present
            await until(lambda: gateway.source.statistics()["sessions"] == 0, "it has expired")


@on_uvloop
async def test_too_many_sessions(tmp_path):
    """The client that has been away longest loses its session, counted."""
    async with listening(tmp_path, sessions_max=2) as gateway:
        for name in "abc":
            async with client(gateway, lasting(name)):
                pass
            await away(gateway)
        assert gateway.source.statistics()["sessions_evicted"] == 1
        for name, present in (("c", True), ("b", True), ("a", False)):
            async with client(gateway, lasting(name)) as device:
                assert device.present == present
            await away(gateway)


@on_uvloop
async def test_session_taken_over_by_another_connection(tmp_path):
    """The newer connection goes on with what the older one left unreleased."""
    async with listening(tmp_path) as gateway, client(gateway, lasting()) as older:
        await older.deliver(1, b"once")
        async with client(gateway, lasting()) as newer:
            assert newer.present
            await newer.deliver(1, b"once", dup=True)
            await newer.release(1)
            assert [value for _, value in await gateway.contents()] == [b"once"]


# -- QoS 2 -------------------------------------------------------------------------------------------------------------


@on_uvloop
async def test_duplicate_after_a_broken_connection(tmp_path):
    """It is recorded once; after PUBREL its identifier is free for another message."""
    async with listening(tmp_path) as gateway:
        async with client(gateway, lasting()) as device:
            await device.deliver(7, b"first")
        await away(gateway)
        async with client(gateway, lasting()) as device:
            assert device.present
            await device.deliver(7, b"first", dup=True)
            await device.release(7)
            await device.deliver(7, b"second")
        assert [value for _, value in await gateway.contents()] == [b"first", b"second"]


@on_uvloop
async def test_identifier_of_a_session_that_ended(tmp_path):
    """After a clean start nothing is a duplicate."""
    async with listening(tmp_path) as gateway:
        async with client(gateway, lasting()) as device:
            await device.deliver(7, b"first")
        await away(gateway)
        async with client(gateway, lasting(clean=True)) as device:
            await device.deliver(7, b"second")
        assert [value for _, value in await gateway.contents()] == [b"first", b"second"]


@pytest.mark.parametrize("how", ["stopped", "checkpoint lost", "checkpoint damaged"])
@on_uvloop
async def test_restart_between_publish_and_release(tmp_path, how):
    """The session is there again, what was received is known, what was released is free, also without a checkpoint."""
    async with listening(tmp_path) as gateway, client(gateway, lasting("press/1 ü")) as device:
        for number in (1, 2, 3):
            await device.deliver(number, b"%d" % number)
        await device.release(2)
        await gateway.stop()
    checkpoint = tmp_path / "data" / "mqtt-sessions" / "it.json"
    if how == "checkpoint lost":
        checkpoint.unlink()
    elif how == "checkpoint damaged":
        checkpoint.write_text("{}")
    async with listening(tmp_path) as gateway, client(gateway, lasting("press/1 ü")) as device:
        assert device.present
        assert len(gateway.events.named("checkpoint of sessions was not usable")) == (how == "checkpoint damaged")
        await device.deliver(1, b"1", dup=True)
        await device.deliver(2, b"new")
        await device.deliver(3, b"3", dup=True)
        for number in (1, 2, 3):
            await device.release(number)
        assert [value for _, value in await gateway.contents()] == [b"1", b"2", b"3", b"new"]
        deliveries = [int(dict(row[4])["delivery"]) for row in await gateway.records()]
        assert deliveries == sorted(set(deliveries))


@on_uvloop
async def test_listener_is_replaced_while_the_gateway_runs(tmp_path):
    """As SIGHUP does with one whose configuration changed: its sessions go over to the next."""
    async with listening(tmp_path) as gateway:
        async with client(gateway, lasting()) as device:
            await device.deliver(1, b"once")
            await gateway.stop()
        old = gateway.source
        config = old.config.model_copy(update={"receive_maximum": 5})
        gateway.source = create("it", config, SourceContext(gateway.engine, gateway.engine.config, old._logger))
        await gateway.source.start()
        async with client(gateway, lasting()) as device:
            assert device.present
            await device.deliver(1, b"once", dup=True)
            await device.deliver(2, b"another")
        assert [value for _, value in await gateway.contents()] == [b"once", b"another"]
        await gateway.source.stop()
        gateway.source = old


@on_uvloop
async def test_clients_that_come_and_go(tmp_path, monkeypatch):
    """What waits for expiries and delays does not grow with their number."""
    monkeypatch.setattr("gateway_adapters.mqtt.sessions.STALE_DUE_MAX", 10)
    monkeypatch.setattr("gateway_adapters.mqtt.wills.REVOKED_MAX", 10)
    async with listening(tmp_path) as gateway:
        for _ in range(40):
            async with client(gateway, with_will(3_600)):
                pass
            await away(gateway)
        assert len(gateway.source.sessions._due) <= 13
        assert len(gateway.source._wills._delayed) <= 13
        assert gateway.source.statistics()["wills_delayed"] == 1


@on_uvloop
async def test_session_is_on_disk_before_the_client_knows(tmp_path):
    """While the writer does not run a lasting session is not accepted; one without expiry is."""
    settings = {"bind": "127.0.0.1:0", "routes": ROUTES}
    async with running(tmp_path / "data", create, "listeners", settings, engine_starts=False) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(lasting("slow") + publish("plant/a", b"x", qos=1, packet_id=1))
        await until(lambda: gateway.source.statistics()["sessions"] == 1, "it is asked for")
        async with client(gateway, connect(4, "quick")) as device:
            await device.settled()
            assert gateway.source.statistics()["records"] == 0
            gateway.engine.start()
            assert await reader.readexactly(8) == b"\x20\x02\0\0" + b"\x40\x02\0\1"
        writer.close()


@pytest.mark.integration
@pytest.mark.parametrize("version", [paho.MQTTv311, paho.MQTTv5])
@on_uvloop
async def test_paho_with_qos_2(tmp_path, version):
    """paho publishes with QoS 2 as fast as it can; everything is recorded once, in order."""

    def publish_all(port: int) -> None:
        device = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="p", protocol=version)
        device.connect("127.0.0.1", port)
        device.loop_start()
        for info in [device.publish("plant/p", b"%d" % number, qos=2) for number in range(500)]:
            info.wait_for_publish(30)
        device.disconnect()
        device.loop_stop()

    async with listening(tmp_path) as gateway:
        await asyncio.to_thread(publish_all, gateway.port)
        assert [value for _, value in await gateway.contents()] == [b"%d" % number for number in range(500)]


# -- wills -------------------------------------------------------------------------------------------------------------


def with_will(delay_s: int, *, qos: int = 1, clean: bool = False) -> bytes:
    rest = properties(b"\x18" + delay_s.to_bytes(4, "big")) + text("plant/will") + binary(b"gone")
    return lasting(version=5, clean=clean, flags=0x04 | qos << 3, rest=rest)


@pytest.mark.parametrize("clean", [False, True])
@on_uvloop
async def test_client_comes_back_within_the_delay_of_its_will(tmp_path, clean):
    """It has not died, so its will is revoked; a clean start ends the session, and with it the delay."""
    async with listening(tmp_path) as gateway:
        async with client(gateway, with_will(3_600, qos=2)):
            pass
        await away(gateway)
        assert gateway.source.statistics()["wills_delayed"] == 1
        assert await gateway.contents() == []
        async with client(gateway, lasting(version=5, clean=clean)) as device:
            assert device.present != clean
            await device.send(DISCONNECT)
        await away(gateway)
        rows = await gateway.records()
        assert [(row[3], dict(row[4])["qos"]) for row in rows] == ([(b"gone", b"2")] if clean else [])


@pytest.mark.slow
@on_uvloop
async def test_delay_of_a_will_passes(tmp_path):
    """Then it is recorded, though the session goes on."""
    async with listening(tmp_path) as gateway:
        async with client(gateway, with_will(1)):
            pass
        await until(lambda: gateway.source.statistics()["wills"] == 1, "it is recorded")
        assert [value for _, value in await gateway.contents()] == [b"gone"]
        async with client(gateway, lasting(version=5)) as device:
            assert device.present


@on_uvloop
async def test_gateway_stops_while_a_will_is_delayed(tmp_path):
    """Its client has died already: it is recorded."""
    async with listening(tmp_path) as gateway:
        async with client(gateway, with_will(3_600)):
            pass
        await away(gateway)
        await gateway.stop()
        assert [value for _, value in await gateway.contents()] == [b"gone"]
