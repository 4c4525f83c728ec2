"""``gateway simulate``: sensors and cameras to try things with, against this gateway or any other program."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

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
    """Play sensors or cameras to try things with."""


@command_with_examples(
    "camera",
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
    click.get_text_stream("stdout").flush()


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
