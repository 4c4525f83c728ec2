"""The camera thread: what sockets do to it, what it says of cameras, and that one camera's trouble is its own."""

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import os
import socket
import struct
import time
from dataclasses import replace

import pytest
from gateway_native import camera_thread as native
from gateway_native import ring as native_ring
from gateway_native import rtp
from gateway_native.camera_thread import Camera, CameraThread

from gateway import nal
from tests.support.cameras import cameras, headers, send, values
from tests.support.native import wait_until
from tests.support.rtp_packets import FRAME, Packet, goodbye, packetize_h264, packetize_jpeg, packets, sender_report

SPS, PPS = b"\x67\x42\x00\x1f\x8c", b"\x68\xce\x3c"
OTHER_SPS = b"\x67\x42\x00\x20\x8c"
IDR = b"\x65\x88" + bytes(range(1, 255)) * 20
SLICE = b"\x41\x9a" + bytes(range(1, 255)) * 10
KEY, OTHER = [SPS, PPS, IDR], [SLICE]
REPLY = b"RTSP/1.0 200 OK\r\nCSeq: 4\r\n\r\n"
HOLD_US = 200_000
REPORT = struct.Struct(">BBHII")


def h264(units: list[list[bytes]], **options: int) -> list[Packet]:
    return packets([packetize_h264(each) for each in units], **options)


def stream(pictures: int, gop: int = 5) -> list[list[bytes]]:
    """Pictures that differ from each other."""
    return [
        [SPS, PPS, IDR + b"%d" % number] if number % gop == 0 else [SLICE + b"%d" % number]
        for number in range(pictures)
    ]


def recorded(camera: Camera, count: int) -> None:
    wait_until(lambda: camera.statistics["units"] >= count, f"{count} units of {camera.statistics}")


# -- records ----------------------------------------------------------------------------------------------------------


def test_records(tmp_path) -> None:
    """Key, value and headers are those of FORMAT.md."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera()
        theirs, handle = it.connect(camera)
        before_ns = time.time_ns()
        sent = h264([KEY, OTHER, OTHER], timestamp=1_000)
        send(theirs, [*sent[:6], sender_report(1_000, 1_700_000_000 * 10**9), *sent[6:]])
        recorded(camera, 3)
        it.remove(handle)
        rows = recording.records("gate")
        assert values(rows) == [nal.join(KEY), nal.join(OTHER), nal.join(OTHER)]
        run = str(camera.run)
        assert [headers(row) for row in rows] == [
            {"codec": "h264", "keyframe": "1", "pts": "1000", "run": run},
            {"codec": "h264", "pts": "4600", "run": run, "source_time": "1700000000040000000"},
            {"codec": "h264", "pts": "8200", "run": run, "source_time": "1700000000080000000"},
        ]
        assert {row[2] for row in rows} == {b"gate"}
        assert all(before_ns // 10**6 <= row[1] <= time.time_ns() // 10**6 for row in rows)
        assert it.wait_for(native.RUN)[1:] == (handle, camera.run, b"")
        assert it.wait_for(native.PICTURE)[1:] == (handle, 0, SPS)


def test_loss_is_in_the_records(tmp_path) -> None:
    """Lost packets, damage and lost pictures stand in headers, and what is lost is told for a gap record."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera()
        theirs, handle = it.connect(camera)
        sent = h264([KEY, [SLICE[:900], SLICE], OTHER, OTHER])
        second = [each for each in sent if each.unit == 1]
        third = [each for each in sent if each.unit == 2]
        send(theirs, [each for each in sent if each not in (second[1], third[0])])
        recorded(camera, 3)
        it.remove(handle)
        kind, _, reason, data = it.wait_for(native.LOST)
        assert (kind, reason, native.LOSS.unpack(data)[:2]) == (native.LOST, native.LOST_PACKETS, (2, 0))
        rows = recording.records("gate")
        assert values(rows) == [nal.join(KEY), nal.join([SLICE[:900]]), nal.join(OTHER)]
        told = [{name: headers(row).get(name) for name in ("lost", "lost_packets", "damaged")} for row in rows]
        assert told == [
            {"lost": None, "lost_packets": None, "damaged": None},
            {"lost": None, "lost_packets": "1", "damaged": "1"},
            {"lost": "1", "lost_packets": "1", "damaged": None},
        ]


