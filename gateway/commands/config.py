"""``gateway config check``: what is wrong with a configuration, what it adds up to, what it does not do yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.clock import format_duration, format_size
from gateway.commands.common import DEFAULT_CONFIG, command_with_examples, json_option, print_json, print_table, say
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.config import Config


@click.group("config")
def command() -> None:
    """Look at the configuration."""


@command_with_examples(
    "check",
    "Check a configuration without starting anything.",
    """
    gateway config check
    gateway config check -c /etc/gateway/gateway.toml --json
    """,
)
@click.option(
    "-c", "--config", "path", metavar="FILE", type=click.Path(path_type=Path), default=DEFAULT_CONFIG, show_default=True
)
@json_option
def check(path: Path, as_json: bool) -> None:
    """Check a configuration without starting anything: mistakes (exit code 3), warnings, limits and sums."""
    from gateway.config import load, not_applied, warnings

    config = load(path)
    report = {
        "file": str(path),
        "site": {"name": config.site.name, "timezone": config.site.timezone},
        "data": data_report(config),
        "sources": [_source(name, source) for name, source in config.sources().items()],
        "streams": {name: _stream(config, name) for name in _stream_names(config)},
        "limits": limits_report(config),
        "warnings": warnings(config),
        "not_applied": not_applied(config),
    }
    if as_json:
        print_json(report)
        return
    _print(report)


command.add_command(check)


def data_report(config: Config) -> dict[str, Any]:
    """The file system that will hold the data, how it is written, and what is free on it."""
    import shutil

    from gateway_native.storage import filesystem

    directory = config.data
    existing = next((parent for parent in (directory, *directory.parents) if parent.is_dir()), Path("/"))
    kind, preallocation_holds = filesystem(str(existing))
    if config.disk.append == "mapped" and not preallocation_holds:
        raise ConfigError(
            f'disk.append: "mapped" needs preallocated blocks that stay, which {kind} (of {existing}) does not '
            'promise; use "pwrite".'
        )
    return {
        "directory": str(directory),
        "exists": directory.is_dir(),
        "filesystem": kind,
        "append": config.disk.append,
        "preallocation_holds": preallocation_holds,
        "free_bytes": shutil.disk_usage(existing).free,
    }


def limits_report(config: Config) -> dict[str, int]:
    """Every bound, and the memory that they add up to."""
    limits = config.limits
    # A ring for each listener and each subscriber; the cameras share one.
    rings = len(config.mqtt.listeners) + len(config.mqtt.subscribers) + bool(config.cameras)
    return {
        "max_streams": limits.max_streams,
        "record_bytes_max": limits.record_bytes_max,
        "rings": rings,
        "ring_bytes": limits.ring_bytes,
        "buffer_bytes": limits.buffer_bytes,
        "memory_bytes_max": rings * limits.ring_bytes + limits.buffer_bytes,
        "connections_max": sum(listener.connections_max for listener in config.mqtt.listeners.values()),
    }


def _source(name: str, source: Any) -> dict[str, Any]:
    from gateway.config import CameraConfig, ListenerConfig

    if isinstance(source, CameraConfig):
        return {"name": name, "kind": "camera", "at": source.url, "streams": [source.stream]}
    streams = list(dict.fromkeys(route.stream for route in source.routes))
    if isinstance(source, ListenerConfig):
        return {"name": name, "kind": "mqtt.listener", "at": source.bind, "streams": streams}
    return {"name": name, "kind": "mqtt.subscriber", "at": source.url, "streams": streams}


def _stream_names(config: Config) -> list[str]:
    written = [stream for name, source in config.sources().items() for stream in _source(name, source)["streams"]]
    return list(dict.fromkeys([*written, *config.streams]))


def _stream(config: Config, name: str) -> dict[str, Any]:
    stream = config.stream(name)
    return {
        "ack": stream.ack,
        "linger_ns": stream.linger_ns,
        "segment_bytes": stream.segment_bytes,
        "segment_age_ns": stream.segment_age_ns,
        "retention": str(stream.retention),
    }


def _print(report: dict[str, Any]) -> None:
    data, limits = report["data"], report["limits"]
    new = "" if data["exists"] else ", not there yet"
    click.echo(f"site      {report['site']['name']}, {report['site']['timezone']}")
    click.echo(
        f"data      {data['directory']} on {data['filesystem']}, append by {data['append']}, "
        f"{format_size(data['free_bytes'])} free{new}"
    )
    click.echo(
        f"memory    at most {format_size(limits['memory_bytes_max'])}: {limits['rings']} ring(s) of "
        f"{format_size(limits['ring_bytes'])} + {format_size(limits['buffer_bytes'])} of buffers"
    )
    click.echo(
        f"limits    {limits['max_streams']:,} streams, {limits['connections_max']:,} connections, "
        f"records up to {format_size(limits['record_bytes_max'])}"
    )
    if report["sources"]:
        click.echo()
        rows = [(s["name"], s["kind"], s["at"], ", ".join(s["streams"])) for s in report["sources"]]
        print_table([("SOURCE", "KIND", "AT", "STREAMS"), *rows])
    if report["streams"]:
        click.echo()
        print_table([("STREAM", "ACK", "LINGER", "SEGMENT", "SEALED AFTER", "KEEPS"), *_stream_rows(report["streams"])])
    for sentence in report["warnings"]:
        say(f"warning: {sentence}")
    for key in report["not_applied"]:
        say(f"not applied in this version: {key}")
    click.echo()
    click.echo(f"{report['file']} is sound.")


def _stream_rows(streams: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            stream["ack"],
            format_duration(stream["linger_ns"]),
            format_size(stream["segment_bytes"]),
            format_duration(stream["segment_age_ns"]),
            stream["retention"],
        )
        for name, stream in streams.items()
    ]
