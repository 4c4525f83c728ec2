"""Packets that libav's muxer made, and images that libjpeg wrote, come back as they were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from gateway_native.rtp import Receiver, Unit

from gateway import nal
from tests.support.rtp_muxer import HEIGHT, WIDTH, encode
from tests.support.rtp_packets import PAYLOAD_TYPE, T0, Packet, packetize_jpeg, packets, receive

X264 = "scenecut=0:log-level=none:"


def decoded(image: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return found


def fed(receiver: Receiver, frames: list[bytes]) -> list[Unit]:
    return [unit for frame in frames for unit in receiver.feed(frame, T0)] + receiver.end()


@pytest.mark.parametrize(
    ("encoder", "codec", "options"),
    [
        ("libx264", "h264", {"preset": "ultrafast", "x264-params": X264 + "keyint=12:bframes=2"}),
        ("libx264", "h264", {"preset": "medium", "x264-params": X264 + "keyint=12:bframes=3:open-gop=1:slices=3"}),
        ("libx264", "h264", {"preset": "ultrafast", "x264-params": X264 + "keyint=10:aud=1:intra-refresh=1:qp=20"}),
        ("libx265", "h265", {"preset": "ultrafast", "x265-params": "keyint=12:bframes=3:open-gop=1:log-level=none"}),
    ],
    ids=["h264", "h264 open gop, slices", "h264 intra refresh", "h265"],
)
def test_libav_packets(encoder: str, codec: str, options: dict[str, str]) -> None:
    """Access units, key flags and time stamps are the encoder's."""
    sent = encode(encoder, options)
    receiver = Receiver(codec)
    found = fed(receiver, sent.frames)
    assert [unit.value for unit in found] == [nal.join(nal.split(value)) for value in sent.values]
    assert [unit.key for unit in found] == sent.keys
    assert [unit.pts - found[0].pts for unit in found] == [ticks - sent.ticks[0] for ticks in sent.ticks]
    assert not any(unit.damaged or unit.lost or unit.lost_packets for unit in found)
    assert receiver.statistics["reports"] >= 1
    assert receiver.statistics["goodbyes"] == receiver.statistics["unsupported_packets"] == 0


def test_libav_jpeg() -> None:
    """The image decodes to the same pixels."""
    sent = encode("mjpeg", {"huffman": "default", "qmin": "3", "qmax": "5"}, pictures=4, pixels="yuvj420p")
    found = fed(Receiver("jpeg"), sent.frames)
    assert len(found) == 4
    assert all(unit.key and not unit.damaged for unit in found)
    for unit, value in zip(found, sent.values, strict=True):
        assert np.array_equal(decoded(unit.value), decoded(value))


# -- libjpeg's images through a packetizer of ours --------------------------------------------------------------------


class Jpeg:
    """A JPEG that libjpeg wrote, taken apart."""

    def __init__(self, *, quality: int = 70, sampling: int = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, restart: int = 0):
        noise = np.random.default_rng(quality).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        image = noise.repeat(8, axis=0).repeat(8, axis=1)
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        _, data = cv2.imencode(".jpg", image, [*options, cv2.IMWRITE_JPEG_RST_INTERVAL, restart])
        self.image = data.tobytes()
        self.tables = b""
        self.restart = 0
        at = 2
        while True:
            marker, size = self.image[at + 1], int.from_bytes(self.image[at + 2 : at + 4], "big")
            content = self.image[at + 4 : at + 2 + size]
            if marker == 0xDB:
                self.tables += content[1:]
            elif marker == 0xDD:
                self.restart = int.from_bytes(content, "big")
            at += 2 + size
            if marker == 0xDA:
                break
        self.scan = self.image[at:]
        self.kind = 1 if sampling == cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 else 0

    def payloads(self, **changes: object) -> list[bytes]:
        options = {"width": WIDTH, "height": HEIGHT, "kind": self.kind, "tables": self.tables, "restart": self.restart}
        return packetize_jpeg(self.scan, **{**options, **changes})  # type: ignore[arg-type]


def received(sent: list[Packet], **options: object) -> list[Unit]:
    return receive(Receiver("jpeg", payload_type=PAYLOAD_TYPE, **options), sent)  # type: ignore[arg-type]


