"""``gateway frames``: the pictures of a range, as files in a directory."""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.clock import NS_PER_MS
from gateway.commands.common import check_range, command_with_examples, data_options, progress, values_are_usage
from gateway.commands.pictures import FORMATS, as_object, size_option, write_picture
from gateway.errors import GatewayError, NoFrame

if TYPE_CHECKING:
    from gateway import Frame, Stream
    from gateway.replay.decoding import Size


@command_with_examples(
    "frames",
    "Write the pictures of a range to a directory.",
    """
    gateway frames gate-1 pictures --start "2026-11-23 08:00" --end "2026-11-23 09:00" --every 10s
    gateway frames gate-1 thumbnails --start -1d --every 15min --keys-only --size 320x --format jpg
    """,
    takes_times=True,
)
@click.argument("stream")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--start", metavar="TIME", help="From this time on.")
@click.option("--end", metavar="TIME", help="Up to this time (exclusive).")
@click.option("--every", metavar="DURATION", help="At most one picture in each such interval; default: all of them.")
@click.option("--keys-only", is_flag=True, help="Key frames only: by far the fastest.")
@click.option("--camera", help="Which one, in a stream of several.")
@size_option
@click.option("--format", "ending", type=click.Choice([each[1:] for each in FORMATS]), default="png", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each picture.")
@data_options
def command(
    stream: str,
    directory: Path,
    start: str | None,
    end: str | None,
    every: str | None,
    keys_only: bool,
    camera: str | None,
    size: Size | None,
    ending: str,
    as_json: bool,
    data: Path,
) -> None:
    """Write the pictures of camera STREAM to DIRECTORY, each under the UTC time at which it was received.

    Pictures that cannot be decoded are left out. Files that are there are replaced.
    """
    import gateway

    opened = gateway.open(data)[stream]
    count = damaged = 0
    with values_are_usage(), progress("Writing pictures") as step:
        check_range(opened.zone, start, end)
        frames = opened.frames(start, end, every=every, keys_only=keys_only, camera=camera, size=size)
        first, last = _bounds(opened, start, end)
        for frame in frames:
            path = _path(directory, frame, ending)
            write_picture(path, frame.bgr)
            count, damaged = count + 1, damaged + frame.damaged
            step(frame.timestamp_ms - first, max(last - first, 1))
            if as_json:
                click.echo(json.dumps(as_object(path, frame), ensure_ascii=False))
    if not count:
        raise NoFrame(f"There is nothing to write: no picture of {stream!r} in that range can be shown.")
    if not as_json:
        click.echo(f"{directory}: {count} pictures{f', {damaged} of them damaged' if damaged else ''}")


def _bounds(stream: Stream, start: str | None, end: str | None) -> tuple[int, int]:
    """From when to when (ms) pictures may come, for the progress."""
    described = stream.describe()
    times = [described["oldest"], described["newest"]]
    oldest, newest = (int(each.timestamp() * 1000) if each is not None else 0 for each in times)
    first = oldest if start is None else max(oldest, stream.instant_ns(start) // NS_PER_MS)
    last = newest if end is None else min(newest, stream.instant_ns(end) // NS_PER_MS)
    return first, last


def _path(directory: Path, frame: Frame, ending: str) -> Path:
    """A name that sorts by time, and is different for each record."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GatewayError(f"{directory} cannot be made: {error.strerror or error}.") from error
    milliseconds = frame.timestamp_ms % 1000
    moment = frame.timestamp.astimezone(UTC)
    return directory / f"{moment:%Y%m%dT%H%M%S}.{milliseconds:03d}Z-{frame.offset}.{ending}"
