"""What a connection may do: topic aliases, allowed topics, rates; and routes that drop rather than wait."""

from __future__ import annotations

import pytest
from gateway_native import mqtt

from tests.support.mqtt import Device, make_listener, puback, publish, pubrec, session, text
from tests.support.recording import Recording

S = 1_000_000_000
T0 = 1_700_000_000 * S


def keys(recording, stream="telemetry"):
    return [row[2] for row in recording.records(stream)]


def aliased(topic, alias, payload=b"x", **options):
    return publish(topic, payload, version=5, props=[b"\x23" + alias.to_bytes(2, "big")], **options)


# -- topic aliases -----------------------------------------------------------------------------------------------------


def test_alias_leads_elsewhere(recording):
    """An alias stands for the topic it was last sent with, on its connection only."""
    listener = make_listener(recording)
    device = Device(listener, version=5, topic_alias_max=3)
    device.send(
        aliased("plant/one", 1) + aliased("plant/three", 3) + aliased("", 1) + aliased("", 3, qos=1, packet_id=1)
    )
    device.send(aliased("plant/uno", 1) + aliased("", 1) + aliased("plant/o", 1) + aliased("", 1))
    other = Device(listener, version=5, topic_alias_max=3)
    other.send(aliased("", 1))
    assert other.fault.reason == 0x82
    assert keys(recording) == [
        b"plant/one", b"plant/three", b"plant/one", b"plant/three", b"plant/uno", b"plant/uno", b"plant/o", b"plant/o",
    ]  # fmt: skip


@pytest.mark.parametrize(("topic", "alias", "reason"), [("plant/a", 0, 0x94), ("plant/a", 4, 0x94), ("", 2, 0x82)])
def test_wrong_alias_accepted(recording, topic, alias, reason):
    """0 and numbers above the maximum are no aliases; one that was never set stands for nothing."""
    device = Device(make_listener(recording), version=5, topic_alias_max=3)
    device.send(aliased("plant/one", 1) + aliased(topic, alias))
    assert device.fault.reason == reason


def test_alias_of_a_bad_topic(recording):
    """Only a topic that is one becomes an alias."""
    device = Device(make_listener(recording), version=5, topic_alias_max=3)
    device.send(aliased(b"plant/\xff", 1))
    assert device.fault.reason == 0x81


def test_alias_cut_off(recording):
    """The property needs two bytes."""
    device = Device(make_listener(recording), version=5, topic_alias_max=3)
    device.send(publish("plant/a", version=5, props=[b"\x23\x00"]))
    assert device.fault.reason == 0x81


def test_alias_of_an_unrouted_topic(recording):
    """It is an alias all the same."""
    listener = make_listener(recording)
    device = Device(listener, version=5, topic_alias_max=3)
    device.send(aliased("none/a", 1, qos=1, packet_id=1) + aliased("", 1))
    assert device.fault is None
    assert listener.counters["unrouted"] == 2
    assert listener.unrouted_topic == b"none/a"


def test_aliases_take_memory(recording):
    """The topics of one connection's aliases together are bounded; setting one again frees what it was."""
    listener = make_listener(recording)
    device = Device(listener, version=5, topic_alias_max=64)
    for _ in range(20):
        device.send(aliased("plant/" + "x" * 8_000, 1) + aliased("plant/" + "y" * 8_000, 2))
    assert device.fault is None
    device.send(aliased("plant/" + "z" * 8_000, 3))
    assert device.fault.reason == 0x97


def test_alias_maximum_of_ours(recording):
    """What only we can get wrong."""
    with pytest.raises(ValueError, match="topic_alias_max"):
        Device(make_listener(recording), version=5, topic_alias_max=65)


