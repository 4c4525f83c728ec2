"""Walking the end of a log after a crash: what is sound there, and why it ends. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from gateway_native import batch

from gateway.log.files import Files
from gateway.log.index import NO_TIMESTAMP, IndexBuilder
from gateway.log.passing import pass_over
from gateway.log.segment import Damage, Segment, Walk, WalkEnd

OFFSETS_PER_SEGMENT = 2**31  # an index holds relative offsets as i32


@dataclass(slots=True)
class Tail:
    """One segment and how far it is sound: of `position` bytes, up to `next_offset`."""

    base_offset: int
    size: int
    builder: IndexBuilder
    position: int
    next_offset: int
    index_bytes: int = 0
    """What the index files hold already; the builder has what follows."""
    time_bytes: int = 0
    index_crc: int = 0
    time_crc: int = 0
    indexes_whole: bool = True
    """The index files and the builder together are all of the indexes."""
    first_timestamp: int = NO_TIMESTAMP
    last_timestamp: int = NO_TIMESTAMP
    """Of the partition's latest record up to here."""
    damage: Damage | None = None
    """What ends the segment, if it is neither the end of the file, nor zeros, nor where the next segment begins."""
    content_bytes: int = 0
    """Bytes behind `position` up to the last that is not zero, if damage ends the segment."""
    has_more: bool = False
    """Something other than zeros lies behind `position`, and is to be cut off."""
    in_file: bool = True
    """There is a file for it."""

    @property
    def ends_soundly(self) -> bool:
        return self.damage is None


class TailWalk:
    """Walks segments whose end is not known."""

    def __init__(self, directory: Path, files: Files, report: Callable[[int], None]) -> None:
        self.directory = directory
        self.files = files
        self._report = report

    def run(self, tail: Tail, stops: Collection[int] = ()) -> Tail:
        """Take sound batches from `tail.position` on, up to the first bad one, or to an offset among `stops`."""
        with Segment(self.directory, tail.base_offset, self.files) as segment:
            tail.size = segment.size
            self._run_to_end(segment, tail, stops)
        return tail

    def _run_to_end(self, segment: Segment, tail: Tail, stops: Collection[int]) -> None:
        end = self._take(segment, tail, stops)
        tail.has_more = tail.position < tail.size and not self._only_zeros(segment, end, tail.size)
        if not end.clean and (tail.has_more or end.problem != batch.PROBLEM_ZEROS):
            tail.damage = end.damage(segment.path)
            tail.content_bytes = segment.content_end(tail.position, tail.size) - tail.position

    def run_over_damage(
        self, tail: Tail, end: int, offset_max: int, stops: Collection[int] = (), *, end_offset: int | None = None
    ) -> list[Damage]:
        """Take what is sound below byte `end`, where all was acknowledged, with offsets below `offset_max`.

        What was passed over counts into the position: it is not cut. Zeros at the end do not. end_offset: what follows
        byte `end` if that is known, so that damage up to there is not taken for the end of the log.
        """
        damages: list[Damage] = []
        offset_max = min(offset_max, tail.base_offset + OFFSETS_PER_SEGMENT)
        with Segment(self.directory, tail.base_offset, self.files) as segment:
            tail.size = segment.size
            while tail.position < end:
                stopped = self._take(segment, tail, stops, end)
                if stopped.clean or self._only_zeros(segment, stopped, tail.size):
                    break
                passed = pass_over(segment, stopped, end, offset_max)
                damages.append(stopped.damage(segment.path)._replace(bytes=passed.position - stopped.position))
                tail.position = passed.position
                if passed.found:
                    tail.next_offset = passed.offset
                elif end_offset is not None:
                    tail.next_offset = end_offset
        return damages

    def ends_in_zeros(self, base_offset: int, position: int, size: int) -> bool:
        """Are the `size` bytes before `position` all zero?"""
        with Segment(self.directory, base_offset, self.files) as segment:
            return segment.is_zero(max(position - size, 0), position)

    def is_empty(self, base_offset: int) -> bool:
        """Does the segment's file hold nothing but zeros?"""
        with Segment(self.directory, base_offset, self.files) as segment:
            return segment.is_zero(0, segment.size)

    @staticmethod
    def _only_zeros(segment: Segment, end: WalkEnd, size: int) -> bool:
        return end.problem == batch.PROBLEM_ZEROS and segment.is_zero(end.position, size)

    def _take(self, segment: Segment, tail: Tail, stops: Collection[int], end: int | None = None) -> WalkEnd:
        walk = Walk(segment, tail.position, tail.size if end is None else end, expected_offset=tail.next_offset)
        for batches in walk:
            if tail.first_timestamp == NO_TIMESTAMP:
                tail.first_timestamp = batches[0][4]
            for start, length, base_offset, last_offset, _, max_timestamp, _ in batches:
                if base_offset in stops:
                    return WalkEnd(tail.position, base_offset, batch.PROBLEM_NONE, 0, 0)
                tail.builder.add(start, length, last_offset, max_timestamp)
                tail.position, tail.next_offset = start + length, last_offset + 1
                tail.last_timestamp = max_timestamp
            self._report(sum(one[1] for one in batches))
        return walk.end
