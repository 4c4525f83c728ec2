"""Compressed batches: each codec's give their records, and what claims to be huge, or is damaged, does no harm."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from gateway_native import batch

import gateway
from gateway.errors import DamageError, DamageWarning, FormatError
from gateway.log import compression
from gateway.log.compression import CodecMissing, TooLarge, expanded
from gateway.log.layout import prepare
from gateway.log.partition import PartitionReader
from tests.support.compressed import CODECS, compressed, with_records
from tests.support.partitions import T0, Partition, make_batch

PLAIN = batch.encode([(T0 + number, b"a/%d" % number, b"value " * 300, [("n", b"1")]) for number in range(200)], 7)
LIBRARIES = {"snappy": "cramjam", "lz4": "lz4.frame", "zstd": "zstandard"}


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_is_as_it_was_before(codec: str) -> None:
    """Byte for byte, also where its header says that times are the broker's."""
    assert expanded(compressed(PLAIN, codec)) == PLAIN
    assert expanded(memoryview(compressed(PLAIN, codec)), bytes_max=len(PLAIN) - batch.HEADER_BYTES) == PLAIN
    append_time = bytearray(compressed(PLAIN, codec))
    append_time[22] |= 0x08
    assert expanded(append_time)[22] == 0x08


@pytest.mark.parametrize("codec", CODECS)
def test_what_claims_to_be_huge_is_not_expanded(codec: str) -> None:
    """The bound is on what comes out, however little goes in."""
    with pytest.raises(TooLarge, match="holds more than 1000 bytes"):
        expanded(compressed(PLAIN, codec), bytes_max=1_000)
    number, compress = CODECS[codec]
    bomb = with_records(PLAIN, number, compress(bytes(2**26)))
    with pytest.raises(TooLarge):
        expanded(bomb, bytes_max=2**20)


def test_a_snappy_block_that_claims_4_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length is believed before anything is allocated for it."""
    with pytest.raises(TooLarge):
        expanded(with_records(PLAIN, 2, b"\xff\xff\xff\xff\x0f" + bytes(20)))


def test_more_records_than_are_read_at_once() -> None:
    """By the count in the header, before anything is expanded."""
    many = PLAIN[:57] + (compression.RECORDS_MAX + 1).to_bytes(4, "big") + PLAIN[61:]
    with pytest.raises(TooLarge, match="counts 2500001 records"):
        expanded(compressed(many, "gzip"))


@pytest.mark.parametrize("codec", CODECS)
def test_damage_is_found(codec: str) -> None:
    """Whatever was cut off or changed: an error that says damage, or records that are checked as any others."""
    number, compress = CODECS[codec]
    source = random.Random(codec)
    records = compress(PLAIN[batch.HEADER_BYTES :])
    for _ in range(200):
        changed = bytearray(records)
        for _ in range(source.randrange(3)):
            changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
        del changed[source.randrange(len(changed)) :]
        try:
            found = expanded(with_records(PLAIN, number, bytes(changed)))
        except batch.BatchError as error:
            assert error.problem == batch.PROBLEM_RECORDS
        except TooLarge:
            assert number == 2  # whose length may have grown
        else:
            with pytest.raises(batch.BatchError):
                batch.decode(found)


@pytest.mark.parametrize("codec", LIBRARIES)
def test_a_library_that_is_not_there_is_named(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do."""
    data = compressed(PLAIN, codec)
    monkeypatch.setitem(sys.modules, LIBRARIES[codec], None)
    with pytest.raises(CodecMissing, match=rf"compressed with {codec}: pip install 'gateway\[kafka\]'"):
        expanded(data)


def test_a_codec_of_the_future() -> None:
    """It is named by its number."""
    with pytest.raises(CodecMissing, match="unknown codec 5"):
        expanded(with_records(PLAIN, 5, b"x"))


# -- reading -----------------------------------------------------------------------------------------------------------


def _log(tmp_path: Path, second: bytes, *, sealed: bool) -> gateway.Stream:
    """Offsets 0 to 8 in three batches, the middle one of which is `second`."""
    prepare(tmp_path, "test", "UTC")
    partition = Partition(tmp_path / "orders-0")
    partition.add([make_batch(0), second, make_batch(6, time=T0 + 6)], sealed=sealed)
    if sealed:
        partition.add([make_batch(9, time=T0 + 9)], sealed=False)
    partition.mark_all()
    return gateway.open(tmp_path)["orders"]


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_records_between_others(tmp_path: Path, codec: str, sealed: bool) -> None:
    """In order, by offset, by time and by key, as rows and as columns, copied or not."""
    stream = _log(tmp_path, compressed(make_batch(3, time=T0 + 3), codec), sealed=sealed)
    end = 12 if sealed else 9
    expected = [b"%d" % number for number in range(end)]
    assert [row[3].rstrip(b".") for row in stream.read().rows()] == expected
    assert [row[0] for row in stream.read(offsets=(4, 8)).rows()] == [4, 5, 6, 7]
    assert [row[0] for row in stream.read(offsets=(3, 5), keys=["a/+"]).rows()] == [3, 4]
    assert [row[0] for row in stream.read(keys=["b"]).rows()] == []
    times = PartitionReader(tmp_path / "orders-0").chunks(batch.Selection(time_from=T0 + 4, time_to=T0 + 7))
    assert [row[0] for rows in times for row in rows] == [4, 5, 6]
    for view in (False, True):
        table: pa.Table = stream.read().to_arrow(view=view)
        table.validate(full=True)
        assert [value.rstrip(b".") for value in table["value"].to_pylist()] == expected
    assert stream.read(offsets=(4, 8)).to_arrow(view=True)["offset"].to_pylist() == [4, 5, 6, 7]


def test_damage_inside_is_passed_over(tmp_path: Path) -> None:
    """As any other: an error, or what lies around it."""
    stream = _log(tmp_path, with_records(make_batch(3), 1, b"no gzip at all"), sealed=False)
    with pytest.raises(DamageError):
        list(stream.read(damage="raise"))
    with pytest.warns(DamageWarning, match="record 0 of 3 is damaged"):
        assert [record.offset for record in stream.read()] == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("use", [list, lambda records: records.to_arrow()])
def test_what_cannot_be_read_is_said(tmp_path: Path, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which file, where in it, what to do."""
    stream = _log(tmp_path, compressed(make_batch(3), "snappy"), sealed=False)
    monkeypatch.setitem(sys.modules, "cramjam", None)
    with pytest.raises(FormatError, match=r"0\.log, byte \d+: the batch is compressed with snappy: pip install"):
        use(stream.read())
