"""The writer against a model: whatever records come, the files are what Kafka's rules say."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from gateway_native.ring import KEYFRAME
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.native import RunningWriter, put
from tests.support.segments import read_partition

RECORDS = st.lists(
    st.tuples(
        st.integers(0, 1),  # ring
        st.integers(0, 2),  # partition
        st.integers(0, 12),  # key bytes
        st.one_of(st.integers(0, 60), st.integers(3000, 9000), st.just(300_000)),  # value bytes
        st.integers(0, 5_000),  # timestamp, ms
        st.booleans(),  # key frame
        st.integers(0, 9),  # 0: flush after it
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(records=RECORDS, segment_bytes=st.sampled_from([1, 5_000, 50_000, 1 << 30]), mapped=st.booleans())
def test_any_records_make_the_log_and_indexes_that_kafka_would_write(records, segment_bytes, mapped):
    """Contents and order per ring and partition, offsets, both indexes, after any mixture of sizes, times and flags."""
    with TemporaryDirectory() as root:
        directories = [Path(root) / f"p{n}-0" for n in range(3)]
        sent: dict[tuple[int, int], list[tuple[bytes, bytes]]] = {}
        with RunningWriter("mapped" if mapped else "pwrite", buffer_bytes=1 << 20) as running:
            partitions = [running.writer.add_partition(str(path), segment_bytes=segment_bytes) for path in directories]
            rings = [running.ring(1 << 20, f"ring-{n}") for n in range(2)]
            for number, (ring, partition, key_bytes, value_bytes, timestamp, keyframe, flush) in enumerate(records):
                key = b"%d/%d/" % (ring, number) + b"k" * key_bytes
                value = b"v" * value_bytes
                flags = KEYFRAME if keyframe else 0
                put(rings[ring], partitions[partition], key, value, timestamp_ms=timestamp, flags=flags)
                sent.setdefault((ring, partition), []).append((key, value))
                if flush == 0:
                    assert running.writer.flush()
        for partition, path in enumerate(directories):
            rows = read_partition(path, both=False) if path.exists() else []
            for ring in range(2):
                mine = [(row.key, row.value) for row in rows if (row.key or b"").startswith(b"%d/" % ring)]
                assert mine == sent.get((ring, partition), [])
