"""The fuzzer of the Kafka endpoint runs, and would tell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.serve.kafka.requests import Requests
from tests.fuzz.fuzzing import is_available
from tests.fuzz.kafka_seeds import inputs
from tests.fuzz.target_kafka import Target
from tests.integration.peers import missing
from tests.support.gateway_process import environment

ROOT = Path(__file__).parents[2]
RUNS = 1_500


def test_fuzzer_finds_something(tmp_path: Path) -> None:
    """A short run; `make fuzz` is the long one."""
    if not is_available():
        missing("atheris", "python -m pip install atheris")
    command = [sys.executable, "-m", "tests.fuzz.fuzz_kafka", f"-runs={RUNS}", f"-artifact_prefix={tmp_path}/"]
    found = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr[-4_000:]
    assert f"Done {RUNS} runs" in found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def target() -> Iterator[Target]:
    """Closed at the end."""
    made = Target()
    yield made
    made.close()


def test_inputs_to_begin_with_are_sound(target: Target) -> None:
    """Every API is answered but the logins, which are offered only with users; batches are recorded."""
    for data in inputs().values():
        target.run(data)
    statistics = target._server.statistics()
    assert statistics["protocol_errors"] == 4  # SaslHandshake in one version, SaslAuthenticate in three
    assert statistics["records"] >= 3 * 6
    assert statistics["offsets_committed"] > 0


def test_a_fault_of_ours_goes_unnoticed(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be found out: a request whose handler fails, and an answer to another request."""
    data = inputs()["request-3-1"]

    async def fail(self: Requests, header: Any, request: Any) -> Any:
        raise LookupError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(Requests, "_metadata", fail)
        with pytest.raises(AssertionError, match="a fault of ours"):
            target.run(data)
    target._server.counters["faults"] = 0
    monkeypatch.setattr("gateway.kafka.wire.response_header", lambda header: b"\0\0\0\x63")
    with pytest.raises(AssertionError, match="answered"):
        target.run(data)
