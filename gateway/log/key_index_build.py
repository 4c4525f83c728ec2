"""Making the key indexes of sealed segments, in the background or on demand. The log is only read.

FORMAT.md, section 10. An index is written beside its segment under another name, synced and renamed: a reader meets a
whole one or none. Memory: one part is collected at a time, some 70 MB at most, whatever the segment holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gateway_native import batch, key_index, watermark

from gateway.log.files import FILES, Files
from gateway.log.key_index import key_index_path
from gateway.log.layout import BATCH_BYTES_MAX, KEYS_SUFFIX, NEW_SUFFIX, WATERMARK_FILE, segment_base
from gateway.log.segment import CHUNK_BYTES, Segment


def build_key_index(
    directory: Path, base_offset: int, files: Files = FILES, *, records_max: int = key_index.RECORDS_MAX
) -> int:
    """Make the key index of a sealed segment from its log, and sync it; returns its bytes.

    What lies behind a damaged, a compressed or a control batch is not indexed, and readers walk it. records_max: a
    part holds about as many. OSError if something cannot be read or written; FileNotFoundError if retention took the
    segment, also while this reads. Then there is no index, or the one there was.
    """
    path = key_index_path(directory, base_offset)
    new = path.with_name(f".{path.name}{NEW_SUFFIX}")
    written = 0
    with Segment(directory, base_offset, files) as segment:
        files.create(new)
        try:
            for part in _parts(segment, records_max):
                files.write_at(new, part, written)
                files.sync(new)  # part by part: one large sync would hold up those of the log
                written += len(part)
            files.size(segment.path)  # FileNotFoundError: nobody would remove the index of a segment that is gone
        except BaseException:
            files.unlink(new)
            raise
    files.rename(new, path)
    files.sync_directory(directory)
    return written


def _parts(segment: Segment, records_max: int) -> Iterator[bytes]:
    builder = key_index.Builder(segment.base_offset, records_max)
    position, offset, wanted, end = 0, segment.base_offset, CHUNK_BYTES, segment.size
    while position < end:
        data, _ = segment.read_some(position, min(wanted, end - position))
        batches, stopped, problem, needed, _ = batch.scan(data, expected_offset=offset)
        taken = builder.add(data, stopped, position)
        position += taken
        if taken:
            offset = next(found[3] for found in reversed(batches) if found[0] < taken) + 1
        if builder.full:
            yield builder.finish()
            wanted = CHUNK_BYTES
        elif taken < stopped or (problem not in {batch.PROBLEM_NONE, batch.PROBLEM_SHORT}):
            break  # what cannot be indexed ends it
        elif taken == 0:
            if problem != batch.PROBLEM_SHORT or not len(data) < needed <= min(end - position, BATCH_BYTES_MAX):
                break
            wanted = needed
        else:
            wanted = CHUNK_BYTES
    if not builder.empty:
        yield builder.finish()


def missing_key_indexes(directory: Path, files: Files = FILES) -> list[int]:
    """Base offsets of sealed segments without a key index, the newest first. It lists the directory once."""
    logs: set[int] = set()
    indexed: set[int] = set()
    for name in files.names(directory):
        if (base := segment_base(name)) is not None:
            logs.add(base)
        elif (base := segment_base(name, KEYS_SUFFIX)) is not None:
            indexed.add(base)
    try:
        mark = watermark.parse(files.read_bytes(directory / WATERMARK_FILE))
    except FileNotFoundError:
        mark = None
    active = mark.segment_base if mark is not None else max(logs, default=0)
    return sorted((base for base in logs - indexed if base < active), reverse=True)
