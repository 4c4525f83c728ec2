"""What a configuration needs of the machine, beside what the machine gives: checked before anything is started."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gateway.clock import format_size
from gateway.config import Config
from gateway.errors import ConfigError

DESCRIPTORS_PER_STREAM = 6
DESCRIPTORS_PER_RING = 2
# Libraries, pipes, recovery, the log.
DESCRIPTORS_MARGIN = 64
# A mapped tail, and the one that is being sealed.
MAPPINGS_PER_STREAM = 2
# The interpreter's own, and its libraries'.
MAPPINGS_MARGIN = 2_000

_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
_MEMORY = Path("/proc/meminfo")
_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Sum(NamedTuple):
    """One thing that is needed: how much, of what it is made up, how much there is (None: no limit is known)."""

    name: str
    needed: int
    parts: str
    available: int | None
    remedy: str

    @property
    def fits(self) -> bool:
        return self.available is None or self.needed <= self.available

    def __str__(self) -> str:
        show = format_size if self.name == "memory" else "{:,}".format
        has = "no limit is known" if self.available is None else f"there are {show(self.available)}"
        return f"{show(self.needed)} {'of ' if self.name == 'memory' else ''}{self.name} ({self.parts}); {has}"


def sums(config: Config) -> list[Sum]:
    """Descriptors, mappings and memory, as they add up."""
    return [_descriptors(config), _mappings(config), _memory(config)]


def check(config: Config) -> None:
    """ConfigError, with the sums shown, if the machine does not give what this configuration needs."""
    problems = [f"The configuration needs {one}. {one.remedy}" for one in sums(config) if not one.fits]
    if problems:
        raise ConfigError(problems)


# What is written of MQTT sessions goes through a small ring for each listener, and each subscriber with QoS 2.
SESSION_RING_BYTES = 2**20


# Making the key index of one segment at a time, whatever it holds.
KEY_INDEX_BYTES = 64 * 2**20


def rings(config: Config) -> int:
    """A large ring for each listener and each subscriber; the cameras of each engine share one."""
    engines = {camera.engine_used for camera in config.cameras.values()}
    return len(config.mqtt.listeners) + len(config.mqtt.subscribers) + len(engines)


def session_rings_bytes(config: Config) -> int:
    """A small ring for each source that keeps sessions."""
    return len(config.keeping_sessions) * SESSION_RING_BYTES


# Large requests of Kafka clients have so much memory, all clients together …
KAFKA_REQUESTS_BYTES = 64 * 2**20
# … and small ones, and responses, so much for each connection.
KAFKA_CONNECTION_BYTES = 2**19
# Through which produced records go.
KAFKA_RING_BYTES = 64 * 2**20
KAFKA_IDLE_RING_BYTES = 2**16


def kafka_ring_bytes(config: Config) -> int:
    """The endpoint's ring, which tells it of commits too: a small one where nobody may produce."""
    if config.kafka is None:
        return 0
    return KAFKA_RING_BYTES if config.kafka.produce else KAFKA_IDLE_RING_BYTES


def kafka_bytes(config: Config) -> int:
    """Its ring, and what it holds of requests and responses."""
    if config.kafka is None:
        return 0
    return kafka_ring_bytes(config) + KAFKA_REQUESTS_BYTES + config.kafka.connections_max * KAFKA_CONNECTION_BYTES


def memory_bytes(config: Config) -> int:
    """Of all rings, of the batches that are not durable yet, of making key indexes, and of the Kafka endpoint."""
    small = session_rings_bytes(config) + kafka_bytes(config)
    return rings(config) * config.limits.ring_bytes + small + config.limits.buffer_bytes + KEY_INDEX_BYTES


def _descriptors(config: Config) -> Sum:
    streams = len(config.written_streams())
    connections = sum(listener.connections_max for listener in config.mqtt.listeners.values())
    # Each of a Kafka client's may have a segment open beside its socket.
    connections += 2 * config.kafka.connections_max if config.kafka is not None else 0
    others = DESCRIPTORS_PER_RING * (rings(config) + len(config.keeping_sessions)) + DESCRIPTORS_MARGIN
    others += len(config.cameras)  # a socket each
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Sum(
        "descriptors",
        DESCRIPTORS_PER_STREAM * streams + connections + others,
        f"{DESCRIPTORS_PER_STREAM} × {streams} streams + {connections:,} connections + {others} others",
        None if hard == resource.RLIM_INFINITY else hard,
        "Raise the hard limit of open files (LimitNOFILE= of systemd, ulimit -Hn), or lower 'connections_max'.",
    )


def _mappings(config: Config) -> Sum:
    streams = len(config.written_streams())
    per_stream = MAPPINGS_PER_STREAM if config.disk.append == "mapped" else 0
    others = rings(config) + len(config.keeping_sessions) + MAPPINGS_MARGIN
    return Sum(
        "mappings",
        per_stream * streams + others,
        f"{per_stream} × {streams} streams + {others:,} others",
        _number(_MAP_COUNT),
        'Raise vm.max_map_count with sysctl, or use append = "pwrite".',
    )


def _memory(config: Config) -> Sum:
    limits = config.limits
    count = rings(config)
    sessions_bytes = session_rings_bytes(config)
    available = [found for found in (_memory_available(), *map(_number, _CGROUPS)) if found is not None]
    return Sum(
        "memory",
        memory_bytes(config),
        f"{count} rings of {format_size(limits.ring_bytes)} + {format_size(sessions_bytes)} of small ones for sessions"
        f" + {format_size(limits.buffer_bytes)} of buffers + {format_size(KEY_INDEX_BYTES)} for key indexes"
        + (f" + {format_size(kafka_bytes(config))} of the Kafka endpoint" if config.kafka is not None else ""),
        min(available, default=None),
        "Lower 'ring' or 'buffers' in [limits], or let sources share one address and one set of routes.",
    )


def _memory_available() -> int | None:
    for line in _lines(_MEMORY):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _number(path: Path) -> int | None:
    """The number in a file of the kernel's; None for "max", or where there is no such file."""
    text = next(_lines(path), "").strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), path.open(encoding="ascii", errors="replace") as file:
        yield from file
