"""How the cameras of a running gateway are, for whoever may read its data directory.

``<data>/cameras.json``: {"format": 1, "pid": …, "written_ns": …, "cameras": [{…}, …]}, replaced as a whole every other
second while cameras are recorded, and removed when the gateway stops. One that is old was left by a gateway that was
killed. Not durable, on purpose.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gateway.clock import NS_PER_S
from gateway.errors import GatewayError

FILE = "cameras.json"
FORMAT = 1
# Written every other second: this old, its gateway is gone or does not come to write.
STALE_NS = 10 * NS_PER_S
BYTES_MAX = 64 * 2**20


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """One camera.

    lost_packets, damaged: None where the engine cannot know. last_frame_ns: receive time; None: none yet.
    state: as the source's `statistics` has it. last_error: why it was not recorded the last time that it was not.
    """

    name: str
    state: str
    engine: str
    codec: str
    width: int
    height: int
    fps: float
    bits_per_second: int
    access_units: int
    lost: int
    lost_packets: int | None
    damaged: int | None
    reconnects: int
    last_frame_ns: int | None
    last_error: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the file said. written_ns: when, ns since 1970; pid: whose."""

    cameras: tuple[CameraStatus, ...]
    written_ns: int
    pid: int


def write(data: Path, cameras: Iterable[CameraStatus], now_ns: int) -> None:
    """Replace the file. Raises OSError."""
    content = {
        "format": FORMAT,
        "pid": os.getpid(),
        "written_ns": now_ns,
        "cameras": [dataclasses.asdict(camera) for camera in cameras],
    }
    new = data / f"{FILE}.new"
    new.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    new.replace(data / FILE)


def remove(data: Path) -> None:
    """The gateway stops. A file that cannot be removed is told by its age."""
    try:
        (data / FILE).unlink(missing_ok=True)
    except OSError:
        return


def read(data: Path) -> Report | None:
    """None: no gateway records cameras there. Raises GatewayError for a file that is something else."""
    path = data / FILE
    try:
        with path.open("rb") as file:
            text = file.read(BYTES_MAX)
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError("another format")
        cameras = tuple(CameraStatus(**camera) for camera in content["cameras"])
        return Report(cameras, int(content["written_ns"]), int(content["pid"]))
    except (ValueError, TypeError, KeyError) as error:
        raise GatewayError(
            f"{path} is not what this version of the gateway writes; it may be of a newer one. The gateway makes it "
            "anew when it records cameras."
        ) from error
