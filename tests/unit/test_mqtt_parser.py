"""The native MQTT parser: packets in any pieces become records, faults close, a full ring stops, acks keep order."""

from __future__ import annotations

import pytest
from gateway_native import mqtt

from tests.support.mqtt import (
    PINGREQ,
    PINGRESP,
    Device,
    connect,
    length,
    make_listener,
    packet,
    properties,
    puback,
    publish,
    text,
)
from tests.support.recording import Recording

NS = 1_700_000_000_123_456_789


def contents(recording, stream="telemetry"):
    """(key, value, headers) of every record."""
    return [row[2:] for row in recording.records(stream)]


def stream_of_packets(version):
    """A bit of everything that a client sends, and the records it must become."""
    sent = connect(version) + publish("plant/a", b"1", version=version) + PINGREQ
    sent += publish("plant/b", b"", qos=1, packet_id=7, retain=True, version=version)
    sent += publish("plant/long/" + "x" * 200, b"y" * 300, version=version)
    sent += publish("plant/c", b"3", qos=1, packet_id=65_535, dup=True, version=version)
    sent += packet(0x82, b"\0\1" + (b"\0" if version == 5 else b"") + text("a/#") + b"\1")
    sent += publish("plant/d", bytes(range(256)), version=version)
    records = [
        (b"plant/a", b"1", ()),
        (b"plant/b", b"", (("qos", b"1"), ("retain", b"1"))),
        (b"plant/long/" + b"x" * 200, b"y" * 300, ()),
        (b"plant/c", b"3", (("qos", b"1"), ("dup", b"1"))),
        (b"plant/d", bytes(range(256)), ()),
    ]
    return sent, records


