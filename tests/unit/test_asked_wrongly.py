"""What is asked for but cannot be meant is told in a sentence, instead of giving nothing or something else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gateway
from gateway import cli
from gateway.errors import UsageError
from gateway.replay.republish import Changes
from tests.support.columns import Put, make_stream
from tests.support.gateway_process import ROOT, environment

ROWS = [Put(n * 1_000, b"plant/a", b'{"t": %d}' % n) for n in range(5)]

Wrong = Callable[[gateway.Stream], Any]


@pytest.fixture(name="data")
def make_data(tmp_path: Path) -> Path:
    """Two streams of five records, one a second."""
    for name in ("telemetry", "alarms"):
        make_stream(tmp_path / "data", ROWS, name=name)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("ask", "error", "told"),
    [
        (lambda stream: stream.read(offsets=(-5, None)), ValueError, "durable_offset - 10"),
        (lambda stream: stream.read(offsets=5), TypeError, "not 5"),
        (lambda stream: stream.read(keys=5), TypeError, "not 5"),
        (lambda stream: stream.read().to_arrow(value="json"), TypeError, "'value' is no option; there are values"),
        (lambda stream: list(stream.frames(size=320)), UsageError, "not 320"),
        (lambda _: gateway.open("http://edge-7"), UsageError, "kafka://host:port"),
        (lambda _: Changes("replay/+/"), ValueError, "no topic|none"),
    ],
)
def test_calls_that_mean_nothing(data: Path, ask: Wrong, error: type[Exception], told: str) -> None:
    """At once, not when the result is used."""
    with pytest.raises(error, match=told):
        ask(gateway.open(data)["telemetry"])


def test_one_stream_at_an_instant(data: Path) -> None:
    """A name alone is one name, not its letters."""
    log = gateway.open(data)
    when = log["telemetry"].describe()["newest"]
    assert [row.stream.name for row in log.at(when, streams="telemetry").rows] == ["telemetry"]


def test_numbers_asked_of_objects_say_what_to_do(data: Path) -> None:
    """The usual mistake with JSON payloads names its remedy."""
    records = gateway.open(data)["telemetry"].read()
    with pytest.warns(gateway.BadPayloadWarning, match='values="json" reads those'):
        assert records.to_arrow(values="float").num_rows == 0


@pytest.mark.parametrize(("library", "extra"), [("pyarrow", "replay"), ("polars", "frames"), ("duckdb", "frames")])
def test_a_missing_library_names_what_brings_it(
    data: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    """The extra of pyproject.toml that has it."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(each.startswith(library) for each in wanted[extra])
    monkeypatch.setitem(sys.modules, library, None)
    records = gateway.open(data)["telemetry"].read()
    read = {"pyarrow": records.to_arrow, "polars": records.to_polars, "duckdb": records.to_duckdb}[library]
    with pytest.raises(gateway.GatewayError, match=re.escape(f"gateway[{extra}]")):
        read()


@pytest.mark.parametrize(
    ("missing", "use"),
    [
        ("kio", "gateway.open('kafka://127.0.0.1:1')"),
        ("pyarrow", "gateway.open(sys.argv[1]).at('now')"),
        ("pyarrow", "gateway.open(sys.argv[1]).export(sys.argv[1] + '.parquet', 'telemetry')"),
        ("mcap", "gateway.open(sys.argv[1]).export(sys.argv[1] + '.mcap', 'telemetry')"),
        ("pyarrow", "gateway.open(sys.argv[1])['telemetry'].read().wide(every='1s')"),
    ],
)
def test_what_an_edge_box_lacks_is_named(data: Path, missing: str, use: str) -> None:
    """In a program of its own, which has imported nothing yet."""
    program = f"import sys; sys.modules[{missing!r}] = None; import gateway\ntry: {use}\n"
    program += "except gateway.GatewayError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(data)],
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "pip install 'gateway[" in done.stdout


def test_records_say_what_they_are(data: Path) -> None:
    """Whoever looks at them in a notebook learns how to go on."""
    assert "to_polars()" in repr(gateway.open(data)["telemetry"].read())


@pytest.mark.parametrize(
    "arguments",
    [
        ["read", "telemetry"],
        ["export", "telemetry", "x.parquet"],
        ["export", "telemetry", "x.mp4"],
        ["replay", "telemetry", "--to", "mqtt://127.0.0.1:1"],
        ["frames", "telemetry", "pictures"],
    ],
)
def test_ranges_that_end_before_they_begin(
    data: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2 for every command that takes a range, and nothing is written."""
    monkeypatch.chdir(data.parent)
    assert cli.run([*arguments, "--start", "now", "--end", "-1h", "--data", str(data)]) == 2
    assert "later than --end" in capsys.readouterr().err
    assert sorted(path.name for path in data.parent.iterdir()) == ["data"]


def test_reading_nothing_says_what_there_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, with exit code 0: a filter that matches nothing looks like a quiet sensor."""
    assert cli.run(["read", "telemetry", "--key", "plant/+/a", "--data", str(data)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "No record with such a key is in that range" in err
    assert "offsets 0 to 4" in err


def test_a_file_of_another_format_becomes_no_directory(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless a format says that it is to be one."""
    out = tmp_path / "data.xlsx"
    assert cli.run(["export", "telemetry", str(out), "--data", str(data)]) == 2
    assert ".parquet" in capsys.readouterr().err
    assert not out.exists()
    assert cli.run(["export", "telemetry", str(out), "--format", "csv", "--data", str(data)]) == 0
    assert (out / "stream=telemetry").is_dir()
    assert cli.run(["export", "alarms", str(out), "--resume", "--json", "--data", str(data)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["records"] == 5
    assert cli.run(["export", "telemetry", str(out), "--resume", "--key", "a", "--data", str(data)]) == 2
    assert "begun with all keys" in capsys.readouterr().err


def test_pictures_into_a_directory_that_is_not_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named as what it is, before anything is decoded."""
    assert cli.run(["frame", "telemetry", "now", str(tmp_path / "none" / "x.png"), "--data", str(data)]) == 1
    assert f"{tmp_path / 'none'} does not exist; create it first." in capsys.readouterr().err


def test_brokers_that_cannot_be_meant(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence of ours, not a library's."""
    assert cli.run(["replay", "telemetry", "--to", "http://x", "--data", str(data)]) == 2
    err = capsys.readouterr().err
    assert "mqtt://" in err
    assert "Value error" not in err
