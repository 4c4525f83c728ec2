"""The key index of a sealed segment: where each key's records are, so that reading one costs what it holds.

FORMAT.md, section 10, is the specification. An index is a hint: it can be made again from the log, a reader that finds
none, or a damaged one, reads all of the segment. What it names is checked before it is believed: each record carries
its own CRC-32C there, and each part is tied to the log by the checksums of its first and last batch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from gateway_native import batch, key_index
from gateway_native.key_index import Part, Place

from gateway.log.files import FILES, Files, ReadFile
from gateway.log.layout import KEYS_SUFFIX, segment_name
from gateway.log.segment import Segment

# One record of this many bytes of log, or more: then reading each by itself costs less than reading everything. One
# costs 6 to 8 µs from the page cache (two reads and what is around them), everything about 1 GB/s.
BYTES_PER_RECORD_MIN = 8192

# A part with a longer index of its blocks is taken for damaged: 16 MiB of keys make less.
INDEX_BYTES_MAX = 64 << 20

_ENTRY = struct.Struct("<IIII")  # of a block: position in the part, bytes, CRC-32C, end of its first key


class KeyIndexDamaged(Exception):  # no error of anybody's: whoever meets it reads the segment without
    """The index, or what it says of the log, is not as it should be."""


def key_index_path(directory: Path, base_offset: int) -> Path:
    """Where a segment's key index is."""
    return directory / segment_name(base_offset, KEYS_SUFFIX)


class KeyIndex:
    """An open key index. Only the caller's thread may use it."""

    def __init__(self, directory: Path, base_offset: int, files: Files = FILES) -> None:
        """FileNotFoundError if there is none."""
        self.base_offset = base_offset
        self.path = key_index_path(directory, base_offset)
        self._file: ReadFile = files.open_read(self.path)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> KeyIndex:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def parts(self) -> Iterator[tuple[int, Part]]:
        """Where each part begins in the file, and its header; they follow one another in the log.

        KeyIndexDamaged for one that is not sound. The end of the file ends them: what the log has besides is not
        indexed.
        """
        position, log_from, size = 0, 0, self._file.size
        while position < size:
            part = key_index.parse_part(self._file.read(position, key_index.HEADER_BYTES))
            if part is None or part.segment_base != self.base_offset or part.log_from != log_from:
                raise KeyIndexDamaged(f"{self.path}, byte {position}: no part of this segment's index begins here")
            if position + part.part_bytes > size or part.index_bytes > INDEX_BYTES_MAX:
                raise KeyIndexDamaged(f"{self.path}, byte {position}: the part is longer than the file")
            yield position, part
            position += part.part_bytes
            log_from = part.log_to

    def check(self) -> None:
        """Read and check everything. KeyIndexDamaged at the first thing that is not sound; no log is looked at."""
        for position, part in self.parts():
            index = self.block_index(position, part) if part.blocks else b""
            everything = batch.KeyFilter("#")
            for number in range(part.blocks):
                block = self.block(position, part, index, number)
                found: dict[int, tuple[int, int]] = {}
                try:
                    key_index.scan_block(block, b"", False, everything, found)
                except ValueError as error:
                    raise KeyIndexDamaged(f"{self.path}, byte {position}: {error}") from None
                behind = self._postings_start(index, part)
                self.places(part, [(position + behind + at, *rest) for at, rest in found.items()])

    def block_index(self, position: int, part: Part) -> bytes:
        """The entries of the part's blocks and their first keys, checked."""
        return self._checked(position + key_index.HEADER_BYTES, part.index_bytes, part.index_crc)

    def block(self, position: int, part: Part, index: bytes, number: int) -> bytes:
        """One block of keys, checked."""
        start, size, crc, _ = _ENTRY.unpack_from(index, number * _ENTRY.size)
        if start + size > part.part_bytes:
            raise KeyIndexDamaged(f"{self.path}, byte {position}: a block lies outside of the part")
        return self._checked(position + start, size, crc)

    def find(self, position: int, part: Part, keys: batch.KeyFilter) -> list[tuple[int, int, int]]:
        """Postings of the keys that match: position in the file, bytes, records; in the order of the file."""
        if not part.blocks:
            return []
        index = self.block_index(position, part)
        postings_at = self._postings_start(index, part)
        found: dict[int, tuple[int, int]] = {}
        try:
            for prefix, exact in literal_prefixes(keys):
                number = key_index.find_block(index, part.blocks, prefix)
                while number < part.blocks:
                    block = self.block(position, part, index, number)
                    if not key_index.scan_block(block, prefix, exact, keys, found):
                        break
                    number += 1
        except ValueError as error:
            raise KeyIndexDamaged(f"{self.path}, byte {position}: {error}") from None
        return [(position + postings_at + at, size, records) for at, (size, records) in sorted(found.items())]

    def places(self, part: Part, found: list[tuple[int, int, int]]) -> list[Place]:
        """Where the records of these postings are, in the order of the log."""
        places: list[Place] = []
        for at, size, _ in found:
            try:
                key_index.decode_postings(self._file.read(at, size), part.log_from, places)
            except ValueError as error:
                raise KeyIndexDamaged(f"{self.path}, byte {at}: {error}") from None
        places.sort()
        return places

    @staticmethod
    def _postings_start(index: bytes, part: Part) -> int:
        """Postings follow the last block."""
        last_at, last_bytes, _, _ = _ENTRY.unpack_from(index, (part.blocks - 1) * _ENTRY.size)
        return int(last_at + last_bytes)

    def _checked(self, position: int, size: int, crc: int) -> bytes:
        data = self._file.read(position, size)
        if len(data) != size or batch.crc32c(data) != crc:
            raise KeyIndexDamaged(f"{self.path}, byte {position}: the CRC-32C of {size} bytes is wrong")
        return data


def literal_prefixes(keys: batch.KeyFilter) -> list[tuple[bytes, bool]]:
    """What keys that match begin with, and whether they are no more than that; sorted.

    One a filter, none that another one covers.
    """
    prefixes = sorted({_literal_prefix(given) for given in keys.filters})
    kept: list[tuple[bytes, bool]] = []
    for prefix, exact in prefixes:
        covered = kept and not kept[-1][1] and prefix.startswith(kept[-1][0])
        if not covered:
            kept.append((prefix, exact))
    return kept


def _literal_prefix(given: str | bytes) -> tuple[bytes, bool]:
    """Up to the first wildcard. "a/#" matches "a" too, so the "/" before it is left out."""
    if isinstance(given, bytes):
        return given, True
    ends = [at for at in (given.find("+"), given.find("#")) if at >= 0]
    if not ends:
        return given.encode(), True
    prefix = given[: min(ends)]
    return (prefix.removesuffix("/") if given[min(ends)] == "#" else prefix).encode(), False


def fits(part: Part, segment: Segment, end: int) -> bool:
    """Is the part about this log: do its first and its last batch have the checksums that it knows, below `end`?

    The last batch is not looked up but found by its length: the one that ends where the part does.
    """
    if part.log_to > end:
        return False
    first = segment.header(part.log_from)
    if first is None or (first.base_offset, first.crc) != (part.offset_from, part.first_crc):
        return False
    last = segment.header(part.last_batch)
    return (
        last is not None
        and (last.last_offset + 1, last.crc) == (part.offset_to, part.last_crc)
        and part.last_batch + batch.LENGTH_PREFIX_BYTES + last.length == part.log_to
    )
