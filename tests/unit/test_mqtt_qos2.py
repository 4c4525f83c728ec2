"""QoS 2: a publish is recorded once, answered when it is on disk, and its release outlives what has to outlive it."""

from __future__ import annotations

import pytest
from gateway_native import mqtt

from tests.support.mqtt import Device, make_listener, packet, puback, pubcomp, publish, pubrec, pubrel, session, text
from tests.support.native import wait_until
from tests.support.recording import Recording


def twice(packet_id, payload=b"x", version=5, **options):
    return publish("plant/a", payload, qos=2, packet_id=packet_id, version=version, **options)


def values(recording, stream="telemetry"):
    return [row[3] for row in recording.records(stream)]


def device_of(listener, **options):
    options.setdefault("session", session())
    return Device(listener, **{"version": 5, **options})


def answers(recording, listener, device):
    """What came back since the last call, once everything is on disk."""
    recording.flush()
    listener.release()
    received, device.received = device.received, b""
    return received


@pytest.mark.parametrize("version", [4, 5])
def test_duplicate_recorded(recording, version):
    """Until it is released an identifier stands for one message, marked as a duplicate or not; then for another."""
    listener = make_listener(recording)
    device = device_of(listener, version=version)
    device.send(twice(7, b"1", version) + twice(7, b"1", version, dup=True) + twice(7, b"other", version))
    assert answers(recording, listener, device) == pubrec(7) * 3
    device.send(pubrel(7))
    assert answers(recording, listener, device) == pubcomp(7)
    device.send(twice(7, b"2", version))
    assert answers(recording, listener, device) == pubrec(7)
    assert values(recording) == [b"1", b"2"]
    assert listener.counters["duplicates"] == 2
    assert listener.counters["records"] == 2
    assert listener.counters["unacknowledged"] == 0


def test_pubrec_before_durable(stopped_recording):
    """Neither the first PUBREC nor that of a duplicate leaves before the one record is on disk; nor does PUBCOMP."""
    listener = make_listener(stopped_recording)
    device = device_of(listener)
    device.send(twice(1) + twice(1, dup=True) + pubrel(1))
    listener.release()
    assert device.received == b""
    stopped_recording.start()
    assert answers(stopped_recording, listener, device) == pubrec(1) * 2 + pubcomp(1)


def test_answers_out_of_order(recording):
    """PUBACK, PUBREC and PUBCOMP leave in the order of what they answer."""
    listener = make_listener(recording)
    device = device_of(listener)
    device.send(twice(1))
    device.send(publish("plant/a", b"y", qos=1, packet_id=2, version=5) + pubrel(1) + twice(3) + pubrel(3) + pubrel(9))
    assert answers(recording, listener, device) == (
        pubrec(1) + puback(2) + pubcomp(1) + pubrec(3) + pubcomp(3) + pubcomp(9, 0x92)
    )


def test_unknown_release(recording):
    """MQTT 5 hears that the identifier is not known, MQTT 3.1.1 that it is done; both at once, nothing is recorded."""
    listener = make_listener(recording)
    new, old = device_of(listener), device_of(listener, version=4)
    new.send(pubrel(5))
    old.send(pubrel(5))
    assert new.received == pubcomp(5, 0x92)
    assert old.received == pubcomp(5)
    assert listener.counters["records"] == 0


