"""``gateway replay``: what was recorded, published again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gateway.commands.common import (
    check_range,
    command_with_examples,
    data_options,
    json_option,
    print_json,
    progress,
    say,
    values_are_usage,
)
from gateway.errors import DamageError, UsageError

if TYPE_CHECKING:
    from gateway import Record
    from gateway.config import BrokerConfig
    from gateway.log.segment import Damage
    from gateway.replay.republish import RepublishReport

MS_PER_STEP = 1000


@command_with_examples(
    "replay",
    "Publish recorded messages again.",
    """
    gateway replay telemetry --to mqtt://127.0.0.1:1883 --start -1h
    gateway replay telemetry --to mqtt://127.0.0.1:1883 --start -1d --speed 10 --key 'plant/+/+/temperature'
    gateway replay telemetry alarms --to mqtt://127.0.0.1:1883 --speed max --prefix replay/
    GATEWAY_MQTT_PASSWORD=secret gateway replay telemetry --to mqtts://broker:8883 --username analyst
    """,
    takes_times=True,
)
@click.argument("streams", metavar="STREAM...", nargs=-1, required=True)
@click.option("--to", "url", required=True, metavar="URL", help="mqtt://host[:port] or mqtts://host[:port].")
@click.option("--speed", default="1", show_default=True, help="1 as it was, 10 ten times as fast, or max.")
@click.option("--start", metavar="TIME", help="From this time on (inclusive).")
@click.option("--end", metavar="TIME", help="Up to this time (exclusive).")
@click.option(
    "--key", "keys", metavar="FILTER", multiple=True, help="Only keys that match (+ and # as in MQTT); repeatable."
)
@click.option("--no-retained", is_flag=True, help="Leave out messages whose retain flag was set.")
@click.option("--prefix", default="", metavar="TEXT", help="Put before each topic, for example replay/.")
@click.option("--qos", type=click.IntRange(0, 2), help="For all messages; default: each message's own.")
@click.option("--keep-retain", is_flag=True, help="Publish with the retain flag what had it.")
@click.option("--mqtt", "version", type=click.Choice(["5", "3.1.1"]), default="5", show_default=True, help="Version.")
@click.option("--username", help="At the broker; the password comes from GATEWAY_MQTT_PASSWORD or --password-file.")
@click.option(
    "--password-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Holds the password alone."
)
@click.option("--tls-ca", type=click.Path(exists=True, dir_okay=False), help="PEM; default: the system's authorities.")
@json_option
@data_options
def command(
    streams: tuple[str, ...],
    url: str,
    speed: str,
    start: str | None,
    end: str | None,
    keys: tuple[str, ...],
    no_retained: bool,
    prefix: str,
    qos: int | None,
    keep_retain: bool,
    version: Literal["5", "3.1.1"],
    username: str | None,
    password_file: Path | None,
    tls_ca: str | None,
    as_json: bool,
    data: Path,
) -> int:
    """Publish the records of STREAM at a broker, in the order of time; of several streams, together.

    With MQTT 5 each message has the user properties original-time (when the gateway received it, UTC) and
    original-offset, beside those it had. Retain flags are dropped unless --keep-retain is given. Records that are no
    messages, such as gap records, are skipped and counted.
    """
    import gateway
    from gateway.replay.mqtt_target import MqttTarget
    from gateway.replay.republish import Changes, Pace, RepublishReport, republish

    log = gateway.open(data)
    pace = Pace(parse_speed(speed))
    broker = _broker(url, username, password_file, tls_ca)
    damages = 0

    def tell(damage: Damage) -> None:
        nonlocal damages
        damages += 1
        say(f"{damage}; going on behind it.")

    with values_are_usage():
        check_range(log.timezone, start, end)
        changes = Changes(prefix, qos, keep_retain)
        merged = log.merge(streams, start, end, keys=list(keys) or None, retained=not no_retained, on_gap=tell)
    report = RepublishReport()
    span = _span(log, streams, start, end)
    target = MqttTarget(broker, version)
    try:
        with progress("Publishing") as step:

            def moved(record: Record) -> None:
                step(record.timestamp_ms - span[0], span[1] - span[0])

            republish((each.record for each in merged), target, pace, changes, report, moved)
    except KeyboardInterrupt:
        _show(report, url, as_json)
        raise
    finally:
        target.close()
    _show(report, url, as_json)
    return DamageError.exit_code if damages else 1 if report.refused or report.lost else 0


def parse_speed(text: str) -> float:
    """A number above 0, perhaps with an x before or behind it, or max."""
    if text == "max":
        return math.inf
    try:
        speed = float(text.strip("x×"))
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise UsageError(f"--speed {text!r} is no speed; write 1, 10, 0.5 or max.")
    return speed


def _broker(url: str, username: str | None, password_file: Path | None, tls_ca: str | None) -> BrokerConfig:
    import os

    from pydantic import ValidationError

    from gateway.config import BrokerConfig

    password = os.environ.get("GATEWAY_MQTT_PASSWORD")
    if password_file is not None:
        password = password_file.read_text(encoding="utf-8").rstrip("\r\n")
    given = {"url": url, "username": username, "tls_ca": tls_ca, "password": password if username else None}
    try:
        return BrokerConfig.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        # Not the error itself, which shows what was given: a URL may hold a password.
        told = "; ".join(
            f"{each['loc'][0] if each['loc'] else 'options'}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
        )
        raise UsageError(f"The broker cannot be used like that: {told.removesuffix('.')}.") from None


def _span(log: object, streams: tuple[str, ...], start: str | None, end: str | None) -> tuple[int, int]:
    """Times (ms) that progress goes between."""
    import gateway
    from gateway.clock import NS_PER_MS

    assert isinstance(log, gateway.Log)
    opened = [log[name] for name in streams]
    ranges = [times for stream in opened if (times := stream.reader.time_range()) is not None]
    first = min((times.oldest for times in ranges), default=0)
    last = max((times.newest for times in ranges), default=0)
    if start is not None:
        first = max(first, opened[0].instant_ns(start) // NS_PER_MS)
    if end is not None:
        last = min(last, opened[0].instant_ns(end) // NS_PER_MS)
    return first, max(first + 1, last)


def _show(report: RepublishReport, url: str, as_json: bool) -> None:
    import dataclasses

    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        click.echo(f"Published to {url}: {report}.")
