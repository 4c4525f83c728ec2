"""`gateway simulate camera` as it is typed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from gateway.commands.simulate import camera
from gateway.errors import UsageError
from gateway.simulate.faults import table


def test_faults_are_listed() -> None:
    """As text for people, as one object for programs; nothing is served."""
    text = CliRunner().invoke(camera, ["--faults"])
    assert text.exit_code == 0
    assert text.output.splitlines()[0].startswith("loss  ")
    assert json.loads(CliRunner().invoke(camera, ["--faults", "--json"]).output) == dict(table())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "a", "--count", "2"], "--name and --count exclude each other"),
        (["--b-frames", "2"], "--b-frames needs --loop"),
        (["--loop", "1", "--size", "161x120"], "The loop cannot be made: 161x120 pixels"),
        (["--loop", "1", "--codec", "jpeg", "--size", "2048x1080"], "multiples of 8 up to 2040x2040"),
        (["--size", "large"], "is not WIDTHxHEIGHT"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], said: str) -> None:
    """Before anything is drawn or listened on."""
    with pytest.raises(UsageError, match=said):
        CliRunner().invoke(camera, [*arguments, "--seconds", "0.1"], catch_exceptions=False)


def test_a_loop_is_served_and_counted() -> None:
    """Ready with an address for each camera, then the counters of the whole time."""
    arguments = ["--loop", "0.2", "--count", "3", "--size", "160x120", "--port", "0", "--seconds", "0.2", "--json"]
    result = CliRunner().invoke(camera, arguments, catch_exceptions=False)
    ready, done = (json.loads(line) for line in result.output.splitlines())
    assert list(ready["cameras"]) == ["cam-1", "cam-2", "cam-3"]
    assert (done["connections"], done["access_units_sent"]) == (0, 0)
