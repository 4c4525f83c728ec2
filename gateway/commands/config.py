"""``gateway config check``: what is wrong with a configuration, what it adds up to, what the disk will hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.clock import format_duration, format_size, is_synchronised
from gateway.commands.common import DEFAULT_CONFIG, command_with_examples, json_option, print_json, print_table, say
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.ingest.disk import DiskPlan


@click.group("config")
def command() -> None:
    """Look at the configuration."""


@command_with_examples(
    "check",
    "Check a configuration without starting anything.",
    """
    gateway config check
    gateway config check -c /etc/gateway/gateway.toml --json
    gateway config check --forecast
    """,
)
@click.option(
    "-c", "--config", "path", metavar="FILE", type=click.Path(path_type=Path), default=DEFAULT_CONFIG, show_default=True
)
@click.option("--forecast", is_flag=True, help="Also what the disk will hold, from what is recorded already.")
@json_option
def check(path: Path, forecast: bool, as_json: bool) -> None:
    """Check a configuration without starting anything: mistakes (exit code 3), warnings, limits and sums."""
    from gateway.config import load, warnings
    from gateway.ingest import limits
    from gateway.ingest.disk import DiskPlan

    config = load(path)
    limits.check(config)
    data = data_report(config)
    plan = DiskPlan(data["total_bytes"], data["reserve_bytes"], data["headroom_bytes"])
    report: dict[str, Any] = {
        "file": str(path),
        "site": {"name": config.site.name, "timezone": config.site.timezone},
        "data": data,
        "sources": [_source(name, source) for name, source in config.sources().items()],
        "streams": {name: _stream(config, name, plan) for name in _stream_names(config)},
        "limits": limits_report(config),
        "control": _control(config),
        "warnings": [*warnings(config), *_clock_warnings(config)],
    }
    if forecast:
        report["forecast"] = _forecast(config)
    if as_json:
        print_json(report)
        return
    _print(report)


command.add_command(check)


def data_report(config: Config) -> dict[str, Any]:
    """The file system that will hold the data, how it is written, how it is divided, and what is free on it."""
    from gateway_native.storage import filesystem

    from gateway.ingest import disk

    directory = config.data
    existing = next((parent for parent in (directory, *directory.parents) if parent.is_dir()), Path("/"))
    kind, preallocation_holds = filesystem(str(existing))
    if config.disk.append == "mapped" and not preallocation_holds:
        raise ConfigError(
            f'disk.append: "mapped" needs preallocated blocks that stay, which {kind} (of {existing}) does not '
            'promise; use "pwrite".'
        )
    space = disk.space(existing)
    plan = disk.plan(config, space.total_bytes)
    return {
        "directory": str(directory),
        "exists": directory.is_dir(),
        "filesystem": kind,
        "append": config.disk.append,
        "preallocation_holds": preallocation_holds,
        "total_bytes": space.total_bytes,
        "free_bytes": space.free_bytes,
        "reserve_bytes": plan.reserve_bytes,
        "headroom_bytes": plan.headroom_bytes,
        "syncfs_files": disk.syncfs_files(config),
    }


def limits_report(config: Config) -> dict[str, Any]:
    """Every bound, and what they add up to."""
    from gateway.ingest import limits

    rings = limits.rings(config)
    return {
        "max_streams": config.limits.max_streams,
        "record_bytes_max": config.limits.record_bytes_max,
        "rings": rings,
        "ring_bytes": config.limits.ring_bytes,
        "buffer_bytes": config.limits.buffer_bytes,
        "session_rings_bytes": limits.session_rings_bytes(config),
        "key_index_bytes": limits.KEY_INDEX_BYTES,
        "kafka_bytes": limits.kafka_bytes(config),
        "memory_bytes_max": limits.memory_bytes(config),
        "connections_max": sum(listener.connections_max for listener in config.mqtt.listeners.values()),
        "kafka_connections_max": config.kafka.connections_max if config.kafka is not None else 0,
        "sessions_max": sum(listener.sessions_max for listener in config.mqtt.listeners.values()),
        "sums": [one._asdict() for one in limits.sums(config)],
    }


def _clock_warnings(config: Config) -> list[str]:
    """Retention by age waits for a clock that the kernel calls synchronised: say so where it does not now."""
    aged = sorted(name for name, stream in config.streams.items() if stream.retention.age_ns is not None)
    if not aged or config.site.clock == "trusted" or is_synchronised():
        return []
    sentence = (
        f"streams.{aged[0]}.retention: waits, as far as it is by age, while the kernel calls the clock unsynchronised, "
        'as it does now; where no NTP runs, [site] clock = "trusted" says that the clock is right'
    )
    return [sentence]


def _forecast(config: Config) -> dict[str, Any]:
    """What the disk will hold, at the rates of what is recorded already."""
    import gateway
    from gateway.commands.rates import days_until_full, growth
    from gateway.ingest import disk

    if not config.data.is_dir():
        return {"streams": {}, "days_until_full": None}
    log = gateway.open(config.data)
    found = {name: growth(log[name].describe(), config.stream(name).retention) for name in log.streams()}
    space = disk.space(config.data)
    room_bytes = space.free_bytes - disk.plan(config, space.total_bytes).free_wanted_bytes
    return {
        "streams": {name: one._asdict() for name, one in found.items()},
        "room_bytes": room_bytes,
        "days_until_full": days_until_full(found.values(), room_bytes),
    }


def _source(name: str, source: Any) -> dict[str, Any]:
    from gateway.config import CameraConfig, ListenerConfig

    if isinstance(source, CameraConfig):
        return {"name": name, "kind": "camera", "at": source.url, "streams": [source.stream]}
    streams = list(dict.fromkeys(route.stream for route in source.routes))
    if isinstance(source, ListenerConfig):
        at = f"{source.bind} ({source.door})"
        return {"name": name, "kind": "mqtt.listener", "at": at, "streams": streams}
    return {"name": name, "kind": "mqtt.subscriber", "at": source.url, "streams": streams}


def _control(config: Config) -> dict[str, Any] | None:
    control = config.control
    if control is None:
        return None
    interval_ns = control.statistics_interval_ns
    topic = config.control_topic
    return {"url": control.url, "topic": topic, "statistics_interval_ns": interval_ns, "commands": control.commands}


def _stream_names(config: Config) -> list[str]:
    """Those known by name; what templates will name is not among them."""
    known = config.written_streams()
    written = [stream for name, source in config.sources().items() for stream in _source(name, source)["streams"]]
    in_order = [stream for stream in written if stream in known]
    return list(dict.fromkeys([*in_order, *sorted(known), *config.streams]))


def _stream(config: Config, name: str, plan: DiskPlan) -> dict[str, Any]:
    stream = config.stream(name)
    return {
        "ack": stream.ack,
        "linger_ns": stream.linger_ns,
        "segment_bytes": plan.segment_bytes(stream),
        "segment_age_ns": stream.segment_age_ns,
        "retention": str(stream.retention),
        "when_full": stream.when_full,
    }


def _print(report: dict[str, Any]) -> None:
    from gateway.ingest.limits import Sum

    data, limits = report["data"], report["limits"]
    new = "" if data["exists"] else ", not there yet"
    click.echo(f"site      {report['site']['name']}, {report['site']['timezone']}")
    click.echo(
        f"data      {data['directory']} on {data['filesystem']}, append by {data['append']}, {_synced(data)}, "
        f"{format_size(data['free_bytes'])} free{new}"
    )
    headroom, reserve = data["headroom_bytes"], data["reserve_bytes"]
    click.echo(
        f"disk      {format_size(data['total_bytes'])}; the oldest segments go when less than "
        f"{format_size(headroom + reserve)} is free: {format_size(headroom)} of headroom + {format_size(reserve)} of "
        "reserve, which is never filled"
    )
    for one in limits["sums"]:
        click.echo(f"{'needs':<10}{Sum(**one)}")
    click.echo(
        f"limits    {limits['max_streams']:,} streams, {limits['connections_max']:,} connections, "
        f"records up to {format_size(limits['record_bytes_max'])}"
    )
    if report["control"]:
        click.echo(f"control   {_control_line(report['control'])}")
    if report["sources"]:
        click.echo()
        rows = [(s["name"], s["kind"], s["at"], ", ".join(s["streams"])) for s in report["sources"]]
        print_table([("SOURCE", "KIND", "AT", "STREAMS"), *rows])
    if report["streams"]:
        click.echo()
        heading = ("STREAM", "ACK", "LINGER", "SEGMENT", "SEALED AFTER", "KEEPS", "WHEN FULL")
        print_table([heading, *_stream_rows(report["streams"])])
    if "forecast" in report:
        click.echo()
        _print_forecast(report["forecast"])
    for sentence in report["warnings"]:
        say(f"warning: {sentence}")
    click.echo()
    click.echo(f"{report['file']} is sound.")


def _control_line(control: dict[str, Any]) -> str:
    every = format_duration(control["statistics_interval_ns"])
    taken = "takes commands" if control["commands"] else "takes no commands"
    return f"{control['topic']} at {control['url']}: statistics every {every}, {taken}"


def _synced(data: dict[str, Any]) -> str:
    files = data["syncfs_files"]
    return f"syncfs from {files} dirty streams on" if files else "each file synced by itself"


def _stream_rows(streams: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            stream["ack"],
            format_duration(stream["linger_ns"]),
            format_size(stream["segment_bytes"]),
            format_duration(stream["segment_age_ns"]),
            stream["retention"],
            stream["when_full"],
        )
        for name, stream in streams.items()
    ]


def _print_forecast(forecast: dict[str, Any]) -> None:
    from gateway.commands.rates import rate

    if not forecast["streams"]:
        click.echo("forecast  nothing is recorded yet")
        return
    rows = [
        (
            name,
            format_size(one["bytes"]),
            rate(one["bytes_per_day"]),
            rate(one["bytes_max"]),
        )
        for name, one in forecast["streams"].items()
    ]
    print_table([("STREAM", "HOLDS", "BYTES/DAY", "WILL HOLD"), *rows], right=(1, 2, 3))
    days = forecast["days_until_full"]
    if days is None:
        click.echo("forecast  at these rates the disk does not fill up")
    else:
        click.echo(f"forecast  at these rates retention begins to delete the oldest segments after {days:,.1f} days")
