"""Records as text, JSON lines and CSV.

JSON: ``offset``, ``timestamp`` (ISO 8601 with the site's offset), ``key``, ``value``, ``headers``. A key or value that
is not UTF-8 text comes as ``key_base64`` or ``value_base64`` instead. ``headers`` is an object; a name that occurs more
than once has the list of its values.
"""

from __future__ import annotations

import base64
import codecs
import csv
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway import Record
    from gateway.log.segment import Damage

CSV_COLUMNS = ("offset", "timestamp", "key", "value", "value_base64", "headers")
TEXT_VALUE_CHARACTERS_MAX = 500

_UTF_8 = codecs.getincrementaldecoder("utf-8")  # a character may be cut in its middle

Formatter = Callable[["Record"], str]


def as_object(record: Record) -> dict[str, Any]:
    """The record as JSON shows it."""
    return {
        "offset": record.offset,
        "timestamp": _timestamp(record),
        **_text_or_base64("key", record.key),
        **_text_or_base64("value", record.value),
        "headers": headers_object(record.headers),
    }


def as_json(record: Record) -> str:
    return json.dumps(as_object(record), ensure_ascii=False) + "\n"


def gap_as_json(gap: Damage) -> str:
    """Records that damage costs, where they would stand."""
    first, end = gap.offsets or (None, None)
    shown = {
        "first_offset": first,
        "end_offset": end,
        "bytes": gap.bytes,
        "file": str(gap.path),
        "position": gap.position,
        "problem": gap.problem,
    }
    return json.dumps({"gap": shown}, ensure_ascii=False) + "\n"


def as_csv(record: Record) -> str:
    shown = as_object(record)
    headers = json.dumps(shown["headers"], ensure_ascii=False) if shown["headers"] else ""
    key = shown.get("key", shown.get("key_base64"))
    return csv_line((shown["offset"], shown["timestamp"], key, shown.get("value"), shown.get("value_base64"), headers))


def csv_line(cells: tuple[object, ...]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow("" if cell is None else cell for cell in cells)
    return buffer.getvalue()


def as_text(record: Record) -> str:
    """One line for people; what a sensor sent cannot move the cursor or forge a line."""
    key = "-" if record.key is None else _shown(record.key)
    value = "(no value)" if record.value is None else _shown(record.value)
    headers = "".join(f" {name}={_shown(content)}" for name, content in record.headers)
    return f"{_timestamp(record)}  {record.offset:>8}  {key}  {value}{'  ' + headers.strip() if headers else ''}\n"


def headers_object(headers: tuple[tuple[str, bytes], ...]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, raw in headers:
        content: Any = _text(raw)
        if content is None and raw is not None:
            content = {"base64": base64.b64encode(raw).decode()}
        if name not in shown:
            shown[name] = content
        elif isinstance(shown[name], list):
            shown[name].append(content)
        else:
            shown[name] = [shown[name], content]
    return shown


def _timestamp(record: Record) -> str:
    return record.timestamp.isoformat(timespec="milliseconds")


def _text(raw: bytes | None) -> str | None:
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        return None


def _beginning(raw: bytes) -> str | None:
    """More characters than are shown, if there are, or None if they are no text."""
    looked_at = raw[: 4 * (TEXT_VALUE_CHARACTERS_MAX + 1)]
    try:
        return _UTF_8().decode(looked_at, final=len(looked_at) == len(raw))
    except UnicodeDecodeError:
        return None


def _text_or_base64(name: str, raw: bytes | None) -> dict[str, str | None]:
    text = _text(raw)
    if raw is None or text is not None:
        return {name: text}
    return {f"{name}_base64": base64.b64encode(raw).decode()}


def _shown(raw: bytes | None) -> str:
    """Escaped and cut. Of a large value only what may be shown is looked at."""
    text = _beginning(raw or b"")
    if raw is None or text is None:
        return f"({len(raw or b''):,} bytes)"
    escaped = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return escaped if len(escaped) <= TEXT_VALUE_CHARACTERS_MAX else f"{escaped[:TEXT_VALUE_CHARACTERS_MAX]}…"