@pytest.mark.parametrize("version", [4, 5])
def test_whole_buffer(recording, version):
    """All packets of one buffer are taken in one call; those Python decides on come back in order."""
    sent, records = stream_of_packets(version)
    device = Device(listener := make_listener(recording, clock_ns=NS))
    device.accept_version = version
    device.send(sent)
    assert device.fault is None
    assert [kind for kind, _, _ in device.packets] == [1, 8]
    assert device.packets[1][1] == 2
    rows = recording.records("telemetry")
    assert [row[2:] for row in rows] == records
    assert {row[1] for row in rows} == {NS // 1_000_000}
    assert listener.release() == []
    assert device.received == PINGRESP + puback(7) + puback(65_535)
    assert listener.counters["records"] == 5
    assert listener.counters["bytes"] == sum(len(value) for _, value, _ in records)
    assert listener.counters["unacknowledged"] == listener.counters["kept_bytes"] == 0


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_small_pieces(recording, version, chunk):
    """However the bytes arrive, the records are the same and nothing stays behind."""
    sent, records = stream_of_packets(version)
    device = Device(listener := make_listener(recording))
    device.accept_version = version
    device.send(sent, chunk)
    assert contents(recording) == records
    listener.release()
    assert device.received == PINGRESP + puback(7) + puback(65_535)
    assert listener.counters["kept_bytes"] == 0


def test_every_split(recording):
    """A buffer may end at any byte of any packet."""
    sent, records = stream_of_packets(5)
    listener = make_listener(recording)
    for cut in range(1, len(sent)):
        device = Device(listener)
        device.accept_version = 5
        device.send(sent[:cut])
        device.send(sent[cut:])
        assert device.fault is None, f"split at byte {cut}"
    assert contents(recording) == records * (len(sent) - 1)
    assert listener.counters["kept_bytes"] == 0


@pytest.mark.parametrize("size", [65_000, 65_530, 65_536, 65_537, 300_000, 400_000])
@pytest.mark.parametrize("chunk", [1_000, 65_536, None])
def test_large_packet(recording, size, chunk):
    """A packet larger than any buffer arrives in a buffer of its own, which goes when it is done."""
    payload = bytes(index * 7 & 0xFF for index in range(size))
    device = Device(listener := make_listener(recording), version=4)
    device.send(publish("plant/a", b"before") + publish("plant/big", payload, qos=1, packet_id=1) + PINGREQ, chunk)
    device.send(publish("plant/a", b"after"))
    assert [value for _, value, _ in contents(recording)] == [b"before", payload, b"after"]
    assert listener.counters["kept_bytes"] == 0


def test_claimed_length_costs_memory(recording):
    """A client that announces 16 MiB and sends little holds little."""
    listener = make_listener(recording)
    device = Device(listener, version=4)
    device.send(b"\x30" + length(2**24 - 5) + b"\0\x07plant/a" + b"x" * 1_000)
    assert listener.counters["kept_bytes"] <= 65_536
    device.close()
    assert listener.counters["kept_bytes"] == 0


def test_partial_packets_of_all_connections_are_bounded(recording):
    """Beyond the listener's limit the connection that asks for more is closed, no other."""
    listener = make_listener(recording, kept_bytes_max=310_000)
    part = b"\x30" + length(2**20) + b"\0\x07plant/a" + b"x" * 50_000
    devices = [Device(listener, version=5) for _ in range(5)]
    for device in devices:
        device.send(part)
    assert [device.fault.reason if device.fault else None for device in devices] == [None, None, None, 0x97, 0x97]
    assert listener.counters["kept_bytes"] <= 310_000


# -- faults ------------------------------------------------------------------------------------------------------------

BOTH = [
    ("reserved type 0", b"\x00\x00", 0x82),
    ("CONNACK from a client", b"\x20\x02\x00\x00", 0x82),
    ("SUBACK from a client", b"\x90\x03\x00\x01\x00", 0x82),
    ("UNSUBACK from a client", b"\xb0\x02\x00\x01", 0x82),
    ("PINGRESP from a client", b"\xd0\x00", 0x82),
    ("SUBSCRIBE with wrong flags", b"\x80\x00", 0x81),
    ("UNSUBSCRIBE with wrong flags", b"\xa0\x00", 0x81),
    ("PINGREQ with flags", b"\xc1\x00", 0x81),
    ("PINGREQ with a body", b"\xc0\x01x", 0x81),
    ("DISCONNECT with flags", b"\xe1\x00", 0x81),
    ("length of five bytes", b"\x30\xff\xff\xff\xff\x01", 0x81),
    ("packet over the limit", b"\x30" + length(100_000), 0x95),
    ("control packet over its limit", b"\x82" + length(600_000), 0x95),
    ("QoS 3", publish("plant/a", qos=3, packet_id=1), 0x81),
    ("QoS 2", publish("plant/a", qos=2, packet_id=1), 0x9B),
    ("duplicate with QoS 0", publish("plant/a", dup=True), 0x81),
    ("no room for a topic", b"\x30\x00", 0x81),
    ("half a topic length", b"\x30\x01\x00", 0x81),
    ("topic beyond the end", b"\x30\x03\x00\x05a", 0x81),
    ("packet id beyond the end", b"\x32\x03\x00\x01a", 0x81),
    ("topic with +", None, 0x81),
    ("topic with #", None, 0x81),
    ("topic with NUL", None, 0x81),
    ("topic with a surrogate", None, 0x81),
    ("topic not UTF-8", None, 0x81),
    ("empty topic", None, 0x82),
    ("packet id 0", None, 0x82),
]
BAD_TOPICS = {
    "topic with +": b"plant/+", "topic with #": b"plant/#", "topic with NUL": b"plant/\0",
    "topic with a surrogate": b"plant/\xed\xa0\x80", "topic not UTF-8": b"plant/\xff", "empty topic": b"",
}  # fmt: skip


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(("what", "sent", "reason"), BOTH, ids=[case[0] for case in BOTH])
def test_malformed_packet_accepted(recording, version, what, sent, reason):
    """Each fault has its reason code, harms nothing that came before, and takes nothing that follows."""
    if what in BAD_TOPICS:
        sent = publish(BAD_TOPICS[what], version=version)
    elif what == "packet id 0":
        sent = publish("plant/a", qos=1, packet_id=0, version=version)
    listener = make_listener(recording, packet_bytes_max=100_000 if what == "packet over the limit" else 2**24)
    device = Device(listener, version=version)
    device.send(
        publish("plant/good", b"kept", version=version) + sent + publish("plant/late", b"lost", version=version)
    )
    assert device.fault is not None
    assert device.fault.reason == reason
    assert device.fault.cause
    assert [value for _, value, _ in contents(recording)] == [b"kept"]
    assert device.closed


V5 = [
    ("property of CONNECT", [b"\x21\x00\x01"], 0x81),
    ("unknown property", [b"\x7f"], 0x81),
    ("property cut off", [b"\x02\x00\x00"], 0x81),
    ("payload format without a value", [b"\x01"], 0x81),
    ("payload format 2", [b"\x01\x02"], 0x82),
    ("payload format twice", [b"\x01\x00", b"\x01\x00"], 0x82),
    ("content type twice", [b"\x03" + text("a"), b"\x03" + text("a")], 0x82),
    ("content type not UTF-8", [b"\x03\x00\x01\xff"], 0x81),
    ("content type with NUL", [b"\x03\x00\x01\x00"], 0x81),
    ("content type beyond the properties", [b"\x03\x00\x09ab"], 0x81),
    ("response topic with wildcard", [b"\x08" + text("a/+")], 0x82),
    ("empty response topic", [b"\x08" + text("")], 0x82),
    ("user property without value", [b"\x26" + text("a")], 0x81),
    ("user property not UTF-8", [b"\x26" + text("a") + b"\x00\x01\xff"], 0x81),
    ("topic alias", [b"\x23\x00\x01"], 0x94),
    ("topic alias 0", [b"\x23\x00\x00"], 0x94),
    ("subscription identifier", [b"\x0b\x01"], 0x82),
]


@pytest.mark.parametrize(("props", "reason"), [case[1:] for case in V5], ids=[case[0] for case in V5])
def test_malformed_property_accepted(recording, props, reason):
    """Each wrong property of a publish has its reason code."""
    device = Device(make_listener(recording), version=5)
    device.send(publish("plant/a", b"x", version=5, props=props))
    assert device.fault is not None
    assert device.fault.reason == reason
    assert contents(recording) == []


def test_alias_without_topic(recording):
    """A client that uses an alias although none was offered hears so, not that its topic is empty."""
    device = Device(make_listener(recording), version=5)
    device.send(publish("", b"x", version=5, props=[b"\x23\x00\x01"]))
    assert device.fault.reason == 0x94


def test_property_length_wrong(recording):
    """The length of the properties may neither exceed the packet nor be written in more bytes than needed."""
    for body in (b"\0\1a\x05x", b"\0\1a\x80\x00x", b"\0\1a\xff\xff\xff\xff\x01", b"\0\1a"):
        device = Device(make_listener(recording), version=5)
        device.send(packet(0x30, body))
        assert device.fault is not None
        assert device.fault.reason == 0x81


def test_long_form_of_the_packet_length(recording):
    """MQTT 5 demands the shortest form of a length; MQTT 3.1.1 does not."""
    sent = b"\x30\x8a\x00" + publish("plant/a", b"x")[2:]
    old, new = Device(make_listener(recording), version=4), Device(make_listener(recording), version=5)
    old.send(sent)
    assert old.fault is None
    new.send(b"\x30\x8b\x00\0\7plant/a\0x")
    assert new.fault.reason == 0x81


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n", PINGREQ, publish("plant/a"), b"\x11\x00", b"\x16\x03\x01"])
def test_first_packet_is_not_connect(recording, sent):
    """Anything but CONNECT ends a new connection at its first byte."""
    device = Device(make_listener(recording))
    device.send(sent[:1])
    assert device.fault.reason == 0x82
    assert contents(recording) == []


def test_auth_in_3_1_1(recording):
    """AUTH exists in MQTT 5 only; there it is Python's to refuse."""
    old, new = Device(make_listener(recording), version=4), Device(make_listener(recording), version=5)
    old.send(b"\xf0\x00")
    new.send(b"\xf0\x00")
    assert old.fault.reason == 0x82
    assert new.packets == [(15, 0, b"")]


def test_record_larger_than_allowed(recording):
    """Headers count too: escaped, a property may grow to three times its size."""
    listener = make_listener(recording, record_bytes_max=1_000)
    device = Device(listener, version=5)
    device.send(publish("plant/a", b"x" * 900, version=5))
    device.send(publish("plant/a", b"x" * 500, version=5, props=[b"\x03" + text("é" * 100)]))
    assert device.fault.reason == 0x95
    assert len(contents(recording)) == 1


def test_everything_after_the_fault_is_ignored(recording):
    """A closed connection takes no more bytes, even from a driver that had read them already."""
    device = Device(make_listener(recording), version=4)
    device.send(b"\x00\x00")
    memoryview(device.get_buffer(1))[:20] = publish("plant/a", b"x" * 9)[:20]
    device.buffer_updated(20)
    assert device.take() is None
    assert contents(recording) == []


# -- acknowledgements --------------------------------------------------------------------------------------------------


def test_ack_before_durable(stopped_recording):
    """No acknowledgement leaves before the writer says that the record is on disk."""
    device = Device(listener := make_listener(stopped_recording), version=4)
    device.send(publish("plant/a", b"x", qos=1, packet_id=9))
    listener.release()
    assert device.received == b""
    assert device.unacknowledged == listener.counters["unacknowledged"] == 1
    stopped_recording.start()
    stopped_recording.flush()
    listener.release()
    assert device.received == puback(9)
    assert listener.counters["acknowledged"] == 1


def test_acks_out_of_order(stopped_recording):
    """What can be answered at once still waits for the publishes before it."""
    device = Device(listener := make_listener(stopped_recording), version=5)
    device.send(publish("none/a", qos=1, packet_id=1, version=5))
    assert device.received == puback(1, 0x90)
    device.send(
        publish("plant/a", qos=1, packet_id=2, version=5)
        + publish("none/a", qos=1, packet_id=3, version=5)
        + publish("plant/a", qos=1, packet_id=4, version=5)
    )
    assert device.received == puback(1, 0x90)
    stopped_recording.start()
    stopped_recording.flush()
    listener.release()
    assert device.received == puback(1, 0x90) + puback(2) + puback(3, 0x90) + puback(4)


def test_acks_of_many_publishes(recording):
    """The queue of acknowledgements grows, wraps around, and keeps its order."""
    device = Device(listener := make_listener(recording), version=4)
    expected = b""
    for start in (1, 20, 300, 301, 5_000):
        ids = [(start + index) % 65_535 + 1 for index in range(start)]
        device.send(b"".join(publish("plant/a", b"x", qos=1, packet_id=packet_id) for packet_id in ids))
        expected += b"".join(puback(packet_id) for packet_id in ids)
        if start != 300:
            recording.flush()
            listener.release()
    assert device.received == expected
    device.trim()
    device.send(publish("plant/a", b"x", qos=1, packet_id=1))
    recording.flush()
    listener.release()
    assert device.received == expected + puback(1)


def test_acks_of_several_connections(recording):
    """One look serves all connections, each in its own order; those that are gone are left out."""
    listener = make_listener(recording)
    devices = [Device(listener, version=4) for _ in range(5)]
    for packet_id in (1, 2, 3):
        for device in devices:
            device.send(publish("plant/a", b"x", qos=1, packet_id=packet_id))
    recording.flush()
    assert devices[2].close() == 3
    listener.release()
    for device in devices[:2] + devices[3:]:
        assert device.received == puback(1) + puback(2) + puback(3)
    assert devices[2].received == b""
    assert listener.counters["unacknowledged"] == 0


def test_connection_vanishes_with_acks_pending(recording):
    """A connection that is collected without being closed leaves no trace in the listener's list."""
    listener = make_listener(recording)
    device = Device(listener, version=4)
    device.send(publish("plant/a", b"x", qos=1, packet_id=1) + b"\x30")
    device.write = None
    del device
    assert listener.counters["unacknowledged"] == listener.counters["kept_bytes"] == 0
    assert listener.release() == []


def test_same_packet_id_again(recording):
    """A packet id that is still in flight is a resend: recorded again, acknowledged again."""
    device = Device(listener := make_listener(recording), version=4)
    device.send(publish("plant/a", b"x", qos=1, packet_id=5))
    device.send(publish("plant/a", b"x", qos=1, packet_id=5, dup=True))
    assert [headers for _, _, headers in contents(recording)] == [
        (("qos", b"1"),), (("qos", b"1"), ("dup", b"1"))
    ]  # fmt: skip
    listener.release()
    assert device.received == puback(5) * 2


def test_receive_maximum_exceeded(stopped_recording):
    """One publish more than was allowed in flight ends the connection; the others are recorded."""
    listener = make_listener(stopped_recording)
    device = Device(listener, version=5, inflight_max=3)
    device.send(b"".join(publish("plant/a", b"x", qos=1, packet_id=index, version=5) for index in (1, 2, 3)))
    assert device.fault is None
    device.send(publish("plant/a", b"y", version=5) + publish("plant/a", b"x", qos=1, packet_id=4, version=5))
    assert device.fault.reason == 0x93
    stopped_recording.start()
    assert [value for _, value, _ in contents(stopped_recording)] == [b"x", b"x", b"x", b"y"]


def test_stream_that_failed_is_acknowledged(recording):
    """When a partition fails, its publishes are never acknowledged and the connection is named; others go on."""
    broken = recording.broken_partition("broken")
    listener = mqtt.Group(
        recording.ring("test"),
        mqtt.Routes([(b"broken/#", broken), (b"plant/#", recording.partition("telemetry"))]),
        packet_bytes_max=10_000, record_bytes_max=10_000, kept_bytes_max=10_000,
    )  # fmt: skip
    unlucky, other = Device(listener, version=5), Device(listener, version=5)
    unlucky.send(publish("plant/a", qos=1, packet_id=1, version=5))
    unlucky.send(publish("broken/a", qos=1, packet_id=2, version=5) + publish("plant/a", qos=1, packet_id=3, version=5))
    other.send(publish("plant/a", qos=1, packet_id=1, version=5))
    recording.flush()
    assert listener.release() == [unlucky]
    assert unlucky.received == other.received == puback(1)


# -- topics without a route --------------------------------------------------------------------------------------------


def test_unrouted_topic(recording):
    """QoS 0 is dropped and counted; QoS 1 is answered in MQTT 5, and ends an MQTT 3.1.1 connection."""
    listener = make_listener(recording)
    new, old = Device(listener, version=5), Device(listener, version=4)
    new.send(publish("none/1", version=5))
    old.send(publish("none/2"))
    assert (new.fault, old.fault) == (None, None)
    assert listener.counters["unrouted"] == 2
    assert listener.unrouted_topic == b"none/2"
    old.send(publish("none/" + "x" * 300, qos=1, packet_id=1))
    assert old.fault.reason == 0x90
    assert listener.unrouted_topic == (b"none/" + b"x" * 300)[:256]
    assert listener.counters["unrouted"] == 3
    assert contents(recording) == []


def test_changed_routes(recording):
    """New routes hold from the next packet on."""
    listener = make_listener(recording)
    device = Device(listener, version=4)
    device.send(publish("plant/a", b"1"))
    listener.set_routes(mqtt.Routes([(b"plant/#", recording.partition("other"))]))
    device.send(publish("plant/a", b"2"))
    assert [value for _, value, _ in contents(recording)] == [b"1"]
    assert [value for _, value, _ in contents(recording, "other")] == [b"2"]


# -- a full ring -------------------------------------------------------------------------------------------------------


def fill(listener, version=4):
    """A connection that has filled the ring and waits; with the number of its publishes and the last one."""
    device = Device(listener, version=version)
    one = publish("plant/filler", b"z" * 900)
    sent = 0
    while not device.blocked:
        device.send(one)
        sent += 1
        assert sent < 10_000
    return device, sent


def test_full_ring_drops_a_message(tmp_path):
    """Connections stop at the packet that found no room and go on from there: nothing lost, nothing twice."""
    recording = Recording(tmp_path / "data", ring_bytes=2**16, start=False)
    listener = make_listener(recording)
    first, sent = fill(listener)
    second = Device(listener, version=4)
    numbered = [publish("plant/second", b"%d" % index, qos=1, packet_id=index + 1) for index in range(20)]
    second.send(b"".join(numbered) + PINGREQ)
    assert second.blocked
    assert listener.crowded
    assert listener.counters["stopped_for_room"] == 2
    assert second.received == b""
    recording.start()
    recording.flush()
    assert listener.has_room()
    listener.reopen()
    first.retry()
    second.retry()
    assert not first.blocked
    assert not second.blocked
    keys = [(key, value) for key, value, _ in contents(recording)]
    assert keys.count((b"plant/filler", b"z" * 900)) == sent
    assert [value for key, value in keys if key == b"plant/second"] == [b"%d" % index for index in range(20)]
    listener.release()
    assert second.received == PINGRESP + b"".join(puback(index + 1) for index in range(20))
    assert listener.counters["kept_bytes"] == 0
    recording.close()


def test_small_messages_pass_a_large_one_that_waits(tmp_path):
    """While somebody waits for room nobody else gets in, however small the message."""
    recording = Recording(tmp_path / "data", ring_bytes=2**16, start=False)
    listener = make_listener(recording)
    first = Device(listener, version=4)
    first.send(
        publish("plant/a", b"x" * 30_000) + publish("plant/a", b"y" * 30_000) + publish("plant/a", b"z" * 30_000)
    )
    assert first.blocked
    small = Device(listener, version=4)
    small.send(publish("plant/a", b"s"))
    assert small.blocked
    assert len(memoryview(Device(listener).get_buffer(65_536))) <= 4_096, "much is read while nothing can be taken"
    recording.start()
    recording.flush()
    listener.reopen()
    first.retry()
    small.retry()
    assert [value[:1] for _, value, _ in contents(recording)] == [b"x", b"y", b"z", b"s"]
    recording.close()


def test_blocked_again_and_again(tmp_path):
    """A connection may find the ring full many times within one buffer."""
    recording = Recording(tmp_path / "data", ring_bytes=2**14)
    listener = make_listener(recording)
    device = Device(listener, version=4)
    messages = [b"%05d" % index + b"." * 2_000 for index in range(100)]
    device.send(b"".join(publish("plant/a", message) for message in messages))
    rounds = 0
    while device.blocked:
        recording.flush()
        listener.reopen()
        device.retry()
        rounds += 1
        assert rounds < 100
    assert rounds > 5
    assert [value for _, value, _ in contents(recording)] == messages
    assert listener.counters["kept_bytes"] == 0
    recording.close()


def test_large_packet_that_finds_no_room(tmp_path):
    """A packet in a buffer of its own waits there."""
    recording = Recording(tmp_path / "data", ring_bytes=2**19, start=False)
    listener = make_listener(recording)
    device = Device(listener, version=4)
    device.send(publish("plant/a", b"a" * 200_000) + publish("plant/a", b"b" * 200_000))
    device.send(publish("plant/a", b"c" * 200_000), 10_000)
    assert device.blocked
    recording.start()
    recording.flush()
    listener.reopen()
    device.retry()
    assert [value[:1] for _, value, _ in contents(recording)] == [b"a", b"b", b"c"]
    assert listener.counters["kept_bytes"] == 0
    recording.close()


def test_bytes_read_although_blocked(tmp_path):
    """A driver that had read before it could be paused loses nothing."""
    recording = Recording(tmp_path / "data", ring_bytes=2**16, start=False)
    listener = make_listener(recording)
    device, sent = fill(listener)
    late = publish("plant/late", b"late")
    memoryview(device.get_buffer(65_536))[: len(late)] = late
    device.buffer_updated(len(late))
    assert device.blocked
    recording.start()
    recording.flush()
    listener.reopen()
    device.retry()
    values = [value for _, value, _ in contents(recording)]
    assert len(values) == sent + 1
    assert values[-1] == b"late"
    recording.close()


# -- time-outs ---------------------------------------------------------------------------------------------------------


def test_silent_connection_is_overdue(recording):
    """Silence is counted in ticks; before CONNECT is there as a whole, single bytes of it do not count."""
    listener = make_listener(recording)
    silent, slow, busy = Device(listener), Device(listener), Device(listener, version=4)
    for device in (silent, slow, busy):
        device.patience = 3
    for byte in connect()[:4]:
        listener.advance()
        slow.send(bytes([byte]))
        busy.send(PINGREQ)
    assert (silent.overdue, slow.overdue, busy.overdue) == (True, True, False)
    for _ in range(4):
        listener.advance()
    assert busy.overdue
    busy.patience = 0
    assert not busy.overdue


def test_connection_that_waits_for_room_is_overdue(tmp_path):
    """Nobody reads from a blocked connection, so its silence is not its fault."""
    recording = Recording(tmp_path / "data", ring_bytes=2**16, start=False)
    listener = make_listener(recording)
    device, _ = fill(listener)
    device.patience = 1
    for _ in range(5):
        listener.advance()
    assert not device.overdue
    recording.start()
    recording.flush()
    listener.reopen()
    device.retry()
    assert not device.overdue
    recording.close()


# -- our own misuse ----------------------------------------------------------------------------------------------------


def test_open_with_nonsense(recording):
    """What only we can get wrong is a ValueError, not a fault of the peer."""
    device = Device(make_listener(recording))
    with pytest.raises(ValueError, match="level 3"):
        device.open(version=3, inflight_max=1)
    with pytest.raises(ValueError, match="inflight_max"):
        device.open(version=5, inflight_max=0)


def test_properties_helper_is_sound():
    """The packets that these tests send are what the standard shows (MQTT 5, section 3.3)."""
    assert publish("a/b", b"x", version=5, props=[b"\x01\x01"]) == b"\x30\x09\x00\x03a/b\x02\x01\x01x"
    assert properties() == b"\0"
    assert length(321) == b"\xc1\x02"
