"""Devices that are real MQTT clients publish to the listener: mosquitto_pub, paho, aiomqtt, and bare sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiomqtt
import paho.mqtt.client as paho
import pytest
from gateway_adapters.mqtt.listener import CARRIERS, create
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.errors import SourceError
from gateway.simulate.sensors import BINARY, SensorSimulator
from tests.integration.peers import free_port, mosquitto_pub
from tests.support.gateway import Running, on_uvloop, running, until
from tests.support.mqtt import PINGREQ, PINGRESP, binary, connect, packet, properties, puback, publish, text

ROUTES = [{"filter": "plant/#", "stream": "telemetry"}]
SMALL_RING = {"ring": "1MiB", "largest_record": "64KiB"}


@pytest.fixture(autouse=True, params=CARRIERS)
def carrier(request, monkeypatch) -> str:
    """Every test runs on the intake thread and on the event loop."""
    monkeypatch.setattr("gateway_adapters.mqtt.listener.CARRIER", request.param)
    found: str = request.param
    return found


def listening(tmp_path, *, settings: dict[str, Any] | None = None, **more: Any):
    wanted = {"bind": "127.0.0.1:0", "routes": ROUTES, **(settings or {})}
    return running(tmp_path / "data", create, "listeners", wanted, **more)


class Wire:
    """A TCP connection without any client library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def take(self) -> tuple[int, bytes]:
        """The next packet: first byte and body."""
        head = await self.reader.readexactly(2)
        size, shift, last = head[1] & 0x7F, 7, head[1]
        while last & 0x80:
            last = (await self.reader.readexactly(1))[0]
            size |= (last & 0x7F) << shift
            shift += 7
        return head[0], await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """Everything until the other side closes, however it does."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := await self.reader.read(65_536):
                received += part
        return received


@contextlib.asynccontextmanager
async def wire(gateway: Running, hello: bytes = b"") -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        found = Wire(reader, writer)
        if hello:
            await found.send(hello)
            first_byte, body = await found.take()
            assert first_byte == 0x20
            assert body[1] == 0, f"refused with 0x{body[1]:02x}"
        yield found
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# -- clients of others -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def deaf(gateway: Running) -> AsyncIterator[asyncio.StreamWriter]:
    """A client that is let in and then reads nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1)
    try:
        writer.write(connect(4, "deaf"))
        await reader.readexactly(4)
        writer.transport.pause_reading()
        yield writer
    finally:
        writer.transport.abort()


@pytest.mark.integration
@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
@on_uvloop
async def test_mosquitto_pub(tmp_path, version, qos):
    """Debian's mosquitto_pub publishes lines from its standard input; all become records, in order."""
    lines = [b"line %d" % number for number in range(500)]
    command = ["-V", version, "-q", qos, "-t", "plant/m", "-l"]
    async with listening(tmp_path) as gateway:
        done = await asyncio.to_thread(mosquitto_pub, gateway.port, *command, stdin=b"\n".join([*lines, b""]))
        assert done.returncode == 0, done.stderr
        await until(lambda: gateway.source.statistics()["records"] == 500, "all lines are taken")
        rows = await gateway.records()
        assert [row[3] for row in rows] == lines
        assert {row[2] for row in rows} == {b"plant/m"}
        assert {row[4] for row in rows} == {() if qos == "0" else (("qos", qos.encode()),)}


@pytest.mark.integration
@on_uvloop
async def test_mosquitto_pub_with_properties(tmp_path):
    """Properties, retain flag and an empty payload of a real MQTT 5 client reach the record."""
    async with listening(tmp_path) as gateway:
        arguments = ["-V", "mqttv5", "-q", "1", "-t", "plant/m", "-n", "-r"]
        for named in ("content-type a/b", "message-expiry-interval 60", "payload-format-indicator 1",
                      "response-topic r", "correlation-data cd", "user-property k ü"):  # fmt: skip
            arguments += ["-D", "publish", *named.split()]
        done = await asyncio.to_thread(mosquitto_pub, gateway.port, *arguments)
        assert done.returncode == 0, done.stderr
        ((*_, value, headers),) = await gateway.records()
        assert value == b""
        assert dict(headers) == {
            "qos": b"1", "retain": b"1", "content-type": b"a/b", "message-expiry": b"60", "payload-format": b"1",
            "response-topic": b"r", "correlation-data": b"Y2Q=", "k": b"%C3%BC",
        }  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("version", [paho.MQTTv311, paho.MQTTv5])
