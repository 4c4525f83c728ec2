"""Files of users: one a line, ``name:`` and what checks a password. Whatever stands behind the colon is a secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gateway.errors import ConfigError

FILE_BYTES_MAX = 64 * 2**20

User = TypeVar("User")


def read_users(path: Path, parse: Callable[[str, str | None], User], *, users_max: int) -> dict[str, User]:
    """The users of a file, by name. Empty lines and those that begin with ``#`` are skipped.

    parse: from a name and what follows the colon (None: there is no colon) to what is kept of a user; raises ValueError
    with what is wrong, without the text. Raises ConfigError with file and line; never shows what stands there.
    """
    users: dict[str, User] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, text = line.rstrip().partition(":")
        if name in users:
            raise ConfigError(f"{path}:{number}: this user name stands in an earlier line, too; keep one of them.")
        try:
            users[name] = parse(name, text if colon else None)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}.") from None
        if len(users) > users_max:
            raise ConfigError(f"{path}: has more than {users_max} users, which is the limit.")
    return users


def read_lines(path: Path) -> list[str]:
    """The lines of a text file of bounded size. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: is larger than {FILE_BYTES_MAX} bytes, which is the limit.")
    try:
        return raw.decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text.") from None
