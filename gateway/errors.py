"""Every error Gateway raises on purpose.

The text of an error is a whole sentence, or several: what happened, where, and what to do about it. It is shown to
people as it is, so it never contains a secret. ``exit_code`` is what a command ends with when the error reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.log.segment import Damage


class GatewayError(Exception):
    """Base of all errors raised on purpose; catching it catches nothing else."""

    exit_code = 1


class UsageError(GatewayError):
    """A command was called with arguments that do not make sense."""

    exit_code = 2


class ConfigError(GatewayError):
    """The configuration is wrong. ``problems`` holds one sentence each: file, line, key, what would be right."""

    exit_code = 3

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DamageError(GatewayError):
    """Bytes on disk are not what was written."""

    exit_code = 4


class DamageWarning(UserWarning):
    """Reading passed over damage. ``damage`` says where, and which records it costs."""

    def __init__(self, damage: Damage) -> None:
        self.damage = damage
        super().__init__(f"{damage} was passed over; `gateway verify` lists every such place.")


class BadPayloadWarning(UserWarning):
    """Payloads could not be turned into typed columns; the table is without their records, which are listed."""


class LockedError(GatewayError):
    """The data directory already has a writer; the text names its process id."""


class FormatError(GatewayError):
    """Not a data directory of Gateway, or one of a newer format than this version reads."""


class StreamNotFound(GatewayError, KeyError):
    """No such stream. ``stream`` is what was asked for, ``existing`` what there is."""

    def __init__(self, stream: str, existing: Iterable[str] = ()) -> None:
        self.stream = stream
        self.existing = tuple(existing)
        if self.existing:
            shown = ", ".join(self.existing[:20]) + (", …" if len(self.existing) > 20 else "")
            text = f"There is no stream {stream!r} here; there is: {shown}."
        else:
            text = f"There is no stream {stream!r} here; nothing has been recorded yet."
        super().__init__(text)

    def __str__(self) -> str:  # KeyError's own shows the repr of its argument
        return str(self.args[0])


class NoFrame(GatewayError):
    """There is no picture at that instant. ``before`` and ``after`` are its neighbours' times, if it has any."""

    def __init__(self, message: str, *, before: datetime | None = None, after: datetime | None = None) -> None:
        self.before = before
        self.after = after
        super().__init__(message)


class SourceError(GatewayError):
    """A source (listener, broker, camera) cannot be used; the text names it and the cause."""

    def __init__(self, message: str, *, source: str | None = None) -> None:
        self.source = source
        super().__init__(f"{source}: {message}" if source else message)
