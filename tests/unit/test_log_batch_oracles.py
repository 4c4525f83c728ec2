"""Record batches against independent implementations: aiokafka's and kafka-python's."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder as AiokafkaBuilder
from aiokafka.record.memory_records import MemoryRecords as AiokafkaRecords
from gateway_native import batch

from gateway.log.compression import expanded
from tests.support.partitions import T0

with warnings.catch_warnings():  # its import reads resources in a way that Python calls old
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.record import MemoryRecords as KafkaPythonRecords
    from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaPythonBuilder

READERS = [pytest.param(AiokafkaRecords, id="aiokafka"), pytest.param(KafkaPythonRecords, id="kafka-python")]
BUILDERS = [pytest.param(AiokafkaBuilder, id="aiokafka"), pytest.param(KafkaPythonBuilder, id="kafka-python")]

Record = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]


def some_records(seed: int, count: int = 200) -> list[Record]:
    """Records of all shapes: null and empty parts, long values, headers, times that step back."""
    source = random.Random(seed)
    return [
        (
            T0 + source.randrange(-100_000, 100_000),
            source.choice([None, b"", b"plant/3/temperature", source.randbytes(40)]),
            source.choice([None, b"", source.randbytes(source.randrange(1, 300)), source.randbytes(20_000)]),
            [("qos", b"1"), ("größe", source.randbytes(9)), ("qos", b"")][: source.randrange(4)],
        )
        for _ in range(count)
    ]


def read_by(reader: Any, data: bytes) -> list[tuple[Any, ...]]:
    """Every record that a foreign reader finds, with its CRCs checked."""
    records, found = reader(data), []
    while (one := records.next_batch()) is not None:
        assert one.validate_crc()
        found += [
            (record.offset, record.timestamp, record.key, record.value, tuple((k, v) for k, v in record.headers))
            for record in one
        ]
    return found


@pytest.mark.parametrize("reader", READERS)
def test_foreign_reader_finds_the_same_records(reader: Any) -> None:
    """Offsets, times, keys, values, headers and CRC of several batches in a row are the same to others."""
    data, expected, offset = b"", [], 2**40
    for seed in range(5):
        records = some_records(seed)
        data += batch.encode(records, offset)
        expected += [(offset + n, t, k, v, tuple(h)) for n, (t, k, v, h) in enumerate(records)]
        offset += len(records)
    assert read_by(reader, data) == expected


@pytest.mark.parametrize("builder", BUILDERS)
def test_foreign_batch_is_read(builder: Any) -> None:
    """What others write uncompressed comes back whole from our decoder and our deep walk."""
    made = builder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=10_000_000,
    )  # fmt: skip
    records = some_records(77)
    for offset, (time, key, value, headers) in enumerate(records):
        made.append(offset, time, key, value, headers)
    data = bytes(made.build())
    assert batch.decode(data) == [(n, t, k, v, tuple(h)) for n, (t, k, v, h) in enumerate(records)]
    _, stopped, problem, _, _ = batch.scan(data.replace(data[12:16], b"\0\0\0\0", 1), check_records=True)
    assert problem in {batch.PROBLEM_NONE, batch.PROBLEM_EPOCH}
    assert stopped in {0, len(data)}


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_foreign_compressed_batch_is_expanded(codec: int) -> None:
    """One that aiokafka compressed holds the records that went in; unexpanded it names its codec."""
    made = AiokafkaBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=10_000_000,
    )  # fmt: skip
    records = some_records(77)
    for offset, (time, key, value, headers) in enumerate(records):
        made.append(offset, time, key, value, headers)
    data = bytes(made.build())
    with pytest.raises(batch.UnsupportedBatch, match=batch.CODECS[codec]):
        batch.decode(data)
    assert batch.decode(expanded(data)) == [(n, t, k, v, tuple(h)) for n, (t, k, v, h) in enumerate(records)]


def test_crc_is_aiokafkas() -> None:
    """CRC-32C of random data equals that of aiokafka's own implementation."""
    from aiokafka.record._crc32c import crc

    source = random.Random(1)
    for size in (0, 1, 100, 1000, 20_000):
        data = source.randbytes(size)
        assert batch.crc32c(data) == crc(data)