@pytest.mark.parametrize(
    ("version", "sent", "reason"),
    [
        (4, packet(0x62, b"\0"), 0x81),
        (4, pubrel(0), 0x82),
        (4, pubrel(1, b"\0"), 0x81),
        (4, packet(0x60, b"\0\1"), 0x81),
        (5, packet(0x62, b"\0"), 0x81),
        (5, pubrel(0), 0x82),
        (5, pubrel(1, b"\x80"), 0x81),
        (5, pubrel(1, b"\0\5"), 0x81),
        (5, pubrel(1, b"\0\0x"), 0x81),
        (5, pubrel(1, b"\0\x80\0"), 0x81),
        (5, pubrel(1, b"\0\2\x01\0"), 0x81),
        (5, pubrel(1, b"\0\3\x1f\0\1"), 0x81),
        (5, pubrel(1, b"\0\4\x1f\0\1\xff"), 0x81),
        (5, pubrel(1, b"\0\6" + b"\x1f\0\0" * 2), 0x82),
    ],
)
def test_malformed_release_accepted(recording, version, sent, reason):
    """Each fault of a PUBREL has its reason code, and the identifier stays."""
    listener = make_listener(recording)
    kept = session()
    device = device_of(listener, version=version, session=kept)
    device.send(twice(1, version=version) + sent)
    assert device.fault is not None
    assert device.fault.reason == reason
    assert len(kept) == 1


@pytest.mark.parametrize("rest", [b"\0", b"\x92", b"\0\0", b"\0\4\x1f\0\1a", b"\0\x0c" + b"\x26\0\1a\0\0" * 2])
def test_release_with_properties_refused(recording, rest):
    """MQTT 5 allows a reason and its explanation."""
    listener = make_listener(recording)
    device = device_of(listener)
    device.send(twice(1) + pubrel(1, rest))
    assert answers(recording, listener, device) == pubrec(1) + pubcomp(1)


def test_qos_2_without_a_session(recording):
    """Where no QoS 2 was offered, a publish ends the connection, and a release is the driver's to judge."""
    device = Device(make_listener(recording), version=5)
    device.send(pubrel(1))
    assert device.packets == [(6, 2, b"\0\1")]
    device.send(twice(1))
    assert device.fault.reason == 0x9B
    assert values(recording) == []


def test_identifier_zero(recording):
    """QoS 2 needs an identifier."""
    device = device_of(make_listener(recording))
    device.send(twice(0))
    assert device.fault.reason == 0x82


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_session_forgets_at_reconnect(stopped_recording):
    """What was received before the connection broke is a duplicate on the next, even before it is on disk."""
    listener = make_listener(stopped_recording)
    kept = session()
    first = device_of(listener, session=kept)
    first.send(twice(1, b"1") + twice(2, b"2"))
    assert first.close() == 2
    second = device_of(listener, session=kept)
    second.send(twice(1, b"1", dup=True) + twice(3, b"3"))
    listener.release()
    assert second.received == b""
    assert kept.unreleased == []
    stopped_recording.start()
    assert answers(stopped_recording, listener, second) == pubrec(1) + pubrec(3)
    assert values(stopped_recording) == [b"1", b"2", b"3"]
    assert sorted(kept.unreleased) == [(1, 1), (2, 2), (3, 3)]


def test_record_that_became_durable_while_nobody_waited(stopped_recording):
    """No commit follows that would tell of it, so the duplicate is answered at once."""
    listener = make_listener(stopped_recording)
    kept = session()
    first = device_of(listener, session=kept)
    first.send(twice(1, b"1"))
    first.close()
    stopped_recording.start()
    stopped_recording.flush()
    second = device_of(listener, session=kept)
    second.send(twice(1, b"1", dup=True))
    assert second.received == pubrec(1)


def test_session_in_use_twice(recording):
    """A session belongs to one connection; whoever takes it over closes the other one first."""
    listener = make_listener(recording)
    kept = session()
    first = device_of(listener, session=kept)
    assert kept.attached
    with pytest.raises(RuntimeError, match="close the other one"):
        device_of(listener, session=kept)
    with pytest.raises(RuntimeError, match="while a connection uses it"):
        kept.clear()
    first.close()
    assert not kept.attached
    device_of(listener, session=kept)


def test_session_of_a_vanished_connection(recording):
    """A connection that is collected without being closed lets its session go."""
    listener = make_listener(recording)
    kept = session()
    device = device_of(listener, session=kept)
    device.send(twice(1))
    device.write = None
    del device
    assert not kept.attached
    assert len(kept) == 1