def test_ring_without_room(tmp_path) -> None:
    """Pictures are given up to the next key frame that fits; the loss is counted, told, and in the next record."""
    with cameras(tmp_path, ring_bytes=2**16, start=False) as (it, recording):
        camera = it.camera()
        theirs, handle = it.connect(camera)
        sent = stream(60)
        send(theirs, h264(sent))
        wait_until(lambda: camera.statistics["units"] + camera.statistics["lost_units"] == 60, "all pictures")
        kept = camera.statistics["units"]
        assert kept < 60
        recording.start()
        recording.flush()
        send(theirs, h264(stream(5), sequence=len(h264(sent)), timestamp=60 * FRAME))
        recorded(camera, kept + 5)
        it.remove(handle)
        _, _, reason, data = it.wait_for(native.LOST)
        count, size, first_ns, last_ns = native.LOSS.unpack(data)
        assert (reason, count) == (native.LOST_ROOM, 60 - kept)
        assert size == sum(len(nal.join(each)) for each in sent[kept:])
        assert 0 < first_ns <= last_ns
        rows = recording.records("gate")
        assert values(rows) == [nal.join(each) for each in [*sent[:kept], *stream(5)]]
        assert [headers(row).get("lost") for row in rows] == [None] * kept + [str(60 - kept)] + [None] * 4
        assert camera.statistics["lost_units"] == 60 - kept


