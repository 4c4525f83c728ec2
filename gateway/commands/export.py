"""``gateway export``: a camera's stream as a video file, as it was sent; records of any stream as files of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.commands.common import (
    check_range,
    command_with_examples,
    data_options,
    json_option,
    print_json,
    progress,
    say,
    values_are_usage,
)
from gateway.commands.pictures import PROGRESS_STEPS
from gateway.errors import DamageError, UsageError

if TYPE_CHECKING:
    from gateway import Log
    from gateway.log.segment import Damage

VIDEO_SUFFIX = ".mp4"
FORMATS = ("parquet", "arrow", "csv", "jsonl")


@command_with_examples(
    "export",
    "Write pictures to an MP4 file, or records to other formats.",
    """
    gateway export gate-1 clip.mp4 --start "2026-11-23 08:00" --end "2026-11-23 08:05"
    gateway export gate-1 clip.mp4 --start -10m
    gateway export telemetry monday.parquet --start 2026-11-23 --end 2026-11-24
    gateway export telemetry temperatures.csv --key 'plant/+/+/temperature'
    gateway export telemetry gate-1 everything.mcap --start -1h
    gateway export telemetry lake/ --format parquet
    gateway export telemetry lake/ --resume
    """,
    takes_times=True,
)
@click.argument("streams", metavar="STREAM...", nargs=-1, required=True)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--start", metavar="TIME", help="From this time on; a clip begins with the key frame before it.")
@click.option("--end", metavar="TIME", help="Up to this time (exclusive).")
@click.option("--camera", help="Of a clip: which one, in a stream of several.")
@click.option("--key", "keys", metavar="FILTER", multiple=True, help="Of records: only keys that match; repeatable.")
@click.option("--no-retained", is_flag=True, help="Leave out MQTT messages whose retain flag was set.")
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="Of files in a directory; default: parquet.")
@click.option("--resume", is_flag=True, help="Go on with the export in the directory OUT.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@json_option
@data_options
def command(
    streams: tuple[str, ...],
    out: Path,
    start: str | None,
    end: str | None,
    camera: str | None,
    keys: tuple[str, ...],
    no_retained: bool,
    format_name: str | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    data: Path,
) -> int:
    """Write STREAM to OUT.

    OUT.mp4 gets the pictures of a camera, without encoding them again. OUT.parquet, .arrow, .csv and .jsonl get the
    records of one stream, OUT.mcap those of several, which Foxglove shows together. Any other OUT is a directory, with
    a file for each stream and day; an export into it that was interrupted, or is to be brought up to date, goes on with
    --resume.
    """
    import gateway

    log = gateway.open(data)
    with values_are_usage():
        check_range(log.timezone, start, end)
    if out.suffix.lower() == VIDEO_SUFFIX:
        if keys or no_retained or format_name or resume or len(streams) > 1:
            raise UsageError(
                "An .mp4 file has the pictures of one stream: --key, --no-retained, --format and --resume "
                "are for records."
            )
        _export_clip(log, streams[0], out, start, end, camera, overwrite=overwrite, as_json=as_json)
        return 0
    if camera is not None:
        raise UsageError("--camera is for .mp4 files; choose records by --key.")
    return _export_records(
        log, streams, out, start, end, keys, format_name,
        retained=not no_retained, resume=resume, overwrite=overwrite, as_json=as_json,
    )  # fmt: skip


def _export_clip(
    log: Log,
    stream: str,
    out: Path,
    start: str | None,
    end: str | None,
    camera: str | None,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    opened = log[stream]
    with values_are_usage(), progress("Exporting") as step:
        report = opened.export(
            out,
            start,
            end,
            camera=camera,
            overwrite=overwrite,
            progress=lambda done: step(int(done * PROGRESS_STEPS), PROGRESS_STEPS),
        )
    _show(out, report, as_json)


def _export_records(
    log: Log,
    streams: tuple[str, ...],
    out: Path,
    start: str | None,
    end: str | None,
    keys: tuple[str, ...],
    format_name: str | None,
    *,
    retained: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> int:
    damages = 0

    def tell(damage: Damage) -> None:
        nonlocal damages
        damages += 1
        say(f"{damage}; going on behind it.")

    try:
        with values_are_usage(), progress("Exporting") as step:
            report = log.export(
                out,
                streams,
                start,
                end,
                keys=list(keys) or None,
                retained=retained,
                format=format_name,
                resume=resume,
                overwrite=overwrite,
                progress=step,
                on_gap=tell,
            )
    except KeyboardInterrupt:
        if out.is_dir():
            say(f"Interrupted. The files that are in {out} are whole; --resume goes on behind them.")
        raise
    _show(out, report, as_json)
    return DamageError.exit_code if damages else 0


def _show(out: Path, report: object, as_json: bool) -> None:
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
