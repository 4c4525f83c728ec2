"""The account of losses: every one counted, merged, written into its stream, and kept until it is."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from gateway_native import ring as native_ring
from gateway_native.batch import encode_headers
from hypothesis import given
from hypothesis import strategies as st

import gateway
from gateway.ingest import gaps as gaps_module
from gateway.ingest.gaps import Gaps
from gateway.ingest.refusals import Refusals
from gateway.log.gap import (
    CLOCK_HEADER,
    GAP_HEADER,
    REASONS,
    ClockStep,
    Gap,
    encode_gap,
    parse_clock,
    parse_gap,
)
from gateway.log.layout import prepare
from gateway.replay.camera_records import CameraRecord
from gateway.replay.records import Record
from tests.support.keeping import FakeWriter
from tests.support.native import RunningWriter

S = 1_000_000_000


class FakeRing:
    """Takes records as a ring does; the test gives the verdicts."""

    def __init__(self) -> None:
        self.put: list[tuple[int, bytes, int]] = []
        self.verdicts: dict[int, int] = {}
        self.full = False
        self.refusals_pending = False
        self.confirmed = 0

    def append(self, partition: int, key: bytes, value: bytes, headers: bytes, timestamp_ns: int, flags: int) -> int:
        if self.full:
            return 0
        assert (key, value, flags) == (b"", b"", native_ring.GAP)
        self.put.append((partition, headers, timestamp_ns))
        return len(self.put)

    def verdict(self, partition: int, sequence: int) -> int:
        return self.verdicts.get(sequence, native_ring.PENDING)

    def confirm_refusals(self) -> None:
        self.confirmed += 1
        self.refusals_pending = False

    @property
    def texts(self) -> list[bytes]:
        return [headers[headers.index(b"reason") :] for _, headers, _ in self.put]


def account(ring: FakeRing, streams: dict[str, int] | None = None) -> Gaps:
    ring_: Any = ring
    return Gaps(ring_, lambda: {"t": 0, "u": 1} if streams is None else streams, now_ns=lambda: 100 * S)


def only(gaps: Gaps) -> dict[str, Any]:
    (found,) = gaps.statistics()
    return found


def test_losses_are_merged_and_written_once_a_flush(tmp_path: Path) -> None:
    """One record for each stream, source and reason; counts and times of all that was added."""
    ring = FakeRing()
    gaps = account(ring)
    for second in (7, 3, 5):
        gaps.add("t", "devices", "overload", count=2, bytes=10, first_ns=second * S, last_ns=(second + 1) * S)
    gaps.add("u", "gate 1/x", "damage", count=0, bytes=0)
    gaps.flush()
    gaps.flush()
    assert ring.texts == [
        b"reason=overload count=6 bytes=30 first=3000 last=8000 source=devices",
        b"reason=damage count=0 bytes=0 first=100000 last=100000 source=gate%201%2Fx",
    ]
    assert [(partition, time_ns) for partition, _, time_ns in ring.put] == [(0, 100 * S), (1, 100 * S)]


def test_a_loss_counts_as_written_only_when_its_record_is_durable() -> None:
    """Refused: it is pending again, with what came meanwhile. Failed: nothing can be written; it stays counted."""
    ring = FakeRing()
    gaps = account(ring)
    gaps.add("t", "devices", "full-disk", count=5, bytes=50, first_ns=S)
    gaps.flush()
    gaps.add("t", "devices", "full-disk", count=1, bytes=1, first_ns=9 * S)
    gaps.flush()
    assert len(ring.put) == 1, "one on its way at a time"
    ring.verdicts[1], ring.refusals_pending = native_ring.REFUSED, True
    gaps.flush()
    assert ring.confirmed == 1
    assert ring.texts[1] == b"reason=full-disk count=6 bytes=51 first=1000 last=9000 source=devices"
    assert (only(gaps)["written"], gaps.unwritten) == (0, 1)
    ring.verdicts[2] = native_ring.ACKED
    gaps.settle()
    assert (only(gaps)["count"], only(gaps)["written"], only(gaps)["gap_records"], gaps.unwritten) == (6, 6, 1, 0)
    gaps.add("t", "devices", "full-disk", count=4, bytes=0)
    gaps.flush()
    ring.verdicts[3] = native_ring.FAILED
    gaps.flush()
    assert (only(gaps)["count"], only(gaps)["written"], only(gaps)["unwritable"]) == (10, 6, 4)
    assert len(ring.put) == 3


def test_what_finds_no_room_or_no_stream_waits() -> None:
    """A full ring, and a stream that is not open, keep the loss pending."""
    ring = FakeRing()
    streams: dict[str, int] = {}
    gaps = account(ring, streams)
    gaps.add("t", "devices", "overload", count=1, bytes=1)
    gaps.flush()
    streams["t"] = 3
    ring.full = True
    gaps.flush()
    assert (ring.put, gaps.unwritten) == ([], 1)
    ring.full = False
    gaps.flush()
    assert ring.put[0][0] == 3


def test_the_account_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond KEYS_MAX sources are no longer told apart; nothing goes uncounted."""
    monkeypatch.setattr(gaps_module, "KEYS_MAX", 3)
    gaps = account(FakeRing())
    for number in range(10):
        gaps.add("t", f"source {number}", "overload", count=1, bytes=1)
    found = {loss["source"]: loss["count"] for loss in gaps.statistics()}
    assert found == {"source 0": 1, "source 1": 1, "source 2": 1, "*": 7}


