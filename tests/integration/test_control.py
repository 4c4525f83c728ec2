"""The control plane at a real Mosquitto: what it tells, what it takes, and that no broker holds up recording."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import av
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.app import App
from gateway.config import from_dict
from gateway.simulate.camera import CameraServer, ListFeed
from tests.integration.peers import Mosquitto, find, free_port, mosquitto, mosquitto_pub
from tests.pictures import encode
from tests.support.gateway import on_uvloop, read_stream, until
from tests.support.gateway_process import GatewayProcess

pytestmark = pytest.mark.integration

TOPIC = "gateway/test"
PAUSE = '{"command": "pause", "source": "devices"}'


@asynccontextmanager
async def gateway(
    tmp_path: Path, broker: int, control: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[App]:
    """A whole gateway with a listener and a control plane."""
    port = free_port()
    document: dict[str, Any] = {
        "data": str(tmp_path / "data"),
        "site": {"name": "test"},
        "mqtt": {
            "listeners": {
                "devices": {"bind": f"127.0.0.1:{port}", "routes": [{"filter": "#", "stream": "telemetry"}]},
            }
        },
        "control": {
            "url": f"mqtt://127.0.0.1:{broker}",
            "statistics_interval": "1s",
            "reconnect_min": "100ms",
            "reconnect_max": "300ms",
            "keepalive": "2s",
            **(control or {}),
        },
        **more,
    }
    app = App(from_dict(document))
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


class Watch:
    """Everything below the gateway's topic, as another client of the broker sees it."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self.seen: list[aiomqtt.Message] = []

    async def follow(self) -> None:
        async for message in self._client.messages:
            self.seen.append(message)

    def payloads(self, topic: str) -> list[bytes]:
        return [message.payload for message in self.seen if str(message.topic) == topic]

    def reports(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(payload) for payload in self.payloads(topic)]

    async def ask(self, *, wanted: int = 1, **request: Any) -> dict[str, Any]:
        """Publish a request and return its answer."""
        before = len(self.payloads(f"{TOPIC}/answer"))
        await self._client.publish(f"{TOPIC}/command", json.dumps(request), qos=1)
        await until(lambda: len(self.payloads(f"{TOPIC}/answer")) >= before + wanted, f"an answer to {request}")
        return self.reports(f"{TOPIC}/answer")[before]


@asynccontextmanager
async def watching(port: int) -> AsyncIterator[Watch]:
    async with aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        watch = Watch(client)
        await client.subscribe(f"{TOPIC}/#", qos=1)
        await client.subscribe("elsewhere", qos=1)
        following = asyncio.create_task(watch.follow())
        try:
            yield watch
        finally:
            following.cancel()
            await asyncio.wait([following])


async def connected(app: App, state: str = "connected") -> None:
    await until(lambda: app.statistics()["control"]["state"] == state, f"the control plane is {state}")


def counter(app: App, name: str) -> Any:
    return app.statistics()["control"][name]


