"""QoS 2 from a broker: each message is one record, PUBREC waits for it, PUBCOMP for its release, whatever repeats."""

from __future__ import annotations

import pytest
from gateway_native import mqtt

from tests.support.mqtt import Broker, packet, puback, pubcomp, publish, pubrec, pubrel, session
from tests.support.native import wait_until
from tests.support.recording import Recording

MAX = 4_096


def group_of(recording: Recording, *, stream: str = "telemetry", overload: bool = False, **more: int) -> mqtt.Group:
    routes = mqtt.Routes([(b"plant/#", recording.partition(stream), None, overload)])
    limits = {"packet_bytes_max": MAX, "record_bytes_max": MAX, "kept_bytes_max": 2**20, **more}
    group = mqtt.Group(recording.ring("test"), routes, client=True, **limits)
    group.sessions_partition = recording.partition("releases")
    return group


def broker_of(group, **options):
    options.setdefault("session", session(durable=True))
    return Broker(group, **{"version": 5, **options})


def twice(packet_id, payload=b"x", version=5, topic="plant/a", **options):
    return publish(topic, payload, qos=2, packet_id=packet_id, version=version, **options)


def values(recording, stream="telemetry"):
    return [row[3] for row in recording.records(stream)]


def answers(recording, broker):
    """What the broker got since the last call, once everything is on disk."""
    recording.flush()
    assert broker.group.release() == []
    received, broker.received = broker.received, b""
    return received


@pytest.mark.parametrize("version", [4, 5])
def test_repeated_publish(stopped_recording, version):
    """Nothing is answered before it is on disk; then all is, in order, and there is one record and one release."""
    broker = broker_of(group_of(stopped_recording), version=version)
    broker.send(twice(7, b"1", version) + twice(7, b"1", version, dup=True) + pubrel(7) + twice(7, b"2", version))
    broker.group.release()
    assert broker.received == b""
    stopped_recording.start()
    assert answers(stopped_recording, broker) == pubrec(7) * 2 + pubcomp(7) + pubrec(7)
    assert values(stopped_recording) == [b"1", b"2"]
    assert values(stopped_recording, "releases") == [b"release 7 1"]
    assert broker.group.counters["duplicates"] == 1


def test_whose_it_is(recording):
    """The record tells client, identifier and delivery, in the batch of the message itself."""
    broker = broker_of(group_of(recording))
    broker.send(twice(9, retain=True))
    assert [row[4] for row in recording.records("telemetry")] == [
        (("qos", b"2"), ("retain", b"1"), ("client", b"c"), ("packet-id", b"9"), ("delivery", b"1"))
    ]


@pytest.mark.parametrize(("version", "reason"), [(4, 0), (5, 0x92)])
def test_release_of_nothing(recording, version, reason):
    """An identifier that is not known is released all the same, on disk too: its release may have been on its way."""
    broker = broker_of(group_of(recording), version=version)
    broker.send(pubrel(5))
    assert answers(recording, broker) == pubcomp(5, reason)
    assert values(recording, "releases") == [b"release 5 0"]


@pytest.mark.parametrize(
    ("version", "sent", "reason"),
    [
        (4, packet(0x62, b"\0"), 0x81), (5, packet(0x62, b"\0"), 0x81), (4, pubrel(0), 0x82), (5, pubrel(0), 0x82),
        (4, pubrel(1, b"\0"), 0x81), (5, pubrel(1, b"\x80"), 0x81), (5, pubrel(1, b"\0\5"), 0x81),
        (4, packet(0x60, b"\0\1"), 0x81), (5, packet(0x60, b"\0\1"), 0x81),
    ],
)  # fmt: skip
def test_malformed_release(recording, version, sent, reason):
    """It ends the connection, and the identifier stays for the next one."""
    kept = session(durable=True)
    broker = broker_of(group_of(recording), version=version, session=kept)
    broker.send(twice(1, version=version) + sent)
    assert broker.fault.reason == reason
    assert len(kept) == 1
    again = broker_of(broker.group, version=version, session=kept)
    again.send(twice(1, version=version, dup=True) + pubrel(1))
    assert answers(recording, again) == pubrec(1) + pubcomp(1)
    assert values(recording) == [b"x"]


def test_receive_maximum(recording):
    """QoS 1 and 2 share it, and a message counts until PUBCOMP; the first beyond it is the broker's fault."""
    broker = broker_of(group_of(recording), inflight_max=3)
    broker.send(twice(1) + twice(2))
    answers(recording, broker)
    broker.send(publish("plant/a", qos=1, packet_id=3, version=5))
    assert answers(recording, broker) == puback(3)
    broker.send(pubrel(1))
    answers(recording, broker)
    broker.send(twice(4) + twice(5) + twice(4, dup=True))
    assert broker.fault is None
    broker.send(twice(6))
    assert broker.fault.reason == 0x93


def test_reconnect(stopped_recording):
    """What was received on a connection that broke is not recorded again on the next, on disk or not yet."""
    kept = session(durable=True)
    group = group_of(stopped_recording)
    broker = broker_of(group, session=kept)
    broker.send(twice(1, b"1"))
    assert broker.close() == 1
    stopped_recording.start()
    stopped_recording.flush()
    again = broker_of(group, session=kept)
    again.send(twice(1, b"1", dup=True))
    assert again.received == pubrec(1)  # at once: no commit follows that would tell
    again.send(pubrel(1))
    assert answers(stopped_recording, again) == pubrec(1) + pubcomp(1)
    assert values(stopped_recording) == [b"1"]


# -- what is not recorded ----------------------------------------------------------------------------------------------


