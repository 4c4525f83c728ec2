"""Names of directories and files, and ``meta.json``. FORMAT.md, section 1, is the specification."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from gateway.errors import FormatError

FORMAT = 1
META_FILE = "meta.json"
LOCK_FILE = "lock"
WATERMARK_FILE = "watermark"
MANIFEST_FILE = "manifest"

LOG_SUFFIX = ".log"
INDEX_SUFFIX = ".index"
TIME_SUFFIX = ".timeindex"
SUMS_SUFFIX = ".sums"
KEYS_SUFFIX = ".keys"
KEY_FRAMES_SUFFIX = ".keyframes"
CUT_SUFFIX = ".cut"
NEW_SUFFIX = ".new"
SIDECAR_SUFFIXES = (INDEX_SUFFIX, TIME_SUFFIX, SUMS_SUFFIX, KEYS_SUFFIX, KEY_FRAMES_SUFFIX)

# A batch is at most one record of 16 MiB and what belongs to it; what claims to be longer is damaged.
BATCH_BYTES_MAX = 64 << 20

STREAM_NAME_CHARS_MAX = 249
_STREAM_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
_PARTITION_NAME = re.compile(r"(?P<stream>[A-Za-z0-9._-]{1,249})-(?P<partition>0|[1-9][0-9]{0,8})")
SEGMENT_DIGITS = 20

# What a new data directory may already hold: a fresh file system's own directory, our lock, the log of a demo.
_IGNORED_ENTRIES = {LOCK_FILE, "lost+found", "gateway.log"}


class Meta(NamedTuple):
    """What ``meta.json`` says about a data directory."""

    format: int
    site: str
    timezone: str
    created: str

    @property
    def zone(self) -> ZoneInfo:
        """The site's time zone. FormatError if this machine does not know it."""
        return _zone(self.timezone)


class PartitionName(NamedTuple):
    """A partition's directory, taken apart."""

    stream: str
    partition: int
    path: Path


def check_stream_name(name: str) -> str:
    """`name` itself if it can name a stream (Kafka's rule for topics); ValueError otherwise."""
    if not _STREAM_NAME.fullmatch(name) or name in {".", ".."}:
        raise ValueError(
            f"{name!r} cannot name a stream: 1 to {STREAM_NAME_CHARS_MAX} of A-Z, a-z, 0-9, '.', '_' and '-', "
            "but not '.' or '..'."
        )
    return name


def partition_path(data: Path, stream: str, partition: int = 0) -> Path:
    """Where a partition lives: ``<data>/<stream>-<partition>``."""
    return data / f"{check_stream_name(stream)}-{partition}"


def list_partitions(data: Path) -> list[PartitionName]:
    """Every partition directory under `data`, by stream, then number."""
    found = []
    for entry in data.iterdir():
        match = _PARTITION_NAME.fullmatch(entry.name)
        if match and entry.is_dir():
            found.append(PartitionName(match["stream"], int(match["partition"]), entry))
    return sorted(found)


def segment_name(base_offset: int, suffix: str = LOG_SUFFIX) -> str:
    """``00000000000000012345.log`` and its like."""
    return f"{base_offset:020d}{suffix}"


def segment_base(name: str, suffix: str = LOG_SUFFIX) -> int | None:
    """The base offset that a segment's file is named by; None if the name is no such file's."""
    digits = name[:SEGMENT_DIGITS]
    return int(digits) if name[SEGMENT_DIGITS:] == suffix and digits.isdigit() and digits.isascii() else None


def sidecar_base(name: str) -> int | None:
    """The base offset of the segment that a file belongs to, if it is an index or a summary."""
    return next((base for suffix in SIDECAR_SUFFIXES if (base := segment_base(name, suffix)) is not None), None)


def list_segments(directory: Path) -> list[int]:
    """Base offsets of the segments in a partition's directory, ascending. A directory that is missing has none."""
    try:
        with os.scandir(directory) as entries:
            return sorted(base for entry in entries if (base := segment_base(entry.name)) is not None)
    except FileNotFoundError:
        return []


def read_meta(data: Path) -> Meta:
    """Read ``meta.json``. FormatError if there is none, it cannot be read, or a newer Gateway wrote it."""
    path = data / META_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(_no_meta(data)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read: {error}.") from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error}); restore it from a copy of the data directory.") from None
    return _checked(path, content)


def prepare(data: Path, site: str, timezone: str) -> Meta:
    """Make `data` a data directory, or take over what is there, and keep site and time zone in ``meta.json``.

    The caller holds the lock. When this returns, the directory's entry and ``meta.json`` are on the disk. FormatError
    if the directory holds something else, or what a newer Gateway wrote.
    """
    _zone(timezone)
    made = not data.exists()
    data.mkdir(parents=True, exist_ok=True)
    if made:
        sync_directory(data.parent)
    path = data / META_FILE
    if path.exists():
        old = read_meta(data)
        meta = old._replace(site=site, timezone=timezone)
        if meta == old:
            return old
    else:
        _refuse_foreign(data)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        meta = Meta(FORMAT, site, timezone, created)
    _write_whole(path, json.dumps(meta._asdict(), indent=2, ensure_ascii=False) + "\n")
    return meta


def sync_directory(directory: Path) -> None:
    """Make the directory's entries durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _zone(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise FormatError(
            f"The time zone {timezone!r} is not known on this machine; install the package tzdata, or correct the name "
            '(for example "Europe/Berlin").'
        ) from None


def _no_meta(data: Path) -> str:
    if not data.exists():
        return f"There is no data directory {data}."
    if not data.is_dir():
        return f"{data} is not a directory; give the gateway's data directory."
    return (
        f"{data} is not a data directory of Gateway: it has no {META_FILE}. "
        "Give the directory that holds it; when copying a data directory, copy it too."
    )


def _checked(path: Path, content: Any) -> Meta:
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise FormatError(f'{path} names no format; expected {{"format": {FORMAT}, …}}.')
    if content["format"] > FORMAT:
        raise FormatError(
            f"{path.parent} was written by a newer Gateway: it has format {content['format']}, "
            f"this version knows formats up to {FORMAT}. Use that version, or a newer one."
        )
    values = {key: content.get(key) for key in ("site", "timezone", "created")}
    wrong = sorted(key for key, value in values.items() if not isinstance(value, str))
    if content["format"] != FORMAT or wrong:
        what = f"the format {content['format']}" if not wrong else " and ".join(wrong)
        raise FormatError(f"{path} is damaged: {what} cannot be right; restore it from a copy of the data directory.")
    return Meta(FORMAT, str(values["site"]), str(values["timezone"]), str(values["created"]))


def _foreign_entries(data: Path) -> Iterator[str]:
    for entry in data.iterdir():
        if entry.name in _IGNORED_ENTRIES or entry.name.startswith(f".{META_FILE}"):
            continue
        if _PARTITION_NAME.fullmatch(entry.name) and entry.is_dir():
            continue
        yield entry.name


def _refuse_foreign(data: Path) -> None:
    foreign = sorted(_foreign_entries(data))
    if foreign:
        shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise FormatError(
            f"{data} is not empty and not a data directory of Gateway (it holds {shown}); "
            "name an empty or a new directory as `data`."
        )


def _write_whole(path: Path, text: str) -> None:
    """Replace a small file: whatever happens, afterwards it has its old or its new content."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_directory(path.parent)
