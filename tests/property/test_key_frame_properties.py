"""Whatever records there are, exactly the key frames among them are found; whatever bytes there are, nothing breaks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gateway_native import batch
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.log import key_frames
from gateway.log.key_frames import Search
from gateway.log.layout import segment_name
from tests.support.partitions import T0

NAMES = st.sampled_from(["codec", "keyframe", "code", "keyframes", "run", "", "gateway.gap", "x" * 200])
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=90)), max_size=6)
# Around the size of what is read in one go, where an off-by-one would show.
KEYS = st.one_of(st.none(), st.binary(max_size=40), st.integers(240, 280).map(bytes), st.integers(330, 400).map(bytes))
VALUES = st.one_of(st.none(), st.integers(0, 1_400).map(bytes), st.integers(1, 5).map(lambda n: bytes(n * 4_096)))
TIMES = st.integers(0, 10**6).map(lambda ms: T0 + ms)
RECORDS = st.tuples(TIMES, KEYS, VALUES, HEADERS)
Records = list[tuple[int, bytes, bytes, list[tuple[str, bytes]]]]
BATCHES = st.lists(st.lists(RECORDS, min_size=1, max_size=6), min_size=1, max_size=6)

BASE = 7_000_000_000


def find(content: bytes) -> Search:
    """Look through a segment with that content."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / segment_name(BASE)).write_bytes(content)
        search = Search(Path(directory), BASE)
        while search.step(key_frames.LOG_BYTES_MAX, 2**62):
            pass
        return search


@settings(max_examples=150, deadline=None)
@given(BATCHES)
def test_exactly_the_key_frames_of_cameras_are_found(
    batches: list[Records],
) -> None:
    """A record with a key, a value and both headers; its key no longer than a camera's name, its headers no book."""
    content, expected, offset = b"", [], BASE
    for records in batches:
        data = batch.encode(records, offset)
        for found_offset, time, key, value, headers in batch.decode(data):
            if key is not None and len(key) <= 280 and value and {"codec", "keyframe"} <= dict(headers).keys():
                expected.append((found_offset, time, len(content), len(data), batch.crc32c(key)))
        content += data
        offset += len(records)
    search = find(content)
    assert (search.position, search.next_offset, search.whole) == (len(content), offset, True)
    assert [tuple(each) for each in search.found] == expected


@settings(max_examples=150, deadline=None)
@given(BATCHES, st.data())
def test_damaged_bytes_break_nothing(batches: list[Records], draw: st.DataObject) -> None:
    """Some bytes are changed, or the end is cut: the search ends, and names places that are in the file."""
    content, offset = bytearray(), BASE
    for records in batches:
        content += batch.encode(records, offset)
        offset += len(records)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(content) - 1))
        content[at] = draw.draw(st.integers(0, 255))
    del content[draw.draw(st.integers(0, len(content))) :]
    found = list(find(bytes(content)).found)
    assert all(each.position + each.size <= len(content) for each in found)
    assert [each.offset for each in found] == sorted({each.offset for each in found})
