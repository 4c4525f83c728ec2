"""What no single value can know: names that overlap, sources that contradict each other, keys without effect."""

from __future__ import annotations

import difflib
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gateway.config.files import KeyPath, Problem, dotted
from gateway.config.model import (
    BrokerConfig,
    CameraConfig,
    Config,
    KafkaConfig,
    ListenerConfig,
    ReconnectingConfig,
    SubscriberConfig,
)
from gateway.config.values import SESSIONS_STREAM, is_loopback


def overlaps(config: Config) -> list[Problem]:
    """Everything about a configuration of valid values that still cannot work."""
    return [
        *_source_names(config),
        *_binds(config),
        *_client_ids(config),
        *_exact_engines(config),
        *_camera_streams(config),
        *_camera_engines(config),
        *_routes(config),
        *_internal_streams(config),
        *_credentials(config),
        *_listener_security(config),
        *_kafka(config),
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


def _reconnecting(config: Config) -> Iterator[tuple[tuple[str, ...], ReconnectingConfig]]:
    """Everything that connects by itself."""
    for path, source in _named(config):
        if isinstance(source, ReconnectingConfig):
            yield path, source
    if config.control is not None:
        yield ("control",), config.control


def _source_names(config: Config) -> Iterator[Problem]:
    first: dict[str, tuple[str, ...]] = {}
    for path, _ in _named(config):
        if path[-1] in first:
            yield (
                path,
                f"the name is taken by {dotted(first[path[-1]])}; logs and counters need one name for each source",
            )
        first.setdefault(path[-1], path)


def _exact_engines(config: Config) -> Iterator[Problem]:
    """paho answers a QoS 2 message before anybody has seen it, and keeps it in memory until its release."""
    for name, subscriber in config.mqtt.subscribers.items():
        for index, route in enumerate(subscriber.routes):
            if route.qos == 2 and subscriber.engine == "aiomqtt":
                yield (
                    ("mqtt", "subscribers", name, "routes", index, "qos"),
                    'engine = "aiomqtt" answers QoS 2 before it is on disk; use engine = "native", or qos = 1',
                )


def _internal_streams(config: Config) -> Iterator[Problem]:
    """What is remembered of sessions must stand alone in its stream."""
    text = f"{SESSIONS_STREAM} is the gateway's own; choose another stream"
    for path, source in _named(config):
        if isinstance(source, CameraConfig):
            if source.stream == SESSIONS_STREAM:
                yield (*path, "stream"), text
        elif any(route.stream == SESSIONS_STREAM for route in source.routes):
            yield (*path, "routes"), text


def _binds(config: Config) -> Iterator[Problem]:
    seen: list[tuple[str, str, int]] = []
    for name, listener in config.mqtt.listeners.items():
        for other, host, port in seen:
            if listener.unix_path is not None and host == str(listener.unix_path):
                yield (
                    ("mqtt", "listeners", name, "bind"),
                    f"the socket is mqtt.listeners.{other}'s; choose another path",
                )
                break
            if listener.port and listener.port == port and _same_address(listener.host, host):
                yield (
                    ("mqtt", "listeners", name, "bind"),
                    f"port {port} is taken by mqtt.listeners.{other}; choose another",
                )
                break
        seen.append((name, str(listener.unix_path or listener.host), listener.port))


def _same_address(one: str, other: str) -> bool:
    """Whether binding both to one port collides; a wildcard covers everything."""
    if one == other or {one, other} == {"localhost", "127.0.0.1"}:
        return True
    return any(host in ("0.0.0.0", "::", "*") for host in (one, other))


def _client_ids(config: Config) -> Iterator[Problem]:
    seen: dict[tuple[str, int, str], tuple[str, ...]] = {}
    for path, client in _reconnecting(config):
        if not isinstance(client, BrokerConfig) or client.client_id is None:
            continue
        key = (client.host, client.port, client.client_id)
        if key in seen:
            text = f"{dotted(seen[key])} uses it at the same broker, which would disconnect one for the other"
            yield (*path, "client_id"), text
        seen.setdefault(key, path)


def _camera_engines(config: Config) -> Iterator[Problem]:
    for name, camera in config.cameras.items():
        if camera.engine == "native" and not camera.native_possible:
            text = "'native' speaks rtsp:// over TCP only; leave the key out, or set it to 'pyav'"
            yield ("cameras", name, "engine"), text


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
    for path, source in _reconnecting(config):
        if source.password is not None and source.username is None:
            yield path, "has a password but no 'username'"
        if source.reconnect_min_ns > source.reconnect_max_ns:
            yield (*path, "reconnect_min"), "is longer than reconnect_max"
        if isinstance(source, BrokerConfig):
            yield from _tls(path, source)


def _tls(path: tuple[str, ...], source: BrokerConfig) -> Iterator[Problem]:
    files = {key: getattr(source, key) for key in ("tls_ca", "tls_cert", "tls_key") if getattr(source, key) is not None}
    for key, file in files.items():
        if not source.tls:
            yield (*path, key), "has no effect on mqtt://; use mqtts:// in the url, or leave the key out"
        elif not file.is_file():
            yield (*path, key), f"there is no file {str(file)!r}"
    if ("tls_cert" in files) != ("tls_key" in files):
        missing = "tls_key" if "tls_cert" in files else "tls_cert"
        yield path, f"'{missing}' is missing; a client certificate needs both tls_cert and tls_key"


_LISTENER_FILES = ("tls_cert", "tls_key", "tls_client_ca", "tls_client_crl", "users_file", "access_file")


def _listener_security(config: Config) -> Iterator[Problem]:
    for name, listener in config.mqtt.listeners.items():
        path = ("mqtt", "listeners", name)
        for key in _LISTENER_FILES:
            file = getattr(listener, key)
            if file is not None and not file.is_file():
                yield (*path, key), f"there is no file {str(file)!r}"
        yield from _listener_tls(path, listener)
        yield from _anonymous(path, listener)
        if listener.websocket_origins is not None and listener.transport != "websocket":
            yield (*path, "websocket_origins"), 'has an effect only with transport = "websocket"'


def _listener_tls(path: tuple[str, ...], listener: ListenerConfig) -> Iterator[Problem]:
    if not listener.tls:
        for key in ("tls_key", "tls_client_ca", "tls_client_crl"):
            if getattr(listener, key) is not None:
                yield (*path, key), "has no effect without 'tls_cert'; set it, or leave this out"
        if listener.client_certificates != "none":
            yield (
                (*path, "client_certificates"),
                "clients show certificates only over TLS; set 'tls_cert' and 'tls_key'",
            )
    elif listener.unix_path is not None:
        yield (*path, "tls_cert"), "has no effect on a Unix socket; its file's permissions say who may connect"
    if listener.client_certificates != "none" and listener.tls_client_ca is None:
        yield path, "'tls_client_ca' is missing: which authority's client certificates are good"
    if listener.client_certificates == "none":
        if listener.tls and (listener.tls_client_ca or listener.tls_client_crl):
            key = "tls_client_ca" if listener.tls_client_ca else "tls_client_crl"
            yield (*path, key), 'has no effect; set client_certificates = "require" or "optional"'
        if listener.use_identity_as_username:
            yield (*path, "use_identity_as_username"), 'needs client_certificates = "require" or "optional"'


def _anonymous(path: tuple[str, ...], listener: ListenerConfig) -> Iterator[Problem]:
    """Open to the network by accident is what this refuses."""
    if not (listener.is_local or listener.knows_clients or listener.allow_anonymous_set):
        text = (
            "is reachable from other machines, and nobody would have to prove who they are; set 'users_file', or "
            "'client_certificates = \"require\"' with TLS, or, if everybody may publish, 'allow_anonymous = true'"
        )
        yield (*path, "bind"), text
    if listener.allow_anonymous_set is False and not listener.knows_clients and listener.client_certificates == "none":
        yield (*path, "allow_anonymous"), "is false, but there are neither users nor certificates: nobody could connect"


# The name of the Kafka endpoint among the sources: of its ring, in logs and statistics.
KAFKA_SOURCE = "kafka"


def _kafka(config: Config) -> Iterator[Problem]:
    kafka = config.kafka
    if kafka is None:
        return
    for key in ("tls_cert", "tls_key", "users_file"):
        file = getattr(kafka, key)
        if file is not None and not file.is_file():
            yield ("kafka", key), f"there is no file {str(file)!r}"
    if kafka.tls_key is not None and not kafka.tls:
        yield ("kafka", "tls_key"), "has no effect without 'tls_cert'; set it, or leave this out"
    if not (kafka.is_local or kafka.users_file or kafka.allow_anonymous_set):
        text = (
            "is reachable from other machines, and everybody there could read all streams; set 'users_file', or, if "
            "that is meant, 'allow_anonymous = true'"
        )
        yield ("kafka", "bind"), text
    if kafka.users_file is not None and kafka.allow_anonymous_set:
        yield ("kafka", "allow_anonymous"), "whoever connects has to be one of 'users_file'; leave one of the two out"
    yield from _kafka_overlaps(config, kafka)


def _kafka_overlaps(config: Config, kafka: KafkaConfig) -> Iterator[Problem]:
    cameras = {camera.stream: name for name, camera in config.cameras.items()}
    for index, stream in enumerate(kafka.produce):
        if stream.startswith("__"):
            yield ("kafka", "produce", index), f"{stream!r} begins with '__', as only the gateway's own streams do"
        elif stream in cameras:
            yield ("kafka", "produce", index), f"cameras.{cameras[stream]} records in {stream!r}; choose another stream"
    for path, source in _named(config):
        if path[-1] == KAFKA_SOURCE:
            yield path, "the Kafka endpoint has this name in logs and counters; choose another"
        if not isinstance(source, ListenerConfig) or not source.port or source.port != kafka.port:
            continue
        if _same_address(source.host, kafka.host):
            yield ("kafka", "bind"), f"port {kafka.port} is taken by {dotted(path)}; choose another"


def _kafka_warnings(kafka: KafkaConfig) -> Iterator[Problem]:
    if not kafka.is_local and not kafka.tls:
        yield ("kafka", "bind"), "records go over the network in plain text; set 'tls_cert' and 'tls_key'"
    for key in ("users_file", "tls_key"):
        file = getattr(kafka, key)
        if file is not None and _others_may_read(file):
            yield ("kafka", key), f"{file} may be read by every user; 'chmod 600' it"


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
    yield from _control_warnings(config)
    if config.kafka is not None:
        yield from _kafka_warnings(config.kafka)


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
        yield from _listener_warnings(("mqtt", "listeners", name), listener)
    urls = Counter(camera.url for camera in config.cameras.values())
    for name, camera in config.cameras.items():
        if urls[camera.url] > 1:
            yield ("cameras", name, "url"), "another camera has the same url; its pictures are recorded twice"
    for path, source in _reconnecting(config):
        if source.password_file and _others_may_read(source.password_file):
            yield (*path, "password_file"), f"{source.password_file} may be read by every user; 'chmod 600' it"


def _listener_warnings(path: tuple[str, ...], listener: ListenerConfig) -> Iterator[Problem]:
    if not listener.is_local and listener.allow_anonymous:
        yield (*path, "allow_anonymous"), "everybody who reaches this address may publish"
    if not listener.is_local and listener.users_file is not None and not listener.tls:
        yield (*path, "bind"), "passwords go over the network in plain text; set 'tls_cert' and 'tls_key'"
    for key in ("users_file", "tls_key"):
        file = getattr(listener, key)
        if file is not None and _others_may_read(file):
            yield (*path, key), f"{file} may be read by every user; 'chmod 600' it"


def _control_warnings(config: Config) -> Iterator[Problem]:
    control = config.control
    if control is None or not control.commands or is_loopback(control.host):
        return
    if control.username is None and control.tls_cert is None:
        yield ("control", "commands"), "whoever reaches the broker may pause sources, unless it knows its clients"
    elif not control.tls:
        yield ("control", "url"), "commands and the password are not encrypted on their way; use mqtts://"


def _others_may_read(file: Path) -> bool:
    try:
        return bool(file.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
