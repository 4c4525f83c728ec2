"""What the headers of an MQTT message's record mean: the way back from FORMAT.md, section 3, to the message."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

# A user property of one of these names, or beginning with one of the prefixes, is stored with "user." before it.
RESERVED = frozenset(
    {
        "qos", "retain", "dup", "will", "payload-format", "message-expiry", "content-type", "response-topic",
        "correlation-data", "client", "packet-id", "delivery",
    }
)  # fmt: skip
USER_PREFIX = "user."
RESERVED_PREFIXES = (USER_PREFIX, "gateway.")


class MessageHeaders(NamedTuple):
    """A message as its sender made it, apart from topic and payload. None: the sender did not say."""

    qos: int = 0
    retain: bool = False
    payload_format: int | None = None
    message_expiry: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()


def parse_message_headers(headers: Iterable[tuple[str, bytes]]) -> MessageHeaders:
    """Read the headers of a record that MQTT brought; what no gateway wrote is taken for a user property as it is."""
    known: dict[str, bytes] = {}
    user: list[tuple[str, str]] = []
    for name, value in headers:
        if name in RESERVED:
            known[name] = value
        elif name.startswith(USER_PREFIX):
            user.append((name.removeprefix(USER_PREFIX), unescape(value)))
        elif not name.startswith(RESERVED_PREFIXES):
            user.append((name, unescape(value)))
    return MessageHeaders(
        qos=min(_number(known.get("qos")) or 0, 2),
        retain=known.get("retain") == b"1",
        payload_format=1 if known.get("payload-format") == b"1" else None,
        message_expiry=_number(known.get("message-expiry")),
        content_type=_text(known.get("content-type")),
        response_topic=_text(known.get("response-topic")),
        correlation_data=_base64(known.get("correlation-data")),
        user_properties=tuple(user),
    )


def unescape(value: bytes) -> str:
    """Undoes the writer's escaping (%XX); bytes that are no text come as replacement characters."""
    return unquote_to_bytes(value).decode(errors="replace")


def _text(value: bytes | None) -> str | None:
    return None if value is None else unescape(value)


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) <= 10 else None


def _base64(value: bytes | None) -> bytes | None:
    try:
        return None if value is None else base64.b64decode(value, validate=True)
    except binascii.Error:
        return None
