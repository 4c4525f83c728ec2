"""What several commands share: where the data is, how a report is printed, what a wrong time says."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gateway.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG = Path("gateway.toml")

# A time such as -10m begins like an option; click then passes it on as an argument.
TIMES_ALLOWED = {"ignore_unknown_options": True}

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


def command_with_examples(name: str, examples: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A command whose help ends with examples, one a line."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    return click.command(name, epilog=f"\b\nExamples:\n{lines}", **settings)


def print_json(report: object) -> None:
    click.echo(json.dumps(report, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None, default=str))


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
