"""The camera thread of a gateway, seen from the event loop: its start and end, and whose each event is."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway_native import camera_thread as native

from gateway_adapters.rtsp.handshakes import Handshakes
from gateway_adapters.rtsp.native_session import Connected, Names

if TYPE_CHECKING:
    from gateway.ingest.engine import Engine

# No other source has this name, so no other source's ring. The thread holds no interpreter lock: the ring is its own.
RING = "(cameras)"
# Events handled before others have their turn.
EVENTS_AT_ONCE = 256

# kind, handle, number, data
Event = tuple[int, int, int, bytes]
Handler = Callable[[int, int, bytes], None]


class NativeThread:
    """The one of an engine. It begins with its first camera and ends with its last."""

    def __init__(self, engine: Engine) -> None:
        self.ring = engine.ring(RING)
        self.names = Names()
        self.handshakes = Handshakes()
        self._native = native.CameraThread(self.ring)
        self._users = 0
        self._handlers: dict[int, Handler] = {}
        self._events: deque[Event] = deque()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._native.run, name="gateway-cameras", daemon=True)

    def take(self) -> None:
        """One more camera uses it."""
        self._users += 1
        if self._users == 1:
            self._loop.add_reader(self._native.event_fd, self._look)
            self._thread.start()

    def leave(self) -> None:
        """One less; the last one's end is the thread's. Its connections must be closed."""
        self._users -= 1
        if self._users:
            return
        self._loop.remove_reader(self._native.event_fd)
        self._native.stop()
        self._thread.join()
        self.names.close()
        del _threads[self.ring]

    def play(self, connected: Connected, camera: native.Camera, handler: Handler) -> int:
        """Hand a connection over; its handle. handler(kind, number, data) hears its events until CLOSED."""
        playing = connected.client.playing
        assert playing is not None, "the camera was not told to play"
        track = playing.track
        assert track.codec is not None, "only tracks that can be recorded are played"
        try:
            handle = self._native.add(
                connected.socket.fileno(),
                camera,
                codec=track.codec,
                rtp_channel=playing.rtp_channel,
                rtcp_channel=playing.rtcp_channel,
                payload_type=track.payload_type,
                parameter_sets=track.parameter_sets,
                jpeg_size=track.size or (0, 0),
                received=connected.rest,
            )
        except BaseException:
            connected.socket.close()
            raise
        connected.socket.detach()  # the thread closes it
        self._handlers[handle] = handler
        return handle

    def send(self, handle: int, data: bytes) -> None:
        """A whole RTSP message."""
        if data:
            self._native.send(handle, data)

    def remove(self, handle: int, last: bytes) -> None:
        """Say this and close; CLOSED follows."""
        self._native.remove(handle, last)

    @property
    def counters(self) -> dict[str, int]:
        return self._native.counters

    def _look(self) -> None:
        """There are events: a part of them now, the rest when others had their turn."""
        was_empty = not self._events
        self._events.extend(self._native.events())
        if was_empty:
            self._handle()

    def _handle(self) -> None:
        try:
            for _ in range(min(EVENTS_AT_ONCE, len(self._events))):
                self._dispatch(*self._events.popleft())
        finally:  # a fault of ours in one camera's handler is reported by the loop, and keeps no other camera's events
            if self._events:
                self._loop.call_soon(self._handle)

    def _dispatch(self, kind: int, handle: int, number: int, data: bytes) -> None:
        handler = self._handlers.get(handle)
        if kind == native.CLOSED:
            self._handlers.pop(handle, None)
        if handler is not None:
            handler(kind, number, data)


_threads: dict[object, NativeThread] = {}


def thread_of(engine: Engine) -> NativeThread:
    """The engine's thread; it runs from the first `take` on."""
    ring = engine.ring(RING)
    found = _threads.get(ring)
    if found is None:
        found = _threads[ring] = NativeThread(engine)
    return found
