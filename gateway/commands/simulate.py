"""``gateway simulate``: sensors and cameras to try things with, against this gateway or any other program."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from gateway.commands.common import command_with_examples, say
from gateway.errors import UsageError

if TYPE_CHECKING:
    from gateway.simulate.camera import CameraServer

_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Say on stdout, as one JSON object a line, when ready and what was done."
)
_seconds_option = click.option("--seconds", type=click.FloatRange(min=0.1), help="Stop after so long; default: Ctrl-C.")
_eof_option = click.option("--until-eof", is_flag=True, hidden=True, help="Stop when stdin closes.")


@click.group("simulate")
def command() -> None:
    """Play sensors or cameras, to try things with."""


@command_with_examples(
    "camera",
    "Serve moving pictures over RTSP.",
    """
    gateway simulate camera
    gateway simulate camera --name gate-1 --name gate-2 --size 1280x720 --fps 25
    gateway simulate camera --loop 2 --count 200 --size 1920x1080 --fps 25 --bit-rate 4000000
    GATEWAY_CAMERA_PASSWORD=secret gateway simulate camera --username viewer --authentication sha-256
    gateway simulate camera --faults
    """,
)
@click.option("--name", "names", multiple=True, help="Its path; repeatable.  [default: cam-1]")
@click.option("--count", type=click.IntRange(1, 2_000), help="So many cameras instead, cam-1, cam-2, …")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8554, show_default=True, help="0 takes a free one.")
@click.option("--size", default="640x360", show_default=True, help="Of the picture, in pixels.")
@click.option("--fps", type=click.IntRange(1, 120), default=15, show_default=True, help="Frames per second.")
@click.option("--codec", type=click.Choice(["h264", "h265", "jpeg"]), default="h264", show_default=True)
@click.option(
    "--bit-rate", type=click.IntRange(10_000), default=None, help="Bits per second; by default as the size needs."
)
@click.option("--gop", type=click.FloatRange(0.05, 600), default=2.0, show_default=True, help="Seconds to a key frame.")
@click.option(
    "--loop",
    type=click.FloatRange(0.1, 60),
    help="All play one loop of so many seconds instead of live pictures: hundreds of cameras cost little.",
)
@click.option("--b-frames", type=click.IntRange(0, 8), default=0, help="Between two others, with --loop only.")
@click.option("--username", help="Ask for this user …")
@click.option("--password", envvar="GATEWAY_CAMERA_PASSWORD", help="… and this password; or GATEWAY_CAMERA_PASSWORD.")
@click.option(
    "--authentication",
    type=click.Choice(["basic", "md5", "md5-qop", "sha-256"]),
    default="md5",
    show_default=True,
    help="How they are asked for.",
)
@click.option("--timezone", default="UTC", show_default=True, help="Of the clock in the picture.")
@click.option("--journal", type=click.Path(path_type=Path, dir_okay=False), help="Write down every access unit sent.")
@click.option("--faults", is_flag=True, help="Show which faults can be asked for in a camera's URL.")
@_seconds_option
@_json_option
@_eof_option
def camera(**options: Any) -> None:
    """Serve moving pictures over RTSP, with a clock and a frame number burnt in.

    What a camera shall do wrong is asked for in its URL: rtsp://127.0.0.1:8554/cam-1?loss=1&switch=3; see --faults.
    """
    if options["faults"]:
        _show_faults(options["as_json"])
        return

    import uvloop

    server = _camera_server(**options)

    async def serve() -> None:
        async with _until_told(options["seconds"], options["until_eof"]) as told:
            await server.start()
            try:
                text = "\n".join(["Serving:", *server.urls.values()])
                _ready(options["as_json"], {"cameras": server.urls}, text)
                await told.wait()
            finally:
                await server.stop()
        _done(options["as_json"], server.statistics())

    uvloop.run(serve())


def _show_faults(as_json: bool) -> None:
    from gateway.simulate.faults import table

    faults = table()
    width = max(len(name) for name, _ in faults)
    click.echo(json.dumps(dict(faults)) if as_json else "\n".join(f"{name:{width}}  {what}" for name, what in faults))


def _camera_server(
    *,
    names: tuple[str, ...],
    count: int | None,
    size: str,
    fps: int,
    gop: float,
    codec: str,
    bit_rate: int | None,
    loop: float | None,
    b_frames: int,
    username: str | None,
    password: str | None,
    authentication: str,
    journal: Path | None,
    timezone: str,
    host: str,
    port: int,
    **_others: object,
) -> CameraServer:
    """The cameras that the options ask for."""
    from gateway.simulate.camera import CameraServer, loop_cameras
    from gateway.simulate.clips import make_clip
    from gateway.simulate.journal import JournalFile

    if names and count is not None:
        raise UsageError("--name and --count exclude each other: names are given one by one, or counted.")
    if b_frames and loop is None:
        raise UsageError("--b-frames needs --loop: live pictures go out at once.")
    every = list(names) or [f"cam-{number}" for number in range(1, (count or 1) + 1)]
    width, height = _size(size)
    picture: dict[str, Any] = {
        "width": width, "height": height, "fps": fps, "gop_s": gop, "bit_rate": bit_rate or 0, "codec": codec
    }  # fmt: skip
    cameras: list[str] | dict[str, Any] = every
    if loop is not None:
        try:
            clip = make_clip(every[0], seconds=loop, b_frames=b_frames, alternative=True, **picture)
        except ValueError as error:
            raise UsageError(f"The loop cannot be made: {error}.") from None
        cameras = loop_cameras(every, clip)
    return CameraServer(
        cameras,
        host=host,
        port=port,
        username=username,
        password=password if username is not None else None,
        authentication_kind=authentication,
        zone=_zone(timezone),
        journal_file=JournalFile(journal) if journal is not None else None,
        **picture,
    )


command.add_command(camera)


@command_with_examples(
    "sensors",
    "Publish changing values over MQTT.",
    """
    gateway simulate sensors
    gateway simulate sensors --to mqtt://127.0.0.1:1883 --count 1000 --rate 5000 --qos 1
    gateway simulate sensors --count 100000 --rate max --payload binary --seconds 30
    """,
)
@click.option("--to", "url", default="mqtt://127.0.0.1:1883", show_default=True, help="A listener, or any broker.")
@click.option("--count", type=click.IntRange(1, 10_000_000), default=100, show_default=True, help="Sensors.")
@click.option("--rate", help="Messages per second of all together, or 'max'; default: one a second from each.")
@click.option("--qos", type=click.IntRange(0, 1), default=0, show_default=True, help="Quality of service.")
@click.option("--payload", type=click.Choice(["json", "binary"]), default="json", show_default=True, help="Its form.")
@click.option("--connections", type=click.IntRange(1, 1_000), help="TCP connections that the sensors share.")
@click.option("--topic", help="Pattern with {line}, {sensor}, {quantity}, {number}.")
@click.option("--username", help="Who publishes …")
@click.option("--password", envvar="GATEWAY_MQTT_PASSWORD", help="… and the password; or GATEWAY_MQTT_PASSWORD.")
@_seconds_option
@_json_option
@_eof_option
def sensors(
    url: str,
    count: int,
    rate: str | None,
    qos: int,
    payload: Literal["json", "binary"],
    connections: int | None,
    topic: str | None,
    username: str | None,
    password: str | None,
    seconds: float | None,
    as_json: bool,
    until_eof: bool,
) -> None:
    """Publish slowly changing readings over MQTT, as fast as the server takes them at most."""
    from gateway.simulate.sensors import DEFAULT_TOPIC, SensorSimulator

    async def play() -> None:
        simulator = SensorSimulator(
            url,
            count=count,
            rate=_rate(rate),
            qos=qos,
            payload=payload,
            connections=connections,
            topic=topic if topic is not None else DEFAULT_TOPIC,
            username=username,
            password=password if username is not None else None,
        )
        async with _until_told(seconds, until_eof) as told:
            await simulator.start()
            try:
                _ready(as_json, {"to": url, "sensors": count}, f"{count:,} sensors publish to {url}.")
                await told.wait()
            finally:
                await simulator.stop()
        _done(as_json, simulator.statistics())

    asyncio.run(play())


command.add_command(sensors)


def _rate(text: str | None) -> float | None:
    if text is None or text == "max":
        return None if text is None else math.inf
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UsageError(f"--rate {text!r} is not a number of messages per second; write for example 5000, or max.")
    return rate


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text!r} is not WIDTHxHEIGHT; write for example 640x360.")
    return int(width), int(height)


def _zone(name: str) -> Any:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(f"--timezone {name!r} is not known; write for example Europe/Berlin.") from None


def _ready(as_json: bool, facts: dict[str, Any], text: str) -> None:
    click.echo(json.dumps({"ready": True, **facts}) if as_json else text)
    sys.stdout.flush()


def _done(as_json: bool, counters: dict[str, Any]) -> None:
    if as_json:
        click.echo(json.dumps(counters))
    else:
        say(", ".join(f"{name.replace('_', ' ')}: {value:,}" for name, value in counters.items()))


@asynccontextmanager
async def _until_told(seconds: float | None, until_eof: bool) -> AsyncIterator[asyncio.Event]:
    """An event that is set by SIGINT, SIGTERM, the end of the time, or the end of stdin."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    timer = loop.call_later(seconds, told.set) if seconds is not None else None
    if until_eof:
        threading.Thread(target=_wait_for_eof, args=(loop, told), name="stdin", daemon=True).start()
    try:
        yield told
    finally:
        if timer is not None:
            timer.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _wait_for_eof(loop: asyncio.AbstractEventLoop, told: asyncio.Event) -> None:
    while os.read(0, 4096):
        continue
    with contextlib.suppress(RuntimeError):  # the loop may be closed by now
        loop.call_soon_threadsafe(told.set)
