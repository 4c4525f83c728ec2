"""A subscriber's half of its session at the broker: QoS 2 messages received and not released (MQTT 5 section 4.1).

The broker says in CONNACK whether its half is still there. What is kept here goes on with it, or is dropped with it,
and either is on disk before anything is subscribed to. The machinery is the listener's (sessions.py); nothing expires
here, because only the broker knows when its half does.

Durable when: PUBREC or PUBCOMP leaves. A session that does not outlive its connection, and one of a subscriber that has
never asked for QoS 2, is kept in memory only. Even the latter takes QoS 2: a broker delivers what it had queued for an
older subscription.
"""

from __future__ import annotations

import asyncio

from gateway_native import mqtt
from gateway_native.mqtt_session import PACKET_ID_MAX

from gateway.config import SubscriberConfig
from gateway.errors import ConfigError, GatewayError
from gateway.ingest.engine import Engine
from gateway_adapters.mqtt.headers import escape
from gateway_adapters.mqtt.session_journal import CLIENT_ID_BYTES_MAX, key_of
from gateway_adapters.mqtt.session_state import checkpoint_path
from gateway_adapters.mqtt.sessions import Session, Sessions
from gateway_adapters.mqtt.wills import Host

# MQTT's "does not expire" (section 3.1.2.11.2): 136 years.
NEVER_S = 0xFFFF_FFFF
# There is one; those of former client ids are ended at the start.
SESSIONS_MAX = 1_000


def _is_lasting(name: str, config: SubscriberConfig, engine: Engine) -> bool:
    """Does it outlive this process? Also where QoS 2 was asked for only formerly: what is known must not grow old."""
    formerly = checkpoint_path(engine.config.data, name).exists()
    return config.records_exactly_once or (formerly and not config.clean_session)


class BrokerSession:
    """One, for all connections of one subscriber. Everything runs on the event loop."""

    def __init__(
        self, host: Host, client_id: str, engine: Engine, native: mqtt.Group, config: SubscriberConfig
    ) -> None:
        """Raises ConfigError for a client id that is too long for that."""
        self._client_id = client_id
        self._sessions: Sessions | None = None
        self._session: Session | None = None
        self._beginning: asyncio.Future[bool] | None = None
        if _is_lasting(host.name, config, engine):
            if len(client_id.encode()) > CLIENT_ID_BYTES_MAX:
                raise ConfigError(
                    f"Source {host.name!r}: with QoS 2 a client id has at most {CLIENT_ID_BYTES_MAX} bytes; choose a "
                    "shorter 'client_id'."
                )
            self._sessions = Sessions(host, engine, native, expiry_max_s=NEVER_S, sessions_max=SESSIONS_MAX)
        self._fleeting = mqtt.Session(
            key_of(host.name, client_id), escape(client_id), durable=False, inflight_max=PACKET_ID_MAX
        )

    def __len__(self) -> int:
        """Messages received and not released."""
        return len(self._native)

    @property
    def _native(self) -> mqtt.Session:
        return self._fleeting if self._session is None else self._session.native

    async def start(self) -> None:
        """Restore what an earlier run left. Raises SourceError when the disk does not let us."""
        if self._sessions is not None:
            await self._sessions.start()
            self._sessions.end_others(self._client_id)

    async def stop(self) -> None:
        """Take a checkpoint; the engine has been flushed."""
        if self._sessions is not None:
            await self._sessions.stop()

    def advance(self) -> None:
        """Once a second."""
        if self._sessions is not None:
            self._sessions.advance()

    async def prepare(self) -> None:
        """Before CONNECT; no connection uses it any more. What the broker sends behind CONNACK must belong to a session
        that a restart knows. Raises GatewayError when the disk does not take that."""
        if self._sessions is None:
            return
        await self.settle()  # the last connection may have ended before it did
        if self._session is not None:
            self._sessions.leave(self._session, None)
        self._session, _, written = self._sessions.begin(self._client_id, clean_start=False, expiry_s=NEVER_S)
        await self._until_on_disk(written)

    def attach(self, *, present: bool) -> mqtt.Session:
        """CONNACK has come: what the connection goes on with. present: the broker has its half of the session."""
        if not present:
            self._fleeting.clear()
            if self._sessions is not None:
                self._session, _, self._beginning = self._sessions.begin(
                    self._client_id, clean_start=True, expiry_s=NEVER_S
                )
        return self._native

    async def settle(self) -> None:
        """Before anything is subscribed to: that a new session has begun is on disk. Raises GatewayError."""
        beginning, self._beginning = self._beginning, None
        await self._until_on_disk(beginning)

    async def _until_on_disk(self, written: asyncio.Future[bool] | None) -> None:
        if written is None or await written:
            return
        assert self._sessions is not None
        assert self._session is not None
        self._sessions.remove(self._session)  # it was new, and is written down when it begins again
        raise GatewayError("what is known of the session cannot be written; the log names the stream")
