"""One connection of a camera that plays: keep-alive, what its events mean, its end. On the event loop."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol

from gateway_native import camera_thread as native
from gateway_native import rtp

from gateway_adapters.rtsp.failures import Failure, of_system
from gateway_adapters.rtsp.native_session import Connected
from gateway_adapters.rtsp.native_thread import NativeThread

# How long the camera thread may take for a command; it needs milliseconds.
CLOSE_TIMEOUT_S = 5.0
# The least time between two keep-alives, whatever time-out a camera names.
KEEPALIVE_S_MIN = 1.0
# Fewer do not tell the interval between two pictures, of which a stall is counted in.
UNITS_TELLING = 2


class Owner(Protocol):
    """What a connection asks its camera, and tells it."""

    @property
    def camera(self) -> native.Camera:
        """Whose records it makes."""

    @property
    def patience_s(self) -> float:
        """How long a connection may bring fewer than two pictures."""

    def began(self, run: int, *, first: bool) -> None:
        """A run began; first: of this connection."""

    def pictured(self, number: int, parameter_set: bytes) -> None:
        """Its pictures have this size, or this sequence parameter set, from now on."""

    def stalled(self, silent_s: float) -> None:
        """No picture comes."""

    def resumed(self, since_ns: int) -> None:
        """Pictures come again; the last one before came then."""

    def lost(self, kind: int, data: bytes) -> None:
        """Something is missing in the stream."""


class Connection:
    """From the hand-over of the socket to its CLOSED."""

    def __init__(self, owner: Owner, thread: NativeThread, connected: Connected) -> None:
        """Raises Failure when the thread does not take it; the socket is closed then."""
        self._owner = owner
        self._thread = thread
        self._client = connected.client
        self._ended: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        self._closed = asyncio.Event()
        self._has_begun = False
        self._silent_since_ns = 0
        self._units_before = self._units
        self._patience: asyncio.TimerHandle | None = None
        self._began = time.monotonic()
        try:
            self._handle = thread.play(connected, owner.camera, self._event)
        except ValueError as error:
            raise Failure("failed", f"the camera thread does not take the connection ({error})") from None

    async def keep_alive(self) -> Failure:
        """Until it ends; says why it did."""
        interval_s = max(self._client.keepalive_interval_s, KEEPALIVE_S_MIN)
        while not self._ended.done():
            done, _ = await asyncio.wait([self._ended], timeout=interval_s)
            if not done:
                self._thread.send(self._handle, self._client.keepalive())
        return self._ended.result()

    async def close(self) -> None:
        """Say goodbye if there is somebody to hear it; afterwards all that will ever come is in the ring."""
        if self._patience is not None:
            self._patience.cancel()
        self._thread.remove(self._handle, self._client.teardown())
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await self._closed.wait()

    @property
    def _units(self) -> int:
        return int(self._owner.camera.statistics["units"])

    # -- events -------------------------------------------------------------------------------------------------------

    def _event(self, kind: int, number: int, data: bytes) -> None:
        if kind == native.CLOSED:
            self._end(_why(number, data))
            self._closed.set()
        elif kind == native.TEXT:
            self._hear(data)
        elif kind == native.RUN:
            self._owner.began(number, first=not self._has_begun)
            self._has_begun = True
        elif kind == native.PICTURE:
            self._owner.pictured(number, data)
        elif kind == native.STALLED:
            self._stall(number / 1_000)
        elif kind == native.RESUMED:
            self._resume()
        elif kind == native.LOST:
            self._owner.lost(number, data)
        elif kind == native.GOODBYE:
            self._end(Failure("closed", "the camera ended its stream (RTCP goodbye)"))

    def _end(self, failure: Failure) -> None:
        """The first cause counts."""
        if not self._ended.done():
            self._ended.set_result(failure)

    def _hear(self, text: bytes) -> None:
        try:
            self._thread.send(self._handle, self._client.heard(text))
        except Failure as failure:
            self._end(failure)

    def _stall(self, silent_s: float) -> None:
        """A camera whose interval is known has had its ten; another one gets the configured time since the start."""
        self._silent_since_ns = int(self._owner.camera.statistics["last_unit_ns"]) if self._has_begun else 0
        self._owner.stalled(silent_s)
        left_s = self._began + self._owner.patience_s - time.monotonic()
        if self._units - self._units_before >= UNITS_TELLING or left_s <= 0:
            self._end(Failure("stalled", f"no picture within {silent_s:.1f} s"))
            return
        cause = f"no picture within {self._owner.patience_s:g} s"
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(left_s, self._end, Failure("stalled", cause))

    def _resume(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._owner.resumed(self._silent_since_ns)


def _why(number: int, data: bytes) -> Failure:
    """What CLOSED means."""
    if number == native.ENDED_SOCKET and data.isdigit():
        return of_system(int(data), os.strerror(int(data)))
    if number == native.ENDED_FAULT and data.isdigit():
        return Failure("unsupported", f"the camera broke the protocol: {rtp.FAULTS.get(int(data), 'unknown')}")
    return Failure("closed", native.ENDED.get(number, "the connection ended"))
