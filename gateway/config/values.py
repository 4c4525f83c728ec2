"""Values of ``gateway.toml``: names, addresses, times and sizes, what each may be, and what it becomes."""

from __future__ import annotations

import difflib
import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, SecretStr

from gateway.clock import NS_PER_S, parse_duration, parse_size

KIB, MIB, GIB = 2**10, 2**20, 2**30
MINUTE_NS, DAY_NS = 60 * NS_PER_S, 86_400 * NS_PER_S

# The largest record there can be: key, value and headers together.
RECORD_BYTES_MAX = 16 * MIB
# Positions in Kafka's index files are signed 32-bit.
SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = MIB, 2**31 - 1
SEGMENT_AGE_NS_MAX = 7 * DAY_NS

# Where records go whose stream, named by a template, cannot be opened.
OVERFLOW_STREAM = "overflow"
# sun_path in <sys/un.h> has 108 bytes, one of them for the NUL.
UNIX_PATH_BYTES_MAX = 107

# What MQTT listeners have to remember across a restart. Internal: nobody routes records into it.
SESSIONS_STREAM = "__mqtt_sessions"
# A topic that others are made of has room for more levels: MQTT's own bound is 65,535.
TOPIC_BASE_BYTES_MAX = 1_024

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


# What a template may take from a topic: its levels, counted from 1; a key also the whole topic.
_LEVEL = re.compile(r"\{[1-9]\}")
_LEVEL_OR_TOPIC = re.compile(r"\{([1-9]|topic)\}")


def _check_stream(stream: str) -> str:
    """A name, or one with levels of the topic in it."""
    literals = _LEVEL.sub("", stream)
    if stream.startswith("__"):
        raise ValueError(f"{stream!r} begins with '__', as only the gateway's own streams do; choose another name")
    if literals == stream and "{" not in stream:
        return _check_name(stream)
    if literals and not _NAME.fullmatch(literals):
        raise ValueError(
            f"{stream!r} is not a template for a stream's name; use A-Z, a-z, 0-9, '.', '_', '-' and {{1}} to {{9}} "
            "for levels of the topic, at most 249 characters"
        )
    return stream


def _check_key(key: str) -> str:
    if not key or "\0" in key or "{" in (rest := _LEVEL_OR_TOPIC.sub("", key)) or "}" in rest:
        raise ValueError(
            f"{key!r} is not a template for a key; use any text, {{topic}}, and {{1}} to {{9}} for levels of the topic"
        )
    return key


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
    path = unix_path(bind)
    if path is None:
        split_bind(bind)
    elif not path.is_absolute() or len(str(path).encode()) > UNIX_PATH_BYTES_MAX:
        raise ValueError(
            f"{bind!r}: a Unix socket has an absolute path of at most {UNIX_PATH_BYTES_MAX} bytes, as in "
            "'unix:/run/gateway/mqtt.sock'"
        )
    return bind


def check_tcp_bind(bind: str) -> str:
    split_bind(bind)
    return bind


def unix_path(bind: str) -> Path | None:
    """Where a Unix socket is, of a bind such as ``"unix:/run/gateway/mqtt.sock"``; else None."""
    return Path(bind.removeprefix("unix:")) if bind.startswith("unix:") else None


def is_loopback(host: str) -> bool:
    """Does this address reach nobody outside of this machine?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_mode(mode: str) -> str:
    if not re.fullmatch("0?[0-7]{3}", mode):
        raise ValueError("is the socket file's permissions in octal, as in '0660'")
    return mode


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


def check_topic(topic: str) -> str:
    """What topics are made of by adding levels: MQTT 5, section 4.7.3."""
    if not topic or any(character in topic for character in "+#\0") or topic.startswith("$"):
        raise ValueError(f"{topic!r} is not a topic; '+', '#' and NUL are not allowed, nor '$' at its beginning")
    if topic.endswith("/") or len(topic.encode()) > TOPIC_BASE_BYTES_MAX:
        raise ValueError(
            f"levels are added to it with '/', so it ends without one and has at most {TOPIC_BASE_BYTES_MAX} bytes"
        )
    return topic


def check_broker_url(url: str) -> str:
    return _check_url(url, ("mqtt", "mqtts"), "mqtt://broker.local:1883", path_allowed=False)


# What a device of the machine may be asked for, behind its path.
DEVICE_OPTIONS = {"format": "mjpeg|h264|hevc", "size": "[0-9]{1,5}x[0-9]{1,5}", "fps": "[0-9]{1,3}"}


def _check_device(url: str) -> str:
    example = "v4l2:///dev/video0?format=mjpeg&size=1280x720&fps=30"
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/dev/") or "\0" in url or parts.fragment:
        raise ValueError(f"a camera of this machine is a device, as in '{example}'")
    for option in filter(None, parts.query.split("&")):
        name, _, value = option.partition("=")
        if name not in DEVICE_OPTIONS or not re.fullmatch(DEVICE_OPTIONS[name], value):
            raise ValueError(f"{option!r} is none of {', '.join(DEVICE_OPTIONS)} with a value; write as in '{example}'")
    return url


def check_camera_url(url: str) -> str:
    if url.startswith("file:"):
        if not url.startswith("file:///") or "\0" in url:
            raise ValueError("a file has an absolute path, as in 'file:///srv/clips/gate.mp4'")
        return url
    if url.startswith("v4l2:"):
        return _check_device(url)
    return _check_url(url, ("rtsp", "rtsps", "http", "https"), "rtsp://10.0.0.11/main", path_allowed=True)


def check_timezone(name: str) -> str:
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


Name = Annotated[str, AfterValidator(_check_name)]
TopicFilter = Annotated[str, AfterValidator(_check_filter)]
StreamTemplate = Annotated[str, AfterValidator(_check_stream)]
KeyTemplate = Annotated[str, AfterValidator(_check_key)]
Bind = Annotated[str, AfterValidator(_check_bind)]
DurationNs = Annotated[int, BeforeValidator(parse_duration)]
SizeBytes = Annotated[int, BeforeValidator(parse_size)]
FilePath = Annotated[Path, BeforeValidator(_as_path)]
Secret = Annotated[SecretStr, BeforeValidator(_as_secret)]
