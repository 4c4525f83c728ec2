"""Starts cameras of GStreamer's gst-rtsp-server, the independent implementation that the adapter is tested against."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

_PROGRAM = Path(__file__).with_name("gst_rtsp_server.py")
_PYTHON = "/usr/bin/python3"
_PACKAGES = "gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base -good -bad -ugly python3-gi"


@cache
def _missing() -> str:
    """Why GStreamer's server cannot be started here; empty when it can."""
    if not Path(_PYTHON).exists():
        return f"{_PYTHON} is not there"
    looked = subprocess.run(
        [_PYTHON, str(_PROGRAM), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    return "" if looked.returncode == 0 else (looked.stderr.strip().splitlines() or ["it does not start"])[-1]


def require() -> None:
    """Skip the test where GStreamer's server is missing; in CI, where it is installed, fail."""
    if reason := _missing():
        text = f"gst-rtsp-server cannot be used ({reason}); on Debian: apt install {_PACKAGES}"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """One camera; gives its URL on loopback."""
    command = [_PYTHON, str(_PROGRAM), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().split()
            assert said[:1] == ["port"], f"gst-rtsp-server said {said}"
            yield f"rtsp://127.0.0.1:{said[1]}/cam"
        finally:
            process.kill()
