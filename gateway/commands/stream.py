"""``gateway stream list``: what is in a data directory."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from gateway.clock import format_size
from gateway.commands.common import command_with_examples, data_options, json_option, print_json, print_table


@click.group("stream")
def command() -> None:
    """Look at streams."""


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
def list_streams(as_json: bool, data: Path) -> None:
    """List streams with their offsets, oldest and newest record and size."""
    import gateway

    log = gateway.open(data)
    streams = [{"stream": name, **log[name].describe()} for name in log.streams()]
    if as_json:
        print_json({"data": str(data), "timezone": str(log.timezone), "streams": streams})
        return
    if not streams:
        click.echo(f"There are no streams in {data} yet.")
        return
    heading = ("STREAM", "RECORDS", "OFFSETS", "SIZE", "SEGMENTS", "OLDEST", "NEWEST")
    print_table([heading, *(_row(stream) for stream in streams)], right=(1, 3, 4))


command.add_command(list_streams)


def _row(stream: dict[str, Any]) -> tuple[str, ...]:
    return (
        stream["stream"],
        f"{stream['records']:,}",
        f"{stream['log_start_offset']}:{stream['durable_offset']}",
        format_size(stream["bytes"]),
        str(stream["segments"]),
        _time(stream["oldest"]),
        _time(stream["newest"]),
    )


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.isoformat(timespec="milliseconds")
