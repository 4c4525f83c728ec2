"""``gateway verify``: its exit codes, one line per damaged place, and the same as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway import cli
from gateway.log.layout import prepare
from gateway.log.lock import DataLock
from tests.support.partitions import Partition, make_batches


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs ``gateway verify`` with these arguments as `main` does."""

    def run(*arguments: object) -> Result:
        code = cli.run(["verify", *map(str, arguments)])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two streams, `a` and `b`, of 30 records in ten batches each."""
    directory = tmp_path / "data"
    prepare(directory, "plant-7", "Europe/Berlin")
    for name in ("a", "b"):
        partition = Partition(directory / f"{name}-0")
        partition.add(make_batches(10), sealed=False)
        partition.mark_all()
    return directory


def damage(data: Path, stream: str, *positions: int) -> Path:
    """Flip a bit at each position of the stream's segment."""
    path = data / f"{stream}-0" / f"{0:020d}.log"
    content = bytearray(path.read_bytes())
    for position in positions:
        content[position] ^= 1
    path.write_bytes(content)
    return path


def test_sound_directory_is_exit_code_0(verify: Callable[..., Result], data: Path) -> None:
    """Streams with their counts, and a last line that says so; nothing on stderr where that is no terminal."""
    result = verify("--data", data, "--deep")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[:3] for line in result.out.splitlines()[1:3]] == [["a", "30", "0:30"], ["b", "30", "0:30"]]
    assert result.out.splitlines()[-1] == "Every byte is sound."


def test_damage_is_exit_code_4_and_a_line_each(verify: Callable[..., Result], data: Path) -> None:
    """Every damaged place has one line: file, byte, what is wrong, which offsets it costs."""
    size = len(make_batches(1)[0])
    path = damage(data, "b", 2 * size + 70, 7 * size + 70)
    result = verify("--data", data)
    assert (result.code, result.err) == (4, f"gateway: 2 places are damaged in {data}.\n")
    lines = [line for line in result.out.splitlines() if line.startswith("damaged: ")]
    assert [line.split(": ")[1] for line in lines] == [f"{path}, byte {number * size}" for number in (2, 7)]
    shown = [f"offsets 6 to 8), {size} bytes", f"offsets 21 to 23), {size} bytes"]
    assert [line.split(" (")[1] for line in lines] == shown
    assert "sound" not in result.out


def test_one_stream_can_be_checked_alone(verify: Callable[..., Result], data: Path) -> None:
    """Damage in another stream is not looked for; a stream that is not there is named."""
    damage(data, "b", 100)
    assert verify("a", "--data", data).code == 0
    assert verify("a", "b", "--data", data).code == 4
    missing = verify("c", "--data", data)
    assert (missing.code, missing.out) == (1, "")
    assert "There is no stream 'c' here; there is: a, b." in missing.err


def test_notes_are_shown_and_are_no_damage(verify: Callable[..., Result], data: Path) -> None:
    """A missing index costs time and no data: a line, and exit code 0."""
    index = data / "a-0" / f"{0:020d}.index"
    index.unlink()
    result = verify("--data", data)
    assert result.code == 0
    assert f"note: {index}: is missing; the gateway makes it again" in result.out.splitlines()


def test_json_has_everything(verify: Callable[..., Result], data: Path) -> None:
    """One object: counts, damages with position and half-open offsets, notes; the exit code is the same."""
    (data / "a-0" / "watermark").unlink()
    path = damage(data, "b", 100)
    result = verify("--data", data, "--json")
    report = json.loads(result.out)
    assert (result.code, result.err, report["sound"], report["deep"]) == (4, "", False, False)
    assert [part["records"] for part in report["partitions"]] == [30, 27]
    (found,) = report["damages"]
    assert (found["path"], found["position"], found["offsets"]) == (str(path), 0, [0, 3])
    assert found["bytes"] == len(make_batches(1)[0])
    assert (report["damage_count"], report["note_count"]) == (1, 1)
    assert report["notes"][0]["path"].endswith("watermark")


def test_repair_makes_sidecars_again_and_leaves_the_log(verify: Callable[..., Result], data: Path) -> None:
    """Indexes, summaries and the manifest come back byte for byte, each is reported, and the logs stay as they are."""
    partition = Partition(data / "b-0")
    partition.add(make_batches(40, base_offset=30, value_bytes=300))
    partition.add(make_batches(40, base_offset=150, value_bytes=300), sealed=False)
    partition.mark_all()
    verify("--data", data, "--repair")  # segment 0 was not sealed when it was made
    whole = {path.name: path.read_bytes() for path in partition.directory.iterdir()}
    partition.index(30).write_bytes(b"12345678" * 3)
    partition.sums(30).unlink()
    partition.manifest.write_bytes(b"\1" * 128)
    partition.times(150).write_bytes(b"")
    partition.index(150).unlink()
    assert verify("--data", data).code == 4
    result = verify("--data", data, "--repair")
    assert (result.code, result.err) == (0, "")
    repaired = [line for line in result.out.splitlines() if line.startswith("repaired: ")]
    assert [Path(line.split(": ")[1]).name for line in repaired] == [f"{30:020d}.log", f"{150:020d}.log", "manifest"]
    assert {path.name: path.read_bytes() for path in partition.directory.iterdir()} == whole
    assert json.loads(verify("--data", data, "--repair", "--json").out)["repaired"] == []


def test_repair_leaves_damage_in_the_log_and_says_so(verify: Callable[..., Result], data: Path) -> None:
    """What cannot be made again stays, exit code 4; a damaged watermark goes, so that it is not taken for a promise."""
    path = damage(data, "b", 100)
    content = path.read_bytes()
    (data / "a-0" / "watermark").write_bytes(b"\1" * 128)
    result = verify("--data", data, "--repair")
    assert (result.code, path.read_bytes()) == (4, content)
    assert "watermark: removed, being damaged" in result.out
    assert f"gateway: 1 place is damaged in {data}." in result.err


def test_repair_waits_for_no_gateway(verify: Callable[..., Result], data: Path) -> None:
    """While a gateway runs, nothing is repaired, and the sentence names its process."""
    (data / "a-0" / f"{0:020d}.index").unlink()
    with DataLock(data):
        result = verify("--data", data, "--repair")
    assert (result.code, result.out) == (1, "")
    assert f"process {os.getpid()} holds" in result.err
    assert not (data / "a-0" / f"{0:020d}.index").exists()


def test_something_else_than_a_data_directory_is_refused(verify: Callable[..., Result], tmp_path: Path) -> None:
    """An empty or a missing directory is not sound: it is a mistake."""
    for path in (tmp_path, tmp_path / "nope"):
        result = verify("--data", path)
        assert (result.code, result.out) == (1, "")
        assert str(path) in result.err


def test_file_that_may_not_be_read_is_not_called_damage(
    verify: Callable[..., Result], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing permission says nothing about the bytes: exit code 1 and the file's name."""
    path = data / "a-0" / f"{0:020d}.log"
    sound = Path.open

    def refuse(self: Path, *arguments: object, **named: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return sound(self, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    result = verify("--data", data)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"gateway: {path}: Permission denied.\n"
