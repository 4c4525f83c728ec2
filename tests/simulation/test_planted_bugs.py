"""Bugs, planted one at a time: the simulation finds each, and finds nothing where there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.planted import NATIVE, PYTHON, VARIABLE

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "_native" / "gateway_native"
# What finds the rarest of them several times over. Without a bug, so many are run that most would be found.
SEEDS_MAX = 20_000
SEEDS_SOUND = 1_000


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension modules once more, with the bugs in them."""
    base = tmp_path_factory.mktemp("planted")
    for name in ("_native", "setup.py", "pyproject.toml", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, base / name, ignore=shutil.ignore_patterns("*.so", "*.c.*", "__pycache__"))
        else:
            shutil.copy(source, base / name)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = os.environ | {"GATEWAY_CFLAGS": "-O0 -DGATEWAY_PLANTED"}
    done = subprocess.run(command, cwd=base, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return base / "_native"


def simulate(build: Path, bug: str, seeds: range) -> subprocess.CompletedProcess[str]:
    span = f"{seeds.start}:{seeds.stop}"
    command = [sys.executable, "-m", "tests.simulation", "--seeds", span, "--until-failure", "--jobs", "2"]
    environment = os.environ | {VARIABLE: bug, "PYTHONPATH": os.pathsep.join([str(build), str(ROOT)])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", [*NATIVE, *PYTHON])
def test_a_planted_bug_is_found(build, bug):
    """Some seed fails, and names the promise that the bug breaks."""
    done = simulate(build, bug, range(SEEDS_MAX))
    assert done.returncode == 1, f"not found: {bug}\n{done.stdout}\n{done.stderr[-2000:]}"
    assert "Violation: " in done.stdout, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_found_where_there_is_no_bug(build):
    """The same build without a bug passes."""
    done = simulate(build, "", range(SEEDS_SOUND))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_every_bug_is_in_the_code():
    """The names here and in the native sources are the same."""
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.pyx"))
    assert set(re.findall(r'gw_planted\("([^"]+)"\)', text)) == set(NATIVE)
