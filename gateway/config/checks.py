"""What no single value can know: names that overlap, sources that contradict each other, keys without effect."""

from __future__ import annotations

import difflib
import ipaddress
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gateway.config.files import KeyPath, Problem, dotted
from gateway.config.model import CameraConfig, Config, ListenerConfig, ReconnectingConfig, SubscriberConfig


def overlaps(config: Config) -> list[Problem]:
    """Everything about a configuration of valid values that still cannot work."""
    return [
        *_source_names(config),
        *_binds(config),
        *_client_ids(config),
        *_camera_streams(config),
        *_routes(config),
        *_credentials(config),
        *_limits(config),
    ]


def warnings(config: Config) -> list[str]:
    """What works and is probably not meant. One sentence each, beginning with the key."""
    return [f"{dotted(path)}: {text}" for path, text in _warnings(config)]


_MANY_LEVELS = 65_536  # a topic has that many bytes at most


def _named(config: Config) -> Iterator[tuple[tuple[str, ...], ListenerConfig | SubscriberConfig | CameraConfig]]:
    for name, listener in config.mqtt.listeners.items():
        yield ("mqtt", "listeners", name), listener
    for name, subscriber in config.mqtt.subscribers.items():
        yield ("mqtt", "subscribers", name), subscriber
    for name, camera in config.cameras.items():
        yield ("cameras", name), camera


def _source_names(config: Config) -> Iterator[Problem]:
    first: dict[str, tuple[str, ...]] = {}
    for path, _ in _named(config):
        if path[-1] in first:
            yield (
                path,
                f"the name is taken by {dotted(first[path[-1]])}; logs and counters need one name for each source",
            )
        first.setdefault(path[-1], path)


def _binds(config: Config) -> Iterator[Problem]:
    seen: list[tuple[str, str, int]] = []
    for name, listener in config.mqtt.listeners.items():
        for other, host, port in seen:
            if listener.port and listener.port == port and _same_address(listener.host, host):
                yield (
                    ("mqtt", "listeners", name, "bind"),
                    f"port {port} is taken by mqtt.listeners.{other}; choose another",
                )
                break
        seen.append((name, listener.host, listener.port))


def _same_address(one: str, other: str) -> bool:
    """Whether binding both to one port collides; a wildcard covers everything."""
    if one == other or {one, other} == {"localhost", "127.0.0.1"}:
        return True
    return any(host in ("0.0.0.0", "::", "*") for host in (one, other))


def _client_ids(config: Config) -> Iterator[Problem]:
    seen: dict[tuple[str, int, str], str] = {}
    for name, subscriber in config.mqtt.subscribers.items():
        if subscriber.client_id is None:
            continue
        key = (subscriber.host, subscriber.port, subscriber.client_id)
        if key in seen:
            text = f"mqtt.subscribers.{seen[key]} uses it at the same broker, which would disconnect one for the other"
            yield ("mqtt", "subscribers", name, "client_id"), text
        seen.setdefault(key, name)


def _camera_streams(config: Config) -> Iterator[Problem]:
    owner: dict[str, tuple[str, ...]] = {}
    for name, camera in config.cameras.items():
        if camera.stream in owner:
            text = f"{dotted(owner[camera.stream])} records in {camera.stream!r} already; a stream holds one camera"
            yield ("cameras", name, "stream"), text
        owner.setdefault(camera.stream, ("cameras", name))
    for path, source in _named(config):
        if isinstance(source, CameraConfig):
            continue
        for index, route in enumerate(source.routes):
            stream = route.known_stream
            if stream in owner:
                text = f"{dotted(owner[stream])} records its pictures in {stream!r}; choose another stream"
                yield (*path, "routes", index, "stream"), text


def _routes(config: Config) -> Iterator[Problem]:
    for path, source in _named(config):
        if isinstance(source, CameraConfig):
            continue
        counted = Counter(route.filter for route in source.routes)
        for index, route in enumerate(source.routes):
            here: KeyPath = (*path, "routes", index, "filter")
            if counted[route.filter] > 1:
                counted[route.filter] = 0
                yield here, f"{route.filter!r} has two routes in one source; keep one"
            levels = _levels(route.filter)
            if route.levels_used > levels:
                text = (
                    f"{{{route.levels_used}}} is never there: topics that match {route.filter!r} have {levels} levels"
                )
                yield (*path, "routes", index), text
            if isinstance(source, SubscriberConfig) and source.engine == "aiomqtt" and route.overload != "wait":
                text = 'takes effect with engine = "native" only; use that, or leave the key out'
                yield (*path, "routes", index, "overload"), text
            if isinstance(source, ListenerConfig) and route.filter.startswith("$share/"):
                yield here, "a shared subscription exists only at a broker; a listener's route takes a plain filter"


