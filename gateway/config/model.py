"""What ``gateway.toml`` may say: every key with its default, its unit and its bounds.

Units are in the names: where the file says ``linger = "5ms"`` the model has ``linger_ns``. Passwords are ``SecretStr``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from gateway.clock import NS_PER_MS, NS_PER_S, parse_duration, parse_size

KIB, MIB, GIB = 2**10, 2**20, 2**30
MINUTE_NS, DAY_NS = 60 * NS_PER_S, 86_400 * NS_PER_S

# The largest record there can be: key, value and headers together.
RECORD_BYTES_MAX = 16 * MIB
# Positions in Kafka's index files are signed 32-bit.
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = MIB, 2**31 - 1
SEGMENT_AGE_NS_MAX = 7 * DAY_NS

_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


def _check_name(name: str) -> str:
    if name in (".", "..") or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a usable name; use 1 to 249 of A-Z, a-z, 0-9, '.', '_' and '-', and not '.' or '..'"
        )
    return name


def _check_filter(topic_filter: str) -> str:
    """MQTT 5, section 4.7.1: '+' and '#' stand alone in their level, '#' only at the end."""
    if not topic_filter or "\0" in topic_filter or len(topic_filter.encode()) > 65_535:
        raise ValueError("a topic filter has 1 to 65535 bytes and no NUL character")
    levels = topic_filter.split("/")
    if any("#" in level and (level != "#" or index < len(levels) - 1) for index, level in enumerate(levels)):
        raise ValueError(f"in {topic_filter!r} '#' must be the whole last level, as in 'plant/#'")
    if any("+" in level and level != "+" for level in levels):
        raise ValueError(f"in {topic_filter!r} '+' must be a whole level, as in 'plant/+/temperature'")
    return topic_filter


def split_bind(bind: str) -> tuple[str, int]:
    """``"127.0.0.1:1883"`` or ``"[::1]:1883"`` as host and port; port 0 lets the system choose one."""
    host, colon, port = bind.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{bind!r}: an IPv6 address stands in brackets, as in '[::1]:1883'")
    if not colon or not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError(f"{bind!r} is not host:port; write for example '127.0.0.1:1883', or '0.0.0.0:1883' for all")
    return host, int(port)


def _check_bind(bind: str) -> str:
    split_bind(bind)
    return bind


def _check_url(url: str, schemes: tuple[str, ...], example: str, *, path_allowed: bool) -> str:
    """The sentences never show the URL itself: it may hold a password, also where it cannot be parsed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"this is not a URL; write for example '{example}'") from None
    if "@" in parts.netloc:
        raise ValueError("user name and password do not belong into a URL; set 'username' and 'password' beside it")
    if parts.scheme not in schemes:
        raise ValueError(f"the URL must start with {' or '.join(f'{s}://' for s in schemes)}, as in '{example}'")
    if not host or port == 0:
        raise ValueError(f"the URL must name a host, and a port above 0 if any; write for example '{example}'")
    if not path_allowed and (parts.path not in ("", "/") or parts.query or parts.fragment):
        raise ValueError(f"the URL must end after host and port, as in '{example}'")
    return url


def _check_broker_url(url: str) -> str:
    return _check_url(url, ("mqtt", "mqtts"), "mqtt://broker.local:1883", path_allowed=False)


def _check_camera_url(url: str) -> str:
    return _check_url(url, ("rtsp", "rtsps"), "rtsp://10.0.0.11/main", path_allowed=True)


def _check_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError; a directory is an OSError
        by_city = {zone.rpartition("/")[2].lower(): zone for zone in available_timezones()}
        near = difflib.get_close_matches(name, available_timezones(), 1, 0.7)
        near = near or [by_city[city] for city in difflib.get_close_matches(name.lower(), by_city, 1, 0.7)]
        hint = f"did you mean '{near[0]}'?" if near else "use a name such as 'Europe/Berlin' or 'UTC'"
        raise ValueError(f"there is no time zone {name!r}; {hint}") from None
    return name


def _as_path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


def _as_secret(value: object) -> object:
    return SecretStr(value) if isinstance(value, str) else value


def _as_retention(value: object) -> object:
    """``"30d"``, ``"100GiB"`` or ``["30d", "100GiB"]``."""
    if isinstance(value, Retention | Mapping):
        return value
    limits: dict[str, int] = {}
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str):
            raise ValueError('retention is an age, a size or both: "30d", "100GiB" or ["30d", "100GiB"]')
        is_size = item.strip()[-1:] in ("B", "b")
        key = "size_bytes" if is_size else "age_ns"
        if key in limits:
            raise ValueError("retention takes at most one age and one size")
        limits[key] = parse_size(item) if is_size else parse_duration(item)
    if not limits or 0 in limits.values():
        raise ValueError("a retention of nothing would keep nothing; leave the key out to keep everything")
    return Retention(**limits)


