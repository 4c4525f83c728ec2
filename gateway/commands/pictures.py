"""What the commands that write pictures share: formats, sizes, files that appear whole, and what is said about one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.commands.common import print_json
from gateway.errors import GatewayError, StreamNotFound, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gateway import Frame
    from gateway.replay.decoding import Size
    from gateway.replay.log import Stream

FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Steps of a progress bar for something whose progress is 0.0 to 1.0.
PROGRESS_STEPS = 1_000


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> Size | None:
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]*)x([0-9]*)", value)
    if found is None or value == "x":
        raise click.BadParameter(f"{value!r} is no size: 640x360, or 640x or x360 to keep the proportions.")
    width, height = (int(side) if side else None for side in found.groups())
    return width, height


size_option: Callable[[Any], Any] = click.option(
    "--size", metavar="WxH", callback=_size, help="Scale to so many pixels; 640x or x360 keeps the proportions."
)


def camera_stream(data: Path, name: str) -> Stream:
    """A camera's stream. Raises StreamNotFound, or GatewayError which says why the camera has none yet."""
    import gateway
    from gateway import camera_status

    try:
        return gateway.open(data)[name]
    except StreamNotFound:
        report = camera_status.read(data)
        camera = next((each for each in report.cameras if each.name == name), None) if report else None
        if camera is None:
            raise
        why = f" ({camera.last_error})" if camera.last_error else ""
        raise GatewayError(f"The camera {name!r} has recorded nothing yet; its state is {camera.state}{why}.") from None


def check_format(out: Path) -> None:
    """UsageError unless the name's ending is a picture format, GatewayError if it is to stand in no directory."""
    if out.suffix.lower() not in FORMATS:
        raise UsageError(f"{out} names no picture format; end it in .png or .jpg.")
    if not out.parent.is_dir():
        raise GatewayError(f"The directory {out.parent} does not exist; create it first.")


def write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Encodes by the name's ending; replaces a file of that name only when the new one is whole."""
    import cv2

    encoded, buffer = cv2.imencode(path.suffix.lower(), pixels)
    if not encoded:
        raise GatewayError(f"{path}: the picture could not be encoded.")
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(buffer.tobytes())
        partial.replace(path)
    except OSError as error:
        raise GatewayError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def as_object(path: Path, frame: Frame) -> dict[str, Any]:
    """A picture that was written, as JSON shows it."""
    source_time = frame.source_time
    return {
        "path": str(path),
        "camera": frame.camera,
        "timestamp": frame.timestamp.isoformat(timespec="milliseconds"),
        "source_time": source_time.isoformat(timespec="microseconds") if source_time is not None else None,
        "offset": frame.offset,
        "width": frame.width,
        "height": frame.height,
        "keyframe": frame.keyframe,
        "damaged": frame.damaged,
    }


def say_written(path: Path, frame: Frame, *, as_json: bool) -> None:
    """One line, or one object."""
    if as_json:
        print_json(as_object(path, frame))
        return
    shown = frame.timestamp.isoformat(timespec="milliseconds")
    damage = ", damaged" if frame.damaged else ""
    click.echo(f"{path}: {frame.width}x{frame.height}, received {shown}, offset {frame.offset}{damage}")
