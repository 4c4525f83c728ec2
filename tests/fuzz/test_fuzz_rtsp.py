"""The fuzzer of RTSP replies runs, and would tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gateway_adapters.rtsp import messages

from tests.fuzz import fuzz_rtsp, target_rtsp
from tests.fuzz.fuzzing import is_available
from tests.integration.peers import missing
from tests.support.gateway_process import environment

ROOT = Path(__file__).parents[2]
RUNS = 5_000


def test_fuzzer_finds_something(tmp_path: Path) -> None:
    """A short run; `make fuzz` is the long one."""
    if not is_available():
        missing("atheris", "python -m pip install atheris")
    command = [sys.executable, "-m", "tests.fuzz.fuzz_rtsp", f"-runs={RUNS}", f"-artifact_prefix={tmp_path}/"]
    found = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr[-4_000:]
    assert f"Done {RUNS} runs" in found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["h264", "h265", "jpeg", "digest", "stale", "range"])
def test_seeds_are_conversations(name: str) -> None:
    """Each leads to a camera that plays, so that a changed byte is one in the middle of a handshake."""
    data = fuzz_rtsp.inputs()[name]
    found = target_rtsp.handshake(data[0], [data[target_rtsp.OPTION_BYTES :]])
    assert found.end == ""
    assert b"PLAY rtsp://" in found.sent
    assert found.rest == b"$\0\0\4abcd"
    target_rtsp.run(data)


def test_every_byte_wrong_in_turn() -> None:
    """Each changed to what hurts most: only what is allowed comes of it, and pieces change nothing."""
    for data in fuzz_rtsp.inputs().values():
        for at in range(target_rtsp.OPTION_BYTES, min(len(data), 1_100), 5):
            for value in (0x00, 0xFF, ord("9"), data[at] ^ 1):
                target_rtsp.run(data[:at] + bytes([value]) + data[at + 1 :])


def test_difference_between_pieces_goes_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that lost what the first piece holds would be found out."""
    data = fuzz_rtsp.inputs()["h264"]
    pieces = target_rtsp.pieces
    monkeypatch.setattr(target_rtsp, "pieces", lambda sent, cuts: list(pieces(sent, cuts))[1:])
    with pytest.raises(AssertionError, match="pieces change the outcome"):
        target_rtsp.run(data)


def test_memory_that_grows_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that come instead of an answer are given up in time; without that the bound is passed."""
    said = [b"$\0\xff\xff" + bytes(65_535)] * 20
    assert "does not answer requests" in target_rtsp.handshake(0, said).end
    monkeypatch.setattr(messages, "FRAMES_BYTES_MAX", 2**30)
    with pytest.raises(AssertionError):
        target_rtsp.handshake(0, said)