@on_uvloop
async def test_paho(tmp_path, version):
    """paho publishes with QoS 1 as fast as it can, subscribes in vain, stays connected, and disconnects cleanly."""

    def publish_all(port: int) -> tuple[list[int], bool]:
        codes: list[int] = []
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="p", protocol=version)
        client.on_subscribe = lambda _c, _u, _mid, reasons, _p: codes.extend(code.value for code in reasons)
        client.connect("127.0.0.1", port)
        client.loop_start()
        client.subscribe([("plant/#", 1), ("$SYS/#", 0)])
        infos = [client.publish("plant/p", b"%d" % number, qos=1) for number in range(2_000)]
        for info in infos:
            info.wait_for_publish(30)
        client.disconnect()
        client.loop_stop()
        return codes, all(info.is_published() for info in infos)

    async with listening(tmp_path) as gateway:
        codes, published = await asyncio.to_thread(publish_all, gateway.port)
        assert published
        assert codes == ([0x83, 0x83] if version == paho.MQTTv5 else [0x80, 0x80])
        assert [value for _, value in await gateway.contents()] == [b"%d" % number for number in range(2_000)]
        assert gateway.source.statistics()["acknowledged"] == 2_000
        assert gateway.source.statistics()["subscriptions_refused"] == 2
        await until(lambda: gateway.source.statistics()["connections"] == 0, "the client has left")
        assert not gateway.events.named("closed")


@pytest.mark.integration
@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
@on_uvloop
async def test_aiomqtt(tmp_path, version):
    """aiomqtt publishes from many tasks at once."""
    async with listening(tmp_path) as gateway:
        async with aiomqtt.Client("127.0.0.1", gateway.port, protocol=version) as client:
            await asyncio.gather(*(client.publish(f"plant/{number}", b"x", qos=1) for number in range(200)))
        assert {key for key, _ in await gateway.contents()} == {b"plant/%d" % number for number in range(200)}


@pytest.mark.integration
@on_uvloop
async def test_subscriptions_accepted_for_firmware_that_insists(tmp_path):
    """With subscribe = "accept" the asked QoS up to 1 is granted, and nothing is ever delivered."""

    async def reasons(version: aiomqtt.ProtocolVersion) -> list[int]:
        async with aiomqtt.Client("127.0.0.1", gateway.port, protocol=version) as client:
            granted = await client.subscribe([("a/#", 0), ("b/+", 1), ("c", 2)])
            await client.unsubscribe("a/#")
            await client.publish("plant/x", b"x", qos=1)
            assert len(client.messages) == 0
            return [getattr(code, "value", code) for code in granted]

    async with listening(tmp_path, settings={"subscribe": "accept"}) as gateway:
        assert await reasons(aiomqtt.ProtocolVersion.V311) == [0, 1, 1]
        # MQTT 5 options come one by one in aiomqtt, so the wire speaks here.
        async with wire(gateway, connect(5)) as device:
            await device.send(packet(0x82, b"\0\7\0" + text("a/#") + b"\2" + text("bad/#/filter") + b"\0"))
            assert await device.take() == (0x90, b"\0\7\0\1\x8f")
            await device.send(packet(0xA2, b"\0\x08\0" + text("a/#")))
            assert await device.take() == (0xB0, b"\0\x08\0\0")


# -- sessions ----------------------------------------------------------------------------------------------------------


@on_uvloop
async def test_connack_of_mqtt_5_promises_too_much(tmp_path):
    """CONNACK says everything in which this is less than a full broker."""
    settings = {"max_packet": "64KiB", "receive_maximum": 77, "keepalive_max": "100s", "session_expiry_max": "50s"}
    async with listening(tmp_path, settings=settings) as gateway, wire(gateway) as device:
        hello = connect(5, "", keepalive=0, props=[b"\x11\0\0\x0e\x10"])
        await device.send(hello)
        first_byte, body = await device.take()
        assert first_byte == 0x20
        assert body[:2] == b"\0\0"
        told = Properties(PacketTypes.CONNACK)
        told.unpack(body[2:])
        assert (told.ReceiveMaximum, told.MaximumPacketSize, told.TopicAliasMaximum) == (77, 65_536, 16)
        assert (told.ServerKeepAlive, told.SessionExpiryInterval) == (100, 50)
        assert told.AssignedClientIdentifier.startswith("gateway-")
        assert (told.WildcardSubscriptionAvailable, told.SharedSubscriptionAvailable) == (0, 0)
        assert not hasattr(told, "MaximumQoS")


