"""``gateway demo``: sensors, cameras and the gateway on this machine, then everything read back."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.clock import format_duration, format_size
from gateway.commands.common import command_with_examples
from gateway.errors import GatewayError, NoFrame

if TYPE_CHECKING:
    from gateway import Log
    from gateway.demo import Outcome

NEWEST_READINGS = 5


@command_with_examples(
    "demo",
    "Try everything on this machine, for 20 seconds.",
    """
    gateway demo
    gateway demo --seconds 60 --data /tmp/try-gateway
    """,
)
@click.option("--seconds", type=click.FloatRange(min=1, max=86_400), default=20, show_default=True, help="How long.")
@click.option(
    "--data",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("gateway-demo"),
    show_default=True,
    help="Everything it leaves is in here; a second run adds to it.",
)
def command(seconds: float, directory: Path) -> int:
    """Record 1,000 simulated sensors and 2 simulated cameras, then replay them. Needs no other program.

    Ctrl-C ends the recording early; what was recorded is replayed all the same.
    """
    for package in ("numpy", "cv2", "av"):
        __import__(package)  # the simulated cameras draw with these; better said now than from a subprocess
    from gateway import demo
    from gateway.commands.init import local_timezone

    timezone = local_timezone()
    demo.claim_directory(directory, timezone)
    click.echo(
        f"Recording {demo.SENSORS:,} sensors (MQTT) and {len(demo.CAMERAS)} cameras (RTSP) into {directory} "
        f"for {seconds:.0f} s ..."
    )
    outcome = demo.run_recording(directory, seconds, timezone)
    if outcome.interrupted:
        click.echo("Ended early.")
    is_complete = _replay(directory, outcome)
    if not is_complete and not outcome.interrupted:
        raise GatewayError(f"Something that should have been recorded is missing; {directory}/gateway.log says why.")
    return 0


def _replay(directory: Path, outcome: Outcome) -> bool:
    """Shows what the log holds of this run. Returns whether all of it is there."""
    import gateway

    log = gateway.open(directory)
    click.echo()
    click.secho("Replayed from the log", bold=True)
    found = [_show_counts(log, outcome), _show_readings(log), _show_pictures(log, directory, outcome)]
    click.echo()
    click.secho("Try next", bold=True)
    program, data = _program(), shlex.quote(str(directory))
    click.echo(f"  {program} stream list --data {data}")
    click.echo(f"  {program} read telemetry --data {data} --offsets -5: --json")
    click.echo(f"  {program} verify --data {data}")
    return all(found)


def _program() -> str:
    """How one types this program's name here: it may stand in a .venv that is not on PATH."""
    return "gateway" if shutil.which("gateway") else shlex.quote(os.path.relpath(sys.argv[0]))


def _show_counts(log: Log, outcome: Outcome) -> bool:
    from gateway import demo

    duration = format_duration(outcome.ended_ns - outcome.started_ns)
    is_complete = True
    for name in (demo.TELEMETRY, *demo.CAMERAS):
        records, size = 0, 0
        if name in log.streams():
            span = log[name].read(start=_instant(log, outcome.started_ns), end=_instant(log, outcome.ended_ns))
            for _, _, _, value, _ in span.rows():
                records += 1
                size += len(value or b"")
        is_complete &= records > 0
        click.echo(f"  {name:<10} {records:>8,} records, {format_size(size)} in {duration}")
    sensors = outcome.simulated.get("sensors", {})
    if sensors:
        click.echo(f"  The sensors published {sensors['published']:,}; {sensors['acknowledged']:,} were acknowledged.")
    return is_complete


def _show_readings(log: Log) -> bool:
    """The values that came last."""
    from gateway import demo

    if demo.TELEMETRY not in log.streams():
        return False
    stream = log[demo.TELEMETRY]
    end = stream.durable_offset
    newest = list(stream.read(offsets=(max(stream.log_start_offset, end - NEWEST_READINGS), end)))
    click.echo()
    click.secho("Newest readings", bold=True)
    shown_characters = max(80, shutil.get_terminal_size().columns)
    for record in newest:
        key, value = (raw.decode("utf-8", "replace") for raw in (record.key or b"", record.value or b""))
        click.echo(f"  {record.timestamp:%H:%M:%S.%f}"[:-3] + f"  {key:<40}  {value}"[: shown_characters - 14])
    return bool(newest)


def _show_pictures(log: Log, directory: Path, outcome: Outcome) -> bool:
    """One PNG and one MP4 of the first camera; those of an earlier run are replaced."""
    from gateway import demo
    from gateway.commands.pictures import write_picture

    name = demo.CAMERAS[0]
    picture, clip = directory / f"{name}.png", directory / f"{name}.mp4"
    click.echo()
    try:
        stream = log[name]
        newest = stream.describe()["newest"]
        frame = stream.at(newest)
        write_picture(picture, frame.bgr)
        report = stream.export(clip, _instant(log, outcome.started_ns), _instant(log, outcome.ended_ns), overwrite=True)
    except (NoFrame, GatewayError) as error:
        click.echo(f"  No picture: {error}")
        return False
    height, width = frame.bgr.shape[:2]
    click.secho("Pictures", bold=True)
    click.echo(f"  {picture}  {width}x{height}, received {frame.timestamp.isoformat(timespec='milliseconds')}")
    click.echo(
        f"  {clip}  {report.width}x{report.height} {report.codec}, {report.frames} frames, {report.duration_s:.1f} s, "
        f"{format_size(report.bytes)}"
    )
    return True


def _instant(log: Log, instant_ns: int) -> Any:
    from datetime import datetime

    return datetime.fromtimestamp(instant_ns / 1e9, tz=log.timezone)
