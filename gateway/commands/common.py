"""What several commands share: where the data is, how a report is printed, what a wrong time says."""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gateway.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG = Path("gateway.toml")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def data_options(function: F) -> F:
    """Adds ``--data`` and ``-c`` and passes on, as ``data``, the data directory that they name."""

    @click.option("--data", "data_set", metavar="DIR", type=click.Path(path_type=Path), help="The data directory.")
    @click.option(
        "-c",
        "--config",
        "config_set",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="A configuration that names the data directory; ./gateway.toml if there is one.",
    )
    @functools.wraps(function)
    def with_data(*args: Any, data_set: Path | None, config_set: Path | None, **kwargs: Any) -> Any:
        return function(*args, data=_data_directory(data_set, config_set), **kwargs)

    return with_data  # type: ignore[return-value]  # called with other keywords than the function it wraps


def _data_directory(data: Path | None, config: Path | None) -> Path:
    if data is not None and config is not None:
        raise UsageError("--data and -c both say where the data is; give one of them.")
    if data is not None:
        return data
    if config is None and not DEFAULT_CONFIG.exists():
        raise UsageError("Say where the data is: --data DIR, or -c gateway.toml. There is no ./gateway.toml here.")
    from gateway.config import data_directory

    return data_directory(config or DEFAULT_CONFIG)


class _TimesCommand(click.Command):
    """A command whose arguments may be times such as -10m, which begin like an option."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return super().make_context(info_name, args, parent, ignore_unknown_options=True, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click passes on every option it does not know; only what begins with a digit is meant to be."""
        known = [option for parameter in self.get_params(ctx) for option in parameter.opts]
        for argument in itertools.takewhile(lambda argument: argument != "--", args):
            name = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
            if re.match(r"-[^0-9]", argument) and name not in known:
                near = difflib.get_close_matches(name, known, 3, 0.6)
                raise click.NoSuchOption(name, possibilities=near, ctx=ctx)
        return super().parse_args(ctx, args)


def command_with_examples(
    name: str, summary: str, examples: str, *, takes_times: bool = False
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command that is listed with its summary and whose help ends with examples, one a line."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    kind = _TimesCommand if takes_times else click.Command
    return click.command(name, cls=kind, short_help=summary, epilog=f"\b\nExamples:\n{lines}")


def print_json(report: object) -> None:
    """One object: indented on a terminal, one line otherwise."""
    click.echo(json.dumps(report, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None, default=_plain))


def _plain(value: object) -> str:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else str(value)


def print_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Rows of text in columns; the first row is the heading, columns in ``right`` are flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def say(text: str) -> None:
    """Tells a person something that is not part of the output."""
    click.echo(text, err=True)


def check_range(zone: tzinfo, start: str | None, end: str | None) -> None:
    """UsageError for times of which the second is before the first. ValueError for what is no time."""
    from gateway.clock import parse_time

    if start is not None and end is not None and parse_time(start, zone) > parse_time(end, zone):
        raise UsageError(f"--start {start!r} is later than --end {end!r}: nothing lies between them.")


@contextmanager
def values_are_usage() -> Iterator[None]:
    """A time or range that names nothing is the caller's mistake, and its sentence says which."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


@contextmanager
def progress(description: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Calls of ``step(done, total)`` move a bar on stderr, if that is a terminal; otherwise nothing is shown."""
    if not (shown and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar: Progress
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