def test_record_that_is_too_large(tmp_path) -> None:
    """It is lost with what depends on it, and said to be."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera(record_bytes_max=4_000)
        theirs, handle = it.connect(camera)
        small = [SPS, PPS, IDR[:500]]
        send(theirs, h264([small, OTHER, [SLICE + bytes(3_000)], OTHER, small, OTHER]))
        recorded(camera, 4)
        it.remove(handle)
        _, _, reason, data = it.wait_for(native.LOST)
        losses = {reason: native.LOSS.unpack(data)[0]}
        _, _, reason, data = it.wait_for(native.LOST)
        losses[reason] = native.LOSS.unpack(data)[0]
        assert losses == {native.LOST_OVERSIZED: 1, native.LOST_ROOM: 1}
        assert (camera.statistics["oversized"], camera.statistics["lost_units"]) == (1, 2)
        assert values(recording.records("gate")) == [nal.join(each) for each in (small, OTHER, small, OTHER)]


def test_memory_is_bounded(tmp_path) -> None:
    """What exceeds the bound of all cameras together is lost, and other cameras go on."""
    with cameras(tmp_path, memory_bytes_max=2**16) as (it, _):
        large, small = it.camera("large"), it.camera("small")
        theirs, handle = it.connect(large)
        others, _ = it.connect(small)
        send(theirs, h264([KEY, [SPS, PPS, IDR + bytes(200_000)], KEY]))
        send(others, h264([KEY]))
        recorded(large, 2)
        recorded(small, 1)
        assert large.statistics["lost_units"] == 1
        assert it.native.counters["memory_bytes_peak"] <= 2**16
        it.remove(handle)
        assert it.wait_for(native.LOST)[2] == native.LOST_ROOM


def test_full_disk(tmp_path) -> None:
    """What a full disk refused is missing; recording goes on with the next key frame."""
    with cameras(tmp_path) as (it, recording):
        index = recording.full_partition("gate")
        camera = Camera(b"gate", it.ring, index)
        theirs, handle = it.connect(camera)
        send(theirs, h264([KEY]))
        recorded(camera, 1)
        wait_until(lambda: recording.writer.partition_state(index)["refused"] == 1, "the disk refuses")
        send(theirs, h264([OTHER], sequence=6, timestamp=FRAME))
        wait_until(lambda: camera.statistics["lost_units"] == 1, "a picture without its key frame")
        recording.make_room("gate")
        send(theirs, h264([KEY], sequence=6 + len(packetize_h264(OTHER)), timestamp=2 * FRAME))
        recorded(camera, 2)
        it.remove(handle)
        rows = recording.records("gate")
        assert values(rows)[1:] == [nal.join(KEY)]
        assert headers(rows[1])["lost"] == "2"
        assert camera.statistics["refused"] == 1


def test_many_cameras(tmp_path) -> None:
    """Every access unit of each is recorded, byte for byte, in its own stream; chunks are odd."""
    with cameras(tmp_path, ring_bytes=2**22) as (it, recording):
        names = [f"camera-{number}" for number in range(12)]
        sent = {name: [[each[0] + name.encode(), *each[1:]] for each in stream(20)] for name in names}
        all_of = {name: it.camera(name) for name in names}
        ends = {name: it.connect(camera) for name, camera in all_of.items()}
        data = {name: b"".join(each.frame() for each in h264(units, sequence=65_500)) for name, units in sent.items()}
        for at in range(0, max(map(len, data.values())), 3_001):
            for name in names:
                ends[name][0].sendall(data[name][at : at + 3_001])
        for name in names:
            recorded(all_of[name], 20)
            assert values(recording.records(name)) == [nal.join(each) for each in sent[name]]
        assert it.native.counters["connections"] == len(names)


def test_recording_goes_on_while_the_gil_is_held(tmp_path) -> None:
    """Pictures are taken while no Python can run."""
    with cameras(tmp_path) as (it, _):
        camera = it.camera()
        theirs, _ = it.connect(camera)
        send(theirs, h264([KEY]))
        recorded(camera, 1)
        data = b"".join(each.frame() for each in h264([OTHER] * 20, sequence=6, timestamp=FRAME))
        holder = ctypes.PyDLL(None)  # unlike CDLL, it keeps the GIL during the call
        buffer = ctypes.create_string_buffer(data, len(data))
        assert holder.send(theirs.fileno(), buffer, len(data), 0) == len(data)
        holder.usleep(HOLD_US)
        assert camera.statistics["units"] == 21


def test_jpeg(tmp_path) -> None:
    """Its size comes with the event, as there are no parameter sets."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera()
        theirs, handle = it.connect(camera, codec="jpeg")
        tables = bytes(range(1, 129))
        send(theirs, packets([packetize_jpeg(bytes(5_000), width=640, height=480, tables=tables)] * 2))
        recorded(camera, 2)
        assert it.wait_for(native.PICTURE)[1:] == (handle, 640 << 32 | 480, b"")
        rows = recording.records("gate")
        assert [headers(row)["codec"] for row in rows] == ["jpeg"] * 2
        assert values(rows)[0][:2] == b"\xff\xd8"


# -- runs and connections ---------------------------------------------------------------------------------------------


def test_runs_grow(tmp_path) -> None:
    """Each connection is a run with a larger number, and so is what follows a BYE."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera()
        for number in range(3):
            theirs, handle = it.connect(camera)
            send(theirs, [*h264([KEY]), goodbye(), *h264([KEY], sequence=50, timestamp=7)])
            recorded(camera, 2 * number + 2)
            assert it.wait_for(native.GOODBYE)[1] == handle
            it.remove(handle)
        runs = [int(headers(row)["run"]) for row in recording.records("gate")]
        assert runs == sorted(set(runs))
        assert len(runs) == 6
        assert camera.statistics["goodbyes"] == 3
        told = [each[2] for each in it.said if each[0] == native.RUN]
        assert set(told) <= set(runs)
        assert set(told) >= set(runs[1::2]), "of several at once the last one is told"


def test_what_was_received_before(tmp_path) -> None:
    """Bytes that Python read with the reply to PLAY are the stream's beginning."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera()
        data = REPLY + b"".join(each.frame() for each in h264([KEY, OTHER]))
        theirs, _ = it.connect(camera, received=data[:3_000])
        theirs.sendall(data[3_000:])
        recorded(camera, 2)
        assert it.wait_for(native.TEXT)[3] == REPLY
        assert values(recording.records("gate")) == [nal.join(KEY), nal.join(OTHER)]


