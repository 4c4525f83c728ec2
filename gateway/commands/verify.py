"""``gateway verify``: every byte that may be read, compared with its checksum."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.clock import format_size
from gateway.commands.common import command_with_examples, data_options, json_option, print_json, print_table, progress
from gateway.errors import DamageError

if TYPE_CHECKING:
    from gateway.log.verify import Report


@command_with_examples(
    "verify",
    "Check every byte of the log.",
    """
    gateway verify
    gateway verify telemetry gate-1
    gateway verify --data /mnt/copy-of-the-log --deep --json
    """,
)
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
@click.option("--deep", is_flag=True, help="Also parse every record inside batches whose checksum is right.")
@json_option
@data_options
def command(streams: tuple[str, ...], deep: bool, as_json: bool, data: Path) -> int:
    """Compare checksums, offsets and indexes of the whole log, or of some streams; exit code 4 if anything is damaged.

    One line names each damaged place and the offsets it costs; notes are no damage. Changes nothing, and works beside a
    running gateway: what is not durable yet is not checked.
    """
    from gateway.log.verify import verify

    with progress("Verifying") as step:
        report = verify(data, streams=streams, deep=deep, progress=step)
    if as_json:
        print_json(_as_object(report))
        return 0 if report.sound else DamageError.exit_code
    _print(report)
    if not report.sound:
        places = "place is" if report.damage_count == 1 else "places are"
        raise DamageError(f"{report.damage_count:,} {places} damaged in {data}.")
    return 0


def _print(report: Report) -> None:
    heading = ("STREAM", "RECORDS", "OFFSETS", "BATCHES", "SEGMENTS", "INDEX ENTRIES", "SIZE")
    rows = [
        (
            part.stream,
            f"{part.records:,}",
            f"{part.log_start_offset}:{part.durable_offset}",
            f"{part.batches:,}",
            f"{part.segments:,}",
            f"{part.index_entries:,}",
            format_size(part.bytes),
        )
        for part in report.partitions
    ]
    print_table([heading, *rows], right=(1, 3, 4, 5, 6))
    for kind, shown, count in (
        ("note", report.notes, report.note_count),
        ("damaged", report.damages, report.damage_count),
    ):
        for line in shown:
            click.echo(f"{kind}: {line}")
        if count > len(shown):
            click.echo(f"{kind}: … and {count - len(shown):,} more.")
    if report.sound:
        click.echo("Every byte is sound.")


def _as_object(report: Report) -> dict[str, object]:
    return {
        "data": str(report.path),
        "sound": report.sound,
        "deep": report.deep,
        "partitions": [dataclasses.asdict(part) for part in report.partitions],
        "damage_count": report.damage_count,
        "damages": [{**damage._asdict(), "path": str(damage.path)} for damage in report.damages],
        "note_count": report.note_count,
        "notes": [{**note._asdict(), "path": str(note.path)} for note in report.notes],
    }
