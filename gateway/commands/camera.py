"""``gateway camera``: how the cameras are, what an address offers, which cameras there are."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from gateway.commands.common import (
    command_with_examples,
    data_options,
    json_option,
    print_json,
    print_table,
    say,
)
from gateway.commands.snapshot import command as snapshot
from gateway.errors import UsageError

_username_option = click.option("--username", help="Whom the camera lets in …")
_password_option = click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="… and a file that holds the password; or GATEWAY_CAMERA_PASSWORD.",
)


@click.group("camera")
def command() -> None:
    """Look at cameras: recorded ones, any address, the network."""


@command_with_examples(
    "list",
    "List the cameras of a running gateway.",
    """
    gateway camera list
    gateway camera list --data /var/lib/gateway --json
    """,
)
@json_option
@data_options
def list_cameras(as_json: bool, data: Path) -> None:
    """List the cameras that a running gateway records: state, codec, size, frame and bit rate, losses, last frame.

    States: connecting, recording, lossy (packets were missing within the last minute), stalled; or why a camera is not
    recorded: unauthorized, not_found, refused, unreachable, timeout, closed, unsupported, failed.
    """
    import gateway
    from gateway import camera_status
    from gateway.clock import realtime_ns

    report = camera_status.read(data)
    zone = gateway.open(data).timezone
    stale_ns = 0 if report is None else max(0, realtime_ns() - report.written_ns)
    is_stale = stale_ns > camera_status.STALE_NS
    if as_json:
        cameras = [_as_object(camera, zone) for camera in (report.cameras if report else ())]
        written = datetime.fromtimestamp(report.written_ns / 1e9, zone) if report else None
        print_json({"data": str(data), "written": written, "stale": is_stale, "cameras": cameras})
        return
    if report is None or not report.cameras:
        click.echo(f"No gateway records cameras in {data} now.")
        return
    print_table([_HEADING, *(_row(camera, zone) for camera in report.cameras)], right=(4, 5, 6, 7))
    if is_stale:
        say(f"gateway: this is {stale_ns // 10**9:,} s old; process {report.pid}, which wrote it, is gone or hangs.")


_HEADING = ("CAMERA", "STATE", "CODEC", "SIZE", "FPS", "KBIT/S", "LOST", "DAMAGED", "LAST FRAME", "LAST ERROR")


def _row(camera: Any, zone: Any) -> tuple[str, ...]:
    last = _moment(camera.last_frame_ns, zone)
    return (
        camera.name,
        camera.state,
        camera.codec or "-",
        f"{camera.width}x{camera.height}" if camera.width else "-",
        f"{camera.fps:.1f}",
        f"{camera.bits_per_second / 1_000:,.0f}",
        "?" if camera.lost_packets is None else f"{camera.lost_packets:,}",
        "?" if camera.damaged is None else f"{camera.damaged:,}",
        "-" if last is None else last.isoformat(timespec="milliseconds"),
        camera.last_error or "-",
    )


def _as_object(camera: Any, zone: Any) -> dict[str, Any]:
    found = dataclasses.asdict(camera)
    return {**found, "last_frame": _moment(found.pop("last_frame_ns"), zone)}


def _moment(instant_ns: int | None, zone: Any) -> datetime | None:
    return None if instant_ns is None else datetime.fromtimestamp(instant_ns / 1e9, zone)


@command_with_examples(
    "probe",
    "Tell what a camera offers, or why it cannot be recorded.",
    """
    gateway camera probe rtsp://10.0.0.11/main
    gateway camera probe rtsp://10.0.0.11/main --username viewer --password-file gate-1.password
    gateway camera probe rtsps://10.0.0.12/main --seconds 0 --json
    """,
)
@click.argument("url")
@_username_option
@_password_option
@click.option(
    "--transport", type=click.Choice(["tcp", "udp"]), default="tcp", show_default=True, help="Of the pictures."
)
@click.option(
    "--engine", type=click.Choice(["native", "pyav"]), help="Which one looks; default: as `gateway run` would."
)
@click.option("--timeout", default="10s", show_default=True, help="For the camera's answers.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, 600),
    default=5.0,
    show_default=True,
    help="How long to watch what it really sends; 0: only ask.",
)
@json_option
@click.pass_context
def probe(
    context: click.Context,
    url: str,
    username: str | None,
    password_file: Path | None,
    transport: str,
    engine: str | None,
    timeout: str,
    seconds: float,
    as_json: bool,
) -> None:
    """Ask the camera at URL what it offers, and watch what it sends. Exit code 1: it cannot be recorded.

    The password never stands in the URL: it comes from --password-file or the environment variable
    GATEWAY_CAMERA_PASSWORD.
    """
    settings: dict[str, Any] = {"url": url, "transport": transport, "open_timeout": timeout, "read_timeout": timeout}
    settings |= {"engine": engine} if engine else {}
    settings |= _credentials(username, password_file)
    report = asyncio.run(_finder().probe(_configured(settings), seconds=seconds))
    if as_json:
        print_json(report)
    else:
        _print_probe(report)
    if report["state"] != "ok":
        context.exit(1)


def _credentials(username: str | None, password_file: Path | None) -> dict[str, str]:
    """As a camera's configuration has them."""
    if username is None:
        if password_file is not None:
            raise UsageError("--password-file says what the password is; say whose with --username.")
        return {}
    password = _password(password_file)
    return {"username": username} | ({"password": password} if password is not None else {})


