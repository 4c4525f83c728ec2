"""The writer and flusher threads: from rings to sealed segments, seen through other people's parsers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from gateway_native import watermark
from gateway_native.batch import encode_headers
from gateway_native.ring import ACKED, FAILED, KEYFRAME, WANTS_ACK
from gateway_native.writer import Writer

from tests.support.native import RunningWriter, put, verdict_of, wait_until
from tests.support.segments import parse, read_partition, segment_bases, segment_file

BATCH_BYTES = 256 * 1024
LARGEST_RECORD = 16 * 1024 * 1024


@pytest.fixture(params=["pwrite", "mapped"])
def storage(request):
    """Both storage tables."""
    return request.param


def test_records_come_out_as_they_went_in(tmp_path, storage):
    """Key, value, headers, time and order survive, with contiguous offsets from 0."""
    sent = [(b"topic/%d" % (n % 7), b"%d" % n * (n % 50), 1_700_000_000_000 + n) for n in range(2000)]
    headers = encode_headers([("qos", b"1"), ("empty", b"")])
    with RunningWriter(storage) as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring()
        for key, value, timestamp in sent:
            last = put(ring, partition, key, value, timestamp_ms=timestamp, headers=headers, flags=WANTS_ACK)
        assert verdict_of(ring, partition, last) == ACKED
        state = running.writer.partition_state(partition)
        assert (state["durable_offset"], state["records"], state["lost"], state["failed"]) == (2000, 2000, 0, False)
        assert watermark.read(tmp_path / "a-0" / "watermark").durable_offset == 2000
    rows = read_partition(tmp_path / "a-0")
    assert [(row.key, row.value, row.timestamp_ms) for row in rows] == sent
    assert {row.headers for row in rows} == {(("qos", b"1"), ("empty", b""))}


def test_an_acknowledged_record_is_in_the_file_below_the_watermark(tmp_path, storage):
    """Once ACKED, the bytes up to the watermark's position parse and hold the record, while the writer runs on."""
    directory = tmp_path / "a-0"
    with RunningWriter(storage) as running:
        partition = running.writer.add_partition(str(directory))
        ring = running.ring()
        for number in range(30):
            assert verdict_of(ring, partition, put(ring, partition, b"k", b"%d" % number, flags=WANTS_ACK)) == ACKED
            mark = watermark.read(directory / "watermark")
            data = segment_file(directory, mark.segment_base).read_bytes()[: mark.position]
            assert parse(data)[-1].rows[-1].value == b"%d" % number
            assert mark.durable_offset == number + 1


@pytest.mark.parametrize(
    "size", [BATCH_BYTES - 200, BATCH_BYTES - 93, BATCH_BYTES, BATCH_BYTES + 1, 1 << 20, LARGEST_RECORD]
)
def test_a_record_larger_than_a_batch_buffer_has_a_batch_of_its_own(tmp_path, storage, size):
    """Records around and above the buffer size, up to the largest there is, are stored whole between small ones."""
    with RunningWriter(storage) as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring(64 << 20)
        for value in (b"before", b"x" * size, b"after"):
            last = put(ring, partition, b"", value)
        assert verdict_of(ring, partition, last) == ACKED
    rows = read_partition(tmp_path / "a-0", both=size <= 1 << 20)
    assert [row.value for row in rows] == [b"before", b"x" * size, b"after"]
    if size > BATCH_BYTES:
        batches = parse(segment_file(tmp_path / "a-0", 0).read_bytes(), both=False)
        assert [len(batch.rows) for batch in batches] == [1, 1, 1]


def test_a_batch_closes_at_the_buffer_size(tmp_path):
    """Small records share a batch of at most 256 KiB."""
    running = RunningWriter()
    partition = running.writer.add_partition(str(tmp_path / "a-0"), linger_ns=10_000_000_000)
    ring = running.ring(4 << 20)
    for _ in range(2000):
        put(ring, partition, b"key", b"v" * 1000)
    with running:
        wait_until(lambda: ring.used == 0, "the ring to be drained")
    sizes = [batch.size for batch in parse(segment_file(tmp_path / "a-0", 0).read_bytes())]
    assert max(sizes) <= BATCH_BYTES
    assert all(size > BATCH_BYTES - 2000 for size in sizes[1:-1]), "only the first and the last commit may take less"
    assert len(sizes) < 12


