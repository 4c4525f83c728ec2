"""Record batches: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from gateway_native import batch, watermark

from gateway.log import layout
from tests.support.partitions import T0, make_batch, make_batches

FORMAT = Path(layout.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


def hex_dump(section: str) -> bytes:
    """The first hex dump after a heading of FORMAT.md."""
    text = FORMAT.split(section, 1)[1].split("```")[1]
    return bytes.fromhex("".join(line[6:] for line in text.strip().splitlines()))


def test_crc_gives_the_published_check_values() -> None:
    """Every implementation gives the check value of CRC-32C and the vectors of RFC 3720, appendix B.4."""
    for name in batch.crc32c_implementations():
        assert batch.crc32c(b"123456789", 0, name) == 0xE3069283
        assert batch.crc32c(bytes(32), 0, name) == 0x8A9136AA
        assert batch.crc32c(b"\xff" * 32, 0, name) == 0x62A8AB43
        assert batch.crc32c(bytes(range(32)), 0, name) == 0x46DD794E
        assert batch.crc32c(bytes(range(31, -1, -1)), 0, name) == 0x113FDB5C
        assert batch.crc32c(b"", 0, name) == 0


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 255, 767, 768, 769, 1535, 1536, 12287, 12288, 12289, 12296, 50_000])
def test_crc_implementations_agree_at_the_borders_of_their_blocks(size: int) -> None:
    """Around 8 bytes, 3 × 256 and 3 × 4096 all implementations agree, at any alignment and in two steps."""
    data = bytes((n * 131 + n // 251) & 0xFF for n in range(size + 8))
    for shift in range(8):
        piece = memoryview(data)[shift : shift + size]
        sums = {batch.crc32c(piece, 0, name) for name in batch.crc32c_implementations()}
        assert len(sums) == 1
        middle = size // 3
        assert batch.crc32c(piece[middle:], batch.crc32c(piece[:middle])) in sums


def test_crc_of_an_unknown_implementation_is_refused() -> None:
    """Asking for an implementation this processor does not have names those it has."""
    with pytest.raises(ValueError, match="portable"):
        batch.crc32c(b"", 0, "abacus")


def test_header_fields_are_where_kafka_puts_them() -> None:
    """Each field of the 61-byte header stands at Kafka's offset with the value FORMAT.md promises."""
    data = batch.encode([(T0, b"k", b"v", []), (T0 + 9, b"k", b"v", []), (T0 + 4, b"k", b"v", [])], 70)
    fields = struct.unpack_from(">qiibIhiqqqhii", data)
    assert batch.HEADER_BYTES == struct.calcsize(">qiibIhiqqqhii") == 61
    assert fields == (70, len(data) - 12, 0, 2, batch.crc32c(data[21:]), 0, 2, T0, T0 + 9, -1, -1, -1, 3)


def test_specification_example_is_what_the_code_writes() -> None:
    """The worked example of FORMAT.md is, byte for byte, what the encoder makes of the records it names."""
    records = [(T0, b"a/t", b"21.5", [("qos", b"1")]), (T0 + 7, b"a/t", None, [])]
    assert hex_dump("### Example\n\nTwo records") == batch.encode(records, 5)
    mark = watermark.Watermark(3, 0, 90, 7, flags=watermark.INDEXES_WHOLE)
    assert hex_dump("Epoch 3, 90 bytes") == watermark.encode(mark)
    assert batch.decode(hex_dump("### Example\n\nTwo records"))[0] == (5, T0, b"a/t", b"21.5", (("qos", b"1"),))


def test_null_and_empty_are_not_the_same() -> None:
    """A missing key or value comes back as None, an empty one as empty bytes."""
    rows = batch.decode(batch.encode([(T0, None, b"", []), (T0, b"", None, [])]))
    assert [row[2:4] for row in rows] == [(None, b""), (b"", None)]


