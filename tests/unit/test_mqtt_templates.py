"""Streams and keys from topic levels: every topic has a name, no two levels share one, and memory has a bound."""

from __future__ import annotations

import re

import pytest
from gateway_adapters.mqtt.routes import RoutedStreams
from gateway_native import mqtt

from gateway.config import Route
from gateway.errors import ConfigError, GatewayError
from tests.support.mqtt import Device, publish

OVERFLOW = 9


def target(topic, stream=b"{1}", key=None):
    return mqtt.Routes([(b"#", stream, key)], overflow=OVERFLOW).target(
        topic.encode() if isinstance(topic, str) else topic
    )


def unescape(name):
    """What `target` did to one level."""
    return b"" if name == b".-" else re.sub(rb"\.([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), name)


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("plant/a", b"plant"), ("A-z_09", b"A-z_09"), ("v1.2/a", b"v1.2E2"), ("..", b".2E.2E"), (".", b".2E"),
        ("/a", b".-"), (".-/a", b".2E-"), ("grün", b"gr.C3.BCn"), ("a b", b"a.20b"), ("x$", b"x.24"), ("_", b"_"),
        ("__mqtt_sessions", b".5F_mqtt_sessions"), ("__", b".5F_"), ("_.5F", b"_.2E5F"), (b"\x01%", b".01.25"),
    ],
)  # fmt: skip
def test_name_that_climbs_or_collides(topic, name):
    """Levels are escaped, so that they are names of Kafka's, can be read back, and are none of the gateway's own."""
    found, key = target(topic)
    assert found == name
    first = topic.encode() if isinstance(topic, str) else topic
    assert unescape(found) == first.split(b"/")[0]
    assert key == first
    assert re.fullmatch(rb"[A-Za-z0-9._-]{1,249}", found)
    assert not found.startswith(b"__")


@pytest.mark.parametrize(
    ("stream", "topic", "expected"),
    [
        (b"{2}", "a/b/c", b"b"), (b"{3}", "a/b/c", b"c"), (b"{4}", "a/b/c", b".-"), (b"{2}", "a//c", b".-"),
        (b"{2}", "a/", b".-"), (b"line-{2}.{1}", "a/b", b"line-b.a"), (b"{1}{1}", "a", b"aa"),
        (b"{9}", "1/2/3/4/5/6/7/8/9/10", b"9"), (b"_{1}", "_x", b".5F_x"), (b"x", "a", b"x"),
    ],
)  # fmt: skip
def test_wrong_level(stream, topic, expected):
    """{1} is the first level; one that is missing or empty has a name, too."""
    assert target(topic, stream)[0] == expected


@pytest.mark.parametrize(
    ("key", "topic", "expected"),
    [
        (b"{3}", "a/b/c", b"c"), (b"{4}", "a/b/c", b""), (b"{topic}", "a/b", b"a/b"), (b"{2}:{1}", "a/b", b"b:a"),
        (b"{topic}{topic}", "a/b", b"a/ba/b"), (b"{1}", "..", b".."), (b"fixed", "a", b"fixed"),
        (b"{2}", "a/\xfc", b"\xc3\xbc"),
        (b"{1}", "x", b"x"), (b"{0}{10}{x}", "a", b"{0}{10}{x}"),
    ],
)  # fmt: skip
def test_wrong_key(key, topic, expected):
    """Keys are bytes: levels stand as they are."""
    assert target(topic, 0, key) == (0, expected)


def test_long_names():
    """249 bytes are a name, one more overflows, wherever the limit is passed."""
    assert target("x" * 249)[0] == b"x" * 249
    assert target("x" * 250)[0] is None
    assert target("x" * 247 + ".")[0] is None
    assert target("x" * 246 + ".")[0] == b"x" * 246 + b".2E"
    assert target("__" + "x" * 245)[0] == b".5F_" + b"x" * 245
    assert target("__" + "x" * 246)[0] is None
    assert target("x" * 248 + "/", b"{1}{2}")[0] is None
    assert target("x" * 247 + "/", b"{1}{2}")[0] == b"x" * 247 + b".-"
    assert target("x" * 60_000)[0] is None
    assert target("a", b"y" * 249 + b"{1}")[0] is None


def test_templates_of_ours():
    """What only we can get wrong."""
    with pytest.raises(ValueError, match="overflows"):
        mqtt.Routes([(b"#", b"{1}")])
    with pytest.raises(ValueError, match="template is empty"):
        mqtt.Routes([(b"#", b"")], overflow=0)
    routes = mqtt.Routes([(b"a", 3), (b"b", b"{1}"), (b"c", 4, b"k", True)], overflow=5)
    assert (routes.streams, routes.partitions) == ((3, b"{1}", 4), (3, 4, 5))
    assert routes.target(b"none") is None


