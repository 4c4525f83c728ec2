"""How the disk is divided, and how it is synced."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.ingest import disk


@pytest.mark.parametrize(
    ("choice", "mounted", "kernel", "expected"),
    [
        ("auto", "data", "6.1.0-18", True),
        ("auto", "parent", "6.1.0-18", True),
        ("auto", "nowhere", "6.1.0-18", False),
        ("auto", "data", "5.7.19", False),
        ("always", "nowhere", "5.10.0", True),
        ("always", "nowhere", "5.4.0", False),
        ("never", "data", "6.1.0-18", False),
    ],
)
def test_syncfs_stands_for_many_files_only_on_a_file_system_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, mounted: str, kernel: str, expected: bool
) -> None:
    """It writes what others left dirty, and tells of errors only since Linux 5.8."""
    data = tmp_path / "data"
    mount = {"data": data, "parent": tmp_path, "nowhere": Path("/")}[mounted]
    monkeypatch.setattr(Path, "is_mount", lambda path: path == mount)
    monkeypatch.setattr(disk.os, "uname", lambda: types.SimpleNamespace(release=kernel))
    config = Config.model_validate({"data": str(data), "disk": {"syncfs": choice}})
    assert disk.syncfs_files(config) == (disk.SYNCFS_FILES if expected else 0)