def test_cleared_session(stopped_recording):
    """A new session begins with nothing, and gives its memory back, whatever was on its way."""
    listener = make_listener(stopped_recording)
    kept = session()
    device = device_of(listener, session=kept)
    device.send(b"".join(twice(packet_id) for packet_id in range(1, 500)))
    device.close()
    kept.clear()
    assert (len(kept), listener.counters["sessions_bytes"]) == (0, 0)
    device = device_of(listener, session=kept)
    device.send(twice(1))
    stopped_recording.start()
    assert answers(stopped_recording, listener, device) == pubrec(1)
    assert len(values(stopped_recording)) == 500


def test_restored_session(recording):
    """After a restart, identifiers whose records are on disk are duplicates, answered at once."""
    listener = make_listener(recording)
    kept = session(durable=True)
    kept.add(7, 3)
    kept.add(7, 5)
    kept.add(7, 4)
    kept.add(9, 1)
    assert sorted(kept.unreleased) == [(7, 5), (9, 1)]
    listener.delivery_next = 6
    listener.sessions_partition = recording.partition("releases")
    device = device_of(listener, session=kept)
    device.send(twice(7, dup=True))
    assert device.received == pubrec(7)
    device.send(twice(8, b"new"))
    answers(recording, listener, device)
    ((*_, headers),) = recording.records("telemetry")
    assert dict(headers)["delivery"] == b"6"
    assert listener.delivery_next == 7


def test_nonsense_of_ours(recording):
    """What only we can get wrong is no fault of a peer."""
    listener = make_listener(recording)
    with pytest.raises(ValueError, match="inflight_max"):
        session(inflight_max=0)
    with pytest.raises(ValueError, match="ASCII"):
        mqtt.Session(b"k", "ü".encode(), durable=False, inflight_max=1)
    with pytest.raises(ValueError, match="packet identifier"):
        session().add(0, 1)
    with pytest.raises(ValueError, match="sessions_partition"):
        device_of(listener, session=session(durable=True))
    with pytest.raises(ValueError, match="needs a session"):
        Device(listener, version=5, client_header=True)
    with pytest.raises(IndexError, match="partition 99"):
        listener.sessions_partition = 99
    listener.delivery_next = 10
    with pytest.raises(ValueError, match="grow"):
        listener.delivery_next = 9


# -- durable sessions --------------------------------------------------------------------------------------------------


def durable_device(recording, listener, **options):
    listener.sessions_partition = recording.partition("releases")
    kept = mqtt.Session(b"line/k%20", b"k%20", durable=True, inflight_max=1_000)
    return device_of(listener, session=kept, **options), kept


def test_record_says_whose_it_is(recording):
    """Client, identifier and delivery number stand in the record itself; QoS 1 and a fleeting session need none."""
    listener = make_listener(recording)
    device, _ = durable_device(recording, listener)
    device.send(twice(500, retain=True, props=[b"\x03" + text("a"), b"\x26" + text("client") + text("me")]))
    device.send(publish("plant/a", qos=1, packet_id=2, version=5))
    device_of(listener).send(twice(1))
    assert [row[4] for row in recording.records("telemetry")] == [
        (("qos", b"2"), ("retain", b"1"), ("client", b"k%20"), ("packet-id", b"500"), ("delivery", b"1"),
         ("content-type", b"a"), ("user.client", b"me")),
        (("qos", b"1"),),
        (("qos", b"2"),),
    ]  # fmt: skip
    assert listener.delivery_next == 3


def test_release_is_recorded_before_pubcomp(stopped_recording):
    """The release of a durable session names the highest delivery so far, and PUBCOMP waits for it to be on disk."""
    listener = make_listener(stopped_recording)
    device, kept = durable_device(stopped_recording, listener)
    device.send(twice(1) + twice(2) + pubrel(1) + twice(3) + pubrel(3))
    listener.release()
    assert device.received == b""
    stopped_recording.start()
    assert answers(stopped_recording, listener, device) == pubrec(1) + pubrec(2) + pubcomp(1) + pubrec(3) + pubcomp(3)
    assert [row[2:] for row in stopped_recording.records("releases")] == [
        (b"line/k%20", b"release 1 2", ()),
        (b"line/k%20", b"release 3 3", ()),
    ]
    assert kept.unreleased == [(2, 2)]


