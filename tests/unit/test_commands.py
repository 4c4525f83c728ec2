"""The commands that read and check, called in this process; what they print and how they end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gateway_native import batch

from gateway import cli
from gateway.commands.read import parse_offsets
from gateway.errors import UsageError
from gateway.log.layout import prepare
from tests.support.partitions import Partition

T0 = 1_795_431_600_000  # ms; 2026-11-23 12:00:00 in Berlin


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def gateway(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command line as `main` does."""

    def run(*arguments: object) -> Result:
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a stream of five odd records, one a second."""
    directory = tmp_path / "data"
    prepare(directory, "plant-7", "Europe/Berlin")
    records = [
        (b"plant/1/temperature", b"21.5", []),
        (b"plant/2/temperature", b'{"v": "\xc3\xa4"}', [("qos", b"1")]),
        (b"plant/1/state", b"\xff\x00\x01", [("user", b"a"), ("user", b"b"), ("blob", b"\xff")]),
        (None, None, []),
        (b"plant/1/temperature", b"line one\nline two\x1b[2J", []),
    ]
    encoded = batch.encode([(T0 + 1_000 * n, *record) for n, record in enumerate(records)], 0)
    partition = Partition(directory / "telemetry-0")
    partition.add([encoded], sealed=False)
    partition.mark_all()
    return directory


def test_records_as_text_are_one_line_each(gateway: Callable[..., Result], data: Path) -> None:
    """Times carry the site's offset; bytes are counted; nothing received can break a line or move the cursor."""
    result = gateway("read", "telemetry", "--data", data)
    lines = result.out.splitlines()
    assert (result.code, result.err, len(lines)) == (0, "", 5)
    assert lines[0].split() == ["2026-11-23T12:00:00.000+01:00", "0", "plant/1/temperature", "21.5"]
    assert lines[2].endswith("(3 bytes)  user=a user=b blob=(1 bytes)")
    assert lines[3].split()[2:] == ["-", "(no", "value)"]
    assert lines[4].endswith("line one\\nline two\\x1b[2J")


def test_records_as_json_lose_nothing(gateway: Callable[..., Result], data: Path) -> None:
    """One object a line; what is not text comes in base64; a header's repeated name has the list of its values."""
    result = gateway("read", "telemetry", "--data", data, "--json")
    first, second, third, fourth, fifth = map(json.loads, result.out.splitlines())
    assert first == {
        "offset": 0,
        "timestamp": "2026-11-23T12:00:00.000+01:00",
        "key": "plant/1/temperature",
        "value": "21.5",
        "headers": {},
    }
    assert (second["value"], second["headers"]) == ('{"v": "ä"}', {"qos": "1"})
    assert "value" not in third
    assert (third["value_base64"], third["headers"]) == ("/wAB", {"user": ["a", "b"], "blob": {"base64": "/w=="}})
    assert (fourth["key"], fourth["value"]) == (None, None)
    assert fifth["value"] == "line one\nline two\x1b[2J"


def test_records_as_csv_have_a_heading(gateway: Callable[..., Result], data: Path) -> None:
    """A CSV reader gets back what was recorded, line breaks included."""
    rows = list(csv.DictReader(io.StringIO(gateway("read", "telemetry", "--data", data, "--csv").out)))
    assert len(rows) == 5
    assert rows[4]["value"] == "line one\nline two\x1b[2J"
    assert (rows[2]["value"], rows[2]["value_base64"]) == ("", "/wAB")
    assert json.loads(rows[1]["headers"]) == {"qos": "1"}