def test_compressed_batch_is_refused_by_the_name_of_its_codec() -> None:
    """A batch marked as compressed is sound but unreadable, and the error names the codec."""
    for code, codec in batch.CODECS.items():
        data = bytearray(make_batch(8))
        struct.pack_into(">h", data, 21, code)
        struct.pack_into(">I", data, 17, batch.crc32c(data[21:]))
        with pytest.raises(batch.UnsupportedBatch, match=codec) as caught:
            batch.decode(data)
        assert (caught.value.codec, caught.value.base_offset) == (codec, 8)


def test_control_batch_has_no_records() -> None:
    """A transaction marker, as a broker would have written it, is passed over."""
    data = bytearray(make_batch(8))
    struct.pack_into(">h", data, 21, 0x20)
    struct.pack_into(">I", data, 17, batch.crc32c(data[21:]))
    assert batch.decode(data) == []


def test_log_append_time_replaces_the_records_times() -> None:
    """With the timestamp type bit set every record has the batch's max timestamp."""
    data = bytearray(make_batch(8, 3))
    struct.pack_into(">h", data, 21, 0x08)
    struct.pack_into(">I", data, 17, batch.crc32c(data[21:]))
    assert [row[1] for row in batch.decode(data)] == [T0 + 2] * 3


@pytest.mark.parametrize("position", range(91))
def test_every_flipped_byte_is_noticed(position: int) -> None:
    """Whichever byte of a batch changes, a walk that knows the expected offset calls it bad."""
    sound = hex_dump("### Example\n\nTwo records")
    assert batch.scan(sound, expected_offset=5)[2] == batch.PROBLEM_NONE
    for bit in range(8):
        data = bytearray(sound)
        data[position] ^= 1 << bit
        batches, stopped, problem, _, _ = batch.scan(data, expected_offset=5)
        assert (batches, stopped) == ([], 0)
        assert problem != batch.PROBLEM_NONE


def test_damage_inside_a_right_crc_is_found_by_the_deep_walk() -> None:
    """A record that does not parse is found although the CRC matches: someone wrote it so."""
    data = bytearray(make_batch(0, 2))
    data[61] ^= 2  # the first record's length
    struct.pack_into(">I", data, 17, batch.crc32c(data[21:]))
    assert batch.scan(data)[2] == batch.PROBLEM_NONE
    assert batch.scan(data, check_records=True)[2] == batch.PROBLEM_RECORDS
    with pytest.raises(batch.BatchError) as caught:
        batch.decode(data)
    assert caught.value.problem == batch.PROBLEM_RECORDS


def test_scan_says_what_stopped_it() -> None:
    """Each way a walk can end has its own problem, with what was expected and what was found."""
    first, second = make_batches(2)
    gap = make_batch(99)
    stale = b"\0" * 16 + b"\1" + second[17:]
    assert batch.scan(first + second)[1:] == (len(first + second), batch.PROBLEM_NONE, 0, 0)
    assert batch.scan(first + second[:-1])[2:] == (batch.PROBLEM_SHORT, len(second), len(second) - 1)
    assert batch.scan(first + second[:60])[2:] == (batch.PROBLEM_SHORT, 61, 60)
    assert batch.scan(first + bytes(100))[2] == batch.PROBLEM_ZEROS
    assert batch.scan(first + gap)[2:] == (batch.PROBLEM_OFFSET, 3, 99)
    assert batch.scan(first + stale)[2] == batch.PROBLEM_LENGTH
    assert batch.scan(first, expected_offset=1)[2:] == (batch.PROBLEM_OFFSET, 1, 0)
    old = first[:16] + b"\1" + first[17:]
    assert batch.scan(old)[2:] == (batch.PROBLEM_MAGIC, 2, 1)
    epoch = first[:12] + b"\0\0\0\7" + first[16:]
    assert batch.scan(epoch)[2:] == (batch.PROBLEM_EPOCH, 0, 7)


def test_scan_positions_count_from_the_origin() -> None:
    """Positions are those in the file when the buffer is a piece of it."""
    data = b"".join(make_batches(3))
    size = len(data) // 3
    batches, stopped, *_ = batch.scan(data[size:], origin=size, expected_offset=3)
    assert [found[0] for found in batches] == [size, 2 * size]
    assert stopped == len(data)


