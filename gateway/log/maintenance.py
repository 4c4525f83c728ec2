"""Making again what can be made again: indexes, summaries and the manifest. Never in the way of records.

A running gateway calls this on a thread of its own for sealed segments, which nobody writes any more; `gateway verify
--repair` calls it while no gateway runs. Each file is replaced as a whole, so a reader meets the old one or the new.
No log is ever touched.
"""

from __future__ import annotations

from pathlib import Path

from gateway_native import batch, summary, watermark
from gateway_native.summary import Summary

from gateway.log.files import FILES, Files, replace
from gateway.log.index import IndexBuilder
from gateway.log.index_files import summary_of
from gateway.log.layout import (
    INDEX_SUFFIX,
    LOG_SUFFIX,
    MANIFEST_FILE,
    SUMS_SUFFIX,
    TIME_SUFFIX,
    WATERMARK_FILE,
    segment_base,
    segment_name,
)
from gateway.log.manifest import Manifest, read_summary
from gateway.log.tail import Tail, TailWalk

_FOREVER = 2**63 - 1
_SUFFIX_BITS = {LOG_SUFFIX: 1, INDEX_SUFFIX: 2, TIME_SUFFIX: 4, SUMS_SUFFIX: 8}
_WHOLE = sum(_SUFFIX_BITS.values())


def missing(directory: Path, *, files: Files = FILES) -> list[int]:
    """Base offsets of sealed segments whose indexes or summary are missing, or said not to be whole, ascending.

    It lists the directory once, and reads only the summaries that the manifest does not have.
    """
    parts: dict[int, int] = {}
    for name in files.names(directory):
        bit = _SUFFIX_BITS.get(name[20:])
        base = segment_base(name, name[20:]) if bit else None
        if bit and base is not None:
            parts[base] = parts.get(base, 0) | bit
    bases = sorted(base for base, bits in parts.items() if bits & 1)
    manifest = Manifest.load(directory, files) or Manifest()
    active_base = _active_base(directory, bases, files)
    sealed = [base for base in bases if base < active_base]
    return [base for base in sealed if parts[base] != _WHOLE or not _says_whole(directory, manifest, base, files)]


def _active_base(directory: Path, bases: list[int], files: Files) -> int:
    """Segments below this offset are sealed."""
    try:
        mark = watermark.parse(files.read_bytes(directory / WATERMARK_FILE))
    except FileNotFoundError:
        mark = None
    return mark.segment_base if mark is not None else max(bases, default=0)


def _says_whole(directory: Path, manifest: Manifest, base: int, files: Files) -> bool:
    number = manifest.at(base)
    found = manifest[number] if number >= 0 else None
    if found is None or found.base_offset != base or not found.flags & summary.INDEXES_WHOLE:
        found = read_summary(directory, base, files)
    return found is not None and bool(found.flags & summary.INDEXES_WHOLE)


def rebuild_segment(directory: Path, base: int, *, next_base: int | None = None, files: Files = FILES) -> Summary:
    """Make the indexes and the summary of a sealed segment again, from its log, and sync them.

    It reads the whole segment once. next_base: where the next segment begins, if the caller knows; otherwise the
    directory is listed. Damaged batches are passed over. OSError if something cannot be read or written, and then
    every file is as it was or as it shall be.
    """
    if next_base is None:
        later = (found for name in files.names(directory) if (found := segment_base(name)) is not None and found > base)
        next_base = min(later, default=_FOREVER)
    tail = _walk(directory, base, files, end=None, end_offset=next_base)
    tail.builder.seal()
    _replace_indexes(directory, tail, files)
    made = summary_of(tail)
    replace(files, directory / segment_name(base, SUMS_SUFFIX), summary.encode(made))
    files.sync_directory(directory)
    return made


def rebuild_active_indexes(
    directory: Path, base: int, position: int, end_offset: int, *, sealed: bool, files: Files = FILES
) -> None:
    """Make the indexes of the last segment again, while no gateway runs, for its batches below byte `position`.

    sealed: with the final entry that a clean stop adds.
    """
    tail = _walk(directory, base, files, end=position, end_offset=end_offset)
    if sealed:
        tail.builder.seal()
    _replace_indexes(directory, tail, files)
    files.sync_directory(directory)


def _walk(directory: Path, base: int, files: Files, *, end: int | None, end_offset: int) -> Tail:
    tail = Tail(base, 0, IndexBuilder(base), 0, base)
    size = files.size(directory / segment_name(base)) if end is None else end
    known = end_offset if end_offset < _FOREVER else None
    TailWalk(directory, files, lambda _: None).run_over_damage(tail, size, end_offset, {end_offset}, end_offset=known)
    return tail


def _replace_indexes(directory: Path, tail: Tail, files: Files) -> None:
    index, times = bytes(tail.builder.index), bytes(tail.builder.times)
    replace(files, directory / segment_name(tail.base_offset, INDEX_SUFFIX), index)
    replace(files, directory / segment_name(tail.base_offset, TIME_SUFFIX), times)
    tail.index_bytes, tail.index_crc = len(index), batch.crc32c(index)
    tail.time_bytes, tail.time_crc = len(times), batch.crc32c(times)


def rebuild_manifest(directory: Path, upto_base: int, *, files: Files = FILES) -> int:
    """Write the manifest again with an entry for every segment below `upto_base`; returns how many there are.

    Only while nobody adds to it: no gateway runs, or the writer was told not to (`Recovered.manifest_bytes` is -1).
    Entries that are there and fit are kept, others come from the summaries, and where there is none from the log.
    """
    bases = sorted(
        base for name in files.names(directory) if (base := segment_base(name)) is not None and base < upto_base
    )
    old = Manifest.load(directory, files) or Manifest()
    entries = bytearray()
    for number, base in enumerate(bases):
        found = _kept(directory, old, base, files) or read_summary(directory, base, files)
        if found is None:
            next_base = bases[number + 1] if number + 1 < len(bases) else upto_base
            found = rebuild_segment(directory, base, next_base=next_base, files=files)
        entries += summary.encode(found)
    replace(files, directory / MANIFEST_FILE, bytes(entries))
    files.sync_directory(directory)
    return len(bases)


def _kept(directory: Path, old: Manifest, base: int, files: Files) -> Summary | None:
    number = old.at(base)
    found = old[number] if number >= 0 else None
    if found is None or found.base_offset != base or not found.flags & summary.INDEXES_WHOLE:
        return None
    return found if files.size(directory / segment_name(base)) == found.log_bytes else None
