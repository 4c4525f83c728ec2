"""Times, durations and sizes as people write them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from gateway.clock import format_duration, format_size, format_time, parse_duration, parse_size, parse_time

BERLIN = ZoneInfo("Europe/Berlin")
NOON_NS = 1_795_431_600_000_000_000  # 2026-11-23 12:00:00 in Berlin, +01:00


def now_ns() -> int:
    return NOON_NS


def parsed(value: object) -> int:
    return parse_time(value, BERLIN, now_ns)


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-23 12:00",
        "2026-11-23T12:00:00",
        "2026-11-23T11:00:00Z",
        "2026-11-23T11:00:00z",
        "20261123T120000",
        "  2026-11-23 12:00:00.000 ",
        "2026-11-23T13:00+02:00",
        "now",
        datetime(2026, 11, 23, 12),
        datetime(2026, 11, 23, 11, tzinfo=UTC),
        datetime(2026, 11, 23, 13, tzinfo=timezone(timedelta(hours=2))),
        np.datetime64("2026-11-23T12:00"),
        np.datetime64("2026-11-23T12:00:00.000000000"),
    ],
)
def test_one_instant_has_many_spellings(value: object) -> None:
    """Text, datetime and NumPy name the same instant; without a zone the site's zone decides."""
    assert parsed(value) == NOON_NS


@pytest.mark.parametrize(
    ("text", "distance_ns"),
    [("-10m", -600_000_000_000), ("now-10m", -600_000_000_000), ("+1h30m", 5_400_000_000_000), ("-0.5s", -500_000_000)],
)
def test_relative_times_count_from_now(text: str, distance_ns: int) -> None:
    """A duration with a sign is before or after now."""
    assert parsed(text) == NOON_NS + distance_ns


def test_nanoseconds_survive() -> None:
    """Nine digits of a second are kept, from text and from NumPy, where datetime keeps six."""
    assert parsed("2026-11-23 12:00:00.123456789") == NOON_NS + 123_456_789
    assert parsed("2026-11-23T12:00:00,000000001+01:00") == NOON_NS + 1
    assert parsed(np.datetime64("2026-11-23T12:00:00.123456789")) == NOON_NS + 123_456_789


def test_pandas_stamps_keep_their_nanoseconds() -> None:
    """A pandas Timestamp is recognised by its shape, without pandas being imported by us."""

    class Timestamp(datetime):
        nanosecond = 789

        def to_pydatetime(self, warn: bool = True) -> datetime:
            assert warn is False
            return datetime(2026, 11, 23, 12, 0, 0, 123456)

    assert parsed(Timestamp(2026, 11, 23, 12)) == NOON_NS + 123_456_789


def test_a_date_is_its_midnight() -> None:
    """A date, as text or object, begins at the site's midnight."""
    assert parsed("2026-11-23") == parsed(date(2026, 11, 23)) == NOON_NS - 12 * 3_600_000_000_000


@pytest.mark.parametrize("value", [0, 1_795_431_600, 1.5, True, np.int64(5), np.float32(1)])
def test_a_bare_number_is_refused(value: object) -> None:
    """Nobody can tell the unit of a number, so it is refused with a sentence that asks for it."""
    with pytest.raises(TypeError, match="unit"):
        parsed(value)


@pytest.mark.parametrize(
    "value", ["", "yesterday", "12:00", "-10", "-10 parsecs", "2026-13-01", "9999-01-01", np.datetime64("NaT")]
)
def test_what_names_no_instant_is_refused(value: object) -> None:
    """Text that is no time raises ValueError with a sentence."""
    with pytest.raises(ValueError, match=r"\.$"):
        parsed(value)


def test_times_of_other_types_are_refused() -> None:
    """None and containers are a TypeError that says what would be right."""
    for value in (None, [], timedelta(1), b"2026-11-23"):
        with pytest.raises(TypeError, match="not a time"):
            parsed(value)


def test_a_local_time_the_clocks_jumped_over_is_refused() -> None:
    """02:30 on the night the clocks go forward names no instant in Berlin."""
    with pytest.raises(ValueError, match="does not exist in Europe/Berlin"):
        parsed("2026-03-29 02:30")


def test_of_two_equal_local_times_the_earlier_is_meant() -> None:
    """02:30 on the night the clocks go back is the summer one, unless fold says otherwise."""
    first, second = parsed("2026-10-25T02:30+02:00"), parsed("2026-10-25T02:30+01:00")
    assert parsed("2026-10-25 02:30") == first
    assert parsed(datetime(2026, 10, 25, 2, 30, fold=1)) == second


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("5ms", 5_000_000),
        ("30d", 2_592_000_000_000_000),
        ("1h30m", 5_400_000_000_000),
        ("1.5 s", 1_500_000_000),
        ("2w", 1_209_600_000_000_000),
        ("20us", 20_000),
        ("20µs", 20_000),
        ("0", 0),
        ("0.1s", 100_000_000),
    ],
)
def test_durations(text: str, expected_ns: int) -> None:
    """Durations are exact nanoseconds."""
    assert parse_duration(text) == expected_ns


@pytest.mark.parametrize("value", ["5", "5 min utes", "ms", "", "-5s", "5ms!", "1e3s", 5, 5.0, True, None, "999999w"])
def test_bad_durations_are_refused(value: object) -> None:
    """A duration without unit, with an unknown one, or of another type is a ValueError with a sentence."""
    with pytest.raises(ValueError, match=r"\.$"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2GiB", 2**31), ("500MB", 500_000_000), ("64 kib", 65_536), ("100B", 100), ("1.5KiB", 1536), ("0", 0)],
)
def test_sizes(text: str, expected: int) -> None:
    """KiB are 1024 bytes, kB are 1000."""
    assert parse_size(text) == expected


def test_an_ambiguous_size_is_refused_with_a_suggestion() -> None:
    """ "2G" may mean two things; the sentence offers the likely one."""
    with pytest.raises(ValueError, match="did you mean"):
        parse_size("2G")


@pytest.mark.parametrize("value", ["5", "GiB", "5 parsecs", "-1B", 1024, None, True])
def test_bad_sizes_are_refused(value: object) -> None:
    """A size without unit, with an unknown one, or of another type is a ValueError."""
    with pytest.raises(ValueError, match=r"size|unit"):
        parse_size(value)


def test_shown_times_carry_a_zone_and_parse_back() -> None:
    """What is shown has the zone's offset and is cut, not rounded, to the digits asked for."""
    assert format_time(NOON_NS + 250_999_999, BERLIN) == "2026-11-23T12:00:00.250+01:00"
    assert format_time(NOON_NS, UTC, digits=0) == "2026-11-23T11:00:00+00:00"
    assert parsed(format_time(NOON_NS + 1, UTC, digits=9)) == NOON_NS + 1
    assert format_time(-1, UTC, digits=9) == "1969-12-31T23:59:59.999999999+00:00"


def test_shown_durations_and_sizes_are_short() -> None:
    """Two or three digits and a unit."""
    written = ("20us", "5ms", "850ms", "9.5s", "90s", "45m", "3h", "30d")
    assert [format_duration(parse_duration(text)) for text in written] == [
        "20 µs", "5.0 ms", "850 ms", "9.5 s", "90 s", "45 min 00 s", "3 h", "30 d",
    ]  # fmt: skip
    assert [format_size(n) for n in (0, 1023, 1536, 2**26, 2**41)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "64.0 MiB",
        "2.00 TiB",
    ]