def test_unknown_release_of_a_durable_session(recording):
    """It may be one that was not durable before a restart, so it is recorded, and answered when that is on disk."""
    listener = make_listener(recording)
    device, _ = durable_device(recording, listener)
    device.send(pubrel(9))
    assert answers(recording, listener, device) == pubcomp(9, 0x92)
    assert values(recording, "releases") == [b"release 9 0"]


def test_full_ring_loses_a_release(tmp_path):
    """A release waits for room as a publish does, and is taken once."""
    recording = Recording(tmp_path / "data", ring_bytes=2**16, start=False)
    listener = make_listener(recording)
    device, kept = durable_device(recording, listener)
    device.send(twice(1))
    filler = Device(listener, version=4)
    while not filler.blocked:
        filler.send(publish("plant/filler", b"z" * 900))
    device.send(pubrel(1))
    assert device.blocked
    assert len(kept) == 1
    recording.start()
    recording.flush()
    listener.reopen()
    filler.retry()
    device.retry()
    assert answers(recording, listener, device) == pubrec(1) + pubcomp(1)
    assert values(recording, "releases") == [b"release 1 1"]
    assert len(kept) == 0
    recording.close()


def test_session_made_lasting(recording):
    """A client may come back with another expiry; a session's durability changes only while nobody uses it."""
    listener = make_listener(recording)
    device, kept = durable_device(recording, listener)
    with pytest.raises(RuntimeError, match="while a connection uses it"):
        kept.durable = False
    device.close()
    kept.durable = False
    device = device_of(listener, session=kept)
    device.send(twice(1) + pubrel(1))
    assert answers(recording, listener, device) == pubrec(1) + pubcomp(1)
    assert recording.records("releases") == []


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_receive_maximum_counts_unreleased_publishes(recording):
    """QoS 1 and 2 share it; what was answered with PUBREC counts until it is released."""
    listener = make_listener(recording)
    device = device_of(listener, inflight_max=3)
    device.send(twice(1) + twice(2))
    answers(recording, listener, device)
    device.send(publish("plant/a", qos=1, packet_id=3, version=5))
    answers(recording, listener, device)
    device.send(twice(3) + pubrel(1))
    answers(recording, listener, device)
    device.send(twice(4))
    assert device.fault is None
    device.send(twice(5))
    assert device.fault.reason == 0x93


def test_duplicates_fill_the_line(stopped_recording):
    """Resending the same identifier for ever is bounded, too."""
    listener = make_listener(stopped_recording)
    device = device_of(listener, inflight_max=1)
    device.send(twice(1) * 65_535)
    assert device.fault is None
    assert device.unacknowledged == 65_535
    device.send(twice(1))
    assert device.fault.reason == 0x93


def test_releases_fill_the_line(stopped_recording):
    """So is releasing what was never sent."""
    listener = make_listener(stopped_recording)
    device = device_of(listener, inflight_max=1)
    device.send(twice(1) + pubrel(9) * 65_534)
    assert device.fault is None
    device.send(pubrel(9))
    assert device.fault.reason == 0x93