def _levels(topic_filter: str) -> int:
    """The most levels that a topic matching this filter can have; a shared subscription's name does not count."""
    plain = topic_filter.split("/", 2)[-1] if topic_filter.startswith("$share/") else topic_filter
    return _MANY_LEVELS if plain.endswith("#") else plain.count("/") + 1


def _credentials(config: Config) -> Iterator[Problem]:
    for path, source in _named(config):
        if not isinstance(source, ReconnectingConfig):
            continue
        if source.password is not None and source.username is None:
            yield path, "has a password but no 'username'"
        if source.reconnect_min_ns > source.reconnect_max_ns:
            yield (*path, "reconnect_min"), "is longer than reconnect_max"
        if isinstance(source, SubscriberConfig):
            yield from _tls(path, source)


def _tls(path: tuple[str, ...], source: SubscriberConfig) -> Iterator[Problem]:
    files = {key: getattr(source, key) for key in ("tls_ca", "tls_cert", "tls_key") if getattr(source, key) is not None}
    for key, file in files.items():
        if not source.tls:
            yield (*path, key), "has no effect on mqtt://; use mqtts:// in the url, or leave the key out"
        elif not file.is_file():
            yield (*path, key), f"there is no file {str(file)!r}"
    if ("tls_cert" in files) != ("tls_key" in files):
        missing = "tls_key" if "tls_cert" in files else "tls_cert"
        yield path, f"'{missing}' is missing; a client certificate needs both tls_cert and tls_key"


def _limits(config: Config) -> Iterator[Problem]:
    ring, record = config.limits.ring_bytes, config.limits.record_bytes_max
    if ring & (ring - 1):
        yield ("limits", "ring"), "must be a power of two, such as 32MiB, 64MiB or 128MiB"
    elif ring < 4 * record and "ring_bytes" in config.limits.model_fields_set:
        yield ("limits", "ring"), f"must be at least four times the largest record ({record} bytes)"
    named = config.written_streams() | config.streams.keys()
    if len(named) > config.limits.max_streams:
        text = f"is {config.limits.max_streams}, but the configuration names {len(named)} streams"
        yield ("limits", "max_streams"), text


def _warnings(config: Config) -> Iterator[Problem]:
    if not config.sources():
        yield ("mqtt",), "there is no listener, subscriber or camera, so nothing will be recorded"
    yield from _stream_warnings(config)
    yield from _source_warnings(config)


def _stream_warnings(config: Config) -> Iterator[Problem]:
    written = config.written_streams()
    for name in config.streams:
        if name not in written:
            near = difflib.get_close_matches(name, written, 1, 0.7)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield ("streams", name), f"no source records in this stream{hint}"
    alike = Counter(name.replace(".", "_") for name in written)
    for name in sorted(written):
        if alike[name.replace(".", "_")] > 1:
            text = "differs from another stream only in '.' and '_', which Kafka's metrics cannot tell apart"
            yield ("streams", name), text


def _source_warnings(config: Config) -> Iterator[Problem]:
    for name, listener in config.mqtt.listeners.items():
        if not _is_loopback(listener.host):
            text = "is reachable from other machines, and listeners have neither passwords nor TLS in this version"
            yield ("mqtt", "listeners", name, "bind"), text
    urls = Counter(camera.url for camera in config.cameras.values())
    for name, camera in config.cameras.items():
        if urls[camera.url] > 1:
            yield ("cameras", name, "url"), "another camera has the same url; its pictures are recorded twice"
    for path, source in _named(config):
        if isinstance(source, ReconnectingConfig) and source.password_file and _others_may_read(source.password_file):
            yield (*path, "password_file"), f"{source.password_file} may be read by every user; 'chmod 600' it"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _others_may_read(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