@pytest.mark.parametrize("restart", [0, 10])
@pytest.mark.parametrize("sampling", [cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422])
def test_jpeg_tables_in_band(sampling: int, restart: int) -> None:
    """4:2:0 and 4:2:2, with and without restart intervals; the scan is as it was, and so are the pixels."""
    jpeg = Jpeg(sampling=sampling, restart=restart)
    assert jpeg.restart == restart
    found = received(packets([jpeg.payloads()]))
    assert [(unit.key, unit.damaged) for unit in found] == [(True, False)]
    assert found[0].value.endswith(jpeg.scan)
    assert np.array_equal(decoded(found[0].value), decoded(jpeg.image))


@pytest.mark.parametrize("quality", [1, 49, 50, 75, 99])
def test_jpeg_tables_from_q(quality: int) -> None:
    """RFC 2435's tables for Q are libjpeg's for that quality (appendix A)."""
    jpeg = Jpeg(quality=quality)
    found = received(packets([jpeg.payloads(quality=quality, tables=b"")]))
    assert np.array_equal(decoded(found[0].value), decoded(jpeg.image))


def test_jpeg_tables_that_were_said_before() -> None:
    """From Q = 128 on tables may be left out when they are as the last time, but not for Q = 255."""
    jpeg = Jpeg()
    first, again = jpeg.payloads(quality=200), jpeg.payloads(quality=200, tables=b"")
    found = received(packets([first, again]))
    assert [unit.value for unit in found] == [found[0].value] * 2
    receiver = Receiver("jpeg")
    found = receive(
        receiver, packets([jpeg.payloads(), jpeg.payloads(tables=b""), jpeg.payloads(quality=130, tables=b"")])
    )
    assert len(found) == 1
    assert receiver.statistics["lost_units"] == 2


def test_jpeg_of_16_bit_tables() -> None:
    """Their precision is said by a bit each."""
    jpeg = Jpeg()
    wide = b"".join(number.to_bytes(2, "big") for number in jpeg.tables)
    found = received(packets([jpeg.payloads(tables=wide, precision=3)]))
    assert found[0].value.count(b"\xff\xdb\x00\x83") == 2
    assert np.array_equal(decoded(found[0].value), decoded(jpeg.image))


def test_jpeg_size_of_the_sdp() -> None:
    """What has no room in the payload's header, the session description says; without it nothing can be shown."""
    jpeg = Jpeg()
    sent = packets([jpeg.payloads(width=0, height=0)])
    assert np.array_equal(decoded(received(sent, jpeg_size=(WIDTH, HEIGHT))[0].value), decoded(jpeg.image))
    assert received(sent) == []


def test_jpeg_with_a_hole() -> None:
    """The image ends there and is flagged; without its beginning it is lost. Nothing is joined across the hole."""
    jpeg = Jpeg()
    sent = packets([jpeg.payloads()] * 3)
    count = len(sent) // 3
    for missing in range(count):
        receiver = Receiver("jpeg")
        found = receive(receiver, sent[: count + missing] + sent[count + missing + 1 :])
        assert sum(unit.lost_packets for unit in found) == 1
        assert found[0].value == found[-1].value
        if missing == 0:
            assert [(unit.lost, unit.damaged) for unit in found] == [(0, False), (1, False)]
        else:
            assert [unit.damaged for unit in found] == [False, True, missing == count - 1]
            assert found[0].value.startswith(found[1].value[:-2])
            assert len(found[1].value) < len(found[0].value) - 1_000 or missing == count - 1
            assert decoded(found[1].value).shape == (HEIGHT, WIDTH, 3)


def test_jpeg_without_its_end() -> None:
    """EOI is added where a camera leaves it out, and the camera's own is not repeated."""
    jpeg = Jpeg()
    jpeg.scan = jpeg.scan[:-2]
    value = received(packets([jpeg.payloads()]))[0].value
    assert value.endswith(jpeg.scan + b"\xff\xd9")


@pytest.mark.parametrize("kind", [2, 3, 66, 128])
def test_jpeg_of_another_kind(kind: int) -> None:
    """Only what is specified is decodable; anything else is counted."""
    receiver = Receiver("jpeg")
    sent = packets([[payload[:4] + bytes([kind]) + payload[5:] for payload in Jpeg().payloads()]])
    assert receive(receiver, sent) == []
    assert receiver.statistics["unsupported_packets"] == 1
    assert receiver.statistics["lost_units"] == 1
