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
from gateway.simulate.feeds import Clip, Feed, ListFeed, LiveFeed, check_name
from gateway.simulate.journal import JournalFile, Sent
from gateway.simulate.rtsp_messages import authentication
from gateway.simulate.rtsp_server import RtspServer

__all__ = ["CAMERAS_MAX", "LIVE_CAMERAS_MAX", "CameraServer", "Clip", "ListFeed", "LiveFeed", "Sent", "loop_cameras"]

LIVE_CAMERAS_MAX = 64  # a thread and an encoder each
CAMERAS_MAX = 2000


class CameraServer:
    """Some simulated cameras behind one RTSP server.

    cameras: their names, which are their paths; or how many, named ``cam-1``, ``cam-2``, …; or, for tests, feeds by
    name. host: 127.0.0.1 unless said otherwise, so that nothing is reachable from outside by accident. port: 0 takes a
    free one. username, password: authentication when both are given, of the kind `authentication_kind` (basic, md5,
    md5-qop, sha-256); after nonce_uses_max requests a digest's nonce is stale. width, height: pixels. fps: frames per
    second. gop_s: seconds between key frames. bit_rate: bits per second, 0 for one that suits the size. codec: "h264",
    "h265" or "jpeg". zone: of the burnt-in clock. journal: how many access units sent last are remembered in `journal`;
    journal_file: where all are written down.

    What a camera does wrong is asked for in the query of its URL, see gateway/simulate/faults.py. Each live camera is
    encoded once, in a thread of its own, for all its clients, and only while somebody watches.
    """

    def __init__(
        self,
        cameras: int | Sequence[str] | Mapping[str, Feed] = 1,
        *,
        host: str = "127.0.0.1",
        port: int = 8554,
        username: str | None = None,
        password: str | None = None,
        authentication_kind: str = "md5",
        nonce_uses_max: int | None = None,
        width: int = 640,
        height: int = 360,
        fps: int = 15,
        gop_s: float = 2.0,
        bit_rate: int = 0,
        codec: str = "h264",
        zone: tzinfo = UTC,
        session_timeout_s: int = 60,
        write_buffer_bytes_max: int = 4 << 20,
        journal: int = 0,
        journal_file: JournalFile | None = None,
    ) -> None:
        if (username is None) != (password is None):
            raise SourceError("A simulated camera needs both a user name and a password, or neither.")
        if isinstance(cameras, int):
            cameras = [f"cam-{number}" for number in range(1, cameras + 1)]
        most = CAMERAS_MAX if isinstance(cameras, Mapping) else LIVE_CAMERAS_MAX
        if not 1 <= len(cameras) <= most:
            raise SourceError(
                f"{len(cameras)} simulated cameras: there can be 1 to {LIVE_CAMERAS_MAX} live ones on one server, "
                f"or {CAMERAS_MAX} that play a loop."
            )
        if isinstance(cameras, Mapping):
            feeds = {check_name(name): feed for name, feed in cameras.items()}
        else:
            try:
                feeds = {
                    check_name(name): LiveFeed(
                        name,
                        width=width,
                        height=height,
                        fps=fps,
                        gop_s=gop_s,
                        bit_rate=bit_rate,
                        zone=zone,
                        codec=codec,
                    )
                    for name in cameras
                }
            except ValueError as error:
                raise SourceError(f"The simulated camera cannot start: {error}.") from error
        self._server = RtspServer(
            feeds,
            host=host,
            port=port,
            authentication=authentication(authentication_kind, username, password)
            if username is not None and password is not None
            else None,
            nonce_uses_max=nonce_uses_max,
            session_timeout_s=session_timeout_s,
            write_buffer_bytes_max=write_buffer_bytes_max,
            journal=journal,
            journal_file=journal_file,
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


def loop_cameras(names: Sequence[str], clip: Clip) -> dict[str, Feed]:
    """Cameras that all play one loop for ever, beginning one after the other within its length, as cameras do."""
    length_s = len(clip.pictures) / clip.fps
    return {name: ListFeed(clip, repeat=0, delay_s=at * length_s / len(names)) for at, name in enumerate(names)}
