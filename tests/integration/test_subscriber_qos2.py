"""A subscriber that asks for QoS 2: at Mosquitto, at brokers that are scripted, over restarts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from gateway_adapters.mqtt.session_state import checkpoint_path

from tests.integration.mqtt_publishers import Target, payloads, with_paho
from tests.integration.peers import mosquitto
from tests.integration.test_native_subscriber import connected, recorded, scripted, statistic, subscribed
from tests.support.gateway import on_uvloop, read_stream, until
from tests.support.mqtt import pubcomp, publish, pubrec, pubrel

pytestmark = pytest.mark.integration

EXACTLY = {"routes": [{"filter": "plant/#", "stream": "telemetry", "qos": 2}]}


def values(gateway):
    return [row[3] for row in read_stream(gateway.data, "telemetry")]


@on_uvloop
@pytest.mark.parametrize("version", [4, 5])
async def test_paho_through_mosquitto(tmp_path, version):
    """paho publishes with each QoS; what has QoS 2 comes as that, all of it once, and everything is released."""
    with mosquitto(tmp_path / "broker") as broker:
        async with subscribed(tmp_path, broker.port, settings=EXACTLY) as gateway:
            await connected(gateway)
            await asyncio.to_thread(with_paho, Target(broker.port, version))
            await recorded(gateway, len(payloads()))
            await until(lambda: statistic(gateway, "unreleased") == 0, "all are released")
            rows = await gateway.records()
            assert Counter(row[3] for row in rows) == Counter(payloads())
            assert {dict(row[4]).get("qos", b"0") for row in rows if row[3].startswith(b"2-")} == {b"2"}
            assert statistic(gateway, "connects") == 1


@on_uvloop
async def test_session_that_is_not_on_disk(tmp_path):
    """Nothing is sent, CONNECT neither, before it is on disk that the session begins: what comes then belongs to it."""
    async with scripted(4) as broker:
        broker.publishes = publish("plant/a", b"x", qos=2, packet_id=1)
        broker.publishes += publish("plant/a", b"x", qos=2, packet_id=1, dup=True)
        async with subscribed(tmp_path, broker.port, settings=EXACTLY, engine_starts=False) as gateway:
            await until(lambda: statistic(gateway, "state") == "connecting", "it connects")
            await asyncio.sleep(0.1)
            assert broker.received == []
            gateway.engine.start()
            await connected(gateway)
            await until(lambda: broker.received[-2:] == [pubrec(1), pubrec(1)], "both are answered")
            assert values(gateway) == [b"x"]
            assert statistic(gateway, "duplicates") == 1
            assert statistic(gateway, "unreleased") == 1


@on_uvloop
async def test_restart_between_pubrec_and_pubrel(tmp_path):
    """Another process knows what was received: it is not recorded again, and its release frees the identifier."""
    async with scripted(4) as broker:
        broker.publishes = publish("plant/a", b"x", qos=2, packet_id=7)
        async with subscribed(tmp_path, broker.port, settings=EXACTLY) as gateway:
            await until(lambda: broker.received[-1:] == [pubrec(7)], "it is answered")
            await gateway.stop()
        broker.publishes = publish("plant/a", b"x", qos=2, packet_id=7, dup=True) + pubrel(7)
        async with subscribed(tmp_path, broker.port, settings=EXACTLY) as gateway:
            await until(lambda: broker.received[-2:] == [pubrec(7), pubcomp(7)], "it is released")
            assert values(gateway) == [b"x"]
            assert [row[3] for row in read_stream(gateway.data, "__mqtt_sessions")][-1].startswith(b"release 7 ")
            await gateway.stop()
        broker.publishes = publish("plant/a", b"y", qos=2, packet_id=7)
        async with subscribed(tmp_path, broker.port, settings=EXACTLY) as gateway:
            await until(lambda: broker.received[-1:] == [pubrec(7)], "the next one is answered")
            assert values(gateway) == [b"x", b"y"]


@on_uvloop
async def test_broker_without_the_session(tmp_path):
    """What was received in a session that the broker has no more is forgotten, on disk, before anything else comes."""
    async with scripted(4) as broker:
        broker.publishes = publish("plant/a", b"x", qos=2, packet_id=7)
        async with subscribed(tmp_path, broker.port, settings=EXACTLY) as gateway:
            await until(lambda: broker.received[-1:] == [pubrec(7)], "it is answered")
            await gateway.stop()
        broker.present = False
        broker.publishes = publish("plant/a", b"other", qos=2, packet_id=7, dup=True)
        async with subscribed(tmp_path, broker.port, settings=EXACTLY) as gateway:
            await until(lambda: broker.received[-1:] == [pubrec(7)], "it is answered")
            assert values(gateway) == [b"x", b"other"]
            journal = [row[3] for row in read_stream(gateway.data, "__mqtt_sessions")]
            assert [line.split()[0] for line in journal[-1].splitlines()] == [b"end", b"open"]


@on_uvloop
async def test_other_client_id(tmp_path):
    """Under another client id it is another session; the former one is not kept for ever."""
    async with scripted(4) as broker:
        broker.publishes = publish("plant/a", b"x", qos=2, packet_id=7)
        for client_id in ("first", "second"):
            broker.present = False
            async with subscribed(tmp_path, broker.port, settings={**EXACTLY, "client_id": client_id}) as gateway:
                await until(lambda: broker.received[-1:] == [pubrec(7)], "it is answered")
                await gateway.stop()
                broker.received.clear()
            content = json.loads(checkpoint_path(gateway.data, "it").read_text())["content"]
            assert [session[0] for session in content["sessions"]] == [client_id]
        assert values(gateway) == [b"x", b"x"]


@on_uvloop
async def test_qos_2_no_longer_asked_for(tmp_path):
    """What was received while it was is still known, and is released: nothing grows old that might be trusted later."""
    async with scripted(4) as broker:
        broker.publishes = publish("plant/a", b"x", qos=2, packet_id=7)
        async with subscribed(tmp_path, broker.port, settings=EXACTLY) as gateway:
            await until(lambda: broker.received[-1:] == [pubrec(7)], "it is answered")
            await gateway.stop()
        broker.once = True
        broker.publishes = publish("plant/a", b"x", qos=2, packet_id=7, dup=True) + pubrel(7)
        async with subscribed(tmp_path, broker.port) as gateway:
            await until(lambda: pubcomp(7) in broker.received, "it is released")
            assert values(gateway) == [b"x"]
            assert statistic(gateway, "unreleased") == 0
            assert [row[3] for row in read_stream(gateway.data, "__mqtt_sessions")][-1].startswith(b"release 7 ")


@on_uvloop
@pytest.mark.parametrize("settings", [{}, {**EXACTLY, "clean_session": True}])
async def test_session_in_memory(tmp_path, settings):
    """Where QoS 2 was not asked for, or the session ends with its connection, it is kept in memory only."""
    async with scripted(5) as broker:
        broker.publishes = publish("plant/a", b"x", qos=2, packet_id=7, version=5)
        broker.publishes += publish("plant/a", b"x", qos=2, packet_id=7, version=5, dup=True) + pubrel(7) + pubrel(8)
        async with subscribed(tmp_path, broker.port, settings=settings) as gateway:
            expected = [pubrec(7), pubrec(7), pubcomp(7), pubcomp(8, 0x92)]
            await until(lambda: broker.received[-4:] == expected, "all is answered")
            assert [row[3:] for row in read_stream(gateway.data, "telemetry")] == [(b"x", (("qos", b"2"),))]
            await gateway.stop()
        assert not (gateway.data / "__mqtt_sessions-0").exists()


@on_uvloop
async def test_larger_than_the_largest_record(tmp_path):
    """It is told once, though it comes twice, and released like any other."""
    async with scripted(4) as broker:
        broker.publishes = publish("plant/large", b"x" * 200_000, qos=2, packet_id=1)
        broker.publishes += publish("plant/large", b"x" * 200_000, qos=2, packet_id=1, dup=True) + pubrel(1)
        small = {"ring": "1MiB", "largest_record": "64KiB"}
        async with subscribed(tmp_path, broker.port, settings=EXACTLY, limits=small) as gateway:
            await until(lambda: broker.received[-3:] == [pubrec(1), pubrec(1), pubcomp(1)], "it is released")
            assert statistic(gateway, "lost") == 1
