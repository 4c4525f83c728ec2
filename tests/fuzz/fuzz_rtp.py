"""A camera's connection under atheris: ``python -m tests.fuzz.fuzz_rtp [options of libFuzzer] [directory of inputs]``.

See fuzzing.py for how.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.fuzzing import OneInput, fuzz

# Longer inputs take longer and find no more: what is large is tested elsewhere.
INPUT_BYTES_MAX = 4_000


def streams() -> dict[str, bytes]:
    """What cameras send: codec and option bytes, then frames small enough to be changed with effect."""
    from tests.support import rtp_packets as made

    slice_, idr = b"\x41\x9a" + bytes(range(1, 200)), b"\x65\x88" + bytes(range(1, 200))
    slice5, idr5 = b"\x02\x01\xd0" + bytes(range(1, 200)), b"\x26\x01\xaf" + bytes(range(1, 200))
    sets = [b"\x67\x42\x00\x1f", b"\x68\xce"]
    sets5 = [b"\x40\x01\x0c\x01", b"\x42\x01\x01\x01", b"\x44\x01\xc1"]
    h264 = made.packets(
        [
            [made.stap_a(sets), *made.packetize_h264([idr], 60)],
            made.packetize_h264([slice_], 70),
            [b"\x06\x06\x01\x80", slice_],
        ]
    )
    h265 = made.packets(
        [[made.aggregate_h265(sets5), *made.packetize_h265([idr5], 60)], made.packetize_h265([slice5], 70)]
    )
    options = {"width": 64, "height": 48, "payload_bytes_max": 300}
    jpeg = made.packets(
        [
            made.packetize_jpeg(bytes(500), tables=bytes(range(1, 129)), **options),
            made.packetize_jpeg(bytes(400), quality=50, restart=4, **options),
        ]
    )
    reply = b"RTSP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab"
    control = made.sender_report(7, made.T0) + reply
    found = {}
    for number, (name, sent) in enumerate({"h264": h264, "h265": h265, "jpeg": jpeg}.items()):
        frames = [each.frame() for each in sent]
        found[name] = bytes([number, 50, 100, 150]) + b"".join([*frames[:3], control, *frames[3:], made.goodbye()])
        found[f"{name}-loss"] = bytes([number | 28, 9, 99, 199]) + b"".join([*frames[:2], *frames[3:], frames[1]])
    return found


def seed(directory: Path) -> None:
    """Inputs to begin with."""
    for name, data in streams().items():
        (directory / name).write_bytes(data)


def target() -> OneInput:
    """The receiver's own module comes after the library that counts its branches."""
    from tests.fuzz.target_rtp import run

    return run


if __name__ == "__main__":
    fuzz(target, seed, INPUT_BYTES_MAX)
