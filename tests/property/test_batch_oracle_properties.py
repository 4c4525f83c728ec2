"""Any records, between us and Kafka's Python clients, in both directions."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder as AiokafkaBuilder
from gateway_native import batch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.segments import Batch, Row, parse

with warnings.catch_warnings():  # its import reads resources in a way that Python calls old
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaPythonBuilder

# Kafka's clients hold times and their deltas in 64 bits without wrapping; ours are ms since 1970.
times = st.integers(0, 2**45)
parts = st.none() | st.binary(max_size=70) | st.binary(min_size=120, max_size=140)
headers = st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=20)), max_size=4)
records = st.lists(st.tuples(times, parts, parts, headers), min_size=1, max_size=12)
offsets = st.integers(0, 2**62)

BUILDERS = [pytest.param(AiokafkaBuilder, id="aiokafka"), pytest.param(KafkaPythonBuilder, id="kafka-python")]
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def rows_of(given_records: list[Any], base_offset: int) -> tuple[Row, ...]:
    return tuple(Row(base_offset + n, t, k, v, tuple(h)) for n, (t, k, v, h) in enumerate(given_records))


@QUICK
@given(st.lists(records, min_size=1, max_size=3), offsets)
def test_others_read_what_we_write(batches: list[Any], base_offset: int) -> None:
    """aiokafka and kafka-python find the same offsets, times, keys, values and headers, and a right CRC."""
    data, expected = b"", []
    for one in batches:
        encoded = batch.encode(one, base_offset)
        expected.append(Batch(len(data), len(encoded), rows_of(one, base_offset)))
        data += encoded
        base_offset += len(one)
    assert parse(data) == expected


def written_by(builder: Any, given_records: list[Any]) -> bytes:
    """An uncompressed batch made by another library, with the leader epoch that a broker would put in."""
    made = builder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=2**20,
    )  # fmt: skip
    for number, (time, key, value, head) in enumerate(given_records):
        assert made.append(number, timestamp=time, key=key, value=value, headers=head) is not None
    data = bytearray(made.build())
    data[12:16] = bytes(4)  # covered by no CRC; aiokafka leaves -1
    return bytes(data)


@pytest.mark.parametrize("builder", BUILDERS)
@QUICK
@given(given_records=records)
def test_we_read_what_others_write(builder: Any, given_records: list[Any]) -> None:
    """A foreign writer's batch decodes to the records put in, and the deep walk finds nothing wrong."""
    data = written_by(builder, given_records)
    assert tuple(batch.decode(data)) == rows_of(given_records, 0)
    found, end, problem, _, _ = batch.scan(data, check_records=True)
    assert (len(found), end, problem) == (1, len(data), batch.PROBLEM_NONE)


@pytest.mark.parametrize("builder", BUILDERS)
@QUICK
@given(given_records=records)
def test_both_sides_write_the_same_bytes(builder: Any, given_records: list[Any]) -> None:
    """The same records give the same batch, byte for byte: there is one way to write them."""
    assert batch.encode(given_records) == written_by(builder, given_records)


@QUICK
@given(records, st.data())
def test_mutated_bytes_are_refused_by_every_entry(given_records: list[Any], data: st.DataObject) -> None:
    """Insertions, deletions and changes end in BatchError, UnsupportedBatch or the same records, in all decoders."""
    sound = batch.encode(given_records)
    start = data.draw(st.integers(0, len(sound)))
    stop = data.draw(st.integers(start, min(len(sound), start + 8)))
    changed = sound[:start] + data.draw(st.binary(max_size=8)) + sound[stop:]
    expected = rows_of(given_records, 0)
    with contextlib.suppress(batch.BatchError, batch.UnsupportedBatch):
        assert tuple(batch.decode_chunk(changed, 0, batch.Selection(), expected_offset=0)[0]) in {(), expected}
    found, _, problem, _, _ = batch.scan(changed, expected_offset=0)
    assert found == [] or found[0][6] == len(given_records)
    if problem != batch.PROBLEM_NONE:
        assert batch.PROBLEM_TEXTS[problem].format(expected=1, found=1)
    at, wanted = batch.find(changed, 0, 0, len(given_records))
    assert 0 <= at <= len(changed)
    assert wanted >= 0
