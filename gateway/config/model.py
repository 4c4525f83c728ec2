"""What ``gateway.toml`` may say: every key with its default, its unit and its bounds.

Units are in the names: where the file says ``linger = "5ms"`` the model has ``linger_ns``. Passwords are ``SecretStr``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gateway.clock import NS_PER_MS, NS_PER_S, parse_duration, parse_size
from gateway.config.values import (
    _LEVEL,
    DAY_NS,
    GIB,
    KIB,
    MIB,
    MINUTE_NS,
    OVERFLOW_STREAM,
    RECORD_BYTES_MAX,
    SEGMENT_AGE_NS_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SESSIONS_STREAM,
    Bind,
    DurationNs,
    FilePath,
    KeyTemplate,
    Name,
    Secret,
    SizeBytes,
    StreamTemplate,
    TopicFilter,
    check_broker_url,
    check_camera_url,
    check_mode,
    check_tcp_bind,
    check_timezone,
    check_topic,
    is_loopback,
    split_bind,
    unix_path,
)


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


class Section(BaseModel):
    """A table of the file: no unknown keys, no silent conversions, not changed after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class SiteConfig(Section):
    """``[site]``: what this place is called, the zone in which times without one are meant, and who sets the clock."""

    name: Name = "gateway"
    timezone: Annotated[str, AfterValidator(check_timezone)] = "UTC"
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
    key_index: bool | None = None  # None: unless a camera records in it

    @property
    def segment_age_ns(self) -> int:
        """A segment is sealed at this age: as set, else 7 days or an eighth of the retention if that is less."""
        if self.segment_age_set_ns is not None:
            return self.segment_age_set_ns
        if self.retention.age_ns is None:
            return SEGMENT_AGE_NS_MAX
        return max(NS_PER_S, min(SEGMENT_AGE_NS_MAX, self.retention.age_ns // 8))


class Route(Section):
    """Messages whose topic matches ``filter`` are recorded in ``stream``.

    ``stream`` and ``key`` may hold levels of the topic, as in ``"line-{2}"``; ``key`` also ``{topic}``, which it is by
    itself. ``overload``: what happens to them when the disk cannot follow.
    """

    filter: TopicFilter
    stream: StreamTemplate
    key: KeyTemplate = "{topic}"
    overload: Literal["wait", "drop-newest"] = "wait"

    @property
    def is_template(self) -> bool:
        """Do topics decide the name of the stream?"""
        return "{" in self.stream

    @property
    def known_stream(self) -> str:
        """The stream that is certainly needed: for a template the one for names that are too long or too many."""
        return OVERFLOW_STREAM if self.is_template else self.stream

    @property
    def levels_used(self) -> int:
        """The highest level of the topic that ``stream`` or ``key`` takes; 0 for none."""
        return max((int(found[1]) for found in _LEVEL.findall(self.stream + self.key)), default=0)


class SubscriberRoute(Route):
    """A route of a subscriber, which also says with which quality of service it subscribes."""

    qos: Literal[0, 1, 2] = 1


class ListenerConfig(Section):
    """``[mqtt.listeners.NAME]``: devices connect straight to the gateway."""

    bind: Bind
    routes: list[Route] = Field(min_length=1)
    subscribe: Literal["refuse", "accept"] = "refuse"
    client_header: bool = False  # does every record say which client sent it?
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
    # How long a session may outlive its connection, at most; MQTT 3.1.1 clients that want one get all of it.
    session_expiry_max_ns: DurationNs = Field(default=7 * DAY_NS, alias="session_expiry_max", ge=0, le=3_650 * DAY_NS)
    sessions_max: int = Field(default=100_000, ge=1, le=10_000_000)
    # From the first byte of a packet to its last.
    packet_timeout_ns: DurationNs = Field(default=30 * NS_PER_S, alias="packet_timeout", ge=NS_PER_S, le=60 * MINUTE_NS)

    # -- transport
    transport: Literal["tcp", "websocket"] = "tcp"
    websocket_origins: list[str] | None = None  # None: of browsers any page may connect
    socket_mode: Annotated[str, AfterValidator(check_mode)] = "0660"  # of a Unix socket's file

    # -- TLS: all PEM
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None  # default: in the same file as the certificate
    tls_client_ca: FilePath | None = None
    tls_client_crl: FilePath | None = None
    client_certificates: Literal["none", "optional", "require"] = "none"
    use_identity_as_username: bool = False  # the common name of the client's certificate is its user name

    # -- who may connect, and publish what
    users_file: FilePath | None = None  # as mosquitto_passwd writes it
    access_file: FilePath | None = None  # in the format of Mosquitto's acl_file
    allow_anonymous_set: bool | None = Field(default=None, alias="allow_anonymous")

    # -- limits; 0 is none
    connections_per_address_max: int = Field(default=0, ge=0, le=1_000_000)
    connect_rate: int = Field(default=0, ge=0, le=1_000_000)  # new connections a second
    messages_per_second: int = Field(default=0, ge=0, le=100_000_000)  # of one client
    messages_per_second_total: int = Field(default=0, ge=0, le=100_000_000)

    @property
    def unix_path(self) -> Path | None:
        return unix_path(self.bind)

    @property
    def host(self) -> str:
        """Empty for a Unix socket."""
        return "" if self.unix_path else split_bind(self.bind)[0]

    @property
    def port(self) -> int:
        """0 for a Unix socket, and where the system chooses."""
        return 0 if self.unix_path else split_bind(self.bind)[1]

    @property
    def tls(self) -> bool:
        return self.tls_cert is not None

    @property
    def is_local(self) -> bool:
        """Only programs of this machine can connect."""
        return self.unix_path is not None or is_loopback(self.host)

    @property
    def knows_clients(self) -> bool:
        """Somebody proves who they are: by a password or a certificate."""
        return self.users_file is not None or self.client_certificates == "require"

    @property
    def door(self) -> str:
        """In a few words: how it is reached, and who may come in."""
        how = [word for word, so in (("TLS", self.tls), ("WebSocket", self.transport == "websocket")) if so]
        who = ["users"] if self.users_file is not None else []
        who += [f"certificates: {self.client_certificates}"] if self.client_certificates != "none" else []
        who += ["anonymous"] if self.allow_anonymous else []
        return ", ".join(how + who)

    @property
    def allow_anonymous(self) -> bool:
        """As set; else only where nobody from outside can connect, and no users are named."""
        if self.allow_anonymous_set is not None:
            return self.allow_anonymous_set
        return self.is_local and not self.knows_clients


class ReconnectingConfig(Section):
    """What sources that connect by themselves have in common: who they are, and how patient."""

    username: str | None = None
    password: Secret | None = None
    password_file: FilePath | None = None  # read by `load`, which puts its content into `password`
    reconnect_min_ns: DurationNs = Field(default=NS_PER_S, alias="reconnect_min", ge=100 * NS_PER_MS, le=60 * MINUTE_NS)
    reconnect_max_ns: DurationNs = Field(
        default=30 * NS_PER_S, alias="reconnect_max", ge=100 * NS_PER_MS, le=60 * MINUTE_NS
    )


class BrokerConfig(ReconnectingConfig):
    """What is needed to be the client of a broker."""

    url: Annotated[str, AfterValidator(check_broker_url)]
    client_id: str | None = Field(
        None, min_length=1, max_length=65_535
    )  # default: made from the names of site and source
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


class SubscriberConfig(BrokerConfig):
    """``[mqtt.subscribers.NAME]``: the gateway subscribes at a broker that is there already."""

    engine: Literal["native", "aiomqtt"] = "native"
    routes: list[SubscriberRoute] = Field(min_length=1)
    clean_session: bool = False

    @property
    def records_exactly_once(self) -> bool:
        """Some messages are, whatever restarts: it keeps a session of its own beside the broker's."""
        return not self.clean_session and any(route.qos == 2 for route in self.routes)


class ControlConfig(BrokerConfig):
    """``[control]``: the gateway tells a broker how it is, and takes commands there if that is allowed."""

    topic: Annotated[str, AfterValidator(check_topic)] | None = None  # default: gateway/<site>
    statistics_interval_ns: DurationNs = Field(
        default=10 * NS_PER_S, alias="statistics_interval", ge=NS_PER_S, le=60 * MINUTE_NS
    )
    commands: bool = False  # whoever may publish at the broker may then pause a source


class CameraConfig(ReconnectingConfig):
    """``[cameras.NAME]``: one camera."""

    url: Annotated[str, AfterValidator(check_camera_url)]
    stream: Name = ""  # default: the camera's name, which `Config` fills in
    engine: Literal["native", "pyav"] | None = None  # default: see `engine_used`
    transport: Literal["tcp", "udp"] = "tcp"
    open_timeout_ns: DurationNs = Field(
        default=10 * NS_PER_S, alias="open_timeout", ge=100 * NS_PER_MS, le=10 * MINUTE_NS
    )
    read_timeout_ns: DurationNs = Field(
        default=10 * NS_PER_S, alias="read_timeout", ge=100 * NS_PER_MS, le=10 * MINUTE_NS
    )

    @property
    def native_possible(self) -> bool:
        """Does the native engine speak this? RTSP over plain TCP with pictures on the same connection."""
        return urlsplit(self.url).scheme == "rtsp" and self.transport == "tcp"

    @property
    def engine_used(self) -> Literal["native", "pyav"]:
        """The configured engine; else native where that is possible."""
        return self.engine or ("native" if self.native_possible else "pyav")


def _check_advertise(address: str) -> str:
    host, port = split_bind(address)
    if port == 0 or host in ("0.0.0.0", "::"):
        raise ValueError(
            f"{address!r} is no place to come to; write the name and port that clients reach, as 'edge-7:9092'"
        )
    return address


class KafkaConfig(Section):
    """``[kafka]``: Kafka clients read every stream as a topic, and write to those that are named."""

    bind: Annotated[str, AfterValidator(check_tcp_bind)]
    # What clients are told to come back to; default: the address at which they came.
    advertise: Annotated[str, AfterValidator(_check_advertise)] | None = None
    produce: list[Name] = []  # streams that clients may write to
    connections_max: int = Field(default=100, ge=1, le=100_000)
    max_request_bytes: SizeBytes = Field(default=17 * MIB, alias="max_request", ge=64 * KIB, le=64 * MIB)
    connect_timeout_ns: DurationNs = Field(
        default=10 * NS_PER_S, alias="connect_timeout", ge=NS_PER_S, le=10 * MINUTE_NS
    )
    idle_timeout_ns: DurationNs = Field(default=10 * MINUTE_NS, alias="idle_timeout", ge=NS_PER_S, le=DAY_NS)
    # From the first byte of a request or a response to its last.
    transfer_timeout_ns: DurationNs = Field(default=MINUTE_NS, alias="transfer_timeout", ge=NS_PER_S, le=60 * MINUTE_NS)
    tls_cert: FilePath | None = None
    tls_key: FilePath | None = None  # default: in the same file as the certificate
    users_file: FilePath | None = None  # as `gateway kafka-user` writes it
    allow_anonymous_set: bool | None = Field(default=None, alias="allow_anonymous")

    @property
    def host(self) -> str:
        return split_bind(self.bind)[0]

    @property
    def port(self) -> int:
        """0: the system chooses."""
        return split_bind(self.bind)[1]

    @property
    def tls(self) -> bool:
        return self.tls_cert is not None

    @property
    def is_local(self) -> bool:
        """Only programs of this machine can connect."""
        return is_loopback(self.host)


class MqttConfig(Section):
    """``[mqtt]``: listeners and subscribers by name."""

    listeners: dict[Name, ListenerConfig] = {}
    subscribers: dict[Name, SubscriberConfig] = {}


# Far more than comes between two checkpoints of the sessions (10 s): only what those have made needless is deleted.
_SESSIONS_STREAM_CONFIG = StreamConfig.model_validate({"retention": "512MiB", "segment_size": "16MiB"})


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
    control: ControlConfig | None = None
    kafka: KafkaConfig | None = None

    def stream(self, name: str) -> StreamConfig:
        """The stream's settings, or the defaults for one that the file does not name."""
        return self.streams.get(name) or (_SESSIONS_STREAM_CONFIG if name == SESSIONS_STREAM else StreamConfig())

    def sources(self) -> dict[str, ListenerConfig | SubscriberConfig | CameraConfig]:
        """All sources by name, in the order of the file's sections."""
        return {**self.mqtt.listeners, **self.mqtt.subscribers, **self.cameras}

    @property
    def keeping_sessions(self) -> list[str]:
        """The sources that keep sessions of MQTT across restarts."""
        return [
            *self.mqtt.listeners,
            *(name for name, subscriber in self.mqtt.subscribers.items() if subscriber.records_exactly_once),
        ]

    @property
    def control_topic(self) -> str:
        """What all topics of the control plane begin with."""
        return (self.control.topic if self.control else None) or f"gateway/{self.site.name}"

    def written_streams(self) -> set[str]:
        """The streams that sources record in; only these are ever open."""
        streams = {camera.stream for camera in self.cameras.values()}
        for listener in self.mqtt.listeners.values():
            streams |= {route.known_stream for route in listener.routes}
        if self.keeping_sessions:
            streams.add(SESSIONS_STREAM)
        for subscriber in self.mqtt.subscribers.values():
            streams |= {route.known_stream for route in subscriber.routes}
        return streams | set(self.kafka.produce if self.kafka else ())
