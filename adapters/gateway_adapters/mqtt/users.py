"""Who may connect: user names and password hashes in the format of Mosquitto's password file.

One user a line, ``name:hash``; empty lines and those that begin with ``#`` are skipped. Hashes as ``mosquitto_passwd``
writes them: ``$7$iterations$salt$hash`` (PBKDF2 with HMAC-SHA-512) and ``$6$salt$hash`` (SHA-512 of password and salt,
of Mosquitto before 2.0). Passwords are never kept: not in a cache, not in a log, not in an error.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gateway.user_files import read_users

USERS_MAX = 1_000_000
# What one attempt may cost: 10 million rounds are some seconds of one core.
ITERATIONS_MAX = 10_000_000
# Attempts that wait for a thread; more are refused as "busy", which clients take as a reason to come again.
WAITING_MAX = 1_024
THREADS = 2
# What an unknown name costs: as much as mosquitto_passwd's default.
_UNKNOWN_ITERATIONS = 101


class TooBusy(Exception):
    """More attempts wait than are allowed to; nothing is known about this one."""


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """One hash. ``iterations`` 0 is the old kind, ``$6$``."""

    iterations: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> PasswordHash:
        """Raises ValueError with what is wrong; the text itself is a secret and never in the sentence."""
        parts = text.split("$")
        if len(parts) == 4 and parts[:2] == ["", "6"]:
            return cls(0, _decoded(parts[2]), _digest(parts[3]))
        if len(parts) == 5 and parts[:2] == ["", "7"]:
            if not (parts[2].isascii() and parts[2].isdigit()) or not 1 <= int(parts[2]) <= ITERATIONS_MAX:
                raise ValueError(f"the number of iterations is not between 1 and {ITERATIONS_MAX}")
            return cls(int(parts[2]), _decoded(parts[3]), _digest(parts[4]))
        if text.startswith("$argon2"):
            raise ValueError("Argon2 hashes are not known here; write it with 'mosquitto_passwd -H sha512-pbkdf2'")
        if not text.startswith("$"):
            raise ValueError("there is no hash after the colon; 'mosquitto_passwd -U FILE' turns passwords into hashes")
        raise ValueError("the hash is of no known kind; 'mosquitto_passwd' writes $7$ and $6$")

    def matches(self, password: bytes) -> bool:
        """Compare in constant time. Takes as long as the iterations need, without the interpreter lock."""
        if self.iterations:
            found = hashlib.pbkdf2_hmac("sha512", password, self.salt, self.iterations)
        else:
            found = hashlib.sha512(password + self.salt).digest()
        return hmac.compare_digest(found, self.digest)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the hash is not Base64 where it should be") from None


def _digest(text: str) -> bytes:
    digest = _decoded(text)
    if len(digest) != hashlib.sha512().digest_size:
        raise ValueError("the hash is not as long as a SHA-512 hash is; the line may have been cut")
    return digest


class Users:
    """The users of one file, and the threads that check passwords off the event loop."""

    def __init__(self, path: Path, hashes: dict[str, PasswordHash]) -> None:
        self.path = path
        self._hashes = hashes
        self._waiting = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-passwords")
        # A name that is not there must cost what one that is there costs: else the time tells which names exist.
        self._unknown = self._stand_in()

    @classmethod
    def load(cls, path: Path) -> Users:
        """Read the file. Raises ConfigError with file and line; never shows what stands there."""
        return cls(path, _read(path))

    def reload(self) -> None:
        """Read the file again. After a ConfigError the users are those of before."""
        self._hashes = _read(self.path)
        self._unknown = self._stand_in()

    def __len__(self) -> int:
        return len(self._hashes)

    def __contains__(self, name: str) -> bool:
        return name in self._hashes

    async def verify(self, name: str, password: bytes) -> bool:
        """Is this the user's password? Raises TooBusy when too many wait for an answer already."""
        if self._waiting >= WAITING_MAX:
            raise TooBusy
        stored = self._hashes.get(name)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            matches = await loop.run_in_executor(self._threads, (stored or self._unknown).matches, password)
        finally:
            self._waiting -= 1
        return matches and stored is not None

    def close(self) -> None:
        """End the threads; attempts that wait are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _stand_in(self) -> PasswordHash:
        iterations = max((known.iterations for known in self._hashes.values()), default=_UNKNOWN_ITERATIONS)
        return PasswordHash(iterations, os.urandom(12), os.urandom(hashlib.sha512().digest_size))


def _read(path: Path) -> dict[str, PasswordHash]:
    def parse(name: str, text: str | None) -> PasswordHash:
        if text is None or not name:
            raise ValueError(f"is not 'name:hash'; write users with 'mosquitto_passwd {path} NAME'")
        return PasswordHash.parse(text)

    return read_users(path, parse, users_max=USERS_MAX)
