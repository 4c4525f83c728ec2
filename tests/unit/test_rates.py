"""How fast streams grow, and when that fills the disk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.commands.rates import Growth, bytes_per_day, days_until_full, growth
from gateway.config.model import Retention

T0 = datetime(2026, 11, 23, tzinfo=UTC)
DAY_NS = 86_400 * 10**9


@pytest.mark.parametrize(
    ("span", "expected"), [(timedelta(days=2), 50.0), (timedelta(hours=6), 400.0), (timedelta(seconds=59), None)]
)
def test_a_rate_is_the_average_over_what_is_there(span: timedelta, expected: float | None) -> None:
    """Bytes a day; none over less than a minute, or of an empty stream."""
    assert bytes_per_day({"bytes": 100, "oldest": T0, "newest": T0 + span}) == expected
    assert bytes_per_day({"bytes": 0, "oldest": None, "newest": None}) is None


def test_a_stream_stops_growing_at_its_own_limits() -> None:
    """The lesser of its size and what its rate makes of its age."""
    described = {"bytes": 100, "oldest": T0, "newest": T0 + timedelta(days=2)}
    assert growth(described, Retention()) == Growth(100, 50.0, None)
    assert growth(described, Retention(age_ns=30 * DAY_NS)).bytes_max == 1500
    assert growth(described, Retention(age_ns=30 * DAY_NS, size_bytes=200)).bytes_max == 200


@pytest.mark.parametrize(
    ("streams", "room", "expected"),
    [
        ([], 100, None),
        ([Growth(5, None, None)], 100, None),
        ([Growth(5, 10.0, None)], 100, 10.0),
        ([Growth(5, 10.0, None), Growth(5, 40.0, None)], 100, 2.0),
        ([Growth(0, 10.0, 50.0)], 100, None),
        ([Growth(0, 10.0, 50.0), Growth(0, 10.0, None)], 100, 5.0),
        ([Growth(0, 10.0, 20.0), Growth(0, 10.0, None)], 100, 8.0),
        ([Growth(90, 10.0, 20.0), Growth(0, 10.0, None)], 100, 10.0),
        ([Growth(0, 10.0, None)], -5, 0.0),
    ],
)
def test_days_until_full_follow_from_rates_and_limits(
    streams: list[Growth], room: float, expected: float | None
) -> None:
    """Streams drop out one after the other; never is an answer, and so is now."""
    assert days_until_full(streams, room) == expected
