"""The sessions of a listener's clients, or a subscriber's own: who may go on where it stopped (MQTT 5 section 4.1).

This is not a broker, so all that a session holds is the packet identifiers of QoS 2 publishes that were received and
not released, and a will that waits for its delay. A subscriber has one session, whose other half its broker keeps;
there the gateway is the receiver just the same. A *lasting* session outlives its connection; it also survives a restart
of the gateway, killed or not.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from gateway_native import mqtt

from gateway.errors import ConfigError, SourceError
from gateway.ingest.engine import Engine
from gateway_adapters.mqtt.headers import escape
from gateway_adapters.mqtt.protocol import Will
from gateway_adapters.mqtt.session_journal import Journal, key_of
from gateway_adapters.mqtt.session_state import (
    CheckpointError,
    SessionState,
    State,
    checkpoint_path,
    delivery_origin,
    load,
    restore,
    save,
)
from gateway_adapters.mqtt.wills import DelayedWill, Host, Wills

# How often a checkpoint is taken while there is something new; it may then cost no more than a twentieth of the time.
CHECKPOINT_INTERVAL_S = 10
CHECKPOINT_SHARE = 20
# Sessions copied at one go, before the event loop has its turn.
COPIED_AT_ONCE = 1_000
# Clients that come and go leave entries in the heap of expiries; it is made anew when it has so many too many.
STALE_DUE_MAX = 1_024


class Session:
    """One client's. ``native`` is what the parser knows of it."""

    __slots__ = ("away_since", "client_id", "connected", "due", "expiry_s", "native", "will")

    def __init__(self, client_id: str, native: mqtt.Session, expiry_s: int) -> None:
        self.client_id = client_id
        self.native = native
        self.expiry_s = expiry_s  # after the end of its connection; 0: with it
        self.connected = False
        self.away_since = 0  # tick
        self.due = 0  # tick at which it ends
        self.will: DelayedWill | None = None


