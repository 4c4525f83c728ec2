"""What a camera at an address offers, and what it really sends; or why it cannot be recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from gateway import nal
from gateway.clock import NS_PER_S, realtime_ns
from gateway.config import CameraConfig
from gateway_adapters.rtsp.access_units import Packet
from gateway_adapters.rtsp.failures import Failure, scrub, with_credentials
from gateway_adapters.rtsp.native_session import Connected, Credentials, connect
from gateway_adapters.rtsp.protocol import Client
from gateway_adapters.rtsp.sdp import Track

_RECEIVE_BYTES = 2**18


async def probe(config: CameraConfig, *, seconds: float) -> dict[str, Any]:
    """A report that JSON can show. Never raises for what the camera does: `state` is "ok" or that of a `Failure`.

    url, engine, state, cause ("" when ok); if it answered: server, authentication, redirected_to, tracks (kind,
    encoding, codec, payload_type, width, height, claimed_fps, control, recorded); if watched for `seconds` > 0:
    measured (seconds, access_units, keyframes, fps, bits_per_second, keyframe_interval_s, lost_packets, codec, width,
    height, sender_reports).
    """
    report: dict[str, Any] = {"url": config.url, "engine": config.engine_used, "state": "ok", "cause": ""}
    look = _native if config.engine_used == "native" else _pyav
    try:
        await look(config, seconds, report)
    except Failure as failure:
        report["state"], report["cause"] = failure.state, failure.cause
    return report


async def _native(config: CameraConfig, seconds: float, report: dict[str, Any]) -> None:
    """What is on offer is told also where it cannot be played."""
    clients: list[Client] = []
    redirects: list[str] = []
    try:
        connected = await connect(
            config.url,
            Credentials.of(config),
            config.open_timeout_ns / NS_PER_S,
            describe_only=not seconds,
            on_redirect=redirects.append,
            on_client=clients.append,
        )
    finally:
        _tell_offer(clients[-1] if clients else None, redirects, report)
    try:
        assert connected.client.description is not None
        connected.client.description.video()  # also where nothing is to be played
        if seconds:
            report["measured"] = await _watch(connected, seconds)
    finally:
        await _leave(connected)


def _tell_offer(client: Client | None, redirects: list[str], report: dict[str, Any]) -> None:
    report["redirected_to"] = redirects[-1] if redirects else None
    if client is None:
        return
    report["server"], report["authentication"] = client.server, client.authentication
    if client.description is None:
        return
    report["name"] = client.description.name
    chosen = client.description.chosen
    report["tracks"] = [_track(track, recorded=track is chosen) for track in client.description.tracks]


def _track(track: Track, *, recorded: bool) -> dict[str, Any]:
    width, height = track.size or _size_of(track) or (None, None)
    return {
        "kind": track.kind,
        "encoding": track.encoding,
        "codec": track.codec,
        "payload_type": track.payload_type,
        "width": width,
        "height": height,
        "claimed_fps": track.fps,
        "control": track.control,
        "recorded": recorded,
    }


def _size_of(track: Track) -> tuple[int, int] | None:
    """From the parameter sets in the description, if there are any."""
    codec = nal.CODECS.get(track.codec or "")
    if codec is None:
        return None
    sets = nal.ParameterSets(codec)
    sets.update(track.parameter_sets)
    return sets.size()


async def _watch(connected: Connected, seconds: float) -> dict[str, Any]:
    """Receive for so long. Raises Failure when the camera ends it."""
    from gateway_native import rtp

    playing = connected.client.playing
    assert playing is not None
    track = playing.track
    receiver = rtp.Receiver(
        track.codec or "",
        rtp_channel=playing.rtp_channel,
        rtcp_channel=playing.rtcp_channel,
        payload_type=track.payload_type,
        parameter_sets=track.parameter_sets,
        jpeg_size=track.size or (0, 0),
    )
    seen = _Seen(track.codec or "")
    loop, began, data = asyncio.get_running_loop(), time.monotonic(), connected.rest
    try:
        async with asyncio.timeout(seconds):
            while True:
                for unit in receiver.feed(data, realtime_ns()):
                    value = unit.value if unit.key else b""
                    seen.add(len(unit.value), unit.received_ns, key=unit.key, value=value)
                data = await loop.sock_recv(connected.socket, _RECEIVE_BYTES)
                if not data:
                    raise Failure("closed", "the camera plays, and closes the connection")
    except TimeoutError:
        pass
    except rtp.RemoteFault as fault:
        raise Failure("unsupported", f"the camera broke the protocol: {fault}") from None
    except OSError as error:
        raise Failure("closed", f"the connection broke ({error.strerror or error})") from None
    if not seen.units:
        raise Failure("stalled", f"the camera plays, but no picture came within {seconds:g} s")
    found = receiver.statistics
    return {
        **seen.report(time.monotonic() - began),
        "lost_packets": found.get("lost_packets", 0),
        "sender_reports": found.get("reports", 0),
    }


class _Seen:
    """What came, in figures."""

    def __init__(self, codec: str) -> None:
        self._codec = nal.CODECS.get(codec)
        self._sets = nal.ParameterSets(self._codec) if self._codec else None
        self._first_ns = self._last_ns = 0
        self._key_ns: list[int] = []
        self._bytes = 0
        self.units = 0

    def add(self, size: int, received_ns: int, *, key: bool, value: bytes = b"") -> None:
        """One access unit of so many bytes; value: a key frame's, if its parameter sets are to be looked at."""
        self.units += 1
        self._bytes += size
        self._first_ns = self._first_ns or received_ns
        self._last_ns = received_ns
        if key:
            self._key_ns.append(received_ns)
            if self._sets is not None:
                self._sets.update(nal.split(value))

    def report(self, seconds: float) -> dict[str, Any]:
        passed_s = (self._last_ns - self._first_ns) / NS_PER_S
        keys = len(self._key_ns)
        size = self._sets.size() if self._sets is not None else None
        return {
            "seconds": round(seconds, 1),
            "access_units": self.units,
            "keyframes": keys,
            "fps": round((self.units - 1) / passed_s, 2) if passed_s else None,
            "bits_per_second": round(self._bytes * 8 / passed_s) if passed_s else None,
            "keyframe_interval_s": round((self._key_ns[-1] - self._key_ns[0]) / NS_PER_S / (keys - 1), 2)
            if keys > 1
            else None,
            "width": size[0] if size else None,
            "height": size[1] if size else None,
        }


