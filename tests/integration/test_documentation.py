"""Every example of the documentation runs, as it stands there, at a gateway with simulated sensors and cameras."""

from __future__ import annotations

import configparser
import itertools
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from gateway import cli
from tests.support import documentation
from tests.support.documentation import PAGES, ROOT, Block, blocks, commands, on_this_machine
from tests.support.example_site import PATIENCE_S, Site, example_site, interrupted
from tests.support.gateway_process import environment

pytestmark = pytest.mark.integration

# Blocks that say why they are not run. Whoever adds one adds to these.
NOT_RUN = {
    "README.md": 4,
    "CONTRIBUTING.md": 2,
    "docs/analysis.md": 1,
    "docs/cameras.md": 1,
    "docs/guide.md": 6,
    "docs/kafka.md": 2,
    "docs/mqtt.md": 1,
}
# What the shell has to do, rather than this process.
SHELL = set("|<>&;$()*")


@pytest.fixture(scope="module", name="site")
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with example_site(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    """A language that is run, a drawing, or a reason."""
    for block in blocks(page):
        known = block.language in {*documentation.RUN, *documentation.LAID_OUT} or block.not_run
        assert known, f"{block}: say what it is in, or why it is not run"
        assert len(block.marker) > len(documentation.NOT_RUN) or not block.not_run, f"{block}: no reason"


def test_the_unit_starts_what_there_is() -> None:
    """The command in the unit of systemd is one that this version understands."""
    (unit,) = [block for page in PAGES for block in blocks(page) if block.language == "ini"]
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(unit.text)
    program, *arguments = shlex.split(parsed["Service"]["ExecStart"])
    assert Path(program).name == "gateway"
    name, command, rest = cli.cli.resolve_command(click.Context(cli.cli), arguments)
    assert command is not None
    assert command.make_context(name, rest).params["log_format"] == "json"


def test_the_picture_is_made_of_what_is_recorded(tmp_path: Path) -> None:
    """The script beside it records, joins and draws; the one in the documentation is not large."""
    out = tmp_path / "drawn.png"
    script = ROOT / "docs" / "frames_with_readings.py"
    done = subprocess.run(
        [sys.executable, str(script), str(out), "--seconds", "2"],
        env=environment(), capture_output=True, text=True, timeout=100, check=False,  # Matplotlib looks for its fonts
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 frames with their readings" in done.stdout
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (ROOT / "docs" / "frames-with-readings.png").stat().st_size < 300_000


def test_what_is_not_run_is_counted() -> None:
    """So that no example is left out unseen."""
    found = {str(page.relative_to(ROOT)): sum(block.not_run for block in blocks(page)) for page in PAGES}
    assert {name: count for name, count in found.items() if count} == NOT_RUN


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.is_run for block in blocks(page))], ids=lambda page: page.name
)
def test_examples_run(
    page: Path, site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Those of a page in their order: commands end with 0 and say something, Python raises and warns of nothing."""
    runner = _Runner(site, page.stem, monkeypatch, capfd)
    try:
        for block in blocks(page):
            if block.is_run:
                runner.run(block)
    finally:
        runner.forget()


class _Runner:
    """The examples of one page; names of Python stay from one to the next."""

    def __init__(self, site: Site, name: str, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._site = site
        self._name = name
        self._place = site.place(name)
        self._patch = patch
        self._capture = capture
        self._python: dict[str, Any] = {}
        self._counter = itertools.count(1)

    def run(self, block: Block) -> None:
        text = on_this_machine(block.text, self._site.names, self._site.instant)
        {"python": self._run_python, "toml": self._check_toml, "sh": self._run_shell}[block.language](block, text)

    def forget(self) -> None:
        """Let go of what the examples made. Readings that they left half way end in order, and close their files; the
        collector of cycles, to which names of functions would leave them, may find the files first."""
        self._python.clear()

    def _new_name(self) -> str:
        return f"{self._name}-{next(self._counter)}"

    def _run_python(self, block: Block, text: str) -> None:
        self._patch.chdir(self._place)
        lines = "\n" * block.line + text  # so that a traceback tells the line of the page
        exec(compile(lines, str(block.page), "exec"), self._python)  # noqa: S102  # the page's own examples
        self._capture.readouterr()

    def _check_toml(self, block: Block, text: str) -> None:
        """`gateway config check` has nothing to say against it."""
        path = self._site.directory / f"{self._new_name()}.toml"
        head = "" if text.startswith("data =") else f'data = "{self._site.data}"\n'
        path.write_text(head + text, encoding="utf-8")
        code = cli.run(["config", "check", "-c", str(path), "--json"])
        out, err = self._capture.readouterr()
        assert code == 0, f"{block}: {out} {err}"

    def _run_shell(self, block: Block, text: str) -> None:
        place = self._place
        if block.marker == documentation.OWN_DIRECTORY:
            place = self._site.directory / self._new_name()
            place.mkdir()
        elif block.marker == documentation.STOPPED:
            place = self._site.stopped(self._new_name())
        else:
            assert block.marker in {"", documentation.INTERRUPTED}, f"{block}: {block.marker}?"
        for line in commands(Block(block.page, block.line, block.language, text)):
            if block.marker == documentation.INTERRUPTED:
                self._run_until_it_says_something(block, line, place)
            elif line.startswith("gateway ") and not SHELL & {*line}:
                self._run_here(block, line, place)
            else:
                self._run_in_shell(block, line, place)

    def _run_here(self, block: Block, line: str, place: Path) -> None:
        """A command alone, without the price of another process."""
        self._patch.chdir(place)
        code = cli.run(shlex.split(line, comments=True)[1:])
        out, err = self._capture.readouterr()
        assert code == 0, f"{block}: {line}\n{err}"
        assert out, f"{block}: {line}\nsays nothing"

    def _run_in_shell(self, block: Block, line: str, place: Path) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=place, env=self._site.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}: {line}\n{done.stderr}"

    def _run_until_it_says_something(self, block: Block, line: str, place: Path) -> None:
        said = self._site.directory / self._new_name()
        with said.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", line],
                cwd=place, env=self._site.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        code, errors = interrupted(process, said)
        assert code in {0, 130, -2}, f"{block}: {line}\n{errors.decode()}"
        assert said.stat().st_size, f"{block}: {line}\nsays nothing"