REFUSALS = [
    ("MQTT 3.1", connect(3, name=b"MQIsdp"), b"\x20\x02\0\1"),
    ("an MQTT of the future", connect(6), b"\x20\x03\0\x84\0"),
    ("lasting session without client id", connect(4, "", flags=0), b"\x20\x02\0\2"),
    ("an authentication method", connect(5, props=[b"\x15" + text("SCRAM")]), b"\x20\x03\0\x8c\0"),
    ("a lasting session with a long client id", connect(4, "x" * 1_025, flags=0), b"\x20\x02\0\2"),
    ("a malformed CONNECT", connect(5, flags=3), b"\x20\x03\0\x81\0"),
    ("no CONNECT", PINGREQ, b""),
    ("no MQTT at all", b"GET / HTTP/1.1\r\n\r\n", b""),
    ("another protocol", connect(4, name=b"AMQP"), b""),
]


@pytest.mark.parametrize(("hello", "answer"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS])
@on_uvloop
async def test_connect_that_cannot_be_accepted(tmp_path, hello, answer):
    """Refused with the code that the client's version knows, closed, one line in the log; others are not affected."""
    async with listening(tmp_path) as gateway, wire(gateway, connect(4, "bystander")) as bystander:
        async with wire(gateway) as device:
            await device.send(hello + publish("plant/a", b"must not be recorded"))
            assert await device.rest() == answer
        assert len(gateway.events.named("connection closed")) == 1
        await bystander.send(publish("plant/a", b"ok", qos=1, packet_id=1))
        assert await bystander.take() == (0x40, b"\0\1")
        assert await gateway.contents() == [(b"plant/a", b"ok")]
        assert gateway.source.statistics()["faults"] == 1


@pytest.mark.parametrize("version", [4, 5])
@on_uvloop
async def test_malformed_packet_in_a_session(tmp_path, version):
    """What came before is recorded; MQTT 5 hears the reason; the log names listener, peer, client and cause."""
    async with listening(tmp_path) as gateway:
        async with wire(gateway, connect(version, "d\x1b[31mevil\n")) as device:
            await device.send(publish("plant/a", b"good", version=version))
            await device.send(publish("plant/+", b"bad", version=version))
            answer = await device.rest()
            assert (answer[:1], answer[2:3]) == ((b"\xe0", b"\x81") if version == 5 else (b"", b""))
        ((event, line),) = [seen for seen in gateway.events.seen if "closed" in seen[0]]
        assert "a publish has a topic with + or #" in event
        assert line["source"] == "it"
        assert line["reason"] == "0x81"
        assert line["client"].isprintable()
        assert line["peer"].startswith("127.0.0.1:")
        assert await gateway.contents() == [(b"plant/a", b"good")]


@on_uvloop
async def test_oversized_packet(tmp_path):
    """A packet over max_packet ends its connection with 0x95, while the client is still sending it."""
    async with listening(tmp_path, settings={"max_packet": "1KiB"}) as gateway:
        async with wire(gateway, connect(5)) as device:
            device.writer.write(publish("plant/a", b"x" * 5_000_000, version=5))
            assert (await device.take())[1][0] == 0x95
        assert "a packet is larger than allowed" in gateway.events.seen[-1][0]
        assert await gateway.contents() == []


@on_uvloop
async def test_clients_packet_limit_exceeded(tmp_path):
    """Nothing larger than the client's maximum packet size is sent to it, a refusal neither."""
    async with listening(tmp_path) as gateway:
        async with wire(gateway) as device:
            await device.send(connect(5, props=[b"\x27\0\0\0\x05"]))
            assert await device.rest() == b""
        async with wire(gateway, connect(5, props=[b"\x27\0\0\0\x40"])) as device:
            await device.send(publish("plant/+", b"", version=5))
            first_byte, body = await device.take()
            assert first_byte == 0xE0
            assert len(body) <= 62