@pytest.mark.parametrize("how", ["closed", "reset", "garbage", "removed", "chatter"])
def test_why_it_ended(tmp_path, how: str) -> None:
    """The cause is told once, after everything that had come is recorded, and the descriptor is closed."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera()
        if how == "reset":
            with socket.create_server(("127.0.0.1", 0)) as server:
                theirs = socket.create_connection(server.getsockname())
                ours, _ = server.accept()
            handle = it.native.add(ours.detach(), camera, codec="h264")
        else:
            theirs, handle = it.connect(camera)
        send(theirs, h264([KEY]))
        recorded(camera, 1)
        if how == "closed":
            send(theirs, h264([OTHER], sequence=6, timestamp=FRAME)[:-1])
            theirs.close()
        elif how == "reset":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            theirs.close()
        elif how == "garbage":
            theirs.sendall(b"\x00\x01\x02")
        elif how == "removed":
            it.native.remove(handle)
        else:
            theirs.sendall(REPLY * 1_000)
        expected = {
            "closed": (native.ENDED_PEER, b""),
            "reset": (native.ENDED_SOCKET, b"%d" % errno.ECONNRESET),
            "garbage": (native.ENDED_FAULT, b"%d" % rtp.FAULT_GARBAGE),
            "removed": (native.ENDED_REMOVED, b""),
            "chatter": (native.ENDED_CHATTER, b""),
        }[how]
        assert it.wait_for(native.CLOSED)[1:] == (handle, *expected)
        assert expected[0] in native.ENDED
        wait_until(lambda: it.native.counters["connections"] == 0, "no connection")
        assert values(recording.records("gate")) == [nal.join(KEY)]
        if how not in {"reset", "closed"}:
            theirs.settimeout(60)
            while theirs.recv(65_536):
                pass


def test_picture_that_was_cut_off(tmp_path) -> None:
    """What is whole of it is recorded, flagged."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera()
        theirs, _ = it.connect(camera)
        send(theirs, h264([KEY, [SLICE[:500], SLICE]])[:-1])
        theirs.close()
        assert it.wait_for(native.CLOSED)[2] == native.ENDED_PEER
        rows = recording.records("gate")
        assert values(rows) == [nal.join(KEY), nal.join([SLICE[:500]])]
        assert headers(rows[1])["damaged"] == "1"


def test_last_word(tmp_path) -> None:
    """TEARDOWN arrives though the camera goes on sending, and nothing is recorded after `remove`."""
    with cameras(tmp_path) as (it, recording):
        camera = it.camera()
        theirs, handle = it.connect(camera)
        send(theirs, h264([KEY]))
        recorded(camera, 1)
        it.native.remove(handle, b"TEARDOWN")
        it.native.remove(handle, b"again")
        assert theirs.recv(100) == b"TEARDOWN"
        send(theirs, h264([KEY], sequence=6, timestamp=FRAME))
        assert theirs.recv(100) == b""
        theirs.close()
        assert it.wait_for(native.CLOSED)[1:] == (handle, native.ENDED_REMOVED, b"")
        assert len(recording.records("gate")) == 1


