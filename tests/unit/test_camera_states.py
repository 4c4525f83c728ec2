"""A camera's state, and how long it is waited for, with a clock in the test's hand."""

from __future__ import annotations

import logging
import random

import pytest
from gateway_adapters.rtsp.failures import Failure
from gateway_adapters.rtsp.health import LOSSY_S, RETURNING_S, RETURNING_WAIT_S_MAX, Health

from gateway.backoff import Backoff
from gateway.clock import NS_PER_S

CLOSED = Failure("closed", "the camera closed the connection")
REFUSED = Failure("refused", "nothing listens")


@pytest.fixture
def health() -> Health:
    return Health("gate", logging.getLogger("gateway.test"), Backoff(NS_PER_S, 60 * NS_PER_S, random.Random(1)))


def test_loss_is_a_state_for_a_minute(health: Health) -> None:
    """Only of a camera that is recorded."""
    health.connecting()
    health.lost_packets(100.0)
    assert health.state(101.0) == "connecting"
    health.recording()
    assert health.state(101.0) == "lossy"
    assert health.state(100.0 + LOSSY_S) == "recording"
    health.stalled()
    assert health.state(101.0) == "stalled"
    health.resumed()
    assert health.state(101.0) == "lossy"


def test_a_camera_that_restarts_is_tried_often(health: Health) -> None:
    """For a minute after its last picture; then the waits are those of a camera that is away."""
    now = 1_000.0
    assert health.failed(CLOSED, now=now, run_s=500.0, recorded=True) <= 1.0
    waits = []
    while now < 1_000.0 + RETURNING_S:
        waits.append(health.failed(REFUSED, now=now, run_s=0.0, recorded=False))
        now += waits[-1]
    assert max(waits) <= RETURNING_WAIT_S_MAX
    assert health.failed(REFUSED, now=now, run_s=0.0, recorded=False) > RETURNING_WAIT_S_MAX


def test_a_camera_that_was_never_there_is_tried_ever_less(health: Health) -> None:
    """Up to the configured most."""
    waits = [health.failed(REFUSED, now=float(n), run_s=0.0, recorded=False) for n in range(12)]
    assert waits[0] <= 1.0
    assert 30.0 <= waits[-1] <= 60.0
    assert (health.reconnects, health.last_error, health.state(0.0)) == (12, "nothing listens", "refused")


def test_equal_failures_are_told_ever_less(health: Health, caplog: pytest.LogCaptureFixture) -> None:
    """The 1st, 2nd, 4th, 8th; another cause, or a recording in between, is told at once."""
    for n in range(9):
        health.failed(REFUSED, now=float(n), run_s=0.0, recorded=False)
    assert [entry.__dict__["fields"].get("times") for entry in caplog.records] == [None, 2, 4, 8]
    health.failed(CLOSED, now=10.0, run_s=0.0, recorded=False)
    health.recording()
    health.failed(CLOSED, now=20.0, run_s=1.0, recorded=True)
    assert [entry.__dict__["fields"]["state"] for entry in caplog.records[4:]] == ["closed", "closed"]
