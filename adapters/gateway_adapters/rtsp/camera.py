"""The source "camera": one RTSP camera recorded access unit by access unit, a thread each (engine = "pyav").

    thread:  connect ─► packets ─► Assembler ─► Recorder ─► ring (shared by all cameras) ─► writer thread
               ▲                                                                             │
               └── wait (back-off with jitter) ◄── failure, named in the log ◄── state       ▼ disk

A connect begins a *run*, and so does a jump of the camera's time stamps. Its id is the receive time of its first access
unit in ms since 1970, made larger where needed so that the ids of a camera always grow.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

from gateway.backoff import Backoff
from gateway.clock import NS_PER_S
from gateway.config import CameraConfig
from gateway_adapters.rtsp.access_units import AccessUnit, Assembler
from gateway_adapters.rtsp.failures import Failure, scrub, with_credentials
from gateway_adapters.rtsp.pyav_session import PyavSession
from gateway_adapters.rtsp.recorder import Recorder

if TYPE_CHECKING:
    from gateway.ingest.source import SourceContext

# How long `pause` waits for the thread. A healthy camera's ends with its next picture; one that is blocked in a silent
# connection is left to its time-out, unable to record anything any more.
PAUSE_TIMEOUT_S = 1.5

# Ring.append holds the GIL throughout, so all camera threads of a gateway can share one ring.
RING = "cameras"


def create(name: str, config: CameraConfig, context: SourceContext) -> Camera:
    """The factory that the entry point names."""
    return Camera(name, config, context)


class Camera:
    """Records one camera into its stream until it is stopped, connecting again whenever it has to."""

    kind = "camera"

    def __init__(self, name: str, config: CameraConfig, context: SourceContext) -> None:
        self.name = name
        self._config = config
        self._context = context
        self._logger = context.logger
        self._password = config.password.get_secret_value() if config.password is not None else None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._taking = threading.Lock()  # held while a record is put, so that `pause` knows none comes after it
        self._recorder: Recorder | None = None
        self._assembler: Assembler | None = None
        self._session_size = (0, 0)
        self._video_only = False
        self._state = "stopped"
        self._last_error = ""
        self._reconnects = 0
        self._failures_alike = 0
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
        self._state = "connecting"
        self._thread = threading.Thread(target=self._run, name=f"camera {self.name}", daemon=True)
        self._thread.start()

    async def pause(self) -> None:
        """Record nothing more. Returns within about two seconds, also when the camera is silent.

        An access unit that is still arriving is not recorded.
        """
        self._stopping.set()
        thread, self._thread = self._thread, None  # waited for once only
        if thread is None:
            return
        await asyncio.to_thread(thread.join, PAUSE_TIMEOUT_S)
        if thread.is_alive():
            self._logger.info("camera is silent, its connection is left to time out", extra=self._fields())
        with self._taking:  # a record that was being put when the wait ended is in the ring now
            self._state = "stopped"

    async def drain(self) -> None:
        """Nobody awaits an acknowledgement."""

    async def stop(self) -> None:
        """End the thread, as `pause` does."""
        await self.pause()

    def statistics(self) -> dict[str, Any]:
        """State and counters since the start; `lost` counts access units that found no room or were too large,
        `refused` those that a full disk refused.

        state: connecting, recording, stopped; or why it is not recording: unauthorized, not_found, refused,
        unreachable, timeout, closed, unsupported, failed.
        """
        recorder, assembler = self._recorder, self._assembler
        width, height = (assembler.size if assembler else None) or self._session_size
        return {
            "state": self._state,
            "access_units": recorder.records if recorder else 0,
            "bytes": recorder.bytes if recorder else 0,
            "keyframes": recorder.keyframes if recorder else 0,
            "lost": recorder.lost_access_units if recorder else 0,
            "refused": recorder.refused if recorder else 0,
            "oversized": recorder.oversized if recorder else 0,
            **{name: past + getattr(assembler, name, 0) for name, past in self._past.items()},
            "reconnects": self._reconnects,
            "last_error": self._last_error,
            "codec": recorder.codec if recorder else "",
            "width": width,
            "height": height,
        }

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(self._config.reconnect_min_ns, self._config.reconnect_max_ns)
        while not self._stopping.is_set():
            self._state = "connecting"
            began = time.monotonic()
            recorded_before = self._records
            failure = self._session()
            if self._stopping.is_set():
                return
            recorded = self._records > recorded_before
            wait_s = backoff.after(time.monotonic() - began if recorded else 0.0)
            self._say_failure(failure, wait_s, recorded)
            self._stopping.wait(wait_s)
            self._reconnects += 1

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
            self._logger.exception("camera session failed unexpectedly", extra=self._fields(error=type(error).__name__))
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
            self._logger.info("tracks other than video are skipped", extra=self._fields(skipped=skipped))
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
            if self._state == "stopped":  # `pause` gave up waiting for this thread
                return
            if unit.run_begins:
                recorder.begin_run(unit.received_ns)
            recorder.put(unit)
            self._state = "recording"
        if unit.run_begins:
            self._say_recording(recorder)

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

    def _say_recording(self, recorder: Recorder) -> None:
        assembler = self._assembler
        width, height = (assembler.size if assembler else None) or self._session_size
        self._failures_alike = 0
        self._logger.info(
            "camera is recording",
            extra=self._fields(codec=recorder.codec, width=width, height=height, run=recorder.run),
        )

    def _say_failure(self, failure: Failure, wait_s: float, recorded: bool) -> None:
        """One line for the first of equal failures, then for the 2nd, 4th, 8th…, with their number."""
        self._state = failure.state
        alike = not recorded and failure.cause == self._last_error
        self._failures_alike = self._failures_alike + 1 if alike else 1
        self._last_error = failure.cause
        if self._failures_alike & (self._failures_alike - 1):
            return
        fields = self._fields(state=failure.state, cause=failure.cause, retry_s=round(wait_s, 1))
        if self._failures_alike > 1:
            fields["fields"]["times"] = self._failures_alike
        self._logger.warning("camera cannot be recorded, trying again", extra=fields)

    def _fields(self, **fields: object) -> dict[str, dict[str, object]]:
        return {"fields": {"camera": self.name, **fields}}