def _password(password_file: Path | None) -> str | None:
    import os

    if password_file is not None:
        return password_file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    return os.environ.get("GATEWAY_CAMERA_PASSWORD")


def _configured(settings: dict[str, Any]) -> Any:
    """A camera's configuration; what is wrong with it is the caller's mistake."""
    from gateway.config import from_dict
    from gateway.errors import ConfigError

    try:
        return from_dict({"data": ".", "cameras": {"probed": settings}}).cameras["probed"]
    except ConfigError as error:
        raise UsageError("\n".join(dict.fromkeys(_of_options(each) for each in error.problems))) from None


def _of_options(problem: str) -> str:
    """What is wrong with a configuration nobody wrote, in the words of the command line."""
    problem = problem.removeprefix("configuration: ").removeprefix("cameras.probed.")
    key, colon, text = problem.partition(": ")
    if not colon or key == "url":
        return text or problem
    option = "timeout" if key.endswith("_timeout") else key.replace("_", "-")
    return f"--{option}: {text}"


def _finder() -> Any:
    """What can look at cameras without recording them."""
    from gateway.errors import SourceError
    from gateway.ingest.source import CameraFinder, load_factory

    factory: Any = load_factory("camera")
    if not isinstance(factory, CameraFinder):
        raise SourceError("The installed camera adapter cannot probe or discover cameras; install a newer one.")
    return factory


def _print_probe(report: dict[str, Any]) -> None:
    if report.get("redirected_to"):
        click.echo(f"redirects to  {report['redirected_to']}")
    for name in ("server", "authentication"):
        if report.get(name):
            click.echo(f"{name:<16}{report[name]}")
    for track in report.get("tracks", ()):
        click.echo(f"{'track':<16}{_track_text(track)}")
    if measured := report.get("measured"):
        click.echo(f"{'measured':<16}{_measured_text(measured)}")
    if report["state"] == "ok":
        click.echo(f"{'result':<16}it can be recorded, engine {report['engine']}")
    else:
        say(f"gateway: {report['url']} cannot be recorded ({report['state']}): {report['cause']}.")


def _track_text(track: dict[str, Any]) -> str:
    parts = [track["kind"], track.get("encoding") or track["codec"] or "of an unknown format"]
    if track.get("width"):
        parts.append(f"{track['width']}x{track['height']}")
    if track.get("claimed_fps"):
        parts.append(f"claims {track['claimed_fps']:g} frames/s")
    return f"{' '.join(parts)}, {'recorded' if track['recorded'] else 'skipped'}"


def _measured_text(measured: dict[str, Any]) -> str:
    parts = [f"{measured['access_units']} frames in {measured['seconds']:g} s"]
    if measured["fps"]:
        parts.append(f"{measured['fps']:g} frames/s, {measured['bits_per_second'] / 1_000:,.0f} kbit/s")
    if measured["width"]:
        parts.append(f"{measured['width']}x{measured['height']}")
    if measured["keyframe_interval_s"]:
        parts.append(f"a key frame every {measured['keyframe_interval_s']:g} s")
    if "lost_packets" in measured:
        parts.append(f"{measured['lost_packets']} packets lost")
        parts.append("tells its time" if measured["sender_reports"] else "has not told its time yet")
    return ", ".join(parts)