def status_now(port: int) -> bytes:
    """What is retained as the status."""
    command = [find("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(port), "-t", f"{TOPIC}/status", "-C", "1", "-W", "5"]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).stdout.strip()


async def pub(port: int, *arguments: str) -> None:
    done = await asyncio.to_thread(mosquitto_pub, port, *arguments)
    assert done.returncode == 0, done.stderr


@on_uvloop
async def test_status_and_statistics(tmp_path: Path) -> None:
    """Online is there for whoever comes later, statistics come again and again, a clean end says offline."""
    with mosquitto(tmp_path / "broker") as broker:
        async with gateway(tmp_path, broker.port) as app:
            await connected(app)
            async with watching(broker.port) as watch:
                await until(lambda: watch.payloads(f"{TOPIC}/status") == [b"online"], "the status is retained")
                assert watch.seen[0].retain
                device = app.sources["devices"].config.port  # type: ignore[attr-defined]
                await pub(device, "-q", "1", "-t", "plant/a", "-m", "1")
                await until(lambda: len(watch.payloads(f"{TOPIC}/statistics")) >= 2, "statistics come repeatedly")
                await until(
                    lambda: watch.reports(f"{TOPIC}/statistics")[-1]["sources"]["devices"]["accepted"] == 1,
                    "they tell of the device",
                )
                report = watch.reports(f"{TOPIC}/statistics")[-1]
                assert report["site"] == "test"
                assert report["sources"]["devices"]["state"] == "listening"
                assert report["streams"]["telemetry"]["durable_offset"] == 1
                assert report["control"]["state"] == "connected"
                assert not any(message.retain for message in watch.seen[1:])
                await app.stop()
                await until(lambda: watch.payloads(f"{TOPIC}/status") == [b"online", b"offline"], "it says goodbye")
            async with watching(broker.port) as late:
                await until(lambda: late.payloads(f"{TOPIC}/status") == [b"offline"], "offline is retained")


@on_uvloop
async def test_killed_gateway(tmp_path: Path) -> None:
    """kill -9: the broker itself says offline, by the last will."""
    with mosquitto(tmp_path / "broker") as broker:
        extra = f'[control]\nurl = "mqtt://127.0.0.1:{broker.port}"\ntopic = "{TOPIC}"\n'
        async with watching(broker.port) as watch:
            with GatewayProcess(tmp_path, extra_toml=extra) as process:
                await asyncio.to_thread(process.start)
                await until(lambda: watch.payloads(f"{TOPIC}/status") == [b"online"], "it is online")
                process.kill()
                await until(lambda: watch.payloads(f"{TOPIC}/status") == [b"online", b"offline"], "its will is heard")


@on_uvloop
async def test_commands_that_nobody_allowed(tmp_path: Path) -> None:
    """Without `commands = true` a request is not even received."""
    with mosquitto(tmp_path / "broker") as broker:
        async with gateway(tmp_path, broker.port) as app, watching(broker.port) as watch:
            await connected(app)
            await pub(
                broker.port, "-q", "1", "-t", f"{TOPIC}/command", "-m", '{"command": "pause", "source": "devices"}'
            )
            seen = len(watch.payloads(f"{TOPIC}/statistics"))
            await until(lambda: len(watch.payloads(f"{TOPIC}/statistics")) >= seen + 2, "some time has passed")
            assert watch.payloads(f"{TOPIC}/answer") == []
            assert (counter(app, "commands"), counter(app, "commands_refused")) == (0, 0)
            assert not app.held


@on_uvloop
async def test_pause_and_resume_of_a_listener(tmp_path: Path) -> None:
    """Paused, a device stays connected and unacknowledged, beyond its keep-alive; resumed, nothing is missing."""
    with mosquitto(tmp_path / "broker") as broker:
        async with gateway(tmp_path, broker.port, {"commands": True}) as app, watching(broker.port) as watch:
            await connected(app)
            port = app.sources["devices"].config.port  # type: ignore[attr-defined]
            device = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="device")
            device.connect("127.0.0.1", port, keepalive=1)
            await until(lambda: device.loop(0.01) == 0 and device.is_connected(), "the device is connected")
            assert await watch.ask(id=1, command="pause", source="devices") == {
                "id": 1, "command": "pause", "source": "devices", "ok": True, "paused": True,
            }  # fmt: skip
            assert (await watch.ask(id=2, command="pause", source="devices"))["paused"], "twice is once"
            message = device.publish("plant/a", b"held back", qos=1)
            published = len(watch.payloads(f"{TOPIC}/statistics"))
            # Three reports are three seconds: twice the keep-alive that MQTT grants this device.
            await until(lambda: len(watch.payloads(f"{TOPIC}/statistics")) >= published + 3, "time has passed")
            statistics = app.sources["devices"].statistics()
            assert statistics["state"] == "paused"
            assert statistics["connections"] == 1
            assert statistics["timeouts"] == 0
            assert not message.is_published()
            assert (await watch.ask(id=3, command="status"))["sources"]["devices"] == {
                "kind": "mqtt.listener", "state": "paused", "paused": True,
            }  # fmt: skip
            assert (await watch.ask(id=4, command="resume", source="devices"))["ok"]
            await until(lambda: device.loop(0.01) == 0 and message.is_published(), "it is acknowledged")
            device.disconnect()
            values = [row[3] for row in await asyncio.to_thread(read_stream, tmp_path / "data", "telemetry")]
            assert values == [b"held back"]
            assert app.sources["devices"].statistics()["accepted"] == 1


@on_uvloop
async def test_pause_of_a_subscriber(tmp_path: Path) -> None:
    """Paused, the broker keeps what is published; the connection outlives the keep-alive; resumed, all of it comes."""
    with mosquitto(tmp_path / "broker") as broker:
        subscriber = {
            "url": f"mqtt://127.0.0.1:{broker.port}",
            "routes": [{"filter": "plant/#", "stream": "telemetry"}],
            "keepalive": "1s",
        }
        mqtt = {"subscribers": {"broker": subscriber}}
        async with gateway(tmp_path, broker.port, {"commands": True}, mqtt=mqtt) as app, watching(broker.port) as watch:
            await connected(app)
            source = app.sources["broker"]
            await until(lambda: source.statistics()["state"] == "connected", "it is connected")
            assert (await watch.ask(command="pause", source="broker"))["ok"]
            await pub(broker.port, "-q", "1", "-t", "plant/a", "-m", "1")
            published = len(watch.payloads(f"{TOPIC}/statistics"))
            await until(lambda: len(watch.payloads(f"{TOPIC}/statistics")) >= published + 3, "time has passed")
            assert source.statistics()["records"] == 0
            assert source.statistics()["state"] == "paused"
            assert (await watch.ask(command="resume", source="broker"))["ok"]
            await until(lambda: source.statistics()["acknowledged"] == 1, "it is on disk")
            assert source.statistics()["connects"] == 1


@on_uvloop
async def test_snapshot_and_pause_of_a_camera(tmp_path: Path) -> None:
    """The last key frame as a picture of its own; a paused camera records nothing, a resumed one goes on."""
    units = encode(60, width=320, height=240, gop=10)
    server = CameraServer({"gate": ListFeed([unit.nals for unit in units], fps=50, repeat=0)}, port=0)
    await server.start()
    try:
        with mosquitto(tmp_path / "broker") as broker:
            more = {"mqtt": {}, "cameras": {"gate": {"url": server.urls["gate"], "reconnect_min": "200ms"}}}
            async with (
                gateway(tmp_path, broker.port, {"commands": True}, **more) as app,
                watching(broker.port) as watch,
            ):
                await connected(app)
                await until(lambda: app.sources["gate"].statistics()["keyframes"] >= 2, "it records")
                assert await asyncio.to_thread(app.engine.flush)
                answer = await watch.ask(id=1, command="snapshot", source="gate")
                assert answer["ok"], answer
                (jpeg,) = watch.payloads(f"{TOPIC}/snapshot/gate")
                assert (answer["topic"], answer["bytes"]) == (f"{TOPIC}/snapshot/gate", len(jpeg))
                decoder = av.CodecContext.create("mjpeg", "r")
                (picture,) = [*decoder.decode(av.Packet(jpeg)), *decoder.decode(None)]
                assert (picture.width, picture.height) == (answer["width"], answer["height"]) == (320, 240)
                assert (await watch.ask(command="pause", source="gate"))["ok"]
                paused = app.sources["gate"].statistics()
                assert paused["state"] == "stopped"
                assert (await watch.ask(command="resume", source="gate"))["ok"]
                await until(lambda: app.sources["gate"].statistics()["state"] == "recording", "it records again")
                assert not app.held
    finally:
        await server.stop()


@on_uvloop
async def test_requests_that_are_refused(tmp_path: Path) -> None:
    """Nonsense, unknown sources and retained requests are answered with a sentence, and change nothing."""
    with mosquitto(tmp_path / "broker") as broker:
        async with gateway(tmp_path, broker.port, {"commands": True}) as app, watching(broker.port) as watch:
            await connected(app)
            assert (
                "no source 'nobody' here; there are: devices"
                in (await watch.ask(id=1, command="pause", source="nobody"))["error"]
            )
            assert "is one of" in (await watch.ask(id=2, command="reboot"))["error"]
            snapshot = await watch.ask(id=3, command="snapshot", source="devices")
            assert snapshot["statistics"]["state"] == "listening"
            await pub(broker.port, "-t", f"{TOPIC}/command", "-m", "x" * 5_000)
            await until(lambda: len(watch.payloads(f"{TOPIC}/answer")) == 4, "nonsense is answered")
            assert counter(app, "commands_refused") == 3
            # Retained requests come back with every subscription; this one is taken once, as it is published.
            await pub(broker.port, "-r", "-t", f"{TOPIC}/command", "-m", PAUSE)
            await until(lambda: app.held == {"devices"}, "it is taken as it comes")
            assert (await watch.ask(id=5, command="resume", source="devices"))["ok"]
        async with gateway(tmp_path, broker.port, {"commands": True}) as app, watching(broker.port) as watch:
            await until(lambda: counter(app, "commands_refused") == 1, "it is refused")
            await until(lambda: len(watch.payloads(f"{TOPIC}/answer")) >= 1, "and answered")
            assert "retained" in watch.reports(f"{TOPIC}/answer")[-1]["error"]
            assert not app.held


@on_uvloop
async def test_answers_where_they_are_asked_for(tmp_path: Path) -> None:
    """MQTT 5: the response topic and the correlation data; one that leads back to us is not used."""
    with mosquitto(tmp_path / "broker") as broker:
        async with gateway(tmp_path, broker.port, {"commands": True}) as app, watching(broker.port) as watch:
            await connected(app)
            for topic in ("elsewhere", f"{TOPIC}/command"):
                properties = Properties(PacketTypes.PUBLISH)
                properties.ResponseTopic = topic
                properties.CorrelationData = b"\x00\x01"
                async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
                    await client.publish(f"{TOPIC}/command", b'{"command": "status"}', qos=1, properties=properties)
            await until(lambda: len(watch.reports(f"{TOPIC}/answer")) == 1, "the second is answered where answers go")
            await until(lambda: len(watch.reports("elsewhere")) == 1, "the first where it was asked for")
            answers = [message for message in watch.seen if str(message.topic) in ("elsewhere", f"{TOPIC}/answer")]
            assert [message.properties.CorrelationData for message in answers] == [b"\x00\x01"] * 2  # type: ignore[union-attr]
            assert {message.properties.ContentType for message in answers} == {"application/json"}  # type: ignore[union-attr]
            assert (counter(app, "commands"), counter(app, "commands_refused")) == (2, 0)


# -- brokers that are away, frozen, small, or old ----------------------------------------------------------------------


@on_uvloop
async def test_broker_that_is_away(tmp_path: Path) -> None:
    """The gateway starts and records without its broker, and finds it later."""
    broker = Mosquitto(tmp_path / "broker")
    async with gateway(tmp_path, broker.port) as app:
        await connected(app, "waiting")
        assert "refused" in counter(app, "cause").lower()
        port = app.sources["devices"].config.port  # type: ignore[attr-defined]
        await pub(port, "-q", "1", "-t", "plant/a", "-m", "1")
        broker.start()
        try:
            await connected(app)
            broker.stop(kill=True)
            await connected(app, "waiting")
            broker.start()
            await connected(app)
            assert counter(app, "connects") == 2
        finally:
            await app.stop()
            broker.stop()


@on_uvloop
async def test_frozen_broker(tmp_path: Path) -> None:
    """A broker that reads nothing: what waits stays bounded, devices notice nothing, and the end does not wait."""
    with mosquitto(tmp_path / "broker") as broker:
        async with gateway(tmp_path, broker.port) as app:
            await connected(app)
            assert broker._process is not None
            os.kill(broker._process.pid, signal.SIGSTOP)
            try:
                port = app.sources["devices"].config.port  # type: ignore[attr-defined]
                for number in range(5):
                    await pub(port, "-q", "1", "-t", "plant/a", "-m", str(number))
                await until(lambda: counter(app, "failures") >= 1, "it is found out")
                assert counter(app, "waiting") <= 2
                await pub(port, "-q", "1", "-t", "plant/a", "-m", "last")
                await asyncio.wait_for(app.stop(), 20)
            finally:
                os.kill(broker._process.pid, signal.SIGCONT)
        await until(lambda: status_now(broker.port) == b"offline", "nobody said goodbye, so the will is published")
        assert len(read_stream(tmp_path / "data", "telemetry")) == 6


@on_uvloop
async def test_broker_of_small_packets(tmp_path: Path) -> None:
    """What is larger than the broker takes is cut down beforehand: it would end the connection, again and again."""
    with mosquitto(tmp_path / "broker", settings=["max_packet_size 5000"]) as broker:
        routes = [{"filter": f"plant/{number}", "stream": f"stream-{number}"} for number in range(40)]
        mqtt = {"listeners": {"devices": {"bind": f"127.0.0.1:{free_port()}", "routes": routes}}}
        async with gateway(tmp_path, broker.port, mqtt=mqtt) as app, watching(broker.port) as watch:
            await until(lambda: len(watch.payloads(f"{TOPIC}/statistics")) >= 2, "statistics come")
            assert "streams" in watch.reports(f"{TOPIC}/statistics")[-1]["left_out"]
            assert counter(app, "connects") == 1


@on_uvloop
async def test_broker_of_mqtt_3_1_1_only(tmp_path: Path) -> None:
    """A broker that refuses version 5 as the older standard says is spoken to in 3.1.1, at once."""
    levels: list[int] = []
    published: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first_byte, size = await reader.readexactly(2)
                if size & 0x80:  # statistics, whose length takes more bytes; not looked at
                    break
                body = await reader.readexactly(size)
                if first_byte == 0x10:
                    levels.append(body[6])
                    writer.write(b"\x20\x02\x00" + (b"\x00" if body[6] == 4 else b"\x01"))
                elif first_byte & 0xF0 == 0x30:
                    published.append(body)
                    writer.write(b"\x40\x02" + body[-8:-6])  # the packet id before "online"
        except (asyncio.IncompleteReadError, ConnectionError):
            published.append(b"")  # it went away
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with gateway(tmp_path, server.sockets[0].getsockname()[1]):
            await until(lambda: any(body.endswith(b"online") for body in published), "its status comes")
        assert levels[:2] == [5, 4]
    finally:
        server.close()


@on_uvloop
async def test_password(tmp_path: Path) -> None:
    """The right one gets in; the wrong one is a cause that does not contain it."""
    users = tmp_path / "users"
    command = [find("mosquitto_passwd"), "-b", "-c", str(users), "gateway", "S3cr3t!"]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=30)
    with mosquitto(tmp_path / "broker", settings=["allow_anonymous false", f"password_file {users}"]) as broker:
        async with gateway(tmp_path, broker.port, {"username": "gateway", "password": "S3cr3t!"}) as app:
            await connected(app)
        async with gateway(tmp_path, broker.port, {"username": "gateway", "password": "Wr0ng!"}) as app:
            await connected(app, "waiting")
            assert "authori" in counter(app, "cause").lower()
            assert "Wr0ng!" not in repr(app.statistics())


@on_uvloop
async def test_reload_of_the_control_plane(tmp_path: Path) -> None:
    """SIGHUP: another topic is taken on without touching a source; a table that is gone says offline."""
    with mosquitto(tmp_path / "broker") as broker:
        async with gateway(tmp_path, broker.port, {"topic": f"{TOPIC}/old"}) as app, watching(broker.port) as watch:
            await connected(app)
            source = app.sources["devices"]
            control = app.config.control
            assert control is not None
            new = app.config.model_copy(update={"control": control.model_copy(update={"topic": f"{TOPIC}/new"})})
            await app.reload(new)
            await until(lambda: watch.payloads(f"{TOPIC}/new/status") == [b"online"], "the new topic is used")
            assert watch.payloads(f"{TOPIC}/old/status") == [b"online", b"offline"]
            await app.reload(app.config.model_copy(update={"control": None}))
            await until(lambda: watch.payloads(f"{TOPIC}/new/status") == [b"online", b"offline"], "it says goodbye")
            assert app.sources["devices"] is source
            assert "control" not in app.statistics()
