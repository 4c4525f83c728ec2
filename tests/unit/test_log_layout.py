"""The data directory: who may use it, who may write it, what its names are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gateway
from gateway.errors import FormatError, LockedError
from gateway.log.layout import (
    check_stream_name,
    list_partitions,
    list_segments,
    partition_path,
    prepare,
    read_meta,
    segment_name,
)
from gateway.log.lock import DataLock

HOLD_LOCK = """
import sys; sys.path[:0] = sys.argv[2].split(':')
from pathlib import Path
from gateway.log.lock import DataLock
lock = DataLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()
"""


def test_second_writer_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    """A second writer is refused with the process id of the one that holds the lock; readers do not care."""
    prepare(tmp_path / "data", "x", "UTC")
    arguments = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "data"), ":".join(sys.path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"process {holder.pid} "):
            DataLock(tmp_path / "data")
        assert gateway.open(tmp_path / "data").streams() == []
        holder.kill()
    with DataLock(tmp_path / "data") as lock:  # a killed writer leaves no stale lock
        assert lock.path.read_text() == f"{os.getpid()}\n"
    assert lock.path.read_text() == ""


def test_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    """Releasing twice does nothing, and the next one gets the lock."""
    lock = DataLock(tmp_path)
    with pytest.raises(LockedError):
        DataLock(tmp_path)
    lock.release()
    lock.release()
    DataLock(tmp_path).release()


def test_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    """A directory that a newer gateway wrote is neither read nor taken over, and the text names both formats."""
    meta = {"format": 2, "site": "x", "timezone": "UTC", "created": "2026-01-01"}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    for use in (lambda: gateway.open(tmp_path), lambda: prepare(tmp_path, "x", "UTC")):
        with pytest.raises(FormatError, match="has format 2, this version knows formats up to 1"):
            use()
    assert json.loads((tmp_path / "meta.json").read_text()) == meta


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("[]", "names no format"),
        ('{"format": "1"}', "names no format"),
        ('{"format": true}', "names no format"),
        ('{"format": 1, "site": "x", "created": ""}', "timezone cannot be right"),
        ('{"format": 0, "site": "x", "timezone": "UTC", "created": ""}', "the format 0 cannot be right"),
        ('{"format": 1, "site": "x", "timezone": "Mars/Olympus", "created": ""}', "Mars/Olympus"),
    ],
)
def test_damaged_meta_says_what_is_wrong(tmp_path: Path, content: str, said: str) -> None:
    """Whatever stands in meta.json, opening gives a sentence, not a traceback of the parser."""
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(FormatError, match=said):
        gateway.open(tmp_path).timezone  # noqa: B018 - the zone is looked up when it is asked for


def test_directory_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    """A missing directory, a file, an empty directory and a full one each get their own sentence; none is changed."""
    with pytest.raises(FormatError, match="no data directory"):
        gateway.open(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"no meta\.json"):
        gateway.open(tmp_path)
    (tmp_path / "thesis.odt").touch()
    with pytest.raises(FormatError, match=r"not empty .*thesis\.odt"):
        prepare(tmp_path, "x", "UTC")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.odt"]
    with pytest.raises(FormatError, match="not a directory"):
        gateway.open(tmp_path / "thesis.odt")


def test_prepare_keeps_what_is_there_and_follows_the_configuration(tmp_path: Path) -> None:
    """Preparing again keeps the date of birth; a new site name or zone replaces the old one."""
    first = prepare(tmp_path / "a" / "b", "one", "Europe/Berlin")
    assert read_meta(tmp_path / "a" / "b") == first
    assert prepare(tmp_path / "a" / "b", "one", "Europe/Berlin") == first
    second = prepare(tmp_path / "a" / "b", "two", "UTC")
    assert (second.site, second.timezone, second.created) == ("two", "UTC", first.created)
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["meta.json"]


def test_names_are_kafkas(tmp_path: Path) -> None:
    """Streams, partitions and segments are named as Kafka names them, and only such names are taken for them."""
    assert partition_path(tmp_path, "plant.7_a-b") == tmp_path / "plant.7_a-b-0"
    assert segment_name(12345) == "00000000000000012345.log"
    for name in ("", ".", "..", "a/b", "ä", "a" * 250, "a b"):
        with pytest.raises(ValueError, match="cannot name a stream"):
            check_stream_name(name)
    for name in ("a-0", "a-b-12", "a", "a-01", "-0", "a-0-delete"):
        (tmp_path / name).mkdir()
    (tmp_path / "file-0").touch()
    assert [found[:2] for found in list_partitions(tmp_path)] == [("a", 0), ("a-b", 12)]
    for name in (
        "00000000000000000007.log",
        "00000000000000000003.log",
        "7.log",
        "00000000000000000009.index",
        "x.cut",
    ):
        (tmp_path / "a-0" / name).touch()
    assert list_segments(tmp_path / "a-0") == [3, 7]
