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
from typing import Any, Literal

import click

from gateway.commands.common import command_with_examples, say
from gateway.errors import UsageError

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
    GATEWAY_CAMERA_PASSWORD=secret gateway simulate camera --username viewer
    """,
)
@click.option("--name", "names", multiple=True, default=("cam-1",), show_default=True, help="Its path; repeatable.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65_535), default=8554, show_default=True, help="0 takes a free one.")
@click.option("--size", default="640x360", show_default=True, help="Of the picture, in pixels.")
@click.option("--fps", type=click.IntRange(1, 120), default=15, show_default=True, help="Frames per second.")
@click.option("--username", help="Ask for this user (digest authentication) …")
@click.option("--password", envvar="GATEWAY_CAMERA_PASSWORD", help="… and this password; or GATEWAY_CAMERA_PASSWORD.")
@click.option("--timezone", default="UTC", show_default=True, help="Of the clock in the picture.")
@_seconds_option
@_json_option
@_eof_option
def camera(
    names: tuple[str, ...],
    host: str,
    port: int,
    size: str,
    fps: int,
    username: str | None,
    password: str | None,
    timezone: str,
    seconds: float | None,
    as_json: bool,
    until_eof: bool,
) -> None:
    """Serve moving pictures over RTSP: H.264, with a clock and a frame number burnt in."""
    from gateway.simulate.camera import CameraServer

    width, height = _size(size)
    server = CameraServer(
        list(names),
        host=host,
        port=port,
        username=username,
        password=password if username is not None else None,
        width=width,
        height=height,
        fps=fps,
        zone=_zone(timezone),
    )

    async def serve() -> None:
        async with _until_told(seconds, until_eof) as told:
            await server.start()
            try:
                _ready(as_json, {"cameras": server.urls}, "\n".join(["Serving:", *server.urls.values()]))
                await told.wait()
            finally:
                await server.stop()
        _done(as_json, server.statistics())

    asyncio.run(serve())


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
