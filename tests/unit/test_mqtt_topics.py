"""Topic names, topic filters and routes."""

from __future__ import annotations

import pytest
from gateway_native import mqtt

MATCHES = [
    # The examples of MQTT 5, section 4.7.1.
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("#", "a/b/c", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    # Section 4.7.2: no leading wildcard matches a topic that begins with $.
    ("#", "$SYS/uptime", False),
    ("+/uptime", "$SYS/uptime", False),
    ("$SYS/#", "$SYS/uptime", True),
    ("$SYS/+", "$SYS/uptime", True),
    # Ends and beginnings.
    ("plant/#", "plants/1", False),
    ("plant/#", "plan", False),
    ("plant/#", "plant/", True),
    ("plant", "plant", True),
    ("plant", "plant/", False),
    ("plant/", "plant/", True),
    ("plant/", "plant", False),
    ("/", "/", True),
    ("a//b", "a//b", True),
    ("a/+/b", "a//b", True),
    ("a/+/b/#", "a/x/b", True),
    ("a/+/b/#", "a/x/c", False),
    ("+/b/#", "a/b/c/d", True),
    ("+", "a", True),
    ("+/#", "a", True),
    ("Plant/#", "plant/1", False),
    ("grün/+", "grün/ü", True),
]


@pytest.mark.parametrize(("topic_filter", "topic", "expected"), MATCHES)
def test_wrong_match_of_filter_and_topic(topic_filter, topic, expected):
    """Filters match exactly the topics that the standard says, alone and as a route."""
    assert mqtt.filter_match(topic_filter.encode(), topic.encode()) is expected
    assert (mqtt.Routes([(topic_filter.encode(), 0)]).find(topic.encode()) == 0) is expected


def test_later_route_wins():
    """The first route that matches decides, however well a later one fits."""
    routes = mqtt.Routes([(b"plant/+/hot", 3), (b"plant/#", 1), (b"plant/a", 2)])
    assert routes.find(b"plant/x/hot") == 0
    assert routes.find(b"plant/a") == 1
    assert routes.find(b"office/a") is None
    assert routes.filters == (b"plant/+/hot", b"plant/#", b"plant/a")
    assert routes.partitions == (3, 1, 2)
    assert len(routes) == 3


def test_route_to_a_partition_that_does_not_exist(recording):
    """A table that would write beyond the ring's tables is refused."""
    ring = recording.ring("test")
    with pytest.raises(IndexError, match="partition 99"):
        mqtt.Group(ring, mqtt.Routes([(b"#", 99)]), packet_bytes_max=1000, record_bytes_max=1000, kept_bytes_max=1000)


@pytest.mark.parametrize("text", [b"", b"a", b"plain ascii of some length", "grüße €uro 🌡".encode(), b"\xef\xbf\xbf"])
def test_good_text_refused(text):
    """Well-formed UTF-8 is text, at every length around the eight bytes checked at once."""
    for padding in range(17):
        assert mqtt.is_text(b"x" * padding + text)


@pytest.mark.parametrize(
    "text",
    [
        b"\0", b"\x80", b"\xc0\xaf", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x8c", b"\xc3(",
        b"\xe2(\xa1", b"\xf0\x28\x8c\xbc",
    ],
)  # fmt: skip
def test_bad_text_accepted(text):
    """NUL, overlong forms, surrogates, cut sequences and bytes that never occur are found, wherever they stand."""
    for padding in range(17):
        assert not mqtt.is_text(b"x" * padding + text)
        assert not mqtt.is_text(b"x" * padding + text + b"y" * padding)


@pytest.mark.parametrize("wildcard", [b"+", b"#"])
def test_wildcard_in_a_topic_accepted(wildcard):
    """A topic name has no wildcards, at any place; ordinary text may."""
    for before in range(12):
        for after in range(12):
            topic = b"t" * before + wildcard + b"t" * after
            assert not mqtt.is_topic(topic)
            assert mqtt.is_text(topic)


def test_topic_length():
    """A topic has 1 to 65535 bytes."""
    assert not mqtt.is_topic(b"")
    assert mqtt.is_topic(b"/")
    assert mqtt.is_topic(b"t" * 65_535)
    assert not mqtt.is_topic(b"t" * 65_536)