# -- through the parser ------------------------------------------------------------------------------------------------


class Streams:
    """Opens streams as they are asked for, up to a limit, and remembers what it was asked."""

    def __init__(self, recording, limit=5):
        self.recording = recording
        self.asked = []
        self.limit = limit

    def __call__(self, name):
        self.asked.append(name)
        return self.recording.partition(name.decode() if len(self.asked) <= self.limit else "overflow")


def templated(recording, routes, *, resolve=True, limit=5):
    table = mqtt.Routes(routes, overflow=recording.partition("overflow"))
    group = mqtt.Group(
        recording.ring("test"), table, packet_bytes_max=2**20, record_bytes_max=2**20, kept_bytes_max=2**20
    )
    streams = Streams(recording, limit)
    group.resolve = streams if resolve else None
    return group, streams


def test_stream_asked_for_twice(recording):
    """A stream is asked for at its first message, in whatever pieces it comes; order and everything else stay."""
    group, streams = templated(recording, [(b"plant/#", b"line-{2}", b"{3}"), (b"#", recording.partition("rest"))])
    for chunk in (None, 1):
        device = Device(group, version=4)
        sent = [("plant/1/a", b"1"), ("plant/2/b", b"2"), ("office", b"3"), ("plant/1/c", b"4"), ("plant", b"5")]
        device.send(b"".join(publish(topic, value) for topic, value in sent), chunk)
        assert device.fault is None
    assert streams.asked == [b"line-1", b"line-2", b"line-.-"]
    assert [row[2:4] for row in recording.records("line-1")] == [(b"a", b"1"), (b"c", b"4")] * 2
    assert [row[2:4] for row in recording.records("line-2")] == [(b"b", b"2")] * 2
    assert [row[2:4] for row in recording.records("line-.-")] == [(b"", b"5")] * 2
    assert [row[2:4] for row in recording.records("rest")] == [(b"office", b"3")] * 2
    assert group.counters["overflowed"] == 0


def test_too_many_streams(recording):
    """What has no stream of its own is recorded in overflow, counted, and asked for once."""
    group, streams = templated(recording, [(b"#", b"{1}")], limit=3)
    device = Device(group, version=4)
    for _ in range(2):
        device.send(b"".join(publish(f"topic-{index}/x", b"%d" % index) for index in range(6)))
    device.send(publish("y" * 250))
    assert streams.asked == [b"topic-%d" % index for index in range(6)]
    assert group.counters["overflowed"] == 7
    assert [row[3] for row in recording.records("overflow")] == [b"3", b"4", b"5"] * 2 + [b""]
    assert [row[3] for row in recording.records("topic-2")] == [b"2", b"2"]


def test_nobody_to_ask(recording):
    """Then everything a template names goes to overflow."""
    group, _ = templated(recording, [(b"#", b"{1}")], resolve=False)
    Device(group, version=4).send(publish("a") + publish("b"))
    assert len(recording.records("overflow")) == 2


def test_names_without_end(recording):
    """The names that are remembered are bounded; what comes after that goes to overflow without being asked for."""
    group, streams = templated(recording, [(b"#", b"{1}")], limit=2)
    device = Device(group, version=4)
    total = 20_000
    for start in range(0, total, 1_000):
        device.send(b"".join(publish(f"n{index}") for index in range(start, start + 1_000)))
        recording.flush()
    assert len(streams.asked) == 16_385
    assert group.counters["records"] == total
    assert group.counters["overflowed"] == total - 2


def test_key_larger_than_a_record(recording):
    """A key that its template makes too large ends the connection as a large payload does."""
    group, _ = templated(recording, [(b"#", recording.partition("t"), b"{topic}" * 50)])
    device = Device(group, version=4)
    device.send(publish("x" * 30_000))
    assert device.fault.reason == 0x95


def test_alias_and_template(recording):
    """A topic is the same whether it is sent or stands behind an alias."""
    group, _ = templated(recording, [(b"#", b"{1}", b"{2}")])
    device = Device(group, version=5, topic_alias_max=1)
    device.send(
        publish("a/b", b"1", version=5, props=[b"\x23\0\1"]) + publish("", b"2", version=5, props=[b"\x23\0\1"])
    )
    assert [row[2:4] for row in recording.records("a")] == [(b"b", b"1"), (b"b", b"2")]


# -- what is remembered ------------------------------------------------------------------------------------------------


