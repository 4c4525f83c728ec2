"""The log: one event a line on stderr, as text for people or JSON for machines.

Code logs through the standard library::

    logger = logging.getLogger("gateway.ingest")
    logger.info("camera connected", extra={"fields": {"source": "gate-1", "codec": "h264"}})

The message names the kind of event and never varies; what varies stands in ``fields``, units in the names. That is what
makes repeats countable: of one event from one source, ``BURST`` lines are written per ``WINDOW_NS``; the rest are
counted, and the count is written with the first event after that. Credentials in a URL are cut out wherever they stand.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, TextIO

from gateway.clock import NS_PER_S, monotonic_ns

LogFormat = Literal["text", "json"]

BURST = 10
WINDOW_NS = 10 * NS_PER_S
EVENTS_REMEMBERED = 1_000
VALUE_CHARACTERS_MAX = 2_000

_URL_CREDENTIALS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@\s]*(?:/[^/@\s]*)?@")
_PLAIN = re.compile(r"[^\s\"'=\\]+")


def configure(log_format: LogFormat = "text", *, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Sends what is logged under ``gateway`` to ``stream`` (default: stderr), not to where an earlier call did."""
    root = logging.getLogger("gateway")
    for old in list(root.handlers):
        if isinstance(old, EventHandler):
            root.removeHandler(old)
            old.close()
    root.addHandler(EventHandler(stream or sys.stderr, JsonFormatter() if log_format == "json" else TextFormatter()))
    adapters = logging.getLogger("gateway_adapters")
    adapters.parent = root  # plug-ins log under their own package's name
    for logger in (root, adapters):
        logger.setLevel(level)
    root.propagate = False


def without_credentials(text: str) -> str:
    """The text with ``user:password@`` cut out of every URL in it."""
    return _URL_CREDENTIALS.sub(r"\1***@", text)


class EventHandler(logging.StreamHandler[TextIO]):
    """Writes events, limiting repeats. Remembers at most ``EVENTS_REMEMBERED`` kinds of event."""

    def __init__(
        self, stream: TextIO, formatter: logging.Formatter, *, clock_ns: Callable[[], int] = monotonic_ns
    ) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self._clock_ns = clock_ns
        self._windows: dict[tuple[str, ...], _Window] = {}
        self._state_lock = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        now_ns = self._clock_ns()
        with self._state_lock:
            summaries = self._expired(now_ns)
            is_shown = self._admit(record, now_ns)
        for summary in summaries:
            super().emit(summary)
        if is_shown:
            super().emit(record)

    def close(self) -> None:
        """Writes the counts that are still open; the stream stays open, it is not ours."""
        with self._state_lock:
            summaries = [window.summary() for window in self._windows.values() if window.suppressed]
            self._windows.clear()
        for summary in summaries:
            super().emit(summary)
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the library's name
        """A log that cannot be written (a closed terminal) must not stop what is being logged."""

    def _admit(self, record: logging.LogRecord, now_ns: int) -> bool:
        key = (
            record.name,
            record.levelname,
            record.msg if isinstance(record.msg, str) else repr(record.msg),
            _source(record),
        )
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= EVENTS_REMEMBERED:
                return True
            window = self._windows[key] = _Window(now_ns)
        if window.shown < BURST:
            window.shown += 1
            return True
        window.suppressed += 1
        window.latest = record
        return False

    def _expired(self, now_ns: int) -> list[logging.LogRecord]:
        over = [key for key, window in self._windows.items() if now_ns - window.since_ns >= WINDOW_NS]
        windows = [self._windows.pop(key) for key in over]
        return [window.summary() for window in windows if window.suppressed]


class _Window:
    """How often one event happened since ``since_ns``."""

    __slots__ = ("latest", "shown", "since_ns", "suppressed")

    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self.shown = 0
        self.suppressed = 0
        self.latest: logging.LogRecord | None = None

    def summary(self) -> logging.LogRecord:
        """The latest suppressed record, with the number of those not shown."""
        record = self.latest
        assert record is not None, "only windows that suppressed something are summed up"
        record.__dict__["fields"] = {**_fields(record), "not_shown": self.suppressed}
        return record


class TextFormatter(logging.Formatter):
    """``2026-11-23T08:13:04.250+01:00 INFO camera connected source=gate-1 codec=h264``."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), f"{record.levelname:<7}", _one_line(record.getMessage())]
        parts += [f"{name}={_quoted(value)}" for name, value in _all_fields(record).items()]
        return without_credentials(" ".join(parts))


class JsonFormatter(logging.Formatter):
    """One object: ``time``, ``level``, ``logger``, ``event`` and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name, value in _all_fields(record).items():
            event[name if name not in event else f"field_{name}"] = _plain(value)
        return without_credentials(json.dumps(event, ensure_ascii=False))


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields = record.__dict__.get("fields")
    return fields if isinstance(fields, Mapping) else {}


def _all_fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = dict(_fields(record))
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = repr(record.exc_info[1])
        fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
    return fields


def _source(record: logging.LogRecord) -> str:
    return str(_fields(record).get("source", ""))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | bool | None) else _shortened(str(value))


def _shortened(text: str) -> str:
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}… ({len(text)} characters)"


def _one_line(text: str) -> str:
    """Control characters are escaped: what a sensor sends must not move the cursor or forge a line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _quoted(value: object) -> str:
    text = _one_line(_shortened(str(value)))
    return text if _PLAIN.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'