Name = Annotated[str, AfterValidator(_check_name)]
TopicFilter = Annotated[str, AfterValidator(_check_filter)]
Bind = Annotated[str, AfterValidator(_check_bind)]
DurationNs = Annotated[int, BeforeValidator(parse_duration)]
SizeBytes = Annotated[int, BeforeValidator(parse_size)]
FilePath = Annotated[Path, BeforeValidator(_as_path)]
Secret = Annotated[SecretStr, BeforeValidator(_as_secret)]


class Section(BaseModel):
    """A table of the file: no unknown keys, no silent conversions, not changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class SiteConfig(Section):
    """``[site]``: what this place is called, the zone in which times without one are meant, and who sets the clock."""

    name: Name = "gateway"
    timezone: Annotated[str, AfterValidator(_check_timezone)] = "UTC"
    # "ntp": retention by age waits while the kernel calls the clock unsynchronised. "trusted": it never does.
    clock: Literal["ntp", "trusted"] = "ntp"

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


class DiskConfig(Section):
    """``[disk]``: how the data directory's file system is used, and what of it is never filled."""

    # None: 2 GiB, or a twentieth of a smaller file system.
    reserve_bytes: SizeBytes | None = Field(default=None, alias="reserve")
    append: Literal["pwrite", "mapped"] = "pwrite"  # how segments grow; bench/ compares the two
    # One syncfs(2) for many dirty streams: "auto" where the data directory has a file system of its own.
    syncfs: Literal["auto", "always", "never"] = "auto"


class LimitsConfig(Section):
    """``[limits]``: what bounds memory, whatever the number of sensors, cameras and keys."""

    max_streams: int = Field(default=1_000, ge=1, le=100_000)
    ring_bytes: SizeBytes = Field(
        default=64 * MIB, alias="ring", ge=MIB, le=4 * GIB
    )  # one per listener and subscriber, one for all cameras
    # Batches that are not durable yet, of all streams together.
    buffer_bytes: SizeBytes = Field(default=64 * MIB, alias="buffers", ge=MIB, le=64 * GIB)
    record_bytes_max: SizeBytes = Field(default=RECORD_BYTES_MAX, alias="largest_record", ge=KIB, le=RECORD_BYTES_MAX)


class Retention(Section):
    """How long, or how much, a stream keeps; None is without bound."""

    age_ns: int | None = None
    size_bytes: int | None = None

    def __str__(self) -> str:
        from gateway.clock import format_duration, format_size

        parts = [format_duration(self.age_ns)] if self.age_ns is not None else []
        parts += [format_size(self.size_bytes)] if self.size_bytes is not None else []
        return " and ".join(parts) or "everything"


