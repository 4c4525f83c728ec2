"""One writer for a data directory, and a clean end whenever it is asked for."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gateway
from tests.support.gateway_process import GatewayProcess, environment
from tests.support.publisher import QosOnePublisher


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_ends_it_with_code_0_and_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT in the middle of QoS 1 traffic: exit code 0, and every acknowledged message is in the log."""
    with GatewayProcess(tmp_path) as process:
        process.start()
        publishers = [QosOnePublisher(process.port, f"c{client}", f"load/{client}") for client in range(4)]
        for publisher in publishers:
            publisher.start()
        time.sleep(0.5)
        assert process.end(number) == 0, process.log
        for client, publisher in enumerate(publishers):
            publisher.join(20)
            stored = [
                int(row[3] or b"") for row in gateway.open(process.data)["telemetry"].read(keys=f"load/{client}").rows()
            ]
            assert stored[: publisher.acknowledged] == list(range(publisher.acknowledged))
            assert publisher.acknowledged > 0
        assert "Traceback" not in process.log
        process.start()
        assert process.end() == 0


def test_a_second_gateway_is_refused_and_names_the_first(tmp_path: Path) -> None:
    """Two gateways on one data directory: the second ends at once, names the pid that holds it, and harms nothing."""
    with GatewayProcess(tmp_path) as process:
        process.start()
        assert process.process is not None
        second = tmp_path / "second.toml"
        second.write_text(f'data = "{process.data}"\n', encoding="utf-8")
        refused = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "run", "-c", str(second)],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=30,
            check=False,
        )
        assert refused.returncode == 1
        assert str(process.process.pid) in refused.stderr
        assert "Traceback" not in refused.stderr
        publisher = QosOnePublisher(process.port, "c", "load/0")
        publisher.start()
        time.sleep(0.2)
        publisher.finish()
        assert publisher.acknowledged > 0
        assert process.end() == 0


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    """A listener whose port is in use ends the start with a sentence that names the address, not with a traceback."""
    with GatewayProcess(tmp_path / "first") as process:
        process.start()
        other = GatewayProcess(tmp_path / "other")
        text = other.config.read_text(encoding="utf-8").replace(f":{other.port}", f":{process.port}")
        other.config.write_text(text, encoding="utf-8")
        with other:
            other.start(wait=False)
            assert other.process is not None
            assert other.process.wait(30) == 1
            assert f"127.0.0.1:{process.port}" in other.log
            assert "Traceback" not in other.log