def test_a_key_frame_begins_a_batch(tmp_path):
    """A record flagged as a key frame is the first of its batch, so that replay can start there."""
    running = RunningWriter()
    partition = running.writer.add_partition(str(tmp_path / "a-0"))
    ring = running.ring()
    for number in range(20):
        put(ring, partition, b"", b"%d" % number, flags=KEYFRAME if number % 5 == 0 else 0)
    with running:
        assert running.writer.flush()
    batches = parse(segment_file(tmp_path / "a-0", 0).read_bytes())
    assert [batch.rows[0].offset for batch in batches] == [0, 5, 10, 15]


def test_time_stands_still_rather_than_run_backwards(tmp_path):
    """A backward step of up to a second is clamped; a larger one begins a new segment, with a record that says so."""
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring()
        for timestamp in (10_000, 9_999, 9_000, 10_001, 9_001, 9_000, 5_000, 5_001):
            put(ring, partition, b"", b"", timestamp_ms=timestamp)
    rows = read_partition(tmp_path / "a-0")
    steps = [row for row in rows if row.key is None]
    times = [row.timestamp_ms for row in rows if row.key is not None]
    assert times == [10_000, 10_000, 10_000, 10_001, 10_001, 9_000, 5_000, 5_001]
    assert [(row.offset, row.timestamp_ms, row.value, row.headers) for row in steps] == [
        (5, 9_000, None, (("gateway.clock", b"old=10001 new=9000 cause=step"),)),
        (7, 5_000, None, (("gateway.clock", b"old=9000 new=5000 cause=step"),)),
    ]
    assert sorted(path.name for path in (tmp_path / "a-0").glob("*.log")) == [f"{base:020d}.log" for base in (0, 5, 7)]


def test_a_ring_that_lags_is_no_clock_that_steps(tmp_path):
    """Two producers a minute apart, as after a stall, share one segment: time stands still for the late one."""
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"))
        ahead, behind = running.ring(name="ahead"), running.ring(name="behind")
        for number in range(50):
            put(ahead, partition, b"a", b"", timestamp_ms=100_000 + number)
            assert (
                verdict_of(behind, partition, put(behind, partition, b"b", b"", timestamp_ms=40_000 + number)) == ACKED
            )
    times = [row.timestamp_ms for row in read_partition(tmp_path / "a-0")]
    assert times == sorted(times)
    assert len(list((tmp_path / "a-0").glob("*.log"))) == 1


def test_time_is_clamped_across_a_restart(tmp_path):
    """The last time that recovery found counts as the newest."""
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"), last_timestamp=10_000)
        put(running.ring(), partition, b"", b"", timestamp_ms=9_500)
    assert read_partition(tmp_path / "a-0")[0].timestamp_ms == 10_000


@pytest.mark.parametrize("segment_bytes", [1, 1000, 5000, 100_000])
def test_segments_roll_before_they_are_too_large(tmp_path, storage, segment_bytes):
    """No segment exceeds segment_bytes unless one batch alone does, and none is empty."""
    directory = tmp_path / "a-0"
    with RunningWriter(storage) as running:
        partition = running.writer.add_partition(str(directory), segment_bytes=segment_bytes)
        ring = running.ring()
        for number in range(300):
            last = put(ring, partition, b"%d" % number, b"v" * 400, flags=KEYFRAME if number % 3 == 0 else 0)
        assert verdict_of(ring, partition, last) == ACKED
    assert [row.key for row in read_partition(directory)] == [b"%d" % number for number in range(300)]
    bases = segment_bases(directory)
    assert len(bases) > 1
    for base in bases:
        batches = parse(segment_file(directory, base).read_bytes())
        assert batches
        assert len(batches) == 1 or sum(batch.size for batch in batches) <= segment_bytes


def test_segments_roll_by_age(tmp_path):
    """A batch that is newer than the segment's first by more than segment_age_ms begins a new segment."""
    directory = tmp_path / "a-0"
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(directory), segment_age_ms=1000)
        ring = running.ring()
        for timestamp in (5_000, 6_000, 6_001, 7_001, 7_002):
            put(ring, partition, b"", b"", timestamp_ms=timestamp, flags=KEYFRAME)
    assert segment_bases(directory) == [0, 2, 4]
    assert len(read_partition(directory)) == 5


def test_many_segments_in_one_commit_are_all_synced_and_published(tmp_path, storage):
    """Segments sealed while one commit is in flight come with the next, all of them."""
    directory = tmp_path / "a-0"
    running = RunningWriter(storage)
    partition = running.writer.add_partition(str(directory), segment_bytes=1)
    ring = running.ring()
    for number in range(50):
        last = put(ring, partition, b"", b"%d" % number, flags=KEYFRAME)
    with running:
        assert verdict_of(ring, partition, last) == ACKED
        assert running.writer.counters["synced_files"] >= 50
        mark = watermark.read(directory / "watermark")
        assert (mark.segment_base, mark.durable_offset) == (49, 50)
    assert segment_bases(directory) == list(range(50))
    assert len(read_partition(directory)) == 50