def test_handles_are_not_used_again(tmp_path) -> None:
    """A late command for a connection that is gone does nothing to the one that has its place."""
    with cameras(tmp_path, cameras_max=1) as (it, _):
        camera = it.camera()
        _, first = it.connect(camera)
        it.remove(first)
        theirs, second = it.connect(camera)
        assert second != first
        it.native.remove(first, b"TEARDOWN")
        it.native.send(first, b"late")
        it.native.send(second, b"in time")
        assert theirs.recv(100) == b"in time"
        wait_until(lambda: it.native.settled, "commands taken")


def test_impossible_connections(tmp_path) -> None:
    """Our own mistakes are errors, and the descriptor stays the caller's."""
    with cameras(tmp_path, cameras_max=1) as (it, recording):
        camera, other = it.camera(), it.camera("other")
        foreign = Camera(b"x", recording.ring("foreign"), recording.partition("gate"))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for bad, options in (
                (foreign, {"codec": "h264"}),
                (camera, {"codec": "av1"}),
                (camera, {"codec": "h264", "received": bytes(2**20 + 1)}),
                (camera, {"codec": "h264", "rtp_channel": -1}),
            ):
                with pytest.raises(ValueError):
                    it.native.add(ours.fileno(), bad, **options)
            with pytest.raises(OSError, match="Bad file"):
                it.native.add(10**6, camera, codec="h264")
            it.connect(camera)
            with pytest.raises(ValueError, match="has a connection"):
                it.native.add(ours.fileno(), camera, codec="h264")
            with pytest.raises(ValueError, match="may have no more"):
                it.native.add(ours.fileno(), other, codec="h264")
            ours.sendall(b"still open")
        with pytest.raises(ValueError):
            CameraThread(it.ring, cameras_max=0)
        with pytest.raises(IndexError):
            Camera(b"x", it.ring, 15)


def test_connections_leave_nothing_behind(tmp_path) -> None:
    """Descriptors and memory are given back, whenever a connection ends."""
    with cameras(tmp_path) as (it, _):
        camera = it.camera()
        gc.collect()  # what other tests left
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            theirs, handle = it.connect(camera, parameter_sets=[SPS, PPS])
            send(theirs, [h264([KEY])[0].frame(), h264([KEY])[4].frame()[: number * 50]])
            theirs.close()
            it.wait_for(native.CLOSED, handle)
        assert it.native.counters["memory_bytes"] == 0
        assert len(os.listdir("/proc/self/fd")) == before


def test_objects_that_never_ran(tmp_path) -> None:
    """Without its thread, and with connections left, everything is closed with the object."""
    with cameras(tmp_path) as (it, recording):
        thread = CameraThread(recording.ring("second"))
        camera = Camera(b"x", thread_ring := recording.ring("third"), recording.partition("gate"))
        thread = CameraThread(thread_ring)
        ours, theirs = socket.socketpair()
        thread.add(ours.detach(), camera, codec="h264", parameter_sets=[SPS], received=b"abc")
        del thread
        with theirs:
            assert theirs.recv(10) == b""
        it.connect(it.camera(), parameter_sets=[SPS, PPS])
        wait_until(lambda: it.native.settled, "added")


# -- what is said -----------------------------------------------------------------------------------------------------


def test_changes_are_told(tmp_path) -> None:
    """New parameter sets come as an event, flapping ones too, and all of them without a new run."""
    with cameras(tmp_path) as (it, _):
        camera = it.camera()
        theirs, _ = it.connect(camera)
        sets = [SPS, OTHER_SPS, SPS, OTHER_SPS]
        send(theirs, h264([[each, PPS, IDR] for each in sets]))
        recorded(camera, 4)
        wait_until(lambda: it.native.settled, "told")
        assert it.wait_for(native.PICTURE)[3] in {SPS, OTHER_SPS}
        assert camera.statistics["parameter_changes"] == 3
        assert [each[0] for each in it.said].count(native.RUN) <= 1


