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
    from gateway.log.segment import Damage
    from gateway.log.verify import Note, Report


@command_with_examples(
    "verify",
    "Check every byte of the log.",
    """
    gateway verify
    gateway verify telemetry gate-1
    gateway verify --data /mnt/copy-of-the-log --deep --json
    gateway verify --repair
    """,
)
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
@click.option("--deep", is_flag=True, help="Also parse every record inside batches whose checksum is right.")
@click.option("--repair", is_flag=True, help="Make indexes, summaries and manifests again; the log is not touched.")
@json_option
@data_options
def command(streams: tuple[str, ...], deep: bool, repair: bool, as_json: bool, data: Path) -> int:
    """Compare checksums, offsets and indexes of the whole log, or of some streams; exit code 4 if anything is damaged.

    One line names each damaged place and the offsets it costs; notes are no damage. Changes nothing, and works beside a
    running gateway: what is not durable yet is not checked. --repair needs the gateway stopped, and reports what is
    left.
    """
    from gateway.log.repair import repair as repair_all
    from gateway.log.verify import verify

    done: list[str] = []
    with progress("Verifying") as step:
        if repair:
            report, done = repair_all(data, streams=streams, deep=deep, progress=step)
        else:
            report = verify(data, streams=streams, deep=deep, progress=step)
    if as_json:
        print_json({**_as_object(report), **({"repaired": done} if repair else {})})
        return 0 if report.sound else DamageError.exit_code
    _print(report, done)
    if not report.sound:
        places = "place is" if report.damage_count == 1 else "places are"
        raise DamageError(f"{report.damage_count:,} {places} damaged in {data}.")
    return 0


def _print(report: Report, done: list[str]) -> None:
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
    for sentence in done:
        click.echo(f"repaired: {sentence}")
    for kind, shown, count in (
        ("note", report.notes, report.note_count),
        ("damaged", report.damages, report.damage_count),
    ):
        for line in shown:
            click.echo(f"{kind}: {_line(line)}")
        if count > len(shown):
            click.echo(f"{kind}: … and {count - len(shown):,} more.")
    if report.sound:
        click.echo("Every byte is sound.")


def _line(found: Damage | Note) -> str:
    size = getattr(found, "bytes", 0)
    return f"{found}, {size:,} bytes" if size else str(found)


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