def test_no_route(recording):
    """It is counted once, and its exchange is brought to its end: a broker must not stop at it."""
    broker = broker_of(group_of(recording))
    broker.send(twice(1, topic="office/a") + twice(1, topic="office/a", dup=True) + pubrel(1))
    assert answers(recording, broker) == pubrec(1) * 2 + pubcomp(1)
    assert broker.group.counters["unrouted"] == 1
    assert broker.group.delivery_next == 2


@pytest.mark.parametrize(("size", "limit"), [(70_000, MAX), (200, 150)])
def test_larger_than_allowed(recording, size, limit):
    """A packet, or only a record, that is too large: answered in its turn, told once, released like any other."""
    broker = broker_of(group_of(recording, record_bytes_max=limit))
    large = twice(5, b"x" * size)
    broker.send(twice(4, b"y") + large + twice(5, b"x" * size, dup=True) + pubrel(5))
    assert broker.new == ([True, False] if size > MAX else [True])
    assert answers(recording, broker) == pubrec(4) + pubrec(5) * 2 + pubcomp(5)
    assert values(recording) == [b"y"]
    broker.send(twice(5, b"small"))
    assert answers(recording, broker) == pubrec(5)
    assert values(recording) == [b"y", b"small"]


def test_too_many_answers_to_what_is_too_large(stopped_recording):
    """They are bounded like the others: what never leaves must not fill the memory."""
    broker = broker_of(group_of(stopped_recording, packet_bytes_max=64))
    broker.send(twice(1) + publish("plant/a", b"x" * 80, qos=1, packet_id=2, version=5) * 65_534)
    assert broker.fault is None
    broker.send(publish("plant/a", b"x" * 80, qos=1, packet_id=2, version=5))
    assert broker.fault.reason == 0x93


def test_answer_without_a_session(recording):
    """Our own mistake, not the broker's."""
    broker = Broker(group_of(recording), version=5)
    with pytest.raises(ValueError, match="needs a session"):
        broker.acknowledge(1, 2)


def test_dropped(tmp_path):
    """A route that drops the newest answers what it dropped, and takes it for received."""
    recording = Recording(tmp_path / "data", ring_bytes=2**16, start=False)
    broker = broker_of(group_of(recording, overload=True))
    while not broker.group.counters["dropped"]:
        broker.send(publish("plant/filler", b"z" * 900, version=5))
        assert broker.fault is None
    broker.send(twice(1, b"y" * 900))
    dropped = broker.group.counters["dropped"]
    broker.send(twice(1, b"y" * 900, dup=True))
    assert broker.group.counters["dropped"] == dropped == 2
    recording.start()
    assert answers(recording, broker) == pubrec(1) * 2
    assert b"y" * 900 not in values(recording)
    recording.close()


def test_full_disk(recording):
    """What the full disk refused was not received: the connection is given up, and the broker sends it again."""
    recording.full_partition("full")
    kept = session(durable=True)
    broker = broker_of(group_of(recording, stream="full"), session=kept)
    broker.send(twice(1, b"refused"))
    wait_until(lambda: broker.group.ring.refusals_pending, "a refusal")
    assert broker.group.release() == [broker]
    assert (broker.received, len(kept)) == (b"", 0)
    broker.close()
    recording.make_room("full")
    again = broker_of(broker.group, session=kept)
    again.send(twice(1, b"again", dup=True))
    assert answers(recording, again) == pubrec(1)
    assert values(recording, "full") == [b"first", b"again"]


# -- earlier connections -----------------------------------------------------------------------------------------------


def test_something_new_under_an_identifier_of_before(recording):
    """On the connection on which it came an identifier stands for one message; on a later one the mark decides."""
    kept = session(durable=True)
    group = group_of(recording)
    broker = broker_of(group, session=kept)
    broker.send(twice(1, b"1") + twice(2, b"2") + twice(2, b"2"))
    broker.close()
    again = broker_of(group, session=kept)
    again.send(twice(1, b"1", dup=True) + twice(2, b"new") + twice(2, b"new") + pubrel(1) + pubrel(2))
    assert answers(recording, again) == pubrec(1) + pubrec(2) * 2 + pubcomp(1) + pubcomp(2)
    assert values(recording) == [b"1", b"2", b"new"]
    assert len(kept) == 0


def test_something_new_after_a_restart(recording):
    """What was restored came on an earlier connection."""
    kept = session(durable=True)
    kept.add(1, 5)
    kept.add(2, 6)
    group = group_of(recording)
    group.delivery_next = 7
    broker = broker_of(group, session=kept)
    broker.send(twice(1, b"new") + twice(2, b"known", dup=True))
    assert answers(recording, broker) == pubrec(1) + pubrec(2)
    assert values(recording) == [b"new"]
    assert sorted(kept.unreleased) == [(1, 7), (2, 6)]


def test_something_new_under_the_last_of_many(recording):
    """A table that was given back with its last entry is there again for the publish that took it out."""
    kept = session(durable=True)
    for packet_id in range(1, 500):
        kept.add(packet_id, packet_id)
    group = group_of(recording)
    group.delivery_next = 500
    broker = broker_of(group, session=kept)
    broker.send(b"".join(pubrel(packet_id) for packet_id in range(2, 500)) + twice(1, b"new"))
    assert answers(recording, broker).endswith(pubrec(1))
    assert values(recording) == [b"new"]
    assert kept.unreleased == [(1, 500)]


@pytest.mark.parametrize(("dup", "new"), [(False, True), (True, False)])
def test_something_too_large_under_an_identifier_of_before(recording, dup, new):
    """It is told as lost unless it is marked: then it was when it came first."""
    kept = session(durable=True)
    kept.add(1, 1)
    broker = broker_of(group_of(recording), session=kept)
    broker.send(twice(1, b"x" * MAX, dup=dup))
    assert broker.new == [new]
    assert answers(recording, broker) == pubrec(1)