def test_events_are_bounded(tmp_path) -> None:
    """A camera that begins runs all the time says so some times a second only; the last one is said in the end."""
    with cameras(tmp_path) as (it, _):
        camera = it.camera()
        theirs, handle = it.connect(camera)
        sent = [replace(each, ssrc=number) for number in range(200) for each in h264([[SPS, PPS, IDR[:100]]])]
        for number in range(0, len(sent), 30):
            send(theirs, sent[number : number + 30])
            recorded(camera, number // 3 + 10)
        it.remove(handle)
        said = [each for each in it.said if each[0] == native.RUN]
        assert 1 <= len(said) < 200
        assert camera.statistics["ssrc_changes"] == 199


def test_receiver_reports_and_stall(tmp_path) -> None:
    """Reports are sent every five seconds; a camera without pictures is said to be stalled, and to have resumed."""
    with cameras(tmp_path) as (it, _):
        camera = it.camera()
        theirs, handle = it.connect(camera)
        silent, other = it.connect(it.camera("silent"))
        send(theirs, h264([KEY]))
        head, kind, words, _, ssrc = REPORT.unpack(theirs.recv(100)[4:16])
        assert (head, kind, words, ssrc) == (0x81, 201, 7, 0xCAFE)
        stalled = {it.wait_for(native.STALLED)[1] for _ in range(2)}
        assert stalled == {handle, other}
        send(theirs, h264([OTHER], sequence=6, timestamp=FRAME))
        assert it.wait_for(native.RESUMED)[1] == handle
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.recv(1)  # no report about nothing


def test_send_keeps_order(tmp_path) -> None:
    """What the socket does not take at once is sent when it does, in order; too much of it ends the connection."""
    with cameras(tmp_path) as (it, _):
        theirs, handle = it.connect(it.camera())
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        messages = [b"%06d" % number * 1_000 for number in range(40)]
        for each in itertools.takewhile(lambda each: each != messages[30], messages):
            it.native.send(handle, each)
        wait_until(lambda: it.native.settled, "commands taken")
        found = b""
        while len(found) < 30 * 6_000:
            found += theirs.recv(65_536)
        assert found == b"".join(messages[:30])
        for each in messages * 20:
            it.native.send(handle, each)
        assert it.wait_for(native.CLOSED)[1:] == (handle, native.ENDED_DEAF, b"")


def test_statistics(tmp_path) -> None:
    """Rates and times of the last pictures; after the connection they are zero, and counters stay."""
    with cameras(tmp_path) as (it, _):
        camera = it.camera()
        assert (camera.run, camera.statistics["fps"], camera.statistics["last_unit_ns"]) == (0, 0.0, 0)
        theirs, handle = it.connect(camera)
        for number in range(6):
            send(theirs, h264([KEY], sequence=number * 6, timestamp=number * FRAME))
            recorded(camera, number + 1)
        found = camera.statistics
        assert found["keyframes"] == found["units"] == 6
        assert found["bytes"] == 6 * len(nal.join(KEY))
        assert found["packets"] == 36
        assert found["fps"] > 0
        assert 0 < found["last_key_ns"] == found["last_unit_ns"] <= time.time_ns()
        wait_until(lambda: camera.statistics["bits_per_second"] > 0, "a bit rate")
        it.remove(handle)
        assert (camera.statistics["fps"], camera.statistics["bits_per_second"]) == (0.0, 0.0)
        assert camera.statistics["units"] == 6


def test_key_frames_open_batches(tmp_path) -> None:
    """They are marked in the ring, so that reading can begin at a batch."""
    with cameras(tmp_path, start=False) as (it, recording):
        camera = it.camera()
        theirs, _ = it.connect(camera)
        send(theirs, h264([KEY, OTHER, KEY]))
        recorded(camera, 3)
        assert native_ring.KEYFRAME == 1
        recording.start()
        recording.flush()
        segment = next((tmp_path / "gate-0").glob("*.log")).read_bytes()
        from gateway_native import batch

        firsts = [found[2] for found in batch.scan(segment, 0)[0]]
        assert firsts == [0, 2]