@command_with_examples(
    "discover",
    "Find ONVIF cameras and print configuration to paste.",
    """
    gateway camera discover
    gateway camera discover --username viewer --password-file cameras.password >> gateway.toml
    gateway camera discover --host 10.0.0.11 --host 10.0.0.12:8080 --json
    """,
)
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST[:PORT]", help="Ask this one, not the network; repeatable."
)
@click.option("--interface", metavar="ADDRESS", help="This machine's address from which to search.")
@click.option(
    "--address", metavar="HOST:PORT", hidden=True, help="Where the search goes; default: ONVIF's multicast group."
)
@_username_option
@_password_option
@click.option("--wait", default="3s", show_default=True, help="For answers from the network.")
@click.option("--timeout", default="10s", show_default=True, help="For each camera's own answers.")
@json_option
def discover(
    hosts: tuple[str, ...],
    interface: str | None,
    address: str | None,
    username: str | None,
    password_file: Path | None,
    wait: str,
    timeout: str,
    as_json: bool,
) -> None:
    """Search the network for ONVIF cameras, ask each for its streams, and print TOML for `gateway.toml`.

    Many cameras tell their streams only to a user: give --username, and the password in --password-file or in
    GATEWAY_CAMERA_PASSWORD. It is sent as a digest, to every camera that answers. Needs the extra `onvif`.
    """
    from gateway.clock import NS_PER_S, parse_duration
    from gateway.config.values import split_bind

    known = _credentials(username, password_file)
    try:
        settings = {
            "wait_s": parse_duration(wait) / NS_PER_S,
            "timeout_s": parse_duration(timeout) / NS_PER_S,
            "address": split_bind(address) if address else None,
        }
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = asyncio.run(
        _finder().discover(
            hosts=hosts,
            interface=interface,
            username=known.get("username"),
            password=known.get("password"),
            **settings,
        )
    )
    if as_json:
        print_json({"cameras": found})
        return
    if not found:
        say("gateway: no camera answered; one in another network is found with --host.")
    for camera in found:
        click.echo(_toml(camera, username, password_file), nl=False)


def _toml(camera: dict[str, Any], username: str | None, password_file: Path | None) -> str:
    """One table for the camera's largest stream; the others as comments."""
    from urllib.parse import urlsplit

    what = ", ".join(part for part in (camera["name"], camera["hardware"], camera["service"]) if part)
    lines = [f"# {what}"]
    if camera["problem"] or not camera["profiles"]:
        return "\n".join([*lines, f"# not usable: {camera['problem'] or 'it tells no stream'}", "", ""])
    best, *others = sorted(camera["profiles"], key=_pixels, reverse=True)
    host = (urlsplit(best["url"]).hostname or "camera").replace(":", "-")
    lines += [f"[cameras.{_quoted('cam-' + host)}]", f"url = {_quoted(best['url'])}  # {_profile_text(best)}"]
    if username is not None:
        lines.append(f"username = {_quoted(username)}")
        if password_file is not None:
            lines.append(f"password_file = {_quoted(str(password_file.absolute()))}")
        else:
            lines.append('password = "${GATEWAY_CAMERA_PASSWORD}"')
    lines += [f"# url = {_quoted(each['url'])}  # {_profile_text(each)}" for each in others]
    return "\n".join([*lines, "", ""])


def _pixels(profile: dict[str, Any]) -> int:
    return int((profile["width"] or 0) * (profile["height"] or 0))


def _profile_text(profile: dict[str, Any]) -> str:
    size = f"{profile['width']}x{profile['height']}" if profile["width"] else ""
    fps = f"{profile['fps']:g} frames/s" if profile["fps"] else ""
    return " ".join(part for part in (profile["name"], profile["codec"], size, fps) if part)


def _quoted(text: str) -> str:
    """A TOML basic string; what goes in is printable."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


command.add_command(list_cameras)
command.add_command(probe)
command.add_command(discover)
command.add_command(snapshot)
