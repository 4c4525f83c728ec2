"""The fenced blocks of the documentation, and what stands in them for a machine of one's own.

A block says what it is in: ```python, ```toml and ```sh are examples that are run; ```text is a drawing or a layout. A
comment on the line above a block changes that, visibly in the source:

    <!-- not run: why -->                   a reason is given, and the tests count these
    <!-- in a directory of its own -->      shell: begins in an empty directory
    <!-- with the gateway stopped -->       shell: on a copy of the data directory, which no gateway writes
    <!-- ends by Ctrl-C -->                 shell: interrupted when it has said something
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN = ("python", "toml", "sh")
LAID_OUT = ("text",)
OWN_DIRECTORY = "in a directory of its own"
STOPPED = "with the gateway stopped"
INTERRUPTED = "ends by Ctrl-C"
NOT_RUN = "not run: "

_FENCE = re.compile(r"```(\S*)")
_COMMENT = re.compile(r"<!-- (.*) -->")
_DATE = re.compile(r"2026-11-23(?:([ T])(\d\d):(\d\d)(?::(\d\d)(?:\.(\d\d\d))?)?)?|2026-11-24(?![ T]\d)")
# The instant that the pages speak of.
TOLD = datetime(2026, 11, 23, 8, 13, 4, 250_000)


@dataclass(frozen=True)
class Block:
    """One fenced block. line: of its fence, from 1. marker: the comment above it."""

    page: Path
    line: int
    language: str
    text: str
    marker: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not self.not_run

    @property
    def not_run(self) -> bool:
        return self.marker.startswith(NOT_RUN)


def blocks(page: Path) -> list[Block]:
    """In the order of the page. AssertionError for a fence that is not closed."""
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    at = 0
    while at < len(lines):
        opened = _FENCE.fullmatch(lines[at].rstrip())
        if opened is None:
            assert not lines[at].lstrip().startswith("```"), f"{page.name}:{at + 1}: a fence that begins in no column 1"
            at += 1
            continue
        end = next((n for n in range(at + 1, len(lines)) if lines[n].rstrip() == "```"), None)
        assert end is not None, f"{page.name}:{at + 1}: a block without an end"
        comment = _COMMENT.fullmatch(lines[at - 1].strip()) if at else None
        yield Block(page, at + 1, opened[1], "\n".join([*lines[at + 1 : end], ""]), comment[1] if comment else "")
        at = end + 1


def commands(block: Block) -> list[str]:
    """The commands of a block of shell: a line each, continued after a backslash, without comments."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def on_this_machine(text: str, names: Mapping[str, str], instant: datetime) -> str:
    """names: what stands for what. Times of the 23rd of November 2026 move as far as `instant` is from 08:13:04.250."""
    for told, real in names.items():
        text = text.replace(told, real)
    return _DATE.sub(_mover(instant), text)


def _mover(instant: datetime) -> Callable[[re.Match[str]], str]:
    moved = instant - TOLD

    def move(found: re.Match[str]) -> str:
        if found[1] is None:
            days = int(found[0][-2:]) - TOLD.day
            return f"{instant.date() + timedelta(days=days)}"
        hour, minute, second, ms = (int(part or 0) for part in found.groups()[1:])
        told = TOLD.replace(hour=hour, minute=minute, second=second, microsecond=ms * 1000)
        return (told + moved).isoformat(found[1], "milliseconds")

    return move
