"""The commands that write pictures: `frame`, `frames`, `camera snapshot`, `export`, called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import pytest

from gateway import cli
from tests.pictures import T0_MS, FakeStream, encode, white_columns
from tests.support.camera_log import STREAM, CameraLog, camera_log

GOP = 10


@pytest.fixture(name="log", scope="module")
def log_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CameraLog]:
    """Forty pictures, 25 a second, the 12th of them damaged."""
    fake = FakeStream().add(encode(40, gop=GOP), lost={12: 2})
    with camera_log(tmp_path_factory.mktemp("log"), fake, roll_at=[25]) as made:
        yield made


@pytest.fixture(name="gateway")
def gateway_fixture(capsys: pytest.CaptureFixture[str], log: CameraLog) -> Callable[..., tuple[int, str, str]]:
    """Runs a command on that log: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([*map(str, arguments), "--data", str(log.data)])
        return code, *capsys.readouterr()

    return run


def time_of(number: int) -> str:
    return datetime.fromtimestamp((T0_MS + number * 40) / 1000, UTC).isoformat(timespec="milliseconds")


def number_in(path: Path) -> int:
    image: Any = cv2.imread(str(path))
    return round(white_columns(image) / 2 * 160 / image.shape[1])


def test_the_picture_of_an_instant(gateway: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """In its own size, in another, and as the key frame nearest to it; JSON tells all that is known of it."""
    out = tmp_path / "gate.png"
    assert gateway("frame", STREAM, time_of(7), out)[:2] == (
        0, f"{out}: 160x120, received {time_of(7)}, offset 7\n"
    )  # fmt: skip
    assert number_in(out) == 7
    code, shown, _ = gateway("frame", STREAM, time_of(13), out, "--size", "80x", "--json")
    assert json.loads(shown) == {
        "path": str(out), "camera": "gate-1", "timestamp": time_of(13), "source_time": None, "offset": 13,
        "width": 80, "height": 60, "keyframe": False, "damaged": True,
    }  # fmt: skip
    assert (code, number_in(out)) == (0, 13)
    gateway("frame", STREAM, time_of(18), out, "--nearest-key")
    assert number_in(out) == 20


def test_the_pictures_of_a_range(gateway: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """One file each, named by its time; every so often, or key frames only."""
    out = tmp_path / "pictures"
    code, shown, _ = gateway("frames", STREAM, out, "--start", time_of(5), "--end", time_of(25), "--every", "200ms")
    assert (code, shown) == (0, f"{out}: 4 pictures, 1 of them damaged\n")
    found = sorted(out.iterdir())
    assert [number_in(path) for path in found] == [5, 10, 15, 20]
    assert found[0].name == "20260921T141320.200Z-5.png"
    code, shown, _ = gateway(
        "frames", STREAM, tmp_path / "keys", "--keys-only", "--json", "--format", "jpg", "--size", "x60"
    )
    reports = [json.loads(line) for line in shown.splitlines()]
    assert [report["offset"] for report in reports] == [0, 10, 20, 30]
    assert [number_in(Path(report["path"])) for report in reports] == [0, 10, 20, 30]
    assert {(report["width"], report["height"], report["keyframe"]) for report in reports} == {(80, 60, True)}


def test_the_newest_picture(gateway: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """What was recorded long ago is shown only when that is asked for."""
    out = tmp_path / "now.jpg"
    code, shown, said = gateway("camera", "snapshot", STREAM, out)
    assert (code, shown) == (1, "")
    assert "There is no picture" in said
    assert not out.exists()
    code, shown, _ = gateway("camera", "snapshot", STREAM, out, "--max-age", "50000d", "--json")
    assert (code, json.loads(shown)["offset"], number_in(out)) == (0, 39, 39)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["frame", STREAM, "now", "x.gif"], 2, "names no picture format"),
        (["frame", STREAM, "now", "x.png", "--size", "big"], 2, "'big' is no size"),
        (["frame", STREAM, "now", "x.png", "--size", "0x5"], 2, "1 to 16,384 pixels"),
        (["frames", STREAM, "d", "--every", "0s"], 2, "longer than nothing"),
        (["frames", STREAM, "d", "--end", "2001-01-01"], 1, "no picture of 'gate' in that range"),
        (["camera", "snapshot", STREAM, "x.tif"], 2, "names no picture format"),
        (["camera", "snapshot", "nope", "x.png"], 1, "There is no stream 'nope'"),
    ],
)
def test_mistakes_write_nothing(
    gateway: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    """One sentence on stderr, an exit code, no file."""
    monkeypatch.chdir(tmp_path)
    result = gateway(*arguments)
    assert (result[0], result[1]) == (code, "")
    assert sentence in result[2]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made(gateway: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """It is named, with the reason."""
    (tmp_path / "file").write_text("")
    code, _, said = gateway("frames", STREAM, tmp_path / "file" / "pictures", "--keys-only")
    assert code == 1
    assert "cannot be made: Not a directory." in said
