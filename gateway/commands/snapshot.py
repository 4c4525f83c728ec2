"""``gateway camera snapshot``: the picture that a camera shows now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.common import command_with_examples, data_options, json_option, values_are_usage
from gateway.commands.pictures import camera_stream, check_format, say_written, size_option, write_picture

if TYPE_CHECKING:
    from gateway.replay.decoding import Size


@command_with_examples(
    "snapshot",
    "Write the newest picture to a file.",
    """
    gateway camera snapshot gate-1 now.jpg
    gateway camera snapshot gate-1 now.png --size 640x --max-age 10s
    """,
)
@click.argument("stream")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--max-age", default="2s", show_default=True, help="How old it may be.")
@click.option("--camera", help="Which one, in a stream of several.")
@size_option
@json_option
@data_options
def command(
    stream: str, out: Path, max_age: str, camera: str | None, size: Size | None, as_json: bool, data: Path
) -> None:
    """Write to OUT (.png or .jpg) the newest picture of camera STREAM that is on disk.

    Exit code 1 if it is older than --max-age: an old picture is not shown as if it were of now.
    """
    check_format(out)
    with values_are_usage():
        frame = camera_stream(data, stream).snapshot(max_age=max_age, camera=camera, size=size)
    write_picture(out, frame.bgr)
    say_written(out, frame, as_json=as_json)