def many_routes(recording):
    """So many that topics are remembered; the last takes what the others leave."""
    return [(b"area-%d/#" % index, recording.partition(f"s{index % 5}")) for index in range(50)]


def test_topic_remembered_wrongly(recording):
    """However many topics there are, of all lengths, each goes where a fresh look-up says, unrouted ones nowhere."""
    table = mqtt.Routes(many_routes(recording))
    group = mqtt.Group(
        recording.ring("test"), table, packet_bytes_max=2**20, record_bytes_max=2**20, kept_bytes_max=2**20
    )
    device = Device(group, version=4)
    lengths = (0, 1, 7, 8, 30, 33, 34, 35, 47, 48, 49, 200, 231, 232, 233, 240, 241, 1_000)
    topics = [b"area-%d/%s" % (index % 60, b"x" * length) for index in range(60) for length in lengths]
    for _ in range(6):
        device.send(b"".join(publish(topic, topic) for topic in topics))
        recording.flush()
        group.reopen()
        device.retry()
    expected = {f"s{index}": [] for index in range(5)}
    for topic in topics * 6:
        if (found := table.find(topic)) is not None:
            expected[f"s{found % 5}"].append(topic)
    for stream, wanted in expected.items():
        assert [row[2] for row in recording.records(stream)] == wanted
    assert group.counters["unrouted"] == 6 * 10 * len(lengths)
    assert group.counters["topics_looked_up"] < 4 * len(topics)


def test_changed_routes_are_forgotten(recording):
    """After a change of the routes nothing comes from memory, neither topics nor streams."""
    group, streams = templated(recording, [(b"#", b"{1}")])
    device = Device(group, version=4)
    device.send(publish("a/b", b"1") * 2)
    group.set_routes(mqtt.Routes([(b"#", b"{2}")], overflow=recording.partition("overflow")))
    assert group.counters["topics_bytes"] == 0
    device.send(publish("a/b", b"2") * 2)
    assert streams.asked == [b"a", b"b"]
    assert [row[3] for row in recording.records("b")] == [b"2", b"2"]


def test_topics_without_end(recording):
    """Memory for topics has a bound, and known ones are still found when unknown ones never stop."""
    group, _ = templated(recording, [(b"a/#", b"{1}"), (b"+/#", recording.partition("rest"))])
    device = Device(group, version=4)
    for start in range(0, 60_000, 2_000):
        device.send(b"".join(publish(f"u/{index}") + publish("a/known") for index in range(start, start + 2_000)))
        recording.flush()
    assert group.counters["topics_bytes"] <= 80 * 2**20
    assert group.counters["topics_looked_up"] < 61_000


def test_bad_topic_is_never_remembered(recording):
    """A topic that is none is found out each time, by any connection."""
    group, _ = templated(recording, [(b"#", b"{1}")])
    for topic in (b"a/\xff", b"a/+", b"a/\0") * 2:
        device = Device(group, version=4)
        device.send(publish(topic))
        assert device.fault.reason == 0x81
    assert group.counters["topics_looked_up"] == 0


# -- the configuration's routes ----------------------------------------------------------------------------------------


class Engine:
    """Opens three streams."""

    def __init__(self):
        self.streams = {}

    def partition(self, stream):
        if stream not in self.streams and len(self.streams) == 3:
            raise GatewayError("There are too many streams (max_streams).")
        return self.streams.setdefault(stream, len(self.streams))


def test_routes_of_the_configuration():
    """Templates open overflow at once and other streams when they come; beyond the engine's limit they overflow."""
    engine = Engine()
    routes = [
        Route(filter="plant/#", stream="line-{2}", key="{3}"),
        Route(filter="#", stream="rest", overload="drop-newest"),
    ]
    streams = RoutedStreams("devices", routes, engine)
    assert engine.streams == {"rest": 0, "overflow": 1}
    assert streams.find(b"plant/7/a") == (2, b"a")
    assert streams.find(b"plant/8/a") == (1, b"a")
    assert streams.find(b"office") == (0, b"office")
    assert streams.find(b"$SYS/x") is None
    assert streams.resolve(b"line-7") == 2
    assert [streams.name(index) for index in range(3)] == ["rest", "overflow", "line-7"]
    assert streams.statistics() == {"streams": 3, "streams_not_opened": 1}


def test_route_filter_that_mqtt_does_not_allow():
    """Should the configuration let one pass, the source says so."""
    with pytest.raises(ConfigError, match="not a topic filter"):
        RoutedStreams("devices", [Route.model_construct(filter="a#", stream="s", key="{topic}")], Engine())
