"""Record batches under arbitrary contents and arbitrary damage."""

from __future__ import annotations

import struct

from gateway_native import batch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.partitions import make_batches

TIMES = st.integers(-(2**62), 2**62) | st.integers(1_700_000_000_000, 1_700_000_100_000)
BLOBS = st.none() | st.binary(max_size=300)
HEADERS = st.lists(st.tuples(st.text(max_size=12), st.binary(max_size=40)), max_size=4)
RECORDS = st.lists(st.tuples(TIMES, BLOBS, BLOBS, HEADERS), min_size=1, max_size=30)
OFFSETS = st.integers(0, 2**62)

CLEAN = (batch.BatchError, batch.UnsupportedBatch)


@given(RECORDS, OFFSETS)
def test_what_is_encoded_is_decoded(records: list, base_offset: int) -> None:
    """Any keys, values, headers and times come back with consecutive offsets, and the deep walk finds nothing wrong."""
    data = batch.encode(records, base_offset)
    rows = batch.decode(data)
    assert [row[0] for row in rows] == list(range(base_offset, base_offset + len(records)))
    assert [(*row[1:4], list(row[4])) for row in rows] == [tuple(record) for record in records]
    assert batch.scan(data, check_records=True)[1:] == (len(data), batch.PROBLEM_NONE, 0, 0)


@given(RECORDS, st.data())
def test_mutated_bytes_give_a_clean_error_or_the_same_records(records: list, data: st.DataObject) -> None:
    """Bytes changed anywhere end in a clean error, never in a crash: the CRC covers all that matters."""
    sound = batch.encode(records, 1000)
    mutated = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        rows = batch.decode(mutated)
    except CLEAN:
        return
    assert [row[1:] for row in rows] == [row[1:] for row in batch.decode(sound)]


@given(RECORDS, st.data())
def test_damage_behind_a_right_crc_gives_a_clean_error(records: list, data: st.DataObject) -> None:
    """With the CRC set right again, damaged records are still parsed within their bounds, or refused."""
    mutated = bytearray(batch.encode(records, 1000))
    for _ in range(data.draw(st.integers(1, 6))):
        mutated[data.draw(st.integers(23, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    struct.pack_into(">I", mutated, 17, batch.crc32c(mutated[21:]))
    problem = batch.scan(mutated, check_records=True)[2]
    try:
        rows = batch.decode(mutated)
    except CLEAN:
        assert problem != batch.PROBLEM_NONE
        return
    assert len(rows) == struct.unpack_from(">i", mutated, 57)[0]
    offsets = [row[0] for row in rows]
    assert offsets == sorted(set(offsets))


@given(st.binary(max_size=400), st.integers(0, 400))
def test_arbitrary_bytes_never_crash(data: bytes, position: int) -> None:
    """Random bytes at any position give BatchError, ValueError for a position outside, or nothing."""
    for call in (
        lambda: batch.decode(data, position),
        lambda: batch.decode_chunk(data, position, batch.Selection()),
        lambda: batch.scan(data, position, check_records=True),
        lambda: batch.find(data, position, 0, 2**63 - 1),
    ):
        try:
            call()
        except (ValueError, *CLEAN):
            continue


@given(st.integers(1, 6), st.data())
def test_truncated_data_ends_the_walk_before_the_cut(count: int, data: st.DataObject) -> None:
    """However the bytes end, the walk gives exactly the batches that are whole and says how many bytes it misses."""
    batches = make_batches(count)
    whole = b"".join(batches)
    cut = data.draw(st.integers(0, len(whole)))
    found, stopped, problem, expected, available = batch.scan(whole[:cut])
    assert len(found) == cut // len(batches[0])
    assert stopped == len(found) * len(batches[0])
    if stopped == cut:
        assert problem == batch.PROBLEM_NONE
    else:
        assert (problem, available) == (batch.PROBLEM_SHORT, cut - stopped)
        assert expected in {batch.HEADER_BYTES, len(batches[0])}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 40), st.integers(0, 40), st.integers(1, 400))
def test_chunks_of_any_size_give_the_same_records(sizes: list[int], first: int, last: int, chunk: int) -> None:
    """Reading piece by piece gives what reading at once gives, for every size of piece and every selection."""
    batches, offset = [], 0
    for records in sizes:
        batches += make_batches(1, base_offset=offset, records=records)
        offset += records
    whole = b"".join(batches)
    selection = batch.Selection(offset_from=first, offset_to=last)
    rows, position, expected, wanted = [], 0, 0, chunk
    while position < len(whole):
        piece = whole[position : position + wanted]
        found, passed, more, expected = batch.decode_chunk(piece, 0, selection, expected_offset=expected)
        rows += found
        if more < 0:
            break
        position += passed
        wanted = max(more, chunk)
    assert [row[0] for row in rows] == list(range(min(first, offset), min(last, offset)))


LEVELS = st.sampled_from(["a", "b", "", "$x", "long-level"])


def mqtt_match(topic_filter: list[str], topic: list[str]) -> bool:
    """MQTT 5.0, section 4.7, by its words, level by level."""
    if topic_filter[0] in {"+", "#"} and topic[0].startswith("$"):
        return False
    for number, level in enumerate(topic_filter):
        if level == "#":
            return True
        if number >= len(topic) or level not in {"+", topic[number]}:
            return False
    return len(topic) == len(topic_filter)


@given(st.lists(LEVELS | st.just("+"), min_size=1, max_size=5), st.booleans(), st.lists(LEVELS, min_size=1, max_size=6))
def test_key_filter_agrees_with_the_words_of_the_standard(levels: list[str], rest: bool, topic: list[str]) -> None:
    """The native matcher and a literal reading of the MQTT standard accept the same keys."""
    topic_filter = [*levels, "#"] if rest else levels
    if topic_filter == [""]:
        return
    expected = mqtt_match(topic_filter, topic)
    assert batch.KeyFilter("/".join(topic_filter)).matches("/".join(topic).encode()) == expected


@given(st.binary(max_size=20_000), st.integers(0, 7), st.integers(0, 20_000))
def test_crc_implementations_agree(data: bytes, shift: int, split: int) -> None:
    """All implementations give one sum for any bytes, alignment and split."""
    view = memoryview(bytes(shift) + data)[shift:]
    sums = {
        batch.crc32c(view[split:], batch.crc32c(view[:split], 0, name), name) for name in batch.crc32c_implementations()
    }
    assert sums == {batch.crc32c(data)}
