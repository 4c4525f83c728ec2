"""The documentation names what there is, so that it cannot fall behind silently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from gateway.cli import cli
from gateway.config import model

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
SECTIONS = [
    model.Config, model.SiteConfig, model.DiskConfig, model.LimitsConfig, model.StreamConfig, model.ListenerConfig,
    model.SubscriberConfig, model.SubscriberRoute, model.CameraConfig, model.ControlConfig, model.KafkaConfig,
]  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_key_is_in_the_reference(section: Any) -> None:
    """Each key of the configuration, by the name one writes."""
    keys = {field.alias or name for name, field in section.model_fields.items()}
    if section is model.Config:
        keys = {"data", "[site]", "[disk]", "[limits]", "[streams.NAME]"}
    missing = [key for key in keys if f"`{key}`" not in REFERENCE and f"{key} =" not in REFERENCE]
    assert missing == []


def commands(group: click.Group, context: click.Context, path: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, context, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_every_command_and_option_is_in_the_reference() -> None:
    """In the row of its command; what all commands share is said once."""
    shared = {"--json", "--data", "--config", "-c", "--help"}
    for path, command in commands(cli, click.Context(cli), "gateway"):
        row = next((line for line in REFERENCE.splitlines() if line.startswith(f"| `{path}")), None)
        assert row is not None, path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert shared & {*parameter.opts} or parameter.opts[0] in row, (path, parameter.opts)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_readme_says_what_comes_first() -> None:
    """That it is no broker, on the first screen, and the two commands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen = "\n".join(text.splitlines()[:25])
    for phrase in ("not a broker", "make demo", "make test"):
        assert phrase in first_screen
