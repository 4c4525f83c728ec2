"""The configuration: reading ``gateway.toml``, checking it, and saying precisely what is wrong with it.

    model      what may be written, with every default and every bound
    files      the file, what it includes, environment variables and password files
    toml_lines on which line a key stands
    checks     what no single value can know: overlaps, contradictions, sums
    explain    a validation error as a sentence

Everything here is about text and values. Nothing opens a socket or touches the data directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gateway.config.checks import KAFKA_SOURCE, overlaps, warnings
from gateway.config.explain import explain
from gateway.config.files import Sources, read_dict, read_file
from gateway.config.model import (
    BrokerConfig,
    CameraConfig,
    Config,
    ControlConfig,
    DiskConfig,
    KafkaConfig,
    LimitsConfig,
    ListenerConfig,
    MqttConfig,
    Retention,
    Route,
    SiteConfig,
    StreamConfig,
    SubscriberConfig,
    SubscriberRoute,
)
from gateway.config.values import OVERFLOW_STREAM, RECORD_BYTES_MAX, SESSIONS_STREAM, split_bind
from gateway.errors import ConfigError

__all__ = [
    "KAFKA_SOURCE",
    "OVERFLOW_STREAM",
    "RECORD_BYTES_MAX",
    "SESSIONS_STREAM",
    "BrokerConfig",
    "CameraConfig",
    "Config",
    "ControlConfig",
    "DiskConfig",
    "KafkaConfig",
    "LimitsConfig",
    "ListenerConfig",
    "MqttConfig",
    "Retention",
    "Route",
    "SiteConfig",
    "StreamConfig",
    "SubscriberConfig",
    "SubscriberRoute",
    "data_directory",
    "from_dict",
    "load",
    "split_bind",
    "warnings",
]


def load(path: str | Path) -> Config:
    """The configuration in this file and the files it includes.

    Relative paths in it start at the directory of the file they are written in. Raises ConfigError naming everything
    that is wrong, each with file, line, key and what would be right.
    """
    return _validated(read_file(Path(path)))


def data_directory(path: str | Path) -> Path:
    """Only where the data is, for programs that read: no other key is checked, no secret needed."""
    sources = read_file(Path(path), secrets=False)
    problems = [problem for problem in sources.problems if problem[0][:1] in (("data",), ("include",))]
    data = sources.document.get("data")
    if not problems and not (isinstance(data, str) and data):
        problems = [(("data",), 'is missing or not text: where the data is, as in data = "/var/lib/gateway"')]
    if problems:
        raise ConfigError(sources.sentences(problems))
    return Path(str(data))


def from_dict(document: Mapping[str, Any], *, directory: str | Path = ".") -> Config:
    """The same from a dictionary as ``tomllib`` makes it; relative paths start at ``directory``."""
    return _validated(read_dict(document, Path(directory)))


def _validated(sources: Sources) -> Config:
    problems = list(sources.problems)
    config: Config | None = None
    try:
        config = Config.model_validate(sources.document)
    except ValidationError as error:
        known = {path for path, _ in problems}
        problems += [(path, text) for path, text in explain(error, Config) if path not in known]
    if config is not None:
        problems += overlaps(config)
    if problems or config is None:
        raise ConfigError(sources.sentences(problems))
    return config
