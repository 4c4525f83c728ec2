"""Who may connect: user names with what SCRAM-SHA-256 keeps instead of a password.

One user a line, ``name:SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`` (Base64), which is how PostgreSQL writes it;
``gateway kafka-user NAME`` makes such a line. Empty lines and those that begin with ``#`` are skipped. A password
cannot be computed from it, only guessed. Source: RFC 5802, sections 2 and 3.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from gateway.user_files import read_users

USERS_MAX = 100_000
NAME_BYTES_MAX = 1_024
# RFC 7677 asks for 4,096 at least; more than the maximum would let one attempt take a second.
ITERATIONS_MIN, ITERATIONS, ITERATIONS_MAX = 4_096, 10_000, 1_000_000
_SALT_BYTES = 16
_DIGEST_BYTES = 32

_LINE = re.compile(r"SCRAM-SHA-256\$([0-9]{1,7}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of one user."""

    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @classmethod
    def make(cls, password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> Credentials:
        """For a new password."""
        salt = salt or os.urandom(_SALT_BYTES)
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
        client_key = _hmac(salted, b"Client Key")
        return cls(iterations, salt, hashlib.sha256(client_key).digest(), _hmac(salted, b"Server Key"))

    @classmethod
    def parse(cls, text: str) -> Credentials:
        """Raises ValueError with what is wrong, without the text, which is a secret."""
        found = _LINE.fullmatch(text)
        if found is None:
            raise ValueError("is not 'name:SCRAM-SHA-256$…'; make it with 'gateway kafka-user NAME'")
        iterations = int(found[1])
        if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
            raise ValueError(f"the number of iterations is not between {ITERATIONS_MIN} and {ITERATIONS_MAX}")
        try:
            salt, stored, server = (base64.b64decode(part, validate=True) for part in found.groups()[1:])
        except binascii.Error:
            raise ValueError("there is no Base64 where it should be") from None
        if not len(stored) == len(server) == _DIGEST_BYTES:
            raise ValueError("a key has not the 32 bytes of SHA-256")
        return cls(iterations, salt, stored, server)

    def line(self, name: str) -> str:
        """As it stands in the file."""
        salt, stored, server = (
            base64.b64encode(part).decode() for part in (self.salt, self.stored_key, self.server_key)
        )
        return f"{name}:SCRAM-SHA-256${self.iterations}:{salt}${stored}:{server}"

    def matches(self, password: str) -> bool:
        """In constant time, but for the iterations, which take milliseconds without the interpreter lock."""
        made = Credentials.make(password, salt=self.salt, iterations=self.iterations)
        return hmac.compare_digest(made.stored_key, self.stored_key)


class Users:
    """All users of the endpoint."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises ConfigError with file and line; never shows what stands there."""
        self.path = path
        self._secret = os.urandom(_DIGEST_BYTES)
        self._known = _read(path)

    def reload(self) -> None:
        """Read it again. After a ConfigError the users are those of before."""
        self._known = _read(self.path)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, name: str) -> tuple[Credentials, bool]:
        """Of an unknown name too, so that nobody can tell which exist: those match no password."""
        known = self._known.get(name)
        if known is not None:
            return known, True
        iterations = next(iter(self._known.values())).iterations if self._known else ITERATIONS
        salt = _hmac(self._secret, name.encode())
        return Credentials(iterations, salt[:_SALT_BYTES], _hmac(self._secret, salt), salt), False


def check_name(name: str) -> None:
    """Raises ValueError for a name that cannot stand in the file."""
    if not name or name != name.strip() or ":" in name or name.startswith("#") or not name.isprintable():
        raise ValueError("a user name is printable, has no ':', and neither '#' nor blanks at its beginning or end")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"a user name has at most {NAME_BYTES_MAX} bytes")


def _read(path: Path) -> dict[str, Credentials]:
    return read_users(path, _parse, users_max=USERS_MAX)


def _parse(name: str, text: str | None) -> Credentials:
    check_name(name)
    return Credentials.parse(text or "")


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")
