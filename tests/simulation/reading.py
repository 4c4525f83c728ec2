"""Reading a log on the simulated disk: batch by batch, trusting nothing but the format; and its indexes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from gateway_native import batch, summary, watermark
from gateway_native.simulated_disk import Disk
from gateway_native.watermark import Watermark

FOREVER = 2**63 - 1
CLOCK_HEADER = "gateway.clock"
GAP_HEADER = "gateway.gap"

Row = tuple[int, bytes | None, bytes | None]
"""Offset, the record's identity (None: the gateway's own), and its value (None where it has none)."""


@dataclass(slots=True)
class SegmentContent:
    base: int
    batches: list[batch.Batch]
    end: int
    """Bytes up to the end of the last batch."""


@dataclass(slots=True)
class LogContent:
    """A log up to where it ends, or stops being one."""

    start: int = 0
    next_offset: int = 0
    rows: list[Row] = field(default_factory=list)
    segments: list[SegmentContent] = field(default_factory=list)
    problem: str = ""
    """Why it does not go on."""


def bases_of(disk: Disk, directory: str) -> list[int]:
    return sorted(int(name[:20]) for name in disk.names(directory) if name.endswith(".log") and len(name) == 24)


def path_of(directory: str, base: int, suffix: str = "log") -> str:
    return f"{directory}/{base:020d}.{suffix}"


def read_mark(disk: Disk, directory: str) -> Watermark | None:
    path = f"{directory}/watermark"
    return watermark.parse(disk.read_file(path)) if disk.exists(path) else None


def read_log(disk: Disk, directory: str, last_base: int, position: int) -> LogContent:
    """All segments up to the one at `last_base`, of that one `position` bytes."""
    bases = [base for base in bases_of(disk, directory) if base <= last_base]
    content = LogContent()
    if not bases:
        content.start = content.next_offset = last_base
        return content
    content.start = content.next_offset = bases[0]
    for base, next_base in zip(bases, [*bases[1:], FOREVER], strict=True):
        if base != content.next_offset:
            content.problem = f"a segment begins at offset {base}, the one before it ends at {content.next_offset}"
            return content
        data = disk.read_file(path_of(directory, base))
        if not read_segment(content, base, data[:position] if base == last_base else data, next_base):
            return content
    return content


def read_segment(content: LogContent, base: int, data: bytes, next_base: int) -> bool:
    """Take a segment's batches, up to the offset at which the next one begins. False: it does not get there."""
    found_batches, position, problem, expected, found = batch.scan(data, expected_offset=base)
    batches = [one for one in found_batches if one[2] < next_base]
    segment = SegmentContent(base, batches, batches[-1][0] + batches[-1][1] if batches else 0)
    content.segments.append(segment)
    for one in segment.batches:
        content.next_offset = one[3] + 1
        for offset, _, key, value, headers in batch.decode(data, one[0], check_crc=False):
            content.rows.append((offset, identity_of(key, headers), value if key is not None else None))
    if content.next_offset == next_base or (next_base == FOREVER and problem == batch.PROBLEM_NONE):
        return True
    text = batch.PROBLEM_TEXTS.get(problem, "").format(expected=expected, found=found)
    content.problem = f"segment {base} at byte {position}: {text}"
    return False


def identity_of(key: bytes | None, headers: tuple[tuple[str, bytes], ...]) -> bytes | None:
    if key is not None:
        return key
    ((name, value),) = headers
    return None if name == CLOCK_HEADER else bytes.fromhex(value.decode())


# -- indexes ----------------------------------------------------------------------------------------------------------


def index_problem(disk: Disk, directory: str, segment: SegmentContent) -> str:
    """What is wrong with the indexes of a sealed segment whose summary says that they are whole; empty: nothing."""
    path = path_of(directory, segment.base, "sums")
    found = summary.parse(disk.read_file(path)) if disk.exists(path) else None
    if found is None or not found.flags & summary.INDEXES_WHOLE:
        return ""
    index = read_if_there(disk, path_of(directory, segment.base, "index"))
    times = read_if_there(disk, path_of(directory, segment.base, "timeindex"))
    where = f"the summary of segment {segment.base} says"
    end = segment.batches[-1][3] + 1 if segment.batches else segment.base
    if (found.log_bytes, found.next_offset) != (segment.end, end):
        return f"{where} {found.log_bytes} bytes up to offset {found.next_offset}; it has {segment.end} up to {end}"
    if (found.index_crc, found.time_crc) != (batch.crc32c(index), batch.crc32c(times)):
        return f"{where} that its indexes are whole, and has the CRCs of others"
    return entries_problem(segment, index, times)


def entries_problem(segment: SegmentContent, index: bytes, times: bytes) -> str:
    """Does every entry of both indexes name a batch that is there?"""
    by_last = {one[3]: one for one in segment.batches}
    last = -1
    for relative, position in struct.iter_unpack(">ii", index[: len(index) // 8 * 8]):
        found = by_last.get(segment.base + relative)
        if found is None or found[0] != position or position <= last:
            return (
                f"an entry of the index of segment {segment.base} names offset {segment.base + relative} at {position}"
            )
        last = position
    newest = {}
    latest = -1
    for one in segment.batches:
        latest = max(latest, one[5])
        newest[one[3]] = latest
    for timestamp, relative in struct.iter_unpack(">qi", times[: len(times) // 12 * 12]):
        if newest.get(segment.base + relative) != timestamp:
            return f"an entry of the time index of segment {segment.base} says {timestamp} at {segment.base + relative}"
    return ""


def read_if_there(disk: Disk, path: str) -> bytes:
    return disk.read_file(path) if disk.exists(path) else b""