def test_many_identifiers(recording):
    """Tables grow and shrink with what they hold, at any distance between identifiers."""
    listener = make_listener(recording)
    kept = session()
    device = device_of(listener, session=kept)
    for step in (1, 2, 64, 1_024):
        ids = list(range(1, 65_536, step))[:5_000]
        device.send(b"".join(twice(packet_id) for packet_id in ids))
        assert len(kept) == len(ids)
        answers(recording, listener, device)
        assert sorted(packet_id for packet_id, _ in kept.unreleased) == ids
        device.send(b"".join(pubrel(packet_id) for packet_id in reversed(ids)))
        assert answers(recording, listener, device) == b"".join(pubcomp(packet_id) for packet_id in reversed(ids))
    assert len(kept) == 0
    assert listener.counters["sessions_bytes"] <= 64 * 24


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_unrouted_publish(recording):
    """MQTT 5 hears it in PUBREC, which ends the exchange: the identifier is free again."""
    listener = make_listener(recording)
    kept = session()
    new, old = device_of(listener, session=kept), device_of(listener, version=4)
    new.send(publish("none/a", qos=2, packet_id=1, version=5) + twice(1, b"kept"))
    assert answers(recording, listener, new) == pubrec(1, 0x90) + pubrec(1)
    assert values(recording) == [b"kept"]
    old.send(publish("none/a", qos=2, packet_id=1))
    assert old.fault.reason == 0x90


def test_failed_stream(recording):
    """A publish whose stream failed is never answered, and stays in the session."""
    broken = recording.broken_partition("broken")
    listener = mqtt.Group(
        recording.ring("test"), mqtt.Routes([(b"#", broken)]), packet_bytes_max=10_000, record_bytes_max=10_000,
        kept_bytes_max=10_000,
    )  # fmt: skip
    device = device_of(listener)
    device.send(twice(1))
    recording.flush()
    assert listener.release() == [device]
    assert device.received == b""


def refused(recording, listener):
    """Wait until the writer has refused something, and have it answered."""
    wait_until(lambda: listener.ring.refusals_pending, "a refusal")
    return listener.release()


def test_full_disk(recording):
    """MQTT 5 hears of it in PUBREC, and may send the message again, with the same identifier; 3.1.1 is disconnected."""
    recording.full_partition("full")
    listener = make_listener(recording, [("plant/#", "full")])
    kept = session()
    new, old = device_of(listener, session=kept), device_of(listener, version=4)
    new.send(twice(1, b"lost") + publish("plant/a", b"lost", qos=1, packet_id=2, version=5))
    assert refused(recording, listener) == []
    assert new.received == pubrec(1, 0x97) + puback(2, 0x97)
    assert (len(kept), listener.counters["refused_full_disk"]) == (0, 2)
    old.send(twice(1, version=4))
    assert refused(recording, listener) == [old]
    assert old.refused
    recording.make_room("full")
    new.received = b""
    new.send(twice(1, b"kept"))
    assert answers(recording, listener, new) == pubrec(1)
    assert values(recording, "full") == [b"first", b"kept"]


def test_full_disk_while_the_client_is_away(recording):
    """What was refused was not received, though nobody was there to hear it: it must not become a duplicate."""
    recording.full_partition("full")
    listener = make_listener(recording, [("plant/#", "full")])
    kept = session()
    device = device_of(listener, session=kept)
    device.send(b"".join(twice(packet_id) for packet_id in range(1, 40)))
    device.close()
    assert len(kept) == 39
    refused(recording, listener)
    assert len(kept) == 0
    recording.make_room("full")
    device = device_of(listener, session=kept)
    device.send(twice(1, b"again", dup=True))
    assert answers(recording, listener, device) == pubrec(1)
    assert values(recording, "full") == [b"first", b"again"]


def test_full_disk_for_releases(recording):
    """PUBCOMP knows no reason that says so: the connection ends, and the client releases again on its next one."""
    listener = make_listener(recording)
    listener.sessions_partition = recording.full_partition("releases")
    kept = session(durable=True)
    device = device_of(listener, session=kept)
    device.send(pubrel(1))
    assert refused(recording, listener) == [device]
    assert device.received == b""
    device.close()
    recording.make_room("releases")
    device = device_of(listener, session=kept)
    device.send(pubrel(1))
    assert answers(recording, listener, device) == pubcomp(1, 0x92)
