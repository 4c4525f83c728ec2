"""What the exceptions of PyAV mean."""

from __future__ import annotations

import errno

import av.error

from gateway_adapters.rtsp.failures import Failure


def classify(error: Exception, *, opening: bool, timeout_s: float, elapsed_s: float = 0.0) -> Failure:
    """What an exception of PyAV means. opening: while connecting, else while reading; elapsed_s: since that began.

    libav reports an open that ran into its time-out as all sorts of errors, so the clock has the last word.
    """
    if isinstance(error, av.error.ExitError | TimeoutError) or (opening and elapsed_s >= timeout_s):
        doing = "no answer" if opening else "no picture"
        return Failure("timeout", f"{doing} within {timeout_s:g} s")
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EIO and not opening:
        return Failure("closed", "the camera broke the connection")
    for kind, state, cause in _BY_TYPE:
        if isinstance(error, kind):
            return Failure(state, cause)
    if number in _BY_NUMBER:
        return Failure(*_BY_NUMBER[number])
    return Failure("failed", getattr(error, "strerror", None) or type(error).__name__)


# First match wins.
_BY_TYPE: tuple[tuple[type[Exception], str, str], ...] = (
    (av.error.HTTPUnauthorizedError, "unauthorized", "the camera refuses the user name or password (401)"),
    (av.error.HTTPForbiddenError, "unauthorized", "the camera forbids this user the stream (403)"),
    (av.error.HTTPNotFoundError, "not_found", "the camera has no stream at this path (404)"),
    (av.error.HTTPClientError, "unsupported", "the camera refuses the request (RTSP status 4xx)"),
    (av.error.HTTPServerError, "failed", "the camera fails to serve the stream (RTSP status 5xx)"),
    (FileNotFoundError, "not_found", "there is no such file or device"),
    (PermissionError, "unauthorized", "the gateway may not read this file or device"),
    (ConnectionRefusedError, "refused", "nothing listens at this address (connection refused)"),
    (ConnectionError, "closed", "the camera broke the connection"),
    (av.error.InvalidDataError, "unsupported", "the answer is no RTSP, or no stream that libav understands"),
)
_BY_NUMBER = {
    errno.EHOSTUNREACH: ("unreachable", "there is no way to this host"),
    errno.ENETUNREACH: ("unreachable", "there is no way to this network"),
    # Also what libav makes of a name that does not resolve.
    errno.EIO: ("unreachable", "the host cannot be found, or the connection broke"),
    # Of a device of this machine.
    errno.ENOTTY: ("unsupported", "this device is no camera (it does not speak V4L2)"),
    errno.ENODEV: ("not_found", "the device is gone"),
    errno.ENXIO: ("not_found", "the device is gone"),
    errno.EBUSY: ("refused", "another program uses this device"),
    errno.EPROTONOSUPPORT: ("unsupported", "the camera does not speak the configured transport"),
}
