"""Records what real MQTT clients send, into tests/data/mqtt: ``python -m tests.support.capture_mqtt``.

Needs mosquitto_pub, paho-mqtt and gmqtt. The server is one that says yes to everything: it answers CONNECT, PUBLISH,
PUBREL, SUBSCRIBE and PINGREQ in the client's own version, and keeps what it received. Every client publishes MESSAGES;
those that cannot send some part of a message leave that part out.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "mqtt"
# Topic, payload, QoS, retain.
MESSAGES = [
    ("plant/line-1/temperature", b"21.5", 0, False),
    ("plant/line-1/größe", "42 €".encode(), 1, True),
    ("plant/line-2/state", b"", 2, False),
    ("plant/line-2/blob", bytes(range(256)) * 2, 1, False),
    ("plant/line-1/temperature", b"21.6", 2, True),
]
TIMEOUT_S = 20


class Server:
    """Takes one connection and answers as far as a publisher needs it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.version = 4

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                first = await reader.readexactly(1)
                length, head = await self._length(reader)
                body = await reader.readexactly(length)
            except asyncio.IncompleteReadError:
                break
            self.received += first + head + body
            writer.write(self._answer(first[0], body))
            await writer.drain()
        writer.close()

    @staticmethod
    async def _length(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        value, head = 0, b""
        while not head or head[-1] & 0x80:
            head += await reader.readexactly(1)
            value |= (head[-1] & 0x7F) << (7 * (len(head) - 1))
        return value, head

    def _answer(self, first: int, body: bytes) -> bytes:
        kind, qos = first >> 4, first >> 1 & 3
        if kind == 1:
            self.version = body[6]
            # MQTT 5: at most 16 topic aliases, so that clients which use them do.
            return b"\x20\x06\0\0\x03\x22\0\x10" if self.version == 5 else b"\x20\x02\0\0"
        if kind == 3 and qos:
            size = int.from_bytes(body[:2], "big")
            return bytes([0x40 if qos == 1 else 0x50, 2]) + body[2 + size : 4 + size]
        if kind == 6:
            return b"\x70\x02" + body[:2]
        if kind == 8:
            return b"\x90" + (b"\x04" + body[:2] + b"\0\0" if self.version == 5 else b"\x03" + body[:2] + b"\0")
        return b"\xd0\0" if kind == 12 else b""


def capture(name: str, client: Callable[[int], Any]) -> None:
    """Run a client against a new server, in a thread of its own, and keep what it sent."""
    server = Server()

    async def run() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        await asyncio.wait_for(asyncio.to_thread(client, port), TIMEOUT_S)
        await asyncio.sleep(0.2)
        listening.close()

    asyncio.run(run())
    (DATA / f"{name}.bin").write_bytes(server.received)
    print(f"{name}: {len(server.received)} bytes")


def mosquitto(version: str) -> Callable[[int], None]:
    """It sends one message for each line that it reads, all with the same topic and options."""

    def client(port: int) -> None:
        properties = ["-D", "publish", "content-type", "text/plain", "-D", "publish", "user-property", "unit", "°C",
                      "-D", "publish", "topic-alias", "3"] if version == "mqttv5" else []  # fmt: skip
        lines = b"".join(payload + b"\n" for _, payload, _, _ in MESSAGES if payload.isascii() and payload)
        subprocess.run(
            ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-V", version, "-i", "pub", "-t", MESSAGES[0][0],
             "-q", "2", "-r", "-l", *properties],
            input=lines, check=True, timeout=TIMEOUT_S,
        )  # fmt: skip

    return client


def paho(version: int) -> Callable[[int], None]:
    def client(port: int) -> None:
        import paho.mqtt.client as paho_client
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        made = paho_client.Client(paho_client.CallbackAPIVersion.VERSION2, client_id="paho", protocol=version)
        made.username_pw_set("user", "password")
        made.will_set("plant/will", b"gone", qos=1)
        connected = threading.Event()
        made.on_connect = lambda *_: connected.set()
        made.connect("127.0.0.1", port, keepalive=30)
        made.loop_start()
        assert connected.wait(TIMEOUT_S)
        made.subscribe("plant/#", 1)
        for topic, payload, qos, retain in MESSAGES:
            properties = None
            if version == paho_client.MQTTv5:
                properties = Properties(PacketTypes.PUBLISH)
                properties.ContentType = "application/octet-stream"
                properties.UserProperty = [("größe", "XL"), ("a", "b")]
                properties.MessageExpiryInterval = 60
            made.publish(topic, payload, qos, retain, properties).wait_for_publish(TIMEOUT_S)
        made.disconnect()
        made.loop_stop()

    return client


def gmqtt(port: int) -> None:
    import gmqtt as gmqtt_client

    async def run() -> None:
        made = gmqtt_client.Client("gmqtt", session_expiry_interval=60)
        connected = asyncio.Event()
        made.on_connect = lambda *_: connected.set()
        await made.connect("127.0.0.1", port, version=5)
        await connected.wait()
        for topic, payload, qos, retain in MESSAGES:
            made.publish(topic, payload, qos=qos, retain=retain, content_type="x", user_property=("who", "gmqtt"),
                         response_topic="plant/answers", correlation_data=b"\0\1")  # fmt: skip
            await asyncio.sleep(0.1)
        await made.disconnect()

    asyncio.run(run())


def main() -> None:
    DATA.mkdir(parents=True, exist_ok=True)
    capture("mosquitto_pub-3.1.1", mosquitto("mqttv311"))
    capture("mosquitto_pub-5", mosquitto("mqttv5"))
    capture("paho-3.1.1", paho(4))
    capture("paho-5", paho(5))
    capture("gmqtt-5", gmqtt)


if __name__ == "__main__":
    main()
