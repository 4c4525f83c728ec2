"""Fixtures that more than one kind of test uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.recording import Recording


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    """A running writer on a temporary directory."""
    made = Recording(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def stopped_recording(tmp_path: Path) -> Iterator[Recording]:
    """A writer that takes nothing from its rings until `start` is called."""
    made = Recording(tmp_path / "data", start=False)
    yield made
    made.close()
