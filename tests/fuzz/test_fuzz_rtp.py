"""The fuzzer of cameras' connections runs, and would tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gateway_native.rtp import Receiver

from tests.fuzz import target_rtp
from tests.fuzz.fuzz_rtp import streams
from tests.fuzz.fuzzing import is_available
from tests.integration.peers import missing
from tests.support.gateway_process import environment
from tests.support.rtp_packets import T0

ROOT = Path(__file__).parents[2]
RUNS = 5_000


def test_fuzzer_finds_something(tmp_path: Path) -> None:
    """A short run; `make fuzz` is the long one, which also sees the branches of the receiver."""
    if not is_available():
        missing("atheris", "python -m pip install atheris")
    command = [sys.executable, "-m", "tests.fuzz.fuzz_rtp", f"-runs={RUNS}", f"-artifact_prefix={tmp_path}/"]
    found = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr[-4_000:]
    assert f"Done {RUNS} runs" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_seeds_are_streams() -> None:
    """Each begins as something that is understood: units, texts and reports come of it."""
    for name, data in streams().items():
        outcome = target_rtp.connection(data[0], [data[target_rtp.OPTION_BYTES :]])
        assert outcome.fault is None
        if "loss" in name:
            assert outcome.statistics["duplicate_packets"] == outcome.statistics["lost_packets"] == 1
        else:
            assert len(outcome.units) >= 2
            assert len(outcome.texts) == 1


def test_difference_between_pieces_goes_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that lost what the first piece holds would be found out."""
    data = streams()["h264"]
    target_rtp.run(data)
    pieces = target_rtp.pieces
    monkeypatch.setattr(target_rtp, "pieces", lambda sent, cuts: list(pieces(sent, cuts))[1:])
    with pytest.raises(AssertionError, match="pieces change the outcome"):
        target_rtp.run(data)


def test_every_byte_wrong_in_turn() -> None:
    """Each byte of a stream changed to what hurts most: only RemoteFault comes of it, and pieces change nothing."""
    for data in streams().values():
        for at in range(target_rtp.OPTION_BYTES, len(data), 3):
            for value in (0x00, 0xFF, data[at] ^ 0x80, data[at] ^ 1):
                target_rtp.run(data[:at] + bytes([value]) + data[at + 1 :])


def test_every_byte_the_last() -> None:
    """A connection may end anywhere."""
    for data in streams().values():
        for end in range(target_rtp.OPTION_BYTES, len(data)):
            target_rtp.run(data[:end])


def test_memory_is_given_back() -> None:
    """After the end nothing is held, but what a frame that never became whole has."""
    each = Receiver("h264")
    data = streams()["h264"][target_rtp.OPTION_BYTES :]
    each.feed(data[:-20], T0)
    assert each.memory_bytes > 0
    each.feed(data[-20:], T0)
    each.end()
    assert each.memory_bytes == 0
