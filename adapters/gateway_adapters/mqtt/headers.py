"""Record headers of MQTT messages that reach Python: wills, and what the subscriber receives.

The listener's publishes get theirs natively; `gateway_native/mqtt_headers.pxd` is the definition, and tests hold the
two against each other.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from urllib.parse import quote_from_bytes

from gateway.log.message_headers import RESERVED, RESERVED_PREFIXES, USER_PREFIX

__all__ = ["RESERVED", "RESERVED_PREFIXES", "escape", "message_headers"]

_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def escape(text: str) -> bytes:
    """Any text as ASCII: bytes of its UTF-8 outside 0x20..0x7E, and '%', as %XX. ``urllib.parse.unquote`` undoes it."""
    return quote_from_bytes(text.encode(), safe=_PLAIN).encode("ascii")


def message_headers(
    *,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    will: bool = False,
    payload_format: int = 0,
    message_expiry: int | None = None,
    content_type: str | None = None,
    response_topic: str | None = None,
    correlation_data: bytes | None = None,
    user_properties: Iterable[tuple[str, str]] = (),
) -> list[tuple[str, bytes]]:
    """Headers for what differs from MQTT's defaults, for ``gateway_native.batch.encode_headers``."""
    flags = {"qos": qos, "retain": int(retain), "dup": int(dup), "will": int(will), "payload-format": payload_format}
    headers = [(name, b"%d" % value) for name, value in flags.items() if value]
    if message_expiry is not None:
        headers.append(("message-expiry", b"%d" % message_expiry))
    if content_type is not None:
        headers.append(("content-type", escape(content_type)))
    if response_topic is not None:
        headers.append(("response-topic", escape(response_topic)))
    if correlation_data is not None:
        headers.append(("correlation-data", base64.b64encode(correlation_data)))
    for name, value in user_properties:
        reserved = name in RESERVED or name.startswith(RESERVED_PREFIXES)
        headers.append((f"{USER_PREFIX}{name}" if reserved else name, escape(value)))
    return headers
