"""A data directory that cannot be used: one sentence that names it, exit code 1 or 3, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway_process import GatewayProcess, environment
from tests.support.native import wait_until
from tests.support.publisher import QosOnePublisher
from tests.support.small_disk import small_disk


def refused(directory: Path, data: Path) -> str:
    """Run the gateway on it; what it says."""
    config = directory / "refused.toml"
    config.write_text(f'data = "{data}"\n', encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "run", "-c", str(config)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=30,
        check=False,
    )
    assert ended.returncode in (1, 3), ended.stderr
    assert "Traceback" not in ended.stderr
    assert str(data) in ended.stderr, ended.stderr
    assert len([line for line in ended.stderr.splitlines() if line.startswith("gateway:")]) == 1, ended.stderr
    return ended.stderr


def test_a_file_is_no_data_directory(tmp_path: Path) -> None:
    """`data` names a file."""
    (tmp_path / "data").write_text("mine", encoding="utf-8")
    refused(tmp_path, tmp_path / "data")
    assert (tmp_path / "data").read_text(encoding="utf-8") == "mine"


def test_a_directory_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    """A parent of `data` is a file."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    refused(tmp_path, tmp_path / "file" / "data")


def test_a_missing_parent_is_made(tmp_path: Path) -> None:
    """A data directory several levels below what exists is simply made."""
    with GatewayProcess(tmp_path) as process:
        text = process.config.read_text(encoding="utf-8")
        process.config.write_text(text.replace(str(process.data), str(tmp_path / "a" / "b" / "data")), encoding="utf-8")
        process.start()
        assert process.end() == 0
    assert (tmp_path / "a" / "b" / "data" / "meta.json").is_file()


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    """A directory that holds other things is refused, and nothing but the lock is added to it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.odt").write_text("mine", encoding="utf-8")
    assert "thesis.odt" in refused(tmp_path, tmp_path / "data")
    assert {entry.name for entry in (tmp_path / "data").iterdir()} <= {"thesis.odt", "lock"}


def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    """On a disk mounted read-only the gateway does not start, and says which directory it is."""
    with small_disk(tmp_path / "disk", "tmpfs", 1 << 20) as disk:
        disk.make_read_only()
        assert "Read-only" in refused(tmp_path, disk.path / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_named(tmp_path: Path) -> None:
    """Where the gateway may not write, it does not start, and says which directory it is."""
    (tmp_path / "closed").mkdir(mode=0o555)
    assert "ermission" in refused(tmp_path, tmp_path / "closed" / "data")


def test_a_directory_taken_away_fails_the_stream_and_not_the_gateway(tmp_path: Path) -> None:
    """The directory of a running gateway disappears: nothing is acknowledged from then on, the log says why."""
    with GatewayProcess(tmp_path, extra_toml='[streams.telemetry]\nsegment_size = "1MiB"\n') as process:
        process.start()
        publisher = QosOnePublisher(process.port, "c", "load/0")
        publisher.start()
        wait_until(lambda: publisher.acknowledged > 0, "an acknowledgement")
        (process.data / "telemetry-0").rename(tmp_path / "taken")
        publisher.join(60)
        assert not publisher.is_alive(), "the client was not disconnected"
        assert publisher.fault is None
        # Creating the next segment, or syncing the directory for it: whichever comes first.
        assert "The stream 'telemetry' failed while" in process.log
        assert process.end() == 0
