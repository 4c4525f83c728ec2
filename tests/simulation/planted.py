"""Bugs to plant: each is a plausible mistake in the shipped code, and each must be found by some seed.

Those in native code are in builds with -DGATEWAY_PLANTED only (_native/gateway_native/planted.h), those in Python are
patched in here. One process has at most one, which the environment's GATEWAY_PLANTED_BUG names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.log import index_files, recovery, tail

# Replaces an attribute of something.
Patch = Callable[[object, str, Any], None]

VARIABLE = "GATEWAY_PLANTED_BUG"

NATIVE = {
    "log not synced": "a commit does not sync the active segment",
    "sealed log not synced": "a commit does not sync the segments that were sealed since the last",
    "directory not synced": "a commit does not sync the names of new segments",
    "watermark early": "the watermark is written before what it speaks of is synced",
    "acknowledged early": "acknowledgements leave before anything is synced",
    "buffers freed early": "batches are not kept until they are durable, so they are not written again after a failure",
    "failed sync tried again": "a sync that failed is called again and believed when it succeeds",
    "refusal not told": "a record that is refused while the disk is full leaves its sender waiting for later ones",
    "refused offsets kept": "offsets of refused records are not given out again",
    "taken while refusing": "a record is taken into a batch though the stream began to refuse a moment ago",
    "second segment without watermark": "a segment is begun before the watermark of this opening is on the disk",
}


def _no_checksums(monkey: Patch) -> None:
    walk = tail.Walk
    monkey(tail, "Walk", lambda *args, **options: walk(*args, **{**options, "check_crc": False}))


def _no_writing_again(monkey: Patch) -> None:
    monkey(recovery._Recovery, "_write_again", lambda *_: None)


def _offsets_again(monkey: Patch) -> None:
    recover = recovery.recover

    def wrong(directory: Path, **options: Any) -> recovery.Recovered:
        found = recover(directory, **options)
        return replace(found, next_offset=max(found.next_offset - 1, found.log_start_offset))

    monkey(recovery, "recover", wrong)


def _indexes_unchecked(monkey: Patch) -> None:
    monkey(index_files, "_has", lambda files, path, *_: files.exists(path))


def _no_directory_sync(monkey: Patch) -> None:
    finish = recovery._Recovery._finish

    def without(self: Any, *args: Any) -> recovery.Recovered:
        self.files.sync_directory = lambda _: None
        try:
            return finish(self, *args)
        finally:
            del self.files.sync_directory

    monkey(recovery._Recovery, "_finish", without)


def _deleted_is_lost(monkey: Patch) -> None:
    monkey(recovery._Recovery, "_behind_deleted", lambda *_: None)


PYTHON: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "recovery checks no checksums": ("a tail is kept as long as its headers look right", _no_checksums),
    "recovery trusts the cache": ("what it keeps is synced, but not written again first", _no_writing_again),
    "recovery reuses offsets": ("the last offset is given out a second time", _offsets_again),
    "indexes believed unchecked": (
        "index files are gone on with though their content is not what it was",
        _indexes_unchecked,
    ),
    "recovery does not sync names": ("what it keeps and removes is not made durable", _no_directory_sync),
    "recovery takes deleted for lost": ("a watermark of before retention sets the log aside", _deleted_is_lost),
}


def _replace(owner: object, name: str, value: Any) -> None:
    if not hasattr(owner, name):
        raise ValueError(f"{owner} has no {name} any more, so the bug is not planted")
    setattr(owner, name, value)


def plant() -> None:
    """Plant what the environment asks for, if that is in Python; it stays for the life of the process."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted in PYTHON:
        PYTHON[wanted][1](_replace)
    elif wanted and wanted not in NATIVE:
        raise ValueError(f"there is no bug {wanted!r} to plant; there are {', '.join([*NATIVE, *PYTHON])}")
