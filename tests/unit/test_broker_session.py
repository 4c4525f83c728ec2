"""A subscriber's half of its session, where the disk does not take what has to be written of it."""

from __future__ import annotations

import asyncio

import pytest
from gateway_adapters.mqtt.broker_session import NEVER_S, BrokerSession
from gateway_adapters.mqtt.session_state import delivery_origin
from gateway_native import mqtt

from gateway.config import SESSIONS_STREAM
from gateway.errors import ConfigError, GatewayError
from tests.support.session_engine import Host, session_engine, subscriber


def session_of(recording, client_id="recorder"):
    routes = mqtt.Routes([(b"plant/#", recording.partition("telemetry"))])
    group = mqtt.Group(
        recording.ring("it"), routes, client=True, packet_bytes_max=1_000, record_bytes_max=1_000, kept_bytes_max=10_000
    )
    engine = session_engine(recording, recording.directory)
    return BrokerSession(Host(), client_id, engine, group, subscriber(engine))


def journal(recording):
    return [row[3] for row in recording.records(SESSIONS_STREAM)]


def test_full_disk(recording):
    """Nobody connects with a session that is not on disk; once there is room it begins, and it begins only once."""
    recording.full_partition(SESSIONS_STREAM)

    async def run():
        session = session_of(recording)
        await session.start()
        with pytest.raises(GatewayError, match="cannot be written"):
            await session.prepare()
        recording.make_room(SESSIONS_STREAM)
        await session.prepare()
        await session.prepare()
        await session.stop()

    asyncio.run(run())
    assert journal(recording)[1:] == [b"end %d\nopen %d" % (delivery_origin("it"), NEVER_S)]


def test_full_disk_behind_connack(recording):
    """The broker has no session, and that cannot be written down: nothing is subscribed to, and it is written later."""

    async def run():
        session = session_of(recording)
        await session.start()
        await session.prepare()
        recording.flush()
        recording.writer.roll(recording.partition(SESSIONS_STREAM))
        recording.writer.reserve_bytes = 1 << 60
        session.attach(present=False)
        with pytest.raises(GatewayError, match="cannot be written"):
            await session.settle()
        recording.make_room(SESSIONS_STREAM)
        await session.prepare()
        session.attach(present=True)
        await session.settle()
        await session.stop()

    recording.partition(SESSIONS_STREAM, refuse_when_full=True)
    asyncio.run(run())
    assert len(journal(recording)) == 2


def test_client_id_that_is_too_long(recording):
    """It is a key in the log, so it is bounded."""
    with pytest.raises(ConfigError, match="at most 1024 bytes"):
        session_of(recording, "x" * 1_025)
