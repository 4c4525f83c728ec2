"""``gateway stream``: what is in a data directory, and deleting the old of it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.clock import format_size
from gateway.commands.common import (
    command_with_examples,
    data_options,
    json_option,
    print_json,
    print_table,
    say,
    values_are_usage,
)
from gateway.commands.rates import bytes_per_day, days_until_full, growth, rate
from gateway.config.model import Retention

if TYPE_CHECKING:
    from gateway import Log


@click.group("stream")
def command() -> None:
    """Look at streams, and delete what is old."""


@command_with_examples(
    "list",
    "List streams, their offsets, times and sizes.",
    """
    gateway stream list
    gateway stream list --data /var/lib/gateway --json
    """,
)
@json_option
@data_options
def list_streams(as_json: bool, data: Path) -> int:
    """List streams with their offsets, oldest and newest record and size, and how fast they grow.

    Rates are averages over what a stream holds. Days until the disk is full are those at these rates, without regard
    to retention; `gateway config check --forecast` knows the configuration.
    """
    import gateway
    from gateway.ingest.disk import space

    log = gateway.open(data)
    streams, unreadable = _all_described(log)
    room = space(data)
    days = days_until_full((growth(stream, Retention()) for stream in streams), room.free_bytes)
    if as_json:
        disk = {"free_bytes": room.free_bytes, "total_bytes": room.total_bytes, "days_until_full": days}
        report = {"data": str(data), "timezone": str(log.timezone), "disk": disk, "streams": streams}
        print_json({**report, **({"unreadable": unreadable} if unreadable else {})})
        return 1 if unreadable else 0
    for name, problem in unreadable.items():
        say(f"{name} cannot be looked at: {problem}.")
    if not streams:
        click.echo(f"There are no streams in {data} yet." if not unreadable else "No stream can be looked at.")
        return 1 if unreadable else 0
    heading = ("STREAM", "RECORDS", "OFFSETS", "SIZE", "SEGMENTS", "RECORDS/S", "BYTES/DAY", "OLDEST", "NEWEST")
    print_table([heading, *(_row(stream) for stream in streams)], right=(1, 3, 4, 5, 6))
    until = "" if days is None else f", full after {days:,.1f} days at these rates"
    click.echo(f"\n{format_size(room.free_bytes)} of {format_size(room.total_bytes)} are free{until}.")
    return 1 if unreadable else 0


def _all_described(log: Log) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every stream that can be read, and of those that cannot why: one of them hides no other."""
    streams: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    for name in log.streams():
        try:
            streams.append({"stream": name, **_described(log[name].describe())})
        except OSError as error:
            unreadable[name] = f"{error.filename}: {error.strerror or error}"
    return streams, unreadable


@command_with_examples(
    "delete",
    "Delete the segments of a stream that are older than a time.",
    """
    gateway stream delete telemetry --before -30d
    gateway stream delete gate-1 --before "2026-11-01" --data /var/lib/gateway
    """,
    takes_times=True,
)
@click.argument("stream")
@click.option("--before", required=True, metavar="TIME", help="Delete what is older than this, in whole segments.")
@json_option
@data_options
def delete(stream: str, before: str, as_json: bool, data: Path) -> None:
    """Delete the oldest segments of STREAM, as far as every record in them is older than TIME.

    A gateway that writes the data directory must be stopped before; while it runs, `retention` does this. The newest
    segment always stays.
    """
    import gateway
    from gateway.clock import NS_PER_MS
    from gateway.ingest.kept import Kept
    from gateway.log.lock import DataLock

    opened = gateway.open(data)[stream]
    with values_are_usage():
        before_ms = -(-opened.instant_ns(before) // NS_PER_MS)
    with DataLock(data):
        kept = Kept(stream, opened.reader.directory)
        kept.see_unwritten()
        while len(kept.table) and kept.table[0].newest_ms < before_ms:
            kept.delete_first()
        kept.save_ages()
    report = {
        "stream": stream,
        "segments": kept.deleted_segments,
        "bytes": kept.deleted_bytes,
        "log_start_offset": opened.log_start_offset,
    }
    if as_json:
        print_json(report)
    else:
        click.echo(
            f"Deleted {kept.deleted_segments} segments of {stream}, {format_size(kept.deleted_bytes)}. It begins at "
            f"offset {opened.log_start_offset} now."
        )


command.add_command(list_streams)
command.add_command(delete)


def _described(stream: dict[str, Any]) -> dict[str, Any]:
    """With its rates."""
    per_day = bytes_per_day(stream)
    seconds = (stream["newest"] - stream["oldest"]).total_seconds() if per_day is not None else 0
    return {
        **stream,
        "bytes_per_day": per_day,
        "records_per_s": stream["records"] / seconds if seconds else None,
    }


def _row(stream: dict[str, Any]) -> tuple[str, ...]:
    return (
        stream["stream"],
        f"{stream['records']:,}",
        f"{stream['log_start_offset']}:{stream['durable_offset']}",
        format_size(stream["bytes"]),
        str(stream["segments"]),
        "-" if stream["records_per_s"] is None else f"{stream['records_per_s']:,.1f}",
        rate(stream["bytes_per_day"]),
        _time(stream["oldest"]),
        _time(stream["newest"]),
    )


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.isoformat(timespec="milliseconds")