class StreamConfig(Section):
    """``[streams.NAME]``. Every key has a default, which also holds for streams first seen at run time."""

    retention: Annotated[Retention, BeforeValidator(_as_retention)] = Retention()
    ack: Literal["disk", "memory"] = "disk"
    linger_ns: DurationNs = Field(default=5 * NS_PER_MS, alias="linger", ge=0, le=10 * NS_PER_S)
    when_full: Literal["delete-oldest", "refuse"] = "delete-oldest"
    segment_bytes: SizeBytes = Field(default=GIB, alias="segment_size", ge=SEGMENT_BYTES_MIN, le=SEGMENT_BYTES_MAX)
    segment_age_set_ns: DurationNs | None = Field(default=None, alias="segment_age", ge=NS_PER_S)

    @property
    def segment_age_ns(self) -> int:
        """A segment is sealed at this age: as set, else 7 days or an eighth of the retention if that is less."""
        if self.segment_age_set_ns is not None:
            return self.segment_age_set_ns
        if self.retention.age_ns is None:
            return SEGMENT_AGE_NS_MAX
        return max(NS_PER_S, min(SEGMENT_AGE_NS_MAX, self.retention.age_ns // 8))


class Route(Section):
    """Messages whose topic matches ``filter`` are recorded in ``stream``."""

    filter: TopicFilter
    stream: Name


class SubscriberRoute(Route):
    """A route of a subscriber, which also says with which quality of service it subscribes."""

    qos: Literal[0, 1] = 1


class ListenerConfig(Section):
    """``[mqtt.listeners.NAME]``: devices connect straight to the gateway."""

    bind: Bind
    routes: list[Route] = Field(min_length=1)
    subscribe: Literal["refuse", "accept"] = "refuse"
    max_packet_bytes: SizeBytes = Field(default=RECORD_BYTES_MAX, alias="max_packet", ge=128, le=RECORD_BYTES_MAX)
    connections_max: int = Field(default=10_000, ge=1, le=1_000_000)
    receive_maximum: int = Field(default=1_024, ge=1, le=65_535)  # unacknowledged QoS 1 publishes per connection
    connect_timeout_ns: DurationNs = Field(
        default=10 * NS_PER_S, alias="connect_timeout", ge=NS_PER_S, le=10 * MINUTE_NS
    )
    # What MQTT 5 clients are told when they ask for none or a longer one.
    keepalive_max_ns: DurationNs = Field(
        default=60 * MINUTE_NS, alias="keepalive_max", ge=NS_PER_S, le=65_535 * NS_PER_S
    )

    @property
    def host(self) -> str:
        return split_bind(self.bind)[0]

    @property
    def port(self) -> int:
        return split_bind(self.bind)[1]


class ReconnectingConfig(Section):
    """What sources that connect by themselves have in common: who they are, and how patient."""

    username: str | None = None
    password: Secret | None = None
    password_file: FilePath | None = None  # read by `load`, which puts its content into `password`
    reconnect_min_ns: DurationNs = Field(default=NS_PER_S, alias="reconnect_min", ge=100 * NS_PER_MS, le=60 * MINUTE_NS)
    reconnect_max_ns: DurationNs = Field(
        default=30 * NS_PER_S, alias="reconnect_max", ge=100 * NS_PER_MS, le=60 * MINUTE_NS
    )


class SubscriberConfig(ReconnectingConfig):
    """``[mqtt.subscribers.NAME]``: the gateway subscribes at a broker that is there already."""

    url: Annotated[str, AfterValidator(_check_broker_url)]
    engine: Literal["native", "aiomqtt"] = "native"
    routes: list[SubscriberRoute] = Field(min_length=1)
    client_id: str | None = Field(
        None, min_length=1, max_length=65_535
    )  # default: made from the names of site and source
    clean_session: bool = False
    keepalive_ns: DurationNs = Field(default=30 * NS_PER_S, alias="keepalive", ge=NS_PER_S, le=65_535 * NS_PER_S)
    tls_ca: FilePath | None = None  # PEM; default: the system's certificate authorities
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None

    @property
    def tls(self) -> bool:
        return urlsplit(self.url).scheme == "mqtts"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or (8883 if self.tls else 1883)


class CameraConfig(ReconnectingConfig):
    """``[cameras.NAME]``: one RTSP camera."""

    url: Annotated[str, AfterValidator(_check_camera_url)]
    stream: Name = ""  # default: the camera's name, which `Config` fills in
    engine: Literal["pyav"] = "pyav"
    transport: Literal["tcp", "udp"] = "tcp"
    open_timeout_ns: DurationNs = Field(
        default=10 * NS_PER_S, alias="open_timeout", ge=100 * NS_PER_MS, le=10 * MINUTE_NS
    )
    read_timeout_ns: DurationNs = Field(
        default=10 * NS_PER_S, alias="read_timeout", ge=100 * NS_PER_MS, le=10 * MINUTE_NS
    )


class MqttConfig(Section):
    """``[mqtt]``: listeners and subscribers by name."""

    listeners: dict[Name, ListenerConfig] = {}
    subscribers: dict[Name, SubscriberConfig] = {}


def _default_streams(cameras: object) -> object:
    """A camera that names no stream has the one of its own name."""
    if not isinstance(cameras, Mapping):
        return cameras
    return {
        name: {"stream": name, **camera} if isinstance(camera, Mapping) else _with_stream(name, camera)
        for name, camera in cameras.items()
    }


def _with_stream(name: str, camera: Any) -> Any:
    if isinstance(camera, CameraConfig) and not camera.stream:
        return camera.model_copy(update={"stream": name})
    return camera


class Config(Section):
    """The whole file."""

    data: FilePath
    site: SiteConfig = SiteConfig()
    disk: DiskConfig = DiskConfig()
    limits: LimitsConfig = LimitsConfig()
    streams: dict[Name, StreamConfig] = {}
    mqtt: MqttConfig = MqttConfig()
    cameras: Annotated[dict[Name, CameraConfig], BeforeValidator(_default_streams)] = {}

    def stream(self, name: str) -> StreamConfig:
        """The stream's settings, or the defaults for one that the file does not name."""
        return self.streams.get(name) or StreamConfig()

    def sources(self) -> dict[str, ListenerConfig | SubscriberConfig | CameraConfig]:
        """All sources by name, in the order of the file's sections."""
        return {**self.mqtt.listeners, **self.mqtt.subscribers, **self.cameras}

    def written_streams(self) -> set[str]:
        """The streams that sources record in; only these are ever open."""
        streams = {camera.stream for camera in self.cameras.values()}
        for listener in self.mqtt.listeners.values():
            streams |= {route.stream for route in listener.routes}
        for subscriber in self.mqtt.subscribers.values():
            streams |= {route.stream for route in subscriber.routes}
        return streams
