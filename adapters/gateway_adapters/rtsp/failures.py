"""Why a camera could not be used, in words that never contain its password."""

from __future__ import annotations

import errno
import re
from urllib.parse import quote, urlsplit, urlunsplit

# User name and password in front of a host, as in any URL that a library or a camera may quote.
_USERINFO = re.compile(r"(?i)(?<=://)[^/?#\s'\"]*@")
# What a camera says is shown only so far, and only what can be printed.
TEXT_CHARACTERS_MAX = 80


class Failure(Exception):
    """A camera could not be opened or read. ``state`` is what `statistics` shows, ``cause`` a clause for people.

    state: unauthorized, not_found, refused, unreachable, timeout, stalled, closed, unsupported or failed.
    """

    def __init__(self, state: str, cause: str) -> None:
        self.state = state
        self.cause = cause
        super().__init__(cause)


class RemoteFault(Failure):
    """What the camera sent breaks the protocol. The only error that received bytes may cause."""

    def __init__(self, cause: str) -> None:
        super().__init__("unsupported", cause)


# What the system says about a connection, by errno.
_BY_NUMBER = {
    errno.ECONNREFUSED: ("refused", "nothing listens at this address (connection refused)"),
    errno.EHOSTUNREACH: ("unreachable", "there is no way to this host"),
    errno.ENETUNREACH: ("unreachable", "there is no way to this network"),
    errno.EADDRNOTAVAIL: ("unreachable", "this machine has no address or port left to connect from"),
    errno.ETIMEDOUT: ("timeout", "the camera stopped answering"),
    errno.ECONNRESET: ("closed", "the camera broke the connection"),
    errno.ECONNABORTED: ("closed", "the camera broke the connection"),
    errno.EPIPE: ("closed", "the camera broke the connection"),
    errno.EMFILE: ("failed", "the gateway has no descriptor left; raise the limit of open files"),
    errno.ENFILE: ("failed", "the system has no descriptor left; raise fs.file-max"),
}


def of_system(number: int | None, text: str | None = None) -> Failure:
    """What an errno of a socket means; text: what else is known."""
    if number in _BY_NUMBER:
        return Failure(*_BY_NUMBER[number])
    return Failure("failed", text or f"the system says error {number}")


def with_credentials(url: str, username: str | None, password: str | None) -> str:
    """The URL as libav wants it, user name and password percent-encoded inside. For libav only, never to be shown."""
    if username is None:
        return url
    parts = urlsplit(url)
    userinfo = quote(username, safe="") + (":" + quote(password, safe="") if password is not None else "")
    return urlunsplit(parts._replace(netloc=f"{userinfo}@{parts.netloc.rpartition('@')[2]}"))


def scrub(text: str, *secrets: str | None) -> str:
    """`text` without the user information of any URL in it, and without the given secrets in plain or encoded form."""
    text = _USERINFO.sub("", text)
    for secret in secrets:
        if secret:
            for form in (secret, quote(secret, safe="")):
                text = text.replace(form, "***")
    return text


def shown(text: str) -> str:
    """What a camera said, fit for a sentence: short, on one line, without a URL's user information."""
    plain = "".join(character if character.isprintable() else "?" for character in scrub(text.strip()))
    return plain if len(plain) <= TEXT_CHARACTERS_MAX else f"{plain[:TEXT_CHARACTERS_MAX]}…"