@pytest.mark.parametrize(
    ("options", "offsets"),
    [
        (["--start", "2026-11-23 12:00:01", "--end", "2026-11-23 12:00:03"], [1, 2]),
        (["--start", "2026-11-23T11:00:03Z"], [3, 4]),
        (["--key", "plant/+/temperature"], [0, 1, 4]),
        (["--key", "plant/2/#", "--key", "plant/1/state"], [1, 2]),
        (["--offsets", "1:3"], [1, 2]),
        (["--offsets", "-2:"], [3, 4]),
        (["--offsets", ":-3"], [0, 1]),
        (["--offsets", "3:3"], []),
        (["--limit", "2"], [0, 1]),
        (["--start", "-1m", "--end", "now"], []),
    ],
)
def test_ranges_choose_records(
    gateway: Callable[..., Result], data: Path, options: Sequence[str], offsets: Sequence[int]
) -> None:
    """By time (half-open, in the site's zone), by key filter, by offset, by number; -1m is a time, not an option."""
    result = gateway("read", "telemetry", "--data", data, "--json", *options)
    assert result.code == 0, result.err
    assert [json.loads(line)["offset"] for line in result.out.splitlines()] == offsets


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["read", "nope"], 1, "There is no stream 'nope' here; there is: telemetry."),
        (["read", "telemetry", "--start", "yesterday"], 2, "'yesterday' is not a time"),
        (["read", "telemetry", "--key", "a#"], 2, "a#"),
        (["read", "telemetry", "--offsets", "5"], 2, "--offsets '5' is not a range"),
        (["read", "telemetry", "--offsets", "4:2"], 2, "ends before it starts"),
        (["read", "telemetry", "--follow", "--end", "now"], 2, "--end makes no sense"),
        (["read", "telemetry", "--ofsets", "1:2"], 2, "Did you mean '--offsets'?"),
        (["read"], 2, "Missing argument"),
        (["frame", "telemetry", "now", "x.png"], 1, "The stream 'telemetry' holds no pictures."),
        (["frame", "telemetry", "now", "x.gif"], 2, "names no picture format"),
        (["frame", "telemetry", "now", "x.png", "--max-age", "2"], 2, "needs a unit"),
        (["export", "telemetry", "x.mp4"], 1, "no picture is recorded"),
        (["export", "telemetry", "other", "x.mp4"], 2, "pictures of one stream"),
        (["export", "telemetry", "x.csv", "--camera", "gate-1"], 2, "--camera is for .mp4 files"),
        (["export", "telemetry", "x.csv", "--key", "a#"], 2, "a#"),
        (["export", "nope", "x.csv"], 1, "There is no stream 'nope'"),
        (["read", "telemetry", "--cursor", "x", "--end", "now"], 2, "--cursor says where to begin"),
    ],
)
def test_mistakes_are_one_sentence_and_an_exit_code(
    gateway: Callable[..., Result], data: Path, arguments: Sequence[str], code: int, sentence: str
) -> None:
    """1 failed, 2 usage; no traceback, nothing on stdout."""
    result = gateway(*arguments, "--data", data)
    assert result.code == code
    assert sentence in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_reading_goes_on_at_a_cursor(gateway: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    """What was printed is not printed again; what a limit left is; the lag is said."""
    arguments = ("read", "telemetry", "--data", data, "--json", "--cursor", tmp_path / "c")
    first = gateway(*arguments, "--limit", "2")
    assert [json.loads(line)["offset"] for line in first.out.splitlines()] == [0, 1]
    assert "3 records more are there." in first.err
    second = gateway(*arguments)
    assert [json.loads(line)["offset"] for line in second.out.splitlines()] == [2, 3, 4]
    assert (gateway(*arguments).out, second.err) == ("", "")


def test_export_of_records(gateway: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    """One file, or a directory that is gone on with; the report says what was written."""
    one = gateway("export", "telemetry", tmp_path / "x.jsonl", "--data", data, "--key", "plant/+/temperature")
    assert one.code == 0, one.err
    assert one.out.startswith(f"{tmp_path / 'x.jsonl'}: 3 records in 1 file, ")
    offsets = [json.loads(line)["offset"] for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert offsets == [0, 1, 4]
    lake = gateway("export", "telemetry", tmp_path / "lake", "--data", data, "--format", "csv", "--json")
    assert json.loads(lake.out)["records"] == 5
    assert gateway("export", "telemetry", tmp_path / "lake", "--data", data).code == 1
    again = gateway("export", "telemetry", tmp_path / "lake", "--data", data, "--resume", "--json")
    assert (json.loads(again.out)["records"], json.loads(again.out)["resumed"]) == (0, True)


def test_where_the_data_is_must_be_said_once(
    gateway: Callable[..., Result], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--data, -c, or ./gateway.toml; both or none is a usage error, another directory an error."""
    monkeypatch.chdir(tmp_path)
    assert gateway("stream", "list").code == 2
    assert gateway("stream", "list", "--data", tmp_path / "nothing").code == 1
    assert gateway("stream", "list", "-c", tmp_path / "nothing.toml").code == 3
    config = tmp_path / "gateway.toml"
    config.write_text('data = "data"\n[cameras.c]\nurl = "rtsp://h"\npassword = "${TEST_UNSET}"\n')
    for where in ([], ["-c", config], ["--data", data]):
        assert "telemetry" in gateway("stream", "list", *where).out
    assert gateway("stream", "list", "--data", data, "-c", config).code == 2


def test_streams_are_listed(gateway: Callable[..., Result], data: Path) -> None:
    """Offsets, numbers, sizes and times, as a table and as one JSON object."""
    heading, row, _, free = gateway("stream", "list", "--data", data).out.splitlines()
    assert free.endswith("are free.")
    assert heading.split()[:3] == ["STREAM", "RECORDS", "OFFSETS"]
    assert row.split()[:3] == ["telemetry", "5", "0:5"]
    report = json.loads(gateway("stream", "list", "--data", data, "--json").out)
    (stream,) = report["streams"]
    assert report["timezone"] == "Europe/Berlin"
    assert (stream["stream"], stream["records"], stream["durable_offset"]) == ("telemetry", 5, 5)
    assert (stream["oldest"], stream["newest"]) == ("2026-11-23T12:00:00.000+01:00", "2026-11-23T12:00:04.000+01:00")


def test_an_empty_data_directory_lists_nothing(gateway: Callable[..., Result], tmp_path: Path) -> None:
    """No streams yet is a sentence, not an empty table."""
    prepare(tmp_path / "new", "x", "UTC")
    result = gateway("stream", "list", "--data", tmp_path / "new")
    assert (result.code, result.out) == (0, f"There are no streams in {tmp_path}/new yet.\n")


def test_sound_data_is_verified(gateway: Callable[..., Result], data: Path) -> None:
    """Exit code 0 and the counts of what was looked at."""
    result = gateway("verify", "--data", data)
    assert (result.code, result.out.splitlines()[-1]) == (0, "Every byte is sound.")
    report = json.loads(gateway("verify", "--data", data, "--json", "--deep").out)
    assert (report["sound"], report["partitions"][0]["records"], report["damages"]) == (True, 5, [])


def test_damage_is_exit_code_4(gateway: Callable[..., Result], data: Path) -> None:
    """One flipped bit is found, named with its file, and ends the command with 4, in text and in JSON."""
    log = data / "telemetry-0" / f"{0:020d}.log"
    changed = bytearray(log.read_bytes())
    changed[100] ^= 1
    log.write_bytes(changed)
    result = gateway("verify", "--data", data)
    assert result.code == 4
    assert str(log) in result.out
    assert "damaged" in result.err
    as_json = gateway("verify", "--data", data, "--json")
    report = json.loads(as_json.out)
    assert (as_json.code, report["sound"], report["damages"][0]["path"]) == (4, False, str(log))


def test_init_writes_a_configuration_that_is_sound_and_overwrites_none(
    gateway: Callable[..., Result], tmp_path: Path
) -> None:
    """What init writes passes the check, also with every commented key taken in; a second init leaves it alone."""
    path = tmp_path / "gateway.toml"
    assert gateway("init", path, "--data", 'strange "name"').code == 0
    text = path.read_text()
    checked = gateway("config", "check", "-c", path)
    assert (checked.code, checked.err) == (0, "")
    assert 'strange "name"' in checked.out
    again = gateway("init", path)
    assert (again.code, path.read_text()) == (1, text)
    assert "exists and was left as it is" in again.err


def test_every_commented_key_of_init_is_right(
    gateway: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examples in the comments load as they stand."""
    path = tmp_path / "gateway.toml"
    gateway("init", path)
    (tmp_path / "secret").write_text("x")
    monkeypatch.setenv("GATE1_PASSWORD", "x")
    lines = [
        line.removeprefix("# ") if line.startswith(("# [", "# include")) or " = " in line else line
        for line in path.read_text().splitlines()
    ]
    text = "\n".join(lines).replace("/run/credentials/broker", str(tmp_path / "secret"))
    path.write_text(text)
    result = gateway("config", "check", "-c", path, "--json")
    assert result.code == 0, result.err
    assert [source["name"] for source in json.loads(result.out)["sources"]] == ["devices", "broker", "gate-1"]


def test_a_wrong_configuration_is_exit_code_3(gateway: Callable[..., Result], tmp_path: Path) -> None:
    """Every mistake is a line of its own on stderr; run refuses it in the same words."""
    path = tmp_path / "gateway.toml"
    path.write_text('data = "d"\n[sit]\n[streams.t]\nack = "x"\n')
    checked = gateway("config", "check", "-c", path)
    assert (checked.code, checked.out) == (3, "")
    assert f"{path}:2: sit: unknown key" in checked.err
    assert f"{path}:4: streams.t.ack" in checked.err
    assert gateway("run", "-c", path) == checked


def test_the_check_says_what_is_odd_and_what_adds_up(
    gateway: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings go to stderr; limits and sums to stdout and into the JSON."""
    monkeypatch.setattr("gateway.commands.config.is_synchronised", lambda: False)
    path = tmp_path / "gateway.toml"
    path.write_text(
        f'data = "{tmp_path}"\n[streams.t]\nretention = "30d"\n[mqtt.listeners.l]\nbind = "0.0.0.0:1883"\n'
        'allow_anonymous = true\nroutes = [{ filter = "#", stream = "t" }]\n[cameras.c]\nurl = "rtsp://h/x"\n'
    )
    result = gateway("config", "check", "-c", path)
    assert result.code == 0
    assert "warning: streams.t.retention: waits, as far as it is by age" in result.err
    assert "descriptors (6 × 3 streams + 10,000 connections" in result.out
    assert "of reserve, which is never filled" in result.out
    assert "warning: mqtt.listeners.l.allow_anonymous: everybody who reaches this address may publish" in result.err
    report = json.loads(gateway("config", "check", "-c", path, "--json").out)
    limits = report["limits"]
    fixed = limits["session_rings_bytes"] + limits["buffer_bytes"] + limits["key_index_bytes"]
    assert limits["memory_bytes_max"] == limits["rings"] * limits["ring_bytes"] + fixed
    assert report["streams"]["t"]["segment_age_ns"] == 30 * 86_400 * 10**9 // 8
    assert report["data"]["free_bytes"] > 0
    assert [one["name"] for one in limits["sums"]] == ["descriptors", "mappings", "memory"]
    assert limits["sums"][2]["needed"] == limits["memory_bytes_max"]


def test_the_forecast_says_what_the_disk_will_hold(gateway: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    """From the rates of what is there: what each stream will hold by its own limits, and when retention begins."""
    path = tmp_path / "gateway.toml"
    listener = '[mqtt.listeners.l]\nbind = "127.0.0.1:0"\nroutes = [{ filter = "#", stream = "telemetry" }]\n'
    path.write_text(f'data = "{data}"\n{listener}[streams.telemetry]\nretention = "5MiB"\n')
    as_json = gateway("config", "check", "-c", path, "--forecast", "--json")
    report = json.loads(as_json.out)["forecast"]
    assert report["streams"]["telemetry"]["bytes"] > 0
    assert report["streams"]["telemetry"]["bytes_max"] == 5 * 2**20
    assert report["days_until_full"] is None, "four seconds of records say nothing about a rate"
    assert "does not fill up" in gateway("config", "check", "-c", path, "--forecast").out
    path.write_text(f'data = "{tmp_path / "new"}"\n{listener}')
    assert "nothing is recorded yet" in gateway("config", "check", "-c", path, "--forecast").out


def test_deleting_by_hand_leaves_the_last_segment(gateway: Callable[..., Result], data: Path) -> None:
    """A stream of one segment loses nothing; what is no time is a usage error."""
    deleted = gateway("stream", "delete", "telemetry", "--before", "now", "--data", data)
    assert (deleted.code, deleted.out) == (0, "Deleted 0 segments of telemetry, 0 B. It begins at offset 0 now.\n")
    assert gateway("stream", "delete", "telemetry", "--before", "soon", "--data", data).code == 2
    assert gateway("stream", "delete", "nope", "--before", "now", "--data", data).code == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5:7", (5, 7)), ("5:", (5, None)), (":7", (3, 7)), (":", (3, None)), ("-4:", (16, None)), ("-99:-1", (3, 19))],
)
def test_offsets_are_half_open_and_may_count_from_the_end(text: str, expected: tuple[int, int | None]) -> None:
    """With a log of offsets 3 to 20."""
    assert parse_offsets(text, 3, 20) == expected


@pytest.mark.parametrize("text", ["5", "a:b", "5:3", "1:2:3", "--5:"])
def test_what_is_no_range_of_offsets_is_refused(text: str) -> None:
    """A sentence, not a guess."""
    with pytest.raises(UsageError):
        parse_offsets(text, 3, 20)


COMMANDS = [
    ["init"], ["run"], ["demo"], ["simulate"], ["simulate", "sensors"], ["simulate", "camera"], ["stream"],
    ["stream", "list"], ["stream", "delete"], ["read"], ["frame"], ["frames"], ["export"], ["replay"], ["camera"],
    ["camera", "snapshot"], ["verify"], ["config"], ["config", "check"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(gateway: Callable[..., Result], command: Sequence[str]) -> None:
    """Help says what the command does; where there is something to type, with examples that begin with its name."""
    result = gateway(*command, "--help")
    assert result.code == 0
    if "COMMAND" not in result.out.splitlines()[0]:
        assert f"Examples:\n    gateway {' '.join(command)}" in result.out


def test_all_commands_are_listed(gateway: Callable[..., Result]) -> None:
    """`gateway --help` names them with a whole sentence each; `--version` says which this is."""
    result = gateway("--help")
    assert {command[0] for command in COMMANDS} <= {line.split()[0] for line in result.out.splitlines() if line}
    listed = result.out.partition("Commands:")[2].splitlines()
    assert all(line.endswith(".") and not line.endswith("...") for line in listed if line)
    assert gateway("--version").out.startswith("gateway ")


def test_a_fault_of_ours_is_called_one(
    gateway: Callable[..., Result], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is a sentence and exit code 1; with --debug the traceback is shown."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("oops rtsp://u:hunter2@h")

    monkeypatch.setattr("gateway.replay.log.Log.streams", fail)
    result = gateway("stream", "list", "--data", data)
    assert result.code == 1
    assert "fault in Gateway itself" in result.err
    assert "Traceback" not in result.err
    assert "hunter2" not in result.err
    assert "Traceback" in gateway("--debug", "stream", "list", "--data", data).err
