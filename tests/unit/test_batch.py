"""One batch and every way it can be wrong: `decode` gives what was written, or says that it cannot."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from gateway_native import batch
from gateway_native.batch import BatchError, UnsupportedBatch

from tests.support.partitions import T0

Record = tuple[int, bytes | None, bytes | None, Sequence[tuple[str, bytes]]]

RECORDS: list[Record] = [
    (T0, b"plant/1/temperature", b"21.5", [("qos", b"1")]),
    (T0 - 3, None, b"", []),
    (T0 + 70_000, b"", None, [("größe", b"\x00\xff"), ("größe", b"")]),
]
BASE_OFFSET = 2**33 + 5
SOUND = batch.encode(RECORDS, BASE_OFFSET)
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# Fields that no CRC covers and that one batch alone cannot tell: a walk checks them by continuity.
UNCOVERED = {*range(8), *range(12, 16)}


def rows_of(records: Sequence[Record], base_offset: int) -> list[batch.Row]:
    """What decoding should give."""
    return [(base_offset + n, time, key, value, tuple(head)) for n, (time, key, value, head) in enumerate(records)]


def resealed(data: bytes | bytearray) -> bytes:
    """The same bytes with their CRC set right."""
    changed = bytearray(data)
    struct.pack_into(">I", changed, 17, batch.crc32c(changed[21:]))
    return bytes(changed)


def test_nothing_is_lost_between_encode_and_decode() -> None:
    """Null, empty and repeated parts come back as they were, with consecutive offsets."""
    assert batch.decode(SOUND) == rows_of(RECORDS, BASE_OFFSET)


@pytest.mark.parametrize(
    "times",
    [
        [0, INT64_MAX],
        [INT64_MAX, 0],
        [0, INT64_MIN],
        [-1, -2, 0],
        [INT64_MIN, INT64_MAX, INT64_MIN, -1],
        [T0, T0 - 2**31 - 1, T0 + 2**31 + 1, T0 - 2**45],
    ],
)
def test_times_far_apart_survive_their_deltas(times: list[int]) -> None:
    """Deltas that are negative, beyond 32 bits, or beyond 64 bits before they wrap give the times back."""
    data = batch.encode([(time, b"k", b"v", []) for time in times])
    assert [row[1] for row in batch.decode(data)] == times
    assert struct.unpack_from(">qq", data, 27) == (times[0], max(times))


@pytest.mark.parametrize("size", [0, 62, 63, 64, 8191, 8192, 2**20 - 1, 2**20, 16 * 2**20])
def test_values_around_each_length_of_a_varint_survive(size: int) -> None:
    """Values and keys whose lengths need one varint byte more than the size before, up to 16 MiB, come back whole."""
    value = bytes(range(256)) * (size // 256) + bytes(size % 256)
    records: list[Record] = [(T0, value[:10_000], value, [("v", value[:9000])])]
    assert batch.decode(batch.encode(records, 9)) == rows_of(records, 9)


def test_a_batch_cut_at_any_byte_is_a_clean_error() -> None:
    """However little of a batch is there, decoding says that it is short, and how many bytes it wants."""
    for size in range(len(SOUND)):
        with pytest.raises(BatchError) as caught:
            batch.decode(SOUND[:size])
        assert caught.value.problem == batch.PROBLEM_SHORT
        assert caught.value.found == size
        assert caught.value.expected == (len(SOUND) if size >= batch.HEADER_BYTES else batch.HEADER_BYTES)


@pytest.mark.parametrize("position", [n for n in range(len(SOUND)) if n not in UNCOVERED])
def test_a_changed_byte_never_gives_a_wrong_record(position: int) -> None:
    """Each covered byte, set to each other value, ends in BatchError."""
    for value in range(256):
        if value != SOUND[position]:
            with pytest.raises(BatchError):
                batch.decode(SOUND[:position] + bytes([value]) + SOUND[position + 1 :])


@pytest.mark.parametrize("position", sorted(UNCOVERED))
def test_a_changed_byte_outside_the_crc_is_found_by_continuity(position: int) -> None:
    """Base offset and epoch are covered by no CRC: one batch decodes, a walk that knows the offset refuses it."""
    for bit in range(8):
        data = bytearray(SOUND)
        data[position] ^= 1 << bit
        assert batch.scan(data, expected_offset=BASE_OFFSET)[2] in {batch.PROBLEM_OFFSET, batch.PROBLEM_EPOCH}
        if position < 8:
            with pytest.raises(BatchError):
                batch.decode_chunk(data, 0, batch.Selection(), expected_offset=BASE_OFFSET)
        else:
            assert batch.decode(data) == rows_of(RECORDS, BASE_OFFSET)


@pytest.mark.parametrize("position", range(batch.HEADER_BYTES, len(SOUND)))
def test_a_record_that_lies_behind_a_right_crc_stays_in_its_bounds(position: int) -> None:
    """With the CRC set right again every value of every record byte either parses inside the batch or is refused."""
    for value in range(256):
        data = resealed(SOUND[:position] + bytes([value]) + SOUND[position + 1 :])
        try:
            rows = batch.decode(data)
        except BatchError as error:
            assert error.problem == batch.PROBLEM_RECORDS
            assert batch.scan(data, check_records=True)[2] == batch.PROBLEM_RECORDS
        else:
            # Offset deltas may skip: a compacted batch does. They never leave what the header says.
            assert [row[0] for row in rows] == sorted({row[0] for row in rows})
            assert BASE_OFFSET <= rows[0][0] <= rows[-1][0] <= BASE_OFFSET + 2


@pytest.mark.parametrize(
    ("at", "form", "value", "problem"),
    [
        (8, ">i", -1, batch.PROBLEM_LENGTH),
        (8, ">i", 48, batch.PROBLEM_LENGTH),
        (8, ">i", 2**31 - 1, batch.PROBLEM_SHORT),
        (16, ">b", 1, batch.PROBLEM_MAGIC),
        (0, ">q", -1, batch.PROBLEM_OFFSET),
        (0, ">q", INT64_MAX - 1, batch.PROBLEM_OFFSET),
        (23, ">i", -1, batch.PROBLEM_OFFSET),
        (57, ">i", 4, batch.PROBLEM_COUNT),
        (57, ">i", -1, batch.PROBLEM_COUNT),
        (57, ">i", 2, batch.PROBLEM_RECORDS),
        (23, ">i", 1, batch.PROBLEM_COUNT),
        (17, ">I", 0, batch.PROBLEM_CRC),
    ],
)
def test_each_impossible_header_field_is_called_by_its_name(at: int, form: str, value: int, problem: int) -> None:
    """A header that cannot be, even with a right CRC, is refused as what it is, with its place in the buffer."""
    data = bytearray(SOUND)
    struct.pack_into(form, data, at, value)
    wrong = bytes(data) if problem == batch.PROBLEM_CRC else resealed(data)
    with pytest.raises(BatchError) as caught:
        batch.decode(bytes(7) + wrong, 7)
    assert (caught.value.problem, caught.value.position) == (problem, 7)
    assert "byte 7" in str(caught.value)


@pytest.mark.parametrize(("codec", "name"), [*batch.CODECS.items(), (5, "unknown codec 5"), (7, "unknown codec 7")])
def test_a_compressed_batch_is_no_damage_and_is_named(codec: int, name: str) -> None:
    """Compression has its own error, with codec and offset; a bad CRC is damage even so."""
    data = bytearray(SOUND)
    data[22] = codec
    with pytest.raises(UnsupportedBatch, match=f"{BASE_OFFSET} is compressed with {name}") as caught:
        batch.decode(resealed(data))
    assert (caught.value.codec, caught.value.base_offset) == (name, BASE_OFFSET)
    with pytest.raises(BatchError):
        batch.decode(data)


def test_a_control_batch_is_passed_over_in_its_place() -> None:
    """A transaction marker gives no record, and the offsets behind it go on."""
    data = bytearray(SOUND)
    data[22] = 0x30
    after = batch.encode([(T0, b"k", b"v", [])], BASE_OFFSET + 3)
    rows, passed, wanted, offset = batch.decode_chunk(
        resealed(data) + after, 0, batch.Selection(), expected_offset=BASE_OFFSET
    )
    assert (rows, wanted, offset) == ([(BASE_OFFSET + 3, T0, b"k", b"v", ())], 0, BASE_OFFSET + 4)
    assert passed == len(SOUND) + len(after)


@pytest.mark.parametrize("position", [-1, len(SOUND) + 1])
def test_a_position_outside_the_buffer_is_the_callers_mistake(position: int) -> None:
    """It is a ValueError that is no BatchError: nothing on disk is wrong."""
    for call in (batch.decode, batch.scan):
        with pytest.raises(ValueError) as caught:
            call(SOUND, position)
        assert not isinstance(caught.value, BatchError)


def test_a_batch_of_no_records_cannot_be_made() -> None:
    """An empty batch has no offsets, so encoding one is refused."""
    with pytest.raises(ValueError, match="at least one record"):
        batch.encode([])
