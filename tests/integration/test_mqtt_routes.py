"""Routes of a running listener: streams and keys from topics, too many streams, and messages that may be dropped."""

from __future__ import annotations

from typing import Any

from gateway_adapters.mqtt.listener import create

from tests.integration.test_mqtt_listener import SMALL_RING, wire
from tests.support.gateway import on_uvloop, running, until
from tests.support.mqtt import PINGREQ, PINGRESP, connect, puback, publish


def listening(tmp_path, routes: list[dict[str, Any]], *, settings: dict[str, Any] | None = None, **more: Any):
    wanted = {"bind": "127.0.0.1:0", "routes": routes, **(settings or {})}
    return running(tmp_path / "data", create, "listeners", wanted, **more)


@on_uvloop
async def test_streams_from_topics(tmp_path):
    """A stream comes into being with its first message; its records are acknowledged in the order of the publishes."""
    routes = [
        {"filter": "plant/+/alarm", "stream": "alarms", "key": "{2}"},
        {"filter": "plant/+/#", "stream": "line-{2}", "key": "{3}"},
    ]
    async with listening(tmp_path, routes, settings={"client_header": True}) as gateway:
        async with wire(gateway, connect(4, "press ü")) as device:
            sent = [("plant/1/a", b"1"), ("plant/2/a", b"2"), ("plant/2/alarm", b"3"), ("plant/größe/b", b"4")]
            await device.send(
                b"".join(
                    publish(topic, value, qos=1, packet_id=number) for number, (topic, value) in enumerate(sent, 1)
                )
            )
            for number in range(1, 5):
                assert await device.take() == (0x40, puback(number)[2:])
        assert await gateway.contents("line-1") == [(b"a", b"1")]
        assert await gateway.contents("line-2") == [(b"a", b"2")]
        assert await gateway.contents("line-gr.C3.B6.C3.9Fe") == [(b"b", b"4")]
        ((*_, headers),) = await gateway.records("alarms")
        assert headers == (("qos", b"1"), ("client", b"press %C3%BC"))
        assert gateway.source.statistics()["overflowed"] == 0


@on_uvloop
async def test_more_streams_than_allowed(tmp_path):
    """The rest is recorded in overflow, acknowledged, counted, and named in the log."""
    async with listening(tmp_path, [{"filter": "#", "stream": "{1}"}], limits={"max_streams": 5}) as gateway:
        async with wire(gateway, connect()) as device:
            await device.send(
                b"".join(publish(f"s{number}", b"%d" % number, qos=1, packet_id=number) for number in range(1, 11))
            )
            for number in range(1, 11):
                assert await device.take() == (0x40, puback(number)[2:])
        statistics = gateway.source.statistics()
        overflow = [value for _, value in await gateway.contents("overflow")]
        assert len(overflow) == statistics["overflowed"] == statistics["streams_not_opened"] > 0
        assert overflow == [b"%d" % number for number in range(11 - len(overflow), 11)]
        assert await gateway.contents("s1") == [(b"s1", b"1")]


@on_uvloop
async def test_drops_leave_a_gap(tmp_path):
    """While the disk cannot follow, such a route loses messages and holds nobody up; the stream says how many."""
    routes = [{"filter": "noise/#", "stream": "noise", "overload": "drop-newest"}]
    count, size = 2_000, 2_000
    async with listening(tmp_path, routes, engine_starts=False, limits=SMALL_RING) as gateway:
        async with wire(gateway, connect()) as device:
            for number in range(count):
                await device.send(publish("noise/a", b"%06d" % number + b"." * size))
            await device.send(PINGREQ)
            assert await device.take() == (PINGRESP[0], b""), "nobody waits"
        dropped = gateway.source.statistics()["dropped"]
        assert 0 < dropped < count
        gateway.engine.start()

        def gap() -> dict[str, int] | None:
            return next((loss for loss in gateway.engine.gaps.statistics() if loss["reason"] == "overload"), None)

        await until(lambda: gap() is not None and gap()["written"] == dropped, "a gap record of all drops")
        records = await gateway.records("noise")
        assert len([row for row in records if row[2] == b"noise/a"]) == count - dropped
        assert gap()["bytes"] == dropped * (7 + 6 + size)