@on_uvloop
async def test_second_connect_and_unexpected_packets(tmp_path):
    """CONNECT again, and answers to nothing, are protocol errors."""
    for unexpected in (connect(5), puback(1), b"\x50\x02\0\1", b"\x70\x02\0\1", b"\xf0\x00"):
        async with listening(tmp_path / unexpected.hex()[:8]) as gateway, wire(gateway, connect(5)) as device:
            await device.send(unexpected)
            assert (await device.take())[1][0] == 0x82


@on_uvloop
async def test_client_id_taken_over(tmp_path):
    """The older connection ends with 0x8E and its will is recorded; the newer one stays."""
    async with listening(tmp_path) as gateway:
        will = b"\0" + text("plant/will") + binary(b"gone")
        async with wire(gateway, connect(5, "twin", flags=6, rest=will)) as older:
            async with wire(gateway, connect(5, "twin")) as newer:
                assert (await older.take())[1][0] == 0x8E
                await newer.send(PINGREQ)
                assert await newer.take() == (PINGRESP[0], b"")
                assert gateway.source.statistics()["connections"] == 1
                assert gateway.source.statistics()["taken_over"] == 1
                ((key, value),) = await gateway.contents()
                assert (key, value) == (b"plant/will", b"gone")


@on_uvloop
async def test_too_many_connections(tmp_path):
    """Beyond connections_max a client is told so in its own version; one that comes back under its id gets in."""
    async with listening(tmp_path, settings={"connections_max": 1}) as gateway, wire(gateway, connect(5, "only")):
        for version, answer in ((4, b"\x20\x02\0\3"), (5, b"\x20\x03\0\x97\0")):
            async with wire(gateway) as device:
                await device.send(connect(version, "other"))
                assert await device.rest() == answer
        async with wire(gateway, connect(4, "only")):
            assert gateway.source.statistics()["connections"] == 1
        assert gateway.source.statistics()["refused"] == 2


@on_uvloop
async def test_more_sockets_than_can_be_refused_politely(tmp_path, monkeypatch):
    """Sockets that say nothing are bounded too."""
    monkeypatch.setattr("gateway_adapters.mqtt.listener.REFUSALS_MAX", 2)
    async with listening(tmp_path, settings={"connections_max": 1}) as gateway, contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(wire(gateway))
        await until(lambda: len(gateway.source._connections) == 3, "three sockets are there")
        async with wire(gateway) as device:
            assert await device.rest() == b""
        assert gateway.source.statistics()["refused"] == 1


@pytest.mark.slow
@on_uvloop
async def test_silent_clients(tmp_path):
    """Without CONNECT one goes after connect_timeout, without packets after 1.5 keep-alives; one that pings stays."""
    async with listening(tmp_path, settings={"connect_timeout": "1s"}) as gateway:
        async with (
            wire(gateway) as mute, wire(gateway, connect(5, "sleeper", keepalive=1)) as sleeper,
            wire(gateway, connect(4, "pinger", keepalive=1)) as pinger, wire(gateway, connect(4, "free", keepalive=0)),
        ):  # fmt: skip

            async def ping() -> None:
                while True:
                    await pinger.send(PINGREQ)
                    await asyncio.sleep(0.3)

            pinging = asyncio.create_task(ping())
            assert await mute.rest() == b""
            assert (await sleeper.take())[1][0] == 0x8D
            await asyncio.sleep(1)
            assert gateway.source.statistics()["connections"] == 2
            assert gateway.source.statistics()["timeouts"] == 2
            pinging.cancel()