def test_find_passes_over_damage_and_lookalikes() -> None:
    """The next batch is found behind garbage, but neither one with a wrong CRC nor one with offsets of elsewhere."""
    good, bad, foreign = make_batch(50), bytearray(make_batch(47)), make_batch(7)
    bad[-1] ^= 1
    data = b"\2" * 333 + bytes(bad) + foreign + good
    assert batch.find(data, 0, 40, 60) == (len(data) - len(good), 0)
    stopped, wanted = batch.find(data[:-1], 0, 40, 60)
    assert (stopped, wanted) == (len(data) - len(good), len(good))
    stopped, wanted = batch.find(bytes(1000), 0, 0, 10)
    assert (1000 - stopped, wanted) == (60, 61)


@pytest.mark.parametrize(
    ("topic_filter", "matching", "other"),
    [
        ("a/b", ["a/b"], ["a", "a/b/", "a/bc", "A/b", "/a/b"]),
        ("a/+", ["a/b", "a/"], ["a", "a/b/c", "b/b"]),
        ("+/b", ["a/b", "/b"], ["b", "a/b/c", "$a/b"]),
        ("+", ["a", ""], ["a/b", "/", "$SYS"]),
        ("+/+", ["a/b", "/"], ["a", "a/b/c"]),
        ("a/#", ["a", "a/", "a/b", "a/b/c"], ["ab", "b/a", "ab/c"]),
        ("#", ["a", "a/b", "", "/"], ["$SYS/x"]),
        ("a/+/c/#", ["a/b/c", "a//c/d/e"], ["a/c", "a/b/d"]),
        ("$SYS/#", ["$SYS", "$SYS/x"], ["SYS/x"]),
        ("+/", ["a/", "/"], ["a", "a/b"]),
        ("/+", ["/a", "/"], ["a", "a/a"]),
    ],
)
def test_key_filters_match_as_mqtt_says(topic_filter: str, matching: list[str], other: list[str]) -> None:
    """'+' is one level, '#' the parent and all below, and neither begins a match of a key that begins with '$'."""
    keys = batch.KeyFilter(topic_filter)
    assert [key for key in matching if not keys.matches(key.encode())] == []
    assert [key for key in other if keys.matches(key.encode())] == []
    assert not keys.matches(None)


def test_exact_key_may_contain_wildcard_characters() -> None:
    """Bytes are compared as they are: a key that was never an MQTT topic can be asked for."""
    keys = batch.KeyFilter([b"a/+", "x"])
    assert keys.matches(b"a/+")
    assert keys.matches(b"x")
    assert not keys.matches(b"a/b")


@pytest.mark.parametrize("wrong", ["", "a/#/b", "a#", "a/b+", "#/a", "+a"])
def test_filter_that_mqtt_forbids_is_refused(wrong: str) -> None:
    """A filter that could never match says so at once instead of giving nothing."""
    with pytest.raises(ValueError, match=re.escape(wrong) if wrong else "empty"):
        batch.KeyFilter(wrong)


def test_headers_survive_with_their_order_and_repetitions() -> None:
    """Headers come back in order, repeated names and empty values included; none takes no bytes in a ring slot."""
    headers = [("b", b"1"), ("a", b""), ("b", b"2"), ("ü", b"\xff\x00")]
    assert batch.decode(batch.encode([(T0, None, None, headers)]))[0][4] == tuple(headers)
    assert batch.encode_headers([]) == b""


def test_selection_takes_what_lies_in_all_its_ranges() -> None:
    """Offsets and times are half-open, and a record must be in both and match a key."""
    data = b"".join(make_batches(4))
    selection = batch.Selection(offset_from=2, offset_to=9, time_from=T0 + 3, time_to=T0 + 12, keys="a/#")
    rows, position, wanted, after = batch.decode_chunk(data, 0, selection, expected_offset=0)
    assert [row[0] for row in rows] == [3, 4, 5, 6, 7, 8]
    assert (position, wanted, after) == (len(data) // 4 * 3, -1, 9)
    assert batch.decode_chunk(data, 0, batch.Selection(keys="b/#"))[0] == []