def test_a_reopened_partition_goes_on_exactly(tmp_path, storage):
    """Closed and opened again many times, log and indexes are what Kafka would have after as many restarts."""
    directory = tmp_path / "a-0"
    state: dict[str, int] = {}
    for run in range(5):
        with RunningWriter(storage) as running:
            partition = running.writer.add_partition(str(directory), segment_bytes=40_000, epoch=run + 1, **state)
            ring = running.ring()
            for number in range(100):
                put(ring, partition, b"%d" % run, b"v" * 200, timestamp_ms=run * 1000 + number, flags=KEYFRAME)
            assert running.writer.flush()
        assert watermark.read(directory / "watermark").epoch == run + 1
        state = writer_state(directory)
    rows = read_partition(directory, closed_after=range(99, 500, 100))
    assert [row.key for row in rows] == [b"%d" % run for run in range(5) for _ in range(100)]
    assert len(segment_bases(directory)) > 1


def writer_state(directory) -> dict[str, int]:
    """What recovery would tell add_partition of a cleanly closed partition, found out by other means."""
    base = segment_bases(directory)[-1]
    data = segment_file(directory, base).read_bytes()
    batches = parse(data)
    since_entry = 0
    for batch in batches:
        since_entry = batch.size if since_entry > 4096 else since_entry + batch.size
    newest = max(batch.max_timestamp for batch in batches)
    entries = segment_file(directory, base, "timeindex").read_bytes()
    last_entry = int.from_bytes(entries[-12:-4], "big")
    return {
        "next_offset": batches[-1].last_offset + 1,
        "segment_base": base,
        "position": len(data),
        "index_bytes": segment_file(directory, base, "index").stat().st_size,
        "time_bytes": len(entries),
        "bytes_since_entry": since_entry,
        "first_timestamp": batches[0].max_timestamp,
        "max_timestamp": newest,
        "offset_of_max": next(b.last_offset for b in batches if b.max_timestamp == newest),
        "last_time_entry": last_entry,
        "last_timestamp": newest,
    }


def test_stop_takes_everything_published_along(tmp_path, storage):
    """Stopping right after the last append loses nothing and leaves every file at its exact length."""
    running = RunningWriter(storage)
    partitions = [running.writer.add_partition(str(tmp_path / f"{name}-0")) for name in "abc"]
    rings = [running.ring(8 << 20, f"ring-{n}") for n in range(2)]
    for number in range(3000):
        put(rings[number % 2], partitions[number % 3], b"%d" % number, b"v" * 500)
    running.writer.stop()
    with running:
        pass
    found = [row.key for name in "abc" for row in read_partition(tmp_path / f"{name}-0", both=False)]
    assert sorted(found, key=int) == [b"%d" % number for number in range(3000)]


def test_many_rings_keep_each_producers_order(tmp_path):
    """Sixteen threads into shared partitions: all there and acknowledged, in order per producer, offsets contiguous."""
    count, per_thread = 16, 400
    with RunningWriter() as running:
        partitions = [running.writer.add_partition(str(tmp_path / f"{name}-0")) for name in "ab"]
        rings = [running.ring(64 << 10, f"ring-{n}") for n in range(count)]
        failures: list[BaseException] = []

        def produce(index: int) -> None:
            try:
                last = 0
                for number in range(per_thread):
                    last = put(rings[index], partitions[number % 2], b"%d" % index, b"%d" % number)
                assert verdict_of(rings[index], partitions[1], last) == ACKED
            except BaseException as error:  # noqa: BLE001  # shown by the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=produce, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
    for parity, name in enumerate("ab"):
        rows = read_partition(tmp_path / f"{name}-0")
        for index in range(count):
            mine = [int(row.value) for row in rows if row.key == b"%d" % index]
            assert mine == list(range(parity, per_thread, 2))


def test_a_small_pool_serves_many_partitions_and_large_records(tmp_path, storage):
    """With buffers for four batches, sixty partitions and records beyond the whole pool still all get through."""
    with RunningWriter(storage, buffer_bytes=1 << 20) as running:
        partitions = [running.writer.add_partition(str(tmp_path / f"p{n}-0")) for n in range(60)]
        ring = running.ring(16 << 20)
        for number in range(600):
            put(ring, partitions[number % 60], b"%d" % number, b"v" * (2 << 20 if number % 100 == 99 else 300))
        assert running.writer.flush()
    rows = [row for n in range(60) for row in read_partition(tmp_path / f"p{n}-0", both=False)]
    assert sorted(int(row.key) for row in rows) == list(range(600))


