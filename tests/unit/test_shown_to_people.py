"""What people see of large values, of nothing, and of what they may not read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gateway
from gateway import cli
from gateway.replay import text
from gateway.replay.records import Record
from tests.support.columns import Put, make_stream
from tests.support.gateway_process import environment

LARGE = "ä".encode() * 5_000_000


def record(value: bytes | None) -> Record:
    return Record(7, 1_700_000_000_000, b"plant/a", value, ())


def test_a_large_record_is_shown_in_a_line() -> None:
    """Its repr says how large it is; a small one is there as a whole."""
    shown = repr(record(LARGE))
    assert len(shown) < 1_500
    assert "(10,000,000 bytes)" in shown
    assert repr(record(b"21.5")) == (
        "Record(offset=7, timestamp_ms=1700000000000, key=b'plant/a', value=b'21.5', headers=())"
    )
    assert "value=None" in repr(record(None))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (LARGE, "ä" * text.TEXT_VALUE_CHARACTERS_MAX + "…"),
        (b"x" + LARGE, "x" + "ä" * (text.TEXT_VALUE_CHARACTERS_MAX - 1) + "…"),  # cut in the middle of a character
        (b"\xff" * 10_000_000, "(10,000,000 bytes)"),
        ("ä".encode()[:1], "(1 bytes)"),
        ("ä" * text.TEXT_VALUE_CHARACTERS_MAX, "ä" * text.TEXT_VALUE_CHARACTERS_MAX),
        (b"a\x1b[2Jb", "a\\x1b[2Jb"),
        (b"", ""),
    ],
)
def test_of_a_large_value_the_beginning_is_looked_at(value: bytes | str, shown: str) -> None:
    """It is cut, not escaped as a whole and then cut."""
    given = value.encode() if isinstance(value, str) else value
    assert text.as_text(record(given)).rstrip("\n").partition("plant/a  ")[2] == shown


def test_an_instant_without_records_says_what_was_asked(tmp_path: Path) -> None:
    """When, and how far back was looked."""
    make_stream(tmp_path / "data", [Put(0, b"plant/a", b"1")], name="telemetry")
    moment = gateway.open(tmp_path / "data").at("2020-01-01T00:00+00:00", max_age="1h")
    assert repr(moment) == "<gateway.Moment 2020-01-01T00:00:00.000+00:00, 0 keys in the 1 h before>"
    assert "0 keys in the 1 h before" in moment._repr_html_()


def test_a_stream_that_may_not_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named, the others are listed, and the exit code says that something is amiss."""
    data = tmp_path / "data"
    for name in ("alarms", "telemetry"):
        make_stream(data, [Put(0, b"plant/a", b"1")], name=name)
    described = gateway.Stream.describe

    def describe(stream: gateway.Stream) -> dict[str, object]:
        if stream.name == "alarms":
            raise PermissionError(13, "Permission denied", str(data / "alarms-0"))
        return described(stream)

    monkeypatch.setattr(gateway.Stream, "describe", describe)
    assert cli.run(["stream", "list", "--data", str(data)]) == 1
    out, err = capsys.readouterr()
    assert "telemetry" in out
    assert "alarms cannot be looked at" in err
    assert cli.run(["stream", "list", "--json", "--data", str(data)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [each["stream"] for each in report["streams"]] == ["telemetry"]
    assert "Permission denied" in report["unreadable"]["alarms"]


def test_a_cursor_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence names the cursor, not the file that would have become it."""
    make_stream(tmp_path / "data", [Put(0, b"plant/a", b"1")], name="telemetry")
    path = tmp_path / "none" / "report.cursor"
    assert cli.run(["read", "telemetry", "--cursor", str(path), "--data", str(tmp_path / "data")]) == 1
    err = capsys.readouterr().err
    assert f"The cursor {path} cannot be written" in err


INTERRUPTED = """
import sys
from gateway import cli
from gateway.replay.exports import exporter
written = exporter._Part.write

def write(part, rows):
    written(part, rows)
    raise KeyboardInterrupt

exporter._Part.write = write
sys.exit(cli.run(sys.argv[1:]))
"""


def test_an_interrupted_export_says_how_to_go_on(tmp_path: Path) -> None:
    """Exit code 130; nothing half is left; `--resume` writes all that is missing."""
    data, out = tmp_path / "data", tmp_path / "lake"
    make_stream(data, [Put(n, b"plant/a", b"1") for n in range(50)], name="telemetry")
    arguments = ["export", "telemetry", str(out), "--data", str(data)]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert "--resume goes on behind them" in done.stderr
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["_gateway-export.json"]
    assert gateway.open(data).export(out, "telemetry", resume=True).records == 50