def test_alias_set_twice_by_a_full_ring(tmp_path):
    """A publish that waits for room is parsed again, and its alias means the same."""
    recording = Recording(tmp_path / "data", ring_bytes=2**14, start=False)
    listener = make_listener(recording)
    device = Device(listener, version=5, topic_alias_max=1)
    device.send(
        b"".join(aliased(f"plant/{index}", 1, b"z" * 2_000) + aliased("", 1, b"z" * 2_000) for index in range(5))
    )
    assert device.blocked
    recording.start()
    while device.blocked:
        recording.flush()
        listener.reopen()
        device.retry()
    assert keys(recording) == [b"plant/%d" % (index // 2) for index in range(10)]
    recording.close()


# -- allowed topics ----------------------------------------------------------------------------------------------------


def test_forbidden_topic(recording):
    """QoS 0 is dropped and counted; QoS 1 and 2 are answered in MQTT 5, and end an MQTT 3.1.1 connection."""
    listener = make_listener(recording)
    allow = mqtt.Routes([(b"plant/mine/#", 0), (b"plant/+/shared", 0)])
    new = Device(listener, version=5, allow=allow, session=session())
    old = Device(listener, version=4, allow=allow)
    new.send(publish("plant/mine/a", version=5) + publish("plant/x/shared", version=5) + publish("plant/x", version=5))
    new.send(publish("plant/x", qos=1, packet_id=1, version=5) + publish("plant/x", qos=2, packet_id=2, version=5))
    recording.flush()
    listener.release()
    assert new.received == puback(1, 0x87) + pubrec(2, 0x87)
    assert (len(new.session), listener.counters["forbidden"]) == (0, 3)
    old.send(publish("plant/x"))
    assert old.fault is None
    old.send(publish("plant/other", qos=1, packet_id=1))
    assert old.fault.reason == 0x87
    assert listener.forbidden_topic == b"plant/other"
    assert keys(recording) == [b"plant/mine/a", b"plant/x/shared"]
    assert listener.counters["unrouted"] == 0


def test_client_that_may_publish_nothing(recording):
    """No filter at all is not the same as no list of filters."""
    listener = make_listener(recording)
    nobody, everybody = Device(listener, version=4, allow=mqtt.Routes([])), Device(listener, version=4)
    nobody.send(publish("plant/a"))
    everybody.send(publish("plant/b"))
    assert keys(recording) == [b"plant/b"]


# -- who sent it -------------------------------------------------------------------------------------------------------


def test_client_header(recording):
    """On every record, if the listener wants it; no sender can forge it."""
    listener = make_listener(recording)
    device = Device(listener, version=5, session=session(), client_header=True)
    device.send(
        publish("plant/a", version=5) + publish("plant/a", version=5, props=[b"\x26" + text("client") + text("x")])
    )
    device.send(publish("plant/a", qos=2, packet_id=1, version=5))
    assert [row[4] for row in recording.records("telemetry")] == [
        (("client", b"c"),),
        (("client", b"c"), ("user.client", b"x")),
        (("qos", b"2"), ("client", b"c")),
    ]


# -- drop-newest -------------------------------------------------------------------------------------------------------


def dropping(recording, clock_ns=T0):
    """Topics under plant/ wait, those under noise/ are dropped when the ring is full."""
    table = mqtt.Routes(
        [
            (b"plant/#", recording.partition("telemetry")),
            (b"noise/#", recording.partition("noise"), None, True),
            (b"hiss/#", recording.partition("hiss"), b"{2}", True),
        ]
    )
    return mqtt.Group(
        recording.ring("test"), table, packet_bytes_max=2**20, record_bytes_max=2**20, kept_bytes_max=2**20,
        clock_ns=clock_ns,
    )  # fmt: skip


def test_dropped_message_is_not_counted(tmp_path):
    """Full, such a route drops: counts, bytes and times are kept for the gap record; the others wait."""
    recording = Recording(tmp_path / "data", ring_bytes=2**16, start=False)
    listener = dropping(recording)
    device = Device(listener, version=5, session=session())
    taken = 0
    while not listener.counters["dropped"]:
        device.send(publish("noise/a", b"z" * 900, version=5))
        taken += 1
    assert not device.blocked
    assert not listener.crowded
    listener.set_clock(T0 + S)
    device.send(publish("noise/a", b"z" * 900, version=5))
    device.send(publish("hiss/a", b"z" * 900, version=5, qos=1, packet_id=1))
    device.send(publish("noise/a", b"z" * 900, version=5, qos=2, packet_id=2))
    assert device.received == puback(1, 0x97) + pubrec(2, 0x97)
    assert len(device.session) == 0
    noise, hiss = recording.partition("noise"), recording.partition("hiss")
    plain, with_header = 7 + 900, 7 + 900 + 1 + 1 + 3 + 1 + 1
    assert listener.take_drops() == [
        (noise, 3, 2 * plain + with_header, T0, T0 + S),
        (hiss, 1, 1 + 900 + 7, T0 + S, T0 + S),
    ]
    assert listener.take_drops() == []
    old = Device(listener, version=4)
    old.send(publish("noise/a", b"z" * 900, qos=1, packet_id=1))
    assert old.fault.reason == 0x97
    assert [drop[:2] for drop in listener.take_drops()] == [(noise, 1)]
    recording.start()
    device.send(publish("plant/a", version=5))
    recording.flush()
    assert len(recording.records("noise")) == taken - 1
    assert listener.counters["dropped"] == 5
    recording.close()


def test_small_message_dropped_though_there_is_room(tmp_path):
    """Others wait with something large; what may be dropped is taken as long as it fits, and nobody is passed by."""
    recording = Recording(tmp_path / "data", ring_bytes=2**16, start=False)
    listener = dropping(recording)
    waiting = Device(listener, version=4)
    waiting.send(publish("plant/a", b"x" * 30_000) * 3)
    assert waiting.blocked
    assert listener.crowded
    noisy, polite = Device(listener, version=4), Device(listener, version=4)
    noisy.send(publish("noise/a", b"n"))
    polite.send(publish("plant/a", b"p"))
    assert not noisy.blocked
    assert polite.blocked
    assert listener.counters["dropped"] == 0
    recording.start()
    assert keys(recording, "noise") == [b"noise/a"]
    recording.close()


# -- rates -------------------------------------------------------------------------------------------------------------


def test_rate_exceeded(recording):
    """A second's worth passes at once, then the connection rests; nothing is lost, PINGREQ and others do not count."""
    listener = make_listener(recording, clock_ns=T0)
    device, other = Device(listener, version=4, rate_messages=10), Device(listener, version=4)
    device.send(b"".join(publish("plant/a", b"%d" % index) for index in range(25)))
    assert device.limited
    assert not device.blocked
    assert listener.counters["records"] == 10
    assert device.resume_ns == T0 + S // 10
    other.send(publish("plant/b") * 100)
    assert listener.counters["records"] == 110
    listener.set_clock(T0 + S // 2)
    device.retry()
    assert listener.counters["records"] == 115
    assert device.limited
    listener.set_clock(T0 + 10 * S)
    device.retry()
    assert not device.limited
    assert [row[3] for row in recording.records("telemetry") if row[2] == b"plant/a"] == [b"%d" % n for n in range(25)]
    assert listener.counters["kept_bytes"] == 0


def test_rate_of_all_connections_exceeded(recording):
    """The group's rate holds for all together, the connection's own besides."""
    listener = make_listener(recording, clock_ns=T0)
    listener.set_rate(20)
    first, second = Device(listener, version=4, rate_messages=15), Device(listener, version=4)
    first.send(publish("plant/a") * 16)
    second.send(publish("plant/b") * 16)
    assert (first.limited, second.limited) == (True, True)
    assert (keys(recording).count(b"plant/a"), keys(recording).count(b"plant/b")) == (15, 5)
    listener.set_rate(0)
    second.retry()
    assert not second.limited


def test_publish_that_waits_for_room_counts_twice(tmp_path):
    """What was not taken is charged when it is."""
    recording = Recording(tmp_path / "data", ring_bytes=2**14, start=False)
    listener = make_listener(recording, clock_ns=T0)
    device = Device(listener, version=4, rate_messages=10)
    sent = 0
    while not device.blocked:
        device.send(publish("plant/a", b"z" * 2_000))
        sent += 1
    recording.start()
    recording.flush()
    listener.reopen()
    device.retry()
    assert not device.blocked
    device.send(publish("plant/a") * (11 - sent))
    assert device.limited
    assert listener.counters["records"] == 10
    recording.close()


def test_resting_connection_is_overdue(recording):
    """It is we who do not read from it."""
    listener = make_listener(recording, clock_ns=T0)
    device = Device(listener, version=4, rate_messages=1)
    device.patience = 1
    device.send(publish("plant/a") * 3)
    for _ in range(5):
        listener.advance()
    assert not device.overdue


def test_limited_connection_is_read_in_small_pieces(recording):
    """What it may not yet send is kept, so it is offered little room."""
    listener = make_listener(recording, clock_ns=T0)
    device = Device(listener, version=4, rate_messages=1_000)
    assert len(memoryview(device.get_buffer(65_536))) <= 4_096
    device.send(publish("plant/a", b"x" * 200_000))
    assert keys(recording) == [b"plant/a"]