def test_any_thread_may_add() -> None:
    """Four threads and flushes in between: the sum is right."""
    ring = FakeRing()
    gaps = account(ring)

    def add() -> None:
        for _ in range(500):
            gaps.add("t", "devices", "overload", count=1, bytes=2)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        gaps.flush()
        ring.verdicts = dict.fromkeys(range(1, len(ring.put) + 1), native_ring.ACKED)
    for thread in threads:
        thread.join()
    for _ in range(3):
        gaps.flush()
        ring.verdicts = dict.fromkeys(range(1, len(ring.put) + 1), native_ring.ACKED)
    found = only(gaps)
    assert (found["count"], found["bytes"], found["written"]) == (2000, 4000, 2000)


def test_gap_records_stand_in_the_stream_for_readers(tmp_path: Path) -> None:
    """Through the real ring and writer: neither key nor value, found by `Record.gap`, no picture for replay."""
    prepare(tmp_path, "x", "UTC")
    with RunningWriter() as running:
        index = running.writer.add_partition(str(tmp_path / "t-0"), linger_ns=0)
        gaps = Gaps(running.ring(1 << 16), lambda: {"t": index})
        gaps.add("t", "gate-1", "packet-loss", count=3, bytes=0, first_ns=5 * S, last_ns=6 * S)
        gaps.flush()
        assert running.writer.flush(30)
        gaps.settle()
        assert only(gaps)["written"] == 3
    (record,) = gateway.open(tmp_path)["t"].read()
    assert (record.key, record.value) == (None, None)
    assert record.gap == Gap("packet-loss", 3, 0, 5000, 6000, "gate-1")
    assert record.clock_step is None
    assert CameraRecord.of(record) is None


def test_a_sensors_record_is_no_gap() -> None:
    """Only what has neither key nor value is the gateway's own; a header alone proves nothing."""
    header = ((GAP_HEADER, b"reason=damage count=1 bytes=0 first=1 last=1 source=x"),)
    assert Record(0, 0, b"topic", b"", header).gap is None
    assert Record(0, 0, None, b"", header).gap is None
    assert Record(0, 0, None, None, header).gap is not None
    assert Record(0, 0, None, None, ((GAP_HEADER, b"reason=new-one count=1"),)).gap is None
    step = Record(0, 0, None, None, ((CLOCK_HEADER, b"old=5 new=-7 cause=step"),))
    assert (step.clock_step, step.gap) == (ClockStep(5, -7, "step"), None)


@given(
    st.builds(
        Gap,
        st.sampled_from(REASONS),
        st.integers(0, 2**63),
        st.integers(0, 2**63),
        st.integers(-(2**53), 2**53),
        st.integers(-(2**53), 2**53),
        st.text(max_size=20),
    )
)
def test_every_gap_is_read_back(gap: Gap) -> None:
    """Whatever its numbers and its source's name; the header is ASCII without blanks in the name."""
    headers = encode_gap(gap)
    value = headers[headers.index(b"reason=") :]
    assert headers == encode_headers([(GAP_HEADER, value)])
    assert value.isascii()
    assert value.count(b" ") == 5
    assert parse_gap(value) == gap


@given(st.binary(max_size=60) | st.text("reason=full-disk cnt0189 ", max_size=60).map(str.encode))
def test_what_is_no_gap_is_a_value_error(value: bytes) -> None:
    """Never anything else."""
    for parse in (parse_gap, parse_clock):
        try:
            parse(value)
        except ValueError:
            continue


def test_what_the_writer_refuses_and_loses_is_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    """Growth since the last look, by source; what a failed stream lost is counted, though it cannot be written."""
    writer = FakeWriter()
    writer.add()
    writer.add(lost=4)
    gaps = account(FakeRing())
    refusals = Refusals(writer, gaps, lambda: {"t": 0, "u": 1}, lambda ring, stream: f"{ring} of {stream}")
    refusals.look()
    writer.states[0]["refused"] = 7
    writer.refused[0] = {"devices": (5, 500, 10 * S, 20 * S), "broker": (2, 20, S, S)}
    refusals.look()
    refusals.look()
    writer.states[0]["refused"] = 8
    writer.refused[0] = {"devices": (6, 501, 30 * S, 30 * S), "broker": (2, 20, S, S)}
    writer.states[1]["lost"] = 6
    refusals.look()
    found = {
        (loss["stream"], loss["source"], loss["reason"]): (loss["count"], loss["bytes"]) for loss in gaps.statistics()
    }
    assert found == {
        ("t", "devices of t", "full-disk"): (6, 501),
        ("t", "broker of t", "full-disk"): (2, 20),
        ("u", "*", "failed-disk"): (6, 0),
    }
    assert gaps.statistics()[0]["unwritable"] == 6
    assert caplog.text.count("records refused, the disk is full") == 3
