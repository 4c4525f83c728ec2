"""``gateway export``: a camera's stream as a video file, as it was sent."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.commands.common import (
    command_with_examples,
    data_options,
    json_option,
    print_json,
    progress,
    values_are_usage,
)
from gateway.commands.pictures import PROGRESS_STEPS


@command_with_examples(
    "export",
    "Write a camera's pictures to an MP4 file.",
    """
    gateway export gate-1 clip.mp4 --start "2026-11-23 08:00" --end "2026-11-23 08:05"
    gateway export gate-1 clip.mp4 --start -10m
    """,
    takes_times=True,
)
@click.argument("stream")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--start", metavar="TIME", help="From this time on; the clip begins with the key frame before it.")
@click.option("--end", metavar="TIME", help="Up to this time (exclusive).")
@click.option("--camera", help="Which one, in a stream of several.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@json_option
@data_options
def command(
    stream: str,
    out: Path,
    start: str | None,
    end: str | None,
    camera: str | None,
    overwrite: bool,
    as_json: bool,
    data: Path,
) -> None:
    """Write the pictures of camera STREAM to OUT (.mp4), without encoding them again."""
    import gateway

    opened = gateway.open(data)[stream]
    with values_are_usage(), progress("Exporting") as step:
        report = opened.export(
            out,
            start,
            end,
            camera=camera,
            overwrite=overwrite,
            progress=lambda done: step(int(done * PROGRESS_STEPS), PROGRESS_STEPS),
        )
    if as_json:
        print_json(report_object(report))
    else:
        click.echo(f"{out}: {report}")


def report_object(report: object) -> dict[str, object]:
    """The report's fields."""
    import dataclasses

    assert dataclasses.is_dataclass(report)
    assert not isinstance(report, type)
    return dataclasses.asdict(report)