@pytest.mark.parametrize(
    ("version", "goodbye", "recorded"),
    [(4, b"\xe0\x00", False), (4, b"", True), (5, b"\xe0\x00", False), (5, b"\xe0\x01\x04", True),
     (5, publish("plant/+", version=5), True)],
)  # fmt: skip
@on_uvloop
async def test_will(tmp_path, version, goodbye, recorded):
    """Recorded unless the client says goodbye; MQTT 5 can say goodbye and still want it; a fault is no goodbye."""
    props = properties(b"\x18\0\0\0\x3c", b"\x26" + text("k") + text("v")) if version == 5 else b""
    hello = connect(version, flags=0x2E, rest=props + text("plant/will") + binary(b"gone"))
    async with listening(tmp_path) as gateway:
        async with wire(gateway, hello) as device:
            await device.send(goodbye)
            if goodbye:
                await device.rest()
        await until(lambda: not gateway.source._connections, "the socket is gone")
        rows = await gateway.records()
        assert len(rows) == recorded
        if recorded:
            assert rows[0][2:4] == (b"plant/will", b"gone")
            headers = {"qos": b"1", "retain": b"1", "will": b"1"}
            assert dict(rows[0][4]) == ({**headers, "k": b"v"} if version == 5 else headers)
        assert gateway.source.statistics()["wills"] == recorded


@on_uvloop
async def test_topic_without_route(tmp_path):
    """QoS 0 is counted; QoS 1 hears 0x90 in MQTT 5 and ends an MQTT 3.1.1 connection, the log naming the topic."""
    async with listening(tmp_path) as gateway:
        async with wire(gateway, connect(5)) as device:
            await device.send(
                publish("plant/a", qos=1, packet_id=1, version=5)
                + publish("office/a", qos=1, packet_id=2, version=5)
                + publish("plant/a", qos=1, packet_id=3, version=5)
            )
            assert [await device.take() for _ in range(3)] == [(0x40, b"\0\1"), (0x40, b"\0\2\x90"), (0x40, b"\0\3")]
        async with wire(gateway, connect(4, "old")) as device:
            await device.send(publish("office/b", qos=1, packet_id=1))
            assert await device.rest() == b""
        (line,) = gateway.events.named("no route takes the topic of a publish with QoS 1")
        assert line["topic"] == "office/b"
        assert gateway.source.statistics()["unrouted"] == 2


# -- durability and overload -------------------------------------------------------------------------------------------


@on_uvloop
async def test_puback_before_the_disk(tmp_path):
    """While the writer does not run nothing is acknowledged; then everything is, in order, over several clients."""
    async with listening(tmp_path, engine_starts=False) as gateway, contextlib.AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(wire(gateway, connect(4, f"c{index}"))) for index in range(4)]
        for packet_id in range(1, 101):
            for device in devices:
                await device.send(publish("plant/a", b"x", qos=1, packet_id=packet_id))
        await until(lambda: gateway.source.statistics()["records"] == 400, "everything is in the ring")
        for device in devices:
            await device.send(PINGREQ)
            assert await device.take() == (PINGRESP[0], b""), "something was acknowledged"
        assert gateway.source.statistics()["unacknowledged"] == 400
        gateway.engine.start()
        for device in devices:
            got = [await device.take() for _ in range(100)]
            assert got == [(0x40, packet_id.to_bytes(2, "big")) for packet_id in range(1, 101)]


@on_uvloop
async def test_full_ring_holds_senders_back(tmp_path):
    """With the writer stopped, memory stays bounded and TCP holds the senders; afterwards nothing is missing."""
    count, size = 4_000, 1_000
    async with listening(tmp_path, engine_starts=False, limits=SMALL_RING) as gateway:

        async def flood(name: str, qos: int) -> None:
            async with wire(gateway, connect(4, name)) as device:
                for number in range(count):
                    body = b"%06d" % number + b"." * size
                    await device.send(publish(f"plant/{name}", body, qos=qos, packet_id=number % 65_535 + 1))
                await device.send(PINGREQ)
                while (await device.take())[0] != PINGRESP[0]:
                    pass

        floods = [asyncio.create_task(flood(name, qos)) for name, qos in (("a", 0), ("b", 1), ("c", 0))]
        await until(lambda: gateway.source.statistics()["waiting_for_room"] == 3, "all three wait")
        async with wire(gateway, connect(4, "calm")) as calm:
            await calm.send(PINGREQ)
            assert await calm.take() == (PINGRESP[0], b""), "a client that publishes nothing is held up too"
        assert gateway.source.statistics()["kept_bytes"] < 2**20
        assert not any(task.done() for task in floods)
        gateway.engine.start()
        await asyncio.gather(*floods)
        contents = await gateway.contents()
        for name in (b"a", b"b", b"c"):
            numbers = [int((value or b"")[:6]) for key, value in contents if key == b"plant/" + name]
            assert numbers == list(range(count))
        assert gateway.source.statistics()["lost"] == 0


