"""The command line as processes: pipes, signals, and the demo from beginning to end. Needs no program of others."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import pytest

from gateway.log.layout import prepare
from tests.support.gateway_process import environment
from tests.support.partitions import Partition, make_batches

PATIENCE_S = 60.0


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", *map(str, arguments)]


def run(*arguments: object, code: int = 0) -> str:
    """The stdout of a command that must end with `code`."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), timeout=PATIENCE_S, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@contextlib.contextmanager
def start(*arguments: object, mark: str = "", **settings: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that runs; it and all it starts carry the mark in their environment. It ends with the block."""
    env = environment({"GATEWAY_TEST_MARK": mark})
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **settings
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # does nothing to one that has ended


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Started in the background by a shell, these tests ignore SIGINT, and so would every process they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a stream of 30,000 records: more than a pipe holds."""
    directory = tmp_path / "data"
    prepare(directory, "plant-7", "UTC")
    partition = Partition(directory / "telemetry-0")
    partition.add(make_batches(300, records=100), sealed=False)
    partition.mark_all()
    return directory


def test_a_reader_that_has_seen_enough_is_no_error(data: Path) -> None:
    """`gateway read … | head -1` ends with 0 and without a word."""
    with start("read", "telemetry", "--data", data) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE_S) == 0


def test_ctrl_c_ends_following_with_130(data: Path) -> None:
    """What was read has been printed by then; there is no traceback."""
    with start("read", "telemetry", "--data", data, "--follow", "--offsets", "-2:", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [json.loads(process.stdout.readline())["offset"] for _ in range(2)] == [29_998, 29_999]
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE_S) == 130


@pytest.mark.parametrize("kind", ["camera", "sensors"])
def test_a_simulator_ends_when_its_parent_does(kind: str, sink: str) -> None:
    """The demo's simulators watch their stdin, so that none is left behind even by kill -9."""
    arguments = ["--port", "0"] if kind == "camera" else ["--to", sink, "--count", "3"]
    with start("simulate", kind, *arguments, "--json", "--until-eof", stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert json.loads(process.stdout.readline())["ready"] is True
        process.stdin.close()
        assert isinstance(json.loads(process.stdout.readline()), dict)
        assert process.wait(PATIENCE_S) == 0


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[str]:
    """The address of a gateway that takes what sensors publish."""
    from tests.support.gateway_process import GatewayProcess

    process = GatewayProcess(tmp_path / "sink").start()
    yield f"mqtt://127.0.0.1:{process.port}"
    process.end()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo's directory after four seconds of recording, and what it said."""
    directory = tmp_path_factory.mktemp("demo") / "gateway-demo"
    return directory, run("demo", "--seconds", 4, "--data", directory)


@pytest.mark.slow
def test_the_demo_records_and_replays_everything(demo: tuple[Path, str]) -> None:
    """Sensors and both cameras are in the log; what the sensors had acknowledged is what was recorded."""
    directory, said = demo
    streams = {
        stream["stream"]: stream["records"]
        for stream in json.loads(run("stream", "list", "--data", directory, "--json"))["streams"]
    }
    assert sorted(streams) == ["gate-1", "gate-2", "telemetry"]
    assert all(streams.values())
    assert f"{streams['telemetry']:,} were acknowledged" in said
    assert "Newest readings" in said
    run("verify", "--deep", "--data", directory)


@pytest.mark.slow
def test_the_demo_leaves_a_picture_and_a_clip(demo: tuple[Path, str]) -> None:
    """PyAV decodes both; the clip has every frame of the recording; nothing else is left."""
    directory, said = demo
    with av.open(str(directory / "gate-1.mp4")) as clip:
        frames = sum(1 for _ in clip.decode(video=0))
    with av.open(str(directory / "gate-1.png")) as picture:
        (image,) = picture.decode(video=0)
    assert (image.width, image.height) == (640, 360)
    records = run("read", "gate-1", "--data", directory, "--json").splitlines()
    keyframes = [number for number, line in enumerate(records) if json.loads(line)["headers"].get("keyframe") == "1"]
    assert frames == len(records) - keyframes[0]
    assert str(directory / "gate-1.png") in said
    streams = {"gate-1-0", "gate-2-0", "telemetry-0"}
    left = {path.name for path in directory.iterdir()}
    assert left == {*streams, "gate-1.png", "gate-1.mp4", "gateway.log", "lock", "meta.json"}


@pytest.mark.slow
def test_the_commands_the_demo_suggests_work(demo: tuple[Path, str]) -> None:
    """Each of the three lines does what it says, as it was printed."""
    _, said = demo
    suggested = [line.split()[1:] for line in said.partition("Try next")[2].splitlines() if line.strip()]
    assert len(suggested) == 3
    for arguments in suggested:
        assert run(*arguments)


@pytest.mark.slow
def test_pictures_of_the_demo_by_command(demo: tuple[Path, str], tmp_path: Path) -> None:
    """`frame` and `export` take times from the list of streams."""
    directory, _ = demo
    streams = json.loads(run("stream", "list", "--data", directory, "--json"))["streams"]
    gate = next(stream for stream in streams if stream["stream"] == "gate-2")
    out = tmp_path / "gate.jpg"
    report = json.loads(run("frame", "gate-2", gate["newest"], out, "--data", directory, "--json"))
    assert (report["width"], report["height"], out.read_bytes()[:2]) == (640, 360, b"\xff\xd8")
    clip = tmp_path / "gate.mp4"
    exported = json.loads(run("export", "gate-2", clip, "--start", gate["oldest"], "--data", directory, "--json"))
    assert exported["frames"] > 0
    run("export", "gate-2", clip, "--data", directory, code=1)
    run("export", "gate-2", clip, "--data", directory, "--overwrite")


@pytest.mark.slow
def test_an_interrupted_demo_still_replays(demo: tuple[Path, str]) -> None:
    """Ctrl-C ends the recording early with exit code 0; a second demo adds to the first; no process stays."""
    directory, _ = demo
    before = stream_records(directory)
    with start("demo", "--seconds", 600, "--data", directory, mark=str(directory)) as process:
        deadline = time.monotonic() + PATIENCE_S
        while all(stream_records(directory).get(name, 0) <= count for name, count in before.items()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert len(processes_marked(directory)) == 3  # itself, the sensors, the cameras
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "Ended early." in said
    assert "Replayed from the log" in said
    assert all(stream_records(directory)[name] > count for name, count in before.items())
    assert processes_marked(directory) == []
    run("verify", "--data", directory)


def stream_records(directory: Path) -> dict[str, int]:
    streams = json.loads(run("stream", "list", "--data", directory, "--json"))["streams"]
    return {stream["stream"]: stream["records"] for stream in streams}


def processes_marked(directory: Path) -> Sequence[int]:
    """Processes that carry the directory as their mark."""
    mark = f"GATEWAY_TEST_MARK={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def test_the_demo_leaves_other_directories_alone(tmp_path: Path, data: Path) -> None:
    """Neither a directory with other things in it nor a real site's is touched."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    run("demo", "--data", other, code=1)
    before = sorted(path.name for path in data.iterdir())
    run("demo", "--data", data, code=1)
    assert {path.name for path in data.iterdir()} - {*before, "lock"} == set()
