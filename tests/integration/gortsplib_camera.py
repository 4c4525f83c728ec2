"""Starts cameras of gortsplib, MediaMTX's RTSP library, which send access units that the test gives them.

The program is tests/integration/gortsplib_server; .ci/gortsplib-server builds it.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.peers import missing
from tests.pictures import Unit

ROOT = Path(__file__).parents[2]
_PROGRAM = ROOT / "build" / "gortsplib-server"
_BUILD_TIMEOUT_S = 300


def require() -> str:
    """The program's path, which is built if it must be; ends the test where Go is missing."""
    if shutil.which("go") is None:
        if not _PROGRAM.exists():
            missing("gortsplib", "Go 1.19 or newer; apt install golang-go, then .ci/gortsplib-server")
        return str(_PROGRAM)
    built = subprocess.run(
        [str(ROOT / ".ci" / "gortsplib-server")], capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
    )
    if built.returncode != 0:
        pytest.fail(f"gortsplib's server cannot be built: {built.stderr}")
    return str(_PROGRAM)


@contextmanager
def serving(directory: Path, codec: str, units: Sequence[Unit], span: int, *arguments: str) -> Iterator[str]:
    """One camera that sends these again and again, `span` ticks of 90 kHz apart; gives its URL on loopback."""
    path = directory / "units"
    lines = [
        json.dumps({"pts": unit.pts, "nals": [base64.b64encode(each).decode() for each in unit.nals]}) for unit in units
    ]
    path.write_text("\n".join(lines))
    command = [require(), "-codec", codec, "-units", str(path), "-span", str(span), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline().split()
            assert said[:1] == ["port"], f"gortsplib's server said {said}"
            yield f"rtsp://127.0.0.1:{said[1]}/cam"
        finally:
            process.kill()