@on_uvloop
async def test_client_leaves_while_its_packets_wait_for_room(tmp_path):
    """What had arrived is recorded although its sender is gone, and so is its will."""
    async with listening(tmp_path, engine_starts=False, limits=SMALL_RING) as gateway:
        will = text("plant/will") + binary(b"gone")
        async with wire(gateway, connect(4, flags=6, rest=will)) as device:
            device.writer.write(b"".join(publish("plant/a", b"%06d" % index + b"." * 1_000) for index in range(1_100)))
            await until(lambda: gateway.source.statistics()["waiting_for_room"] == 1, "it waits")
            device.writer.transport.abort()
        gateway.engine.start()
        await until(lambda: not gateway.source._connections, "the connection is gone")
        await gateway.source.pause()
        numbers = [int((value or b"")[:6]) for key, value in await gateway.contents() if key == b"plant/a"]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= 900
        assert (b"plant/will", b"gone") in await gateway.contents()


@on_uvloop
async def test_client_that_reads_no_acknowledgements(tmp_path, carrier):
    """What waits to be sent to it is bounded: the gateway stops reading from it, and only from it.

    Its receive buffer stays as large as the kernel made it: in one of a few KiB even the gateway's window updates can
    be dropped, and then it is the kernel that holds the client, in a deadlock of retransmissions.
    """
    async with listening(tmp_path) as gateway, wire(gateway, connect(4, "calm")) as calm, deaf(gateway) as shouter:
        pings = PINGREQ * 50_000

        async def shout() -> None:
            while True:
                shouter.write(pings)
                await shouter.drain()

        def is_held() -> bool:
            if carrier == "intake":
                return bool(gateway.source.statistics()["not_reading"])
            return any(connection._stalled_at is not None for connection in gateway.source._connections)

        shouting = asyncio.create_task(shout())
        try:
            await until(is_held, "it is held")
            await calm.send(publish("plant/a", qos=1, packet_id=1))
            assert await calm.take() == (0x40, b"\0\1")
            if carrier == "intake":
                assert gateway.source.statistics()["unsent_bytes"] < 2**21
            else:
                for connection in gateway.source._connections:
                    assert connection._transport.get_write_buffer_size() < 2**21
            assert not shouting.done()
        finally:
            shouting.cancel()


@on_uvloop
async def test_receive_maximum_exceeded(tmp_path):
    """A client that has more in flight than it was allowed hears 0x93."""
    async with (
        listening(tmp_path, settings={"receive_maximum": 10}, engine_starts=False) as gateway,
        wire(gateway, connect(5)) as device,
    ):
        await device.send(b"".join(publish("plant/a", qos=1, packet_id=index, version=5) for index in range(1, 12)))
        assert (await device.take())[1][0] == 0x93
        gateway.engine.start()
        assert len(await gateway.contents()) == 10


@on_uvloop
async def test_failed_stream(tmp_path):
    """When a stream fails, whoever waits for it is closed with 0x83 and never acknowledged; other streams go on."""
    routes = [{"filter": "broken/#", "stream": "broken"}, *ROUTES]
    (tmp_path / "data").mkdir()
    async with listening(tmp_path, settings={"routes": routes}) as gateway:
        (tmp_path / "data" / "broken-0").write_text("a file where a directory is wanted")
        async with wire(gateway, connect(5, "unlucky")) as unlucky, wire(gateway, connect(4, "lucky")) as lucky:
            await unlucky.send(publish("broken/a", qos=1, packet_id=1, version=5))
            first_byte, body = await unlucky.take()
            assert (first_byte, body[0]) == (0xE0, 0x83)
            assert await unlucky.rest() == b""
            await lucky.send(publish("plant/a", qos=1, packet_id=1))
            assert await lucky.take() == (0x40, b"\0\1")
        assert gateway.events.named("the stream of an unacknowledged publish has failed")[0]["client"] == "unlucky"


# -- start and stop ----------------------------------------------------------------------------------------------------


