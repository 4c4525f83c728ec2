"""The intake thread: what sockets do to it, and that nothing which Python does matters."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import subprocess
import sys
import time

import pytest
from gateway_native import intake, mqtt

from tests.support.gateway_process import environment
from tests.support.intake import CONNACK, exactly, reset, thread
from tests.support.mqtt import PINGREQ, PINGRESP, connect, puback, publish
from tests.support.native import wait_until

HOLD_US = 200_000


def test_publishes_are_recorded_and_acknowledged_in_order(tmp_path):
    """PUBACKs leave in the order of the publishes, and what was acknowledged is on disk."""
    with thread(tmp_path) as (it, recording):
        client, _ = it.opened()
        client.sendall(b"".join(publish("a", b"%d" % number, qos=1, packet_id=number) for number in range(1, 501)))
        assert exactly(client, 2_000) == b"".join(puback(number) for number in range(1, 501))
        assert [row[3] for row in recording.records("telemetry")] == [b"%d" % number for number in range(1, 501)]


def test_ingest_goes_on_while_the_gil_is_held(tmp_path):
    """A client in another process gets PUBACK after PUBACK while this process can run no Python for 200 ms."""
    counter = tmp_path / "counter"
    counter.write_bytes(bytes(8))

    def acknowledged() -> int:
        return int.from_bytes(os.pread(file.fileno(), 8, 0), "little")

    with thread(tmp_path / "log") as (it, _), counter.open("rb") as file:
        command = [sys.executable, "-m", "tests.support.mqtt_counting_client", str(it.socket.getsockname()[1])]
        client = subprocess.Popen([*command, str(counter)], stdin=subprocess.PIPE, env=environment())
        assert client.stdin is not None
        try:
            it.accept(it.wait_for(intake.PACKET)[2])
            wait_until(lambda: acknowledged() > 10, "acknowledgements")
            holder = ctypes.PyDLL(None)  # unlike CDLL, it keeps the GIL during the call
            before = acknowledged()
            holder.usleep(HOLD_US)
            after = acknowledged()
        finally:
            client.stdin.close()
            client.wait(60)
        assert after - before > 10
        assert client.returncode == 0


def test_packet_by_bytes(tmp_path):
    """A stream of packets cut anywhere is understood like one that comes whole."""
    packets = publish("a", b"1", qos=1, packet_id=1) + PINGREQ + publish("a", b"2" * 300, qos=1, packet_id=2)
    with thread(tmp_path) as (it, recording):
        client, _ = it.opened()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(len(packets)):
            client.sendall(packets[number : number + 1])
        assert sorted(exactly(client, 10)) == sorted(puback(1) + PINGRESP + puback(2))
        assert [row[3] for row in recording.records("telemetry")] == [b"1", b"2" * 300]
        assert it.counter("kept_bytes") == 0


def test_large_packet(tmp_path):
    """A packet larger than the receive buffer gets memory as it arrives, and gives it back."""
    with thread(tmp_path, ring_bytes=2**23) as (it, recording):
        client, _ = it.opened()
        client.sendall(publish("a", b"x" * 3_000_000, qos=1, packet_id=1))
        assert exactly(client, 4) == puback(1)
        assert [len(row[3] or b"") for row in recording.records("telemetry")] == [3_000_000]
        wait_until(lambda: it.counter("kept_bytes") == 0, "the memory is given back")


def test_bytes_behind_a_parked_packet_wait(tmp_path):
    """What a client sends behind a packet that needs a decision is looked at after the decision, and not before."""
    with thread(tmp_path) as (it, recording):
        client = it.client(connect(4) + publish("a", b"early", qos=1, packet_id=1))
        _, _, handle, first_byte, _ = it.wait_for(intake.PACKET)
        assert first_byte == 0x10
        other, _ = it.opened("other")
        other.sendall(publish("a", b"other", qos=1, packet_id=9))
        assert exactly(other, 4) == puback(9)
        assert it.counter("records") == 1
        it.accept(handle)
        assert exactly(client, 8) == CONNACK + puback(1)
        assert [row[3] for row in recording.records("telemetry")] == [b"other", b"early"]


def test_late_verdict_on_a_reused_place(tmp_path):
    """A verdict on a connection that is gone does nothing to the one that has its place and its descriptor now."""
    with thread(tmp_path) as (it, _):
        reset(it.client(connect(4, "old")))
        old = it.wait_for(intake.PACKET)[2]
        it.intake.abort(old)
        it.wait_for(intake.CLOSED, old)
        client = it.client(connect(4, "new"))
        new = it.wait_for(intake.PACKET)[2]
        assert new & 0xFFFFFFFF == old & 0xFFFFFFFF, "the place was not used again"
        it.intake.send(old, b"late")
        it.intake.open(it.listener, old, version=5, inflight_max=1, patience_s=1)
        it.intake.resume(old)
        it.intake.end(old, b"too late")
        it.intake.abort(old)
        it.accept(new)
        client.sendall(publish("a", b"x", qos=1, packet_id=7))
        assert exactly(client, 8) == CONNACK + puback(7)


def test_accept_storm(tmp_path):
    """Hundreds that connect at once are all taken, and all get their acknowledgement."""
    with thread(tmp_path) as (it, recording):
        clients = [
            it.client(connect(4, f"c{number}") + publish("a", b"x", qos=1, packet_id=1)) for number in range(400)
        ]
        for _ in clients:
            it.accept(it.wait_for(intake.PACKET)[2])
        for client in clients:
            assert exactly(client, 8) == CONNACK + puback(1)
            client.close()
        for _ in clients:
            it.wait_for(intake.CLOSED)
        assert it.counter("sockets") == 0
        assert len(recording.records("telemetry")) == 400


def test_more_sockets_than_allowed(tmp_path):
    """One socket too many is closed at once; the others stay."""
    with thread(tmp_path, sockets_max=2) as (it, _):
        first, _ = it.opened("first")
        it.opened("second")
        assert exactly(it.client(), 1) == b""
        it.wait_for(intake.REFUSED)
        first.sendall(PINGREQ)
        assert exactly(first, 2) == PINGRESP


def test_reset_in_the_middle_of_a_packet(tmp_path):
    """The connection is gone, with all that was kept for it; nothing of the broken packet is recorded."""
    with thread(tmp_path) as (it, recording):
        client, handle = it.opened()
        client.sendall(publish("a", b"whole", qos=1, packet_id=1) + publish("a", b"y" * 10_000)[:5_000])
        assert exactly(client, 4) == puback(1)
        reset(client)
        it.wait_for(intake.CLOSED, handle)
        assert it.counter("kept_bytes") == 0
        assert [row[3] for row in recording.records("telemetry")] == [b"whole"]


def test_half_open_connection(tmp_path):
    """A client that fell silent is told of, once; so is one that never sent CONNECT."""
    with thread(tmp_path, patience_s=1) as (it, _):
        silent, handle = it.opened(patience_s=1)
        it.wait_for(intake.CONNECTED, handle)
        it.wait_for(intake.OVERDUE, handle)
        it.client()
        mute = it.wait_for(intake.CONNECTED)[2]
        it.wait_for(intake.OVERDUE, mute)
        it.intake.end(handle, b"\xe0\x00")
        assert exactly(silent, 100) == b"\xe0\x00"
        silent.close()
        it.wait_for(intake.CLOSED, handle)


def test_slow_loris(tmp_path):
    """A client that sends a packet byte by byte, without end, is told of although it is not silent."""
    with thread(tmp_path, packet_patience_s=1) as (it, _):
        client, handle = it.opened(patience_s=0)
        client.sendall(publish("a", b"x" * 60_000)[:100])

        def drip() -> bool:
            client.sendall(b"x")
            it.events += it.intake.events()
            return any(event[0] == intake.DAWDLED for event in it.events)

        wait_until(drip, "the slow client is found out")
        assert it.wait_for(intake.DAWDLED)[2] == handle


def test_client_that_reads_late(tmp_path):
    """What a socket does not take waits, in order and without loss, and its sender is not read from meanwhile."""
    count = 200_000
    with thread(tmp_path) as (it, _):
        client, _ = it.opened()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        sent, pings = 0, PINGREQ * count

        def shout() -> bool:
            nonlocal sent
            try:
                sent += client.send(pings[sent:])
            except BlockingIOError:
                return it.counter("not_reading") == 1
            return sent == len(pings)

        wait_until(shout, "the socket takes no more")
        assert it.counter("unsent_bytes") <= 2**20
        client.setblocking(True)
        received = b""
        while len(received) < sent // 2 * 2:
            received += client.recv(65_536)
        assert received == PINGRESP * (sent // 2)
        wait_until(lambda: it.counter("not_reading") == 0, "it reads again")


def test_full_ring_first_come_first_served(tmp_path):
    """Connections that found the ring full wait, and lose nothing; a record of Python's goes first."""
    with thread(tmp_path, running=False, ring_bytes=2**16) as (it, recording):
        clients = [it.opened(f"c{number}")[0] for number in range(8)]
        for client in clients:
            client.sendall(b"".join(publish("a", b"x" * 1_000, qos=1, packet_id=index) for index in range(1, 61)))
        wait_until(lambda: it.counter("waiting_for_room") >= 7, "all but one that may have had room wait")
        it.intake.record(it.listener, 0, b"will", b"mine", b"", time.time_ns())
        wait_until(lambda: it.intake.settled, "the record waits")
        recording.start()
        for client in clients:
            assert exactly(client, 4 * 60) == b"".join(puback(index) for index in range(1, 61))
        assert it.wait_for(intake.RECORDED)[3] == 8
        keys = [row[2] for row in recording.records("telemetry")]
        assert len(keys) == 8 * 60 + 1
        assert keys.count(b"will") == 1


