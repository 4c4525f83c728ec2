"""The structured log: one event a line, repeats counted, no credentials."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from gateway import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What was logged; the handlers are taken off afterwards."""
    yield io.StringIO()
    logger = logging.getLogger("gateway")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    logging.getLogger("gateway_adapters").parent = logging.getLogger()


def test_text_is_one_line_an_event(stream: io.StringIO) -> None:
    """Fields follow the event as name=value; nothing that was received can begin a line or move the cursor."""
    logs.configure("text", stream=stream)
    logging.getLogger("gateway.x").info(
        "odd client", extra={"fields": {"client": 'a"b\n2026 ERROR forged\x1b[2J', "n": 3}}
    )
    (line,) = stream.getvalue().splitlines()
    assert "INFO" in line
    assert line.endswith('odd client client="a\\"b\\n2026 ERROR forged\\x1b[2J" n=3')


def test_json_is_one_object_an_event(stream: io.StringIO) -> None:
    """Every line parses; numbers stay numbers; a field cannot replace time, level or event."""
    logs.configure("json", stream=stream)
    logging.getLogger("gateway.x").warning("odd", extra={"fields": {"bytes": 5, "event": "other", "text": "a\nb"}})
    event = json.loads(stream.getvalue())
    assert event["event"] == "odd"
    assert event["field_event"] == "other"
    assert (event["level"], event["logger"], event["bytes"], event["text"]) == ("warning", "gateway.x", 5, "a\nb")


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "url", ["rtsp://admin:hunter2@10.0.0.1/x", "mqtt://hunter2@h", "rtsp://u:hun/ter2@h/x", "http://u:hunter2@h?x=@"]
)
def test_credentials_in_urls_are_cut_out(stream: io.StringIO, log_format: logs.LogFormat, url: str) -> None:
    """Whatever a library puts into its messages, no user or password of a URL is written."""
    logs.configure(log_format, stream=stream)
    try:
        raise OSError(f"cannot open {url}")
    except OSError:
        logging.getLogger("gateway.x").exception("failed: %s", url, extra={"fields": {"url": url}})
    assert "hunter2" not in stream.getvalue()
    assert "ter2" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_adapters_log_in_the_same_place(stream: io.StringIO) -> None:
    """A plug-in under its own package's name writes to the same log."""
    logs.configure("text", stream=stream)
    logging.getLogger("gateway_adapters.mqtt").info("hello")
    assert "hello" in stream.getvalue()


def test_repeats_are_limited_and_counted() -> None:
    """Of one event from one source a burst is shown, then the number of those that were not."""
    now_ns = 0
    stream = io.StringIO()
    handler = logs.EventHandler(stream, logs.TextFormatter(), clock_ns=lambda: now_ns)

    def log(message: str, source: str) -> None:
        record = logging.LogRecord("gateway", logging.WARNING, "", 0, message, None, None)
        record.fields = {"source": source}
        handler.handle(record)

    for _ in range(logs.BURST + 25):
        log("lost packets", "gate-1")
    log("lost packets", "gate-2")
    assert len(stream.getvalue().splitlines()) == logs.BURST + 1
    now_ns += logs.WINDOW_NS
    log("other", "gate-1")
    lines = stream.getvalue().splitlines()
    assert lines[-2].endswith("lost packets source=gate-1 not_shown=25")
    for _ in range(logs.BURST + 3):
        log("other", "gate-1")
    handler.close()
    assert stream.getvalue().splitlines()[-1].endswith("other source=gate-1 not_shown=4")


def test_the_memory_for_repeats_is_bounded() -> None:
    """More kinds of events than are remembered are all written."""
    stream = io.StringIO()
    handler = logs.EventHandler(stream, logs.TextFormatter(), clock_ns=lambda: 0)
    for number in range(logs.EVENTS_REMEMBERED + 50):
        handler.handle(logging.LogRecord("gateway", logging.INFO, "", 0, f"event {number}", None, None))
    assert len(stream.getvalue().splitlines()) == logs.EVENTS_REMEMBERED + 50


def test_a_closed_stream_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """A log that cannot be written raises nothing and prints nothing."""
    stream = io.StringIO()
    handler = logs.EventHandler(stream, logs.TextFormatter())
    stream.close()
    handler.handle(logging.LogRecord("gateway", logging.INFO, "", 0, "x", None, None))
    assert capsys.readouterr().err == ""
