"""The fuzzer of the MQTT parser runs, and would tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.fuzzing import is_available
from tests.fuzz.target import Target
from tests.integration.peers import missing
from tests.support.capture_mqtt import DATA
from tests.support.gateway_process import environment

ROOT = Path(__file__).parents[2]
RUNS = 5_000


def test_fuzzer_finds_something(tmp_path: Path) -> None:
    """A short run; `make fuzz` is the long one, which also sees the branches of the parser."""
    if not is_available():
        missing("atheris", "python -m pip install atheris")
    command = [sys.executable, "-m", "tests.fuzz.fuzz_mqtt", f"-runs={RUNS}", f"-artifact_prefix={tmp_path}/"]
    found = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr[-4_000:]
    assert f"Done {RUNS} runs" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_difference_between_pieces_goes_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that lost what the first piece holds would be found out."""
    target = Target()
    data = b"\x29\x03\x60\x60\x60\x60" + (DATA / "paho-5.bin").read_bytes()
    target.run(data)
    connection = target._connection
    monkeypatch.setattr(
        target, "_connection", lambda options, pieces: connection(options, pieces[1:] if len(pieces) > 1 else pieces)
    )
    with pytest.raises(AssertionError, match="pieces change the outcome"):
        target.run(data)
    target.close()
