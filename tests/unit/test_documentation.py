"""The documentation names what there is, so that it cannot fall behind silently."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gateway.cli import cli

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def commands(group: click.Group, context: click.Context, path: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, context, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_and_option_is_in_the_reference() -> None:
    """In the row of its command, and no others; what all commands share is said once."""
    shared = {"--json", "--data", "--config", "-c", "--help"}
    for path, command in commands(cli, click.Context(cli), "gateway"):
        row = next((line for line in REFERENCE.splitlines() if line.startswith(f"| `{path}")), None)
        assert row is not None, path
        options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
        expected = {each.opts[0] for each in options if not shared & {*each.opts}}
        named = {*re.findall(r"--[a-z0-9-]+", row)}
        assert named - shared == expected, path


def test_examples_in_help_are_what_the_commands_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line below "Examples:", of whichever command it is, with its options and arguments."""
    monkeypatch.chdir(tmp_path)
    for name in ("cameras.password", "gate-1.password"):
        (tmp_path / name).write_text("secret")
    checked = 0
    for path, command in commands(cli, click.Context(cli), "gateway"):
        lines = (command.epilog or "").partition("Examples:\n")[2].splitlines()
        assert lines, path
        for line in lines:
            (part,) = [part for part in re.split(r"[|>;]", line) if re.search(r"^\s*(\w+=\S+ )?gateway ", part)]
            words = shlex.split(part, comments=True)
            arguments = words[words.index("gateway") + 1 :]
            context, found = click.Context(cli), cli
            while isinstance(found, click.Group):
                name, found, arguments = found.resolve_command(context, arguments)
            assert found is command, line
            found.make_context(name, arguments)
            checked += 1
    assert checked > 30


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, and a heading in it."""
    for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not heading or heading in anchors(there), f"{target}#{heading}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, without punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_says_what_comes_first() -> None:
    """That it is no broker, on the first screen, and the two commands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen = "\n".join(text.splitlines()[:25])
    for phrase in ("not a broker", "make demo", "make test"):
        assert phrase in first_screen