def test_peer_that_is_lost_while_it_waits_for_room(tmp_path):
    """What had arrived before the end is still recorded."""
    with thread(tmp_path, running=False, ring_bytes=2**16) as (it, recording):
        client, handle = it.opened()
        client.sendall(b"".join(publish("a", b"%04d" % index + b"x" * 400) for index in range(200)))
        wait_until(lambda: it.counter("waiting_for_room") == 1, "it waits")
        client.close()
        recording.start()
        it.wait_for(intake.CLOSED, handle)
        assert len(recording.records("telemetry")) == 200


def test_out_of_descriptors(tmp_path):
    """Accepting rests and says why; when there are descriptors again the client is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with thread(tmp_path) as (it, _):
        waiting = socket.socket()
        waiting.settimeout(60)
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            waiting.connect(it.socket.getsockname())
            assert it.wait_for(intake.ACCEPT)[3] == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        waiting.sendall(connect(4))
        it.accept(it.wait_for(intake.PACKET)[2])
        assert exactly(waiting, 4) == CONNACK
        waiting.close()


@pytest.mark.parametrize("garbage", [b"\x00\x00", b"\x10\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage(tmp_path, garbage):
    """A fault parks the connection until it is ended; others do not notice."""
    with thread(tmp_path) as (it, _):
        calm, _ = it.opened("calm")
        client = it.client(garbage)
        _, _, handle, number, _ = it.wait_for(intake.FAULT)
        assert intake.fault_text(number)[0] in (0x81, 0x82)
        it.intake.end(handle, b"bye")
        assert exactly(client, 10) == b"bye"
        client.close()
        it.wait_for(intake.CLOSED, handle)
        calm.sendall(PINGREQ)
        assert exactly(calm, 2) == PINGRESP


def test_failed_stream(tmp_path):
    """Whoever waits for a stream that failed is told of; others go on."""
    with thread(tmp_path, routes=(("good/#", "telemetry"), ("#", "other"))) as (it, recording):
        it.group.set_routes(mqtt.Routes([(b"good/#", 0), (b"#", recording.broken_partition("broken"))]))
        calm, _ = it.opened("calm")
        client, handle = it.opened("unlucky")
        client.sendall(publish("bad", b"x", qos=1, packet_id=1))
        assert it.wait_for(intake.FAILED, handle)[3] == 0
        it.intake.end(handle, b"")
        client.close()
        assert it.wait_for(intake.CLOSED, handle)[3] == 1
        calm.sendall(publish("good/a", b"x", qos=1, packet_id=2))
        assert exactly(calm, 4) == puback(2)


def test_session_is_free_when_its_connection_was_ended(tmp_path):
    """A client that comes back takes its session over; the old connection hears its last word."""
    session = mqtt.Session(b"key", b"client", durable=False, inflight_max=10)
    with thread(tmp_path) as (it, _):
        old, old_handle = it.opened(session=session)
        client = it.client(connect(4))
        handle = it.wait_for(intake.PACKET)[2]
        it.intake.end(old_handle, b"bye")
        it.accept(handle, session=session)
        assert exactly(client, 4) == CONNACK
        assert exactly(old, 10) == b"bye"
        it.wait_for(intake.DETACHED, old_handle)
        client.sendall(publish("a", b"x", qos=2, packet_id=1))
        assert exactly(client, 4) == b"\x50\x02\x00\x01"
        it.intake.abort(handle)
        it.wait_for(intake.CLOSED, handle)
        assert session.unreleased == [(1, 1)]


def test_rate_limit(tmp_path):
    """A client that is too fast is read from later; nothing is lost, others do not notice."""
    with thread(tmp_path) as (it, _):
        client, _ = it.opened(rate_messages=100.0)
        calm, _ = it.opened("calm")
        client.sendall(b"".join(publish("a", b"x", qos=1, packet_id=index) for index in range(1, 151)))
        wait_until(lambda: it.counter("resting") == 1, "it rests")
        calm.sendall(publish("a", b"x", qos=1, packet_id=1))
        assert exactly(calm, 4) == puback(1)
        assert exactly(client, 600) == b"".join(puback(index) for index in range(1, 151))


def test_routes_changed_while_it_runs(tmp_path):
    """New routes hold for what comes after them."""
    with thread(tmp_path, routes=(("a", "telemetry"),)) as (it, recording):
        client, _ = it.opened()
        client.sendall(publish("b", b"lost"))
        assert it.wait_for(intake.UNROUTED)[3:] == (1, b"b")
        it.intake.set_routes(it.listener, mqtt.Routes([(b"b", recording.partition("other"))]))
        wait_until(lambda: it.intake.settled, "the thread has the routes")
        client.sendall(publish("b", b"kept", qos=1, packet_id=1))
        assert exactly(client, 4) == puback(1)
        assert [row[3] for row in recording.records("other")] == [b"kept"]


def test_pause(tmp_path):
    """A paused listener reads nothing and loses nothing."""
    with thread(tmp_path) as (it, recording):
        client, _ = it.opened()
        it.intake.pause(it.listener)
        wait_until(lambda: it.intake.settled, "it is paused")
        client.sendall(publish("a", b"later", qos=1, packet_id=1))
        it.intake.unpause(it.listener)
        assert exactly(client, 4) == puback(1)
        assert len(recording.records("telemetry")) == 1
