"""Writing a segment's indexes and its summary when a log is opened or repaired. The writer has its own code for it.

None of this is needed to go on: what cannot be written is skipped, and the segment says that its indexes are not whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gateway_native import batch, summary, watermark
from gateway_native.summary import Summary
from gateway_native.watermark import Watermark

from gateway.log.files import Files, replace
from gateway.log.layout import INDEX_SUFFIX, LOG_SUFFIX, SUMS_SUFFIX, TIME_SUFFIX, segment_name
from gateway.log.tail import Tail

OnSkip = Callable[[Path, OSError], None]


def keeps_indexes(directory: Path, files: Files, tail: Tail, mark: Watermark) -> None:
    """See whether the index files have what the watermark says; `tail` then goes on behind it."""
    expected = ((INDEX_SUFFIX, mark.index_bytes, mark.index_crc), (TIME_SUFFIX, mark.time_bytes, mark.time_crc))
    tail.indexes_whole = bool(mark.flags & watermark.INDEXES_WHOLE) and all(
        _has(files, directory / segment_name(tail.base_offset, suffix), size, crc) for suffix, size, crc in expected
    )
    if tail.indexes_whole:
        tail.index_bytes, tail.index_crc = mark.index_bytes, mark.index_crc
        tail.time_bytes, tail.time_crc = mark.time_bytes, mark.time_crc


def _has(files: Files, path: Path, size: int, crc: int) -> bool:
    try:
        return batch.crc32c(_head(files, path, size)) == crc
    except OSError:  # missing, or unreadable: it can be made again
        return False


def _head(files: Files, path: Path, size: int, position: int = 0) -> bytes:
    file = files.open_read(path)
    try:
        data = file.read(position, size)
    finally:
        file.close()
    return data if len(data) == size else b""


def write_indexes(directory: Path, files: Files, tail: Tail, on_skip: OnSkip, *, sealed: bool) -> None:
    """Add what the walk found to the index files, and end them there; of a sealed segment, on the disk.

    Indexes that are not whole are emptied: half of one would not be seen to be that.
    """
    if sealed and tail.indexes_whole:
        tail.builder.seal()
    paths = [directory / segment_name(tail.base_offset, suffix) for suffix in (INDEX_SUFFIX, TIME_SUFFIX)]
    if tail.indexes_whole:
        index, times = bytes(tail.builder.index), bytes(tail.builder.times)
        if _extend(files, paths[0], tail.index_bytes, index, on_skip, sync=sealed) and _extend(
            files, paths[1], tail.time_bytes, times, on_skip, sync=sealed
        ):
            tail.index_crc = batch.crc32c(index, tail.index_crc)
            tail.time_crc = batch.crc32c(times, tail.time_crc)
            tail.index_bytes += len(index)
            tail.time_bytes += len(times)
            return
    _empty(files, tail, paths, on_skip)


def continue_indexes(directory: Path, files: Files, tail: Tail, on_skip: OnSkip) -> None:
    """End the index files where the writer goes on: a clean stop had added an entry."""
    paths = [directory / segment_name(tail.base_offset, suffix) for suffix in (INDEX_SUFFIX, TIME_SUFFIX)]
    try:
        for path, size in zip(paths, (tail.index_bytes, tail.time_bytes), strict=True):
            if not files.exists(path):
                files.create(path)
            elif tail.indexes_whole and files.size(path) != size:
                files.truncate(path, size)
    except OSError as error:
        on_skip(paths[0], error)
        tail.indexes_whole = False
    if not tail.indexes_whole:
        _empty(files, tail, paths, on_skip)


def _extend(files: Files, path: Path, position: int, content: bytes, on_skip: OnSkip, *, sync: bool) -> bool:
    """Have `content` behind the first `position` bytes, and nothing more. False: it could not be written."""
    try:
        if not files.exists(path):
            files.create(path)
        size = files.size(path)
        if size < position + len(content) or _head(files, path, len(content), position) != content:
            files.write_at(path, content, position)
        if size > position + len(content):
            files.truncate(path, position + len(content))
        if sync:
            files.sync(path)
    except OSError as error:
        on_skip(path, error)
        return False
    return True


def _empty(files: Files, tail: Tail, paths: list[Path], on_skip: OnSkip) -> None:
    for path in paths:
        try:
            files.create(path)
        except OSError as error:
            on_skip(path, error)
    tail.indexes_whole = False
    tail.index_bytes = tail.time_bytes = tail.index_crc = tail.time_crc = 0
    tail.builder.last_time_entry = -1
    tail.builder.bytes_since_entry = 0


def summary_of(tail: Tail) -> Summary:
    """What is known of a segment that was walked, once its indexes are written."""
    return Summary(
        tail.base_offset,
        tail.position,
        tail.next_offset,
        tail.first_timestamp,
        tail.builder.max_timestamp,
        tail.index_crc,
        tail.time_crc,
        summary.INDEXES_WHOLE if tail.indexes_whole else 0,
    )


def summarize(directory: Path, files: Files, tail: Tail, on_skip: OnSkip) -> bool:
    """Write the summary beside a sealed segment. False: it, or the indexes, are to be made again."""
    path = directory / segment_name(tail.base_offset, SUMS_SUFFIX)
    try:
        replace(files, path, summary.encode(summary_of(tail)))
    except OSError as error:
        on_skip(path, error)
        return False
    return tail.indexes_whole


def begin_files(directory: Path, files: Files, base_offset: int) -> None:
    """The files of an empty segment, on the disk. The log comes last: without it, the others are orphans."""
    for suffix in (INDEX_SUFFIX, TIME_SUFFIX, LOG_SUFFIX):
        path = directory / segment_name(base_offset, suffix)
        files.create(path)
        files.sync(path)
    files.sync_directory(directory)
