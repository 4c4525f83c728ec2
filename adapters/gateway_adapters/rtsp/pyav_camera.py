"""The source "camera" with engine = "pyav": one camera recorded access unit by access unit through libav, on a thread.

    thread:  connect ─► packets ─► Assembler ─► Recorder ─► ring (shared by all cameras) ─► writer thread
               ▲                                                                             │
               └── wait (back-off with jitter) ◄── failure, named in the log ◄── state       ▼ disk

A connect begins a *run*, and so does a jump of the camera's time stamps. Its id is the receive time of its first access
unit in ms since 1970, made larger where needed so that the ids of a camera always grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from gateway.backoff import Backoff
from gateway.clock import NS_PER_S
from gateway.config import CameraConfig
from gateway_adapters.rtsp.access_units import AccessUnit, Assembler
from gateway_adapters.rtsp.failures import Failure, scrub, with_credentials
from gateway_adapters.rtsp.health import Health
from gateway_adapters.rtsp.pyav_session import PyavSession
from gateway_adapters.rtsp.recorder import Recorder
from gateway_adapters.rtsp.status import StatusBoard, board_of

if TYPE_CHECKING:
    from gateway.ingest.source import SourceContext

# How long `pause` waits for the thread. A healthy camera's ends with its next picture; one that is blocked in a silent
# connection is left to its time-out, unable to record anything any more.
PAUSE_TIMEOUT_S = 1.5

# Ring.append holds the GIL throughout, so all camera threads of this engine can share one ring. No other source has
# this name, so no other source's ring.
RING = "(cameras, pyav)"


class PyavCamera:
    """Records one camera into its stream until it is stopped, connecting again whenever it has to."""

    kind = "camera"

    def __init__(self, name: str, config: CameraConfig, context: SourceContext) -> None:
        self.name = name
        self._config = config
        self._context = context
        self._logger = context.logger
        self._password = config.password.get_secret_value() if config.password is not None else None
        self._ended: asyncio.Event | None = None  # set on the event loop when the thread is over; None: there is none
        self._stopping = threading.Event()
        self._taking = threading.Lock()  # held while a record is put, so that `pause` knows none comes after it
        self._recorder: Recorder | None = None
        self._assembler: Assembler | None = None
        self._session_size = (0, 0)
        self._video_only = False
        backoff = Backoff(config.reconnect_min_ns, config.reconnect_max_ns)
        self._health = Health(name, context.logger, backoff)
        self._board: StatusBoard | None = None
        self._stopped = False  # `pause` is over: nothing may be put any more
        self._away_since_ns = 0
        self._past = {"skipped_before_key": 0, "without_pts": 0, "clock_jumps": 0, "parameter_changes": 0}

    async def start(self) -> None:
        """Open the stream and start the thread; a camera that is away does not keep the gateway from starting."""
        engine, stream = self._context.engine, self._config.stream or self.name
        partition = engine.partition(stream)
        self._recorder = Recorder(
            self.name,
            "",
            ring=engine.ring(RING),
            partition=partition,
            record_bytes_max=self._context.config.limits.record_bytes_max,
            logger=self._logger,
            on_loss=lambda unit: self._count_loss(stream, unit),
            refused=lambda: int(engine.writer.partition_state(partition)["refused"]),
        )
        self._stopping.clear()
        self._stopped = False
        self._health.connecting()
        self._board = board_of(engine.data)
        self._board.add(self)
        self._ended = asyncio.Event()
        arguments = (asyncio.get_running_loop(), self._ended)
        threading.Thread(target=self._run, args=arguments, name=f"camera {self.name}", daemon=True).start()

    async def pause(self) -> None:
        """Record nothing more. Returns within about two seconds, also when the camera is silent.

        An access unit that is still arriving is not recorded.
        """
        self._stopping.set()
        ended, self._ended = self._ended, None  # waited for once only
        if ended is None:
            return
        # Not by threads that join: the loop has few, and hundreds of silent cameras would wait for each other.
        try:
            await asyncio.wait_for(ended.wait(), PAUSE_TIMEOUT_S)
        except TimeoutError:
            self._logger.info("camera is silent, its connection is left to time out", extra=self._health.fields())
        with self._taking:  # a record that was being put when the wait ended is in the ring now
            self._stopped = True
        self._health.stopped()

    async def drain(self) -> None:
        """Nobody awaits an acknowledgement."""

    async def stop(self) -> None:
        """End the thread, as `pause` does."""
        await self.pause()
        board, self._board = self._board, None
        if board is not None:
            board.remove(self)

    def statistics(self) -> dict[str, Any]:
        """State and counters since the start; `lost` counts access units that found no room or were too large,
        `refused` those that a full disk refused. state: see `Health`; libav hides lost packets, so never "lossy".
        """
        recorder, assembler = self._recorder, self._assembler
        width, height = (assembler.size if assembler else None) or self._session_size
        return {
            "state": self._health.state(time.monotonic()),
            "engine": "pyav",
            "access_units": recorder.records if recorder else 0,
            "bytes": recorder.bytes if recorder else 0,
            "keyframes": recorder.keyframes if recorder else 0,
            "lost": recorder.lost_access_units if recorder else 0,
            "refused": recorder.refused if recorder else 0,
            "oversized": recorder.oversized if recorder else 0,
            **{name: past + getattr(assembler, name, 0) for name, past in self._past.items()},
            "reconnects": self._health.reconnects,
            "last_error": self._health.last_error,
            "last_unit_ns": recorder.last_unit_ns if recorder else 0,
            "codec": recorder.codec if recorder else "",
            "width": width,
            "height": height,
        }

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
        try:
            self._connect_again_and_again()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

    def _connect_again_and_again(self) -> None:
        while not self._stopping.is_set():
            self._health.connecting()
            began = time.monotonic()
            recorded_before = self._records
            failure = self._session()
            if self._stopping.is_set():
                return
            now, recorded = time.monotonic(), self._records > recorded_before
            if recorded and self._recorder is not None:
                self._away_since_ns = self._recorder.last_unit_ns
            self._stopping.wait(self._health.failed(failure, now=now, run_s=now - began, recorded=recorded))

    @property
    def _records(self) -> int:
        return self._recorder.records if self._recorder else 0

    def _session(self) -> Failure:
        """Connect and record until that ends, and say why it ended."""
        session: PyavSession | None = None
        try:
            session = self._connect()
            self._record(session)
        except Failure as failure:
            return failure
        except Exception as error:
            fields = self._health.fields(error=type(error).__name__)
            self._logger.exception("camera session failed unexpectedly", extra=fields)
            return Failure("failed", f"{type(error).__name__}: {scrub(str(error), self._password)}")
        finally:
            self._keep_counters()
            if session is not None:
                session.close()
        return Failure("closed", "the camera closed the connection")

    def _connect(self) -> PyavSession:
        session = self._open(video_only=self._video_only)
        if session.other_tracks and not self._video_only:
            # With a second track in the session libav derives time stamps from RTCP instead of passing RTP's on.
            skipped = ", ".join(session.other_tracks)
            self._logger.info("tracks other than video are skipped", extra=self._health.fields(skipped=skipped))
            self._video_only = True
            session.close()
            session = self._open(video_only=True)
        return session

    def _open(self, *, video_only: bool) -> PyavSession:
        return PyavSession(
            with_credentials(self._config.url, self._config.username, self._password),
            transport=self._config.transport,
            open_timeout_s=self._config.open_timeout_ns / NS_PER_S,
            read_timeout_s=self._config.read_timeout_ns / NS_PER_S,
            video_only=video_only,
        )

    def _record(self, session: PyavSession) -> None:
        assert self._recorder is not None
        self._recorder.codec = session.codec
        self._session_size = session.size
        self._assembler = assembler = Assembler(session.codec, session.extradata)
        try:
            for packet in session.packets():
                for unit in assembler.add(packet):
                    self._put(unit)
                if self._stopping.is_set():
                    break
        finally:
            for unit in assembler.end():
                self._put(unit)

    def _put(self, unit: AccessUnit) -> None:
        recorder = self._recorder
        assert recorder is not None
        with self._taking:
            if self._stopped:  # `pause` gave up waiting for this thread
                return
            if unit.run_begins:
                recorder.begin_run(unit.received_ns)
            recorder.put(unit)
        if unit.run_begins:
            self._say_recording(recorder, unit)

    def _count_loss(self, stream: str, unit: AccessUnit) -> None:
        self._context.engine.gaps.add(
            stream, self.name, "overload", count=1, bytes=len(unit.value), first_ns=unit.received_ns
        )

    def _keep_counters(self) -> None:
        """Counters of a run that is over."""
        assembler, self._assembler = self._assembler, None
        if assembler is not None:
            self._session_size = assembler.size or self._session_size
            for name in self._past:
                self._past[name] += getattr(assembler, name)

    # -- the log ------------------------------------------------------------------------------------------------------

    def _say_recording(self, recorder: Recorder, unit: AccessUnit) -> None:
        assembler = self._assembler
        width, height = (assembler.size if assembler else None) or self._session_size
        if self._away_since_ns:
            stream = self._config.stream or self.name
            self._context.engine.gaps.add(
                stream,
                self.name,
                "camera-away",
                count=0,
                bytes=0,
                first_ns=self._away_since_ns,
                last_ns=unit.received_ns,
            )
            self._away_since_ns = 0
        self._health.recording(codec=recorder.codec, width=width, height=height, run=recorder.run)
