"""Simulated cameras: an RTSP server with moving pictures, to try Gateway (or any other client) with.

    server = CameraServer(["gate-1", "gate-2"], port=8554)
    await server.start()            # rtsp://127.0.0.1:8554/gate-1 and …/gate-2
    ...
    await server.stop()

Also what ``gateway simulate camera`` and ``gateway demo`` run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, tzinfo

from gateway.errors import SourceError
from gateway.simulate.feeds import Feed, ListFeed, LiveFeed, check_name
from gateway.simulate.rtsp_messages import Digest
from gateway.simulate.rtsp_server import RtspServer, Sent

__all__ = ["CAMERAS_MAX", "CameraServer", "ListFeed", "LiveFeed", "Sent"]

CAMERAS_MAX = 64


class CameraServer:
    """Some simulated cameras behind one RTSP server.

    cameras: their names, which are their paths; or how many, named ``cam-1``, ``cam-2``, …; or, for tests, feeds by
    name. host: 127.0.0.1 unless said otherwise, so that nothing is reachable from outside by accident. port: 0 takes a
    free one. username, password: digest authentication when both are given. width, height: pixels. fps: frames per
    second. gop_s: seconds between key frames. bit_rate: bits per second, 0 for one that suits the size. zone: of the
    burnt-in clock. journal: how many access units sent last are remembered in `journal`.

    Each camera is encoded once, in a thread of its own, for all its clients, and only while somebody watches.
    """

    def __init__(
        self,
        cameras: int | Sequence[str] | Mapping[str, Feed] = 1,
        *,
        host: str = "127.0.0.1",
        port: int = 8554,
        username: str | None = None,
        password: str | None = None,
        width: int = 640,
        height: int = 360,
        fps: int = 15,
        gop_s: float = 2.0,
        bit_rate: int = 0,
        zone: tzinfo = UTC,
        session_timeout_s: int = 60,
        write_buffer_bytes_max: int = 4 << 20,
        journal: int = 0,
    ) -> None:
        if (username is None) != (password is None):
            raise SourceError("A simulated camera needs both a user name and a password, or neither.")
        if isinstance(cameras, int):
            cameras = [f"cam-{number}" for number in range(1, cameras + 1)]
        if not 1 <= len(cameras) <= CAMERAS_MAX:
            raise SourceError(f"{len(cameras)} simulated cameras: there can be 1 to {CAMERAS_MAX} on one server.")
        if isinstance(cameras, Mapping):
            feeds = {check_name(name): feed for name, feed in cameras.items()}
        else:
            try:
                feeds = {
                    check_name(name): LiveFeed(
                        name, width=width, height=height, fps=fps, gop_s=gop_s, bit_rate=bit_rate, zone=zone
                    )
                    for name in cameras
                }
            except ValueError as error:
                raise SourceError(f"The simulated camera cannot start: {error}.") from error
        self._server = RtspServer(
            feeds,
            host=host,
            port=port,
            digest=Digest(username, password) if username is not None and password is not None else None,
            session_timeout_s=session_timeout_s,
            write_buffer_bytes_max=write_buffer_bytes_max,
            journal=journal,
        )

    async def start(self) -> None:
        """Listen. Raises SourceError when the port is taken, the size cannot be encoded or a library is missing."""
        await self._server.start()

    async def stop(self) -> None:
        """Close all connections, end all threads."""
        await self._server.stop()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    @property
    def urls(self) -> dict[str, str]:
        """The address of each camera, without user name and password."""
        return {name: self._server.url(name) for name in self._server.feeds}

    @property
    def journal(self) -> deque[Sent]:
        """The access units sent last, oldest first; empty unless asked for."""
        return self._server.journal

    @property
    def requests(self) -> deque[str]:
        """The methods asked for last (1,000 at most), oldest first."""
        return self._server.requests

    def drop_clients(self) -> int:
        """Break every connection at once, as a camera that loses power does; returns how many there were."""
        return self._server.drop_clients()

    def statistics(self) -> dict[str, int]:
        """Counters since the start: connections, watchers, access_units_sent, bytes_sent, frames_encoded, …"""
        return self._server.statistics()
