"""Waits between connection attempts."""

from __future__ import annotations

import random

from gateway.backoff import Backoff
from gateway.clock import NS_PER_S


def test_waits_double_up_to_the_bound_and_start_over_after_a_good_run() -> None:
    """1, 2, 4 … 60 s, each shortened by up to half; a connection that held makes the next wait short again."""
    backoff = Backoff(NS_PER_S, 60 * NS_PER_S, random.Random(1))
    for bound in (1, 2, 4, 8, 16, 32, 60, 60):
        assert bound / 2 <= backoff.after(0) <= bound
    assert backoff.after(59) > 30, "a run shorter than the last wait proves nothing"
    assert backoff.after(61) <= 1


def test_a_camera_that_drops_every_few_seconds_is_not_hammered() -> None:
    """Short runs do not count as good ones."""
    backoff = Backoff(NS_PER_S, 60 * NS_PER_S, random.Random(1))
    assert [backoff.after(5) for _ in range(6)][-1] > 15
