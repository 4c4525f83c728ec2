"""``gateway frame``: the picture that was on screen at an instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.common import (
    command_with_examples,
    data_options,
    json_option,
    progress,
    values_are_usage,
)
from gateway.commands.pictures import (
    PROGRESS_STEPS,
    camera_stream,
    check_format,
    say_written,
    size_option,
    write_picture,
)

if TYPE_CHECKING:
    from gateway.replay.decoding import Size


@command_with_examples(
    "frame",
    "Write the picture of an instant to a file.",
    """
    gateway frame gate-1 "2026-11-23 08:13:04.250" gate.png
    gateway frame gate-1 -10m gate.jpg --data /var/lib/gateway
    gateway frame gate-1 -10m thumbnail.jpg --nearest-key --max-age 1min --size 320x
    """,
    takes_times=True,
)
@click.argument("stream")
@click.argument("at")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--max-age", default="2s", show_default=True, help="How old the picture may be at that instant.")
@click.option("--nearest-key", is_flag=True, help="The key frame nearest to it will do: found at once.")
@click.option("--camera", help="Which one, in a stream of several.")
@size_option
@json_option
@data_options
def command(
    stream: str,
    at: str,
    out: Path,
    max_age: str,
    nearest_key: bool,
    camera: str | None,
    size: Size | None,
    as_json: bool,
    data: Path,
) -> None:
    """Write to OUT (.png or .jpg) the picture of camera STREAM that was on screen at the time AT."""
    check_format(out)
    opened = camera_stream(data, stream)
    with values_are_usage(), progress("Decoding") as step:
        frame = opened.at(
            at,
            max_age=max_age,
            nearest_key=nearest_key,
            camera=camera,
            size=size,
            progress=lambda done: step(int(done * PROGRESS_STEPS), PROGRESS_STEPS),
        )
    write_picture(out, frame.bgr)
    say_written(out, frame, as_json=as_json)