@on_uvloop
async def test_stop_loses_acknowledgements(tmp_path):
    """Stopping sends every acknowledgement that has become due, and says goodbye to MQTT 5 clients."""
    async with listening(tmp_path, engine_starts=False) as gateway, wire(gateway, connect(5)) as device:
        await device.send(b"".join(publish("plant/a", qos=1, packet_id=index, version=5) for index in range(1, 501)))
        await until(lambda: gateway.source.statistics()["records"] == 500, "everything is in the ring")
        gateway.engine.start()
        received = asyncio.create_task(device.rest())
        await gateway.stop()
        acks = b"".join(puback(index) for index in range(1, 501))
        answer = await received
        assert answer[: len(acks)] == acks
        assert (answer[len(acks)], answer[len(acks) + 2]) == (0xE0, 0x8B)
        assert len(await gateway.contents()) == 500
        assert not gateway.events.named("closed")


@on_uvloop
async def test_will_recorded_because_the_gateway_stops(tmp_path):
    """A device whose gateway stops has not died."""
    async with listening(tmp_path) as gateway:
        async with wire(gateway, connect(4, flags=6, rest=text("plant/will") + binary(b"gone"))):
            await gateway.stop()
        assert await gateway.contents() == []


@on_uvloop
async def test_port_taken(tmp_path):
    """An address that is in use is a sentence with the address and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(SourceError, match=f"it: cannot listen on {bind}: .* Choose another 'bind'"):
            async with listening(tmp_path, settings={"bind": bind}):
                pass


# -- the sensors that users try it with --------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("payload", ["json", "binary"])
@on_uvloop
async def test_simulated_sensors(tmp_path, qos, payload):
    """Every message is recorded, each sensor's in order, and the simulator's counts are right."""
    async with listening(tmp_path) as gateway:
        url = f"mqtt://127.0.0.1:{gateway.port}"
        sensors = SensorSimulator(url, count=60, rate=20_000, qos=qos, payload=payload, connections=3, seed=1)
        await sensors.start()
        await until(lambda: sensors.statistics()["published"] > 2_000, "some were published")
        assert sensors.statistics()["connections"] == 3
        await sensors.stop()
        told = sensors.statistics()
        await until(lambda: gateway.source.statistics()["records"] == told["published"], "all have arrived")
        assert told["acknowledged"] == (told["published"] if qos else 0)
        by_topic: dict[bytes, list[int]] = {}
        for key, value in await gateway.contents():
            number = json.loads(value)["seq"] if payload == "json" else BINARY.unpack(value)[0]
            by_topic.setdefault(key, []).append(number)
        assert len(by_topic) == 60
        assert b"plant/line-1/sensor-1/temperature" in by_topic
        for numbers in by_topic.values():
            assert numbers == list(range(1, len(numbers) + 1))


@on_uvloop
async def test_simulated_sensors_without_a_server(tmp_path):
    """A sentence says that nobody is there."""
    port = free_port()
    with pytest.raises(SourceError, match=f"There is no MQTT server at 127.0.0.1:{port}"):
        await SensorSimulator(f"mqtt://127.0.0.1:{port}").start()


@on_uvloop
async def test_simulated_sensors_outlive_the_gateway(tmp_path):
    """They reconnect, and with QoS 1 send again what was not acknowledged: nothing acknowledged is missing."""
    port = free_port()
    settings = {"bind": f"127.0.0.1:{port}"}
    sensors = SensorSimulator(f"mqtt://127.0.0.1:{port}", count=10, rate=5_000, qos=1, connections=2)
    async with listening(tmp_path / "1", settings=settings) as gateway:
        await sensors.start()
        await until(lambda: sensors.statistics()["acknowledged"] > 500, "some were acknowledged")
        first = len(await gateway.contents())
        assert first > 500
    async with listening(tmp_path / "2", settings=settings) as gateway:
        await until(lambda: sensors.statistics()["reconnects"] >= 2, "they are back")
        before = sensors.statistics()["acknowledged"]
        await until(lambda: sensors.statistics()["acknowledged"] > before + 500, "more were acknowledged")
        await sensors.stop()
        assert sensors.statistics()["acknowledged"] == sensors.statistics()["published"]
