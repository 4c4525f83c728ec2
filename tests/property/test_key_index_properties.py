"""Whatever a segment holds and whatever is asked for, reading by the key index gives what walking gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from gateway_native import batch
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.log import keyed
from gateway.log.key_index import KeyIndex
from gateway.log.key_index_build import build_key_index
from gateway.log.partition import PartitionReader
from tests.support.partitions import T0, Partition, make_batch

LEVELS = st.sampled_from(["a", "b", "ab", "", "$a", "ä", "a" * 300])
TOPICS = st.lists(LEVELS, min_size=1, max_size=3).map("/".join)
KEYS = st.none() | TOPICS.map(str.encode) | st.binary(max_size=6)
FILTERS = (
    st.lists(LEVELS | st.just("+"), min_size=1, max_size=3).map("/".join).filter(bool)
    | TOPICS.map(lambda topic: f"{topic}/#")
    | st.just("#")
    | st.binary(max_size=4)
    | TOPICS.map(str.encode)
)
BATCHES = st.lists(
    st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=700)), min_size=1, max_size=12), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(
    batches=BATCHES,
    filters=st.lists(FILTERS, min_size=1, max_size=3),
    records_max=st.sampled_from([1, 5, 1000]),
    bounds=st.tuples(st.none() | st.integers(0, 150), st.none() | st.integers(0, 150)),
    by_time=st.booleans(),
)
def test_reading_by_index_equals_walking(
    batches: list[list[tuple[bytes | None, bytes | None]]],
    filters: list[str | bytes],
    records_max: int,
    bounds: tuple[int | None, int | None],
    by_time: bool,
) -> None:
    """The same rows in the same order; and the index says so itself that it is sound, and about how many keys."""
    with tempfile.TemporaryDirectory() as directory, _for_small_segments():
        made = Partition(Path(directory) / "s-0")
        datas, offset = [], 0
        for rows in batches:
            datas.append(
                batch.encode([(T0 + offset + n, key, value, []) for n, (key, value) in enumerate(rows)], offset)
            )
            offset += len(rows)
        made.add(datas)
        made.add([make_batch(offset, time=T0 + offset)], sealed=False)
        made.mark_all()
        names = ("time_from", "time_to") if by_time else ("offset_from", "offset_to")
        origin = T0 if by_time else 0
        selection = batch.Selection(
            keys=filters,
            **{name: None if bound is None else origin + bound for name, bound in zip(names, bounds, strict=True)},
        )
        walked = _read(made, selection)
        build_key_index(made.directory, 0, records_max=records_max)
        with KeyIndex(made.directory, 0) as index:
            index.check()
            parts = [part for _, part in index.parts()]
        assert sum(part.records for part in parts) == sum(key is not None for rows in batches for key, _ in rows)
        assert parts[-1].log_to == sum(map(len, datas))
        assert _read(made, selection) == walked


def _read(made: Partition, selection: batch.Selection) -> list[batch.Row]:
    return [row for rows in PartitionReader(made.directory).chunks(selection) for row in rows]


@contextmanager
def _for_small_segments() -> Iterator[None]:
    """Use the index as for large ones."""
    with (
        mock.patch("gateway.log.partition.LOG_BYTES_MIN", 1),
        mock.patch.object(keyed, "BYTES_PER_RECORD_MIN", 0),
        mock.patch.object(keyed, "BYTES_PER_KEY", 0),
    ):
        yield