async def _leave(connected: Connected) -> None:
    """Say goodbye; a camera that does not take it is left anyway."""
    try:
        if connected.client.playing is not None:
            async with asyncio.timeout(1):
                await asyncio.get_running_loop().sock_sendall(connected.socket, connected.client.teardown())
    except (OSError, TimeoutError):
        return
    finally:
        connected.socket.close()


async def _pyav(config: CameraConfig, seconds: float, report: dict[str, Any]) -> None:
    """Through libav, which tells less."""
    await asyncio.to_thread(_pyav_blocking, config, seconds, report)


def _pyav_blocking(config: CameraConfig, seconds: float, report: dict[str, Any]) -> None:
    from gateway_adapters.rtsp.pyav_session import PyavSession

    credentials = Credentials.of(config)
    try:
        session = PyavSession(
            with_credentials(config.url, credentials.username, credentials.password),
            transport=config.transport,
            open_timeout_s=config.open_timeout_ns / NS_PER_S,
            read_timeout_s=config.read_timeout_ns / NS_PER_S,
            video_only=True,
        )
    except Failure as failure:
        raise Failure(failure.state, scrub(failure.cause, credentials.password)) from None
    try:
        width, height = session.size
        track = {"kind": "video", "codec": session.codec, "width": width, "height": height, "recorded": True}
        report["tracks"] = [track]
        if seconds:
            report["measured"] = _pyav_watch(session.packets(), seconds)
    finally:
        session.close()


def _pyav_watch(packets: Iterator[Packet], seconds: float) -> dict[str, Any]:
    seen, began = _Seen(""), time.monotonic()
    for packet in packets:
        seen.add(len(packet.data), packet.returned_ns, key=packet.key)
        if time.monotonic() - began >= seconds:
            return seen.report(time.monotonic() - began)
    raise Failure("closed", "the camera plays, and closes the connection")
