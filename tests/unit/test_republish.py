"""Publishing again: what a record becomes, when it is due, and the way back from headers to a message."""

from __future__ import annotations

import math

import pytest
from gateway_adapters.mqtt.headers import message_headers
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.replay import parse_speed
from gateway.errors import UsageError
from gateway.log.message_headers import MessageHeaders, parse_message_headers
from gateway.replay.records import Record
from gateway.replay.republish import Changes, Message, Pace, RepublishReport, republish, to_message

T0 = 1_700_000_000_000
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


class Collecting:
    """A target that keeps what it gets, and when; `slow_s` is what each message takes."""

    def __init__(self, clock: FakeTime, slow_s: float = 0.0) -> None:
        self.clock = clock
        self.slow_s = slow_s
        self.got: list[tuple[float, Message]] = []

    def publish(self, message: Message) -> None:
        self.got.append((round(self.clock.now_s - 100.0, 6), message))
        self.clock.now_s += self.slow_s

    def finish(self) -> tuple[int, int]:
        return 2, 1


def _record(offset: int, time_ms: int = 0, key: bytes | None = b"a/b", value: bytes | None = b"v") -> Record:
    return Record(offset, T0 + time_ms, key, value, ())


def _times(speed: float, times_ms: list[int], slow_s: float = 0.0) -> tuple[list[float], Pace]:
    clock = FakeTime()
    pace = Pace(speed, now=clock.now, sleep=clock.sleep)
    target = Collecting(clock, slow_s)
    republish((_record(n, time) for n, time in enumerate(times_ms)), target, pace, Changes(), RepublishReport())
    return [time for time, _ in target.got], pace


def test_the_pace_is_that_of_the_recording() -> None:
    """Against the first record: as it was, faster, slower; a time that goes back is due at once."""
    times = [0, 1000, 1500, 1400, 61_500]
    assert _times(1, times)[0] == [0, 1, 1.5, 1.5, 61.5]
    assert _times(10, times)[0] == [0, 0.1, 0.15, 0.15, 6.15]
    assert _times(0.5, times)[0] == [0, 2, 3, 3, 123]
    assert _times(math.inf, times)[0] == [0] * 5


def test_being_late_does_not_add_up() -> None:
    """After a broker that was slow for a while, the rest is on time; the latest is told."""
    times, pace = _times(1, [0, 100, 200, 10_000], slow_s=1.0)
    assert times == [0, 1, 2, 10]
    assert round(pace.latest_s, 6) == 1.8


@pytest.mark.parametrize(("text", "speed"), [("1", 1.0), ("x10", 10.0), ("0.5x", 0.5), ("max", math.inf)])
def test_speeds(text: str, speed: float) -> None:
    """A number, with an x if one likes, or max."""
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "0", "-1", "fast", "inf", "nan", "1e999"])
def test_what_is_no_speed(text: str) -> None:
    """Is said to be none."""
    with pytest.raises(UsageError, match="is no speed"):
        parse_speed(text)


def test_what_is_no_message_is_skipped_and_counted() -> None:
    """Gap records, keys that are no topics; what the target refused and lost is in the report."""
    clock = FakeTime()
    records = [
        _record(0), _record(1, key=None, value=None), _record(2, key=b"a/+"), _record(3, key=b""),
        _record(4, key=b"\xff"), _record(5, value=None), _record(6, key=b"x" * 65_536), _record(7, value=b""),
    ]  # fmt: skip
    target, report = Collecting(clock), RepublishReport()
    republish(records, target, Pace(1, now=clock.now, sleep=clock.sleep), Changes(), report)
    assert [dict(message.headers.user_properties)["original-offset"] for _, message in target.got] == ["0", "7"]
    assert (report.messages, report.skipped, report.refused, report.lost, report.bytes) == (2, 6, 2, 1, 1)


def test_a_message_tells_when_it_was_received() -> None:
    """In UTC, to the ms; a property of an earlier replay makes room; changes apply."""
    headers = (
        ("qos", b"2"), ("retain", b"1"), ("content-type", b"text/plain"), ("unit", b"%C2%B0C"),
        ("user.qos", b"high"), ("original-time", b"yesterday"), ("gateway.x", b"1"), ("client", b"c"),
    )  # fmt: skip
    record = Record(7, T0, b"a/b", b"v", headers)
    message = to_message(record, Changes())
    assert message is not None
    assert (message.topic, message.payload) == ("a/b", b"v")
    assert message.headers == MessageHeaders(
        qos=2,
        content_type="text/plain",
        user_properties=(
            ("unit", "°C"), ("qos", "high"),
            ("original-time", "2023-11-14T22:13:20.000+00:00"), ("original-offset", "7"),
        ),
    )  # fmt: skip
    changed = to_message(record, Changes("replay/", 0, retain=True))
    assert changed is not None
    assert (changed.topic, changed.headers.qos, changed.headers.retain) == ("replay/a/b", 0, True)


@given(
    qos=st.integers(0, 2),
    retain=st.booleans(),
    payload_format=st.integers(0, 1),
    message_expiry=st.none() | st.integers(0, 2**32 - 1),
    content_type=st.none() | TEXT,
    response_topic=st.none() | TEXT,
    correlation_data=st.none() | st.binary(max_size=20),
    user_properties=st.lists(
        st.tuples(TEXT | st.sampled_from(["qos", "user.x", "gateway.gap", "user.user.qos"]), TEXT), max_size=5
    ),
)
def test_headers_give_back_the_message(
    qos: int,
    retain: bool,
    payload_format: int,
    message_expiry: int | None,
    content_type: str | None,
    response_topic: str | None,
    correlation_data: bytes | None,
    user_properties: list[tuple[str, str]],
) -> None:
    """Whatever was published comes back from what was recorded, also properties that are named like our headers."""
    headers = message_headers(
        qos=qos, retain=retain, dup=True, will=True, payload_format=payload_format, message_expiry=message_expiry,
        content_type=content_type, response_topic=response_topic, correlation_data=correlation_data,
        user_properties=user_properties,
    )  # fmt: skip
    assert parse_message_headers(headers) == MessageHeaders(
        qos, retain, payload_format or None, message_expiry, content_type, response_topic, correlation_data,
        tuple(user_properties),
    )  # fmt: skip


@given(st.lists(st.tuples(st.text(max_size=12) | st.sampled_from(["qos", "correlation-data"]), st.binary(max_size=12))))
def test_foreign_headers_are_no_error(headers: list[tuple[str, bytes]]) -> None:
    """Records that other programs wrote: what cannot be understood is left out or taken as it is."""
    found = parse_message_headers(headers)
    assert 0 <= found.qos <= 2