class Sessions:
    """All sessions of one source. Everything runs on the event loop, but what reads and writes checkpoints."""

    def __init__(
        self,
        host: Host,
        engine: Engine,
        native: mqtt.Group,
        *,
        expiry_max_s: int,
        sessions_max: int,
        wills: Wills | None = None,
    ) -> None:
        """expiry_max_s: the longest that a client gets. wills: a subscriber's session has none."""
        _check_origin(host.name, [*engine.config.mqtt.listeners, *engine.config.mqtt.subscribers])
        self.expiry_max_s = expiry_max_s
        self._host = host
        self._sessions_max = sessions_max
        self._engine = engine
        self._native = native
        self._wills = wills
        self._data = Path(engine.config.data)
        self._journal = Journal(host.name, engine)
        self._sessions: dict[str, Session] = {}
        self._lasting: dict[str, Session] = {}  # those that the log knows of
        self._away: OrderedDict[str, Session] = OrderedDict()  # without a connection, the longest first
        self._due: list[tuple[int, int, Session]] = []  # a heap: tick, number, session; checked when its time has come
        self._numbers = itertools.count()
        self._offsets: dict[str, int] = {}
        self._started = False
        self._changed = False
        self._saving: asyncio.Task[None] | None = None
        self._save_after = 0  # tick
        native.sessions_partition = self._journal.partition
        native.delivery_next = max(native.delivery_next, delivery_origin(host.name) + 1)

    def statistics(self) -> dict[str, int]:
        """How many there are."""
        return {"sessions": len(self._sessions), "sessions_away": len(self._away)}

    # -- start and stop

    async def start(self) -> None:
        """Restore what an earlier run left. Raises SourceError when the disk does not let us."""
        skip = {camera.stream for camera in self._engine.config.cameras.values()}
        try:
            state, damage = await asyncio.to_thread(_restore, self._data, self._host.name, skip)
        except OSError as error:
            raise SourceError(
                f"the sessions of its clients cannot be read: {error.strerror or error}. Check the data directory.",
                source=self._host.name,
            ) from error
        if damage:
            path = checkpoint_path(self._data, self._host.name)
            self._host.say(
                logging.WARNING, "the checkpoint of sessions was not usable; the whole log was read", file=str(path),
                cause=damage,
            )  # fmt: skip
        self._offsets = state.offsets
        self._native.delivery_next = max(state.delivery_next, self._native.delivery_next)
        for client_id, found in state.sessions.items():
            self._put_back(client_id, found)
        self._evict()
        self._journal.start()
        self._started = True

    def _put_back(self, client_id: str, found: SessionState) -> None:
        session = self._new(client_id, found.expiry_s)
        for packet_id, delivery in sorted(found.unreleased.items()):
            if len(session.native) < self.inflight_max:
                session.native.add(packet_id, delivery)
        self._lasting[client_id] = session
        session.away_since = self._native.tick - found.away_s
        self._wait_for_client(session)

    async def stop(self) -> None:
        """Take the last checkpoint. The engine must have been flushed, so that it is all the next start needs."""
        if not self._started:
            return
        self._started = False
        if self._saving is not None:
            await asyncio.wait([self._saving])
        self._journal.stop()
        if self._has_news():
            await self._save()

    # -- connections

    @property
    def inflight_max(self) -> int:
        """Packet identifiers at once: MQTT 5 clients are told so, 3.1.1 clients cannot be."""
        return 65_535

    def begin(
        self, client_id: str, *, clean_start: bool, expiry_s: int
    ) -> tuple[Session, bool, asyncio.Future[bool] | None]:
        """The session of a new connection, and whether it was there before (section 3.2.2.1.1).

        The third is a future when something has to be on disk before the client may know; its result is False if that
        failed. No other connection may use the client id any more.
        """
        session, lines = self._sessions.get(client_id), []
        present = session is not None and not clean_start
        if session is not None and clean_start:
            lines += self._over(session)
            self.remove(session)
            session = None
        if session is None:
            session = self._new(client_id, expiry_s)
            if expiry_s and not lines:
                lines.append(f"end {self._native.delivery_next - 1}")
        elif session.will is not None:
            assert self._wills is not None
            self._wills.cancel(session.will)
            session.will = None
        self._away.pop(client_id, None)
        session.connected = True
        if expiry_s and (not present or session.expiry_s != expiry_s or not session.native.durable):
            lines.append(f"open {expiry_s}")
        elif not expiry_s and present and session.expiry_s:
            lines.append("open 0")
        session.expiry_s = expiry_s
        if expiry_s:
            if not session.native.durable:
                session.native.durable = True
            self._lasting[client_id] = session
        self._evict()
        return session, present, self._write(session, lines, awaited=True)

    def change_expiry(self, session: Session, expiry_s: int) -> None:
        """DISCONNECT brought another one (section 3.14.2.2.2)."""
        if expiry_s != session.expiry_s:
            session.expiry_s = expiry_s
            self._write(session, [f"open {expiry_s}"], awaited=False)

    def leave(self, session: Session, will: Will | None) -> None:
        """Its connection has ended. A will waits for its delay, but not longer than the session lasts."""
        session.connected = False
        session.away_since = self._native.tick
        present = self._sessions.get(session.client_id) is session
        if will is not None:
            self._leave_will(session, will, present=present)
        if not present:
            return
        if session.expiry_s:
            self._changed = self._changed or session.native.durable
            self._wait_for_client(session)
        else:
            self._end(session)

    def _leave_will(self, session: Session, will: Will, *, present: bool) -> None:
        assert self._wills is not None
        delay_s = will.properties.get("will_delay", 0)
        assert isinstance(delay_s, int)
        if delay_s and session.expiry_s and present:
            session.will = self._wills.delay(will, min(delay_s, session.expiry_s))
        else:
            self._wills.publish(will)

    def end_others(self, client_id: str) -> None:
        """Only this client's is left: a subscriber that is called otherwise now has another session at its broker."""
        for session in [one for one in self._away.values() if one.client_id != client_id]:
            self._end(session)

    def remove(self, session: Session) -> None:
        """It is over, and whoever has its client id next begins anew; the log is told by the caller."""
        self._sessions.pop(session.client_id, None)
        self._away.pop(session.client_id, None)
        self._lasting.pop(session.client_id, None)
        if session.will is not None:
            assert self._wills is not None
            self._wills.hasten(session.will)
            session.will = None

    def advance(self) -> None:
        """Once a second: sessions that have expired, and a checkpoint when it is time."""
        tick = self._native.tick
        while self._due and self._due[0][0] <= tick:
            _, _, session = heapq.heappop(self._due)
            if self._away.get(session.client_id) is session and session.due <= tick:
                self._end(session)
        if tick >= self._save_after and self._saving is None and self._has_news():
            self._saving = asyncio.create_task(self._save(), name=f"mqtt-sessions-{self._host.name}")
            self._saving.add_done_callback(self._saved)

    # -- inside

    def _new(self, client_id: str, expiry_s: int) -> Session:
        native = mqtt.Session(
            key_of(self._host.name, client_id),
            escape(client_id),
            durable=expiry_s > 0,
            inflight_max=self.inflight_max,
        )
        session = self._sessions[client_id] = Session(client_id, native, expiry_s)
        return session

    def _wait_for_client(self, session: Session) -> None:
        session.due = session.away_since + session.expiry_s
        self._away[session.client_id] = session
        if len(self._due) > 2 * len(self._away) + STALE_DUE_MAX:
            self._due = [(one.due, next(self._numbers), one) for one in self._away.values() if one is not session]
            heapq.heapify(self._due)
        heapq.heappush(self._due, (session.due, next(self._numbers), session))

    def _end(self, session: Session) -> None:
        self.remove(session)
        self._write(session, self._over(session), awaited=False)

    def _over(self, session: Session) -> list[str]:
        """What the log has to know of the end of a session; nothing of one that it does not know."""
        return [f"end {self._native.delivery_next - 1}"] if session.native.durable else []

    def _evict(self) -> None:
        """No more than sessions_max: the client that has been away longest loses its session."""
        while len(self._sessions) > self._sessions_max and self._away:
            _, session = self._away.popitem(last=False)
            self._end(session)
            self._host.count("sessions_evicted")
            self._host.say(logging.WARNING, "a session was dropped to make room for another (sessions_max)")

    def _write(self, session: Session, lines: list[str], *, awaited: bool) -> asyncio.Future[bool] | None:
        if not lines:
            return None
        self._changed = True
        return self._journal.write(session.client_id, *lines, awaited=awaited)

    # -- checkpoints

    def _has_news(self) -> bool:
        return self._changed or (bool(self._lasting) and self._offsets_now() != self._offsets)

    def _offsets_now(self) -> dict[str, int]:
        """How far each stream is durable: what lies below needs no second look once the sessions are written."""
        writer = self._engine.writer
        durable = {
            name: writer.partition_state(index)["durable_offset"] for name, index in self._engine.streams.items()
        }
        return {**self._offsets, **durable}

    async def _save(self) -> None:
        """Offsets first, then sessions: whatever becomes durable between the two is found again by a start."""
        began_s = time.monotonic()
        self._changed = False
        state = State(self._native.delivery_next, {}, self._offsets_now())
        for number, session in enumerate(list(self._lasting.values()), 1):
            if session.expiry_s and self._sessions.get(session.client_id) is session:
                away_s = 0 if session.connected else self._native.tick - session.away_since
                state.sessions[session.client_id] = SessionState(
                    session.expiry_s, away_s, dict(session.native.unreleased)
                )
            if number % COPIED_AT_ONCE == 0:
                await asyncio.sleep(0)
        try:
            await asyncio.to_thread(save, self._data, self._host.name, state)
        except OSError as error:
            self._changed = True
            self._host.say(
                logging.ERROR,
                "sessions not written; a restart reads more of the log",
                error=error.strerror or str(error),
            )
        else:
            self._offsets = state.offsets
        took_s = time.monotonic() - began_s
        self._save_after = self._native.tick + max(CHECKPOINT_INTERVAL_S, int(CHECKPOINT_SHARE * took_s))

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._saving = None
        if not task.cancelled() and task.exception() is not None:
            self._host.say(
                logging.ERROR, "sessions not written by a fault of the gateway", error=repr(task.exception())
            )


def _check_origin(name: str, sources: Iterable[str]) -> None:
    """Two names in 65,536 that lead to the same delivery numbers would confuse the sessions of two sources."""
    alike = [other for other in sources if other != name and delivery_origin(other) == delivery_origin(name)]
    if alike:
        raise ConfigError(
            f"The sources {name!r} and {alike[0]!r} cannot be told apart by the numbers of their deliveries; give "
            "one of them another name."
        )


def _restore(data: Path, source: str, skip: set[str]) -> tuple[State, str]:
    """The sessions that an earlier run left, and what was wrong with its checkpoint."""
    damage = ""
    try:
        checkpoint = load(data, source)
    except CheckpointError as error:
        checkpoint, damage = None, str(error)
    return restore(data, source, checkpoint, skip=skip), damage
