"""MQTT clients of others, each made to publish the same over any transport that it knows."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import gmqtt
import paho.mqtt.client as paho

from tests.integration.peers import find, missing

ROOT = Path(__file__).parents[2]
MQTT_JS = ROOT / "build" / "mqtt-js"
TIMEOUT_S = 60
QOS = (0, 1, 2)
COUNT = 20


@dataclass(frozen=True)
class Target:
    """Where to publish and how: ``transport`` is "tcp", "websocket" or "unix"; ``ca`` says that it is over TLS."""

    port: int
    version: int
    transport: str = "tcp"
    path: str = ""  # of a Unix socket
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    username: str | None = None
    password: str | None = None
    topic: str = "plant/x"

    @property
    def context(self) -> ssl.SSLContext | None:
        if self.ca is None:
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


class Refused(Exception):
    """The client ended with an error; its text is what the client said."""


def payloads() -> set[bytes]:
    """What every publisher publishes."""
    return {b"%d-%d" % (qos, number) for qos in QOS for number in range(COUNT)}


def mosquitto(target: Target) -> None:
    """Debian's mosquitto_pub; once for each QoS."""
    command = [find("mosquitto_pub"), "-V", "mqttv5" if target.version == 5 else "mqttv311", "-t", target.topic, "-l"]
    command += ["--unix", target.path] if target.path else ["-h", "127.0.0.1", "-p", str(target.port)]
    for option, value in (("--cafile", target.ca), ("--cert", target.certificate), ("--key", target.key),
                          ("-u", target.username), ("-P", target.password)):  # fmt: skip
        command += [option, value] if value is not None else []
    for qos in QOS:
        lines = b"".join(b"%d-%d\n" % (qos, number) for number in range(COUNT))
        done = subprocess.run(
            [*command, "-q", str(qos)], input=lines, capture_output=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode or done.stderr:
            raise Refused(done.stderr.decode())


def with_paho(target: Target) -> None:
    """paho's client, with its own thread."""
    transport = "websockets" if target.transport == "websocket" else target.transport
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2, client_id="paho", protocol=paho.MQTTProtocolVersion(target.version),
        transport=transport, reconnect_on_failure=False,
    )  # fmt: skip
    refused: list[str] = []
    client.on_connect = lambda _c, _u, _f, reason, _p: refused.append(str(reason)) if reason.is_failure else None
    client.username_pw_set(target.username, target.password)
    if target.context is not None:
        client.tls_set_context(target.context)
    try:
        client.connect(target.path or "127.0.0.1", target.port or 1883)
    except OSError as error:
        raise Refused(str(error)) from error
    client.loop_start()
    try:
        infos = [client.publish(target.topic, f"{qos}-{number}", qos) for qos in QOS for number in range(COUNT)]
        while not all(info.is_published() for info in infos) and not refused:
            infos[-1].wait_for_publish(0.05)
    except RuntimeError as error:
        raise Refused(f"{error} {refused}") from error
    finally:
        client.disconnect()
        client.loop_stop()
    if refused:
        raise Refused(refused[0])


def with_aiomqtt(target: Target) -> None:
    """aiomqtt, on asyncio's own loop."""

    async def publish() -> None:
        client = aiomqtt.Client(
            target.path or "127.0.0.1", target.port or 1883, protocol=aiomqtt.ProtocolVersion(target.version),
            username=target.username, password=target.password, tls_context=target.context,
            transport="websockets" if target.transport == "websocket" else target.transport,
        )  # fmt: skip
        async with client:
            for qos in QOS:
                for number in range(COUNT):
                    await client.publish(target.topic, f"{qos}-{number}", qos)

    try:
        asyncio.run(publish())
    except aiomqtt.MqttError as error:
        raise Refused(str(error)) from error


def with_gmqtt(target: Target) -> None:
    """gmqtt, which writes MQTT by itself and is no relative of paho."""

    async def publish() -> None:
        client = gmqtt.Client("gmqtt")
        client.set_config({"reconnect_retries": 0})
        if target.username is not None:
            client.set_auth_credentials(target.username, target.password)
        try:
            await client.connect("127.0.0.1", target.port, ssl=target.context or False, version=target.version)
            for qos in QOS:
                for number in range(COUNT):
                    client.publish(target.topic, f"{qos}-{number}", qos=qos)
            await client._persistent_storage.wait_empty()
            await client.disconnect()
        finally:
            await client._connection.close()  # which it leaves open when it was refused

    try:
        asyncio.run(asyncio.wait_for(publish(), TIMEOUT_S))
    except (gmqtt.mqtt.handler.MQTTConnectError, OSError) as error:
        raise Refused(str(error)) from error


def mqtt_js(target: Target) -> None:
    """MQTT.js on Node."""
    find("node")
    if not (MQTT_JS / "description.json").exists():
        find("npm")
        script = subprocess.run(
            [str(ROOT / ".ci" / "mqtt-js")], capture_output=True, text=True, timeout=300, check=False
        )
        if script.returncode:
            missing("MQTT.js", f"npm brings it; now it says: {script.stderr[-500:]}")
    scheme = {("tcp", False): "mqtt", ("tcp", True): "mqtts", ("websocket", False): "ws", ("websocket", True): "wss"}
    job = {
        "url": f"{scheme[target.transport, target.ca is not None]}://localhost:{target.port}",
        "version": target.version, "username": target.username, "password": target.password, "client": "mqtt-js",
        "ca": target.ca, "certificate": target.certificate, "key": target.key,
        "topic": target.topic, "qos": QOS, "count": COUNT,
    }  # fmt: skip
    script_path = Path(__file__).with_name("mqtt_js_publish.cjs")
    done = subprocess.run(
        ["node", str(script_path), json.dumps(job)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NODE_PATH": str(MQTT_JS / "node_modules")},
    )  # fmt: skip
    if done.returncode:
        raise Refused(done.stderr)


PUBLISHERS: dict[str, tuple[Callable[[Target], None], tuple[str, ...]]] = {
    "mosquitto_pub": (mosquitto, ("tcp", "unix")),
    "paho": (with_paho, ("tcp", "websocket", "unix")),
    "aiomqtt": (with_aiomqtt, ("tcp", "websocket", "unix")),
    "gmqtt": (with_gmqtt, ("tcp",)),
    "MQTT.js": (mqtt_js, ("tcp", "websocket")),
}
