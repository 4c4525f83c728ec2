"""Why a camera cannot be used: the right state, and never its password."""

from __future__ import annotations

import errno

import av.error
import pytest
from gateway_adapters.rtsp.failures import scrub, shown, with_credentials
from gateway_adapters.rtsp.libav_errors import classify

PASSWORD = "p@ss/w:rd?#%é"


def test_credentials_are_percent_encoded_for_libav() -> None:
    """Whatever the password is made of, the URL parses back to the same host and path."""
    url = with_credentials("rtsp://10.0.0.1:554/a?b=c", "me@home", PASSWORD)
    assert url == "rtsp://me%40home:p%40ss%2Fw%3Ard%3F%23%25%C3%A9@10.0.0.1:554/a?b=c"
    assert with_credentials("rtsp://h/x", None, PASSWORD) == "rtsp://h/x"


@pytest.mark.parametrize(
    "text",
    [
        f"cannot open 'rtsp://me:{PASSWORD.split('/', maxsplit=1)[0]}@h/x' now",
        with_credentials("rtsp://h/x", "me", PASSWORD),
        f"password {PASSWORD} refused",
        "rtsps://me:other@h:322/x and rtsp://you:too@h/y",
    ],
)
def test_scrubbed_text_names_no_secret(text: str) -> None:
    """User information of any URL goes, and so does the password wherever it stands, plain or encoded."""
    scrubbed = scrub(text, PASSWORD)
    for secret in (PASSWORD, "p%40ss", "p@ss", "other", "too@", "me:"):
        assert secret not in scrubbed
    assert "***" in scrubbed or "://h" in scrubbed


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (av.error.HTTPUnauthorizedError(1, "x"), "unauthorized"),
        (av.error.HTTPForbiddenError(1, "x"), "unauthorized"),
        (av.error.HTTPNotFoundError(1, "x"), "not_found"),
        (av.error.HTTPBadRequestError(1, "x"), "unsupported"),
        (av.error.ConnectionRefusedError(errno.ECONNREFUSED, "x"), "refused"),
        (av.error.ConnectionResetError(errno.ECONNRESET, "x"), "closed"),
        (av.error.BrokenPipeError(errno.EPIPE, "x"), "closed"),
        (av.error.ExitError(1, "x"), "timeout"),
        (av.error.TimeoutError(errno.ETIMEDOUT, "x"), "timeout"),
        (OSError(errno.EHOSTUNREACH, "x"), "unreachable"),
        (av.error.InvalidDataError(1, "x"), "unsupported"),
        (av.error.FileNotFoundError(errno.ENOENT, "x"), "not_found"),
        (av.error.PermissionError(errno.EACCES, "x"), "unauthorized"),
        (av.error.UnknownError(1, "x"), "failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_errors_become_states(error: Exception, state: str) -> None:
    """Every error of libav that a camera can cause has a state that tells people what to look at."""
    assert classify(error, opening=True, timeout_s=5).state == state


def test_an_open_that_took_its_whole_time_is_a_time_out() -> None:
    """libav reports an interrupted open as invalid data; the clock tells otherwise."""
    failure = classify(av.error.InvalidDataError(1, "x"), opening=True, timeout_s=5, elapsed_s=5.01)
    assert (failure.state, str(failure)) == ("timeout", "no answer within 5 s")


def test_what_a_camera_says_is_shown_short_and_on_one_line() -> None:
    """No control character of a camera reaches a terminal, no URL its user information, no log line its whole text."""
    assert shown(" not\x1b[31m\r\nok rtsp://u:p@h/x ") == "not?[31m??ok rtsp://h/x"
    assert len(shown("x" * 1_000)) == 81
