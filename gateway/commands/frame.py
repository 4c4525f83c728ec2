"""``gateway frame``: the picture that was on screen at an instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.common import (
    command_with_examples,
    data_options,
    json_option,
    print_json,
    values_are_usage,
)
from gateway.errors import GatewayError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@command_with_examples(
    "frame",
    "Write the picture of an instant to a file.",
    """
    gateway frame gate-1 "2026-11-23 08:13:04.250" gate.png
    gateway frame gate-1 -10m gate.jpg --data /var/lib/gateway
    """,
    takes_times=True,
)
@click.argument("stream")
@click.argument("at")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--max-age", default="2s", show_default=True, help="How old the picture may be at that instant.")
@click.option("--camera", help="Which one, in a stream of several.")
@json_option
@data_options
def command(stream: str, at: str, out: Path, max_age: str, camera: str | None, as_json: bool, data: Path) -> None:
    """Write to OUT (.png or .jpg) the picture of camera STREAM that was on screen at the time AT."""
    import gateway

    if out.suffix.lower() not in _FORMATS:
        raise UsageError(f"{out} names no picture format; end it in .png or .jpg.")
    with values_are_usage():
        frame = gateway.open(data)[stream].at(at, max_age=max_age, camera=camera)
    write_picture(out, frame.bgr)
    height, width = frame.bgr.shape[:2]
    shown = frame.timestamp.isoformat(timespec="milliseconds")
    if as_json:
        report = {"path": str(out), "timestamp": shown, "offset": frame.offset, "width": width, "height": height}
        print_json({**report, "keyframe": frame.keyframe, "damaged": frame.damaged})
    else:
        damage = ", damaged" if frame.damaged else ""
        click.echo(f"{out}: {width}x{height}, received {shown}, offset {frame.offset}{damage}")


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
    finally:
        partial.unlink(missing_ok=True)
