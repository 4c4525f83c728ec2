"""Tells other processes how this gateway's cameras are: writes `gateway.camera_status` every other second."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway import camera_status
from gateway.camera_status import CameraStatus
from gateway.clock import realtime_ns

logger = logging.getLogger("gateway.camera")

INTERVAL_S = 2.0
# Rates are averages of so many intervals, for sources that do not measure them by themselves.
INTERVALS = 5


class Shown(Protocol):
    """A camera source."""

    name: str

    def statistics(self) -> dict[str, Any]: ...


@dataclass(slots=True)
class _Mark:
    """A camera's counters some time ago."""

    at: float
    access_units: int
    bytes: int


class StatusBoard:
    """The cameras of one data directory. The file is there while any are, and goes with the last."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._cameras: dict[str, Shown] = {}
        self._marks: dict[str, list[_Mark]] = {}
        self._task: asyncio.Task[None] | None = None
        self._writing = threading.Lock()
        self._closed = False
        self._failed = False

    def add(self, camera: Shown) -> None:
        self._cameras[camera.name] = camera
        if self._task is None:
            self._task = asyncio.create_task(self._tell(), name="camera status")

    def remove(self, camera: Shown) -> None:
        if self._cameras.get(camera.name) is camera:
            del self._cameras[camera.name]
            self._marks.pop(camera.name, None)
        if not self._cameras and self._task is not None:
            self._task.cancel()
            self._task = None
            _boards.pop(self._data, None)
            with self._writing:
                self._closed = True
                camera_status.remove(self._data)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            now = time.monotonic()
            found = [self._status(camera, now) for camera in self._cameras.values()]
            await asyncio.to_thread(self._write, found)  # a disk that hangs holds up no camera

    def _write(self, found: list[CameraStatus]) -> None:
        """Without sync: after a power cut nobody wants to know. A full disk does not disturb the recording."""
        try:
            with self._writing:
                if not self._closed:
                    camera_status.write(self._data, found, realtime_ns())
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.warning(
                    "the cameras' status cannot be written; `gateway camera list` will not know",
                    extra={"fields": {"error": error.strerror or str(error)}},
                )
            self._failed = True

    def _status(self, camera: Shown, now: float) -> CameraStatus:
        found = camera.statistics()
        fps, bits_per_second = self._rates(camera.name, found, now)
        return CameraStatus(
            name=camera.name,
            state=found["state"],
            engine=found["engine"],
            codec=found["codec"],
            width=found["width"],
            height=found["height"],
            fps=round(fps, 2),
            bits_per_second=round(bits_per_second),
            access_units=found["access_units"],
            lost=found["lost"],
            lost_packets=found.get("lost_packets"),
            damaged=found.get("damaged"),
            reconnects=found["reconnects"],
            last_frame_ns=found["last_unit_ns"] or None,
            last_error=found["last_error"],
        )

    def _rates(self, name: str, found: dict[str, Any], now: float) -> tuple[float, float]:
        """Access units and bits a second."""
        if "fps" in found:
            return found["fps"], found["bits_per_second"]
        marks = self._marks.setdefault(name, [])
        marks.append(_Mark(now, found["access_units"], found["bytes"]))
        del marks[: -1 - INTERVALS]
        first, last = marks[0], marks[-1]
        passed_s = last.at - first.at
        if not passed_s:
            return 0.0, 0.0
        return (last.access_units - first.access_units) / passed_s, (last.bytes - first.bytes) * 8 / passed_s


_boards: dict[Path, StatusBoard] = {}


def board_of(data: Path) -> StatusBoard:
    """The data directory's; its writer is this process."""
    return _boards.setdefault(data, StatusBoard(data))
