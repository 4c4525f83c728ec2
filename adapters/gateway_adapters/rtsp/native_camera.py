"""The source "camera" with engine = "native": handshake here, pictures on the camera thread.

    event loop:   connect ─► handshake ─► hand the socket over … keep-alive, health, reconnect with back-off
                                              │         ▲ events: run began, lost, stalled, closed
    camera thread, all cameras:               └─► frames ─► access units ─► ring ─► writer thread ─► disk

Nothing of a picture passes through this module.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from gateway_native import camera_thread as native

from gateway import nal
from gateway.backoff import Backoff
from gateway.clock import NS_PER_MS, NS_PER_S, realtime_ns
from gateway.config import CameraConfig
from gateway.log.gap import Reason
from gateway_adapters.rtsp.failures import Failure
from gateway_adapters.rtsp.health import Health
from gateway_adapters.rtsp.native_connection import Connection
from gateway_adapters.rtsp.native_session import Connected, Credentials, connect
from gateway_adapters.rtsp.native_thread import NativeThread, thread_of
from gateway_adapters.rtsp.status import StatusBoard, board_of

if TYPE_CHECKING:
    from gateway.ingest.source import SourceContext

_LOSSES: dict[int, Reason] = {
    native.LOST_PACKETS: "packet-loss",
    native.LOST_ROOM: "overload",
    native.LOST_OVERSIZED: "overload",
}


class NativeCamera:
    """Records one camera into its stream until it is stopped, connecting again whenever it has to."""

    kind = "camera"

    def __init__(self, name: str, config: CameraConfig, context: SourceContext) -> None:
        self.name = name
        self._config = config
        self._context = context
        self._logger = context.logger
        self._credentials = Credentials.of(config)
        backoff = Backoff(config.reconnect_min_ns, config.reconnect_max_ns)
        self._health = Health(name, context.logger, backoff)
        self._thread: NativeThread | None = None
        self._board: StatusBoard | None = None
        self._camera: native.Camera | None = None
        self._task: asyncio.Task[None] | None = None
        self._away_since_ns = 0
        self._codec = ""
        self._size = (0, 0)

    async def start(self) -> None:
        """Open the stream and begin connecting; a camera that is away does not keep the gateway from starting."""
        engine = self._context.engine
        partition = engine.partition(self._stream)
        thread = thread_of(engine)
        record_bytes_max = self._context.config.limits.record_bytes_max
        self._camera = native.Camera(
            self.name.encode(),
            thread.ring,
            partition,
            record_bytes_max=min(record_bytes_max, thread.ring.largest_record),
        )
        thread.take()
        self._thread = thread
        self._board = board_of(engine.data)
        self._board.add(self)
        self._health.connecting()
        self._task = asyncio.create_task(self._run(thread), name=f"camera {self.name}")

    async def pause(self) -> None:
        """Record nothing more: the connection ends, and what had arrived whole is in the ring when this returns."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                self._logger.error("camera ended unexpectedly", exc_info=error, extra=self._health.fields())
        self._health.stopped()

    async def drain(self) -> None:
        """Nobody awaits an acknowledgement."""

    async def stop(self) -> None:
        """Pause, and leave the camera thread, which ends with its last camera."""
        await self.pause()
        board, self._board = self._board, None
        if board is not None:
            board.remove(self)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.leave()

    def statistics(self) -> dict[str, Any]:
        """State (see `Health`) and counters since the start.

        access_units, bytes, keyframes: recorded. lost: access units of which nothing is recorded; lost_packets: RTP
        packets that never came; damaged: recorded access units in which some are or may be missing.
        """
        found = self._camera.statistics if self._camera is not None else {}
        counters = {ours: found.get(theirs, 0) for ours, theirs in _COUNTERS.items()}
        return {
            "state": self._health.state(time.monotonic()),
            "engine": "native",
            **counters,
            "jitter_ms": round(found.get("jitter_ns", 0) / NS_PER_MS, 3),
            "without_pts": 0,
            "reconnects": self._health.reconnects,
            "last_error": self._health.last_error,
            "codec": self._codec,
            "width": self._size[0],
            "height": self._size[1],
        }

    @property
    def _stream(self) -> str:
        return self._config.stream or self.name

    # -- connecting ---------------------------------------------------------------------------------------------------

    async def _run(self, thread: NativeThread) -> None:
        while True:
            self._health.connecting()
            began, units = time.monotonic(), self.camera.statistics["units"]
            failure = await self._session(thread)
            now = time.monotonic()
            after = self.camera.statistics
            recorded = after["units"] > units
            if recorded:
                self._away_since_ns = after["last_unit_ns"]
            await asyncio.sleep(self._health.failed(failure, now=now, run_s=now - began, recorded=recorded))

    async def _session(self, thread: NativeThread) -> Failure:
        """Connect and record until that ends, and say why it ended."""
        try:
            connected = await self._connect(thread)
            return await self._record(thread, connected)
        except Failure as failure:
            return failure
        except Exception as error:
            self._logger.exception("camera session failed unexpectedly", extra=self._health.fields())
            return Failure("failed", f"a fault of the gateway's own ({type(error).__name__})")

    async def _connect(self, thread: NativeThread) -> Connected:
        """A camera takes no more than a socket and its time-out, so a thousand dead ones keep no living one waiting."""
        return await connect(
            self._config.url,
            self._credentials,
            self._config.open_timeout_ns / NS_PER_S,
            names=thread.names,
            handshakes=thread.handshakes,
            on_redirect=lambda url: self._logger.info("camera redirects", extra=self._health.fields(to=url)),
        )

    async def _record(self, thread: NativeThread, connected: Connected) -> Failure:
        """Hand the connection over, keep it alive, and close it whatever happens."""
        client = connected.client
        assert client.playing is not None
        if client.playing.skipped:
            skipped = ", ".join(client.playing.skipped)
            self._logger.info("tracks other than video are skipped", extra=self._health.fields(skipped=skipped))
        self._codec = client.playing.track.codec or ""
        connection = Connection(self, thread, connected)
        try:
            return await connection.keep_alive()
        finally:
            await connection.close()

    # -- what connections tell ----------------------------------------------------------------------------------------

    @property
    def camera(self) -> native.Camera:
        """Whose records the connections make."""
        assert self._camera is not None, "not started"
        return self._camera

    def began(self, run: int, *, first: bool) -> None:
        """A run began; first: of its connection."""
        if first:
            self._say_away(self._away_since_ns)
            self._away_since_ns = 0
            width, height = self._size
            size = {"width": width, "height": height} if width else {}  # not known yet on the first connection
            self._health.recording(codec=self._codec, **size, run=run)
        else:
            self._logger.info("camera's clock jumped, a new run begins", extra=self._health.fields(run=run))

    def pictured(self, number: int, parameter_set: bytes) -> None:
        """Its pictures have this size, or this sequence parameter set, from now on."""
        size = self._size
        if codec := nal.CODECS.get(self._codec):
            self._size = nal.picture_size(codec, parameter_set) or (0, 0)
        else:
            self._size = (number >> 32, number & 0xFFFFFFFF)
        if size not in ((0, 0), self._size):
            fields = self._health.fields(width=self._size[0], height=self._size[1])
            self._logger.info("camera changed its picture", extra=fields)

    def stalled(self, silent_s: float) -> None:
        """No picture comes."""
        self._health.stalled()
        self._logger.warning("camera sends no pictures", extra=self._health.fields(silent_s=round(silent_s, 1)))

    def resumed(self, since_ns: int) -> None:
        """Pictures come again without a new connection."""
        self._health.resumed()
        self._say_away(since_ns)

    def lost(self, kind: int, data: bytes) -> None:
        """Something is missing in the stream."""
        count, size, first_ns, last_ns = native.LOSS.unpack(data)
        reason = _LOSSES[kind]
        if kind == native.LOST_PACKETS:
            self._health.lost_packets(time.monotonic())
        elif kind == native.LOST_OVERSIZED:
            fields = self._health.fields(access_units=count, bytes=size)
            self._logger.warning("access unit too large, lost with what depends on it", extra=fields)
        else:
            fields = self._health.fields(access_units=count, bytes=size)
            self._logger.warning("no room, dropping to the next key frame", extra=fields)
        self._context.engine.gaps.add(
            self._stream, self.name, reason, count=count, bytes=size, first_ns=first_ns, last_ns=last_ns
        )

    def _say_away(self, since_ns: int) -> None:
        """The time without pictures, as a gap record; nobody knows how many there would have been."""
        if since_ns:
            self._context.engine.gaps.add(
                self._stream, self.name, "camera-away", count=0, bytes=0, first_ns=since_ns, last_ns=realtime_ns()
            )

    @property
    def patience_s(self) -> float:
        """How long a connection may bring fewer than two pictures, which do not tell their interval yet."""
        return self._config.read_timeout_ns / NS_PER_S


# The names of `statistics`, and those of the camera thread's.
_COUNTERS = {
    "access_units": "units",
    "bytes": "bytes",
    "keyframes": "keyframes",
    "lost": "lost_units",
    "lost_packets": "lost_packets",
    "damaged": "damaged_units",
    "refused": "refused",
    "oversized": "oversized",
    "packets": "packets",
    "unsupported_packets": "unsupported_packets",
    "skipped_before_key": "skipped_before_key",
    "clock_jumps": "clock_jumps",
    "parameter_changes": "parameter_changes",
    "last_unit_ns": "last_unit_ns",
    "fps": "fps",
    "bits_per_second": "bits_per_second",
}