def test_a_large_record_is_not_starved_by_a_busy_ring(tmp_path):
    """Where buffers are short, the ring that found none comes first once there are some."""
    with RunningWriter(buffer_bytes=1 << 20) as running:
        small = [running.writer.add_partition(str(tmp_path / f"s{n}-0")) for n in range(16)]
        large = running.writer.add_partition(str(tmp_path / "large-0"))
        busy, other = running.ring(1 << 20, "busy"), running.ring(8 << 20, "other")
        stop = threading.Event()

        def keep_busy() -> None:
            number = 0
            while not stop.is_set():
                if busy.append(small[number % 16], b"", b"x" * 50, b"", 0):
                    number += 1

        producer = threading.Thread(target=keep_busy)
        producer.start()
        try:
            for _ in range(5):
                assert verdict_of(other, large, put(other, large, b"", b"v" * 900_000, flags=WANTS_ACK)) == ACKED
        finally:
            stop.set()
            producer.join()


def test_a_flush_ends_although_records_keep_coming(tmp_path):
    """A flush waits for what was published before it, not for silence."""
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(tmp_path / "a-0"))
        busy, mine = running.ring(1 << 20, "busy"), running.ring(1 << 20, "mine")
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                busy.append(partition, b"busy", b"", b"", 0)

        producer = threading.Thread(target=keep_busy)
        producer.start()
        try:
            for number in range(10):
                sequence = put(mine, partition, b"mine", b"%d" % number)
                assert running.writer.flush()
                assert mine.verdict(partition, sequence) == ACKED
        finally:
            stop.set()
            producer.join()


def test_flush_of_nothing_returns_at_once_and_of_a_stopped_writer_says_so(tmp_path):
    """True without work, False when the threads are gone and something is left."""
    running = RunningWriter()
    with running:
        wait_until(running.writer.flush, "the writer to run")
        assert running.writer.flush()
    partition = running.writer.add_partition(str(tmp_path / "a-0"))
    ring = running.ring()
    put(ring, partition, b"", b"")
    assert not running.writer.flush(0.0)


def test_memory_acknowledges_before_the_disk_and_says_what_it_lost(tmp_path):
    """With ack = "memory" the acknowledgement leaves although the disk then fails; the loss is counted."""
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with RunningWriter() as running:
        memory = running.writer.add_partition(str(blocked / "a-0"), ack_memory=True)
        disk = running.writer.add_partition(str(blocked / "b-0"))
        ring = running.ring()
        first = put(ring, memory, b"", b"")
        other = put(ring, disk, b"", b"", flags=WANTS_ACK)
        assert verdict_of(ring, memory, first) == ACKED
        assert verdict_of(ring, disk, other) == FAILED
        wait_until(lambda: running.writer.partition_state(memory)["failed"], "the failure")
        assert verdict_of(ring, memory, put(ring, memory, b"", b"")) == FAILED
        wait_until(lambda: running.writer.partition_state(memory)["lost"] == 2, "the loss to be counted")


def test_a_failing_partition_fails_alone(tmp_path):
    """Where a directory cannot be made, nothing is ever acknowledged; the other partitions do not notice."""
    (tmp_path / "file").write_bytes(b"")
    with RunningWriter() as running:
        bad = running.writer.add_partition(str(tmp_path / "file" / "bad-0"))
        good = running.writer.add_partition(str(tmp_path / "good-0"))
        ring = running.ring()
        for _ in range(100):
            failing, fine = put(ring, bad, b"", b"x"), put(ring, good, b"", b"y")
        assert verdict_of(ring, bad, failing) == FAILED
        assert verdict_of(ring, good, fine) == ACKED
        assert ring.verdict(bad, 1) == FAILED
        state = running.writer.partition_state(bad)
        assert (state["failed_step"], state["durable_offset"]) == ("creating a segment", 0)
        assert running.writer.flush()
        assert running.writer.partition_state(bad)["lost"] == 100
        late = running.ring(4096, "late")
        assert verdict_of(late, bad, put(late, bad, b"", b"x")) == FAILED
    assert len(read_partition(tmp_path / "good-0")) == 100


def test_a_partition_fails_after_acknowledging(tmp_path, storage):
    """A directory taken away under a running partition fails it at the next segment; earlier verdicts stand."""
    directory = tmp_path / "a-0"
    with RunningWriter(storage) as running:
        partition = running.writer.add_partition(str(directory), segment_bytes=1)
        ring = running.ring()
        kept = put(ring, partition, b"", b"kept")
        assert verdict_of(ring, partition, kept) == ACKED
        directory.rename(tmp_path / "gone")
        lost = put(ring, partition, b"", b"lost", flags=WANTS_ACK)
        assert verdict_of(ring, partition, lost) == FAILED
        assert ring.verdict(partition, kept) == ACKED
        assert running.writer.partition_state(partition)["durable_offset"] == 1
        wait_until(lambda: running.writer.partition_state(partition)["lost"] == 1, "the loss to be counted")
    assert [row.value for row in read_partition(tmp_path / "gone")] == [b"kept"]


def test_health_is_told_of_a_failure(tmp_path):
    """health_fd becomes readable when a partition fails."""
    import select

    (tmp_path / "file").write_bytes(b"")
    with RunningWriter() as running:
        partition = running.writer.add_partition(str(tmp_path / "file" / "a-0"))
        put(running.ring(), partition, b"", b"")
        assert select.select([running.writer.health_fd], [], [], 60)[0]
        running.writer.clear_health()
        assert not select.select([running.writer.health_fd], [], [], 0)[0]


def test_an_existing_segment_that_is_gone_is_an_error(tmp_path):
    """add_partition names the directory when what recovery found cannot be opened, and adds nothing."""
    writer = Writer("pwrite")
    (tmp_path / "a-0").mkdir()
    with pytest.raises(OSError, match="segment 5") as caught:
        writer.add_partition(str(tmp_path / "a-0"), segment_base=5, next_offset=7)
    assert caught.value.filename == str(tmp_path / "a-0")
    with pytest.raises(IndexError):
        writer.partition_state(0)


def test_bounds_of_the_writer(tmp_path):
    """The number of partitions and the length of a path are bounded, and a storage table must exist."""
    writer = Writer("pwrite", partitions_max=1)
    writer.add_partition(str(tmp_path / "a-0"))
    with pytest.raises(ValueError, match="at most 1 partitions"):
        writer.add_partition(str(tmp_path / "b-0"))
    with pytest.raises(ValueError, match="longer than"):
        Writer("pwrite").add_partition("/" + "x" * 5000)
    with pytest.raises(ValueError, match="'mapped' and 'pwrite'"):
        Writer("floppy")


def test_the_watermark_of_a_new_partition_comes_before_its_first_segment(tmp_path):
    """A reader in between must learn that nothing is durable, rather than find no watermark and trust what parses."""
    stop = threading.Event()
    bad: list[str] = []

    def look() -> None:
        while not stop.is_set():
            bad.extend(
                f"{segment} without a watermark"
                for segment in tmp_path.glob("*/*.log")
                if watermark.read(segment.with_name("watermark")) is None
            )

    looker = threading.Thread(target=look)
    looker.start()
    with RunningWriter() as running:
        ring = running.ring(4096, "ring")
        for number in range(20):
            directory = tmp_path / f"{number}-0"
            partition = running.writer.add_partition(str(directory), next_offset=7, epoch=3)
            assert verdict_of(ring, partition, put(ring, partition, b"", b"", flags=WANTS_ACK)) == ACKED
            assert watermark.read(directory / "watermark")[:2] == (3, 7)
    stop.set()
    looker.join()
    assert not bad


def test_a_writer_that_never_ran_can_be_thrown_away(tmp_path):
    """Buffers, descriptors and rings of a writer without threads are freed."""
    for _ in range(50):
        writer = Writer("pwrite")
        writer.add_partition(str(tmp_path / "a-0"))
        writer.ring("ring", 1 << 20).append(0, b"key", b"value", b"", 0)
        del writer


def mapped_resident_kib(directory) -> int:
    """How much of the mapped logs in this directory this process's page tables hold."""
    resident, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            ours = bool(rest) and rest[-1].startswith(str(directory)) and rest[-1].endswith(".log")
        elif ours and name == "Rss:":
            resident += int(rest[0])
    return resident


def test_a_mapped_segment_keeps_few_pages_mapped(tmp_path):
    """What was written leaves the page tables before a sync has to write-protect it; it is in the log all the same."""
    values = [bytes([number]) * 100_000 for number in range(200)]
    with RunningWriter("mapped") as running:
        running.writer.add_partition(str(tmp_path / "a-0"))
        ring = running.ring(1 << 20)
        for value in values:
            last = put(ring, 0, b"", value, flags=WANTS_ACK)
        assert verdict_of(ring, 0, last) == ACKED
        assert 0 < mapped_resident_kib(tmp_path) <= 1_024
    assert [record.value for record in read_partition(tmp_path / "a-0")] == values
